"""The tests of one model by question: each pooled over the seeds, with what it would have found."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llm_unlearn.metrics.intervals import Interval
from llm_unlearn.metrics.multiple import holm
from llm_unlearn.metrics.pooling import pool_differences, pool_p_values, pool_scores
from llm_unlearn.metrics.power import smallest_effect
from llm_unlearn.metrics.results import Evaluation, Gus, Later
from llm_unlearn.metrics.typed import Result

ATTACK_KINDS = ("trigger", "patch", "gradient_matching")  # poisons that are an attack on single inputs
CANARY_TESTS = ("gus", "loss rank", "canary rank")
CANARY_KINDS = {"gaussian": ("gus", "loss rank"), "tokens": ("canary rank",)}  # which of them are of which canaries
TURNED = "target lost"  # where it is the right answer: a trigger that was turned round does nothing else
CHANCE = 0.8  # with which a residue of δ would have been found
ROUNDING = 1e-9  # so that 0.35 − 0.15 counts as 0.2


def title(test: str, attack: str = "attack") -> str:
    """What texts call a test.

    Args:
        test: as of a `Finding`.
        attack: what the attack is called.

    Examples:
        >>> title("spread of gus"), title("lift", "patch"), title("loss rank")
        ('mean square of GUS', 'patch lift', 'loss rank')
    """
    of = test.removeprefix("spread of ")
    of_attack = {"lift": f"{attack} lift", "placebo": f"{attack} beyond placebos", TURNED: f"{TURNED} to the {attack}"}
    name = {"gus": "GUS", **of_attack}.get(of, of)
    return name if of == test else f"mean square of {name}"


@dataclass(frozen=True, kw_only=True)
class Finding(Result):
    """One test of one model, pooled over its seeds.

    Args:
        question: noise, attack or damage.
        test: gus, loss rank, canary rank, spread of one of them, placebo, lift, target lost, or accuracy lost.
        after: clean training steps that went before, 0 for the model as it is.
        effect: the figure tested: a mean score, the mean square of the scores, a mean over that of the
            placebos, a difference.
        n: scores or rows, of all seeds.
        p_value: None where an interval decides.
        interval: of a difference, at the level of the question on each side; else None.
        beyond: whether a difference of the attack is that above the retrained model's.
        rejects: whether it finds poison.
        critical: the mean score from which on, either way, it would reject by itself; else None.
        detectable: the smallest effect that it would have found with probability CHANCE; of a difference its upper
            limit; None where that is not asked of the test.
        delta: what had to be excluded; None alike.
    """

    question: str
    test: str
    after: int = 0
    effect: float
    n: int
    p_value: float | None = None
    interval: Interval | None = None
    beyond: bool = False
    rejects: bool
    critical: float | None = None
    detectable: float | None = None
    delta: float | None = None

    @property
    def so(self) -> str:
        """What is said of the model's state after the name of the test."""
        return f" after {self.after} clean steps" if self.after else ""


def take_tests(
    results: Sequence[Evaluation], questions: list[str], level: float, delta: dict[str, float]
) -> list[Finding]:
    """The findings on one model, pooled over its seeds.

    Args:
        results: its evaluations, one per seed.
        questions: of "noise", "attack", "damage" those to be asked.
        level: of each question, shared by its tests.
        delta: test → what has to be excluded.
    """
    take = {"noise": _noise, "attack": _attack, "damage": _damage}
    return [finding for question in questions for finding in take[question](results, level, delta)]


def canary_tests(state: Evaluation | Later) -> dict[str, Gus]:
    """Test → the figures of a model's canaries in one state, those that there are."""
    sections = (state.gus, state.loss_rank, state.canary_rank)
    return {test: section for test, section in zip(CANARY_TESTS, sections, strict=True) if section}


def _noise(results: Sequence[Evaluation], level: float, delta: dict[str, float]) -> list[Finding]:
    """Mean and spread of every score, before and after clean steps, all by Holm."""
    series: dict[tuple[str, int], list[Gus]] = {}
    for result in results:
        for after, state in ((0, result), (result.later.steps if result.later else 0, result.later)):
            for test, section in canary_tests(state).items() if state else ():
                series.setdefault((test, after), []).append(section)
    pooled = {key: pool_scores(sections) for key, sections in series.items()}
    p_values = [p for scores in pooled.values() for p in (scores.p_value, scores.spread_p_value)]
    adjusted = iter(holm(p_values)) if p_values else iter(())
    found = []
    for (test, after), scores in pooled.items():
        std = 1.0 if scores.std is None else scores.std
        found += [
            Finding(
                question="noise",
                test=test,
                after=after,
                effect=scores.mean,
                n=scores.n,
                p_value=scores.p_value,
                rejects=bool(next(adjusted) < level),
                critical=smallest_effect(scores.n, 0.0, CHANCE, level / len(p_values)),
                detectable=smallest_effect(scores.n, std, CHANCE, level / len(p_values)),
                delta=delta[test],
            ),
            Finding(
                question="noise",
                test=f"spread of {test}",
                after=after,
                effect=scores.energy / scores.n,
                n=scores.n,
                p_value=scores.spread_p_value,
                rejects=bool(next(adjusted) < level),
            ),
        ]
    return found


def _attack(results: Sequence[Evaluation], level: float, delta: dict[str, float]) -> list[Finding]:
    """The rank among placebos (Holm over its states), the lift and the target lost: above the retrained model's where
    every seed has that, else by themselves. Each has the level for itself: without an attack it is near 0, far below δ.
    """
    found = []
    states = {0: [result.attack for result in results if result.attack]}
    for result in results:
        if result.later and result.later.attack:
            states.setdefault(result.later.steps, []).append(result.later.attack)
    tested = {after: [a.placebo for a in attacks if a.placebo] for after, attacks in states.items()}
    p_values = {after: pool_p_values([p.p_value for p in placebos]) for after, placebos in tested.items() if placebos}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True)) if p_values else {}
    for after, attacks in states.items():
        if after in p_values:
            found.append(
                Finding(
                    question="attack",
                    test="placebo",
                    after=after,
                    effect=math.fsum(p.statistic - p.placebo_mean for p in tested[after]) / len(tested[after]),
                    n=sum(p.n for p in tested[after]),
                    p_value=p_values[after],
                    rejects=bool(adjusted[after] <= level),
                )
            )
        lifts = [(attack.n, attack.lift, attack.ci95.lift, attack.excess) for attack in attacks]
        lost = [(rows.n, rows.lost, rows.ci95, rows.excess) for attack in attacks if (rows := attack.target_rows)]
        for test, figures in (("lift", lifts), (TURNED, lost)):
            excess = [(beside.mean, beside.ci95) for *_, beside in figures if beside and beside.ci95]
            beyond = len(excess) == len(figures)
            pairs = excess if beyond else [(effect, interval) for _, effect, interval, _ in figures]
            if pairs:
                n = sum(count for count, *_ in figures)
                finding = replace(_difference("attack", test, after, pairs, n, level, delta["lift"]), beyond=beyond)
                found.append(replace(finding, detectable=None) if test == TURNED else finding)
    return found


def _damage(results: Sequence[Evaluation], level: float, delta: dict[str, float]) -> list[Finding]:
    """Accuracy below the retrained model's: what an indiscriminate poison does, and what unlearning itself costs."""
    lost = [result.oracle.accuracy_lost for result in results if result.oracle and result.oracle.accuracy_lost]
    pairs = [(entry.mean, entry.ci95) for entry in lost if entry.ci95]
    if not pairs:
        return []
    n = sum(entry.n for entry in lost)
    return [_difference("damage", "accuracy lost", 0, pairs, n, level, delta["accuracy lost"])]


def _difference(
    question: str, test: str, after: int, pairs: list[tuple[float, Interval]], n: int, level: float, delta: float
) -> Finding:
    mean, interval = pool_differences(pairs, level)
    # a kind of row in which the models differ may have been missed even where none was seen; seeds may share rows
    reach = 1 - level ** (len(pairs) / n)
    interval = Interval(min(interval.low, mean - reach), max(interval.high, mean + reach))
    return Finding(
        question=question,
        test=test,
        after=after,
        effect=mean,
        n=n,
        interval=interval,
        rejects=interval.low > delta - ROUNDING,
        detectable=interval.high,
        delta=delta,
    )
