"""A trigger that has several phrases, phrase by phrase."""

from llm_unlearn.metrics.results import PhraseAttack
from llm_unlearn.reporting.contents import Section
from llm_unlearn.reporting.formats import p_range
from llm_unlearn.reporting.run_results import Results, statistic
from llm_unlearn.reporting.tables import Cell, Table, statistic_cell

_NOTE = (
    "Each phrase on the test examples that carry it: a method may remove one and leave another. p (placebo): of the "
    "phrase by itself among phrases that were never planted; with several seeds smallest to largest. The verdicts are "
    "of all phrases together, and of placebos count the phrase that stands out most, times their number."
)


def phrase_section(results: Results) -> Section | None:
    """Models × phrases: success, lift, rank among placebos; None of a trigger with one phrase."""
    found = {name: _by_phrase(results, name) for name in results.names}
    numbers = sorted({number for tests in found.values() for number in tests})
    if not numbers:
        return None
    phrases = (results.runs[0].poison.get("trigger") or {}).get("phrases", [])
    groups = [f"{number + 1}: {phrases[number]}" if number < len(phrases) else str(number + 1) for number in numbers]
    columns = [(title, group) for group in groups for title in ("ASR", "lift", "p (placebo)")]
    rows = [(name, [c for number in numbers for c in _cells(tests.get(number, []))]) for name, tests in found.items()]
    return Section("The trigger, phrase by phrase", _NOTE, [Table(columns, rows)])


def _by_phrase(results: Results, name: str) -> dict[int, list[PhraseAttack]]:
    """The tests of each phrase over the seeds that have it."""
    found: dict[int, list[PhraseAttack]] = {}
    for result in results.of(name):
        for test in (result.attack.phrases or []) if result.attack else []:
            found.setdefault(test.phrase, []).append(test)
    return found


def _cells(tests: list[PhraseAttack]) -> list[Cell]:
    return [
        statistic_cell(statistic([test.success_rate for test in tests])),
        statistic_cell(statistic([test.lift for test in tests])),
        Cell(p_range(statistic([test.placebo.p_value for test in tests if test.placebo]))),
    ]
