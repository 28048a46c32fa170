"""Run a command that starts processes, and show of its words, where it fails, those that tell why."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

from paths import ROOT

# what a launched command needs; it finds the tools of this environment, such as DeepSpeed's ninja
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONFAULTHANDLER": "1",
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
}
# the launcher's own last words fill a screen and tell only that a process ended
BEGINS = re.compile(r"Traceback|Error|terminate called|Fatal|Aborted|enforce fail")
PROGRESS = re.compile(r"\d+%\||Failed to load CPU gemm|Setting OMP_NUM_THREADS|^\**$")
CRASHED = re.compile(r"exitcode\s*: -(6|11) ")  # the launcher's words for SIGABRT and SIGSEGV


def run_launched(words: list[str], code: int = 0, timeout: int = 300, **environment: str) -> str:
    """What it writes to standard error, from the repository's root, without a hub; it must end with `code`.

    It is run again, once and with a warning, where native code crashed a process. That happened once, under FSDP2 on a
    CPU, and in none of 150 launches that tried to bring it back; the cause is not known. A fault of ours does so again.
    """
    done = _run(words, timeout, environment)
    if done.returncode != code and CRASHED.search(done.stderr):
        warnings.warn(f"a process crashed, and is launched again: {first_words(done.stderr)}", stacklevel=2)
        done = _run(words, timeout, environment)
    assert done.returncode == code, f"exit code {done.returncode}:\n{first_words(done.stderr)}"
    return done.stderr


def _run(words: list[str], timeout: int, environment: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        words, capture_output=True, text=True, timeout=timeout, cwd=ROOT, env={**ENVIRONMENT, **environment}
    )


def first_words(stderr: str, most: int = 8000) -> str:
    """From the first sign of a failure on, without progress bars."""
    lines = [line for line in stderr.splitlines() if not PROGRESS.search(line)]
    first = next((i for i, line in enumerate(lines) if BEGINS.search(line)), 0)
    return "\n".join(lines[max(first - 3, 0) :])[:most]
