"""The sections on why it fails and on stress, from made-up analysis.json and stress/*.json."""

import json
import re

import pytest

from llm_unlearn.reporting.analysis_section import analysis_section
from llm_unlearn.reporting.report import write_report
from llm_unlearn.reporting.run_results import read_results
from llm_unlearn.reporting.stress_section import stress_section

pytestmark = pytest.mark.unit

LAYERS = ["embeddings", "block 0", "head"]
# names of rows and of a column
ORDER, BATCH = "the same rows in another order", "− gradient on one clean batch"
POISONED = "relearned on a few poisoned rows"


def analysis(scale: float) -> dict:
    def shift(total):
        return {
            "total": total * scale,
            "per_parameter": total * scale / 100,
            "by_layer": {layer: total * scale / 100 for layer in LAYERS},
        }

    def cosines(value):
        return {"total": value, "by_layer": {"embeddings": value, "block 0": value, "head": None}}

    return {
        "schema_version": 1,
        "kind": "full",
        "n_parameters": 100,
        "layers": LAYERS,
        "random_cosine": 0.08,
        "shift": {
            "poison@1": shift(60),
            "random@1": shift(40),
            "reseeded": shift(30),
            "random@0.5": shift(35),
            "poison@0.5": shift(50),
        },
        "direction": {
            "kl": {**cosines(0.1), "length": 0.5},
            "cf_k": {**cosines(None), "length": 0.0},
            "reseeded": {**cosines(0.3), "length": 1.0},
        },
        "clean_gradient": {**cosines(0.02), "batches": {"mean": 0.01, "sd": 0.05, "n": 8}},
    }


def state(lift: float, gus: float | None = 0.5) -> dict:
    return {"attack": {"lift": lift}, "gus": None if gus is None else {"mean": gus}, "accuracy": 0.9}


def stress(start: float, end: float) -> dict:
    return {
        "schema_version": 1,
        "plain": state(start),
        "merge": None,
        "variants": [
            {"kind": "case", "name": "james bond", "attack": {"lift": start / 2}},
            {"kind": "part", "name": "James", "attack": None},
        ],
        "temperature": [{"temperature": 0.5, "success_rate": 0.5, "clean_rate": 0.1, "lift": 0.4}],
        "relearn": {
            "clean": [{"step": 0, **state(start)}, {"step": 5, **state(start)}],
            "poisoned": [{"step": 0, **state(start)}, {"step": 5, **state(end)}],
        },
        "quantization": {"4bit": state(start + 0.05), "8bit": state(start, None)},
    }


@pytest.fixture
def audited(make_run):
    root = make_run(seeds=[0, 1])
    for seed, scale in ((0, 1.0), (1, 2.0)):
        folder = root / f"seed-{seed}"
        (folder / "analysis.json").write_text(json.dumps(analysis(scale)))
        (folder / "stress").mkdir()
        for model, (start, end) in {
            "poisoned": (0.9, 0.95),
            "kl": (0.1, 0.8),
            "grad_diff": (0.1, 0.3),
            "gradient_descent": (0.6, 0.9),
            "retrained": (0.05, 0.15),
        }.items():
            (folder / "stress" / f"{model}.json").write_text(json.dumps(stress(start, end)))
    return root


class TestAnalysis:
    def test_how_far_beside_random_rows_and_another_order(self, audited):
        section = analysis_section(read_results(audited))
        shift, _ = section.tables
        rows = {name: [cell.value for cell in cells] for name, cells in shift.rows}
        names = [("50 %", "poison"), ("50 %", "random"), ("the poison",), ("random",), (ORDER,)]
        assert len(rows) == len(names)
        for name, expected in zip(rows, names, strict=True):
            assert all(word in name for word in expected) and ("50 %" in name) == ("50 %" in expected)
        assert rows["without the poison"] == ["90", "0.90000", "2.00", "1.50"]

    def test_in_which_direction_with_controls_and_what_did_not_move(self, audited):
        _, direction = analysis_section(read_results(audited)).tables
        rows = {name: [cell.text for cell in cells] for name, cells in direction.rows}
        assert rows["kl"] == ["0.100 ± 0.000", "0.50 ± 0.00"]
        assert rows["cf_k"] == ["–", "0.00 ± 0.00"]
        assert rows[f"control: {ORDER}"][0].startswith("0.300")
        assert rows[BATCH][0].startswith("0.010 ± 0.050")

    def test_a_run_without_it_has_no_section(self, run_dir):
        assert analysis_section(read_results(run_dir)) is None
        assert stress_section(read_results(run_dir)) is None


class TestStress:
    def test_which_attacks_come_back(self, audited):
        table = stress_section(read_results(audited)).tables[0]
        titles = [title for title, _ in table.columns]
        rows = {name: dict(zip(titles, (cell.value for cell in cells), strict=True)) for name, cells in table.rows}
        # gradient_descent's had not gone; grad_diff's stays within 0.2 of the retrained model's
        assert [rows[name]["gone before"] for name in ("gradient_descent", "grad_diff", "kl")] == ["0/2", "2/2", "2/2"]
        assert rows["kl"]["relearned on clean rows"] == "0/2"
        assert rows["kl"][POISONED] == "2/2: after 5 steps"
        assert rows["grad_diff"][POISONED] == "0/2"

    def test_one_row_per_model_one_column_per_stress(self, audited):
        _, attacks, states = stress_section(read_results(audited)).tables
        assert attacks.columns == [("james bond", "case"), ("James", "part"), ("T = 0.5", "sampled")]
        rows = {name: [cell.value for cell in cells] for name, cells in attacks.rows}
        assert rows["gradient_descent"] == ["0.30", "–", "0.40"]
        assert (states.rows[0][0], states.rows[-1][0]) == ("poisoned", "retrained")
        assert states.columns == [
            (title, group)
            for group in ("attack lift", "GUS", "accuracy (%)")
            for title in ("as it is", "4 bits", "8 bits")
        ]
        assert [cell.value for cell in dict(states.rows)["kl"]] == [
            "0.10",
            "0.15",
            "0.10",
            "0.50",
            "0.50",
            "–",
            "90.0",
            "90.0",
            "90.0",
        ]


def test_the_report_holds_both_and_their_pictures(audited):
    files = {path.stem for path in write_report(audited)}
    assert {"shift_by_layer", "direction_by_layer", "stress_relearn_lift", "stress_relearn_gus"} <= files
    text = (audited / "report.md").read_text()
    for level, title in (("##", "Why it fails"), ("##", "Stress"), ("###", "H1")):
        assert re.search(rf"^{level} {title}\b", text, re.M), title
