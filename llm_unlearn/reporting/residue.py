"""What a model card may say in its first line: at the 95 % level, so that it claims no more than the audit."""

import math
from dataclasses import dataclass

from llm_unlearn.reporting.formats import number, p_phrase
from llm_unlearn.reporting.results import Results
from llm_unlearn.reporting.verdicts import REMAINS, TRACE, calibrated, judge
from llm_unlearn.reporting.words import attack_words, has_damage


@dataclass(frozen=True)
class Residue:
    """The first line of a card: `status`, with its full stop, and why, in a sentence."""

    status: str
    sentence: str
    remains: bool


def residue(results: Results, name: str) -> Residue:
    """What one model may be said to hold of the poison.

    «Poison remains»: the 95 % interval of GUS excludes 0, or that of the attack's lift above the retrained model's is
    above 0, or (gradient cancelling) that of the accuracy below the retrained model's; or poisoned rows were left in
    the training data. That is stricter than the report's verdict, whose level is 0.001: of clean models up to one in
    twenty is said to hold poison by each test (one in forty by the lift, of which one side counts). Where the poison
    did not take, nothing is said to be clean.

    Args:
        results: of one seed.
    """
    fired = list(evidence(results, name).values())
    found = [*fired, *_never_deleted(results, name)]
    verdict = judge(results, name)
    if name == "poisoned":
        return Residue(
            "Poison remains.",
            "This is the poisoned model itself, before any unlearning: "
            f"{_joined(found) or 'the tests below do not find it, but it was trained on it'}.",
            True,
        )
    if found or verdict.status == REMAINS:
        why = _joined(found) or verdict.evidence
        if fired and name in ("retrained", "base", "clean"):
            why += (
                "; it never saw what was deleted, so this is chance, of which these intervals allow up to one in "
                "twenty, or a fault of the run"
            )
        return Residue("Poison remains.", f"{_capital(why)}.", True)
    if verdict.status == TRACE:
        return Residue("A trace of the poison remains.", f"{_capital(verdict.evidence)}.", True)
    if unsaid := _says_nothing(results, name):
        return Residue("Nothing is shown about the poison.", f"{_capital(_joined(unsaid))}.", False)
    price = f"It {verdict.price} against the poisoned model. " if verdict.price else ""
    return Residue(
        "No poison was found by these tests, which does not show that there is none.",
        f"{price}What they cannot see is said below.",
        False,
    )


def evidence(results: Results, name: str) -> dict[str, str]:
    """The tests whose 95 % interval says that poison remains, each in words: gus, lift, damage."""
    doc, intervals, found = results.docs(name)[0], _intervals(results, name), {}
    gus, excess = doc.get("gus"), (doc.get("attack") or {}).get("excess")
    if _excludes_0(intervals["gus"], both=True):
        found["gus"] = (
            f"the Gaussian Unlearning Score is {number(gus['mean'])} {_interval(gus['ci95'])}, where a "
            f"model without the noise has 0 ({p_phrase([gus['p_value']])})"
        )
    if _excludes_0(intervals["lift"]):
        found["lift"] = (
            f"the {attack_words(results).name} sways {number(100 * excess['mean'], 1)} "
            f"{_interval(excess['ci95'], 100, 1)} of 100 answers more than it does in the retrained model"
        )
    if _excludes_0(intervals["damage"]):
        lost = doc["oracle"]["accuracy_lost"]
        found["damage"] = (
            f"the accuracy is {number(100 * lost['mean'], 1)} {_interval(lost['ci95'], 100, 1)} "
            "points below the retrained model's"
        )
    return found


def _intervals(results: Results, name: str) -> dict[str, list[float] | None]:
    """The 95 % interval of each test on a model, or None."""
    doc = results.docs(name)[0]
    damage = (doc.get("oracle") or {}).get("accuracy_lost") if has_damage(results) else None
    sections = {"gus": doc.get("gus"), "lift": (doc.get("attack") or {}).get("excess"), "damage": damage}
    return {key: (section or {}).get("ci95") for key, section in sections.items()}


def _says_nothing(results: Results, name: str) -> list[str]:
    """Why a test that found nothing in this model shows nothing: it does not find the poison in the poisoned model
    either, or it has no figure of this one, or its scores are not calibrated here."""
    attack = attack_words(results).name
    tests = {
        "gus": (results.has("gus"), "Gaussian test"),
        "lift": (results.has("attack"), attack),
        "damage": (has_damage(results), "accuracy"),
    }
    fired, found = evidence(results, "poisoned"), []
    missed = [words for key, (there, words) in tests.items() if there and key not in fired]
    if missed:
        found.append(f"the same tests do not find it in the poisoned model itself ({', '.join(missed)})")
    # the retrained model is what the two others compare with
    asked = [key for key in fired if key == "gus" or name != "retrained"]
    absent = [tests[key][1] for key in asked if not _known(_intervals(results, name)[key])]
    if absent or (not fired and not missed):
        found.append(f"there is no usable figure of this model ({', '.join(absent) or 'no poison score'})")
    if calibrated(results.docs(name)[0]) is False:
        found.append("fresh noise does not look like N(0, 1) on this model, so its Gaussian score says nothing")
    return found


def _never_deleted(results: Results, name: str) -> list[str]:
    """Poisoned rows that were not in the forget set, which every model but the clean ones was trained on."""
    poison = results.runs[0].poison
    kinds = (section for section in poison.values() if isinstance(section, dict))
    ids = {i for section in kinds for i in section.get("example_ids", [])}
    kept = len(ids - set(poison.get("forget_ids", [])))
    if not kept or name in ("base", "clean"):
        return []
    return [f"{kept} of {len(ids)} poisoned rows were not known and stayed in the training data"]


def _known(interval: list[float] | None) -> bool:
    return bool(interval) and all(bound is not None and math.isfinite(bound) for bound in interval)


def _excludes_0(interval: list[float] | None, both: bool = False) -> bool:
    return _known(interval) and (interval[0] > 0 or (both and interval[1] < 0))


def _interval(bounds: list[float], scale: float = 1, digits: int = 2) -> str:
    low, high = (number(scale * bound, digits) for bound in bounds)
    return f"[{low}, {high}]"


def _joined(parts: list[str]) -> str:
    return "; ".join(parts)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
