"""Peak memory of one contender of scripts/benchmark.py, in a process of its own, since a peak cannot be reset.

On a CPU the peak is the largest resident set (VmHWM, as in scripts/measure_memory.py) minus the resident set after the
libraries were loaded and warmed up; on a GPU it is `torch.cuda.max_memory_allocated`. It covers two rounds of steps,
not the construction of the contender.
"""

import ctypes
import dataclasses
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from benchmark_steps import CONTENDERS, Scores, Setting, Steps
from measure_memory import resident

from llm_unlearn.models.adapters import REFERENCE_ADAPTER

ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
ROUNDS = 2  # the first creates the optimizer's state


def peak_apart(contender: str, setting: Setting) -> dict[str, int]:
    """{"peak", "beyond"} in bytes; beyond is the peak minus weights, gradients and optimizer state."""
    command = [sys.executable, "-W", "ignore", __file__, contender, json.dumps(dataclasses.asdict(setting))]
    environment = {**os.environ, **ALLOCATOR, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{contender}: {done.stderr[-2000:]}")
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def peak(contender: str, setting: Setting) -> dict[str, int]:
    """As `peak_apart`, in this process."""
    on_gpu = setting.device == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        warm = CONTENDERS[contender](dataclasses.replace(setting, tiny=True), f"{folder}/warm")
        warm()
        del warm
        before = level(on_gpu)
        steps = CONTENDERS[contender](setting, f"{folder}/run")
        level(on_gpu)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        for _ in range(ROUNDS):
            steps()
        most = torch.cuda.max_memory_allocated() if on_gpu else resident("VmHWM")
    return {"peak": most - before, "beyond": most - before - held(steps)}


def level(on_gpu: bool) -> int:
    """Bytes held now, after unused memory was returned."""
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return resident("VmRSS")


def held(steps: Steps | Scores) -> int:
    """Bytes of the weights, the gradients of those that train, and the optimizer state; a reference does not count."""
    weights = [p for name, p in steps.model.named_parameters() if REFERENCE_ADAPTER not in name.split(".")]
    gradients = [p for p in weights if p.requires_grad and isinstance(steps, Steps)]
    states = steps.optimizer.state.values() if steps.optimizer is not None else []
    state = [value for values in states for value in values.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.nbytes for tensor in (*weights, *gradients, *state))


if __name__ == "__main__":
    from llm_unlearn.runs.environment import calm_libraries

    calm_libraries(quiet=True)
    print(json.dumps(peak(sys.argv[1], Setting(**json.loads(sys.argv[2])))))
