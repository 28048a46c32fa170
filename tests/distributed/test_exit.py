"""A process that has done its work is not aborted as it ends, whatever gloo's threads still hold."""

import os
import signal
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

# Process 0 leaves while a collective is under way. Its last exit handler is one long call of C, which does not give the
# interpreter away: meanwhile process 1 joins in, and the thread of process 0 that holds the tensor waits for it.
WORKER = """
import atexit, os, sys, time
from llm_unlearn.distributed.processes import exit_with

def main():
    rank = int(os.environ["RANK"])
    if rank == 0:
        atexit.register(int.__pow__, 3, 8_000_000)
    import torch
    import torch.distributed as distributed
    distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
    distributed.barrier()
    time.sleep(0.6 * rank)
    tensor = torch.ones(1000)
    work = distributed.all_reduce(tensor, async_op=True)
    if rank == 1:
        work.wait()
        time.sleep(3)  # gloo's end of the connection stays until process 0 is gone
    atexit.register(print, "bye")  # no flush: that is for whoever ends the process
    return int(sys.argv[3])

if sys.argv[2] == "ours":
    exit_with(main)
else:
    sys.exit(main())
"""


def ends(how: str, code: int, folder) -> list[tuple[int, str]]:
    """Exit code and output of both processes."""
    folder.mkdir()
    words = [sys.executable, "-c", WORKER, str(folder / "store"), how, str(code)]
    started = [
        subprocess.Popen(
            words,
            env={**os.environ, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    output = [process.communicate(timeout=120)[0] for process in started]
    return [(process.returncode, text) for process, text in zip(started, output, strict=True)]


def test_a_process_ends_with_its_own_exit_code(tmp_path):
    assert ends("ours", 0, tmp_path / "success") == [(0, "bye\n")] * 2
    assert ends("ours", 3, tmp_path / "failure")[1] == (3, "bye\n")
    # what it is for; where this ends well, it can go. A busy machine may be too late once
    assert any(ends("plain", 0, tmp_path / f"plain-{i}")[0][0] == -signal.SIGABRT for i in range(3))
