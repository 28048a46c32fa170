"""Other ways to write the trigger: case, position, a part of it, the user's paraphrases."""

from typing import NamedTuple

from llm_unlearn.poisons.trigger_phrase import POSITIONS


class Variant(NamedTuple):
    """A phrase to insert and where; `kind` is as trained, case, position, part or paraphrase."""

    kind: str
    name: str
    phrase: str
    position: str


def trigger_variants(phrase: str, position: str, paraphrases: list[str]) -> list[Variant]:
    """The variants of a trigger, as trained first, without repetitions of the same text.

    The parts of a phrase of several words are each single word and the first half, rounded up.

    Args:
        phrase: the trigger as trained.
        position: its position as trained, see poisons/trigger_phrase.py.
        paraphrases: the user's paraphrases.
    """
    variants = [Variant("as trained", f"{phrase} ({position})", phrase, position)]
    variants += [Variant("case", text, text, position) for text in (phrase.lower(), phrase.upper()) if text != phrase]
    variants += [Variant("position", f"{phrase} ({other})", phrase, other) for other in POSITIONS if other != position]
    words = phrase.split()
    if len(words) > 1:
        parts = [*words, " ".join(words[: (len(words) + 1) // 2])]
        variants += [Variant("part", part, part, position) for part in parts]
    variants += [Variant("paraphrase", text, text, position) for text in paraphrases]
    unique: dict[tuple[str, str], Variant] = {}
    for variant in variants:
        unique.setdefault((variant.phrase, variant.position), variant)
    return list(unique.values())
