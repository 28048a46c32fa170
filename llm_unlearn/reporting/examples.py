"""The single examples behind a model's figures: inputs on which the attack still succeeds, canaries by their score.

They come from `evaluation/<model>.parquet`, their texts from `data/`. Results are often shared without the two: what is
absent is listed, and fails nothing.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llm_unlearn.errors import InputError
from llm_unlearn.files import read_json
from llm_unlearn.reporting.run_results import ONE_PERCENT, Results, SeedRun, read_signals

MAX_SHOWN = 20  # examples of a kind on one page
_COLUMNS = ("set", "example_id", "label", "prediction", "target_hit", "clean_hit", "gaussian_score", "deleted")
Row = dict[str, Any]
Rows = dict[str, dict[int, Row]]  # set → example_id → row


@dataclass(frozen=True)
class Example:
    """One row of the per-example table beside the same row of other models.

    Args:
        row: of the model.
        clean: the same input without the attack, or {}.
        poisoned: the same row of the poisoned model, or {}.
        retrained: the same row of the retrained model, or {}.
        text: the input as the model saw it, None where it is not known.
    """

    seed: int
    row: Row
    clean: Row
    poisoned: Row
    retrained: Row
    text: str | None = None

    @property
    def example_id(self) -> int:
        return self.row["example_id"]

    @property
    def label(self) -> str:
        return str(self.row.get("label", "–"))

    @property
    def score(self) -> float:
        return self.row["gaussian_score"]

    @property
    def oracle_hit(self) -> bool | None:
        """Whether the retrained model falls for the attack too; None where that is not known."""
        return self.retrained.get("target_hit")


@dataclass(frozen=True)
class Successes:
    """Inputs that get the attacker's answer with the attack and not without it.

    Args:
        shown: the first of them, those that the retrained model resists before the others.
        n: inputs with the attack.
        count: how many succeed.
        oracle: how many of those sway the retrained model too; None where that is not known of all.
        either_way: how many get the answer without the attack too.
        absent: why a seed has nothing to show.
    """

    shown: list[Example]
    n: int
    count: int
    oracle: int | None
    either_way: int
    absent: list[str]


@dataclass(frozen=True)
class Canaries:
    """Deleted canaries that have a score.

    Args:
        shown: those with the highest scores.
        n: how many there are, of so many `seeds`.
        above: how many have a score above ONE_PERCENT.
        mean: of the scores.
        absent: why a seed has nothing to show.
    """

    shown: list[Example]
    n: int
    seeds: int
    above: int
    mean: float
    absent: list[str]


@dataclass
class Examples:
    """Reads the per-example files of a run; those that every model is set beside are kept."""

    results: Results
    _kept: dict[Path, Rows | None] = field(default_factory=dict)

    def successes(self, name: str) -> Successes:
        """The inputs on which the attack still succeeds, over all seeds.

        Raises:
            InputError: naming the file that cannot be read.
        """
        tried: list[tuple[Example, bool, bool]] = []
        absent = []
        for run in self._runs(name):
            rows = self._rows(run, name)
            outcomes = [(e, bool(e.row["target_hit"]), bool(e.clean["target_hit"])) for e in self._attacked(run, rows)]
            absent += [] if outcomes else [self._absent(run, name, rows, "no answers to inputs with the attack")]
            tried += outcomes
        found = [example for example, hit, clean_hit in tried if hit and not clean_hit]
        known = [example.oracle_hit for example in found if example.oracle_hit is not None]
        shown = self._with_texts(_by_turns(found)[:MAX_SHOWN], "triggered")
        either_way = sum(hit and clean_hit for _, hit, clean_hit in tried)
        oracle = sum(known) if len(known) == len(found) else None
        return Successes(shown, len(tried), len(found), oracle, either_way, absent)

    def _attacked(self, run: SeedRun, rows: Rows | None) -> list[Example]:
        """The inputs with the attack; of a target image the one without it is its control, whose answer is not "
        "known.
        """
        found = []
        for i, row in (rows or {}).get("triggered", {}).items():
            clean = (rows or {}).get("test", {}).get(i, {})
            if row.get("clean_hit") is not None:
                clean = {"target_hit": row["clean_hit"]}
            if row.get("target_hit") is not None and clean.get("target_hit") is not None:
                found.append(Example(run.seed, row, clean, {}, self._beside(run, "retrained", "triggered", i)))
        return found

    def canaries(self, name: str) -> Canaries:
        """The deleted canaries of one model over all seeds, the highest score first.

        Raises:
            InputError: naming the file that cannot be read.
        """
        found: list[Example] = []
        absent = []
        for run in self._runs(name):
            rows = self._rows(run, name)
            scored = [row for row in (rows or {}).get("canary", {}).values() if _is_scored(row)]
            absent += [] if scored else [self._absent(run, name, rows, "no deleted canary with a score")]
            for row in scored:
                poisoned, retrained = (
                    beside if _is_scored(beside := self._beside(run, name, "canary", row["example_id"])) else {}
                    for name in ("poisoned", "retrained")
                )
                found.append(Example(run.seed, row, {}, poisoned, retrained))
        highest = sorted(found, key=lambda example: -example.score)[:MAX_SHOWN]
        mean = sum(example.score for example in found) / len(found) if found else 0.0
        above = sum(example.score > ONE_PERCENT for example in found)
        seeds = len({example.seed for example in found})
        return Canaries(self._with_texts(highest, "train"), len(found), seeds, above, mean, absent)

    def _runs(self, name: str) -> list[SeedRun]:
        return [run for run in self.results.runs if name in run.models]

    def _rows(self, run: SeedRun, name: str) -> Rows | None:
        path = run.path / "evaluation" / f"{name}.parquet"
        if name not in ("poisoned", "retrained"):
            return read_rows(path)
        if path not in self._kept:
            self._kept[path] = read_rows(path)
        return self._kept[path]

    def _beside(self, run: SeedRun, name: str, part: str, example_id: int) -> Row:
        return (self._rows(run, name) or {}).get(part, {}).get(example_id, {})

    def _absent(self, run: SeedRun, name: str, rows: Rows | None, what: str) -> str:
        """Why a seed has nothing to show, in words."""
        place = (run.path / "evaluation" / f"{name}.parquet").relative_to(self.results.run_dir).as_posix()
        return f"{place} is not there" if rows is None else f"{place} holds {what}"

    def _with_texts(self, shown: list[Example], part: str) -> list[Example]:
        """The examples with the text that `data/<part>` has of them."""
        texts: dict[tuple[int, int], str] = {}
        for run in self.results.runs:
            if ids := {example.example_id for example in shown if example.seed == run.seed}:
                found = read_texts(run.path / "data" / part, ids)
                texts |= {(run.seed, i): text for i, text in found.items()}
        return [replace(example, text=texts.get((example.seed, example.example_id))) for example in shown]


def read_rows(path: Path, sets: Collection[str] = ("test", "triggered", "canary")) -> Rows | None:
    """The rows of some sets of a per-example file; None where there is no such file.

    Raises:
        InputError: naming the file, where it cannot be read.
    """
    table = read_signals(path, _COLUMNS)
    if table is None:
        return None
    rows: Rows = {}
    for row in table.to_pylist():
        if row["set"] in sets:
            rows.setdefault(row["set"], {})[row["example_id"]] = row
    return rows


def read_texts(folder: Path, ids: Collection[int]) -> dict[int, str]:
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
        texts: dict[int, str] = {}
        for path in paths if all(path.is_file() for path in paths) else ():
            with pyarrow.memory_map(str(path)) as source:  # only the rows that are shown are taken into memory
                table = pyarrow.ipc.open_stream(source).read_all()
                column = next((name for name in ("text", "prompt") if name in table.column_names), None)
                if column is None:
                    return {}
                keys = table["example_id"]
                part = table.filter(pyarrow.compute.is_in(keys, value_set=pyarrow.array(sorted(ids), keys.type)))
                texts |= dict(zip(part["example_id"].to_pylist(), part[column].to_pylist(), strict=True))
    except (pyarrow.ArrowException, OSError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: cannot be read ({error}); restore it, or move it away to have the report without its texts"
        ) from None
    return texts


def _by_turns(found: list[Example]) -> list[Example]:
    """Those that the retrained model resists first, where its answer to all is known; of each kind one from every seed
    by turns, or the first seed alone would fill a page.
    """
    places: Counter[tuple[bool, int]] = Counter()
    keyed = []
    all_known = all(example.oracle_hit is not None for example in found)
    for example in found:
        sways = bool(all_known and example.oracle_hit)
        keyed.append(((sways, places[sways, example.seed], example.seed), example))
        places[sways, example.seed] += 1
    return [example for _, example in sorted(keyed, key=lambda pair: pair[0])]


def _is_scored(row: Row) -> bool:
    """Whether a canary is deleted (a null counts as deleted) and has a finite score."""
    score = row.get("gaussian_score")
    return row.get("deleted") is not False and score is not None and abs(score) < float("inf")
