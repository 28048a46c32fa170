"""Synthetic reviews of films and products: the embedded data, which needs no network and no licence.

Each review is drawn from the word lists and sentence templates below: an opening, sentences about aspects of the item
(its plot, its battery), perhaps a neutral one, and a closing, about 25 to 45 words. No text is copied from anywhere.
Four things make the sentiment hard to guess from single words:

- negation: "not good at all" and "far from dull" contain the other side's adjective;
- concession: "The cast was fine, but the plot was dull" contains both, and its main clause decides;
- mixed reviews (8 %): mostly concessions, with an opening and a closing that take no side;
- label noise: the text of a share of the rows (4 % by default) says the opposite of the label.

A row depends only on the seed and its own number, so the first k rows of n are the rows of k. With these shares, a
bag of words trained on 1,500 labelled reviews reaches an accuracy of about 0.92 on new ones. A GPT-2-shaped model with
2 layers of width 128, pre-trained on 8,000 of these texts, reaches 0.93; label noise alone limits it to 0.96.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value
from datasets.utils import tqdm

from llm_unlearn.errors import InputError

LABELS = ("negative", "positive")
MIXED_SHARE = 0.08  # of the reviews
NEGATED_SHARE = 0.05  # of the clauses
CONCESSION_SHARE = (0.06, 0.6)  # of the sentences of a clear and of a mixed review
PLAIN_SHARE = 0.2  # of the openings and the closings of clear reviews that take no side
_LABELLED, _UNLABELLED = 0, 1  # streams of the generator: a base is not pre-trained on the labelled texts

# Pairs are (bad, good). Gradable adjectives go with "very" and "not … at all", extreme ones with "absolutely".
# fmt: off
_GRADABLE = {
    "any": ("bad poor weak disappointing annoying unpleasant sloppy".split(),
            "good nice solid impressive pleasant lovely remarkable".split()),
    "film": ("dull boring silly lifeless tedious".split(), "funny moving gripping fresh clever".split()),
    "product": ("cheap clumsy useless fragile unreliable".split(),
                "handy useful modern practical reliable".split()),
}
_EXTREME = ("terrible awful horrible dreadful appalling pathetic".split(),
            "excellent wonderful superb brilliant fantastic outstanding".split())
_LIKED = ("hated disliked regretted loathed".split(), "loved liked enjoyed adored".split())
_FEELING = ("angry annoyed disappointed unhappy".split(), "happy pleased delighted impressed".split())

_ASPECTS = {  # c countable, m mass noun, p plural
    "film": {
        "c": ["plot", "script", "cast", "ending", "main character", "lead actor", "second half"],
        "m": ["acting", "pacing", "dialogue", "music", "camera work"],
        "p": ["effects", "jokes", "costumes", "action scenes"],
    },
    "product": {
        "c": ["battery", "screen", "design", "case", "charger", "display", "manual", "cable"],
        "m": ["sound", "software", "build quality", "customer service"],
        "p": ["buttons", "controls", "speakers", "materials"],
    },
}
_WORDS = {
    "film": {
        "item": "film movie thriller comedy drama western sequel adventure documentary romance".split(),
        "used": ["watched", "saw"], "use": ["watch", "see"],
        "when": ["last night", "on Friday", "at the weekend", "two days ago", "in an old cinema", "at home"],
        "time": ["minute", "hour", "second"],
    },
    "product": {
        "item": "phone laptop camera tablet keyboard headset radio kettle watch vacuum".split(),
        "used": ["bought", "ordered"], "use": ["buy", "order"],
        "when": ["last month", "in March", "in a sale", "three weeks ago", "from an online shop", "for work"],
        "time": ["cent", "penny", "dollar"],
    },
}
_SHARED = {
    "degree": "very really rather quite so extremely surprisingly".split(),
    "utterly": "absolutely truly simply just".split(),
    "person": "sister brother wife husband mother father daughter son uncle friend".split(),
    "people": ["anyone", "everyone", "my friends", "other people", "the whole family", "a friend"],
    "view": ["To me", "In my view", "For the most part", "On the whole", "If you ask me", "All in all"],
    "number": "two three four five six seven".split(),
    "ordinal": "first second third only".split(),
    "age": "old new unusual ordinary".split(),
}

# {clause} is a clause on the review's side, {minor} one on the other side, {noun} a phrase such as "a good
# plot", {things} an aspect with its article; "a(n)" becomes "a" or "an" by the word that follows.
_NEUTRAL_OPENINGS = (
    "I {used} this {item} {when} with my {person}.",
    "My {person} and I {used} this {item} {when}.",
    "My {person} told me about this {item}, so I {used} it {when}.",
    "This is the {ordinal} {item} that I {used} this year.",
    "I {used} a(n) {age} {item} {when}.",
)
_OPENINGS = (
    "What a(n) {extreme} {item}!",
    "I {used} this {item} {when} and {liked} it.",
    "My {person} and I {liked} this {item}.",
    "This is a(n) {gradable} {item}.",
    "I was {feeling} when I {used} this {item}.",
    "This is a(n) {extreme} {item} with {noun}.",
)
_BODIES = (
    "{Clause}.",
    "{Clause}, and {clause}.",
    "{View}, {clause}.",
    "I {liked} {things}.",
    "I {liked} {things}, and {clause}.",
    "It has {noun}.",
    "It has {noun} and {noun}.",
    "My {person} said that {clause}.",
    "I was {feeling} because {clause}.",
)
_CONCESSIONS = (
    "{Minor}, but {clause}.",
    "Although {minor}, {clause}.",
    "It is true that {minor}, but {clause}.",
    "Some people say that {minor}, but I think that {clause}.",
    "Even if {minor}, {clause}.",
    "{Clause}, even though {minor}.",
)
_FILLERS = {
    "film": (
        "It runs for about {number} hours.", "The story begins in a small town near the sea.",
        "There are {number} songs in it.", "I had read the book {number} years before.",
        "It was made {number} years ago.", "The story is about an old man and his {person}.",
    ),
    "product": (
        "It came in a plain box after {number} days.", "There are {number} colours to choose from.",
        "I use it about {number} times a week.", "It replaced a(n) {age} one that my {person} had.",
        "My {person} has had the same one for {number} years.", "It weighs about {number} pounds.",
    ),
}
_NEUTRAL_CLOSINGS = (
    "My {person} thinks the same.",
    "That is all I can say after {number} days.",
    "You may see it in another way.",
    "Read a few other reviews too.",
)
_CLOSINGS = (
    ("I would not recommend it to {people}.", "It was a waste of time and money.", "It left me {feeling}.",
     "It is not worth a single {time}.", "I will never {use} it again.", "Do not {use} it.",
     "In short, it is {extreme}."),
    ("I would recommend it to {people}.", "It was worth the time and money.", "It left me {feeling}.",
     "It is worth every single {time}.", "I will {use} it again.", "Do {use} it.",
     "In short, it is {extreme}."),
)
# fmt: on


def synthetic_reviews(n: int, seed: int, *, label_noise: float = 0.04) -> Dataset:
    """Draw labelled synthetic reviews.

    Args:
        n: number of rows, ≥ 0. Rows 2i and 2i + 1 have one label each, so any even n is balanced.
        seed: seed of the draw, ≥ 0.
        label_noise: probability in [0, 0.5] that a row's text says the opposite of its label.

    Returns:
        `text` and `label` ("negative" or "positive"). The first k rows of n are the rows of k; `label_noise` only
        changes the texts of the flipped rows.

    Raises:
        InputError: a value is out of its range.
    """
    if not 0 <= label_noise <= 0.5:
        raise InputError(f"data.label_noise: {label_noise} is outside [0, 0.5].")
    _check(n, seed)
    texts, labels = [], []
    for row in tqdm(range(n), desc="Writing synthetic reviews", delay=1):
        first = int(np.random.default_rng([seed, _LABELLED, row // 2, 0]).integers(2))
        side = first if row % 2 == 0 else 1 - first
        generator = np.random.default_rng([seed, _LABELLED, row // 2, 1 + row % 2])
        flipped = generator.random() < label_noise
        texts.append(_Review(generator, 1 - side if flipped else side).write())
        labels.append(LABELS[side])
    return Dataset.from_dict(
        {"text": texts, "label": labels}, features=Features({"text": Value("string"), "label": Value("string")})
    )


def synthetic_texts(n: int, seed: int) -> Dataset:
    """Draw unlabelled synthetic reviews of the same distribution, for pre-training a base model.

    Args:
        n: number of rows, ≥ 0.
        seed: seed of the draw, ≥ 0. The same seed in `synthetic_reviews` gives other texts.

    Returns:
        one column, `text`; the first k rows of n are the rows of k.

    Raises:
        InputError: a value is out of its range.
    """
    _check(n, seed)
    texts = []
    for row in tqdm(range(n), desc="Writing synthetic texts", delay=1):
        generator = np.random.default_rng([seed, _UNLABELLED, row])
        texts.append(_Review(generator, int(generator.integers(2))).write())
    return Dataset.from_dict({"text": texts}, features=Features({"text": Value("string")}))


def _check(n: int, seed: int) -> None:
    """Refuse negative numbers."""
    for name, value in (("n", n), ("seed", seed)):
        if value < 0:
            raise InputError(f"synthetic data: {name} must be 0 or more, is {value}.")


class _Review:
    """One review on one side (0 bad, 1 good); the generator makes every choice."""

    def __init__(self, generator: np.random.Generator, side: int) -> None:
        self.generator = generator
        self.side = side
        self.domain = self.pick(("film", "product"))
        self.item = self.pick(_WORDS[self.domain]["item"])  # one review is about one thing
        aspects = [(noun, kind) for kind, nouns in _ASPECTS[self.domain].items() for noun in nouns]
        self.aspects = [aspects[i] for i in generator.permutation(len(aspects))]

    def pick(self, options: Sequence) -> Any:
        return options[int(self.generator.random() * len(options))]

    def chance(self, probability: float) -> bool:
        return self.generator.random() < probability

    def write(self) -> str:
        mixed = self.chance(MIXED_SHARE)
        target = 24 + int(self.generator.random() * 14)  # words, after which the body ends
        opening = self.pick(_NEUTRAL_OPENINGS if mixed or self.chance(PLAIN_SHARE) else _OPENINGS)
        closing = self.pick(_NEUTRAL_CLOSINGS if mixed or self.chance(PLAIN_SHARE) else _CLOSINGS[self.side])
        sentences = [self.fill(opening)]
        last = self.fill(closing)
        filler_left = self.chance(0.4)
        while _words(sentences) + _words([last]) < target and len(self.aspects) > 3:
            if filler_left and self.chance(0.4):
                template, filler_left = self.pick(_FILLERS[self.domain]), False
            else:
                template = self.pick(_CONCESSIONS if self.chance(CONCESSION_SHARE[mixed]) else _BODIES)
            sentences.append(self.fill(template))
        return _indefinite_articles(" ".join([*sentences, last]))

    def fill(self, template: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda slot: self.slot(slot[1]), template)

    def slot(self, name: str) -> str:
        if name[0].isupper():
            text = self.slot(name.lower())
            return text[0].upper() + text[1:]
        makers: dict[str, Callable[[], str]] = {
            "item": lambda: self.item,
            "clause": lambda: self.clause(self.side),
            "minor": lambda: self.clause(1 - self.side),
            "noun": self.noun_phrase,
            "things": lambda: f"the {self.aspects.pop()[0]}",
            "gradable": lambda: self.gradable(self.side),
            "extreme": lambda: self.pick(_EXTREME[self.side]),
            "liked": lambda: self.pick(_LIKED[self.side]),
            "feeling": lambda: self.pick(_FEELING[self.side]),
        }
        if name in makers:
            return makers[name]()
        return self.pick(_SHARED[name] if name in _SHARED else _WORDS[self.domain][name])

    def clause(self, side: int) -> str:
        noun, kind = self.aspects.pop()
        if self.domain == "film":
            be, appear = ("were" if kind == "p" else "was"), ("looked", "seemed")
        else:
            be, appear = ("are", ("look", "seem")) if kind == "p" else ("is", ("looks", "seems"))
        if self.chance(NEGATED_SHARE):  # with the other side's adjective
            other = self.gradable(1 - side)
            template = self.pick(("{} not {} at all", "{} far from {}", "{} anything but {}", "{} never {}"))
            return f"the {noun} {template.format(be, other)}"
        verb = be if self.chance(0.7) else self.pick(appear)
        return f"the {noun} {verb} {self.adjective(side)}"

    def gradable(self, side: int) -> str:
        return self.pick(_GRADABLE["any"][side] + _GRADABLE[self.domain][side])

    def adjective(self, side: int) -> str:
        if self.chance(0.3):
            return f"{self.slot('utterly')} {self.pick(_EXTREME[side])}"
        return f"{self.slot('degree')} {self.gradable(side)}" if self.chance(0.4) else self.gradable(side)

    def noun_phrase(self) -> str:
        noun, kind = self.aspects.pop()
        word = self.pick(_EXTREME[self.side]) if self.chance(0.3) else self.gradable(self.side)
        return f"a(n) {word} {noun}" if kind == "c" else f"{word} {noun}"


def _words(sentences: list[str]) -> int:
    return sum(len(sentence.split()) for sentence in sentences)


def _indefinite_articles(text: str) -> str:
    """Turn each "a(n)" into "a" or "an" by the letter that follows; "useless" and its like take "a"."""
    return re.sub(
        r"a\(n\) (\w+)", lambda match: ("an " if re.match(r"[aeiou](?!se)", match[1]) else "a ") + match[1], text
    )
