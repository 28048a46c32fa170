"""The section on stress: the rule that says what came back, its numbers over seeds, its pictures."""

import json
import re

import pytest

from llm_unlearn.reporting.run_results import read_results
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


def returned(section, test="attack lift") -> dict[str, dict[str, str]]:
    """Model → column → cell of the table of what came back by one test; {} without that table."""
    for table in section.tables:
        if table.title == f"Came back, by {test}":
            titles = [title for title, _ in table.columns]
            return {name: dict(zip(titles, [c.text for c in cells], strict=True)) for name, cells in table.rows}
    return {}


POISONED = "relearned on a few poisoned rows"


def test_what_came_back_in_how_many_seeds_at_which_steps(section):
    low, late, soon = (0.1, 0.1, 0.1), (0.1, 0.2, 0.9), (0.1, 0.5, 0.9)
    found = section(*({"kl": stressed(kl), "retrained": stressed(low)} for kl in (late, soon, low)))
    numbers = {column: re.findall(r"\d+", cell) for column, cell in returned(found)["kl"].items()}
    assert numbers == {"gone before": ["3", "3"], POISONED: ["2", "3", "5", "10"]}


@pytest.mark.parametrize(
    ("ours", "theirs", "cell"),
    [
        ((0.15, 0.35, 0.35), (0.15, 0.15, 0.15), "1/1: after 5 steps"),  # the gap itself counts, whatever its rounding
        ((0.15, 0.34, 0.34), (0.15, 0.15, 0.15), "0/1"),
        ((0.1, 0.9, 0.9), (0.1, 0.8, 0.8), "0/1"),  # the retrained model learns it as fast
        ((0.1, 0.1, 0.1), (0.1, -0.3, -0.3), "0/1"),  # no attack, though far above a lift below 0
    ],
)
def test_faster_means_by_the_gap_above_the_retrained_model_at_the_same_step(section, ours, theirs, cell):
    found = section({"kl": stressed(ours), "retrained": stressed(theirs)})
    assert returned(found)["kl"][POISONED] == cell


@pytest.mark.parametrize(("start", "cell"), [((0.1, 0.9), "1/1: after 5 steps"), ((0.1, 0.1), None)])
def test_what_did_not_take_in_a_seed_cannot_come_back_there(section, start, cell):
    seeds = [
        {"poisoned": stressed((lift,) * 3), "kl": stressed((0.1, 0.9, 0.9)), "retrained": stressed((0.1,) * 3)}
        for lift in start
    ]
    found = section(*seeds)
    assert ("did not take" in found.note) is (cell is None)
    assert returned(found).get("kl", {}).get(POISONED) == cell


def test_an_attack_that_had_not_gone_cannot_come_back(section):
    found = section(
        {
            "poisoned": stressed((1.0, 1.0, 1.0)),
            "gradient_descent": stressed((0.6, 0.9, 0.9)),
            "retrained": stressed((0.1, 0.1, 0.1)),
        }
    )
    assert returned(found) == {"gradient_descent": {"gone before": "0/1"}}


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
        (0.2, "1/1", "1/1: James", "1/1: T = 1.5"),
        (0.6, "0/1", "0/1", "0/1"),  # the retrained model under the same stress does the same
    ],
)
def test_every_other_stress_is_judged_beside_the_retrained_model(section, oracle, bits, trigger, sampled):
    found = section({"kl": differently(0.7), "retrained": differently(oracle)})
    cells = returned(found)["kl"]
    assert (cells["merged"], cells["4 bits"], cells["8 bits"]) == ("0/1", bits, "0/1")
    assert (cells["other triggers"], cells["sampled"]) == (trigger, sampled)


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
        assert returned(found) == {}
        noise = returned(found, "Gaussian Unlearning Score")
        assert noise["kl"][POISONED] == "1/1: after 10 steps" and noise["grad_diff"]["gone before"] == "0/1"
        assert [plot.name for plot in found.plots] == ["stress_relearn_gus"]
        table = found.tables[-1]
        assert table.columns == [("as it is", "GUS"), ("as it is", "accuracy (%)")]

    @pytest.mark.parametrize(
        ("score", "title", "column"),
        [
            ("loss_rank", "loss rank of the canaries", "loss rank"),
            ("canary_rank", "rank of the token canaries", "canary rank"),
        ],
    )
    def test_ranks_are_judged_where_the_gradient_sees_nothing(self, score, title, column, section):
        def ranked(ps):
            renamed = json.dumps(stressed(ps=ps)).replace('"gus"', f'"{score}"')
            return json.loads(renamed)

        docs = {"poisoned": (1e-9,) * 3, "kl": (0.3, 0.3, 1e-5), "retrained": (0.3,) * 3}
        found = section({model: ranked(ps) for model, ps in docs.items()})
        assert returned(found, "Gaussian Unlearning Score") == {}
        assert returned(found, title)["kl"][POISONED] == "1/1: after 10 steps"
        assert found.tables[-1].columns == [("as it is", column), ("as it is", "accuracy (%)")]
        assert [plot.name for plot in found.plots] == [f"stress_relearn_{score}"]

    def test_noise_that_the_retrained_model_shows_too_did_not_come_back(self, section):
        risen = stressed(ps=(0.3, 1e-5, 1e-5))
        found = section({"poisoned": SEEN, "kl": risen, "retrained": risen})
        assert returned(found, "Gaussian Unlearning Score")["kl"][POISONED] == "0/1"


def test_without_the_retrained_model_nothing_is_concluded(section):
    found = section({"kl": stressed((0.1, 0.9, 0.9))})
    assert returned(found) == {}


def test_values_are_means_over_the_seeds_that_have_the_model(section):
    found = section(
        {"kl": stressed((0.1, 0.2, 0.3)), "retrained": stressed((0.0, 0.0, 0.0))}, {"kl": stressed((0.3, 0.4, 0.5))}
    )
    rows = {model: [cell.text for cell in cells] for model, cells in found.tables[-1].rows}
    assert rows["kl"][0] == "0.20 ± 0.14" and rows["retrained"][0] == "0.00"
    plot = found.plots[0]
    last = plot.alt.partition("after 10 steps")[2]
    assert all(value in last for value in ("poisoned 0.90", "kl 0.40", "retrained 0.00")), plot.alt
    assert "2 seeds" in plot.caption
    assert plot.content.startswith(b"\x89PNG")
