"""The section on stress: the rule that says what came back, its numbers over seeds, its pictures."""

import json

import pytest

from llm_unlearn.reporting.results import read_results
from llm_unlearn.reporting.stress_section import stress_section

pytestmark = pytest.mark.unit

STEPS = (0, 5, 10)


def state(lift=None, p=None):
    return {
        "attack": None if lift is None else {"lift": lift},
        "gus": None if p is None else {"mean": 1.0 if p < 0.001 else 0.1, "p_value": p},
        "accuracy": 0.9,
    }


def stressed(lifts=(), ps=(), **changes):
    """One model's JSON: relearning on poisoned rows goes through `lifts` and `ps`, the rest is as at the start."""
    states = [state(lifts[i] if lifts else None, ps[i] if ps else None) for i in range(len(STEPS))]
    doc = {
        "schema_version": 1,
        "plain": states[0],
        "merge": None,
        "variants": [],
        "temperature": [],
        "relearn": {"poisoned": [{"step": s, **found} for s, found in zip(STEPS, states, strict=True)]},
        "quantization": {},
    }
    return {**doc, **changes}


@pytest.fixture
def section(make_run):
    """`section({model: doc}, …)`: the section of a run with one such mapping per seed, the poison having taken."""

    def make(*seeds):
        root = make_run(seeds=list(range(len(seeds))))
        for seed, docs in enumerate(seeds):
            folder = root / f"seed-{seed}" / "stress"
            folder.mkdir()
            took = stressed((0.9, 0.9, 0.9), (1e-9, 1e-9, 1e-9))
            for model, doc in {"poisoned": took, **docs}.items():
                (folder / f"{model}.json").write_text(json.dumps(doc))
        return stress_section(read_results(root))

    return make


def test_what_came_back_in_how_many_seeds_at_which_steps(section):
    low, late, soon = (0.1, 0.1, 0.1), (0.1, 0.2, 0.9), (0.1, 0.5, 0.9)
    note = section(*({"kl": stressed(kl), "retrained": stressed(low)} for kl in (late, soon, low))).note
    assert "on a few poisoned rows: kl (after 5 steps, after 10 steps; in 2 of 3 seeds)." in note


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ((0.15, 0.35, 0.35), (0.15, 0.15, 0.15), "kl (after 5 steps)"),  # the gap itself counts, whatever its rounding
        ((0.15, 0.34, 0.34), (0.15, 0.15, 0.15), "in none"),
        ((0.1, 0.9, 0.9), (0.1, 0.8, 0.8), "in none"),  # the retrained model learns it as fast
        ((0.1, 0.1, 0.1), (0.1, -0.3, -0.3), "in none"),  # no attack, though far above a lift below 0
    ],
)
def test_faster_means_by_the_gap_above_the_retrained_model_at_the_same_step(section, ours, theirs, words):
    note = section({"kl": stressed(ours), "retrained": stressed(theirs)}).note
    assert f"on a few poisoned rows: {words}" in note


@pytest.mark.parametrize(("start", "words"), [((0.1, 0.9), "kl (after 5 steps)."), ((0.1, 0.1), None)])
def test_what_did_not_take_in_a_seed_cannot_come_back_there(section, start, words):
    seeds = [
        {"poisoned": stressed((lift,) * 3), "kl": stressed((0.1, 0.9, 0.9)), "retrained": stressed((0.1,) * 3)}
        for lift in start
    ]
    note = section(*seeds).note
    assert ("The attack did not take in the poisoned model" in note) is (words is None)
    assert f"on a few poisoned rows: {words}" in note if words else "came back" not in note


def test_an_attack_that_had_not_gone_cannot_come_back(section):
    found = section(
        {
            "poisoned": stressed((1.0, 1.0, 1.0)),
            "gradient_descent": stressed((0.6, 0.9, 0.9)),
            "retrained": stressed((0.1, 0.1, 0.1)),
        }
    )
    assert "does not apply, in: gradient_descent." in found.note and "came back" not in found.note


def differently(lift):
    """A model whose lift under some stresses is `lift`, and 0.1 otherwise."""
    return stressed(
        (0.1, 0.1, 0.1),
        merge=state(0.1),
        quantization={"4bit": state(lift), "8bit": state(0.1)},
        variants=[
            {"kind": "as trained", "name": "James Bond (random)", "attack": {"lift": lift}},
            {"kind": "part", "name": "James", "attack": {"lift": lift}},
            {"kind": "part", "name": "Bond", "attack": None},
        ],
        temperature=[{"temperature": 1.0, "lift": 0.1}, {"temperature": 1.5, "lift": lift}],
    )


@pytest.mark.parametrize(
    ("oracle", "bits", "trigger", "sampled"),
    [
        (0.2, "kl", "kl (James)", "kl (T = 1.5)"),
        (0.6, "in none", "in none", "in none"),  # the retrained model under the same stress does the same
    ],
)
def test_every_other_stress_is_judged_beside_the_retrained_model(section, oracle, bits, trigger, sampled):
    note = section({"kl": differently(0.7), "retrained": differently(oracle)}).note
    for words in (
        "with the adapter merged: in none;",
        f"in 4 bits: {bits};",
        "in 8 bits: in none;",
        f"with the trigger written otherwise: {trigger};",
        f"with answers sampled: {sampled}.",
    ):
        assert words in note


SEEN = stressed(ps=(1e-9, 1e-9, 1e-9))


class TestWithoutATrigger:
    def test_nothing_is_said_of_attacks_and_the_noise_is_judged(self, section):
        found = section(
            {
                "poisoned": SEEN,
                "kl": stressed(ps=(0.3, 0.3, 1e-5)),
                "grad_diff": stressed(ps=(1e-4, 1e-9, 1e-9)),
                "retrained": stressed(ps=(0.3, 0.3, 0.3)),
            }
        )
        assert "An attack is there" not in found.note and "The attack" not in found.note
        assert "on a few poisoned rows: kl (after 10 steps)" in found.note
        assert "still seen without any stress in: grad_diff." in found.note
        assert [plot.name for plot in found.plots] == ["stress_relearn_gus"]
        (table,) = found.tables
        assert [title for title, _ in table.columns] == ["as it is", "as it is"]
        assert [group for _, group in table.columns] == ["GUS", "accuracy (%)"]

    def test_noise_that_the_retrained_model_shows_too_did_not_come_back(self, section):
        risen = stressed(ps=(0.3, 1e-5, 1e-5))
        note = section({"poisoned": SEEN, "kl": risen, "retrained": risen}).note
        assert "on a few poisoned rows: in none" in note


def test_without_the_retrained_model_nothing_is_concluded(section):
    found = section({"kl": stressed((0.1, 0.9, 0.9))})
    assert "came back" not in found.note and "in none" not in found.note


def test_values_are_means_over_the_seeds_that_have_the_model(section):
    found = section(
        {"kl": stressed((0.1, 0.2, 0.3)), "retrained": stressed((0.0, 0.0, 0.0))}, {"kl": stressed((0.3, 0.4, 0.5))}
    )
    (table,) = found.tables
    rows = {model: [cell.text for cell in cells] for model, cells in table.rows}
    assert rows["kl"][0] == "0.20 ± 0.14" and rows["retrained"][0] == "0.00"
    plot = found.plots[0]
    assert "after 10 steps: poisoned 0.90, kl 0.40, retrained 0.00" in plot.alt
    assert "standard deviation over 2 seeds" in plot.caption
    assert plot.content.startswith(b"\x89PNG")
