"""`benchmark/<model>.json`: the values of a benchmark per row, which of a retain model are the reference of others."""

from pathlib import Path

import numpy as np

from llm_unlearn.errors import InputError
from llm_unlearn.evaluation.benchmarks.measures import Benchmark, Values
from llm_unlearn.files import read_json, write_json


def write_measured(path: Path, benchmark: Benchmark, values: Values) -> None:
    """Write the values of a model."""
    tree = {name: own.tolist() for name, own in values.items()}
    write_json(path, {"benchmark": benchmark.name, "split": benchmark.split, "values": tree})


def read_measured(path: Path, benchmark: Benchmark) -> Values:
    """Read the values of a retain model.

    Raises:
        InputError: there is no such file, it is damaged, or it is of another benchmark or split.
    """
    tree = read_json(path, "measure the retain model again")
    for key, expected in (("benchmark", benchmark.name), ("split", benchmark.split)):
        if tree.get(key) != expected:
            raise InputError(
                f"{path}: field '{key}' is {tree.get(key)!r}, expected {expected!r}; give that of this run"
            )
    try:
        return {name: np.array(own, dtype=float) for name, own in tree["values"].items()}
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: field 'values' is no mapping of measures to numbers ({error!r})") from None
