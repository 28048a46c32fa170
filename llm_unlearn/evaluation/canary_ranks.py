"""Scores of token canaries: is a canary's string likelier than strings that were never used, in the same row?

The log-prob is that of the row's supervised tokens: what stands before the string is the same in all, and cancels. See
metrics/ranks.py for the test, which needs the log-probs alone.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.ranks import rank_score
from llm_unlearn.poisons.token_canaries import CANARY, fresh_strings, require_distinct, with_string

if TYPE_CHECKING:
    from datasets import Dataset


def canary_rank_scores(
    rows: "Dataset", tokens: dict[str, Any], losses: "Callable[[Dataset], NDArray[np.float64]]", draws: int
) -> NDArray[np.float64]:
    """Score token canaries by the rank of their own string's log-prob among fresh ones.

    Args:
        rows: the canaries, with `prompt`, `completion`, `canary` and `example_id`.
        tokens: {"seed", "words"} of the manifest: where fresh strings come from.
        losses: rows → their negative log-probs, summed over the supervised tokens.
        draws: K, how many fresh strings each canary's is ranked among.

    Returns:
        (n, 2) float64: the score of the canary's own string, and as a control that of one more fresh string, which is
        N(0, 1) on every model. NaN where a log-prob is not finite.
    """
    from datasets import Dataset

    plain = rows.select_columns([name for name in rows.column_names if name not in ("input_ids", "labels")])
    variants = [
        with_string(row, string)
        for row in plain
        for string in (row[CANARY], *fresh_strings(tokens, row["example_id"], len(row[CANARY].split()), draws + 1))
    ]
    found = losses(Dataset.from_list(variants, features=plain.features)).reshape(len(rows), draws + 2)
    # ties are broken by numbers that belong to the canary, for its own string and for the control
    breakers = [np.random.default_rng([tokens["seed"], i, 26]).random(2) for i in rows["example_id"]]
    return np.stack([rank_score(found[:, j], found[:, 2:], np.array(breakers)[:, j]) for j in (0, 1)], 1)


def check_strings(rows: "Dataset", words: list[str], place: str) -> None:
    """Raise InputError where the test would not be exact: a string that is not of these words, that is not in its row,
    or that two rows share.
    """
    known = set(words)
    for row in rows:
        string = row[CANARY]
        if unknown := [word for word in string.split(" ") if word not in known]:
            raise InputError(
                f"{place}: row {row['example_id']}: '{unknown[0]}' is none of the words that strings are drawn from; "
                "say them in tokens.words"
            )
        if len(string.split(" ")) < 3:
            raise InputError(
                f"{place}: row {row['example_id']}: its string '{string}' has under three words, which may stand in a "
                "text by chance; leave the row out of tokens.ids"
            )
        if string not in f"{row['prompt']}\n{row['completion']}":
            raise InputError(
                f"{place}: row {row['example_id']}: its string '{string}' is neither in the text nor in the answer"
            )
    require_distinct(rows[CANARY])
