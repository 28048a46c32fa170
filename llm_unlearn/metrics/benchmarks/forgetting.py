"""Is a model told apart from one that was retrained? TOFU's forget quality and MUSE's privacy leakage."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.array_checks import numbers
from llm_unlearn.metrics.benchmarks.scores import bootstrap_interval
from llm_unlearn.metrics.intervals import Interval
from llm_unlearn.metrics.typed import Result

PRIVLEAK_SHARE = 0.4  # of a row's tokens, the least likely: MUSE takes Min-40 %


@dataclass(frozen=True, kw_only=True)
class ForgetQuality(Result):
    """TOFU's test of the truth ratios.

    Args:
        p_value: the forget quality, in (0, 1].
        distance: the statistic D, the largest gap between the two distribution functions, in [0, 1].
        distance_ci95: interval of the distance between the two distributions; of a p-value there is none.
        n: rows of the model.
        n_retained: rows of the retain model.
    """

    p_value: float
    distance: float
    distance_ci95: Interval
    n: int
    n_retained: int


def forget_quality(ratios: ArrayLike, retain_ratios: ArrayLike) -> ForgetQuality:
    """Kolmogorov–Smirnov test of a model's truth ratios against the retain model's. Higher is better.

    Formula: the p-value of D = sup_x |F(x) − F_retain(x)|, two-sided, exact for as many rows as SciPy takes exactly.
    Source: TOFU, section 2.2.2. A small p-value tells the two models apart; a large one shows nothing by itself, with
    few rows least of all, which is why D and its interval stand beside it. Ratios may be given in any monotone scale.
    Interval: D ± (ε_n + ε_m), ε_n = √(ln(4/0.05) / 2n), which never covers less than 95 % (Massart 1990). A bootstrap
    of D is biased upwards, since drawn samples differ more than those they are drawn from.

    Args:
        ratios: of `truth_ratio` on the forget rows, shape (n,).
        retain_ratios: the same of the model that was trained without them, shape (m,).

    Raises:
        InputError: not one-dimensional, empty or not finite.

    Examples:
        >>> result = forget_quality([1.0, 2.0, 3.0, 4.0], [11.0, 12.0, 13.0, 14.0])
        >>> result.distance, round(result.p_value, 4)
        (1.0, 0.0286)
    """
    from scipy.stats import ks_2samp

    ours, theirs = numbers(ratios, "ratios"), numbers(retain_ratios, "retain_ratios")
    found = ks_2samp(ours, theirs)
    distance = float(found.statistic)
    reach = sum(math.sqrt(math.log(4 / 0.05) / (2 * sample.size)) for sample in (ours, theirs))
    return ForgetQuality(
        p_value=float(found.pvalue),
        distance=distance,
        distance_ci95=Interval(max(0.0, distance - reach), min(1.0, distance + reach)),
        n=ours.size,
        n_retained=theirs.size,
    )


@dataclass(frozen=True, kw_only=True)
class PrivacyLeakage(Result):
    """MUSE's PrivLeak.

    Args:
        value: in per cent; 0 as the retain model.
        ci95: bootstrap interval over forget and holdout rows, None for single ones.
        auc: of the attack on the model, as the field writes it: above 0.5, forget rows look like members.
        auc_retained: of the same on the retain model.
        n_forget: forget rows.
        n_holdout: rows that no model trained on.
    """

    value: float
    ci95: Interval | None
    auc: float
    auc_retained: float
    n_forget: int
    n_holdout: int


def privleak(
    forget: ArrayLike, holdout: ArrayLike, retain_forget: ArrayLike, retain_holdout: ArrayLike
) -> PrivacyLeakage:
    """Leakage of membership beside the retain model, by Min-40 %. Nearer 0 is better: below it rows are still known.

    Formula: 100 · (A(model) − A(retain)) / A(retain), A = 1 − AUC, where AUC = P(score of a forget row > of a holdout
    row) and scores are higher where a row looks more like a member (`min_k_score` with share 0.4). Source: MUSE,
    section 3, whose code ranks by the loss, so that its AUC is our 1 − AUC; open-unlearning does the same. Above 0 the
    forget rows look less known than rows never seen: over-unlearning.

    Args:
        forget: scores of the forget rows, shape (n,).
        holdout: scores of rows that were never trained on, shape (m,).
        retain_forget: the retain model's scores of the same forget rows, in the same order.
        retain_holdout: the retain model's scores of the same holdout rows.

    Raises:
        InputError: not one-dimensional, empty, not finite, or another number of rows for the retain model; or the
            retain model ranks all forget rows above all holdout rows, so that nothing can be divided by.

    Examples:
        >>> result = privleak([4.0, 3.0, 2.0], [2.5, 1.0], [2.0, 1.0, 3.0], [2.5, 0.5])
        >>> round(result.value, 1), round(result.auc, 3), round(result.auc_retained, 3)
        (-50.0, 0.833, 0.667)
    """
    arrays = {"forget": forget, "holdout": holdout, "retain_forget": retain_forget, "retain_holdout": retain_holdout}
    checked = {name: numbers(values, name) for name, values in arrays.items()}
    pairs = [
        np.column_stack([_same(checked, name), checked[f"retain_{name}"]]) for name in ("forget", "holdout")
    ]  # (n, 2) and (m, 2): both models' scores of a row stay together
    auc, retained = (_auc(pairs[0][:, i], pairs[1][:, i]) for i in (0, 1))
    if retained == 1:
        raise InputError(
            "retain_forget: the retain model ranks every forget row above every holdout row, and PrivLeak divides by "
            "1 − AUC = 0; is it the model that was trained without them?"
        )
    # a draw that separates all rows has nothing to divide by: MUSE's code adds 10⁻¹⁰ there, and so do the limits
    interval = bootstrap_interval(lambda f, h: _leak(_auc(f[:, 0], h[:, 0]), _auc(f[:, 1], h[:, 1])), pairs)
    return PrivacyLeakage(
        value=_leak(auc, retained),
        ci95=interval,
        auc=auc,
        auc_retained=retained,
        n_forget=len(pairs[0]),
        n_holdout=len(pairs[1]),
    )


def _same(arrays: dict[str, NDArray], name: str) -> NDArray:
    ours, theirs = arrays[name], arrays[f"retain_{name}"]
    if ours.size != theirs.size:
        raise InputError(
            f"retain_{name}: {theirs.size} rows, but {name} has {ours.size}; give the same rows, in order."
        )
    return ours


def _auc(members: NDArray, others: NDArray) -> float:
    others = np.sort(others)
    wins = np.searchsorted(others, members, "left") + np.searchsorted(others, members, "right")
    return float(wins.sum() / (2 * members.size * others.size))


def _leak(auc: float, retained: float) -> float:
    return 100 * ((1 - auc) - (1 - retained)) / (1 - retained + 1e-10 * (retained == 1))
