"""A column of a dataset, set."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset


def with_column(rows: "Dataset", name: str, values: "Sequence[Any] | np.ndarray") -> "Dataset":
    """The rows with those values in a column, in the place of the one of that name where there is one.

    Args:
        rows: n rows.
        name: of the column, which stands last.
        values: n of them.
    """
    if name in rows.column_names:
        rows = rows.remove_columns(name)
    return rows.add_column(name, values)
