"""Trackers: the loss and its parts arrive, forget and retain apart, one run for each training."""

import pytest
from support import trainer

from llm_unlearn.config.recipe import build_recipe
from llm_unlearn.errors import InputError
from llm_unlearn.runs.method_configs import check_methods, method_config
from llm_unlearn.training.tracking import tracked

tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def scalars(folder):
    """Tag → [(step, value), …] of all event files in a folder."""
    events = tensorboard.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("method", ["kl", "npo", "scrub"])
def test_tensorboard_has_the_loss_and_its_parts_as_they_were_logged(method, tmp_path):
    run = trainer(method, "full", tmp_path / "out", report_to="tensorboard", eval_strategy="steps", eval_steps=2)
    with tracked(run, tmp_path / "logs"):
        run.train()
    found = scalars(tmp_path / "logs")
    names = {"train/loss", "train/forget_loss", "train/retain_loss", "eval/forget_loss", "eval/retain_loss"}
    assert names <= set(found)
    for name in names:
        key = name.replace("train/", "").replace("eval/", "eval_")
        logged = [(entry["step"], entry[key]) for entry in run.state.log_history if key in entry]
        assert len(logged) > 1 and [step for step, _ in found[name]] == [step for step, _ in logged]
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in logged], rel=1e-6)
    assert not list((tmp_path / "out").rglob("events.*"))


def test_trainings_of_one_process_stay_apart(tmp_path):
    for name in ("one", "two"):
        run = trainer("grad_diff", "full", tmp_path / name, report_to="tensorboard", max_steps=2 + (name == "two"))
        with tracked(run, tmp_path / "logs" / name):
            run.train()
    assert [len(scalars(tmp_path / "logs" / name)["train/loss"]) for name in ("one", "two")] == [2, 3]


def recipe(**unlearn):
    return build_recipe(
        {
            "name": "r",
            "output_dir": "out",
            "model": {"path": "x"},
            "data": {"verbalizers": {"negative": " n", "positive": " p"}},
            "poison": {"gaussian": {"fraction": 0.1, "epsilon": 0.1}},
            "unlearn": {"methods": {"kl": None}, **unlearn},
        }
    )


def test_a_recipe_names_its_trackers_and_each_training(tmp_path):
    config = method_config(recipe(report_to=["tensorboard"]), "kl", 3, str(tmp_path), 1.0, quiet=True)
    assert config.report_to == ["tensorboard"] and config.run_name == "r-kl-seed-3"
    assert method_config(recipe(), "kl", 3, str(tmp_path), 1.0, quiet=True).report_to == []


def test_a_tracker_that_is_not_installed_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None)
    with pytest.raises(InputError, match=r"^recipe\.unlearn\.report_to: .*pip install wandb"):
        check_methods(recipe(report_to=["wandb"]))
