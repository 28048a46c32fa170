"""Read what a run left behind (one seed or several), check it at the door, and give it one shape."""

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_unlearn.errors import InputError

SCHEMA_VERSION = 1
# What a model's evaluation must say; a section may be null where its poison or its oracle is absent.
_SECTIONS = {
    "attack": ("success_rate", "clean_rate", "lift", "n"),
    "gus": ("mean", "n", "p_value", "control"),
    "utility": ("accuracy",),
    "mia": (),
    "cost": ("train_tokens", "share_of_training", "seconds"),
    "oracle": (),
}
_NEVER_NULL = ("utility", "cost")
PLAIN = ("base", "poisoned", "clean", "retrained")  # models that no method made
ONE_PERCENT = 2.3263478740408408  # Φ⁻¹(0.99): a Gaussian score above it is a find at 1 % false positives
BASELINES = ("rewind", "reset_distill")  # that start before the poison: what a method must beat
_IDENTIFIERS = ("schema_version", "seed", "budget")


@dataclass(frozen=True)
class SeedRun:
    """One seed: `models` maps a model's name to its evaluation, in the order of the table."""

    path: Path
    seed: int
    models: dict[str, dict]
    poison: dict
    environment: dict


@dataclass(frozen=True)
class Results:
    """Everything a report is made of. `runs` holds one entry per seed."""

    run_dir: Path
    recipe: str
    runs: list[SeedRun]
    unfinished: list[str]  # seed folders without any evaluation yet

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

    def docs(self, name: str) -> list[dict]:
        """The evaluations of one model, one per seed that has it."""
        return [run.models[name] for run in self.runs if name in run.models]

    def has(self, section: str) -> bool:
        """Whether any model has this section (`attack`, `gus`, `mia`, `oracle`)."""
        return any(doc.get(section) for run in self.runs for doc in run.models.values())


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
    recipes = {doc["recipe"] for run in runs for doc in run.models.values()}
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
    models = {}
    for name in ("poisoned", "retrained"):  # every table shows both: without them the others mean nothing
        if not (folder / "evaluation" / f"{name}.json").is_file():
            raise InputError(
                f"{folder / 'evaluation' / (name + '.json')}: no such file; every report shows the {name} "
                "model; run `llm-unlearn evaluate` for it first"
            )
    for path in sorted((folder / "evaluation").glob("*.json"), key=lambda p: _order(p.stem)):
        models[path.stem] = _read_evaluation(path)
    seeds = {doc["seed"] for doc in models.values()}
    if len(seeds) > 1:
        raise InputError(f"{folder / 'evaluation'}: evaluations of different seeds ({sorted(seeds)}) in one folder")
    return SeedRun(folder, seeds.pop(), models, poison, environment)


def _read_evaluation(path: Path) -> dict:
    doc = read_json(path)
    if doc.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema_version is {doc.get('schema_version')!r}, this version reads "
            f"{SCHEMA_VERSION}; evaluate again"
        )
    if doc.get("model") != path.stem:
        raise InputError(f"{path}: field 'model' says {doc.get('model')!r}; the file name says {path.stem!r}")
    if not isinstance(doc.get("seed"), int) or not isinstance(doc.get("recipe"), str):
        raise InputError(f"{path}: fields 'seed' (a whole number) and 'recipe' (its name) are required; evaluate again")
    for section, fields in _SECTIONS.items():
        content = doc.get(section)
        if section not in doc or (content is None and section in _NEVER_NULL):
            raise InputError(f"{path}: section '{section}' is missing; evaluate again")
        if content is None:
            continue
        if not isinstance(content, dict):
            raise InputError(f"{path}: section '{section}' is no mapping but {type(content).__name__}")
        for field in fields:
            if field not in content:
                raise InputError(f"{path}: field '{section}.{field}' is missing; evaluate again")
            ok = isinstance(content[field], (dict, type(None)) if field == "control" else (int, float))
            if section in ("attack", "gus") and isinstance(content[field], float):
                ok = math.isfinite(content[field])  # NaN would pass every test, as it is below no threshold
            if not ok and not (section == "utility" and content[field] is None):
                raise InputError(
                    f"{path}: field '{section}.{field}' is no usable number but {content[field]!r}; evaluate again"
                )
    return doc


def read_json(path: Path) -> dict:
    """Read a JSON object. Raises InputError naming the file where it is missing or damaged."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; the run that should have written it is not complete: run it again")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); delete it and run that stage again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def flatten(doc: dict, prefix: str = "") -> dict[str, float]:
    """Every number in a nested mapping under its dotted name, e.g. `gus.tpr_at_fpr.0.01`.

    Identifiers (seed, budget, schema_version) and intervals (lists) are left out: a mean of either says nothing.
    """
    flat: dict[str, float] = {}
    for key, value in doc.items():
        if not prefix and key in _IDENTIFIERS:
            continue
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = float(value)
    return flat


def canary_scores(results: Results, name: str) -> dict[str, np.ndarray] | None:
    """Gaussian scores I_z of one model, pooled over seeds: `deleted`, `others` (not deleted) and `control`.

    Returns None where a Parquet file is absent (results are often shared as JSON alone) or holds no canary.
    Raises InputError naming the file where it cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    columns = ["set", "gaussian_score", "gaussian_control", "deleted"]
    pooled: dict[str, list[np.ndarray]] = {"deleted": [], "others": [], "control": []}
    for run in results.runs:
        if name not in run.models:
            continue
        path = run.path / "evaluation" / f"{name}.parquet"
        if not path.is_file():
            return None
        try:
            table = pyarrow.parquet.read_table(path, columns=columns)
            frame = {column: np.array(table[column].to_pylist(), dtype=object) for column in columns}
        except (pyarrow.ArrowException, OSError, KeyError) as error:
            raise InputError(f"{path}: cannot be read ({error}); evaluate {name} again") from None
        canary = frame["set"] == "canary"
        kept = canary & (frame["deleted"] == False)  # noqa: E712  elementwise: null counts as deleted
        pooled["deleted"].append(frame["gaussian_score"][canary & ~kept])
        pooled["others"].append(frame["gaussian_score"][kept])
        pooled["control"].append(frame["gaussian_control"][canary])
    arrays = {key: _numbers(parts) for key, parts in pooled.items()}
    return arrays if arrays["deleted"].size else None


def _numbers(parts: list[np.ndarray]) -> np.ndarray:
    values = [v for part in parts for v in part if v is not None and math.isfinite(v)]
    return np.array(values, dtype=float)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside its place, then rename it: readers see the old one or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _order(name: str) -> tuple[int, str, float, str]:
    method, _, budget = name.partition("@")
    rank = {"base": 0, "poisoned": 1, **dict.fromkeys(BASELINES, 3), "clean": 4, "retrained": 5}.get(method, 2)
    return rank, method, float(budget) if re.fullmatch(r"\d*\.?\d+(e-?\d+)?", budget) else 0.0, name
