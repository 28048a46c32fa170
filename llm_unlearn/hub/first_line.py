"""The first line of a card: what one model may be said to hold of the poison, by `metrics.evidence.card_evidence`."""

from dataclasses import dataclass

from llm_unlearn.metrics.evidence import Status, calibrated, card_evidence
from llm_unlearn.metrics.intervals import Interval
from llm_unlearn.reporting.formats import number, p_value
from llm_unlearn.reporting.run_results import PLAIN, Results
from llm_unlearn.reporting.verdicts import judge
from llm_unlearn.reporting.words import attack_words, planted


@dataclass(frozen=True)
class FirstLine:
    """The first line of a card: `status`, with its full stop, and why, in a sentence."""

    status: str
    sentence: str
    remains: bool


def first_line(results: Results, name: str) -> FirstLine:
    """What one model may be said to hold of the poison.

    «Poison remains»: a test of `card_evidence` sees it, or the report's rule does, or poisoned rows were left in the
    training data. Where the poison did not take, or a test has no figure, nothing is said to be clean.

    Args:
        results: of one seed.
        name: of the model.
    """
    fired, verdict = _fired(results, name), judge(results, name)
    reasons = [*fired.values(), *_never_deleted(results, name)]
    if name == "poisoned":
        why = "; ".join(reasons) or "the tests below do not find it, but it was trained on it"
        return FirstLine("Poison remains.", f"This is the poisoned model itself, before any unlearning: {why}.", True)
    status, why, remains = "Nothing is shown about the poison.", "; ".join(_says_nothing(results, name)), False
    if reasons or verdict.status == Status.REMAINS:
        status, why, remains = "Poison remains.", "; ".join(reasons) or verdict.fired, True
        if fired and name in PLAIN:
            why += (
                "; it never saw what was deleted, so this is chance, of which these intervals allow up to one in "
                "twenty, or a fault of the run"
            )
    elif verdict.status == Status.TRACE:
        status, why, remains = "A trace of the poison remains.", verdict.fired, True
    if remains or why:
        return FirstLine(status, f"{why[:1].upper()}{why[1:]}.", remains)
    status = "No poison was found by these tests, which does not show that there is none."
    return FirstLine(status, f"It {verdict.price} against the poisoned model." if verdict.price else "", False)


def _fired(results: Results, name: str) -> dict[str, str]:
    """The tests whose 95 % interval says that poison remains, with their figures: gus, lift, damage."""
    result = results.of(name)[0]
    seen, texts = card_evidence(result, results.damaging).tests, {}
    if seen["gus"] and (gus := result.gus):
        shown = f"{number(gus.mean)} {_interval(gus.ci95)}"
        texts["gus"] = f"Gaussian Unlearning Score {shown}, without the noise 0 (p = {p_value(gus.p_value)})"
    if seen["rank"] and (rank := result.loss_rank):
        shown = f"{number(rank.mean)} {_interval(rank.ci95)}"
        texts["rank"] = f"loss rank of the canaries {shown}, without the noise 0 (p = {p_value(rank.p_value)})"
    if seen["lift"] and result.attack and (excess := result.attack.excess):
        shown = f"{number(100 * excess.mean, 1)} {_interval(excess.ci95, 100, 1)}"
        texts["lift"] = f"{attack_words(results).name} lift above the retrained model's {shown} of 100 answers"
    if seen["damage"] and result.oracle and (lost := result.oracle.accuracy_lost):
        shown = f"{number(100 * lost.mean, 1)} {_interval(lost.ci95, 100, 1)}"
        texts["damage"] = f"accuracy {shown} points below the retrained model's"
    return texts


def _says_nothing(results: Results, name: str) -> list[str]:
    """Why a test that found nothing in this model shows nothing: it does not find the poison in the poisoned model
    either, or it has no figure of this one, or its scores are not calibrated here.
    """
    result, names = results.of(name)[0], planted(results)
    poisoned = card_evidence(results.of("poisoned")[0], results.damaging).tests
    here, reasons = card_evidence(result, results.damaging).tests, []
    if missed := [kind for test, kind in names.items() if not poisoned[test]]:
        reasons.append(f"the same tests do not find it in the poisoned model itself ({', '.join(missed)})")
    # the retrained model is what the two others compare with
    asked = [test for test, found in poisoned.items() if found and (test in ("gus", "rank") or name != "retrained")]
    absent = [names.get(test, "loss rank") for test in asked if here[test] is None]
    if absent or not (any(poisoned.values()) or missed):
        reasons.append(f"there is no usable figure of this model ({', '.join(absent) or 'no poison score'})")
    if calibrated(result) is False:
        reasons.append("fresh noise does not look like N(0, 1) on this model, so its Gaussian score says nothing")
    return reasons


def _never_deleted(results: Results, name: str) -> list[str]:
    """Poisoned rows that were not in the forget set, which every model but the clean ones was trained on."""
    poison = results.runs[0].poison
    kinds = (section for section in poison.values() if isinstance(section, dict))
    ids = {i for section in kinds for i in section.get("example_ids", [])}
    kept = 0 if name in ("base", "clean") else len(ids - set(poison.get("forget_ids", [])))
    return [f"{kept} of {len(ids)} poisoned rows were not known and stayed in the training data"] * bool(kept)


def _interval(bounds: Interval | None, scale: float = 1, digits: int = 2) -> str:
    return "" if bounds is None else f"[{', '.join(number(scale * bound, digits) for bound in bounds)}]"
