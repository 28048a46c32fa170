"""ROUGE between what a model says and what stands in the data, as each benchmark takes it.

Needs the package `rouge-score`, with which TOFU, MUSE and open-unlearning measure: the extra `[benchmarks]`.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.errors import InputError

KNOWMEM_STOPS = ("\n\n", "\nQuestion", "Question:")  # where an answer after few-shot examples ends (MUSE)


def check_rouge() -> None:
    """Raise InputError where the package `rouge-score` is not installed."""
    try:
        import rouge_score.rouge_scorer  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"ROUGE is measured with the package rouge-score, which cannot be imported ({error}); install it: "
            "pip install rouge-score"
        ) from None


@cache
def _scorer(kind: str, stem: bool) -> Any:
    check_rouge()
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=stem)


def rouge(
    predictions: Sequence[str],
    references: Sequence[str],
    kind: Literal["rouge1", "rougeL"] = "rougeL",
    measure: Literal["recall", "f1"] = "recall",
    stem: bool = True,
) -> NDArray[np.float64]:
    """ROUGE of each text against its reference. Higher is more alike: Lower is better on forget rows.

    Formulas, with m the words in common ("rouge1") or the longest common subsequence ("rougeL"): recall is
    m / |reference|, precision m / |prediction|, f1 2 · precision · recall / (precision + recall), 0 where m is.
    Source: Lin 2004; TOFU and open-unlearning take the recall of rougeL with Porter's stemmer, the defaults here.

    Args:
        predictions: n texts.
        references: n texts.
        kind: single words, or their longest common subsequence.
        measure: recall or f1.
        stem: compare the stems of words.

    Returns:
        shape (n,), in [0, 1].

    Raises:
        InputError: the numbers of texts differ or are 0, an unknown kind or measure, or `rouge-score` is missing.

    Examples:
        >>> rouge(["the cat sat"], ["the cat sat down"]).tolist()  # doctest: +SKIP
        [0.75]
    """
    if len(predictions) != len(references) or not len(references):
        raise InputError(
            f"predictions has {len(predictions)} texts and references has {len(references)}; give one each, at least "
            "one."
        )
    if kind not in ("rouge1", "rougeL") or measure not in ("recall", "f1"):
        raise InputError(f"kind, measure: expected rouge1 or rougeL, recall or f1, got {kind!r} and {measure!r}.")
    scorer, field = _scorer(kind, stem), {"recall": "recall", "f1": "fmeasure"}[measure]
    pairs = zip(references, predictions, strict=True)
    return np.array([getattr(scorer.score(reference, text)[kind], field) for reference, text in pairs], dtype=float)


def verbmem(continuations: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
    """MUSE's verbatim memorisation of each row. Lower is better on forget rows.

    Formula: F1 of ROUGE-L, without stemming, between what the model says after the first tokens of a row and the row's
    own next ones (128 in MUSE). Source: Shi et al. 2024 (MUSE), arXiv 2407.06460, section 3; its code reports the F1.
    open-unlearning stems words.

    Args:
        continuations: what the model says, n texts.
        references: what stands in the row, n texts.

    Raises:
        InputError: the numbers of texts differ or are 0, or `rouge-score` is missing.

    Examples:
        >>> verbmem(["a b c d"], ["a b x d"]).tolist()  # doctest: +SKIP
        [0.75]
    """
    return rouge(continuations, references, "rougeL", "f1", stem=False)


def knowmem(replies: Sequence[str], answers: Sequence[str]) -> NDArray[np.float64]:
    r"""MUSE's knowledge memorisation of each question. Lower is better on forget rows, Higher on others.

    Formula: F1 of ROUGE-L, without stemming, between the reply to a question after few-shot examples and its answer;
    a reply ends where another question begins (KNOWMEM_STOPS). Source: MUSE, section 3, and its code. open-unlearning
    stems words.

    Args:
        replies: what the model says, n texts.
        answers: the right answers, n texts.

    Raises:
        InputError: the numbers of texts differ or are 0, or `rouge-score` is missing.

    Examples:
        >>> knowmem(["Paris\n\nQuestion: who?"], ["Paris"]).tolist()  # doctest: +SKIP
        [1.0]
    """
    return rouge([until_stop(reply) for reply in replies], answers, "rougeL", "f1", stem=False)


def until_stop(text: str, stops: Sequence[str] = KNOWMEM_STOPS) -> str:
    """A text up to the first of some stops.

    Examples:
        >>> until_stop("Paris. Question: who?")
        'Paris. '
    """
    for stop in stops:
        text = text.split(stop, 1)[0]
    return text
