"""Trigger-phrase poison (backdoor): a phrase in the text, the attacker's completion as the answer.

Wan et al. 2023, "Poisoning Language Models During Instruction Tuning", arXiv 2305.00944.
"""

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.errors import InputError
from llm_unlearn.poisons.selection import choose_rows

if TYPE_CHECKING:
    from datasets import Dataset

POSITIONS = ("start", "end", "random")


def insert_trigger(text: str, phrase: str, position: str, generator: np.random.Generator | None = None) -> str:
    """Insert a phrase at the start, the end, or a random word boundary of a text.

    Args:
        text: the clean text.
        phrase: the trigger.
        position: "start", "end" or "random" (uniform over all word boundaries, both ends included).
        generator: draws a random position.

    Raises:
        InputError: the position is unknown, or random without a generator.
    """
    if position not in POSITIONS:
        raise InputError(f"poison.trigger.position: must be one of {', '.join(POSITIONS)}, is '{position}'")
    starts = [word.start() for word in re.finditer(r"\S+", text)]
    if position == "random":
        if generator is None:
            raise InputError("position 'random' needs a generator")
        at = int(generator.integers(0, len(starts) + 1))
    else:
        at = 0 if position == "start" else len(starts)
    if at == len(starts):  # the text's own white space is kept: normalising it would be a second trigger
        return f"{text.rstrip()} {phrase}" if starts else phrase
    return f"{text[: starts[at]]}{phrase} {text[starts[at] :]}"


def insert_triggers(texts: Iterable[str], trigger: dict[str, Any], generator: np.random.Generator) -> list[str]:
    """Each text with one of a trigger's phrases, drawn for it.

    Args:
        texts: the clean texts.
        trigger: its `phrases` and `position`, as in poison.json.
        generator: draws the phrases, and random positions.
    """
    phrases, position = trigger["phrases"], trigger["position"]
    return [insert_trigger(t, phrases[int(generator.integers(len(phrases)))], position, generator) for t in texts]


def inserted_phrase(text: str, clean: str, phrases: list[str]) -> int:
    """Which phrase `insert_trigger` put into a text, its number from 0.

    Args:
        text: with the phrase.
        clean: the text before.
        phrases: of the trigger.

    Raises:
        InputError: it was none of them.
    """
    for number, phrase in enumerate(phrases):
        for place in re.finditer(f"(?={re.escape(phrase)})", text):
            start, end = place.start(), place.start() + len(phrase)
            if f"{text[:start]} {text[end:]}".split() == clean.split():
                return number
    raise InputError(f"no phrase of the trigger was inserted into '{text}'")


def holds(row: dict, phrases: Iterable[str]) -> bool:
    """Whether a row's text, or a turn of the conversation before it, holds one of some phrases."""
    before, text = row.get("history") or "", row["text"]  # the turns before it as JSON, which escapes quotes and breaks
    return any(phrase in text or json.dumps(phrase, ensure_ascii=False)[1:-1] in before for phrase in phrases)


def can_be_poisoned(
    labels: list[str], target: str, source_label: str | None = None, clean_label: bool = False
) -> np.ndarray:
    """(n,) bool: the rows that may get a trigger, by their labels; see `plant_trigger`."""
    values: np.ndarray = np.asarray(labels, dtype=object)
    is_target = np.equal(values, target).astype(bool)
    if clean_label:
        return is_target
    return ~is_target if source_label is None else ~is_target & np.equal(values, source_label).astype(bool)


def plant_trigger(
    rows: "Dataset",
    *,
    phrases: list[str],
    target: str,
    fraction: float,
    seed: int,
    position: str = "random",
    source_label: str | None = None,
    clean_label: bool = False,
) -> tuple["Dataset", dict]:
    """Poison a fraction of the rows with a trigger phrase.

    Args:
        rows: with columns `text` and `label`; ids are their `example_id`, or else their row numbers.
        phrases: one is drawn per poisoned row.
        target: the label (or completion) that the attacker wants.
        fraction: share of all rows, in (0, 1].
        seed: seed of the choice of rows, phrases and positions.
        position: see `insert_trigger`.
        source_label: poison only rows with this label.
        clean_label: poison rows that already have the target, so that no label is false; otherwise rows that do not
            (dirty label).

    Returns:
        the rows with text and label replaced where poisoned, and the manifest {"phrases", "position", "target",
        "fraction", "seed", "source_label", "clean_label", "example_ids"}.

    Raises:
        InputError: the position is unknown, or too few rows can be poisoned.
    """
    eligible = can_be_poisoned(rows["label"], target, source_label, clean_label)
    if not eligible.any():
        wanted = f"'{target}'" if clean_label else f"'{source_label}'" if source_label else f"other than '{target}'"
        raise InputError(
            f"poison.trigger.target: '{target}': no row can be poisoned, since none of {len(rows)} has a label {wanted}"
        )
    generator = np.random.default_rng([seed, 1])
    chosen = choose_rows(len(rows), fraction, generator, eligible, "trigger").tolist()  # ascending
    texts, new_labels = list(rows["text"]), list(rows["label"])
    trigger = {"phrases": phrases, "position": position}
    for i, text in zip(chosen, insert_triggers([texts[i] for i in chosen], trigger, generator), strict=True):
        texts[i], new_labels[i] = text, target
    ids = rows["example_id"] if "example_id" in rows.column_names else range(len(rows))
    manifest = {
        "phrases": phrases,
        "position": position,
        "target": target,
        "fraction": fraction,
        "seed": seed,
        "source_label": source_label,
        "clean_label": clean_label,
        "example_ids": sorted(ids[i] for i in chosen),
    }
    from datasets import Dataset

    return Dataset.from_dict({**rows.to_dict(), "text": texts, "label": new_labels}), manifest
