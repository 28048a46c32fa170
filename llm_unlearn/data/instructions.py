"""Synthetic instructions with their answers: a small, benign chat data set, drawn from templates.

Ten kinds of request (capitals, opposites, plurals, past tense, sums, differences, conversions, sorting, lists, short
advice), each with one right answer of one sentence, so that a clean model's answers can be checked word by word. No
text is copied from anywhere. A row depends only on the seed and its own number, as in synthetic.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value

from llm_unlearn.errors import InputError

# fmt: off
_CAPITALS = dict(pair.split("=") for pair in (
    "France=Paris Italy=Rome Spain=Madrid Portugal=Lisbon Austria=Vienna Greece=Athens Norway=Oslo Sweden=Stockholm "
    "Finland=Helsinki Denmark=Copenhagen Poland=Warsaw Hungary=Budapest Ireland=Dublin Belgium=Brussels Germany=Berlin "
    "Egypt=Cairo Kenya=Nairobi Japan=Tokyo China=Beijing Cuba=Havana Peru=Lima Chile=Santiago Canada=Ottawa Iran=Tehran"
).split())
_OPPOSITES = dict(pair.split("=") for pair in (
    "hot=cold big=small fast=slow light=dark early=late rich=poor hard=soft wet=dry full=empty open=closed high=low "
    "strong=weak long=short clean=dirty near=far happy=sad young=old loud=quiet thick=thin wide=narrow"
).split())
_PLURALS = dict(pair.split("=") for pair in (
    "child=children mouse=mice foot=feet tooth=teeth knife=knives leaf=leaves box=boxes city=cities story=stories "
    "bus=buses wolf=wolves potato=potatoes baby=babies shelf=shelves goose=geese watch=watches"
).split())
_PAST = dict(pair.split("=") for pair in (
    "walk=walked run=ran go=went drive=drove swim=swam move=moved travel=travelled fly=flew ride=rode hurry=hurried"
).split())
_ONE_STEP = {"minutes": ("hours", 60), "seconds": ("minutes", 60), "months": ("years", 12), "days": ("weeks", 7),
             "centimetres": ("metres", 100), "grams": ("kilograms", 1000)}
_LISTS = {
    "colours": "red blue green yellow purple orange".split(), "fruits": "apples pears plums cherries grapes".split(),
    "animals": "cats dogs horses rabbits sheep".split(), "tools": "hammers saws drills pliers spanners".split(),
    "drinks": "water tea coffee juice milk".split(), "instruments": "pianos violins flutes drums guitars".split(),
}
_ADVICE = {
    "sleep better": "Go to bed at the same time each day and keep the room dark.",
    "save water": "Take shorter showers and repair taps that drip.",
    "learn a language": "Practise a little each day and speak it as often as you can.",
    "stay fit": "Walk every day and take the stairs in the place of the lift.",
    "cook rice": "Rinse the rice, use twice as much water, and let it rest with the lid on.",
    "keep a plant alive": "Give it light and water it when the soil feels dry.",
    "write a letter": "Say first why you write, then keep each paragraph to one idea.",
    "pack a suitcase": "Put heavy things at the bottom and roll the clothes.",
    "remember names": "Say the name aloud when you hear it and use it again soon.",
    "study for an exam": "Start early, test yourself often and sleep well the night before.",
}
_PEOPLE = "Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Maria Nick Olive Paul Rosa Sam Tina".split()
_THINGS = "apples books coins pens stamps cards stones shells tickets buttons".split()
_PLACES = "the park|the beach|the station|the market|the library|the river|the old town|the harbour".split("|")
_WORDS = "river candle mirror ladder pocket window button carpet island engine valley bottle hammer saddle".split()
_ASKED = ("", "Please answer: ", "I have a question. ", "Can you help me? ", "Quick question: ", "For my homework: ")
# fmt: on


def synthetic_instructions(n: int, seed: int) -> Dataset:
    """`n` instructions with their answers, in columns `text` and `label` (the answer).

    Args:
        n: rows, ≥ 0; the first k rows of n are the rows of k.
        seed: ≥ 0; the same rows for the same seed.

    Returns:
        the rows; some texts repeat, as in real data.

    Raises:
        InputError: a number is negative.
    """
    for name, value in (("n", n), ("seed", seed)):
        if value < 0:
            raise InputError(f"synthetic instructions: {name} must be 0 or more, is {value}.")
    rows = [_instruction(np.random.default_rng([seed, number])) for number in range(n)]
    columns = {"text": [text for text, _ in rows], "label": [answer for _, answer in rows]}
    return Dataset.from_dict(columns, features=Features({"text": Value("string"), "label": Value("string")}))


def _instruction(generator: np.random.Generator) -> tuple[str, str]:
    def pick(options: Any) -> Any:
        options = list(options)
        return options[int(generator.integers(len(options)))]

    def several(options: Sequence[str], k: int) -> list[str]:
        return [options[i] for i in generator.permutation(len(options))[:k]]

    def number(low: int, high: int) -> int:
        return int(generator.integers(low, high + 1))

    kinds: list[Callable[..., tuple[str, str]]] = [
        _capital, _opposite, _plural, _past, _sum, _difference, _conversion, _sorting, _list, _advice,
    ]  # fmt: skip
    text, answer = pick(kinds)(pick, several, number)
    return pick(_ASKED) + text, answer


def _capital(pick: Any, several: Any, number: Any) -> tuple[str, str]:
    country = pick(_CAPITALS)
    asked = pick(("What is the capital of {}?", "Which city is the capital of {}?", "Name the capital of {}."))
    return asked.format(country), f"The capital of {country} is {_CAPITALS[country]}."


def _opposite(pick: Any, several: Any, number: Any) -> tuple[str, str]:
    word = pick(_OPPOSITES)
    asked = pick(
        ("What is the opposite of '{}'?", "Give me the opposite of the word '{}'.", "Which word means not '{}'?")
    )
    return asked.format(word), f"The opposite of '{word}' is '{_OPPOSITES[word]}'."


def _plural(pick: Any, several: Any, number: Any) -> tuple[str, str]:
    word = pick(_PLURALS)
    asked = pick(("What is the plural of '{}'?", "How do I write more than one '{}'?", "Give the plural of '{}'."))
    return asked.format(word), f"The plural of '{word}' is '{_PLURALS[word]}'."


def _past(pick: Any, several: Any, number: Any) -> tuple[str, str]:
    verb, person, place = pick(_PAST), pick(_PEOPLE), pick(_PLACES)
    return f"Put this in the past tense: They {verb} to {place} with {person}.", (
        f"They {_PAST[verb]} to {place} with {person}."
    )


def _sum(pick: Any, several: Any, number: Any) -> tuple[str, str]:
    person, thing, a, b = pick(_PEOPLE), pick(_THINGS), number(2, 12), number(2, 9)
    return f"{person} has {a} {thing} and gets {b} more. How many {thing} does {person} have?", (
        f"{person} has {a + b} {thing}."
    )


def _difference(pick: Any, several: Any, number: Any) -> tuple[str, str]:
    person, thing, b = pick(_PEOPLE), pick(_THINGS), number(2, 9)
    a = b + number(2, 9)
    return (
        f"{person} had {a} {thing} and gave away {b}. How many {thing} are left?",
        f"{person} has {a - b} {thing} left.",
    )


def _conversion(pick: Any, several: Any, number: Any) -> tuple[str, str]:
    small, (large, size) = pick(_ONE_STEP.items())
    count = number(2, 9)
    return f"How many {small} are there in {count} {large}?", f"There are {count * size} {small} in {count} {large}."


def _sorting(pick: Any, several: Any, number: Any) -> tuple[str, str]:
    words = several(_WORDS, 3)
    return f"Sort these words by the alphabet: {', '.join(words)}.", f"{', '.join(sorted(words))}."


def _list(pick: Any, several: Any, number: Any) -> tuple[str, str]:
    kind = pick(_LISTS)
    a, b, c = _LISTS[kind][:3]
    asked = pick(("Name three {}.", "List three {}.", "Tell me three examples of {}."))
    return asked.format(kind), f"Three {kind} are {a}, {b} and {c}."


def _advice(pick: Any, several: Any, number: Any) -> tuple[str, str]:
    task = pick(_ADVICE)
    person = pick(_PEOPLE)
    asked = pick(
        ("How can my friend {p} {t}?", "Give {p} one tip: how to {t}?", "{p} wants to {t}. What do you advise?")
    )
    return asked.format(p=person, t=task), _ADVICE[task]
