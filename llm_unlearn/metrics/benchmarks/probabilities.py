"""TOFU's probabilities of answers, and its truth ratio, from the losses of answers."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.array_checks import numbers, same_length

TruthRatioForm = Literal["paper", "open-unlearning"]
_LARGEST = 700.0  # of a logarithm whose exponential is still a number


def probability(nll: ArrayLike) -> NDArray[np.float64]:
    """Length-normalised probability of each answer. Higher is more memorised: Lower is better on forget rows.

    Formula: P(a | q)^(1/|a|) = exp(−ℓ), ℓ the mean negative log-likelihood over the answer's tokens, EOS among them.
    Source: Maini et al. 2024 (TOFU), arXiv 2401.06121, section 2.2.

    Args:
        nll: ℓ of each example, in nats, shape (n,).

    Returns:
        shape (n,), in [0, 1].

    Raises:
        InputError: not one finite number per example.

    Examples:
        >>> probability([0.0, np.log(4)]).round(6).tolist()
        [1.0, 0.25]
    """
    return np.exp(-np.maximum(numbers(nll, "nll"), 0.0))


def probability_with_options(nll: ArrayLike, options_nll: ArrayLike) -> NDArray[np.float64]:
    """Probability of the right answer among given options. Higher is better: it measures utility.

    Formula: p / (p + Σ_j p_j), p = exp(−ℓ) of the right answer and p_j of the wrong ones. Source: TOFU, section 2.2
    (Real Authors and World Facts). The peer adds 10⁻¹⁰ below the line; here the sum is taken over logarithms, so that
    it is exact however small the probabilities are.

    Args:
        nll: mean loss of the right answer, in nats, shape (n,).
        options_nll: the same of the k wrong answers, shape (n, k).

    Returns:
        shape (n,), in [0, 1].

    Raises:
        InputError: not finite, or not k wrong answers per example.

    Examples:
        >>> probability_with_options([np.log(2)], [[np.log(4), np.log(4)]]).round(6).tolist()
        [0.5]
    """
    right, wrong = numbers(nll, "nll"), _table(options_nll, "options_nll")
    same_length(right, "nll", wrong[:, 0], "options_nll")
    return np.exp(-right - np.logaddexp.reduce(-np.column_stack([right, wrong]), axis=1))


def label_probability(logits: ArrayLike, label: int) -> NDArray[np.float64]:
    """How sure a classifier is of a label for each text. Higher is more fluent, where that is its label of fluent text.

    Formula: p_i = exp(z_i,label) / Σ_c exp(z_i,c); the figure is its mean over generated texts
    (`mean_score`). Source: open-unlearning (Dorna et al. 2025, arXiv 2506.12618), whose `classifier_prob` takes a
    detector of gibberish and its label "clean".

    Args:
        logits: z, of each text and label, shape (n, C) with C ≥ 2.
        label: which of the C, from 0.

    Returns:
        shape (n,), in [0, 1].

    Raises:
        InputError: not finite, not equally many per text, or there is no such label.

    Examples:
        >>> label_probability([[np.log(3), 0.0], [0.0, 0.0]], 0).round(6).tolist()
        [0.75, 0.5]
    """
    values = _table(logits, "logits")
    if values.shape[1] < 2 or not 0 <= label < values.shape[1]:
        raise InputError(
            f"logits, label: {values.shape[1]} labels and number {label}; give two or more, and one of them."
        )
    return np.exp(values[:, label] - np.logaddexp.reduce(values, axis=1))


def truth_ratio(nll: ArrayLike, wrong_nll: ArrayLike, form: TruthRatioForm = "open-unlearning") -> NDArray[np.float64]:
    """How likely wrong answers are beside the right one. Nearer 1 is better on forget rows, Lower on others.

    Formulas, with p = exp(−ℓ) of the right answer (its paraphrase, where there is one) and p_j of the k perturbed ones:

        "paper":            R = (1/k) Σ_j p_j / p         (TOFU, equation 1)
        "open-unlearning":  R = (Π_j p_j)^(1/k) / p       (the code of TOFU and of open-unlearning: the mean is of ℓ_j)

    The geometric mean is never above the arithmetic one, so the two forms do not mix. The peer adds 10⁻¹⁰ to p.

    Args:
        nll: mean loss of the right answer, in nats, shape (n,).
        wrong_nll: the same of the perturbed answers, shape (n, k).
        form: which mean over the perturbed answers.

    Returns:
        shape (n,), above 0; ratios beyond e^±700 are that.

    Raises:
        InputError: not finite, not k wrong answers per example, or an unknown form.

    Examples:
        >>> wrong = [[np.log(2), np.log(8)]]
        >>> truth_ratio([np.log(4)], wrong, "paper").round(6).tolist()
        [1.25]
        >>> truth_ratio([np.log(4)], wrong, "open-unlearning").round(6).tolist()
        [1.0]
    """
    right, wrong = numbers(nll, "nll"), _table(wrong_nll, "wrong_nll")
    same_length(right, "nll", wrong[:, 0], "wrong_nll")
    if form == "paper":
        log_wrong = np.logaddexp.reduce(-wrong, axis=1) - np.log(wrong.shape[1])
    elif form == "open-unlearning":
        log_wrong = -wrong.mean(axis=1)
    else:
        raise InputError(f"form: expected paper or open-unlearning, got {form!r}.")
    return np.exp(np.clip(log_wrong + right, -_LARGEST, _LARGEST))


def truth_ratio_score(ratios: ArrayLike, rows: Literal["forget", "kept"]) -> NDArray[np.float64]:
    """Truth ratios as scores in [0, 1]. Higher is better: forgotten where forgetting is asked for, true elsewhere.

    Formulas: "forget": min(R, 1/R), 1 where wrong and right are equally likely (the peer's `closer_to_1_better`);
    "kept": max(0, 1 − R), 1 where only the right answer is likely (the peer's `true_better`). Source: TOFU, section
    2.2, and its code.

    Args:
        ratios: of `truth_ratio`, shape (n,).
        rows: whether these rows were to be forgotten.

    Raises:
        InputError: not one finite number above 0 per example, or other rows.

    Examples:
        >>> truth_ratio_score([0.5, 2.0], "forget").tolist(), truth_ratio_score([0.25, 2.0], "kept").tolist()
        ([0.5, 0.5], [0.75, 0.0])
    """
    values = numbers(ratios, "ratios")
    if (values <= 0).any():
        raise InputError(f"ratios: a ratio of probabilities is above 0, got {values[values <= 0][0]}.")
    if rows == "forget":
        return np.minimum(values, 1 / values)
    if rows == "kept":
        return np.maximum(0.0, 1 - values)
    raise InputError(f"rows: expected forget or kept, got {rows!r}.")


def _table(values: ArrayLike, field: str) -> NDArray[np.float64]:
    """The same count of numbers for each example, (n, k) with k ≥ 1."""
    try:
        array = np.asarray(values, dtype=float)
    except (ValueError, TypeError):
        array = np.zeros(0)
    if array.ndim != 2 or not array.size:
        raise InputError(f"{field}: expected equally many numbers per example, shape (n, k) with k ≥ 1.")
    return numbers(array.ravel(), field).reshape(array.shape)
