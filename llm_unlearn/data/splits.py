"""Cut rows into train, held-out and test, with no text in two of them.

Every split keeps the labels' shares, to about a row; rows put in for duplicates may move it by a few more. A
smaller train is a subset of a larger one, and test depends on the other sizes through duplicates alone.
"""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from llm_unlearn.errors import InputError

MAX_STRATA = 20  # more distinct labels than this are free text (completions), not classes


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets of rows with an `example_id` each, and what was found on the way.

    `report` counts `within_train` (rows of the training source that repeat an earlier row of it),
    `across_train_and_test` (distinct texts that stand in both sources), `dropped_from_heldout` and
    `dropped_from_test` (rows passed over because a split before theirs holds their text). Texts are compared
    after case folding and with white space collapsed.
    """

    train: Dataset
    heldout: Dataset
    test: Dataset
    report: dict[str, int]


def make_splits(
    train: Dataset,
    test: Dataset | None,
    *,
    train_size: int,
    heldout_size: int,
    test_size: int,
    seed: int,
    keep_duplicates: bool = False,
) -> Splits:
    """Draw train and held-out from `train`, and test from `test`, stratified by label.

    Where a text of held-out is in train, or one of test in train or held-out, the next row takes its place.
    Repetitions inside one split stay.

    Args:
        train: Rows with `text` and, if labelled, `label` (stratified by it where it has at most 20 values).
        test: Rows with the same columns, or None to take all three splits from `train`.
        train_size: Rows of train, ≥ 1; `heldout_size` and `test_size`: of the others, ≥ 0.
        seed: Of the draw, ≥ 0.
        keep_duplicates: Draw without regard to repeated texts; they are counted all the same.

    Returns:
        The splits; `example_id` (int64) is a row's position in `train` followed by `test`, for any sizes.

    Raises:
        InputError: A size that is not possible; the message names the field and how many rows there are.
    """
    _check_sizes(train_size, heldout_size, test_size)
    pool = _with_ids(train, 0)
    test_pool = None if test is None else _with_ids(test, len(train))
    text_of, labels = _text_codes(pool, test_pool), _labels(pool, test_pool)  # (n,) and (n,) or None
    pool_generator, test_generator = (np.random.default_rng([seed, stream]) for stream in (0, 1))

    order = _stratified_order(labels, np.arange(len(train)), pool_generator)
    chosen, rest, _ = _take(order, train_size, text_of, set(), "train")
    taken = set() if keep_duplicates else set(text_of[chosen].tolist())
    heldout, rest, heldout_dropped = _take(rest, heldout_size, text_of, taken, "heldout")
    if test_pool is not None:
        rest = _stratified_order(labels, np.arange(len(train), len(text_of)), test_generator)
    if not keep_duplicates:
        taken.update(text_of[heldout].tolist())
    tested, _, test_dropped = _take(rest, test_size, text_of, taken, "test")

    report = _count_duplicates(text_of[: len(train)], text_of[len(train) :])
    report |= {"dropped_from_heldout": heldout_dropped, "dropped_from_test": test_dropped}
    test_rows = pool.select(tested) if test_pool is None else test_pool.select(tested - len(train))
    return Splits(pool.select(chosen), pool.select(heldout), test_rows, report)


def _check_sizes(train_size: int, heldout_size: int, test_size: int) -> None:
    sizes = {"train_size": (train_size, 1), "heldout_size": (heldout_size, 0), "test_size": (test_size, 0)}
    for name, (size, least) in sizes.items():
        if size < least:
            raise InputError(f"data.{name}: {size} is too few; it must be at least {least}.")


def _with_ids(rows: Dataset, first: int) -> Dataset:
    if "example_id" in rows.column_names:
        rows = rows.remove_columns("example_id")
    return rows.add_column("example_id", np.arange(first, first + len(rows), dtype=np.int64))


def _columns(name: str, pool: Dataset, test_pool: Dataset | None) -> list[str]:
    return list(pool[name]) + ([] if test_pool is None else list(test_pool[name]))


def _text_codes(pool: Dataset, test_pool: Dataset | None) -> np.ndarray:
    """Number the distinct normalised texts: rows get the same number if and only if their texts agree."""
    codes: dict[str, int] = {}
    texts = _columns("text", pool, test_pool)
    return np.array([codes.setdefault(" ".join(text.casefold().split()), len(codes)) for text in texts], dtype=np.int64)


def _count_duplicates(in_train: np.ndarray, in_test: np.ndarray) -> dict[str, int]:
    return {
        "within_train": len(in_train) - len(np.unique(in_train)),
        "across_train_and_test": len(np.intersect1d(in_train, in_test)),
    }


def _labels(pool: Dataset, test_pool: Dataset | None) -> np.ndarray | None:
    labelled = ["label" in rows.column_names for rows in (pool, test_pool) if rows is not None]
    if not all(labelled):
        if any(labelled):
            raise InputError("one of the training source and the test source has labels and the other has none.")
        return None
    return np.array(_columns("label", pool, test_pool))


def _stratified_order(labels: np.ndarray | None, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Shuffle `rows` so that every beginning of it has the labels in (nearly) the shares of the whole."""
    rows = generator.permutation(rows)
    if labels is None or len(np.unique(labels[rows])) > MAX_STRATA:
        return rows
    # The k-th of a label's n rows is put at (k + 1/2) / n of the way; the permutation decides between equals.
    place = np.empty(len(rows))
    for label in np.unique(labels[rows]):
        members = np.flatnonzero(labels[rows] == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return rows[np.lexsort((generator.random(len(rows)), place))]


def _take(
    order: np.ndarray, size: int, text_of: np.ndarray, taken: set[int], split: str
) -> tuple[np.ndarray, np.ndarray, int]:
    """The first `size` rows whose text is not `taken`, the rows after, and how many were passed over."""
    free = np.array([code not in taken for code in text_of[order].tolist()], dtype=bool)
    available = int(free.sum())
    if size > available:
        repeats = f" ({len(free) - available} more repeat a text of another split)" if not free.all() else ""
        raise InputError(f"data.{split}_size: {size} rows asked for, but there are {available}{repeats}.")
    end = 0 if size == 0 else int(np.flatnonzero(free)[size - 1]) + 1
    return order[:end][free[:end]], order[end:], end - size
