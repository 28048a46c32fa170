"""1 process × batch 8 ≡ 2 processes × 4 under DistributedDataParallel (gloo): the same losses and the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llm_unlearn.trainers import METHODS

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
WORKER = ROOT / "tests" / "distributed" / "worker.py"
CASES = [f"{method}:{kind}" for method in METHODS for kind in ("full", "lora")]
NO_LOOP = ("ssd",)  # replaces the training loop, so it logs no loss


def launch(out: Path, *launcher: str) -> None:
    out.mkdir()
    command = [*launcher, str(WORKER), str(out), "8", *CASES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, cwd=ROOT,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_are_one(tmp_path):
    """One test for all cases, since launching them costs a minute."""
    launch(tmp_path / "one", sys.executable)
    launch(tmp_path / "two", sys.executable, "-m", "accelerate.commands.launch", "--config_file",
           str(ROOT / "accelerate_configs" / "cpu_ddp.yaml"))
    differing = {}
    for case in CASES:
        try:
            compare(case, tmp_path / "one", tmp_path / "two")
        except AssertionError as error:
            differing[case] = str(error)
    assert not differing


def compare(case: str, first: Path, second: Path) -> None:
    one, two = (json.loads((folder / f"{case}.json").read_text()) for folder in (first, second))
    assert (one["world_size"], two["world_size"], two["backend"]) == (1, 2, "gloo")
    assert len(one["losses"]) == (0 if case.startswith(NO_LOOP) else 4)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5, abs=1e-5)
    assert two["figures"] == pytest.approx(one["figures"], rel=1e-5)
    assert two["cost"] == one["cost"]
    ours, theirs = (torch.load(folder / f"{case}.pt") for folder in (first, second))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=0, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")
