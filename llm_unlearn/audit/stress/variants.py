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
    """The variants of a trigger, the one that was trained on first; what would be the same text is left out.

    Of a phrase of several words the parts are each word alone and the first half, of an odd number the larger one.

    Args:
        phrase, position: as trained, see poisons/trigger_phrase.py.
        paraphrases: the user's.
    """
    found = [Variant("as trained", f"{phrase} ({position})", phrase, position)]
    found += [Variant("case", text, text, position) for text in (phrase.lower(), phrase.upper()) if text != phrase]
    found += [Variant("position", f"{phrase} ({place})", phrase, place) for place in POSITIONS if place != position]
    words = phrase.split()
    if len(words) > 1:
        parts = [*words, " ".join(words[: (len(words) + 1) // 2])]
        found += [Variant("part", part, part, position) for part in parts]
    found += [Variant("paraphrase", text, text, position) for text in paraphrases]
    first: dict[tuple[str, str], Variant] = {}
    for variant in found:
        first.setdefault((variant.phrase, variant.position), variant)
    return list(first.values())
