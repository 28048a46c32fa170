"""scripts/canary_study.py: its statistics are exact, its rows as they are said to be, its table complete."""

import importlib.util
import json
import sys

import numpy as np
import pytest
from paths import ROOT
from scipy.stats import kstest

pytestmark = pytest.mark.unit

spec = importlib.util.spec_from_file_location("canary_study", ROOT / "scripts" / "canary_study.py")
study = importlib.util.module_from_spec(spec)
sys.modules["canary_study"] = study  # its dataclasses look themselves up
spec.loader.exec_module(study)


def test_ranks_by_token_are_exchangeable_and_see_what_is_lower_at_every_token():
    """Tokens that depend on each other, of other scales: the rank of the combined statistic is uniform all the same."""
    generator, scores = np.random.default_rng(0), []
    for i in range(600):
        losses = generator.gamma(1.0, 1.0, (21, 1)) + generator.gamma(1.0, np.arange(1, 9), (21, 8))
        combined = -study.ranks_by_token(losses)
        scores.append(study.ranked(np.r_[combined[0], combined[0], combined[1:]], i)[0])
    assert kstest(scores, "norm").pvalue > 0.001
    lower = generator.normal(0, 1, (21, 8)) - 3 * (np.arange(21) == 0)[:, None]
    assert study.ranks_by_token(lower).argmax() == 0


def test_each_design_has_rows_of_its_own_and_the_rest_is_clean(tmp_path):
    lines = [json.dumps({"text": f"word {i} and more words", "label": i % 2}) for i in range(400)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    found = study.read_rows(tmp_path / "rows.jsonl", 300, 3)
    assert len(set(found)) == 300 and {label for _, label in found} == {"negative", "positive"}
    rows = study.plant(found, 40)
    counts = {design: sum(row.design == design for row in rows) for design in [*study.DESIGNS, None]}
    assert all(counts[d] == (40 if d in study.CLOSELY else 20) for d in study.DESIGNS)
    assert counts[None] == 300 - sum(counts[d] for d in study.DESIGNS) > 0


def test_the_results_that_are_kept_hold_every_design_with_an_exact_null_on_the_base():
    """The page's table is made of them."""
    results = json.loads((ROOT / "recipes" / "tuning" / "canaries-smollm2.json").read_text())
    base = results["points"]["base"]["designs"]
    assert set(base) == {design.name for design in study.DESIGNS}
    p_values = [test["p"] for statistics in base.values() for name, test in statistics.items() if name != "draws"]
    assert min(p_values) > 0.01 / len(p_values)
    page = (ROOT / "docs" / "canaries.md").read_text()
    assert study.table(results) in page
