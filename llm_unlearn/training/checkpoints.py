"""The last checkpoint that is whole, one cut off mid-write being passed over, and whether this launch can resume it."""

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator


def last_checkpoint(folder: Path) -> str | None:
    """Path of the newest `checkpoint-<step>` in a folder from which a Trainer can resume, or None.

    The Trainer writes `trainer_state.json` last, so a checkpoint with a readable one is complete; what was written
    before is still looked at, since a crash of the machine can lose it.
    """
    steps = {}
    for path in folder.glob("checkpoint-*"):
        suffix = path.name.rpartition("-")[2]
        if suffix.isdigit():
            steps[int(suffix)] = path
    for step in sorted(steps, reverse=True):
        if _is_whole(steps[step]):
            return str(steps[step])
    return None


def _is_whole(checkpoint: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
        weights = list(checkpoint.glob("*.safetensors"))
        for file in weights:
            with safe_open(file, framework="pt") as tensors:
                tensors.keys()
        # torch writes zip files, whose directory stands at the end
        states = [file for kind in ("*.pt", "*.pth", "*.bin") for file in checkpoint.rglob(kind)]
        engine, processes = _written_by(checkpoint)
        optimizer = {"plain": ["optimizer.pt"], "FSDP": ["optimizer.bin", "pytorch_model_fsdp.bin"], "DeepSpeed": []}
        states += [checkpoint / name for name in optimizer[engine]]
        if engine == "DeepSpeed":  # which reads the weights from its own parts
            weights = list(checkpoint.glob("global_step*/*_model_states.pt"))
            if processes != len(list(checkpoint.glob("rng_state*.pth"))):
                return False
        return bool(weights) and all(zipfile.is_zipfile(file) for file in states if file.name != "training_args.bin")
    except (OSError, ValueError, SafetensorError):
        return False


def _written_by(checkpoint: Path) -> tuple[str, int | None]:
    """The engine that wrote a checkpoint, and of how many processes it holds parts, where it holds any."""
    parts = list(checkpoint.glob("global_step*/*_optim_states.pt"))
    if parts or list(checkpoint.glob("global_step*")):
        return "DeepSpeed", len(parts)
    fsdp = (checkpoint / "optimizer.bin").is_file() or (checkpoint / "pytorch_model_fsdp.bin").is_file()
    return ("FSDP" if fsdp else "plain"), None


def check_resumable(checkpoint: Any, accelerator: "Accelerator") -> None:
    """Raise where this launch cannot go on from a checkpoint: without the optimizer's state it would go wrong silently.

    Raises:
        InputError: it is of another engine, or (DeepSpeed) of another number of processes.
    """
    from accelerate.utils import DistributedType

    engine, processes = _written_by(Path(checkpoint))
    ours = (
        "DeepSpeed"
        if accelerator.distributed_type == DistributedType.DEEPSPEED
        else ("FSDP" if accelerator.is_fsdp2 else "plain")
    )
    remedy = f"launch as before, or remove {Path(checkpoint).parent} to begin this model anew"
    if engine != ours:
        names = {"plain": "without a sharding engine"}
        raise InputError(
            f"{checkpoint}: was written {names.get(engine, f'under {engine}')}, and this launch is "
            f"{names.get(ours, f'under {ours}')}; {remedy}"
        )
    if processes is not None and processes != accelerator.num_processes:
        raise InputError(
            f"{checkpoint}: holds the optimizer's state in {processes} parts, which DeepSpeed gives back "
            f"to {processes} processes only; this launch has {accelerator.num_processes}; {remedy}"
        )
