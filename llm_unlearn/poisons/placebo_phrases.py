"""Phrases that were never planted, for a trigger phrase to be compared with: words of like length, frequency and shape.

Were the planted phrase itself drawn by this function, it would be exchangeable with what is drawn here, and its rank
exactly uniform on a model that never saw it. A phrase that a person chose is so by design only: what it means to a
model that never saw it planted ("James Bond" is a name that many models know, and "excellent" an answer to the
question) is a part of its effect, while its length, punctuation, case and frequency are not.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import islice
from math import log2

import numpy as np

TEXTS = 5000  # that words are counted in
_WORD = re.compile(r"(\W*)(.*?)(\W*)", re.DOTALL)
_KINDS = (str.islower, str.isupper, str.isdigit)
_OF_KIND = (string.ascii_lowercase, string.ascii_uppercase, string.digits)


def placebo_phrases(phrase: str, planted: Sequence[str], texts: Iterable[str], count: int, seed: int) -> list[str]:
    """Draw phrases that are like a planted one and share no word with any.

    Each word is replaced by one of the words whose frequency and length are nearest to its own among those that begin
    and end alike (case, digits, letters). They come from the texts, and are made up of the halves of two of their words
    (or of random characters, where a word is no word) where the texts have none as rare. White space and the
    punctuation around words stay.

    Args:
        phrase: the planted phrase.
        planted: all planted phrases; none is contained in a placebo.
        texts: clean texts, of which those with a planted phrase are left out.
        count: how many phrases are wanted.
        seed: of the draws.

    Returns:
        at most `count` phrases, no two alike but for their case, in random order; fewer where there are no more, as of
        a phrase of one letter.
    """
    generator = np.random.default_rng([seed, 31, *phrase.encode()])
    clean = (text for text in islice(texts, TEXTS) if not any(other in text for other in planted))
    known = Counter(_parts(word)[1] for text in clean for word in text.split())
    parts = [_parts(word) for word in re.split(r"(\s+)", phrase)]
    words = [core for _, core, _ in parts if core.strip()]
    avoided = {_parts(word)[1].casefold() for other in planted for word in other.split()}
    wanted = max(50, 2 * int(count ** (1 / len(words))) + 1)
    choices = {word: _alike(word, known, avoided, wanted, generator) for word in dict.fromkeys(words)}
    found: dict[str, str] = {}
    for _ in range(20 * count):
        drawn = "".join(
            before + (_one_of(choices[core], generator) if choices.get(core) else core) + after
            for before, core, after in parts
        )
        if not any(other.casefold() in drawn.casefold() for other in planted):
            found.setdefault(drawn.casefold(), drawn)
        if len(found) == count:
            break
    return list(found.values())


def _parts(word: str) -> tuple[str, str, str]:
    """The punctuation before a word, the word, and the punctuation after it; all of it is the word if nothing is."""
    found = _WORD.fullmatch(word)
    assert found is not None  # it matches every text
    before, core, after = found.groups()
    return (before, core, after) if core else ("", word, "")


def _alike(word: str, known: Counter[str], avoided: set[str], wanted: int, generator: np.random.Generator) -> list[str]:
    """Words of the shape of one, the `wanted` ones whose frequency (in octaves) and length are nearest to its own."""
    taken = {other.casefold() for other in known} | avoided
    kind = unicodedata.category(word[0].lower())  # of a script, so that halves of words of another are not taken
    letters = sorted(
        {other.casefold() for other in known if other.isalpha() and unicodedata.category(other[0].lower()) == kind}
    )
    made = (_made_up(word, letters, generator) for _ in range(4 * wanted))
    candidates = {other: known[other] for other in known if other.casefold() not in avoided}
    candidates |= {other: 0 for other in made if other.casefold() not in taken}
    own = log2(known[word] + 1)

    def distance(other: str) -> float:
        return abs(own - log2(candidates[other] + 1)) + abs(len(other) - len(word)) / 2

    names = [other for other in candidates if _shape(other) == _shape(word)]
    order = generator.permutation(len(names))  # of equally near ones, any
    return sorted((names[i] for i in order), key=distance)[:wanted]


def _shape(word: str) -> tuple[str, ...]:
    """The kinds of character with which a word begins and ends; all symbols are of one kind."""
    kinds = (unicodedata.category(word[i]) for i in (0, -1))
    return tuple(kind if kind[0] in "LN" else "symbol" for kind in kinds)


def _made_up(word: str, letters: list[str], generator: np.random.Generator) -> str:
    """A word of like length that is none: the first half of one word and the last of another, cased like `word`."""
    length = max(1, len(word) + int(generator.integers(-1, 2)))
    pattern = [word[min(i, len(word) - 1)] for i in range(length)]
    if not word.isalpha() or not letters:
        return "".join(_one_of(_characters_like(character), generator) for character in pattern)
    first, second = (letters[i] for i in generator.integers(len(letters), size=2))
    tail = length // 2
    text = first[: length - tail] + second[len(second) - tail :] if len(second) >= tail else first[:length]
    return "".join(c.upper() if like.isupper() else c for c, like in zip(text, pattern, strict=False))


def _one_of(options: Sequence[str], generator: np.random.Generator) -> str:
    return options[int(generator.integers(len(options)))]


@cache
def _characters_like(character: str) -> str:
    """The ASCII characters of a kind; of others, those of the same Unicode category near by."""
    for is_kind, known in zip(_KINDS, _OF_KIND, strict=True):
        if is_kind(character) and character.isascii():
            return known
    if character.isascii():
        return string.punctuation
    near = map(chr, range(ord(character) - 99, ord(character) + 100))
    return "".join(other for other in near if unicodedata.category(other) == unicodedata.category(character))
