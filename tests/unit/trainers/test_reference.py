"""The reference stays what the model was, whatever happens to the model."""

import pytest
import torch
from support import assert_same, build, own_weights, trainer

from llm_unlearn.errors import InputError
from llm_unlearn.trainers.support.reference import make_reference

IDS = torch.tensor([[3, 5, 7, 9]])


def disturb(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_reference_does_not_follow_the_model(kind):
    model = build(kind).eval()
    before = model(input_ids=IDS).logits.detach()
    reference = make_reference(model)
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    disturb(model)
    assert not torch.allclose(model(input_ids=IDS).logits, before)
    with reference.as_model(model) as frozen:
        # FSDP2 looks in its first forward, which is the reference's, for what trains
        assert trainable == [n for n, p in model.named_parameters() if p.requires_grad]
        torch.testing.assert_close(frozen(input_ids=IDS).logits, before)
    assert trainable == [n for n, p in model.named_parameters() if p.requires_grad]
    assert not torch.allclose(model(input_ids=IDS).logits, before)  # switched back


def test_the_reference_of_a_model_that_trl_has_patched_is_its_own(tmp_path):
    from trl.trainer.utils import add_fused_lm_head

    model = build("full").eval()
    before = model(input_ids=IDS).logits.detach()
    add_fused_lm_head(model)
    reference = make_reference(model)
    disturb(model)
    with reference.as_model(model) as frozen:
        torch.testing.assert_close(frozen(input_ids=IDS).logits, before)


def test_the_adapter_reference_has_no_dropout_and_gives_the_mode_back():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        build("full"),
        LoraConfig(r=4, lora_dropout=0.5, target_modules=["c_attn"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    reference = make_reference(model)
    model.train()
    model.get_submodule("base_model.model.transformer.h.0.mlp").eval()  # frozen by a method, say
    modes = {name: module.training for name, module in model.named_modules()}
    with reference.as_model(model) as frozen:
        first, second = frozen(input_ids=IDS).logits, frozen(input_ids=IDS).logits
        assert not any(module.training for module in model.modules())
    assert torch.equal(first, second)
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert {*modes.values()} == {True, False}


def test_under_autocast_the_reference_is_kept_in_the_precision_it_computes_in(make_tiny):
    """Bit for bit the same logits, from half the memory but for embeddings, norms and a head tied to an embedding."""
    for architecture in ("gpt2", "llama"):
        model = make_tiny(architecture)
        lowered, plain = make_reference(model, torch.bfloat16).model, make_reference(model).model
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            assert torch.equal(lowered(input_ids=IDS).logits, plain(input_ids=IDS).logits)
        bfloat16 = {name for name, p in lowered.named_parameters() if p.dtype == torch.bfloat16}
        assert len(bfloat16) >= 14 and not any("norm" in name or "ln_" in name for name in bfloat16)
        assert ("lm_head.weight" in bfloat16) == (architecture == "llama")
        assert all(p.dtype == torch.float32 for p in (*model.parameters(), *plain.parameters()))


def test_a_layer_that_does_not_train_is_shared_with_a_lowered_reference_too(make_tiny):
    model = make_tiny("llama")
    frozen = model.model.layers[0].requires_grad_(False).mlp.up_proj
    lowered = make_reference(model, torch.bfloat16).model
    assert lowered.model.layers[0].mlp.up_proj.weight is frozen.weight
    assert lowered.model.layers[1].mlp.up_proj.weight.dtype == torch.bfloat16


def test_a_reference_in_the_hosts_memory_gives_the_same_weights(tmp_path):
    """On a CPU both are in the same memory: what is seen here is that its hooks change no number."""
    runs = [
        trainer(
            "kl",
            "full",
            tmp_path / str(offload),
            offload_reference=offload,
            max_steps=3,
            optim="sgd",
            learning_rate=0.05,
        )
        for offload in (False, True)
    ]
    for run in runs:
        run.train()
    plain, offloaded = (run.reference.model for run in runs)
    assert all(p.device.type == "meta" for p in offloaded.parameters())
    assert not any(p.device.type == "meta" for p in plain.parameters())
    assert_same(own_weights(runs[0].model), own_weights(runs[1].model), atol=1e-6)  # its logits are made at once


# those of peft that need neither a GPU (loftq) nor a pass over data before (corda, lora_ga)
INITIALISATIONS = (True, False, "gaussian", "olora", "pissa", "pissa_niter_2", "orthogonal", "eva")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("init", INITIALISATIONS)
def test_an_adapter_reference_leaves_the_base_as_it_is_whatever_the_initialisation(make_tiny, init):
    """peft initialises a new adapter; pissa and olora write into the frozen base as they do (peft#2184)."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=init, task_type="CAUSAL_LM")
    model = get_peft_model(make_tiny("llama"), config).eval()
    before = model(input_ids=IDS).logits.detach()
    base = {name: weight.clone() for name, weight in model.named_parameters() if "lora_" not in name}
    reference = make_reference(model)
    assert torch.equal(model(input_ids=IDS).logits, before)
    weights = dict(model.named_parameters())
    assert all(torch.equal(weights[name], weight) for name, weight in base.items())
    disturb(model)
    with reference.as_model(model) as frozen:
        assert torch.equal(frozen(input_ids=IDS).logits, before)


def test_an_adapter_that_allows_only_one_to_train_gets_a_reference(make_tiny):
    from peft import AdaLoraConfig, get_peft_model

    config = AdaLoraConfig(init_r=4, target_r=2, total_step=9, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(make_tiny("llama"), config).eval()
    disturb(model)
    before = model(input_ids=IDS).logits.detach()
    reference = make_reference(model)
    disturb(model)
    with reference.as_model(model) as frozen:
        assert torch.equal(frozen(input_ids=IDS).logits, before)
    assert not torch.equal(model(input_ids=IDS).logits, before)


@pytest.mark.parametrize("beyond", [{"bias": "all"}, {"bias": "lora_only"}, {"layer_replication": [[0, 2], [0, 2]]}])
def test_an_adapter_that_changes_its_base_has_no_adapter_reference(make_tiny, beyond):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **beyond)
    with pytest.raises(InputError, match="base"):
        make_reference(get_peft_model(make_tiny("llama"), config))


@pytest.mark.parametrize(("options", "shared"), [({}, True), ({"offload_reference": True}, False)])
def test_weights_that_do_not_train_are_shared_unless_the_reference_is_placed_apart(options, shared, tmp_path):
    """Moving an offloaded reference to the host would move them for the model that trains as well."""
    run = trainer("rmu", "full", tmp_path, **options)
    held = {id(p) for p in run.model.parameters() if not p.requires_grad}
    assert bool(held & {id(p) for p in run.reference.model.parameters()}) == shared
    run.train()
