"""Cut rows into train, held-out and test sets; no text is in two of them.

Every set keeps the labels' shares to about a row, or a few more where rows replace duplicates. A smaller training set
is a subset of a larger one. The test set depends on the other sizes only through duplicates.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from llm_unlearn.data.columns import with_column
from llm_unlearn.errors import InputError

MAX_STRATA = 20  # with more distinct labels, they are free text (completions), not classes


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets of rows, each row with an `example_id`, and a count of duplicates.

    `report` counts `within_train` (rows of the training source that repeat an earlier one), `across_train_and_test`
    (distinct texts in both sources), `dropped_from_heldout` and `dropped_from_test` (rows passed over because an
    earlier set has their text). Texts are compared after case folding and collapsing white space.
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

    A row whose text is in an earlier set is replaced by the next one. Repetitions inside one set stay.

    Args:
        train: rows with `text` and, if labelled, `label`; stratified by label if it has at most 20 values.
        test: rows with the same columns, or None to take all three sets from `train`.
        train_size: rows of the training set, ≥ 1.
        heldout_size: rows of the held-out set, ≥ 0.
        test_size: rows of the test set, ≥ 0.
        seed: seed of the draw, ≥ 0.
        keep_duplicates: draw without regard to repeated texts, which are still counted.

    Returns:
        the splits; `example_id` (int64) is a row's position in `train` followed by `test`, for any sizes.

    Raises:
        InputError: a size is not possible; the message names the field and the number of rows.
    """
    for name, size, least in (("train", train_size, 1), ("heldout", heldout_size, 0), ("test", test_size, 0)):
        if size < least:
            raise InputError(f"data.{name}_size: {size} is too few; it must be at least {least}.")
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


def split_section(train: Dataset, test: Dataset | None, section: Any, seed: int) -> Splits:
    """`make_splits` with the sizes of a recipe's `data` section, of texts or of images."""
    names = ("train_size", "heldout_size", "test_size", "keep_duplicates")
    return make_splits(train, test, seed=seed, **{name: getattr(section, name) for name in names})


def _with_ids(rows: Dataset, first: int) -> Dataset:
    """The rows with `example_id` counted from `first`."""
    return with_column(rows, "example_id", np.arange(first, first + len(rows), dtype=np.int64))


def _columns(name: str, pool: Dataset, test_pool: Dataset | None) -> list[str]:
    """A column of both sources, one after the other."""
    return list(pool[name]) + ([] if test_pool is None else list(test_pool[name]))


def _text_codes(pool: Dataset, test_pool: Dataset | None) -> np.ndarray:
    """Number the distinct normalised texts: rows get the same number if and only if their texts agree."""
    codes: dict[str, int] = {}
    texts = _columns("text", pool, test_pool)
    return np.array([codes.setdefault(" ".join(text.casefold().split()), len(codes)) for text in texts], dtype=np.int64)


def _count_duplicates(in_train: np.ndarray, in_test: np.ndarray) -> dict[str, int]:
    """Repeated texts within the training source and across both, from the numbers of their texts."""
    return {
        "within_train": len(in_train) - len(np.unique(in_train)),
        "across_train_and_test": len(np.intersect1d(in_train, in_test)),
    }


def _labels(pool: Dataset, test_pool: Dataset | None) -> np.ndarray | None:
    """The labels of both sources, or None where neither has any."""
    labelled = ["label" in rows.column_names for rows in (pool, test_pool) if rows is not None]
    if not all(labelled):
        if any(labelled):
            raise InputError("one of the training source and the test source has labels and the other has none.")
        return None
    return np.array(_columns("label", pool, test_pool))


def _stratified_order(labels: np.ndarray | None, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Shuffle `rows` so that its first k rows have the labels in nearly the shares of all, for any k."""
    rows = generator.permutation(rows)
    if labels is None or len(np.unique(labels[rows])) > MAX_STRATA:
        return rows
    # The k-th of a label's n rows goes to (k + 1/2) / n of the way; random numbers decide between equals.
    place = np.empty(len(rows))
    for label in np.unique(labels[rows]):
        members = np.flatnonzero(labels[rows] == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return rows[np.lexsort((generator.random(len(rows)), place))]


def _take(
    order: np.ndarray, size: int, text_of: np.ndarray, taken: set[int], split: str
) -> tuple[np.ndarray, np.ndarray, int]:
    """The first `size` rows whose text is not `taken`, the rows after them, and the number passed over."""
    free = np.array([code not in taken for code in text_of[order].tolist()], dtype=bool)
    available = int(free.sum())
    if size > available:
        repeats = f" ({len(free) - available} more repeat a text of another split)" if not free.all() else ""
        raise InputError(f"data.{split}_size: asks for {size} rows, but there are {available}{repeats}.")
    end = 0 if size == 0 else int(np.flatnonzero(free)[size - 1]) + 1
    return order[:end][free[:end]], order[end:], end - size
