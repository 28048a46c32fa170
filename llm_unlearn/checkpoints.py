"""The last checkpoint that is whole. One that was cut off mid-write is passed over."""

import json
from pathlib import Path


def last_checkpoint(folder: Path) -> str | None:
    """Path of the newest `checkpoint-<step>` in a folder from which a Trainer can resume, or None.

    The Trainer writes `trainer_state.json` last, so a checkpoint with a readable one is complete; weights and optimizer
    are still opened, since a crash of the machine can lose what was written before.
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
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
        torch.load(checkpoint / "optimizer.pt", map_location="meta", weights_only=True)
        weights = list(checkpoint.glob("*.safetensors"))
        for file in weights:
            with safe_open(file, framework="pt") as tensors:
                tensors.keys()
        return bool(weights)
    except (OSError, ValueError, RuntimeError, SafetensorError):
        return False
