"""`--accelerate-config F`: run a command's stages in as many processes as an accelerate config says.

    llm-unlearn run RECIPE --accelerate-config accelerate_configs/zero3.yaml

is the same as

    accelerate launch --config_file accelerate_configs/zero3.yaml -m llm_unlearn run RECIPE

except that one process alone makes the small base and the poison before, and the report after.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from llm_unlearn.distributed.topology import deepspeed_file
from llm_unlearn.errors import InputError, LaunchError

EXIT_CODE_FILE = "LLM_UNLEARN_EXIT_CODE_FILE"  # the file for a process's exit code, which the launcher does not pass on


def launch(path: str, arguments: list[str]) -> None:
    """Run `llm-unlearn` in every process of a launch and wait for the end.

    SIGTERM is passed on, and the processes then write a checkpoint.

    Args:
        path: the accelerate config.
        arguments: of the command line.

    Raises:
        InputError: the processes refused their input.
        LaunchError: a process failed or was killed.
    """
    file = deepspeed_file(path)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", path]
    command += ["--deepspeed_config_file", str(file)] if file else []
    command += ["-m", "llm_unlearn", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        code_file = Path(folder) / "code"
        # DeepSpeed compiles with the ninja of this environment, which may not be activated
        path_here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        process = subprocess.Popen(command, env={**os.environ, EXIT_CODE_FILE: str(code_file), "PATH": path_here})
        previous = signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGTERM))
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)
        if status == 0:
            return
        if code_file.is_file() and code_file.read_text() == "2":
            raise InputError("the launched processes refused their input, see above")
        raise LaunchError(
            f"the launch ended with status {status}: a process failed, was stopped or was killed, see "
            "above. What was finished is kept: run the same command again to resume"
        )


def leave_exit_code(code: int) -> None:
    """In a launched process that fails: write the exit code for the launcher."""
    if path := os.environ.get(EXIT_CODE_FILE):
        Path(path).write_text(str(code))
