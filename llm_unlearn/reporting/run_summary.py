"""Mean, standard deviation and n over seeds of every number that the evaluations hold."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_unlearn.reporting.results import SCHEMA_VERSION, Results, flatten, read_results, write_atomically


@dataclass(frozen=True)
class Statistic:
    """One number of one model over seeds. `sd` has ddof 1 and is None for one seed."""

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        finite = all(map(math.isfinite, self.values))  # fsum refuses inf − inf; a plain sum makes it NaN
        return (math.fsum(self.values) if finite else sum(self.values)) / self.n

    @property
    def sd(self) -> float | None:
        if self.n < 2:
            return None
        mean = self.mean
        if not math.isfinite(mean):
            return math.nan
        return math.sqrt(math.fsum((v - mean) ** 2 for v in self.values) / (self.n - 1))


def statistics(results: Results) -> dict[str, dict[str, Statistic]]:
    """Model → dotted name → statistic over the seeds in which that number is given."""
    table: dict[str, dict[str, Statistic]] = {}
    for name in results.names:
        flat = [flatten(doc) for doc in results.docs(name)]
        keys = dict.fromkeys(key for one in flat for key in one)
        table[name] = {key: Statistic(tuple(one[key] for one in flat if key in one)) for key in keys}
    return table


def write_summary(run_dir: str | Path) -> dict[str, Any]:
    """Write `summary.json` (mean, sd with ddof 1, n, of every number over seeds) and return what it holds.

    A model that a seed lacks counts the seeds that have it (`n`). `sd` is null for n = 1; `mean` and `sd` are null
    where a seed's value is not finite, since leaving that seed out would hide a run that diverged.

    Args:
        run_dir: a run directory with `seed-*/evaluation/`, or of one seed with `evaluation/`.
    Raises:
        InputError: naming the file that is missing or damaged.
    """
    from llm_unlearn.reporting.sweep_section import sweep_summary  # which is built on the statistics above

    results = read_results(run_dir)
    models = {
        name: {key: {"mean": _finite(s.mean), "sd": _finite(s.sd), "n": s.n} for key, s in entries.items()}
        for name, entries in statistics(results).items()
    }
    summary = {
        "schema_version": SCHEMA_VERSION,
        "recipe": results.recipe,
        "seeds": results.seeds,
        "models": models,
        **sweep_summary(results),
    }
    text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    write_atomically(results.run_dir / "summary.json", text.encode())
    return summary


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
