"""The last checkpoint that is whole. One that was cut off mid-write is passed over."""

import json
import zipfile
from pathlib import Path


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
        states = [checkpoint / "optimizer.pt", *checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]
        for file in weights:
            with safe_open(file, framework="pt") as tensors:
                tensors.keys()
        # torch writes zip files, whose directory stands at the end
        return bool(weights) and all(zipfile.is_zipfile(file) for file in states)
    except (OSError, ValueError, SafetensorError):
        return False
