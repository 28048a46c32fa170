"""Mean, standard deviation and n over seeds of every number that the evaluations hold."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_unlearn.files import write_text
from llm_unlearn.metrics.results import SCHEMA_VERSION, Evaluation
from llm_unlearn.reporting.run_results import Results, read_results, statistic
from llm_unlearn.reporting.sweep_section import sweep_summary
from llm_unlearn.reporting.verdicts import judge

_IDENTIFIERS = ("schema_version", "seed", "budget")


def write_summary(run_dir: str | Path) -> dict[str, Any]:
    """Write `summary.json` (of every number over seeds mean, sd with ddof 1 and n; the decision on every model).

    A model that a seed lacks counts the seeds that have it (`n`). `sd` is null for n = 1; `mean` and `sd` are null
    where a seed's value is not finite, since leaving that seed out would hide a run that diverged.

    Args:
        run_dir: a run directory with `seed-*/evaluation/`, or of one seed with `evaluation/`.

    Returns:
        What was written.

    Raises:
        InputError: naming the file that is missing or damaged.
    """
    results = read_results(run_dir)
    summary = {
        "schema_version": SCHEMA_VERSION,
        "recipe": results.recipe,
        "seeds": results.seeds,
        "models": {name: _over_seeds(results, name) for name in results.names},
        "decisions": {name: judge(results, name).decision.to_json() for name in results.names if name != "base"},
        **sweep_summary(results),
    }
    write_text(results.run_dir / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def _over_seeds(results: Results, name: str) -> dict[str, dict[str, Any]]:
    trees = [numbers(result) for result in results.of(name)]
    keys = dict.fromkeys(key for tree in trees for key in tree)
    found = {key: statistic([tree.get(key) for tree in trees]) for key in keys}
    return {key: entry.to_json() for key, entry in found.items() if entry}


def numbers(result: Evaluation) -> dict[str, float]:
    """Every number of an evaluation under its dotted name, e.g. `gus.tpr_at_fpr.0.01`.

    Identifiers (seed, budget, schema_version) and intervals are left out: a mean of either says nothing.
    """
    tree = {key: value for key, value in result.to_json().items() if key not in _IDENTIFIERS}
    return dict(_leaves(tree, ""))


def _leaves(node: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{name}.{key}" if name else key)
    elif isinstance(node, int | float):
        yield name, float(node)
