"""Tables of what does not decide, by every score: fresh noise, canaries not deleted, and those the methods knew."""

from collections.abc import Callable
from dataclasses import replace

from llm_unlearn.metrics.defects import RARE, uncalibrated_scores
from llm_unlearn.metrics.findings import CANARY_TESTS, canary_tests, title
from llm_unlearn.metrics.gaussian import GaussianTest
from llm_unlearn.metrics.pooling import PooledScores, pool_scores
from llm_unlearn.metrics.results import Gus
from llm_unlearn.reporting.formats import number, p_value
from llm_unlearn.reporting.run_results import Results
from llm_unlearn.reporting.tables import Cell, Table


def control_table(results: Results) -> Table | None:
    """Per model: does fresh noise, never used in training, look like N(0, 1)? None where no model has a control."""
    tests = _canary_cells(results, lambda section: section.control)
    if tests is None:
        return None
    rows = []
    for name, cells in tests.rows:
        several = len(results.of(name)) > 1
        off = [
            f"{score}{f' of seed {result.seed}' if several else ''}"
            for result in results.of(name)
            for score in uncalibrated_scores(result)
        ]
        rows.append((name, [*cells, Cell(f"NOT N(0, 1): {', '.join(off)}" if off else "as it must be")]))
    return replace(tests, columns=[*tests.columns, (f"every score, at level {RARE:g}", "")], rows=rows)


def part_table(results: Results, part: str) -> Table | None:
    """The tests of the canaries that do not decide, or None where no model has them.

    Args:
        results: of the run.
        part: "others", which were not deleted, or "shown", whose noise the methods knew.
    """
    return _canary_cells(results, lambda section: getattr(section, part))


def _canary_cells(results: Results, of: Callable[[Gus], GaussianTest | None]) -> Table | None:
    """One test of each score of the canaries that any model has, pooled over seeds; None where there is none."""
    found = {
        name: {
            score: pool_scores(tests)
            for score in CANARY_TESTS
            if (tests := [t for r in results.of(name) if (s := canary_tests(r).get(score)) and (t := of(s))])
        }
        for name in results.names
    }
    scores = [score for score in CANARY_TESTS if any(score in tests for tests in found.values())]
    rows = [
        (name, [cell for score in scores for cell in _pooled_cells(tests.get(score))])
        for name, tests in found.items()
        if tests
    ]
    columns = [
        (head, name) for name in map(title, scores) for head in (name, "n", "p of the mean", "p of the spread (χ²)")
    ]
    return Table(columns, rows) if rows else None


def _pooled_cells(scores: PooledScores | None) -> list[Cell]:
    if scores is None:
        return [Cell("–")] * 4
    texts = (number(scores.mean), str(scores.n), p_value(scores.p_value), p_value(scores.spread_p_value))
    return [Cell(text) for text in texts]
