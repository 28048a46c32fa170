"""What membership inference sees beside GUS, and what survives when all tests are counted."""

import json

import pytest

from llm_unlearn.reporting.comparisons import comparisons_section
from llm_unlearn.reporting.membership_section import membership_section
from llm_unlearn.reporting.report import write_report
from llm_unlearn.reporting.results import read_results

pytestmark = pytest.mark.unit


class TestMembership:
    def test_the_table_holds_every_attack_beside_gus(self, make_run):
        section = membership_section(read_results(make_run(seeds=[0, 1])))
        (table,) = section.tables
        assert [title for title, _ in table.columns] == ["GUS", "p", "TPR@1 %", "loss", "min-k %", "TPR@1 %"]
        row = [cell.value for cell in dict(table.rows)["gradient_descent"]]
        assert row == ["1.62", "1e−47", "0.30", "0.60", "0.55", "0.04"]  # the best attack is min-k

    def test_the_sentence_names_what_the_attacks_miss(self, make_run):
        changes = {"kl": {"gus": 1.0, "p": 1e-9}, "gradient_ascent": {"mia_p": 1e-4}}
        note = membership_section(read_results(make_run(changes))).note
        # gradient_ascent, gradient_descent and kl are convicted; the first is noticed by the attacks too
        assert "Of 3 unlearned models" in note and note.endswith("kl.")
        assert "2 pass all 2 membership attacks" in note and "gradient_descent" in note
        assert "gradient_ascent" not in note

    def test_one_model_that_is_missed_is_counted_as_one(self, make_run):
        note = membership_section(read_results(make_run({"gradient_ascent": {"p": 0.2}}))).note
        assert "Of 1 unlearned model on which" in note and "1 pass all" in note and note.endswith("gradient_descent.")

    def test_a_model_convicted_in_one_seed_of_two_is_not_counted(self, make_run):
        harmless = {"gradient_ascent": {"p": 0.2}, "gradient_descent": {"p": 0.2}}
        root = make_run(harmless, seeds=[0, 1], per_seed={0: {"kl": {"p": 1e-9}}})
        note = membership_section(read_results(root)).note
        assert note.endswith("(p < 0.001) on none of the unlearned models.")

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
        assert "looks at 60 p-values of unlearned models (4 models × 5 tests × 3 seeds)" in section.note
        rows = {name: [cell.text for cell in cells] for name, cells in section.tables[0].rows}
        assert rows["gradient_descent"] == ["3/3 ‡", "0/3", "0/3", "0/3", "0/3"]
        assert rows["kl"] == ["0/3"] * 5

    def test_what_the_correction_takes_back_is_said(self, make_run):
        section = comparisons_section(read_results(make_run({"kl": {"excess_p": 0.01}})))
        assert dict(section.tables[0].rows)["kl"][2].text == "0/1 (1 before)"

    def test_evaluations_from_before_these_tests_are_read_without_them(self, run_dir):
        for path in (run_dir / "evaluation").glob("*.json"):
            doc = json.loads(path.read_text())
            doc["mia"] = {"loss": {"auc": 0.6, "tpr_at_fpr": {"0.01": 0.02}}}
            del doc["attack"]["excess"]
            path.write_text(json.dumps(doc))
        section = comparisons_section(read_results(run_dir))
        assert [title for title, _ in section.tables[0].columns] == ["GUS", "spread (χ²)"]
        assert "How many tests" in write_report(run_dir)[-2].read_text()
