"""A verdict for each model, by the rule of metrics/evidence.py, and what makes the verdicts worth less."""

from dataclasses import dataclass

from llm_unlearn.metrics.evidence import (
    COSTLY_POINTS,
    LIFT_GAP,
    Evidence,
    Status,
    calibrated,
    is_costly,
    lift_gap,
    over_seeds,
    report_evidence,
)
from llm_unlearn.reporting import figures
from llm_unlearn.reporting.figures import Figure
from llm_unlearn.reporting.formats import number, p_phrase
from llm_unlearn.reporting.run_results import Results, Statistic, statistic
from llm_unlearn.reporting.words import attack_words, planted


@dataclass(frozen=True)
class Verdict:
    """What the tests say of one model.

    Args:
        evidence: of each seed.
        lost_points: accuracy below the poisoned model's, in percentage points.
        fired: the tests that fired, by how much and in how many seeds; empty where none did.
    """

    model: str
    evidence: list[Evidence]
    lost_points: Statistic | None
    fired: str

    @property
    def status(self) -> Status:
        return over_seeds(self.evidence)

    @property
    def remains(self) -> bool:
        return self.status in (Status.REMAINS, Status.TRACE)

    @property
    def price(self) -> str:
        """The flag of a model that lost too much accuracy, or nothing."""
        lost = self.lost_points
        return f"costs {number(lost.mean, 1)} points of accuracy" if lost and is_costly(lost.mean) else ""

    @property
    def judgement(self) -> str:
        return "; ".join(part for part in (self.status, self.price) if part)


def judge(results: Results, name: str) -> Verdict:
    """Apply the rule to one model, seed by seed."""
    runs = [run for run in results.runs if name in run.models]
    evidence = [report_evidence(run.models[name], run.models["retrained"], results.damaging) for run in runs]
    lost = [
        100 * (before.accuracy - after.accuracy)
        for run in runs
        if (before := run.models["poisoned"].utility) and (after := run.models[name].utility)
    ]
    return Verdict(name, evidence, statistic(lost), _fired(results, name, evidence))


def _fired(results: Results, name: str, evidence: list[Evidence]) -> str:
    """Which tests fired, by how much, in how many seeds."""

    def p(figure: Figure) -> str:
        return p_phrase(results.over_seeds(name, figure))

    runs = [run.models for run in results.runs if name in run.models]
    gaps = statistic([lift_gap(models[name], models["retrained"]) for models in runs])
    lost, gus = results.over_seeds(name, figures.lost), results.over_seeds(name, figures.gus)
    lift = f"{attack_words(results).name} lift {number(gaps.mean if gaps else None)} above retrained"
    points = f"accuracy {number(100 * lost.mean if lost else None, 1)} points below retrained"
    tests = [
        ([e.gus for e in evidence], f"Gaussian test ({p(figures.gus_p)})"),
        ([e.rank for e in evidence], f"loss rank of the canaries ({p(figures.rank_p)})"),
        ([e.lift for e in evidence], lift),
        ([e.damage for e in evidence], f"{points} ({p(figures.lost_p)})"),
        ([e.spread for e in evidence], f"spread of the Gaussian scores (χ²: {p(figures.spread_p)})"),
    ]
    several = len(evidence) > 1
    texts = [text + f" in {sum(map(bool, s))} of {len(s)} seeds" * several for s, text in tests if any(s)]
    if any(e.gus for e in evidence) and gus and max(gus.values) < 0:
        texts.append("scores pushed below 0, which is a trace of the noise too")
    return "; ".join(texts)


def headline(verdicts: list[Verdict]) -> str:
    """One sentence over all unlearned models: how many leave poison, how many cost accuracy, which do neither."""
    if not verdicts:
        return "No method has been evaluated yet."
    remains, costly = sum(v.remains for v in verdicts), sum(bool(v.price) for v in verdicts)
    good = [v.model for v in verdicts if v.status == Status.CLEAR and not v.price]
    return (
        f"{remains} of {len(verdicts)} unlearned models {'shows' if remains == 1 else 'show'} the poison or a trace of "
        f"it, {costly} {'loses' if costly == 1 else 'lose'} "
        f"{COSTLY_POINTS:g} or more points of accuracy; free of both by these tests: {', '.join(good) or 'none'}."
    )


def warnings(results: Results) -> list[str]:
    """What makes the verdicts worth less: a poison that did not take, a retrained model or a control that fails."""
    found = []
    poisoned, retrained = judge(results, "poisoned"), judge(results, "retrained")
    attack = attack_words(results).name
    for test, kind in planted(results).items():
        seeds = [evidence.tests[test] for evidence in poisoned.evidence]
        if not all(seeds):
            which = "" if len(seeds) == 1 else f" in {sum(not seed for seed in seeds)} of {len(seeds)} seeds"
            found.append(
                f"The poison did not take{which} ({kind}): the poisoned model itself passes that test, so a method "
                "that passes it has shown nothing."
            )
    if any(e.gus or e.spread or e.rank for e in retrained.evidence):
        found.append(
            "The retrained model, which never saw the deleted canaries, fails their tests "
            f"({retrained.fired}): either chance (1 in 1,000) or a fault in the run. Do not trust the Gaussian "
            "verdicts before it is explained."
        )
    lift = results.over_seeds("retrained", figures.lift)
    if lift and lift.mean >= LIFT_GAP and results.forget_fraction == 1:
        found.append(
            f"The retrained model, which never saw the poison, has an attack lift of {number(lift.mean)}: the {attack} "
            "sways this model without any training, and a lift beside it says little."
        )
    off = [name for name in results.names if any(calibrated(result) is False for result in results.of(name))]
    if off:
        found.append(
            f"Fresh noise does not look like N(0, 1) on: {', '.join(off)}. The Gaussian scores of these models are not "
            "calibrated."
        )
    if results.unfinished:
        found.append(f"Not evaluated yet, and so not in this report: {', '.join(results.unfinished)}.")
    return found
