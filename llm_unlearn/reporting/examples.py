"""The single examples behind a model's figures: triggered inputs that still succeed, and canaries by their score.

They come from `evaluation/<model>.parquet`, their texts from `data/`. Results are often shared without the two: what is
absent is listed, and fails nothing.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llm_unlearn.errors import InputError
from llm_unlearn.reporting.results import ONE_PERCENT, Results, SeedRun, read_json, read_signals

MAX_SHOWN = 20  # examples of a kind on one page
_COLUMNS = ("set", "example_id", "label", "prediction", "target_hit", "clean_hit", "gaussian_score", "deleted")
_ANSWERS, _CANARIES = ("test", "triggered"), ("canary",)  # the sets that are read
Rows = dict[str, dict[int, dict[str, Any]]]  # set → example_id → row


@dataclass(frozen=True)
class Success:
    """A test input that gets the attacker's answer with the trigger, and not without it.

    Args:
        answer: of the model, with the trigger.
        clean_answer: without the trigger; None where that is another input's.
        oracle_answer: of the retrained model, with the trigger; None where it is not known.
        oracle_hit: whether that is the attacker's; None where it is not known.
        text: with the trigger in, None where it is not known.
    """

    seed: int
    example_id: int
    label: str
    answer: str | None
    clean_answer: str | None
    oracle_answer: str | None
    oracle_hit: bool | None
    text: str | None = None


@dataclass(frozen=True)
class Successes:
    """Those to be shown, in order; and over all triggered inputs: how many they are, how many succeeded, of those how
    many sway the retrained model too (None where that is not known), and how many get the answer either way."""

    shown: list[Success]
    n: int
    count: int
    oracle: int | None
    either_way: int
    absent: list[str]


@dataclass(frozen=True)
class Canary:
    """A deleted canary, with its Gaussian score on this model, on the poisoned and on the retrained one."""

    seed: int
    example_id: int
    label: str
    score: float
    poisoned: float | None
    retrained: float | None
    text: str | None = None


@dataclass(frozen=True)
class Canaries:
    """Those to be shown, the highest score first; and over all deleted canaries that have a score: how many they are,
    of how many seeds, how many are above ONE_PERCENT, and their mean."""

    shown: list[Canary]
    n: int
    seeds: int
    above: int
    mean: float
    absent: list[str]


@dataclass
class Examples:
    """Reads the per-example files of a run; those that every model is set beside are kept."""

    results: Results
    _kept: dict[tuple, Rows | None] = field(default_factory=dict)

    def successes(self, name: str) -> Successes:
        """The triggered inputs of one model over all seeds, those that the retrained model resists first.

        Raises:
            InputError: naming the file that cannot be read.
        """
        found: list[Success] = []
        n = either_way = 0
        absent = []
        for run in self._runs(name):
            rows = self._rows(run, name, _ANSWERS)
            outcomes = _outcomes(rows)
            if not outcomes:
                absent.append(self._absent(run, name, rows, "no answers to inputs with the attack"))
                continue
            oracle = (self._rows(run, "retrained", _ANSWERS) or {}).get("triggered", {})
            n += len(outcomes)
            either_way += sum(hit and clean_hit for _, _, hit, clean_hit in outcomes)
            found += [
                _success(run.seed, row, clean_answer, oracle.get(row["example_id"], {}))
                for row, clean_answer, hit, clean_hit in outcomes
                if hit and not clean_hit
            ]
        known = [success.oracle_hit for success in found if success.oracle_hit is not None]
        shown = self._with_texts(_by_turns(found)[:MAX_SHOWN], "triggered")
        return Successes(shown, n, len(found), sum(known) if len(known) == len(found) else None, either_way, absent)

    def canaries(self, name: str) -> Canaries:
        """The deleted canaries of one model over all seeds, the highest score first.

        Raises:
            InputError: naming the file that cannot be read.
        """
        found: list[Canary] = []
        absent = []
        for run in self._runs(name):
            rows = self._rows(run, name, _CANARIES)
            scored = _scored(rows)
            if not scored:
                absent.append(self._absent(run, name, rows, "no deleted canary with a score"))
            beside = {other: _scored(self._rows(run, other, _CANARIES)) for other in ("poisoned", "retrained")}
            for i, row in scored.items():
                others = (beside[other].get(i, {}).get("gaussian_score") for other in ("poisoned", "retrained"))
                found.append(Canary(run.seed, i, str(row.get("label", "–")), row["gaussian_score"], *others))
        highest = sorted(found, key=lambda canary: -canary.score)[:MAX_SHOWN]
        mean = sum(canary.score for canary in found) / len(found) if found else 0.0
        above = sum(canary.score > ONE_PERCENT for canary in found)
        seeds = len({canary.seed for canary in found})
        return Canaries(self._with_texts(highest, "train"), len(found), seeds, above, mean, absent)

    def _runs(self, name: str) -> list[SeedRun]:
        return [run for run in self.results.runs if name in run.models]

    def _rows(self, run: SeedRun, name: str, sets: tuple[str, ...]) -> Rows | None:
        path = run.path / "evaluation" / f"{name}.parquet"
        if name not in ("poisoned", "retrained"):
            return read_rows(path, sets)
        if (path, sets) not in self._kept:
            self._kept[path, sets] = read_rows(path, sets)
        return self._kept[path, sets]

    def _absent(self, run: SeedRun, name: str, rows: Rows | None, what: str) -> str:
        """Why a seed has nothing to show, in words."""
        place = (run.path / "evaluation" / f"{name}.parquet").relative_to(self.results.run_dir).as_posix()
        return f"{place} is not there" if rows is None else f"{place} holds {what}"

    def _with_texts(self, shown: list, part: str) -> list:
        """The examples with the text that `data/<part>` has of them."""
        texts: dict[tuple[int, int], str] = {}
        for run in self.results.runs:
            ids = {example.example_id for example in shown if example.seed == run.seed}
            found = read_texts(run.path / "data" / part, ids) if ids else {}
            texts |= {(run.seed, i): text for i, text in found.items()}
        return [replace(example, text=texts.get((example.seed, example.example_id))) for example in shown]


def read_rows(path: Path, sets: Iterable[str]) -> Rows | None:
    """The rows of some sets of a per-example file; None where there is no such file.

    Args:
        path: `evaluation/<model>.parquet`.
        sets: of its column `set`.

    Raises:
        InputError: naming the file, where it cannot be read.
    """
    table = read_signals(path, _COLUMNS)
    if table is None:
        return None
    found: Rows = {}
    for row in table.to_pylist():
        if row["set"] in sets:
            found.setdefault(row["set"], {})[row["example_id"]] = row
    return found


def read_texts(folder: Path, ids: Iterable[int]) -> dict[int, str]:
    """Texts of some rows of a dataset that `save_to_disk` wrote, by example_id; none where it is absent or of images.

    Args:
        folder: holds state.json, which names the Arrow files.
        ids: the example_id of each row wanted.

    Raises:
        InputError: naming the folder, where it cannot be read.
    """
    import pyarrow
    import pyarrow.compute
    import pyarrow.ipc

    if not (folder / "state.json").is_file():
        return {}
    try:
        paths = [folder / entry["filename"] for entry in read_json(folder / "state.json")["_data_files"]]
        found: dict[int, str] = {}
        for path in paths if all(path.is_file() for path in paths) else ():
            with pyarrow.memory_map(str(path)) as source:  # only the rows that are shown are taken into memory
                table = pyarrow.ipc.open_stream(source).read_all()
                column = next((name for name in ("text", "prompt") if name in table.column_names), None)
                if column is None:
                    return {}
                keys = table["example_id"]
                part = table.filter(pyarrow.compute.is_in(keys, value_set=pyarrow.array(sorted(ids), keys.type)))
                found |= dict(zip(part["example_id"].to_pylist(), part[column].to_pylist(), strict=True))
    except (pyarrow.ArrowException, OSError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: cannot be read ({error}); restore it, or move it away to have the report without its texts"
        ) from None
    return found


def _outcomes(rows: Rows | None) -> list[tuple[dict, str | None, bool, bool]]:
    """(row, answer without the trigger, whether it is the attacker's with the trigger, and without) of each triggered
    input; of a target image the one without is that of its control, whose answer is not known."""
    if not rows:
        return []
    found, test = [], rows.get("test", {})
    for i, row in rows.get("triggered", {}).items():
        clean = test.get(i, {}) if row.get("clean_hit") is None else {"target_hit": row["clean_hit"]}
        if row.get("target_hit") is not None and clean.get("target_hit") is not None:
            found.append((row, clean.get("prediction"), bool(row["target_hit"]), bool(clean["target_hit"])))
    return found


def _success(seed: int, row: dict, clean_answer: str | None, oracle: dict) -> Success:
    return Success(
        seed,
        row["example_id"],
        str(row.get("label", "–")),
        row.get("prediction"),
        clean_answer,
        oracle.get("prediction"),
        None if oracle.get("target_hit") is None else bool(oracle["target_hit"]),
    )


def _by_turns(found: list[Success]) -> list[Success]:
    """Those that the retrained model resists first, where its answer to all is known; of each kind one from every seed
    by turns, or the first seed alone would fill a page."""
    places: Counter = Counter()
    keyed = []
    all_known = all(success.oracle_hit is not None for success in found)
    for success in found:
        sways = all_known and success.oracle_hit
        keyed.append(((sways, places[sways, success.seed], success.seed), success))
        places[sways, success.seed] += 1
    return [success for _, success in sorted(keyed, key=lambda pair: pair[0])]


def _scored(rows: Rows | None) -> dict[int, dict]:
    """The deleted canaries that have a finite score; a null in `deleted` counts as deleted."""
    return {
        i: row
        for i, row in (rows or {}).get("canary", {}).items()
        if row.get("deleted") is not False and _finite(row.get("gaussian_score"))
    }


def _finite(value: float | None) -> bool:
    return value is not None and abs(value) < float("inf")
