"""The examples on a model's page, in a line of counts and a table: what the trigger still does, which canaries stand "
"out.
"""

import math
from dataclasses import dataclass

from llm_unlearn.reporting.examples import Canaries, Example, Examples, Successes
from llm_unlearn.reporting.formats import number, p_value, percent
from llm_unlearn.reporting.run_results import ONE_PERCENT, Results
from llm_unlearn.reporting.tables import Cell, Table
from llm_unlearn.reporting.words import Words, attack_words, target

_FAR_BELOW = -3.29  # of the mean over its standard error: the lower half of the Gaussian test at 0.001


@dataclass(frozen=True)
class Part:
    """One kind of examples: counts and notes (`paragraphs`), and the table, None where there is none."""

    title: str
    paragraphs: list[str]
    table: Table | None = None


def attack_part(examples: Examples, name: str) -> Part | None:
    """The inputs on which the attack still succeeds; None in a run that has no such attack.

    Raises:
        InputError: naming the file that cannot be read.
    """
    results = examples.results
    if not results.has_attack:
        return None
    words, found = attack_words(results), examples.successes(name)
    notes = [_successes(results, words, found, name)] if found.n else []
    notes += _missing(results, found.absent, found.shown, "triggered")
    table = _attack_table(results, words, found.shown, name) if found.shown else None
    return Part(f"{words.inputs.capitalize()} that still succeed", notes, table)


def canary_part(examples: Examples, name: str) -> Part | None:
    """The deleted canaries with the highest Gaussian scores; None in a run without canaries.

    Raises:
        InputError: naming the file that cannot be read.
    """
    results = examples.results
    if not results.has_gus:
        return None
    found = examples.canaries(name)
    notes = _scores(found) if found.n else []
    notes += _missing(results, found.absent, found.shown, "train")
    table = _canary_table(results, found.shown, name) if found.shown else None
    return Part("Canaries with the highest score", notes, table)


# ---- counts


def _successes(results: Results, words: Words, found: Successes, name: str) -> str:
    """How many succeed, how many would without the poison, and which of them are shown."""
    without = f"not without the {words.name}" if words.clean_answer else "their controls do not"
    text = (
        f"{found.count} of {found.n} {words.inputs} ({percent(found.count / found.n)}) get the attacker's answer "
        f"“{target(results)}”, and {without}; {found.either_way} more get it either way, which the poison did not do."
    )
    if not found.count:
        return text
    shown = f" Shown: {len(found.shown)} of {found.count}"
    if name == "retrained":
        return f"{text}{shown}."
    if found.oracle is None:
        return f"{text}{shown}. Not all answers of the retrained model are known (evaluation/retrained.parquet)."
    why = (
        ", having been trained on the poison that was not deleted"
        if found.oracle and results.forget_fraction < 1
        else ""
    )
    return (
        f"{text} The retrained model falls for {found.oracle} of the {found.count} too{why}.{shown}, first those that "
        "it resists: they are the poison's work."
    )


def _scores(found: Canaries) -> list[str]:
    """How many scores stand out against how many must, and how unlikely the highest is."""
    n, highest = found.n, found.shown[0].score
    p = upper_tail(highest)
    over = f" of {found.seeds} seeds" * (found.seeds > 1)
    texts = [
        f"{n} deleted canaries{over}: {found.above} with a score above {number(ONE_PERCENT)}, where draws from N(0, 1) "
        f"(no trace) give {number(n / 100, 1 if n >= 100 else 2)}; mean {number(found.mean)}; highest "
        f"{number(highest)}, which one draw reaches with p = {p_value(p)}, the highest of {n} with "
        f"{p_value(of_maximum(p, n))}. Shown: {len(found.shown)} of {n}."
    ]
    if found.mean * math.sqrt(n) < _FAR_BELOW:
        texts.append(
            "The mean is far below 0: the noise was pushed out past the point of never having been seen, a trace too, "
            "which the highest scores do not show."
        )
    return texts


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


def _missing(results: Results, absent: list[str], shown: list[Example], part: str) -> list[str]:
    """What is not shown, and why: per-example signals, texts, pictures."""
    texts = []
    if absent:
        texts.append(
            f"Not shown for lack of per-example signals: {'; '.join(absent)}. Results are often shared without them; "
            "run the recipe again to have them."
        )
    if shown and results.images:
        folder = "test" if part == "triggered" else part
        return [*texts, f"Images are not shown here; a number is the example_id of a row of data/{folder}."]
    without = {example.seed for example in shown if example.text is None}
    places = [
        (run.path / "data" / part).relative_to(results.run_dir).as_posix()
        for run in results.runs
        if run.seed in without
    ]
    if places:
        texts.append(
            f"Texts that are not in {', '.join(places)} are not shown; a number is the example_id of a row there."
        )
    return texts


# ---- tables


def _attack_table(results: Results, words: Words, shown: list[Example], name: str) -> Table:
    def cells(example: Example) -> dict[str, Cell]:
        row = {"input": Cell(example.text or "–", look="text")} if any(e.text for e in shown) else {}
        row |= {"true label": _word(example.label), words.answer: _word(example.row.get("prediction"))}
        if words.clean_answer:
            row[words.clean_answer] = _word(example.clean.get("prediction"))
        if name != "retrained":
            resists = {None: "", True: "falls for it too", False: "resists"}[example.oracle_hit]
            row["retrained model's answer"] = _word(example.retrained.get("prediction"), resists)
        return row

    return _by_example(results, shown, [cells(example) for example in shown])


def _canary_table(results: Results, shown: list[Example], name: str) -> Table:
    def cells(example: Example) -> dict[str, Cell]:
        p, beside = upper_tail(example.score), {"poisoned": example.poisoned, "retrained": example.retrained}
        row = {"score": _score(example.score), "p (one-sided)": Cell(p_value(p), sort=p)}
        row |= {f"score on {other}": _score(r.get("gaussian_score")) for other, r in beside.items() if other != name}
        row["training label"] = _word(example.label)
        return row | ({"training text": Cell(example.text or "–", look="text")} if any(e.text for e in shown) else {})

    return _by_example(results, shown, [cells(example) for example in shown])


def _score(score: float | None) -> Cell:
    return Cell(number(score), sort=score)


def _word(text: str | None, detail: str = "") -> Cell:
    return Cell("–" if text is None else text, detail, look="words")


def _by_example(results: Results, shown: list[Example], cells: list[dict[str, Cell]]) -> Table:
    """The table, each row named by its example_id, with the seed in a column of its own where there are several."""
    if len(results.runs) > 1:
        cells = [{"seed": Cell(str(example.seed)), **row} for example, row in zip(shown, cells, strict=True)]
    rows = [(str(example.example_id), list(row.values())) for example, row in zip(shown, cells, strict=True)]
    return Table([(head, "") for head in cells[0]], rows, head="example")
