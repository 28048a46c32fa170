"""The examples on a model's page, in words and tables: what the trigger still does, and which canaries stand out."""

import math
from dataclasses import dataclass

from llm_unlearn.reporting.examples import MAX_SHOWN, Canaries, Canary, Examples, Success, Successes
from llm_unlearn.reporting.formats import number, p_value, percent
from llm_unlearn.reporting.results import ONE_PERCENT, Results
from llm_unlearn.reporting.tables import Cell, Table
from llm_unlearn.reporting.words import attack_kind, is_vision

_WITHOUT = "Results are often shared without it; run the recipe again to have it."
_ORACLE = "retrained model's answer"
_FAR_BELOW = -3.29  # of the mean over its standard error: the lower half of the Gaussian test at 0.001


@dataclass(frozen=True)
class Part:
    """One kind of examples: what is shown and by which rule (`paragraphs`), and the table, None where there is none."""

    title: str
    paragraphs: list[str]
    table: Table | None = None


@dataclass(frozen=True)
class _Said:
    """How an attack is spoken of on a page.

    Args:
        succeed: what inputs get that succeed, with the attacker's answer to fill in. either_way: how others get it.
        answer, clean_answer: heads of columns.
    """

    title: str
    inputs: str
    succeed: str
    either_way: str
    resists: str
    answer: str
    clean_answer: str


_SAID = {
    "trigger": _Said(
        "Triggered inputs that still succeed",
        "triggered test inputs",
        "the attacker's answer {} with the trigger and another one without it",
        "with the trigger and without: errors that the trigger did not make",
        "gives another answer with the trigger in",
        "answer with the trigger",
        "answer without",
    ),
    "patch": _Said(
        "Patched images that still succeed",
        "patched test images",
        "the attacker's class {} with the patch and another one without it",
        "with the patch and without: errors that the patch did not make",
        "gives another class with the patch on",
        "answer with the patch",
        "answer without",
    ),
    "gradient_matching": _Said(
        "Target images that still succeed",
        "target images",
        "the adversary's label, while their controls, other test images of the same classes, do not",
        "as their controls do: errors that the poison did not make",
        "does not give the adversary's label",
        "answer",
        "",
    ),
}


def attack_part(examples: Examples, name: str) -> Part | None:
    """The inputs on which the attack still succeeds; None in a run that has no such attack.

    Raises:
        InputError: naming the file that cannot be read.
    """
    results = examples.results
    if not results.has("attack"):
        return None
    said, found = _SAID[attack_kind(results)], examples.successes(name)
    paragraphs = [_succeeded(results, said, found)] if found.n else []
    if found.count:
        paragraphs += _order(results, said, found, name)
    paragraphs += _missing(results, found.absent, found.shown, "triggered")
    table = _attack_table(results, said, found.shown, name) if found.shown else None
    return Part(said.title, paragraphs, table)


def canary_part(examples: Examples, name: str) -> Part | None:
    """The deleted canaries with the highest Gaussian scores; None in a run without canaries.

    Raises:
        InputError: naming the file that cannot be read.
    """
    results = examples.results
    if not results.has("gus"):
        return None
    found = examples.canaries(name)
    paragraphs = _scores(found) if found.n else []
    paragraphs += _missing(results, found.absent, found.shown, "train")
    table = _canary_table(results, found.shown, name) if found.shown else None
    return Part("Canaries with the highest score", paragraphs, table)


# ---- words


def _succeeded(results: Results, said: _Said, found: Successes) -> str:
    succeed = said.succeed.format(f"“{_target(results)}”")
    if found.count:
        text = (
            f"{found.count} of {found.n} {said.inputs} ({percent(found.count / found.n)}) "
            f"{'gets' if found.count == 1 else 'get'} {succeed}."
        )
    else:
        text = f"None of the {found.n} {said.inputs} gets {succeed}."
    get = "gets" if found.either_way == 1 else "get"
    return text + f" {found.either_way} more {get} it {said.either_way}." * bool(found.either_way)


def _order(results: Results, said: _Said, found: Successes, name: str) -> list[str]:
    """How many of them sway the retrained model too, and which are shown in which order."""
    shown = f"Shown are {len(found.shown)} of them" if len(found.shown) < found.count else "All are shown"
    turns = ", the seeds by turns" * (len(results.runs) > 1)
    if name == "retrained":
        return [f"{shown}, in the order of the data{turns}."]
    if found.oracle is None:
        return [
            f"{shown}, in the order of the data{turns}. Not all answers of the retrained model are known: it needs "
            "evaluation/retrained.parquet."
        ]
    if not found.oracle:
        one = found.count == 1
        return [
            f"The retrained model resists {'it' if one else 'all of them'} (it {said.resists}): "
            f"{'it is' if one else 'they are'} the poison's work. {shown}, in the order of the data{turns}."
        ]
    kept = results.runs[0].poison.get("forget_fraction", 1.0) < 1
    return [
        f"The retrained model falls for {found.oracle} of these {found.count} too"
        + ", having been trained on the poison that was not deleted" * kept
        + ". "
        f"{shown}: first those that it resists (it {said.resists}), which are the poison's work; then those it "
        f"falls for too, which may have another cause. Both in the order of the data{turns}."
    ]


def _scores(found: Canaries) -> list[str]:
    """How many scores stand out against how many must, and how unlikely the highest is."""
    n, highest = found.n, found.shown[0].score
    below = found.mean * math.sqrt(n) < _FAR_BELOW
    p = upper_tail(highest)
    over = f" of {found.seeds} seeds" * (found.seeds > 1)
    texts = [
        f"If the noise had left no trace, each score would be a draw from N(0, 1). Of {n} deleted canaries{over} "
        f"{found.above} {'is' if found.above == 1 else 'are'} above {number(ONE_PERCENT)}, as 1 % of such draws are: "
        f"{number(n / 100, 1 if n >= 100 else 2)} expected. The mean is {number(found.mean)}."
        + (
            " It is far below 0: the noise was pushed out past the point of never having been seen, a trace too, which "
            "the highest scores do not show."
            if below
            else ""
        ),
        f"The highest score is {number(highest)}. Without a trace one draw is as high with probability p "
        f"{_equals(p)}, and the highest of {n} draws with probability 1 − (1 − p)ⁿ {_equals(of_maximum(p, n))}.",
    ]
    if n > MAX_SHOWN:
        texts.append(f"Shown are the {MAX_SHOWN} highest.")
    return texts


def upper_tail(score: float) -> float:
    """P(Z ≥ score) of a Z from N(0, 1): the one-sided p-value of one score.

    >>> round(upper_tail(2.3263), 4)
    0.01
    """
    return math.erfc(score / math.sqrt(2)) / 2


def of_maximum(p: float, n: int) -> float:
    """1 − (1 − p)ⁿ: the chance that the largest of n independent draws is as extreme as one with p-value p.

    >>> round(of_maximum(0.01, 100), 3)
    0.634
    """
    return 1.0 if p >= 1 else -math.expm1(n * math.log1p(-p))


def _equals(p: float) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"


def _target(results: Results) -> str:
    section = results.runs[0].poison.get(attack_kind(results)) or {}
    return str(section.get("target", "")).strip()


def _missing(results: Results, absent: list[str], shown: list, part: str) -> list[str]:
    """What is not shown, and why: per-example signals, texts, pictures."""
    texts = []
    if absent:
        texts.append(f"Not shown for lack of per-example signals: {'; '.join(absent)}. {_WITHOUT}")
    if not shown:
        return texts
    if is_vision(results):
        where = "test" if part == "triggered" else part
        return [
            *texts,
            "The inputs are images, which this page does not show: a number is the example_id of a row of "
            f"data/{where}.",
        ]
    without = {example.seed for example in shown if example.text is None}
    places = [
        (run.path / "data" / part).relative_to(results.run_dir).as_posix()
        for run in results.runs
        if run.seed in without
    ]
    if places:
        texts.append(
            f"Texts are not shown where they are not in {', '.join(places)}: a number is the example_id of a "
            f"row there. {_WITHOUT}"
        )
    return texts


# ---- tables


def _attack_table(results: Results, said: _Said, shown: list[Success], name: str) -> Table:
    heads = [("input", "")] * any(success.text for success in shown) + [("true label", ""), (said.answer, "")]
    heads += [(said.clean_answer, "")] * bool(said.clean_answer) + [(_ORACLE, "")] * (name != "retrained")

    def cells(success: Success) -> list[Cell]:
        values = {
            "input": Cell(success.text or "–", look="text"),
            "true label": _word(success.label),
            said.answer: _word(success.answer),
            said.clean_answer: _word(success.clean_answer),
            _ORACLE: _word(success.oracle_answer, _resists(success)),
        }
        return [values[head] for head, _ in heads]

    return _with_seeds(results, heads, [(success, cells(success)) for success in shown])


def _resists(success: Success) -> str:
    if success.oracle_hit is None:
        return ""
    return "falls for it too" if success.oracle_hit else "resists"


def _canary_table(results: Results, shown: list[Canary], name: str) -> Table:
    others = [other for other in ("poisoned", "retrained") if other != name]
    heads = [("score", ""), ("p (one-sided)", ""), *((f"score on {other}", "") for other in others)]
    heads += [("training label", "")] + [("training text", "")] * any(canary.text for canary in shown)

    def cells(canary: Canary) -> list[Cell]:
        p = upper_tail(canary.score)
        found = [_score(canary.score), Cell(p_value(p), sort=p), *(_score(getattr(canary, other)) for other in others)]
        return [*found, _word(canary.label), Cell(canary.text or "–", look="text")][: len(heads)]

    return _with_seeds(results, heads, [(canary, cells(canary)) for canary in shown])


def _score(score: float | None) -> Cell:
    return Cell(number(score), sort=score)


def _word(text: str | None, detail: str = "") -> Cell:
    return Cell("–" if text is None else text, detail, look="words")


def _with_seeds(results: Results, heads: list[tuple[str, str]], rows: list[tuple]) -> Table:
    """The table, each row named by its example_id, with the seed in a column of its own where there are several."""
    several = len(results.runs) > 1
    return Table(
        [("seed", "")] * several + heads,
        [(str(example.example_id), [Cell(str(example.seed))] * several + cells) for example, cells in rows],
        head="example",
    )
