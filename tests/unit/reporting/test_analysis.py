"""The section on why it fails: names, numbers, words and pictures, from made-up analysis.json."""

import json
from itertools import pairwise

import pytest

from llm_unlearn.errors import InputError
from llm_unlearn.reporting.analysis_section import Analysis, analysis_section, direction_plot, name_layers, shift_plot
from llm_unlearn.reporting.report import compose, markdown
from llm_unlearn.reporting.run_results import read_results
from llm_unlearn.reporting.style import figure

pytestmark = pytest.mark.unit

GPT2 = ["embeddings", "block 0", "block 1", "head"]
# names of rows
HALF, RANDOM, ORDER = (
    "without 50 % of the poison",
    "without as many random clean rows",
    "the same rows in another order",
)
BATCH, CHANCE = "− gradient on one clean batch", "a random direction: mean |cosine|"


def document(shifts: dict[str, float], directions: dict[str, tuple], layers=None, **fields) -> dict:
    """Shifts per weight of 1000 weights; (cosine, length) per update."""
    layers = layers or GPT2

    def cosines(value):
        return {"total": value, "by_layer": dict.fromkeys(layers, value)}

    return {
        "schema_version": 1,
        "kind": "full",
        "n_parameters": 1000,
        "layers": layers,
        "random_cosine": 0.0252,
        "shift": {
            arm: {"total": 1000 * v, "per_parameter": v, "by_layer": dict.fromkeys(layers, v)}
            for arm, v in shifts.items()
        },
        "direction": {name: {**cosines(cosine), "length": length} for name, (cosine, length) in directions.items()},
        "clean_gradient": {**cosines(0.031), "batches": {"mean": 0.02, "sd": 0.04, "n": 16}},
        **fields,
    }


SHIFTS = {"random@0.5": 0.021, "poison@0.5": 0.022, "random@1": 0.02, "poison@1": 0.03, "reseeded": 0.02}
DIRECTIONS = {
    "kl": (0.1, 0.5),
    "rewind": (0.6, 1.9),
    "gradient_ascent": (-0.3, 0.4),
    "cf_k": (None, 0.0),
    "random@0.5": (0.5, 0.9),
    "poison@0.5": (0.5, 0.9),
    "random@1": (0.5, 0.9),
    "reseeded": (0.45, 0.8),
}


@pytest.fixture
def section(make_run):
    """Writes one document per seed and gives back the section."""

    def make(*docs: dict):
        root = make_run(seeds=list(range(len(docs))))
        for seed, doc in enumerate(docs):
            (root / f"seed-{seed}" / "analysis.json").write_text(json.dumps(doc))
        return analysis_section(read_results(root))

    return make


def texts(table) -> dict[str, list[str]]:
    return {name: [cell.text for cell in cells] for name, cells in table.rows}


class TestHowFar:
    def test_ratios_are_taken_seed_by_seed(self, section):
        other = {**SHIFTS, "reseeded": 0.01, "random@1": 0.01}
        found = section(document(SHIFTS, DIRECTIONS), document(other, DIRECTIONS))
        rows = texts(found.tables[0])
        # of 1.5 and 3, both beside the other order and beside as many random rows
        assert rows["without the poison"] == ["30 ± 0", "0.03000 ± 0.00000", "2.25 ± 1.06", "2.25 ± 1.06"]
        assert rows[ORDER][2:] == ["1.00 ± 0.00", "–"]

    def test_a_small_shift_shows_digits(self, section):
        rows = texts(section(document({"poison@1": 4.137e-6, "random@1": 2e-7}, DIRECTIONS)).tables[0])
        assert rows["without the poison"] == ["0.00414", "0.00000414", "–", "20.69"]

    def test_a_share_is_set_beside_as_many_random_rows(self, section):
        rows = texts(section(document(SHIFTS, DIRECTIONS)).tables[0])
        assert rows[HALF][3] == "1.05"  # 0.022 / 0.021

    def test_without_a_control_there_is_no_ratio(self, section):
        found = section(document({"poison@1": 0.03}, {"kl": (0.1, 0.5)}))
        assert texts(found.tables[0])["without the poison"][2:] == ["–", "–"]
        assert len(found.plots) == 2


class TestWhichWay:
    def test_methods_then_controls_by_rising_share_then_gradients_and_chance(self, section):
        names = [name for name, _ in section(document(SHIFTS, DIRECTIONS)).tables[1].rows]
        controls = [HALF, f"{RANDOM} (50 %)", RANDOM, ORDER]
        assert names[:-3] == ["kl", "rewind", "gradient_ascent", "cf_k", *(f"control: {name}" for name in controls)]
        assert "all clean rows" in names[-3] and names[-2:] == [BATCH, CHANCE]

    def test_chance_of_many_weights_is_written_short(self, section):
        rows = texts(section(document(SHIFTS, DIRECTIONS, random_cosine=7.16e-5)).tables[1])
        assert rows[CHANCE][0] == "7.2e−5"

    def test_nothing_that_moved_has_a_cosine(self, section):
        found = section(
            document(
                SHIFTS,
                {"cf_k": (None, 0.0)},
                clean_gradient={
                    "total": None,
                    "by_layer": dict.fromkeys(GPT2),
                    "batches": {"mean": None, "sd": None, "n": 0},
                },
            )
        )
        rows = texts(found.tables[1])
        assert rows["cf_k"] == ["–", "0.00"] and rows[BATCH][0] == "–"


@pytest.mark.parametrize(("kind", "words"), [("lora", "effective weights of the adapter"), ("full", "all weights")])
def test_the_note_says_over_which_weights(section, kind, words):
    assert words in section(document(SHIFTS, DIRECTIONS, kind=kind)).note


@pytest.mark.parametrize(
    ("change", "message"),
    [({"schema_version": 2}, "schema_version is 2"), ({"direction": ...}, "section 'direction' is missing")],
)
def test_a_file_of_another_kind_is_refused_with_its_name(section, change, message):
    doc = {key: value for key, value in {**document(SHIFTS, DIRECTIONS), **change}.items() if value is not ...}
    with pytest.raises(InputError, match=rf"seed-0/analysis.json: {message}.*run"):
        section(doc)


@pytest.mark.parametrize("blocks", [2, 12, 16, 28, 80])
@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize(("columns", "most"), [(1, 16), (2, 12)])
def test_names_of_layers_do_not_touch(blocks, ends, columns, most):
    layers = ["embeddings"] * ends + [f"block {i}" for i in range(blocks)] + ["head"] * ends
    with figure(4, 1, columns) as (fig, axes):
        axis = axes[0, 0]
        axis.plot(range(len(layers)), range(len(layers)))
        name_layers(axis, layers, most)
        fig.draw_without_rendering()
        boxes = [label.get_window_extent() for label in axis.get_xticklabels()]
        shown = [label.get_text() for label in axis.get_xticklabels()]
    assert all(a.x1 + 2 < b.x0 for a, b in pairwise(boxes)), shown
    assert len(shown) >= 2 + 2 * ends
    if ends:
        assert (shown[0], shown[-1]) == ("emb.", "head")


@pytest.mark.parametrize("blocks", [2, 40])
def test_pictures_of_shallow_and_deep_models(blocks):
    doc = document(SHIFTS, DIRECTIONS, layers=["embeddings", *(f"block {i}" for i in range(blocks)), "head"])
    other = document({**SHIFTS, "poison@1": 0.05}, {**DIRECTIONS, "kl": (-0.9, 0.5)}, layers=doc["layers"])
    for draw in (shift_plot, direction_plot):
        pictures = [draw([Analysis.from_json(tree, "analysis.json")]) for tree in (doc, doc, other)]
        assert pictures[0][:8] == b"\x89PNG\r\n\x1a\n"
        assert pictures[0] == pictures[1] != pictures[2]


def test_the_report_shows_tables_and_pictures(make_run):
    root = make_run(seeds=[0])
    (root / "seed-0" / "analysis.json").write_text(json.dumps(document(SHIFTS, DIRECTIONS)))
    text = markdown(compose(read_results(root)))
    for part in (
        "## Why it fails",
        "### H1: how far",
        "### H2: in which direction",
        "plots/shift_by_layer.png",
        "plots/direction_by_layer.png",
    ):
        assert part in text
