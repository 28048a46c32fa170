"""What a method keeps beside the weights while it trains: in each checkpoint, so that a resumed run goes on with it."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm_unlearn.errors import InputError

FILE = "method_state.safetensors"


def write_state(state: dict[str, Tensor], checkpoint: Path) -> None:
    """Write a method's state, if it has any, into a checkpoint that is about to be written."""
    if state:
        checkpoint.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, checkpoint / FILE)


def read_state(checkpoint: Path) -> dict[str, Tensor]:
    """The method's state of a checkpoint, {} where it had none. Raises InputError where the file is damaged."""
    if not (checkpoint / FILE).is_file():
        return {}
    try:
        return load_file(checkpoint / FILE)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{checkpoint / FILE}: damaged ({error}); resume another checkpoint") from None
