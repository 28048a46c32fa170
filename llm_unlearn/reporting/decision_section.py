"""The tests behind the verdicts: what each found, and what it would have found."""

from llm_unlearn.metrics.evidence import ALPHA, DELTA, SHARE, Decision
from llm_unlearn.metrics.findings import CHANCE, Finding, title
from llm_unlearn.reporting.contents import Section
from llm_unlearn.reporting.formats import number, p_value, percent
from llm_unlearn.reporting.run_results import Results
from llm_unlearn.reporting.tables import Cell, Table
from llm_unlearn.reporting.verdicts import judge
from llm_unlearn.reporting.words import attack_words

MARK = "‡"
_NOTE = (
    f"Figures of all seeds pooled. {MARK}: finds poison. The poisons of a model share a level of {ALPHA:g}. Of one "
    "poison's level the tests of the canaries have shares by Holm, as have the ranks among placebos before and after "
    "clean steps; the interval of a difference has it whole, and counts where its lower limit lies above what is "
    "tolerated, δ. “would be found” is, of a score, the mean that its test finds with a chance of "
    f"{percent(CHANCE, 0)} given the scores' own spread, and of a difference its upper limit. A model shows no trace "
    f"where all of these lie below δ, {SHARE:g} of the poisoned model's own figure (the whole of a GUS of at most "
    f"{DELTA['gus']:g} that the loss rank shows twice as well). It is asked only of scores that show the poison in the "
    "poisoned model; placebos and mean squares may find poison, and exclude none."
)


def decision_section(results: Results) -> Section | None:
    """Models × tests, and what each would have found; None where nothing was tested."""
    decisions = {name: judge(results, name).decision for name in results.names if name != "base"}
    keys = list(dict.fromkeys(_key(f) for decision in decisions.values() for f in decision.findings))
    if not keys:
        return None
    attack = attack_words(results).name
    tests = Table(
        [(_title(*key, attack), "") for key in keys],
        [(name, [_cell(_find(decision, key)) for key in keys]) for name, decision in decisions.items()],
    )
    asked = [key for key in keys if any((f := _find(d, key)) and f.detectable is not None for d in decisions.values())]
    limits = Table(
        [(title, _title(*key, attack)) for key in asked for title in ("would be found", "δ")],
        [
            (name, [cell for key in asked for cell in _limits(_find(decision, key))])
            for name, decision in decisions.items()
            if name != "poisoned"
        ],
    )
    return Section("The tests behind the verdicts", _NOTE, [tests, limits])


def _key(finding: Finding) -> tuple[str, int]:
    return finding.test, finding.after


def _find(decision: Decision, key: tuple[str, int]) -> Finding | None:
    return next((finding for finding in decision.findings if _key(finding) == key), None)


def _title(test: str, after: int, attack: str) -> str:
    name = title(test, attack)
    return f"{name}, after {after} clean steps" if after else name


def _cell(finding: Finding | None) -> Cell:
    if finding is None:
        return Cell("–")
    if finding.interval:
        detail = f"[{number(finding.interval.low)}, {number(finding.interval.high)}]"
    else:
        detail = f"p {p_value(1.0 if finding.p_value is None else finding.p_value)}"
    return Cell(number(finding.effect) + f" {MARK}" * finding.rejects, detail, sort=finding.effect)


def _limits(finding: Finding | None) -> list[Cell]:
    if finding is None or finding.detectable is None or finding.delta is None:
        return [Cell("–"), Cell("–")]
    found, delta = finding.detectable, finding.delta
    return [Cell(number(found), sort=found), Cell(number(delta), sort=delta)]
