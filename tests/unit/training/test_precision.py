"""A recipe means one precision on every engine: what trains, losses and sums of gradients are float32."""

from types import SimpleNamespace

import pytest
import torch
from support import build, own_weights, trainer
from torch.distributed.fsdp import MixedPrecisionPolicy

from llm_unlearn.training.precision import keep_float32

pytestmark = pytest.mark.unit


def test_losses_and_gradients_stay_in_float32_under_fsdp2():
    low = torch.bfloat16
    plugin = SimpleNamespace(mixed_precision_policy=MixedPrecisionPolicy(low, low, low))  # as accelerate makes it
    state = SimpleNamespace(fsdp_plugin=plugin, deepspeed_plugin=None)
    keep_float32(build("full"), SimpleNamespace(is_fsdp2=True, mixed_precision="bf16", state=state))
    assert plugin.mixed_precision_policy == MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)


@pytest.mark.parametrize("method", ["gradient_ascent", "rmu", "cf_k"])  # all weights train, or some
@pytest.mark.parametrize("kind", ["full", "bf16"])
def test_a_model_in_bf16_moves_as_one_in_float32_does(kind, method, tmp_path):
    """At 1e-5 an optimizer on bf16 weights would leave most as they are: w + 1e-5 rounds to w from |w| = .005 on."""
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = build(kind).to(torch.bfloat16).to(dtype)  # the same numbers
        run = trainer(method, kind, tmp_path / str(dtype), model=model, learning_rate=1e-5, optim="adamw_torch")
        before = own_weights(run.model)
        run.train()
        after = own_weights(run.model)
        moved[dtype] = sum(int((after[name] != before[name]).sum()) for name in before)
        assert all(p.dtype == torch.float32 for p in run.model.parameters() if p.requires_grad)
    assert moved[torch.bfloat16] > 0.95 * moved[torch.float32] > 0


def test_frozen_weights_keep_their_type_beside_an_adapter(tmp_path):
    run = trainer("kl", "lora-bf16", tmp_path, model=build("lora").to(torch.bfloat16))
    types = {p.requires_grad: p.dtype for n, p in run.model.named_parameters() if ".reference." not in n}
    assert types == {True: torch.float32, False: torch.bfloat16}
    run.train()


def test_deepspeed_keeps_its_own_copy():
    model = build("full").to(torch.bfloat16)
    state = SimpleNamespace(deepspeed_plugin=object())
    keep_float32(model, SimpleNamespace(is_fsdp2=False, mixed_precision="bf16", state=state))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
