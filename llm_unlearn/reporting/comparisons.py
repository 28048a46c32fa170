"""How many tests this report looked at, and which findings survive when all of them are counted."""

from llm_unlearn.metrics.multiple import holm
from llm_unlearn.reporting.membership_section import NAMES, attacks
from llm_unlearn.reporting.results import Results
from llm_unlearn.reporting.section import Section
from llm_unlearn.reporting.tables import Cell, Table
from llm_unlearn.reporting.words import has_damage

LEVEL = 0.05  # of the whole family: the chance of any false finding in the report
MARK = "‡"
_TESTS = {
    "GUS": ("gus", "p_value"),
    "spread (χ²)": ("gus", "chi2_p_value"),
    "lift beyond retrained": ("attack", "excess", "p_value"),
}


def comparisons_section(results: Results) -> Section | None:
    """Models × tests: in how many seeds a finding survives Holm's correction over all of them; None without a test."""
    damage = {"accuracy lost": ("oracle", "accuracy_lost", "p_value")} if has_damage(results) else {}
    tests = _TESTS | damage | {f"MIA {NAMES[name]}": ("mia", name, "p_value") for name in attacks(results)}
    found = {
        (model, test, i): p
        for model in results.methods
        for test, path in tests.items()
        for i, run in enumerate(results.runs)
        if (p := _value(run.models.get(model), path)) is not None
    }
    if not found:
        return None
    adjusted = dict(zip(found, holm(list(found.values())), strict=True))
    present = [test for test in tests if any(key[1] == test for key in found)]
    rows = []
    for model in results.methods:
        cells = []
        for test in present:
            keys = [key for key in found if key[:2] == (model, test)]
            survive, alone = sum(adjusted[k] < LEVEL for k in keys), sum(found[k] < LEVEL for k in keys)
            detail = f"({alone} before)" if alone != survive else ""
            cells.append(Cell(f"{survive}/{len(keys)}{f' {MARK}' * bool(survive)}" if keys else "–", detail))
        rows.append((model, cells))
    seeds = len(results.runs)
    count = f"{len(results.methods)} models × {len(present)} tests" + f" × {seeds} seeds" * (seeds > 1)
    survivors, before = sum(p < LEVEL for p in adjusted.values()), sum(p < LEVEL for p in found.values())
    note = (
        f"This report looks at {len(found)} p-values of unlearned models ({count}). {before} of them are below "
        f"{LEVEL:g}; {MARK} marks what survives Holm's correction over all of them at {LEVEL:g}: {survivors}. A "
        "cell says in how many seeds. A finding is a trace of the poison (GUS, spread, lift) or of the rows "
        "(membership); none is no proof of absence. The tests are two-sided: a lift far below the retrained "
        "model's counts too."
    )
    return Section("How many tests, and what survives", note, [Table([(test, "") for test in present], rows)])


def _value(doc: dict | None, path: tuple[str, ...]) -> float | None:
    node = doc
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return node
