"""Every causal architecture × {full, default LoRA}: one contract. A new one is in here by being in ARCHITECTURES."""

import numpy as np
import pytest
import torch
from architectures import (
    ARCHITECTURES,
    HEADER,
    PAGE,
    QUICK,
    refusal,
    refused_methods,
    table_row,
    tiny_config,
    tiny_model,
)
from support import KINDS, NOISE, VOCABULARY, rows, trainer
from torch.nn import functional as F

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.evaluation.gaussian_scores import gaussian_scores
from llm_unlearn.models.adapters import with_adapter
from llm_unlearn.models.strict_loading import load_pretrained
from llm_unlearn.poisons.gaussian_embedding import inject_gaussian_noise
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.tasks.embedding_noise import attached_noise
from llm_unlearn.tasks.noise import unit_noise
from llm_unlearn.trainers import METHODS

pytestmark = pytest.mark.contract

METHODS_TRIED = ("gradient_ascent", "grad_diff", "kl", "npo")  # the forget set alone, two sets, a reference, log-probs
QUICK_STEPS = ("gemma3", "mamba", "qwen3_moe")
NO_LORA = ("laguna",)  # transformers renames its shared experts in a way that peft does not find again
names = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ARCHITECTURES]
architectures = pytest.mark.parametrize("name", names)
kinds = pytest.mark.parametrize("kind", KINDS)
steps = pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=() if name in QUICK_STEPS and kind == "lora" else pytest.mark.slow)
        for name in ARCHITECTURES
        for kind in KINDS
    ],
)


def model_of(name: str, kind: str):
    if kind == "lora" and name in NO_LORA:
        assert "name layers without it" in refusal(name, kind)
        pytest.skip("refused in words")
    return tiny_model(name, kind)


def plain_nll(model, items, hook=None) -> torch.Tensor:
    """(n,) each row alone, by the model's own forward; `hook(item, embedded)` changes what the blocks are given."""
    nll = []
    for item in items:
        ids = torch.tensor([item["input_ids"]])
        handle = model.get_input_embeddings().register_forward_hook(
            lambda module, args, output, item=item: output if hook is None else hook(item, output)
        )
        nll.append(F.cross_entropy(model(input_ids=ids, use_cache=False).logits[0, :-1].float(), ids[0, 1:]))
        handle.remove()
    return torch.stack(nll)


@architectures
@kinds
@torch.no_grad()
def test_packed_and_padded_rows_have_the_nll_of_a_plain_forward(name, kind):
    model, items = model_of(name, kind), rows(5, 1).to_list()
    batch, expected = CausalLMCollator(0)(items), plain_nll(model, items)
    assert expected.std() > 1e-3  # predictions are not uniform
    for pack in (True, False):
        found = CausalLMTask(pack).compute(model, batch, lambda output: output.nll())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert torch.allclose(CausalLMTask(pack).supervised(model, batch).nll(), expected, rtol=0, atol=1e-4)


@architectures
@kinds
def test_noise_enters_at_the_embedding_and_is_scored_there(name, kind):
    model, items = model_of(name, kind), rows(5, 1, noisy=True).to_list()

    def add(item, embedded):
        if item["noise_id"] < 0:
            return embedded
        z = unit_noise(NOISE["seed"], item["noise_id"], len(item["input_ids"]), embedded.shape[-1])
        return embedded + NOISE["epsilon"] * torch.from_numpy(z).float()

    with torch.no_grad():
        clean, expected = plain_nll(model, items), plain_nll(model, items, add)
        noise = inject_gaussian_noise(model, NOISE)
        for pack in (True, False):
            found = CausalLMTask(pack).compute(model, CausalLMCollator(0)(items), lambda output: output.nll())
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        noise.remove()
    noisy = torch.tensor([item["noise_id"] >= 0 for item in items])
    assert ((clean - expected).abs()[noisy] > 1e-6).all() and torch.equal(clean[~noisy], expected[~noisy])
    items = [item for item in items if item["noise_id"] >= 0]
    together = gaussian_scores(model, items, CausalLMCollator(0), [3])
    alone = [gaussian_scores(model, [item], CausalLMCollator(0), [3]) for item in items]
    assert np.isfinite(together).all()
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-3)


@architectures
def test_every_weight_of_a_default_adapter_gets_a_gradient(name):
    model = model_of(name, "lora").train()
    CausalLMTask().compute(
        model, CausalLMCollator(0)(rows(8, 1).to_list()), lambda output: output.mean_nll()
    ).backward()
    without = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert all("encoder_attn" in n for n in without)  # peft's choice for bart; there is no encoder


@steps
def test_a_step_of_each_kind_of_method_and_what_is_saved(name, kind, tmp_path):
    for method in METHODS_TRIED:
        run = trainer(method, kind, tmp_path / method, model=model_of(name, kind), max_steps=1)
        before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
        trains = {n for n, p in run.model.named_parameters() if p.requires_grad}
        run.train()
        moved = {n for n, p in run.model.named_parameters() if not torch.equal(p, before[n])}
        assert moved and moved <= trains
    run.save_model(str(tmp_path / "saved"))
    attached_noise(run.model).remove()
    base = tiny_model(name)
    if kind == "lora":
        loaded = with_adapter(base, str(tmp_path / "saved"))
    else:
        loaded = load_pretrained(type(base), str(tmp_path / "saved"), dtype=torch.float32)
    ids = torch.tensor([[3, 5, 7, 9]])
    with torch.no_grad():
        ours, theirs = (m.eval()(input_ids=ids, use_cache=False).logits for m in (loaded, run.model))
    torch.testing.assert_close(ours, theirs)


@architectures
def test_its_line_in_the_docs_is_true(name):
    assert table_row(name) in PAGE.read_text(encoding="utf-8").splitlines()


def test_the_docs_have_these_architectures_and_no_others():
    table = PAGE.read_text(encoding="utf-8").partition(HEADER)[2]
    assert [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")] == list(ARCHITECTURES)
    assert len(ARCHITECTURES) >= 40 and VOCABULARY == tiny_config("gpt2").vocab_size
    assert METHODS.keys() >= set(METHODS_TRIED) and "rmu" in refused_methods("qwen3_moe", "full")
