"""The first line of a card: the decision on one model (metrics/evidence.py), and poisoned rows that nobody knew of."""

from dataclasses import dataclass

from llm_unlearn.metrics.evidence import ALPHA, Status
from llm_unlearn.reporting.run_results import PLAIN, Results
from llm_unlearn.reporting.verdicts import judge, obstacles


@dataclass(frozen=True)
class FirstLine:
    """The first line of a card: `status`, with its full stop, and why, in a sentence."""

    status: str
    sentence: str
    remains: bool


def first_line(results: Results, name: str) -> FirstLine:
    """What one model may be said to hold of the poison.

    «Poison remains»: the decision says so, or poisoned rows were left in the training data. Where it is inconclusive,
    or the run lets no model be called free of the poison, nothing is said to be clean.

    Args:
        results: of one seed.
        name: of the model.
    """
    verdict, kept = judge(results, name), _never_deleted(results, name)
    if name == "poisoned":
        why = (
            "; ".join([verdict.because] * verdict.remains + kept) or "no test below finds it, but it was trained on it"
        )
        return FirstLine("Poison remains.", f"This is the poisoned model itself, before any unlearning: {why}.", True)
    if verdict.remains or kept:
        why = "; ".join([verdict.because] * verdict.remains + kept)
        if verdict.remains and name in PLAIN:
            why += (
                f"; it never saw what was deleted, so this is chance, of which the tests allow {100 * ALPHA:g} in 100, "
                "or a fault of the run"
            )
        return FirstLine("Poison remains.", _sentence(why), True)
    barred = obstacles(results)
    if verdict.status != Status.CLEAR or barred:
        why = "; ".join([*barred, verdict.because] if verdict.because else barred) or "there is no poison score"
        return FirstLine("Nothing is shown about the poison.", _sentence(why), False)
    return FirstLine(
        "No poison was found by these tests, which does not show that there is none.",
        _sentence(verdict.judgement),
        False,
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _never_deleted(results: Results, name: str) -> list[str]:
    """Poisoned rows that were not in the forget set, which every model but the clean ones was trained on."""
    poison = results.runs[0].poison
    kinds = (section for section in poison.values() if isinstance(section, dict))
    ids = {i for section in kinds for i in section.get("example_ids", [])}
    kept = 0 if name in ("base", "clean") else len(ids - set(poison.get("forget_ids", [])))
    return [f"{kept} of {len(ids)} poisoned rows were not known and stayed in the training data"] * bool(kept)
