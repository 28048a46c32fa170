"""The forms in which data sets for fine-tuning come: which columns hold what."""

from typing import Literal, NamedTuple

RowFormat = Literal["prompt_completion", "alpaca", "messages", "sharegpt"]


class Columns(NamedTuple):
    """Where a format has its parts; None where it has no such part."""

    text: str | None = None
    label: str | None = None
    messages: str | None = None
    input: str | None = None  # stands below the text, where a row has it


FORMATS: dict[str, Columns] = {
    "prompt_completion": Columns(text="prompt", label="completion"),
    "alpaca": Columns(text="instruction", label="output", input="input"),
    "messages": Columns(messages="messages"),
    "sharegpt": Columns(messages="conversations"),
}
