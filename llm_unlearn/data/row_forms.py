"""Rows in the forms in which people have them → a dataset with `input_ids` and `labels`, or a clear error."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.data.encoding import IGNORE
from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

MASKS = ("completion_mask", "assistant_masks")  # of TRL's tokenised rows: 1 where there is loss


def as_dataset(rows: Any, name: str) -> "Dataset":
    """Rows as a dataset with a length.

    Args:
        rows: a `datasets.Dataset`, a list of mappings, or another map-style dataset of mappings.
        name: begins an error, e.g. "forget_dataset".

    Raises:
        InputError: a stream, several splits, or rows that are no mappings or not of one type.
    """
    from datasets import Dataset

    if isinstance(rows, Dataset):
        return rows
    if isinstance(rows, Mapping):
        raise InputError(f"{name}: has the splits {', '.join(map(str, rows))}; give one of them, e.g. rows['train']")
    if not hasattr(rows, "__len__"):
        raise InputError(
            f"{name}: a stream has no length, which passes and budgets need; give its rows: "
            "Dataset.from_list(list(rows.take(1000)))"
        )
    items = [rows[i] for i in range(len(rows))]
    for i, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise InputError(f"{name}, row {i}: expected a mapping of columns, found {type(item).__name__}")
    try:
        return Dataset.from_list([dict(item) for item in items])
    except (ValueError, TypeError, OverflowError) as error:  # pyarrow's errors are ValueErrors or TypeErrors
        raise InputError(f"{name}: the rows do not have columns of one type each: {error}") from None


def with_labels(rows: "Dataset", loss_on: str, name: str) -> "Dataset":
    """Tokenised rows with labels: their own, or by the mask that TRL writes, or all tokens with loss on text.

    Args:
        rows: with `input_ids`.
        loss_on: "text" or "completion", where rows have neither labels nor a mask.
        name: begins an error.

    Raises:
        InputError: nothing says which tokens are supervised, a row is empty, or its labels are not its tokens or −100.
    """
    masks = [column for column in MASKS if column in rows.column_names]
    if "labels" not in rows.column_names:
        if not masks and loss_on != "text":
            raise InputError(
                f"{name}: has input_ids but neither labels nor {' nor '.join(MASKS)}, and loss_on is {loss_on}; add "
                "labels, −100 where there is no loss"
            )
        rows = rows.map(lambda row: {"labels": _masked(row["input_ids"], [row[mask] for mask in masks])}, desc="labels")
    _check_labels(rows, name)
    return rows


def check_supervised(rows: "Dataset", name: str) -> None:
    """Raise InputError for the first row without a label to predict; the first token of a row is never predicted."""
    import pyarrow.compute as pc

    labels = rows.select_columns(["labels"]).with_format("arrow")[:]["labels"].combine_chunks()
    supervised = pc.list_flatten(pc.list_slice(labels, 1)).to_numpy(zero_copy_only=False) != IGNORE
    parents = pc.list_parent_indices(pc.list_slice(labels, 1)).to_numpy()
    counts = np.bincount(parents[supervised], minlength=len(rows))
    if not counts.all():
        raise InputError(
            f"{name}, row {int(counts.argmin())}: no supervised token after the first (its labels are all −100, or its "
            "text is one token); drop the row, or give it labels"
        )


def check_ids(rows: "Dataset", size: int, name: str) -> None:
    """Raise InputError for the first row with a token id that an embedding of `size` rows does not have."""
    import pyarrow.compute as pc

    ids = rows.select_columns(["input_ids"]).with_format("arrow")[:]["input_ids"].combine_chunks()
    flat = pc.list_flatten(ids)
    beyond = pc.or_(pc.less(flat, 0), pc.greater_equal(flat, size))
    if pc.any(beyond).as_py():
        at = pc.index(beyond, True).as_py()
        row = pc.list_parent_indices(ids)[at].as_py()
        raise InputError(
            f"{name}, row {row}: the token id {flat[at].as_py()}, but there are only {size}; encode "
            "the rows with the model's own tokenizer, or resize the model"
        )


def with_weights(rows: "Dataset", completion_weight: float, name: str) -> "Dataset":
    """Tokenised rows with a column `weight`: how much each token's label counts in the mean over a row.

    It is 1, and 1 + w T/|y| on the completion y, with w the completion weight and T the row's supervised tokens. The
    mean over the row is then mean_t ℓ_t − w · (1/|y|) log π(y | prompt).

    Args:
        rows: with `input_ids`, `labels` and a mask of the completion, as `encode_rows` and TRL write it.
        completion_weight: w; 0 leaves the rows without the column.
        name: begins an error, e.g. "retain_dataset".

    Raises:
        InputError: there is no mask, or a row of which no supervised token is in it.
    """
    columns = [c for c in rows.column_names if c != MASKS[0]]
    if not completion_weight:
        return rows.select_columns(columns)
    if MASKS[0] not in rows.column_names:
        raise InputError(
            f"{name}: completion_weight needs to know which tokens are the answer; give rows of text, or a column "
            f"{MASKS[0]}, 1 on the answer's tokens"
        )

    def weight(row: dict, index: int) -> dict:
        supervised = [label != IGNORE for label in row["labels"][1:]]
        answered = [bool(mark) and loss for mark, loss in zip(row[MASKS[0]][1:], supervised, strict=True)]
        if not any(answered):
            raise InputError(f"{name}, row {index}: no supervised token of an answer, on which completion_weight is")
        extra = completion_weight * sum(supervised) / sum(answered)
        return {"weight": [1.0, *(1 + extra * mark for mark in answered)]}

    return rows.map(weight, with_indices=True, desc="weights").select_columns([*columns, "weight"])


def _masked(ids: list[int] | None, masks: list[list[int] | None]) -> list[int] | None:
    """The tokens that every mask keeps; None where a mask is missing or of another length."""
    if ids is None or any(mask is None or len(mask) != len(ids) for mask in masks):
        return None
    return [token if all(mask[i] for mask in masks if mask) else IGNORE for i, token in enumerate(ids)]


def _check_labels(rows: "Dataset", name: str) -> None:
    """Raise InputError for the first row whose labels are not one a token, each that token or −100."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = rows.select_columns(["input_ids", "labels"]).with_format("arrow")[:]
    lengths = [pc.list_value_length(table[column]).to_pylist() for column in ("input_ids", "labels")]
    for i, (tokens, labels) in enumerate(zip(*lengths, strict=True)):
        if not tokens or tokens != labels:
            raise InputError(
                f"{name}, row {i}: {tokens or 'no'} input_ids and {labels or 'no'} labels; give one label a token, "
                "−100 where there is no loss, or drop the row"
            )
    ids, own = (table[column].combine_chunks() for column in ("input_ids", "labels"))
    tokens, labels = pc.list_flatten(ids), pc.list_flatten(own)
    for column, numbers in (("input_ids", tokens), ("labels", labels)):
        if not pa.types.is_integer(numbers.type) or numbers.null_count:
            found = "nulls" if numbers.null_count else str(numbers.type)
            raise InputError(f"{name}, column '{column}': expected whole numbers, found {found}")
    other = pc.and_(pc.not_equal(labels, IGNORE), pc.not_equal(labels, tokens))
    if pc.any(other).as_py():
        at = pc.index(other, True).as_py()
        raise InputError(
            f"{name}, row {pc.list_parent_indices(ids)[at].as_py()}: the label {labels[at].as_py()} at the token "
            f"{tokens[at].as_py()}; a label is the token itself or −100, not the next one (labels are shifted here)"
        )
