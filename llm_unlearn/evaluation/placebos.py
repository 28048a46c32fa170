"""The planted trigger among placebos: run a model on the same rows with one after another, until the rank is known.

metrics/placebo.py makes a p-value of it. What a placebo is depends on the data: other phrases
(poisons/placebo_phrases.py), or patches of other patterns (vision/patch.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

if TYPE_CHECKING:
    import pandas as pd

_FEWEST = 8  # placebos at a time: their rows fill a batch


@dataclass(frozen=True)
class PlaceboSettings:
    """How many placebos, on which rows.

    Args:
        draws: K, at most so many for a planted trigger, and of several triggers as many times more for each, so that
            the smallest p-value that can be reported is 1 / (K + 1) all the same; 0 leaves the test out.
        rows: held-out rows of another label than the target, into which each is inserted.
        stop_at: h, placebos that reach the planted trigger's effect, after which no more are drawn.
        phrases: the user's own, in the place of drawn ones.
    """

    draws: int = 799  # so that the pooled p-value of any number of seeds can reach the level of a question
    rows: int = 8
    stop_at: int = 10
    phrases: Sequence[str] | None = None

    @classmethod
    def of(cls, section: Any) -> "PlaceboSettings":
        """What the recipe's `evaluate` section says; images have no phrases."""
        phrases = getattr(section, "placebo_phrases", None)
        return cls(section.placebo_draws, section.placebo_rows, section.placebo_stop_at, phrases)


DEFAULT = PlaceboSettings()


def effects_in_turn(
    triggers: Sequence[Any], effects: Callable[[Sequence[Any]], NDArray[np.float64]], stop_at: int
) -> NDArray[np.float64]:
    """Measure a planted trigger and its placebos, a few at a time, until `stop_at` placebos reach its effect.

    Args:
        triggers: the planted one, then the placebos in the order of their draw.
        effects: some of them → their effects, (k,).
        stop_at: how many placebos must reach it.

    Returns:
        The effects of all that were needed, the planted one's first; which these are depends on no batch.
    """
    found = np.empty(0)
    while len(found) < len(triggers):
        found = np.append(found, effects(triggers[len(found) : len(found) + max(stop_at + 1, _FEWEST)]))
        reached = np.flatnonzero(~(found[1:] < found[0]))  # what is not finite ends the search too
        if len(reached) >= stop_at:
            return found[: reached[stop_at - 1] + 2]
    return found


def placebo_table(found: Sequence[NDArray[np.float64]], n_rows: int, stop_at: int) -> "pd.DataFrame":
    """The effects of each planted trigger and of its placebos, as the set `placebo` of the per-example table."""
    import pandas as pd

    tables = [
        pd.DataFrame({"trigger": number, "draw": np.arange(len(effects)), "effect": effects})
        for number, effects in enumerate(found)
    ]
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables, ignore_index=True)
    return table.assign(set="placebo", example_id=np.arange(len(table)), n_rows=n_rows, stop_at=stop_at)


def log_odds(log_probs: NDArray[np.float64], target: int) -> NDArray[np.float64]:
    """How much likelier the attacker's answer is than all others, in nats.

    Unlike the probability it does not level off where a model is sure, so a rest of the trigger is still seen there.
    Of one answer alone (a completion) it is its log-probability.

    Args:
        log_probs: of each answer, up to a constant of the row, shape (n, answers).
        target: the attacker's answer.

    Returns:
        shape (n,).
    """
    if log_probs.shape[1] == 1:
        return log_probs[:, 0]
    return np.asarray(log_probs[:, target] - logsumexp(np.delete(log_probs, target, axis=1), axis=1))


def told_apart(answers: list[list[int]]) -> list[list[int]]:
    """Answers up to the token by which all differ, which costs fewer passes; one alone, or equal ones, stay whole."""
    for length in range(1, max(map(len, answers)) + 1):
        cut = [answer[:length] for answer in answers]
        if len(answers) > 1 and len({tuple(answer) for answer in cut}) == len(answers):
            return cut
    return answers
