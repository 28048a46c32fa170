"""`--accelerate-config F`: run a command's stages in as many processes as an accelerate config says.

    llm-unlearn run RECIPE --accelerate-config accelerate_configs/zero3.yaml

is, but for what one process does alone (before: a small base that the recipe makes, and the poison; after: the report),

    accelerate launch --config_file accelerate_configs/zero3.yaml -m llm_unlearn.cli run RECIPE
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from llm_unlearn.errors import InputError, LaunchError
from llm_unlearn.layout import Layout, deepspeed_file, read_layout
from llm_unlearn.recipe import Recipe

EXIT_CODE_FILE = "LLM_UNLEARN_EXIT_CODE_FILE"  # where a launched process leaves the code that the launcher swallows


def check_layout(recipe: Recipe, path: str) -> Layout:
    """Read an accelerate config and refuse what a recipe cannot do under it, before anything is launched.

    Raises:
        InputError: naming the file or the field: several machines, a method that the engine cannot run, rows of a step
            that cannot be shared evenly.
    """
    from llm_unlearn.sweep import points
    from llm_unlearn.trainers import METHODS

    layout = read_layout(path)
    if layout.machines > 1:
        raise InputError(
            f"{path}: num_machines: {layout.machines}; a launch over several machines is started on each "
            "of them: see scripts/slurm.sh"
        )
    if recipe.track == "language" and recipe.evaluate.device_map is not None:
        raise InputError(
            f"recipe.evaluate.device_map: spreads a model over the GPUs of one process, and {path} starts "
            f"{layout.processes}; evaluate without --accelerate-config"
        )
    engine = "deepspeed" if layout.is_deepspeed else "fsdp" if layout.sharding == "fsdp2" else None
    if engine and recipe.track == "vision":
        raise InputError(f"{path}: images are trained whole in each process; take accelerate_configs/ddp.yaml")
    for part in (recipe, *(point.recipe for point in points(recipe))):
        for method in part.unlearn.methods:
            if reason := METHODS[method][0].refuses.get(engine):
                raise InputError(
                    f"recipe.unlearn.methods.{method}: {reason}; leave it out, or take accelerate_configs/ddp.yaml"
                )
        for section in ("train", "unlearn"):
            layout.rows_per_device(getattr(part, section).batch_size, f"recipe.{section}.batch_size")
    return layout


def launch(path: str, arguments: list[str]) -> None:
    """Run `llm-unlearn` with these arguments in every process of a launch, to the end.

    SIGTERM is handed on, and each process then writes a checkpoint.

    Raises:
        InputError: the processes refused their input. LaunchError: they failed, or one of them was killed.
    """
    file = deepspeed_file(path)
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        path,
        *(["--deepspeed_config_file", str(file)] if file else []),
        "-m",
        "llm_unlearn.cli",
        *arguments,
    ]
    with tempfile.TemporaryDirectory() as folder:
        code_file = Path(folder) / "code"
        # DeepSpeed compiles with the ninja of this environment, which need not be activated
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
    """In a launched process that fails: leave the code for whoever launched it."""
    if path := os.environ.get(EXIT_CODE_FILE):
        Path(path).write_text(str(code))
