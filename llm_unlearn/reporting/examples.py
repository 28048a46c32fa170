"""The single examples behind a model's figures: inputs on which the attack still succeeds, canaries by their score.

They come from `evaluation/<model>.parquet`, their texts from `data/`. Results are often shared without the two: what is
absent is listed, and fails nothing.
"""

import math
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.errors import InputError
from llm_unlearn.files import read_json
from llm_unlearn.reporting.contents import Section
from llm_unlearn.reporting.formats import number, p_value, percent
from llm_unlearn.reporting.run_results import ONE_PERCENT, Results, judged
from llm_unlearn.reporting.tables import Cell, Table
from llm_unlearn.reporting.words import attack_words, target

if TYPE_CHECKING:
    import pandas as pd

MAX_SHOWN = 20  # examples of a kind on one page
_FAR_BELOW = -3.29  # of the mean over its standard error: the lower half of the Gaussian test at 0.001
Reader = Callable[[str], "pd.DataFrame"]  # model → its rows, see `read_rows`


def attack_examples(results: Results, read: Reader, name: str) -> Section | None:
    """The inputs that get the attacker's answer with the attack and not without it; None in a run without an attack.

    Raises:
        InputError: naming the file that cannot be read.
    """
    if not results.has_attack:
        return None
    words, tried, beside = attack_words(results), _attacked(read, name), name != "retrained"
    hit = tried["target_hit"].eq(True)
    found = tried[hit & tried["clean_hit"].eq(False)]
    known = bool(found["oracle_hit"].notna().all())
    # those that the retrained model resists come first, as the poison's own work; of each kind one of every seed by
    # turns, or the first seed alone would fill a page
    found = found.assign(oracle_too=found["oracle_hit"].eq(True) & known)
    found = found.assign(turn=found.groupby(["oracle_too", "seed"]).cumcount())
    shown = found.sort_values(["oracle_too", "turn", "seed"], kind="stable")[:MAX_SHOWN]
    oracle, texts = int(found["oracle_too"].sum()), _texts(results, shown, "triggered")
    without = f"not without the {words.name}" if words.clean_answer else "not on the control"
    counts = {
        words.inputs: str(len(tried)),
        f"get “{target(results)}”, and {without}": f"{len(found)} ({percent(len(found) / max(1, len(tried)))})",
        "get it either way": str(int(hit.sum()) - len(found)),
        **({"of the former, the retrained model falls for": str(oracle) if known else "–"} if beside else {}),
        "shown, first those that it resists" if beside else "shown": str(len(shown)),
    }
    notes = _missing(results, name, tried, "no answers to inputs with the attack")
    notes += _without_text(results, shown, texts, "triggered")
    if beside and not known:
        notes.append("Not all answers of the retrained model are known (evaluation/retrained.parquet).")
    elif beside and oracle and results.forget_fraction < 1:
        notes.append("The retrained model was trained on the poison that was not deleted.")
    columns = {"input": _text_cells(texts), "true label": map(_word, shown["label"])}
    columns |= {words.answer: map(_word, shown["prediction"])}
    columns |= {words.clean_answer: map(_word, shown["clean_answer"])} if words.clean_answer else {}
    if beside:
        hits = [{None: "", True: "falls for it too", False: "resists"}[hit] for hit in _plain(shown["oracle_hit"])]
        columns["retrained model's answer"] = map(_word, shown["oracle_answer"], hits)
    title = f"{words.inputs.capitalize()} that still succeed"
    return _section(results, name, title, notes, counts if len(tried) else {}, shown, columns)


def canary_examples(results: Results, read: Reader, name: str) -> Section | None:
    """The deleted canaries with the highest Gaussian scores; None in a run without canaries.

    Raises:
        InputError: naming the file that cannot be read.
    """
    if not results.has_gus:
        return None
    found = _scored(read, name)
    shown = found.sort_values("gaussian_score", ascending=False, kind="stable")[:MAX_SHOWN]
    scores, texts, counts = shown["gaussian_score"], _texts(results, shown, "train"), {}
    notes = _missing(results, name, found, "no deleted canary with a score")
    if n := len(found):
        mean, p = found["gaussian_score"].mean(), upper_tail(scores.iloc[0])
        counts = {
            "deleted canaries": str(n),
            "seeds": str(found["seed"].nunique()),
            f"score above {number(ONE_PERCENT)}": str((found["gaussian_score"] > ONE_PERCENT).sum()),
            "expected of N(0, 1)": number(n / 100, 1 if n >= 100 else 2),
            "mean": number(mean),
            "highest": number(scores.iloc[0]),
            "p of one draw": p_value(p),
            f"p of the highest of {n}": p_value(of_maximum(p, n)),
            "shown": str(len(shown)),
        }
        if mean * math.sqrt(n) < _FAR_BELOW:
            notes.append(
                "The mean is far below 0: the noise was pushed out past the point of never having been seen, a trace "
                "too, which the highest scores do not show."
            )
    notes += _without_text(results, shown, texts, "train")
    columns: dict[str, Iterable[Cell]] = {"score": [Cell(number(score), sort=score) for score in scores]}
    columns["p (one-sided)"] = [Cell(p_value(upper_tail(score)), sort=upper_tail(score)) for score in scores]
    for other in ("poisoned", "retrained"):
        if other != name and other in results.names:
            theirs = _beside(_scored(read, other), shown, "gaussian_score")
            columns[f"score on {other}"] = [Cell(number(score), sort=score) for score in theirs]
    columns |= {"training label": map(_word, shown["label"]), "training text": _text_cells(texts)}
    return _section(results, name, "Canaries with the highest score", notes, counts, shown, columns)


def upper_tail(score: float) -> float:
    """P(Z ≥ score) of a Z from N(0, 1): the one-sided p-value of one score.

    Examples:
        >>> round(upper_tail(2.3263), 4)
        0.01
    """
    return math.erfc(score / math.sqrt(2)) / 2


def of_maximum(p: float, n: int) -> float:
    """1 − (1 − p)ⁿ: the chance that the largest of n independent draws is as extreme as one with p-value p.

    Examples:
        >>> round(of_maximum(0.01, 100), 3)
        0.634
    """
    return 1.0 if p >= 1 else -math.expm1(n * math.log1p(-p))


# ---- rows


def _attacked(read: Reader, name: str) -> "pd.DataFrame":
    """The inputs with the attack beside the same without it (a target image has its control's hit itself)."""
    rows, oracle = read(name), read("retrained")
    test, tried = rows[rows["set"] == "test"], rows[rows["set"] == "triggered"]
    clean = [_beside(test, tried, "target_hit"), _plain(tried["clean_hit"])]
    tried = tried.assign(
        clean_hit=[same if control is None else control for same, control in zip(*clean, strict=True)],
        clean_answer=_beside(test, tried, "prediction"),
        oracle_hit=_beside(oracle[oracle["set"] == "triggered"], tried, "target_hit"),
        oracle_answer=_beside(oracle[oracle["set"] == "triggered"], tried, "prediction"),
    )
    return tried[tried["target_hit"].notna() & tried["clean_hit"].notna()]


def _scored(read: Reader, name: str) -> "pd.DataFrame":
    """The canaries that the verdict counts and that have a finite score."""
    rows = read(name)
    rows = rows[rows["set"] == "canary"]
    return rows[judged(rows) & np.isfinite(rows["gaussian_score"].astype(float))]


def _beside(others: "pd.DataFrame", rows: "pd.DataFrame", column: str) -> list[Any]:
    """What other rows hold of the same examples, None where they hold nothing."""
    keys = zip(others["seed"], others["example_id"], strict=True)
    known = dict(zip(keys, _plain(others[column]), strict=True))
    return [known.get(key) for key in zip(rows["seed"], rows["example_id"], strict=True)]


def _plain(values: Iterable[Any]) -> list[Any]:
    return [None if value != value else value for value in values]  # NaN differs from itself


def _missing(results: Results, name: str, rows: "pd.DataFrame", what: str) -> list[str]:
    """Which seeds have no such row, and why."""
    paths = [
        run.path / "evaluation" / f"{name}.parquet"
        for run in results.runs
        if name in run.models and run.seed not in set(rows["seed"])
    ]
    places = [path.relative_to(results.run_dir).as_posix() for path in paths]
    absent = [
        f"{place} {f'holds {what}' if path.is_file() else 'is not there'}"
        for place, path in zip(places, paths, strict=True)
    ]
    if not absent:
        return []
    return [
        f"Not shown for lack of per-example signals: {'; '.join(absent)}. Results are often shared without them; run "
        "the recipe again to have them."
    ]


# ---- texts and tables


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

    if not ids or not (folder / "state.json").is_file():
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


def _texts(results: Results, shown: "pd.DataFrame", part: str) -> list[str | None]:
    """The text that `data/<part>` has of each example."""
    groups = {
        run.seed: read_texts(run.path / "data" / part, set(shown["example_id"][shown["seed"] == run.seed]))
        for run in results.runs
    }
    return [groups[seed].get(i) for seed, i in zip(shown["seed"], shown["example_id"], strict=True)]


def _without_text(results: Results, shown: "pd.DataFrame", texts: list[str | None], part: str) -> list[str]:
    """Where the inputs are that a table shows by their numbers alone."""
    if len(shown) and results.images:
        folder = "test" if part == "triggered" else part
        return [f"Images are not shown here; a number is the example_id of a row of data/{folder}."]
    without = {seed for seed, text in zip(shown["seed"], texts, strict=True) if text is None}
    folders = [run.path / "data" / part for run in results.runs if run.seed in without]
    places = ", ".join(folder.relative_to(results.run_dir).as_posix() for folder in folders)
    return [f"Texts that are not in {places} are not shown; a number is the example_id of a row there."] * bool(places)


def _text_cells(texts: list[str | None]) -> list[Cell]:
    return [Cell(text or "–", look="text") for text in texts] if any(texts) else []


def _word(text: str | None, detail: str = "") -> Cell:
    return Cell("–" if text is None or text != text else str(text), detail, look="words")


def _section(
    results: Results,
    name: str,
    title: str,
    notes: list[str],
    counts: dict[str, str],
    shown: "pd.DataFrame",
    columns: dict[str, Iterable[Cell]],
) -> Section:
    """The counts in a row, then the examples, each named by its id; the seed is a column where there are several."""
    found = {"seed": [Cell(str(seed)) for seed in shown["seed"]]} if len(results.runs) > 1 else {}
    found |= {head: cells for head, column in columns.items() if (cells := list(column))}
    rows = [(str(i), list(cells)) for i, *cells in zip(shown["example_id"], *found.values(), strict=True)]
    row = (name, [Cell(text) for text in counts.values()])
    tables = [Table([(head, "") for head in counts], [row], sortable=False)]
    tables += [Table([(head, "") for head in found], rows, head="example")] if rows else []
    return Section(title, " ".join(notes), tables if counts else [])
