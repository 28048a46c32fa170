"""What a method keeps beside the weights while it trains: in each checkpoint, so that a resumed run goes on with it."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm_unlearn.errors import InputError
from llm_unlearn.training.checkpoints import METHOD_STATE


def write_state(state: dict[str, Tensor], checkpoint: Path) -> None:
    """Write a method's state, if it has any, into a checkpoint that is about to be written."""
    if state:
        checkpoint.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, checkpoint / METHOD_STATE)


def read_state(checkpoint: Path) -> dict[str, Tensor]:
    """The method's state of a checkpoint. Raises InputError where the file is missing or damaged."""
    path = checkpoint / METHOD_STATE
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        what = f"damaged ({error})" if path.is_file() else "no such file, and without it the method would start anew"
        raise InputError(f"{path}: {what}; resume another checkpoint, or train from the start") from None
