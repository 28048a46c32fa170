"""How many tests this report looked at, and which findings survive when all of them are counted."""

from llm_unlearn.metrics.multiple import holm
from llm_unlearn.reporting import figures
from llm_unlearn.reporting.contents import Section
from llm_unlearn.reporting.figures import Figure
from llm_unlearn.reporting.membership_section import NAMES, attacks
from llm_unlearn.reporting.run_results import Results
from llm_unlearn.reporting.tables import Cell, Table

LEVEL = 0.05  # of the whole family: the chance of any false finding in the report
MARK = "‡"


def comparisons_section(results: Results) -> Section | None:
    """Models × tests: in how many seeds a finding survives Holm's correction over all of them; None without a test."""
    tests: dict[str, Figure] = {
        "GUS": figures.gus_p,
        "spread (χ²)": figures.spread_p,
        "loss rank": figures.rank_p,
        "lift beyond retrained": figures.excess_p,
    }
    if results.damaging:
        tests["accuracy lost"] = figures.lost_p
    tests |= {f"MIA {NAMES[name]}": figures.membership(name, lambda test: test.p_value) for name in attacks(results)}
    found = {
        (model, test, i): p
        for model in results.methods
        for test, figure in tests.items()
        for i, run in enumerate(results.runs)
        if model in run.models and (p := figure(run.models[model])) is not None
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
    survivors, before = sum(p < LEVEL for p in adjusted.values()), sum(p < LEVEL for p in found.values())
    note = (
        f"p-values of unlearned models: {len(found)}; below {LEVEL:g}: {before}; {MARK} after Holm's correction over "
        f"all of them: {survivors}. A cell says in how many seeds. A finding is a trace of the poison (GUS, spread, "
        "loss rank, lift) or of the rows (membership); none is no proof of absence. Tests are two-sided: a lift far "
        "below the retrained model's counts too."
    )
    return Section("How many tests, and what survives", note, [Table([(test, "") for test in present], rows)])
