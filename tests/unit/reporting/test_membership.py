"""What membership inference sees beside GUS, and the tests behind the verdicts."""

import json

import pytest

from llm_unlearn.reporting.decision_section import decision_section
from llm_unlearn.reporting.membership_section import membership_section
from llm_unlearn.reporting.phrase_section import phrase_section
from llm_unlearn.reporting.report import write_report
from llm_unlearn.reporting.run_results import read_results
from llm_unlearn.reporting.tables import main_table

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

    def test_a_mean_of_auc_stands_beside_the_seeds_own(self, make_run):
        """Seeds on both sides of one half have a mean there, which alone would hide what both show."""
        root = make_run(seeds=[0, 1])
        for seed, auc in ((0, 0.4), (1, 0.62)):
            path = root / f"seed-{seed}" / "evaluation" / "kl.json"
            doc = json.loads(path.read_text())
            doc["mia"]["loss"] |= {"auc": auc, "ci95": [auc - 0.1, auc + 0.1]}
            path.write_text(json.dumps(doc))
        results = read_results(root)
        for table, digits in ((membership_section(results).tables[0], 2), (main_table(results), 3)):
            column = [title for title, _ in table.columns].index("loss" if digits == 2 else "AUC")
            cell = dict(table.rows)["kl"][column]
            assert cell.value == f"{0.51:.{digits}f}" and f"({0.4:.{digits}f} to {0.62:.{digits}f})" in cell.detail

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


class TestPhrases:
    def test_every_phrase_has_its_own_rates_and_rank(self, make_run):
        root = make_run(seeds=[0, 1])
        assert phrase_section(read_results(root)) is None
        for seed in (0, 1):
            for path in (root / f"seed-{seed}" / "evaluation").glob("*.json"):
                doc = json.loads(path.read_text())
                one = {key: doc["attack"][key] for key in ("clean_rate", "n", "ci95", "excess")}
                rank = {"statistic": 3.0, "placebo_mean": 0.0, "placebo_sd": 1.0, "n_placebos": 99, "n": 8}
                doc["attack"]["phrases"] = [
                    {**one, "phrase": 0, "success_rate": 0.9, "lift": 0.6 + 0.2 * seed, "placebo": None},
                    {**one, "phrase": 1, "success_rate": 0.2, "lift": 0.1, "placebo": {**rank, "p_value": 0.01}},
                ]
                path.write_text(json.dumps(doc))
            manifest = json.loads((root / f"seed-{seed}" / "poison.json").read_text())
            manifest["trigger"]["phrases"].append("green tea")
            (root / f"seed-{seed}" / "poison.json").write_text(json.dumps(manifest))
        (table,) = phrase_section(read_results(root)).tables
        assert list(dict.fromkeys(group for _, group in table.columns)) == ["1: James Bond", "2: green tea"]
        assert [cell.value for cell in dict(table.rows)["kl"]] == ["0.90", "0.70", "–", "0.20", "0.10", "0.010"]


class TestDecisions:
    def test_every_test_stands_with_its_figure_and_what_rejects_is_marked(self, make_run):
        section = decision_section(read_results(make_run(seeds=[0, 1, 2])))
        tests, limits = section.tables
        of_canaries = [name for test in ("GUS", "loss rank") for name in (test, f"mean square of {test}")]
        assert [title for title, _ in tests.columns] == [*of_canaries, "trigger lift"]
        rows = {name: [cell.value for cell in cells] for name, cells in tests.rows}
        assert rows["gradient_descent"] == [*["1.62 ‡", "3.65 ‡"] * 2, "0.54 ‡"] and "‡" not in "".join(rows["kl"])
        assert "base" not in rows and "retrained" in rows
        # 240 canaries, two questions, four tests: (Φ⁻¹(1 − 0.01/16) + 0.84·1.02) / √240, below a fifth of 2.5
        found = {name: [cell.value for cell in cells] for name, cells in limits.rows}
        assert found["kl"][:4] == ["0.26", "0.50"] * 2 and float(found["kl"][4]) < float(found["kl"][5]) == 0.16

    def test_evaluations_from_before_these_tests_are_read_without_them(self, run_dir):
        for path in (run_dir / "evaluation").glob("*.json"):
            doc = json.loads(path.read_text())
            doc["mia"] = {"loss": {"auc": 0.6, "n_members": 9, "n_nonmembers": 9, "tpr_at_fpr": {"0.01": 0.02}}}
            del doc["attack"]["excess"], doc["loss_rank"]
            path.write_text(json.dumps(doc))
        section = decision_section(read_results(run_dir))
        assert [title for title, _ in section.tables[0].columns] == ["GUS", "mean square of GUS", "trigger lift"]
        assert section.title in write_report(run_dir)[-2].read_text()
