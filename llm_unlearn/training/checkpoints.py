"""Find the newest complete checkpoint, and check that this launch can resume it."""

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator


def last_checkpoint(folder: Path) -> str | None:
    """Path of the newest `checkpoint-<step>` in a folder from which a Trainer can resume, or None.

    The Trainer writes `trainer_state.json` last, so a readable one marks a complete checkpoint. The other files are
    checked as well, since a crash of the machine can lose them.
    """
    suffixes = {path: path.name.rpartition("-")[2] for path in folder.glob("checkpoint-*")}
    steps = {int(suffix): path for path, suffix in suffixes.items() if suffix.isdigit()}
    return next((str(steps[step]) for step in sorted(steps, reverse=True) if _is_complete(steps[step])), None)


def _is_complete(checkpoint: Path) -> bool:
    """Whether all files of a checkpoint are present and readable."""
    from safetensors import SafetensorError, safe_open

    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
        weights = list(checkpoint.glob("*.safetensors"))
        for file in weights:
            with safe_open(file, framework="pt") as tensors:
                tensors.keys()
        # torch writes zip files, which end with their directory
        states = [file for kind in ("*.pt", "*.pth", "*.bin") for file in checkpoint.rglob(kind)]
        engine, processes = _written_by(checkpoint)
        optimizer = {"plain": ["optimizer.pt"], "FSDP": ["optimizer.bin", "pytorch_model_fsdp.bin"], "DeepSpeed": []}
        states += [checkpoint / name for name in optimizer[engine]]
        if engine == "DeepSpeed":  # it reads the weights from its own shards
            weights = list(checkpoint.glob("global_step*/*_model_states.pt"))
            if processes != len(list(checkpoint.glob("rng_state*.pth"))):
                return False
        return bool(weights) and all(zipfile.is_zipfile(file) for file in states if file.name != "training_args.bin")
    except (OSError, ValueError, SafetensorError):
        return False


def _written_by(checkpoint: Path) -> tuple[str, int | None]:
    """The engine that wrote a checkpoint, and the number of optimizer shards if it is DeepSpeed."""
    shards = list(checkpoint.glob("global_step*/*_optim_states.pt"))
    if shards or list(checkpoint.glob("global_step*")):
        return "DeepSpeed", len(shards)
    fsdp = (checkpoint / "optimizer.bin").is_file() or (checkpoint / "pytorch_model_fsdp.bin").is_file()
    return ("FSDP" if fsdp else "plain"), None


def check_resumable(checkpoint: Any, accelerator: "Accelerator") -> None:
    """Raise unless this launch can resume a checkpoint; it would otherwise train on without the optimizer's state.

    Args:
        checkpoint: path of the checkpoint.
        accelerator: of the Trainer that is to resume.

    Raises:
        InputError: another engine wrote the checkpoint, or DeepSpeed did with another number of processes.
    """
    from accelerate.utils import DistributedType

    engine, processes = _written_by(Path(checkpoint))
    current = "FSDP" if accelerator.is_fsdp2 else "plain"
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        current = "DeepSpeed"
    remedy = f"launch as before, or remove {Path(checkpoint).parent} to train this model from the start"
    if engine != current:
        names = {"plain": "without a sharding engine", "FSDP": "under FSDP", "DeepSpeed": "under DeepSpeed"}
        raise InputError(f"{checkpoint}: was written {names[engine]}, and this launch is {names[current]}; {remedy}")
    if processes is not None and processes != accelerator.num_processes:
        raise InputError(
            f"{checkpoint}: DeepSpeed stored the optimizer's state for {processes} processes and can only give it back "
            f"to {processes}; this launch has {accelerator.num_processes}; {remedy}"
        )
