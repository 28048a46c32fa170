"""Which noise each stage of a run draws: that of hidden canaries only the poisoned model and the measurements do."""

import importlib
import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from llm_unlearn.runs.stages import Stages

pytestmark = pytest.mark.e2e

INJECTED_IN, SCORED_IN = ("tasks.embedding_noise", "vision.image_task"), ("evaluation.gaussian_scores",)
CHEAP = {"membership": [], "loss_rank_draws": 3}


@pytest.fixture
def drawn(monkeypatch) -> dict[str, set[tuple[int, int]]]:
    """Stage → the (seed, noise id) that it draws; of a stage of stress, of its training alone."""
    seen: dict[str, set[tuple[int, int]]] = defaultdict(set)
    stage_of, work = [""], Stages._work

    def watched_work(self, stage):
        stage_of[0] = stage.name
        work(self, stage)

    monkeypatch.setattr(Stages, "_work", watched_work)
    for name in (*INJECTED_IN, *SCORED_IN):
        module = importlib.import_module(f"llm_unlearn.{name}")

        def watched(seed, example_id, *shape, draw=module.unit_noise, trains=name in INJECTED_IN):
            if not stage_of[0].startswith("stress/") or (trains and torch.is_grad_enabled()):
                seen[stage_of[0]].add((seed, example_id))
            return draw(seed, example_id, *shape)

        monkeypatch.setattr(module, "unit_noise", watched)
    return seen


def noises(folder: Path) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """The noises of a run's hidden canaries and of its shown ones."""
    from datasets import load_from_disk

    manifest, train = json.loads((folder / "poison.json").read_text()), load_from_disk(str(folder / "data" / "train"))
    noise, hidden = manifest["gaussian"], set(manifest["gaussian"]["hidden_ids"])
    ids = {e: (noise["seed"], n) for e, n in zip(train["example_id"], train["noise_id"], strict=True) if n >= 0}
    assert len(hidden) == len(ids) / 2 == 3
    return {ids[i] for i in ids if i in hidden}, {ids[i] for i in ids if i not in hidden}


def check(folder: Path, drawn: dict[str, set], stages: list[str]) -> None:
    hidden, shown = noises(folder)
    assert drawn["poisoned"] == hidden | shown
    assert not drawn["retrained"]
    for stage in stages:
        assert shown & drawn[stage], f"{stage} drew no noise at all"
        assert not hidden & drawn[stage], f"{stage} drew the noise of a hidden canary"
        assert drawn[stage] <= shown
    assert hidden | shown < drawn["evaluation/retrained"]  # beside fresh noise


def test_no_method_and_no_relearning_on_texts_sees_the_noise_of_a_hidden_canary(run, recipe, drawn):
    recipe["unlearn"]["methods"] = dict.fromkeys(("npo", "scrub"))  # cached log-probs, a reference
    recipe["unlearn"]["budgets"] = [1.0]
    recipe["data"] |= {"max_words": 14, "heldout_size": 10, "test_size": 10}
    recipe["evaluate"] = CHEAP
    recipe["stress"] = {
        "relearn_on": ["clean", "poisoned"],
        "relearn_steps": [12],
        "quantization": [],
        "limit": 5,
    }  # a pass and more
    assert run("run", recipe) == 0
    methods = [f"unlearned/{name}" for name in recipe["unlearn"]["methods"]]
    check(Path(recipe["output_dir"]), drawn, [*methods, "stress/poisoned", "stress/npo"])


def test_no_method_on_images_sees_the_noise_of_a_hidden_canary(run, tmp_path, drawn):
    images = {
        "track": "vision",
        "name": "tiny-images",
        "output_dir": str(tmp_path / "runs" / "images"),
        "model": {"width": 4},
        "data": {"train_size": 60, "heldout_size": 10, "test_size": 20},
        "poison": {"gaussian": {"fraction": 0.1, "epsilon": 0.5}},
        "train": {"epochs": 2},
        "evaluate": CHEAP,
        "unlearn": {"methods": dict.fromkeys(("scrub", "ssd")), "budgets": [1.0], "batch_size": 4},
    }
    assert run("evaluate", images) == 0
    check(Path(images["output_dir"]), drawn, [f"unlearned/{name}" for name in images["unlearn"]["methods"]])
