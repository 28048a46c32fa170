"""What each process holds of a model and its reference, from a folder, before and in a step of kl: bytes beyond what
the libraries take.

    accelerate launch --config_file accelerate_configs/cpu_fsdp2.yaml tests/distributed/memory_worker.py MODEL OUT
"""

import json
import os
import sys
from pathlib import Path

import llm_unlearn.vision  # noqa: F401  before transformers: see vision/torchvision_guard.py

sys.path.insert(0, str(Path(__file__).parents[1]))

from support import trainer
from transformers import TrainingArguments
from worker import shard_on_a_cpu

from llm_unlearn.distributed.processes import exit_with
from llm_unlearn.models.load import load_full


def memory(field: str) -> int:
    """Of this process: RssAnon, what it holds beside files; VmHWM, the most that it has held at a time."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def main(model: str, out: Path) -> None:
    shard_on_a_cpu()
    TrainingArguments(str(out / "work"), use_cpu=True)
    before = {field: memory(field) for field in ("RssAnon", "VmHWM")}
    loaded = load_full(model)
    held = {"loaded": memory("RssAnon") - before["RssAnon"]}
    run = trainer("kl", "full", out / "work", model=loaded, per_device_train_batch_size=4, max_steps=1, optim="sgd")
    held["referenced"] = memory("RssAnon") - before["RssAnon"]
    run.train()
    held["peak"] = memory("VmHWM") - before["VmHWM"]
    (out / f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(held))


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1], Path(sys.argv[2])))
