"""Read what a run left behind (one seed or several), check it at the door, and give it one shape."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.errors import InputError
from llm_unlearn.files import read_json
from llm_unlearn.metrics.evidence import Decision
from llm_unlearn.metrics.findings import ATTACK_KINDS
from llm_unlearn.metrics.per_example import check_columns, deciding
from llm_unlearn.metrics.results import Evaluation
from llm_unlearn.reporting.figures import Figure

if TYPE_CHECKING:
    import pandas as pd

PLAIN = ("base", "poisoned", "clean", "retrained")  # models that no method made
ONE_PERCENT = 2.3263478740408408  # Φ⁻¹(0.99): a Gaussian score above it is a find at 1 % false positives
BASELINES = ("rewind", "reset_distill")  # that start before the poison: what a method must beat
SHOWN_COLUMNS = (
    *("set", "example_id", "label", "prediction", "target_hit", "clean_hit"),
    *("gaussian_score", "gaussian_control", "deleted", "hidden"),
)


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
        if self.n < 2 or not math.isfinite(mean := self.mean):
            return None if self.n < 2 else math.nan
        return math.sqrt(math.fsum((v - mean) ** 2 for v in self.values) / (self.n - 1))

    def to_json(self) -> dict[str, Any]:
        """{"mean", "sd", "n"}; what is not finite becomes null."""
        finite = [value if value is not None and math.isfinite(value) else None for value in (self.mean, self.sd)]
        return {"mean": finite[0], "sd": finite[1], "n": self.n}


def statistic(values: Sequence[float | None]) -> Statistic | None:
    """Of the seeds that have a value; None where none does."""
    known = tuple(float(value) for value in values if value is not None)
    return Statistic(known) if known else None


@dataclass(frozen=True)
class SeedRun:
    """One seed: `models` maps a model's name to its evaluation, in the order of the table."""

    path: Path
    seed: int
    models: dict[str, Evaluation]
    poison: dict[str, Any]
    environment: dict[str, Any]


@dataclass(frozen=True)
class Results:
    """Everything a report is made of. `runs` holds one entry per seed."""

    run_dir: Path
    recipe: str
    runs: list[SeedRun]
    unfinished: list[str]  # seed folders without any evaluation yet
    decisions: dict[str, Decision] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )  # by verdicts.py

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    @property
    def names(self) -> list[str]:
        """All models: base, poisoned, the methods by name and budget, the baselines, the oracles last."""
        return sorted({name for run in self.runs for name in run.models}, key=_order)

    @property
    def methods(self) -> list[str]:
        return [name for name in self.names if name not in PLAIN]

    def of(self, name: str) -> list[Evaluation]:
        """The evaluations of one model, one per seed that has it."""
        return [run.models[name] for run in self.runs if name in run.models]

    def over_seeds(self, name: str, figure: Figure) -> Statistic | None:
        """One number of one model over the seeds that have it; None where none does."""
        return statistic([figure(result) for result in self.of(name)])

    @property
    def has_gus(self) -> bool:
        return any(result.gus for run in self.runs for result in run.models.values())

    @property
    def has_attack(self) -> bool:
        return any(result.attack for run in self.runs for result in run.models.values())

    @property
    def damaging(self) -> bool:
        """Whether the run has a poison that is measured by the accuracy that it costs."""
        return bool(self.runs[0].poison.get("gradient_cancelling"))

    @property
    def images(self) -> bool:
        return "image_shape" in self.runs[0].poison

    @property
    def attack_kind(self) -> str:
        """Which of ATTACK_KINDS the run has; `trigger` where it has none."""
        return next((kind for kind in ATTACK_KINDS if self.runs[0].poison.get(kind)), "trigger")

    @property
    def given(self) -> bool:
        """Whether the poisoned model was given, so that a base and a retrained model need not be there."""
        return bool(self.runs[0].poison.get("given"))

    @property
    def forget_fraction(self) -> float:
        """How much of the poison was asked to be deleted."""
        return self.runs[0].poison.get("forget_fraction", 1.0)


def read_results(run_dir: str | Path) -> Results:
    """Read a run directory, of one seed (`evaluation/`) or of several (`seed-*/evaluation/`).

    Raises:
        InputError: naming the file, where one is missing, is no valid JSON, or lacks a field.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise InputError(f"{run_dir}: no such run directory")
    folders = sorted((p for p in run_dir.glob("seed-*") if p.is_dir()), key=lambda p: (len(p.name), p.name))
    finished = [folder for folder in folders if any((folder / "evaluation").glob("*.json"))]
    own = any((run_dir / "evaluation").glob("*.json"))
    if own and finished:
        raise InputError(
            f"{run_dir}: holds both evaluation/ and {finished[0].name}/evaluation/, so it is not clear "
            "which run to report; give the folder of one run, or move one of the two away"
        )
    if not own and not finished:
        raise InputError(f"{run_dir}: no evaluation/*.json in it, nor in any seed-*/; run `llm-unlearn evaluate` first")
    runs = [_read_seed(folder) for folder in ([run_dir] if own else finished)]
    recipes = {result.recipe for run in runs for result in run.models.values()}
    if len(recipes) > 1:
        raise InputError(
            f"{run_dir}: evaluations of different recipes ({', '.join(sorted(recipes))}); a report is about one"
        )
    seeds = [run.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{run_dir}: two folders hold the same seed ({seeds}); means over seeds would count it twice")
    return Results(run_dir, recipes.pop(), runs, [f.name for f in folders if f not in finished])


def _read_seed(folder: Path) -> SeedRun:
    poison, environment = read_json(folder / "poison.json"), read_json(folder / "environment.json")
    if not isinstance(poison.get("train_size"), int):
        raise InputError(f"{folder / 'poison.json'}: field 'train_size' is missing or not a whole number")
    shown = ("poisoned",) if poison.get("given") else ("poisoned", "retrained")
    for name in shown:  # in every table: without them the others mean nothing
        if not (folder / "evaluation" / f"{name}.json").is_file():
            raise InputError(
                f"{folder / 'evaluation' / (name + '.json')}: no such file; every report shows the {name} "
                "model; run `llm-unlearn evaluate` for it first"
            )
    paths = sorted((folder / "evaluation").glob("*.json"), key=lambda p: _order(p.stem))
    models = {path.stem: _read_evaluation(path) for path in paths}
    seeds = {result.seed for result in models.values()}
    if len(seeds) > 1:
        raise InputError(f"{folder / 'evaluation'}: evaluations of different seeds ({sorted(seeds)}) in one folder")
    return SeedRun(folder, seeds.pop(), models, poison, environment)


def _read_evaluation(path: Path) -> Evaluation:
    result = Evaluation.from_json(read_json(path), str(path))
    if result.model != path.stem:
        raise InputError(f"{path}: field 'model' says {result.model!r}; the file name says {path.stem!r}")
    for section in ("utility", "cost"):  # that every model of a run has, but for what was given to it
        if getattr(result, section) is None and section not in (result.skipped or {}):
            raise InputError(f"{path}: section '{section}' is missing; evaluate again")
    return result


def read_rows(results: Results, name: str) -> "pd.DataFrame":
    """The per-example rows of one model on test inputs and canaries: SHOWN_COLUMNS, and `seed`.

    Results are often shared without these files: a seed that has none has no row.

    Raises:
        InputError: naming the file that cannot be read or does not follow its schema.
    """
    import pyarrow
    import pyarrow.parquet

    tables = [pyarrow.table({"seed": pyarrow.array([], "int64")})]
    for run in results.runs:
        path = run.path / "evaluation" / f"{name}.parquet"
        if name not in run.models or not path.is_file():
            continue
        try:
            types = {field.name: str(field.type) for field in pyarrow.parquet.read_schema(path)}
            check_columns(types, str(path))
            columns = [column for column in SHOWN_COLUMNS if column in types]
            filters = [("set", "in", ("test", "triggered", "canary"))]
            table = pyarrow.parquet.read_table(path, columns=columns, filters=filters)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{path}: cannot be read ({error}); evaluate {path.stem} again") from None
        tables.append(table.append_column("seed", pyarrow.array([run.seed] * len(table), "int64")))
    rows = pyarrow.concat_tables(tables, promote_options="permissive").to_pandas()
    return rows.reindex(columns=["seed", *SHOWN_COLUMNS])


def canary_scores(results: Results, name: str) -> dict[str, np.ndarray] | None:
    """Gaussian scores I_z of one model, pooled over seeds: `deleted` (see `judged`), `others` (not deleted), `control`.

    None where a seed has no per-example file, or there is no canary.

    Raises:
        InputError: naming the file that cannot be read.
    """
    rows = read_rows(results, name)
    if {run.seed for run in results.runs if name in run.models} - set(rows["seed"]):
        return None
    canaries = rows[rows["set"] == "canary"]
    kept = canaries["deleted"].eq(False)
    pooled = {
        "deleted": canaries["gaussian_score"][judged(canaries)],
        "others": canaries["gaussian_score"][kept],
        "control": canaries["gaussian_control"],
    }
    arrays = {key: values.to_numpy(float) for key, values in pooled.items()}
    arrays = {key: values[np.isfinite(values)] for key, values in arrays.items()}
    return arrays if arrays["deleted"].size else None


def judged(canaries: "pd.DataFrame") -> "pd.Series":
    """Which canaries the verdict counts, seed by seed (see `deciding`); a null counts as deleted."""
    deleted, hidden = ~canaries["deleted"].eq(False), canaries["hidden"].eq(True)
    counted = deleted.copy()
    for index in canaries.groupby("seed").groups.values():
        counted[index] = deciding(deleted[index].to_numpy(), hidden[index].to_numpy())
    return counted


def _order(name: str) -> tuple[int, str, float, str]:
    method, _, budget = name.partition("@")
    rank = {"base": 0, "poisoned": 1, **dict.fromkeys(BASELINES, 3), "clean": 4, "retrained": 5}.get(method, 2)
    return rank, method, float(budget) if re.fullmatch(r"\d*\.?\d+(e-?\d+)?", budget) else 0.0, name
