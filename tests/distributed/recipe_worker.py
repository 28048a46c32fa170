"""`llm-unlearn` as `accelerate launch` runs it in every process; under FSDP2 sharded on a CPU too (see worker.py)."""

import sys
from pathlib import Path

import llm_unlearn.vision  # noqa: F401  before transformers: see vision/torchvision_guard.py

sys.path.insert(0, str(Path(__file__).parent))

from worker import shard_on_a_cpu

from llm_unlearn.cli.main import main
from llm_unlearn.distributed.processes import exit_with

if __name__ == "__main__":
    shard_on_a_cpu()
    exit_with(main)
