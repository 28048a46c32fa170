"""What every metric asks of its input, asked once, in words that name the field."""

from collections.abc import Iterable
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llm_unlearn.errors import InputError


def numbers(values: ArrayLike, field: str) -> NDArray[np.float64]:
    """One finite number per example, (n,) with n ≥ 1, as float64; `field` names the values in messages.

    Raises:
        InputError: not one-dimensional, empty, not numbers, or not finite.
    """
    array = _one_dimensional(values, field)
    if array.dtype.kind not in "iuf":
        array = _from_objects(array, field)
    array = array.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise InputError(
            f"{field}: {bad.size} of {array.size} values are missing or not finite, the first at index "
            f"{bad[0]} ({array[bad[0]]}). Leave those examples out, or find out why they have no value."
        )
    return array


def booleans(values: ArrayLike, field: str) -> NDArray[np.bool_]:
    """One truth value per example, (n,) with n ≥ 1: booleans, or numbers that are exactly 0 and 1.

    Raises:
        InputError: not one-dimensional, empty, or anything but true and false.
    """
    array = _one_dimensional(values, field)
    if array.dtype.kind == "b":
        return array
    for index, value in enumerate(array.tolist()):
        if _is_missing(value) or value not in (0, 1):
            raise InputError(f"{field}: expected true/false (or 1/0) per example, got {value!r} at index {index}.")
    return array.astype(bool)


def answers(values: ArrayLike, field: str) -> NDArray[np.object_]:
    """One answer per example (a label, a text, an id), (n,) objects; None, NaN and NA all become None: no answer.

    Raises:
        InputError: not one-dimensional or empty.
    """
    # As objects from the start: NumPy would turn ["positive", nan] into the strings "positive" and "nan".
    array = _one_dimensional(values, field, dtype=object)
    return np.array([None if _is_missing(value) else value for value in array], dtype=object)


def same_length(first: NDArray, first_field: str, second: NDArray, second_field: str) -> None:
    """Refuse two arrays that are to be paired by example and are not equally long."""
    if first.size != second.size:
        raise InputError(
            f"{first_field} has {first.size} examples and {second_field} has {second.size}. "
            "They are paired by example: give both in the same order, one value each."
        )


def rates(values: Iterable[float], field: str = "fprs") -> list[float]:
    """False-positive rates, each strictly between 0 and 1."""
    array = numbers(list(values), field)
    bad = array[(array <= 0) | (array >= 1)]
    if bad.size:
        raise InputError(f"{field}: a false-positive rate lies strictly between 0 and 1, got {bad[0]}.")
    return array.tolist()


def _one_dimensional(values: ArrayLike, field: str, dtype: type | None = None) -> NDArray:
    try:
        array = np.asarray(values, dtype=dtype)
    except ValueError as error:  # ragged nested lists
        raise InputError(f"{field}: expected one value per example, got nested lists ({error}).") from None
    if array.ndim != 1:
        raise InputError(
            f"{field}: expected one value per example, shape (n,), got shape {array.shape}. "
            "Flatten it, or reduce it to one value per example."
        )
    if array.size == 0:
        raise InputError(f"{field}: no examples. At least one is needed.")
    return array


def _from_objects(array: NDArray, field: str) -> NDArray[np.float64]:
    """Objects to numbers; strings and booleans are refused, since `float("1")` would hide a wrong column."""
    values = [np.nan if _is_missing(value) else value for value in array.tolist()]
    for index, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise InputError(f"{field}: expected numbers, got {value!r} ({type(value).__name__}) at index {index}.")
    return np.array(values, dtype=np.float64)


def _is_missing(value: object) -> bool:
    # NaN is the one value that differs from itself; pandas' NA answers every comparison with NA.
    return value is None or type(value).__name__ == "NAType" or bool(value != value)
