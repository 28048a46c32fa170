"""What the doctor says: one sentence on one thing, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warning", "problem"]
LEVELS = ("ok", "note", "warning", "problem")


@dataclass(frozen=True)
class Finding:
    """One thing that the doctor found.

    Args:
        check: what was checked, such as "memory".
        level: `ok` and `note` ask for nothing; `warning` is likely not what the user wants; with a `problem` the run
            fails or its figures mean nothing.
        what: one sentence that says what was found.
        remedy: what to do about it; None if there is nothing to do.
    """

    check: str
    level: Level
    what: str
    remedy: str | None = None


def problem_of(check: str, error: Exception) -> Finding:
    """The finding of a refusal, whose message names the remedy itself."""
    return Finding(check, "problem", str(error))


def size_text(count: float) -> str:
    """Bytes for people: "1.5 GiB", "512 MiB"."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
