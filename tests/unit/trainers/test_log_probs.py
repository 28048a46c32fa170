"""Cached log-probs of the reference: right, found again where nothing changed, made anew where something did."""

from pathlib import Path

import pytest
import torch
from support import NOISE, build, rows, trainer

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.poisons.gaussian_embedding import inject_gaussian_noise
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.trainers.support.log_probs import model_hash, rows_hash
from llm_unlearn.trainers.support.sets import LOG_PROB

pytestmark = pytest.mark.unit


def one_by_one(kind: str, forget) -> list[float]:
    """log π(y|x) of each row alone, noise injected, summed token by token."""
    model = build(kind).eval()
    inject_gaussian_noise(model, NOISE)
    found = []
    for row in forget:
        batch = CausalLMCollator(0)([row])
        with torch.no_grad():
            logits = model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], noise_id=batch["noise_id"]
            ).logits[0]
        log_probs = logits.log_softmax(-1)
        found.append(sum(float(log_probs[t - 1, token]) for t, token in enumerate(row["input_ids"]) if t))
    return found


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_they_are_the_models_own_with_the_noise_injected(kind, tmp_path):
    run = trainer("npo", kind, tmp_path)
    expected = one_by_one(kind, rows(6, 1, noisy=True))
    torch.testing.assert_close(torch.tensor(run.rows["forget"][LOG_PROB]), torch.tensor(expected))
    without = one_by_one(kind, rows(6, 1))
    assert abs(without[1] - expected[1]) > 1e-3  # row 1 is a canary


def test_they_are_found_again_without_a_forward(tmp_path, monkeypatch):
    first = trainer("npo", "full", tmp_path / "a", reference_cache_dir=str(tmp_path / "cache"))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr(CausalLMTask, "compute", lambda *_: pytest.fail("computed again"))
    second = trainer("npo", "full", tmp_path / "b", reference_cache_dir=str(tmp_path / "cache"))
    assert first.rows["forget"][LOG_PROB] == second.rows["forget"][LOG_PROB]


def test_another_model_other_rows_or_other_noise_have_a_file_of_their_own(tmp_path):
    cache = {"reference_cache_dir": str(tmp_path / "cache")}
    trainer("npo", "full", tmp_path, **cache)
    trainer("npo", "full", tmp_path, model=build("full", seed=1), **cache)
    trainer("npo", "full", tmp_path, forget=rows(6, 9, noisy=True), **cache)
    noisier = build("full")
    inject_gaussian_noise(noisier, {"epsilon": 0.7, "seed": 3})
    trainer("npo", "full", tmp_path, model=noisier, **cache)
    trainer("npo", "full", tmp_path, bf16=True, **cache)
    assert len(list((tmp_path / "cache").iterdir())) == 5


def test_hashes_see_a_single_weight_and_a_single_label():
    model, other = build("full"), build("full")
    assert model_hash(model) == model_hash(other)
    with torch.no_grad():
        other.transformer.h[1].mlp.c_fc.bias[3] += 1e-6
    assert model_hash(model) != model_hash(other)
    items = rows(6, 1).to_list()
    items[5]["labels"][-1] = -100
    assert rows_hash(rows(6, 1)) != rows_hash(type(rows(6, 1)).from_list(items))


def test_a_file_that_was_cut_off_is_made_anew(tmp_path):
    cache = {"reference_cache_dir": str(tmp_path / "cache")}
    first = trainer("npo", "full", tmp_path, **cache)
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:20])
    again = trainer("npo", "full", tmp_path, **cache)
    assert first.rows["forget"][LOG_PROB] == again.rows["forget"][LOG_PROB]
    assert len(path.read_bytes()) > 20


def test_they_lie_where_a_hub_upload_does_not_look(tmp_path):
    trainer("npo", "full", tmp_path)
    (path,) = tmp_path.rglob("*.safetensors")
    assert path.relative_to(tmp_path).parts[0].startswith("_")


@pytest.mark.parametrize(("method", "forwards"), [("npo", 1), ("dpo", 1), ("kl", 2)])
def test_forwards_of_a_step(method, forwards, tmp_path, monkeypatch):
    run = trainer(method, "full", tmp_path, max_steps=3)
    calls = []
    original = CausalLMTask.compute
    monkeypatch.setattr(CausalLMTask, "compute", lambda *args: calls.append(None) or original(*args))
    run.train()
    assert len(calls) == 3 * forwards
    assert not Path(tmp_path / "training_args.bin").exists()
