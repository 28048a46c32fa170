"""The per-example table on disk, `evaluation/<model>.parquet`, checked when it is written and when it is read."""

from pathlib import Path
from typing import TYPE_CHECKING

from llm_unlearn.errors import InputError
from llm_unlearn.files import replacing_file
from llm_unlearn.metrics.per_example import check_columns

if TYPE_CHECKING:
    import pandas as pd


def write_signals(signals: "pd.DataFrame", path: Path) -> None:
    """Write a per-example table as Parquet, whole or not at all.

    Raises:
        InputError: a column is not of the schema, or the file cannot be written.
    """
    import pyarrow

    check_columns({field.name: str(field.type) for field in pyarrow.Schema.from_pandas(signals)}, str(path))
    with replacing_file(path) as partial:
        signals.to_parquet(partial)


def read_signals(path: Path) -> "pd.DataFrame":
    """Read what `write_signals` wrote.

    Raises:
        InputError: naming the file where it cannot be read, and a column that is not of the schema.
    """
    import pandas as pd
    import pyarrow.parquet

    try:
        check_columns({field.name: str(field.type) for field in pyarrow.parquet.read_schema(path)}, str(path))
        return pd.read_parquet(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete it to have {path.stem} evaluated again") from None
