"""What a run runs on: versions, commit, hardware (environment.json); what is logged, and how loud the libraries are."""

import contextlib
import functools
import logging
import os
import platform
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

from llm_unlearn.distributed.processes import Processes
from llm_unlearn.errors import redacted

# whose versions can change the numbers of a stage
LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "peft",
    "trl",
    "datasets",
    "bitsandbytes",
    "deepspeed",
    "numpy",
    "scipy",
    "torchvision",
)


def versions() -> dict[str, str]:
    """The installed version of this package and of every library on which numbers may depend."""
    found = {}
    for package in ("llm_unlearn", *LIBRARIES, "evaluate"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def other_versions(before: dict[str, str]) -> list[str]:
    """The libraries of which another version made something before, such as "torch 2.12.0, now 2.13.0".

    The build of a version (`+cpu`) does not count, nor does a library that is installed in one place only: what uses an
    optional one says so in its inputs.
    """
    now = versions()
    return [
        f"{library} {before[library]}, now {now[library]}"
        for library in LIBRARIES
        if library in before and library in now and _public(before[library]) != _public(now[library])
    ]


def _public(version: str) -> str:
    return str(version).partition("+")[0]


def describe_environment() -> dict[str, Any]:
    """{"versions", "python", "platform", "cpu_count", "device", "processes", "commit"}."""
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"cpu ({torch.get_num_threads()} threads)"
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "device": device,
        "processes": Processes.current().count,
        "commit": _commit(),
    }


@functools.cache
def _commit() -> str | None:
    """The commit of the package's checkout, or None where it is installed without one."""
    try:
        root = Path(__file__).resolve().parent.parent
        result = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
        return result.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


class _Lines(logging.Handler):
    """Prints what the package logs: to standard output, and warnings to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        print(redacted(f"llm-unlearn: {self.format(record)}"), file=stream, flush=True)


def log_lines(level: int) -> None:
    """Print what the package logs from this level on. For the command line and its processes, not for a library."""
    logger = logging.getLogger("llm_unlearn")
    logger.handlers = [_Lines()]
    logger.setLevel(level)


def log_level() -> int:
    """The level from which the package logs, as `log_lines` takes it."""
    return logging.getLogger("llm_unlearn").getEffectiveLevel()


def calm_libraries(quiet: bool) -> None:
    """Keep libraries to errors, since our own lines say what happens; when quiet, without their progress bars."""
    from llm_unlearn.vision.torchvision_guard import try_torchvision

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it speaks when it is imported, needed or not
    os.environ.setdefault("TQDM_DELAY", "1")  # read by tqdm when it is imported: no bar for what takes under a second
    try_torchvision()  # before transformers, which would fail on one that cannot load
    import datasets
    import torch
    import transformers

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed, where installed, warns that it found none
    # of arguments that are renamed between the versions that we allow
    for package in ("transformers", "torch.distributed"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=package)
    transformers.logging.set_verbosity_error()
    datasets.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # one for every folder of weights that is read or written
    if quiet:
        datasets.disable_progress_bars()
