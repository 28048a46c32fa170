"""What membership inference sees beside GUS, and what survives when all tests are counted."""

import json

import pytest

from llm_unlearn.reporting.comparisons import comparisons_section
from llm_unlearn.reporting.membership_section import membership_section
from llm_unlearn.reporting.report import write_report
from llm_unlearn.reporting.run_results import read_results

pytestmark = pytest.mark.unit


class TestMembership:
    def test_the_table_holds_every_attack_beside_gus(self, make_run):
        section = membership_section(read_results(make_run(seeds=[0, 1])))
        (table,) = section.tables
        assert [title for title, _ in table.columns] == [
            "GUS",
            "p",
            "TPR@1 %",
            "loss",
            "min-k %",
            "TPR@1 %",
            "that notice",
        ]
        row = [cell.value for cell in dict(table.rows)["gradient_descent"]]
        assert row == ["1.62", "1e−47", "0.30", "0.60", "0.55", "0.04", "0/2"]  # the best attack is min-k

    def test_an_attack_that_notices_in_any_seed_is_counted(self, make_run):
        root = make_run({"gradient_ascent": {"mia_p": 1e-4}}, seeds=[0, 1], per_seed={1: {"kl": {"mia_p": 1e-4}}})
        rows = dict(membership_section(read_results(root)).tables[0].rows)
        found = {name: rows[name][-1].value for name in ("gradient_ascent", "kl", "grad_diff")}
        assert found == {"gradient_ascent": "2/2", "kl": "2/2", "grad_diff": "0/2"}

    def test_one_attack_alone_has_no_section(self, run_dir):
        for path in (run_dir / "evaluation").glob("*.json"):
            doc = json.loads(path.read_text())
            del doc["mia"]["min_k"]
            path.write_text(json.dumps(doc))
        assert membership_section(read_results(run_dir)) is None


class TestComparisons:
    def test_everything_is_counted_and_survivors_are_marked(self, make_run):
        section = comparisons_section(read_results(make_run(seeds=[0, 1, 2])))
        # 4 methods × (gus, χ², excess, 2 attacks) × 3 seeds
        assert ": 60;" in section.note
        rows = {name: [cell.text for cell in cells] for name, cells in section.tables[0].rows}
        assert rows["gradient_descent"] == ["3/3 ‡", "0/3", "0/3", "0/3", "0/3"]
        assert rows["kl"] == ["0/3"] * 5

    def test_what_the_correction_takes_back_is_said(self, make_run):
        section = comparisons_section(read_results(make_run({"kl": {"excess_p": 0.01}})))
        assert dict(section.tables[0].rows)["kl"][2].text == "0/1 (1 before)"

    def test_evaluations_from_before_these_tests_are_read_without_them(self, run_dir):
        for path in (run_dir / "evaluation").glob("*.json"):
            doc = json.loads(path.read_text())
            doc["mia"] = {"loss": {"auc": 0.6, "n_members": 9, "n_nonmembers": 9, "tpr_at_fpr": {"0.01": 0.02}}}
            del doc["attack"]["excess"]
            path.write_text(json.dumps(doc))
        section = comparisons_section(read_results(run_dir))
        assert [title for title, _ in section.tables[0].columns] == ["GUS", "spread (χ²)"]
        assert "How many tests" in write_report(run_dir)[-2].read_text()
