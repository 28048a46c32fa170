"""What membership inference sees beside GUS, and the tests behind the verdicts."""

import json

import pytest

from llm_unlearn.reporting.decision_section import decision_section
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


class TestDecisions:
    def test_every_test_stands_with_its_figure_and_what_rejects_is_marked(self, make_run):
        section = decision_section(read_results(make_run(seeds=[0, 1, 2])))
        tests, limits = section.tables
        assert [title for title, _ in tests.columns] == ["GUS", "mean square of GUS", "trigger lift"]
        rows = {name: [cell.value for cell in cells] for name, cells in tests.rows}
        assert rows["gradient_descent"] == ["1.62 ‡", "3.65 ‡", "0.54 ‡"] and "‡" not in "".join(rows["kl"])
        assert "base" not in rows and "retrained" in rows
        # 240 canaries, two questions, two tests: (Φ⁻¹(1 − 0.01/8) + 0.84·1.02) / √240, below a fifth of 2.5
        found = {name: [cell.value for cell in cells] for name, cells in limits.rows}
        assert found["kl"][:2] == ["0.25", "0.50"] and float(found["kl"][2]) < float(found["kl"][3]) == 0.16

    def test_evaluations_from_before_these_tests_are_read_without_them(self, run_dir):
        for path in (run_dir / "evaluation").glob("*.json"):
            doc = json.loads(path.read_text())
            doc["mia"] = {"loss": {"auc": 0.6, "n_members": 9, "n_nonmembers": 9, "tpr_at_fpr": {"0.01": 0.02}}}
            del doc["attack"]["excess"]
            path.write_text(json.dumps(doc))
        section = decision_section(read_results(run_dir))
        assert [title for title, _ in section.tables[0].columns] == ["GUS", "mean square of GUS", "trigger lift"]
        assert section.title in write_report(run_dir)[-2].read_text()
