"""The package as a whole: its doctests hold, and it stays on NumPy and SciPy."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import llm_unlearn.metrics as metrics

pytestmark = pytest.mark.unit

MODULES = [module.name for module in pkgutil.walk_packages(metrics.__path__, "llm_unlearn.metrics.")]


def test_every_metric_has_a_doctest_and_says_which_direction_is_good():
    no_direction = {"holm", *(name for name in metrics.__all__ if name.endswith("_interval"))}
    for name in metrics.__all__:
        headline = getattr(metrics, name).__doc__.split("\n")[0]
        assert ">>>" in getattr(metrics, name).__doc__, name
        directions = ("Higher", "Lower", "Nearer", "Fewer", "0 is best")
        assert name in no_direction or any(word in headline for word in directions), name


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_importing_the_metrics_loads_neither_torch_nor_evaluate():
    heavy = ("torch", "transformers", "evaluate", "datasets", "pandas", "matplotlib")
    code = f"import sys, llm_unlearn.metrics; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
