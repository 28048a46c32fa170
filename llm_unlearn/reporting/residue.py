"""What a model card may say in its first line: at the 95 % level, so that it claims no more than the audit."""

from dataclasses import dataclass

from llm_unlearn.reporting.formats import number, p_phrase
from llm_unlearn.reporting.results import Results
from llm_unlearn.reporting.verdicts import REMAINS, TRACE, judge
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
    the training data. That is stricter than the report's verdict, whose level is 0.001: of clean models one in twenty
    is said to hold poison by each test. Where the poison did not take, nothing is said to be clean.

    Args:
        results: of one seed.
    """
    fired = list(evidence(results, name).values())
    found = [*fired, *_never_deleted(results, name)]
    verdict = judge(results, name)
    if name == "poisoned":
        return Residue("Poison remains.", "This is the poisoned model itself, before any unlearning: "
                       f"{_joined(found) or 'the tests below do not find it, but it was trained on it'}.", True)
    if found or verdict.status == REMAINS:
        why = _joined(found) or verdict.evidence
        if fired and name in ("retrained", "base", "clean"):
            why += ("; it never saw what was deleted, so this is chance, of which these intervals allow one in twenty, "
                    "or a fault of the run")
        return Residue("Poison remains.", f"{_capital(why)}.", True)
    missed = _did_not_take(results)
    if missed or not verdict.tested:
        why = f"The same tests do not find it in the poisoned model itself ({', '.join(missed)})." if missed else \
            "There is no poison score for this model."
        return Residue("Nothing is shown about the poison.", why, False)
    if verdict.status == TRACE:
        return Residue("A trace of the poison remains.", f"{_capital(verdict.evidence)}.", True)
    price = f"It {verdict.price} against the poisoned model. " if verdict.price else ""
    return Residue("No poison was found by these tests, which does not show that there is none.",
                   f"{price}What they cannot see is said below.", False)


def evidence(results: Results, name: str) -> dict[str, str]:
    """The tests whose 95 % interval says that poison remains, each in words: gus, lift, damage."""
    doc, found = results.docs(name)[0], {}
    gus, excess = doc.get("gus"), (doc.get("attack") or {}).get("excess")
    damage = (doc.get("oracle") or {}).get("accuracy_lost") if has_damage(results) else None
    if gus and _excludes_0(gus.get("ci95"), both=True):
        found["gus"] = (f"the Gaussian Unlearning Score is {number(gus['mean'])} {_interval(gus['ci95'])}, where a "
                        f"model without the noise has 0 ({p_phrase([gus['p_value']])})")
    if excess and _excludes_0(excess.get("ci95")):
        found["lift"] = (f"the {attack_words(results).name} sways {number(100 * excess['mean'], 1)} "
                         f"{_interval(excess['ci95'], 100, 1)} of 100 answers more than it does in the retrained model")
    if damage and _excludes_0(damage.get("ci95")):
        found["damage"] = (f"the accuracy is {number(100 * damage['mean'], 1)} {_interval(damage['ci95'], 100, 1)} "
                           "points below the retrained model's")
    return found


def _did_not_take(results: Results) -> list[str]:
    """Tests that do not fire on the poisoned model, so that passing them shows nothing."""
    doc, fired = results.docs("poisoned")[0], evidence(results, "poisoned")
    tests = {"gus": (doc.get("gus"), "Gaussian canaries"),
             "lift": ((doc.get("attack") or {}).get("excess"), attack_words(results).name),
             "damage": (has_damage(results), "accuracy")}
    return [words for key, (there, words) in tests.items() if there and key not in fired]


def _never_deleted(results: Results, name: str) -> list[str]:
    """Poisoned rows that were not in the forget set, which every model but the clean ones was trained on."""
    poison = results.runs[0].poison
    kinds = (section for section in poison.values() if isinstance(section, dict))
    ids = {i for section in kinds for i in section.get("example_ids", [])}
    kept = len(ids - set(poison.get("forget_ids", [])))
    if not kept or name in ("base", "clean"):
        return []
    return [f"{kept} of {len(ids)} poisoned rows were not known and stayed in the training data"]


def _excludes_0(interval: list[float] | None, both: bool = False) -> bool:
    return bool(interval) and (interval[0] > 0 or (both and interval[1] < 0))


def _interval(bounds: list[float], scale: float = 1, digits: int = 2) -> str:
    low, high = (number(scale * bound, digits) for bound in bounds)
    return f"[{low}, {high}]"


def _joined(parts: list[str]) -> str:
    return "; ".join(parts)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
