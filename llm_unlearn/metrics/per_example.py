"""The per-example table, `evaluation/<model>.parquet`: one row for each example of each set that a model was run on.

This is its schema, checked when the table is written and when it is read. A column is missing where the run has no such
poison, attack or oracle; a value is missing where the column does not apply to the row's set.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.errors import InputError

LATER = "later_"  # of sets that the model was run on again after clean training steps
_OF_THE_POISON = ("test", "triggered", "target_rows", "placebo", "canary", "token_canary")
SETS = (*_OF_THE_POISON, "member", "nonmember", *(LATER + name for name in _OF_THE_POISON))
MEMBERSHIP = "mia_"  # of the columns that hold a membership attack's scores

INTEGER, COUNT, REAL, FLAG, TEXT = "int64", "count", "float64", "boolean", "text"
_STORED_AS = {  # as Arrow names the types; a column without any value has the type null
    INTEGER: {"int64"},
    COUNT: {"int64", "double", "null"},  # whole numbers; pandas stores them as floats where some are missing
    REAL: {"double", "null"},
    FLAG: {"bool", "null"},
    TEXT: {"string", "large_string", "null"},
}


@dataclass(frozen=True)
class Column:
    """One column: what it holds and of which sets; `required` where every table has it."""

    name: str
    kind: str
    sets: tuple[str, ...]
    meaning: str
    required: bool = False


_MEMBERSHIP_SETS, _LOSS_SETS = ("member", "nonmember"), ("test", "member", "nonmember", "canary", "later_canary")
_CANARIES = ("canary", "later_canary")
_ANSWERED = tuple(later + name for later in ("", LATER) for name in ("test", "triggered", "target_rows"))
_TOKEN_CANARIES = ("token_canary", "later_token_canary")
_PLACEBOS = ("placebo", "later_placebo")
COLUMNS = (
    Column(
        "set",
        TEXT,
        SETS,
        "test, triggered, target_rows (test rows whose own answer is the target, trigger inserted), placebo (a row for "
        "each trigger tried), member (the forget set), nonmember (held out), canary (Gaussian) or token_canary; "
        "later_…: after clean training steps",
        required=True,
    ),
    Column(
        "example_id",
        INTEGER,
        SETS,
        "the row of data/ that it is, unique within a set; of placebos 0, 1, …",
        required=True,
    ),
    Column("label", TEXT, SETS, "the label in the data, after poisoning"),
    Column("prediction", TEXT, _ANSWERED, "the model's answer: a label, a class or generated text"),
    Column("target_hit", FLAG, _ANSWERED, "whether the answer is the attacker's target"),
    Column(
        "clean_hit",
        FLAG,
        ("triggered", "later_triggered"),
        "of a target image: whether its control is answered with the target",
    ),
    Column("nll", REAL, _LOSS_SETS, "mean negative log-likelihood over the supervised positions, in nats"),
    Column("nll_sum", REAL, _LOSS_SETS, "the sum of the same"),
    Column("n_positions", COUNT, _LOSS_SETS, "how many supervised positions there are"),
    Column("fluency", REAL, ("test",), "how sure the recipe's classifier is that the generated answer is fluent"),
    Column("kl", REAL, ("test",), "mean KL(p_retrained ‖ p) over the answer's positions, in nats"),
    Column(f"{MEMBERSHIP}<attack>", REAL, _MEMBERSHIP_SETS, "score of a membership attack, higher: more member-like"),
    Column("gaussian_score", REAL, _CANARIES, "I of the canary's own noise, N(0, 1) without a trace of it"),
    Column("gaussian_control", REAL, _CANARIES, "I of fresh noise, N(0, 1) on every model"),
    Column("loss_rank", REAL, _CANARIES, "rank of the loss at x + ξ among fresh noises, N(0, 1) without a trace"),
    Column("loss_rank_control", REAL, _CANARIES, "the same of fresh noise, N(0, 1) on every model"),
    Column(
        "canary_rank",
        REAL,
        _TOKEN_CANARIES,
        "rank of the string's log-prob among fresh strings, N(0, 1) without a trace",
    ),
    Column("canary_rank_control", REAL, _TOKEN_CANARIES, "the same of a fresh string, N(0, 1) on every model"),
    Column(
        "trigger",
        COUNT,
        (*_PLACEBOS, "triggered", "later_triggered"),
        "which planted trigger the placebo stands beside, or, of several phrases, which one the row carries, from 0",
    ),
    Column("draw", COUNT, _PLACEBOS, "0: the planted trigger itself; k: its k-th placebo"),
    Column("effect", REAL, _PLACEBOS, "mean log-odds of the attacker's answer over the rows with it, in nats"),
    Column("n_rows", COUNT, _PLACEBOS, "how many rows it was inserted into"),
    Column("stop_at", COUNT, _PLACEBOS, "how many placebos that reach the planted trigger's effect end the draws"),
    Column("deleted", FLAG, (*_CANARIES, *_TOKEN_CANARIES), "whether the canary is in the forget set"),
    Column(
        "hidden",
        FLAG,
        (*_CANARIES, *_TOKEN_CANARIES),
        "whether it is there as plain text, its noise or string unknown to the method",
    ),
)


def deciding(deleted: NDArray[np.bool_], hidden: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which canaries of one training the verdict counts: of the deleted ones the hidden, or all where none is hidden.

    Args:
        deleted: whether each is in the forget set, shape (n,).
        hidden: whether its noise is unknown to the methods, shape (n,).

    Examples:
        >>> deciding(np.array([True, True, False]), np.array([False, True, True])).tolist()
        [False, True, False]
    """
    both = deleted & hidden
    return both if both.any() else deleted


def check_columns(types: Mapping[str, str], source: str) -> None:
    """Refuse a table that does not follow the schema.

    Args:
        types: column → type as Arrow names it.
        source: the file, for the message.

    Raises:
        InputError: naming the file and the column that is missing, unknown or of another type.
    """
    known = {column.name: column for column in COLUMNS}
    for column in COLUMNS:
        if column.required and column.name not in types:
            raise InputError(f"{source}: column '{column.name}' is missing; evaluate again")
    for name, stored in types.items():
        entry = known.get(f"{MEMBERSHIP}<attack>" if name.startswith(MEMBERSHIP) else name)
        if entry is None:
            raise InputError(f"{source}: column '{name}' is not of a per-example table; evaluate again")
        if stored not in _STORED_AS[entry.kind]:
            raise InputError(f"{source}: column '{name}' holds {stored}, expected {entry.kind}; evaluate again")
