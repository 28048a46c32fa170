"""Adapters of every kind that peft makes: what the reference copies, what a reset undoes, what stays frozen."""

import shutil

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from support import NOISE, assert_same, build, own_weights, rows, trainer

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.errors import InputError
from llm_unlearn.models.adapters import REFERENCE_ADAPTER
from llm_unlearn.poisons.gaussian_embedding import inject_gaussian_noise
from llm_unlearn.tasks.embedding_noise import attached_noise
from llm_unlearn.trainers import METHODS
from llm_unlearn.trainers.support.log_probs import model_hash
from llm_unlearn.trainers.support.reference import make_reference

pytestmark = pytest.mark.unit

IDS = torch.tensor([[3, 5, 7, 9]])
LORA = {"r": 2, "task_type": "CAUSAL_LM", "target_modules": ["c_attn"]}


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """The model with all that trains disturbed, so that no adapter is at its beginning."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def deep(layers: int) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_layer=layers, n_head=1, n_embd=8, n_positions=32))


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(**LORA),
        LoraConfig(**{**LORA, "target_modules": ["c_attn", "wte"]}),
        LoraConfig(**LORA, modules_to_save=["ln_f"]),
        LoraConfig(**LORA, use_dora=True),
        LoraConfig(**LORA, trainable_token_indices=[3, 5]),
        IA3Config(task_type="CAUSAL_LM", target_modules=["c_attn", "c_proj"], feedforward_modules=["c_proj"]),
    ],
    ids=["lora", "embedding", "modules_to_save", "dora", "token_indices", "ia3"],
)
def test_the_reference_is_the_whole_adapter(config):
    model = moved(get_peft_model(build("full"), config)).eval()
    before = model(input_ids=IDS).logits.detach()
    reference = make_reference(model)
    with reference.as_model(model) as frozen:
        torch.testing.assert_close(frozen(input_ids=IDS).logits, before)
    torch.testing.assert_close(model(input_ids=IDS).logits, before)


def test_what_was_frozen_stays_frozen_through_a_reference_forward(tmp_path):
    """RMU at layer 4 of 6 trains the adapters of blocks 2 to 4, not all that the adapter has."""
    model = get_peft_model(deep(6), LoraConfig(**LORA, init_lora_weights=False))
    run = trainer("rmu", "lora", tmp_path, model=model, layer=4)
    before = own_weights(run.model)
    run.train()
    after = own_weights(run.model)
    changed = {name.split(".h.")[1].split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"2", "3", "4"}


def test_an_adapter_called_reference_is_not_taken_over(tmp_path):
    model = build("lora")
    model.add_adapter(REFERENCE_ADAPTER, LoraConfig(**LORA))
    with pytest.raises(InputError, match="an adapter named 'reference'"):
        trainer("kl", "lora", tmp_path, model=model)
    make_reference(model := build("lora"))
    make_reference(model)  # one that we made is made anew


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modules_to_save": ["ln_f"]}, "ln_f"),
        ({"use_dora": True}, "lora_magnitude"),
        ({"init_lora_weights": "pissa"}, "did not begin as the identity"),
    ],
)
@pytest.mark.parametrize("method", ["rewind", "reset_distill", "eu_k"])
def test_an_adapter_that_cannot_be_reset_is_refused(method, options, message, tmp_path):
    model = get_peft_model(build("full"), LoraConfig(**LORA, **options))
    with pytest.raises(InputError, match=message):
        trainer(method, "lora", tmp_path, model=model)


@pytest.mark.parametrize("method", ["rewind", "reset_distill"])
def test_a_new_adapter_on_the_poisoned_model_is_no_clean_start(method, tmp_path):
    config, cls = METHODS[method]
    with pytest.raises(InputError, match="model before fine-tuning.*new adapter"):
        cls(
            model=build("full"),
            args=config(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
            retain_dataset=rows(4, 0),
            peft_config=LoraConfig(**LORA),
            data_collator=CausalLMCollator(0),
        )


def test_a_start_model_may_be_a_path(tmp_path):
    build("full", seed=1).save_pretrained(tmp_path / "base")
    by_path = trainer("rewind", "full", tmp_path / "a", start=str(tmp_path / "base"))
    given = trainer("rewind", "full", tmp_path / "b", start=build("full", seed=1))
    assert_same(own_weights(by_path.model), own_weights(given.model))


def test_task_arithmetic_is_exact_on_what_the_adapter_adds(tmp_path):
    """ΔW = BA: with A frozen, ΔW_after = ΔW_0 − α (ΔW_ft − ΔW_0) = (1 + α) ΔW_0 − α ΔW_ft."""
    run = trainer("task_arithmetic", "lora", tmp_path, alpha=0.5, max_steps=8, learning_rate=1e-2)
    layer = run.model.base_model.model.transformer.h[0].attn.c_attn
    assert all("lora_B" in n for n, p in run.model.named_parameters() if p.requires_grad)
    before = layer.get_delta_weight("default").detach().clone()
    tuned = {}
    run.check_weights = lambda: tuned.setdefault("ft", layer.get_delta_weight("default").detach().clone())
    run.train()
    assert not torch.allclose(tuned["ft"], before, atol=1e-3)
    torch.testing.assert_close(layer.get_delta_weight("default").detach(), 1.5 * before - 0.5 * tuned["ft"])


@pytest.mark.parametrize("method", ["cf_k", "kl"])
def test_an_adapter_of_another_name_resumes_too(method, tmp_path):
    def run(folder):
        model = get_peft_model(build("full"), LoraConfig(**LORA, init_lora_weights=False), adapter_name="poison")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.1)
        return trainer(method, "lora", folder, model=model, max_steps=6, save_strategy="steps", save_steps=3)

    whole = run(tmp_path / "a")
    whole.train()
    shutil.copytree(tmp_path / "a" / "checkpoint-3", tmp_path / "b" / "checkpoint-3")
    resumed = run(tmp_path / "b")
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))
    assert_same(own_weights(whole.model), own_weights(resumed.model))
    with pytest.raises(InputError, match="load_best_model_at_end"):
        trainer(
            method,
            "lora",
            tmp_path,
            model=whole.model,
            load_best_model_at_end=True,
            eval_strategy="steps",
            save_strategy="steps",
            eval_steps=2,
            save_steps=2,
        )


def test_the_key_of_cached_log_probs_knows_the_adapter_and_its_scale():
    model = build("lora")
    alone = model_hash(model)
    model.add_adapter("other", LoraConfig(**LORA, init_lora_weights=False))
    first = model_hash(model)
    model.set_adapter("other")
    assert len({alone, first, model_hash(model)}) == 3
    scaled = [get_peft_model(build("full"), LoraConfig(**LORA, lora_alpha=alpha)) for alpha in (8, 64)]
    for one in scaled:
        with torch.no_grad():
            for name, parameter in one.named_parameters():
                if "lora_A" in name:
                    parameter.fill_(0.1)
    assert model_hash(scaled[0]) != model_hash(scaled[1])


def test_cached_log_probs_go_with_a_collator_that_pads_every_column(tmp_path):
    """As transformers' own do: it would fail on a column that only forget rows have."""

    def strict(items):
        assert all(item.keys() == items[0].keys() for item in items)
        return CausalLMCollator(0)(items)

    trainer("npo", "full", tmp_path, collator=strict).train()


def test_noise_is_found_on_the_model_inside_a_new_adapter(tmp_path):
    model = build("full")
    noise = inject_gaussian_noise(model, NOISE)
    config, cls = METHODS["gradient_ascent"]
    run = cls(
        model=model,
        args=config(output_dir=str(tmp_path), use_cpu=True, report_to="none", max_steps=1),
        forget_dataset=rows(4, 0, noisy=True),
        peft_config=LoraConfig(**LORA),
        data_collator=CausalLMCollator(0),
    )
    assert attached_noise(run.model) is noise
    run.train()


@pytest.mark.parametrize("method", ["gradient_descent", "cf_k", "rewind"])
def test_a_ceiling_that_nothing_could_reach_is_refused(method, tmp_path):
    with pytest.raises(InputError, match="forget_loss_ceiling: .*no forget row"):
        trainer(method, "full", tmp_path, forget_loss_ceiling=1.0)


def test_no_step_to_take_is_refused(tmp_path):
    with pytest.raises(InputError, match="max_steps=0, .*no step to take"):
        trainer("kl", "full", tmp_path, max_steps=0)


def test_checkpointing_goes_all_the_way_back_and_is_paid_for(tmp_path):
    plain, checkpointed = (
        trainer("cf_k", "full", tmp_path, model=deep(4), max_steps=1, gradient_checkpointing=on) for on in (False, True)
    )
    assert (plain.share, checkpointed.share) == (0.25, 1.0)
    assert checkpointed.plan.costs[0][0] > plain.plan.costs[0][0]
