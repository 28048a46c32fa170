"""A model that `device_map: auto` spread over two GPUs is measured as it is in one piece on a CPU."""

import copy

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from evaluators import TEXTS, WITHOUT_GRADIENTS, assert_same_signals, evaluator
from pretended_gpus import pretended_gpus

from llm_unlearn.data.encoding import Encoding
from llm_unlearn.evaluation.answers import generate
from llm_unlearn.models.adapters import with_adapter
from llm_unlearn.models.devices import is_spread
from llm_unlearn.models.save import save_model

pytestmark = pytest.mark.unit

MAPS = {
    "gpt2": {
        "transformer.wte": 0,
        "transformer.wpe": 0,
        "transformer.drop": 0,
        "transformer.h.0": 0,
        "transformer.h.1": 1,
        "transformer.ln_f": 1,
        "lm_head": 0,
    },
    "llama": {
        "model.embed_tokens": 0,
        "model.rotary_emb": 0,
        "model.layers.0": 0,
        "model.layers.1": 1,
        "model.norm": 1,
        "lm_head": 1,
    },
}
ATTACKS = [*WITHOUT_GRADIENTS, "gradient_norm"]


def spread(model, first: int = 0):
    """The model over both devices, its embedding on cuda:<first>; frozen, as it is loaded to be evaluated."""
    places = MAPS[model.config.model_type]
    devices = {name: f"cuda:{(place + first) % 2}" for name, place in places.items()}
    return dispatch_model(copy.deepcopy(model).requires_grad_(False), devices, main_device=f"cuda:{first}")


@pytest.mark.parametrize(("architecture", "lora"), [("gpt2", False), ("llama", True)], ids=["full", "lora"])
def test_all_of_evaluation_is_that_of_a_cpu(architecture, lora, make_tiny, tokenizer, tmp_path):
    model, oracle = make_tiny(architecture, seed=1), make_tiny("gpt2", seed=2)
    whole = copy.deepcopy(model)
    if lora:
        save_model(make_tiny(architecture, seed=1, lora=True), tokenizer, tmp_path)
        whole = with_adapter(whole, tmp_path).eval()
    measure = evaluator(tokenizer, ATTACKS, reference=lambda: oracle)
    theirs = measure.signals(whole, oracle)
    said = generate(whole, tokenizer, TEXTS[:5], Encoding(64), 6, batch_size=3)
    divergences = measure.signals(oracle, whole)["kl"]
    with pretended_gpus():
        both = spread(model)
        both = with_adapter(both, tmp_path).eval() if lora else both
        assert is_spread(both) and {str(p.device) for p in both.parameters()} == {"cuda:0", "cuda:1"}
        lone = copy.deepcopy(oracle).to("cuda:1")  # whole, and not where the model's inputs are
        measure = evaluator(tokenizer, ATTACKS, reference=lambda: lone)
        ours = measure.signals(both, lone)
        other = spread(oracle, first=1)
        assert generate(both, tokenizer, TEXTS[:5], Encoding(64), 6, batch_size=3) == said and any(said)
        assert np.allclose(measure.signals(other, both)["kl"], divergences, rtol=1e-4, atol=1e-6, equal_nan=True)
    assert_same_signals(ours, theirs)
    assert {"kl", "loss_rank", "mia_gradient_norm"} <= set(ours) and ours["gaussian_score"].abs().max() > 0.1


def test_what_lies_on_two_devices_does_not_mix():
    with pretended_gpus():
        first, second = (torch.ones(2, device=f"cuda:{i}") for i in range(2))
        with pytest.raises(RuntimeError, match="same device"):
            first + second
        with pytest.raises(RuntimeError, match="same device"):
            first + torch.ones(2)
        assert (first + second.to("cuda:0")).tolist() == [2.0, 2.0]
