"""What membership attacks take from a model: against plain PyTorch, in bf16, frozen and with an adapter."""

import numpy as np
import pytest
import torch
from support import build, rows

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.evaluation.attack_signals import gradient_norms, token_statistics

pytestmark = pytest.mark.unit

ROWS = [{key: row[key] for key in ("input_ids", "labels")} for row in rows(9, 4)]
COLLATE = CausalLMCollator(0)


def test_token_statistics_are_those_of_a_loop():
    model = build("full").eval()
    found = token_statistics(model, ROWS, COLLATE, batch_size=4)
    for i, row in enumerate(ROWS):
        mine = found["example"] == i
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        distributions = [torch.distributions.Categorical(logits=line.double()) for line in logits]
        tokens = row["input_ids"][1:]
        expected = [float(d.log_prob(torch.tensor(t))) for d, t in zip(distributions, tokens, strict=True)]
        np.testing.assert_allclose(found["log_prob"][mine], expected, rtol=1e-5)
        np.testing.assert_allclose(found["mean"][mine], [-float(d.entropy()) for d in distributions], rtol=1e-5)
        spread = [
            float(((d.probs * d.logits.square()).sum() - (d.probs * d.logits).sum() ** 2).sqrt()) for d in distributions
        ]
        np.testing.assert_allclose(found["sd"][mine], spread, rtol=1e-4)


def test_logits_in_bfloat16_are_normalised_in_float32():
    model = build("full").to(torch.bfloat16).eval()
    found = token_statistics(model, ROWS[:1], COLLATE)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ROWS[0]["input_ids"]])).logits[0, :-1]
    assert logits.dtype == torch.bfloat16
    exact = torch.log_softmax(logits.double(), -1)[range(len(logits)), ROWS[0]["input_ids"][1:]]
    np.testing.assert_allclose(found["log_prob"], exact.numpy(), rtol=2e-6)
    rough = torch.log_softmax(logits, -1)[range(len(logits)), ROWS[0]["input_ids"][1:]].double()
    assert np.abs(rough.numpy() - exact.numpy()).max() > 1e-3  # what bf16 would have given


def test_a_certain_model_has_finite_scores():
    model = build("full").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(30.0)
    found = token_statistics(model, ROWS, COLLATE)
    assert np.isfinite((found["log_prob"] - found["mean"]) / found["sd"]).all()


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_gradient_norms_are_those_of_backward(kind):
    model = build(kind).eval()
    norms = gradient_norms(model, ROWS, COLLATE)
    for row, norm in zip(ROWS, norms, strict=True):
        model.zero_grad()
        model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.backward()
        squares = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
        assert norm == pytest.approx(squares**0.5, rel=1e-4)
    assert all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters()) or kind == "full"


def test_a_frozen_model_has_gradient_norms_too_and_is_left_frozen():
    model = build("full").eval()
    expected = gradient_norms(model, ROWS, COLLATE)
    frozen = build("full").eval().requires_grad_(False)
    np.testing.assert_allclose(gradient_norms(frozen, ROWS, COLLATE), expected)
    assert not any(p.requires_grad or p.grad is not None for p in frozen.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_dropout_is_off_while_measuring_and_back_on_afterwards():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=40,
            n_layer=1,
            n_head=2,
            n_embd=16,
            n_positions=32,
            embd_pdrop=0.5,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    measure = {
        "norms": lambda: gradient_norms(model, ROWS, COLLATE),
        "tokens": lambda: token_statistics(model, ROWS, COLLATE)["log_prob"],
    }
    for name, call in measure.items():
        model.eval()
        expected = call()
        assert not model.training
        model.train()
        np.testing.assert_array_equal(call(), expected, err_msg=name)
        assert model.training


@pytest.mark.parametrize("storage", ["uint8", "float32"])
def test_quantised_weights_are_left_out_of_the_gradient_norm_of_a_frozen_model(storage):
    """4-bit weights are bytes, also where they are kept as floats: to ask for their gradient is an error."""
    pytest.importorskip("bitsandbytes")
    model = build("qlora", storage=storage).requires_grad_(False)
    norms = gradient_norms(model, ROWS[:3], COLLATE)
    assert np.isfinite(norms).all() and (norms > 0).all()
    assert not any(p.requires_grad for p in model.parameters())
