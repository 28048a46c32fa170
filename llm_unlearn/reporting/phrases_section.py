"""Several trigger phrases, each by itself: one that still works may be lost in the mean over all."""

from llm_unlearn.reporting.contents import Section
from llm_unlearn.reporting.run_results import Results, statistic
from llm_unlearn.reporting.tables import Cell, Table, statistic_cell

_NOTE = "The lift on the test rows into which each phrase was put. The table above has the lift over all of them."


def phrases_section(results: Results) -> Section | None:
    """A row for each model, a column for each phrase; None where there is one phrase."""
    found = {
        name: [r.attack.phrases for r in results.of(name) if r.attack and r.attack.phrases] for name in results.names
    }
    numbers = sorted({int(number) for seeds in found.values() for each in seeds for number in each})
    if not numbers:
        return None
    said = results.runs[0].poison["trigger"]["phrases"]
    titles = [said[i] if len(said) > max(numbers) else f"phrase {i + 1}" for i in numbers]  # unless they are withheld
    rows: list[tuple[str, list[Cell]]] = []
    for name, seeds in found.items():
        lifts = [[each[str(i)].lift for each in seeds if str(i) in each] for i in numbers]
        rows.append((name, [statistic_cell(statistic(values)) for values in lifts]))
    return Section("Each trigger phrase", _NOTE, [Table([(title, "lift with") for title in titles], rows)])
