"""A sweep from end to end: one command makes every point, shares what is the same, resumes, and reports all of it."""

import json
import os
import re

import pytest

pytestmark = pytest.mark.e2e

KNOWN = "unlearn.forget_fraction"
MISTAKEN = "unlearn.false_positives"


@pytest.fixture
def swept(recipe):
    return recipe | {
        "seeds": [0, 1],
        "sweep": {KNOWN: [1.0, 0.5], MISTAKEN: [0.5]},
        "data": recipe["data"] | {"max_words": 14},
        "poison": {"trigger": {"target": "positive", "fraction": 0.1}, "gaussian": {"fraction": 0.2, "epsilon": 0.1}},
    }


@pytest.mark.slow
def test_a_sweep_in_two_processes(swept, run, tmp_path, capsys):
    assert run("run", swept, "--jobs", "2") == 0
    root = tmp_path / "runs" / "tiny"
    for seed in (0, 1):
        centre = root / f"seed-{seed}"
        half, mistaken = (root / "sweep" / axis / "0.5" / f"seed-{seed}" for axis in (KNOWN, MISTAKEN))
        models = [folder / "poisoned" / "model.safetensors" for folder in (centre, half, mistaken)]
        assert len({os.stat(path).st_ino for path in models}) == 1, "the poisoned model was trained more than once"
        assert not (centre / "clean").exists() and (half / "clean" / "model.safetensors").is_file()
        assert {p.stem for p in (half / "evaluation").glob("*.json")} == {
            "base",
            "poisoned",
            "clean",
            "retrained",
            "gradient_ascent",
        }
        sizes = [
            len(json.loads((folder / "poison.json").read_text())["forget_ids"]) for folder in (centre, half, mistaken)
        ]
        assert sizes == [18, 9, 27]
    summary = json.loads((root / "summary.json").read_text())
    assert [point["value"] for point in summary["sweep"][KNOWN]] == [0.5, 1.0]
    assert [point["value"] for point in summary["sweep"][MISTAKEN]] == [0.0, 0.5]
    report = (root / "report.md").read_text()
    assert re.search(r"^## .*known fraction", report, re.M)
    assert (root / "plots" / "sweep_unlearn_forget_fraction.png").is_file()

    # run again: nothing is made anew; a lost evaluation of one point alone is
    times = {path: os.stat(path).st_mtime_ns for path in root.rglob("*.safetensors")}
    lost = root / "sweep" / KNOWN / "0.5" / "seed-1" / "evaluation" / "clean.json"
    before = lost.read_text()
    lost.unlink()
    assert run("run", swept) == 0
    assert lost.read_text() == before
    assert {path: os.stat(path).st_mtime_ns for path in root.rglob("*.safetensors")} == times


def test_a_point_that_cannot_be_is_refused_at_the_door_with_its_name(swept, refused):
    refused("run", swept, "--jobs", "0", words=["--jobs 0", "at least 1"])
    refused(
        "run",
        swept | {"sweep": {"poison.trigger.fraction": [0.001]}},
        words=["recipe.sweep.poison.trigger.fraction: 0.001", "rounds to no example"],
    )
    refused(
        "run",
        swept | {"sweep": {"unlearn.methods.gradient_ascent.beta": [1.0]}},
        words=["recipe.unlearn.methods.gradient_ascent", "beta"],
    )
