"""Every method × {full, LoRA}: one contract. A new method is in here by being in METHODS."""

import copy
import shutil

import pytest
import torch
from datasets import Dataset
from support import assert_same, build, own_weights, trainer

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.errors import InputError
from llm_unlearn.trainers import METHODS
from llm_unlearn.trainers.reference import REFERENCE_ADAPTER

pytestmark = pytest.mark.contract

# which way the forget loss must move: +1 up, None no claim
FORGET_GOES = {"gradient_descent": None, "gradient_ascent": 1, "grad_diff": 1, "kl": 1}
# Adam turns a gradient that is zero but for rounding (a key's bias, say) into a full step of random sign; SGD does not
SGD = {"optim": "sgd", "learning_rate": 0.05}

METHODS_AND_KINDS = [pytest.param(m, k, id=f"{m}-{k}") for m in METHODS for k in ("full", "lora")]
every = pytest.mark.parametrize(("method", "kind"), METHODS_AND_KINDS)


def test_every_method_says_which_way_forget_goes():
    assert FORGET_GOES.keys() == METHODS.keys()


@every
def test_trains_what_it_should_and_nothing_else(method, kind, tmp_path):
    run = trainer(method, kind, tmp_path, max_steps=12)
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    trainable = {n for n, p in run.model.named_parameters() if p.requires_grad}
    reference = copy.deepcopy(run.reference.copy.state_dict()) if kind == "full" and run.reference else None
    start = run.evaluate()
    run.train()
    end = run.evaluate()
    for name, parameter in run.model.named_parameters():
        if name not in trainable:
            assert torch.equal(parameter, before[name]), f"{name} was frozen and moved"
    assert any(not torch.equal(p, before[n]) for n, p in run.model.named_parameters() if n in trainable)
    if kind == "lora":
        assert all(".default." in name for name in trainable)
    if reference is not None:
        assert_same(reference, run.reference.copy.state_dict())
    if FORGET_GOES[method]:
        assert end["eval_forget_loss"] > start["eval_forget_loss"] + 0.05
    if method == "gradient_descent":
        assert end["eval_retain_loss"] < start["eval_retain_loss"] - 0.05


@every
def test_a_reference_is_held_only_where_it_is_used(method, kind, tmp_path):
    run = trainer(method, kind, tmp_path)
    adapters = set(getattr(run.model, "peft_config", {}))
    if not METHODS[method][1].reference_on:
        assert run.reference is None
        assert REFERENCE_ADAPTER not in adapters
    elif kind == "lora":
        assert adapters == {"default", REFERENCE_ADAPTER}
        assert not hasattr(run.reference, "copy")  # the base is shared, not copied


@every
def test_batch_of_8_is_2_times_4(method, kind, tmp_path):
    one = trainer(method, kind, tmp_path / "a", per_device_train_batch_size=8, **SGD)
    two = trainer(method, kind, tmp_path / "b", per_device_train_batch_size=4, gradient_accumulation_steps=2,
                  **SGD)
    one.train()
    two.train()
    assert_same(own_weights(one.model), own_weights(two.model), atol=2e-6)
    assert one.cost == two.cost


@every
def test_padding_changes_nothing(method, kind, tmp_path):
    plain = trainer(method, kind, tmp_path / "a", **SGD)
    padded = trainer(method, kind, tmp_path / "b", collator=CausalLMCollator(0, pad_to=24), **SGD)
    plain.train()
    padded.train()
    assert_same(own_weights(plain.model), own_weights(padded.model), atol=2e-6)


@every
def test_save_and_load_gives_the_same_logits(method, kind, tmp_path):
    run = trainer(method, kind, tmp_path / "out")
    run.train()
    run.save_model(str(tmp_path / "saved"))
    files = {p.relative_to(tmp_path / "saved").as_posix() for p in (tmp_path / "saved").rglob("*") if p.is_file()}
    assert not any(REFERENCE_ADAPTER in f or f.endswith((".bin", ".pt", ".pkl")) for f in files), files
    if kind == "lora":
        from peft import PeftModel

        base = build("lora").unload()
        loaded = PeftModel.from_pretrained(base, str(tmp_path / "saved"))
    else:
        from transformers import AutoModelForCausalLM

        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    ids = torch.tensor([[3, 5, 7, 9]])
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(input_ids=ids).logits, run.model.eval()(input_ids=ids).logits)


@every
def test_resume_equals_uninterrupted(method, kind, tmp_path):
    whole = trainer(method, kind, tmp_path / "a", max_steps=6, save_strategy="steps", save_steps=3)
    whole.train()
    shutil.copytree(tmp_path / "a" / "checkpoint-3", tmp_path / "b" / "checkpoint-3")
    resumed = trainer(method, kind, tmp_path / "b", max_steps=6)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))
    assert_same(own_weights(whole.model), own_weights(resumed.model))
    assert whole.cost == resumed.cost


@every
def test_an_empty_supervised_span_is_refused(method, kind, tmp_path):
    needs = METHODS[method][1].needs
    empty = Dataset.from_list([{"input_ids": [4, 5, 6], "labels": [-100, -100, -100], "noise_id": -1}] * 4)
    arguments = {"forget": empty} if "forget" in needs else {}
    if not arguments:
        run = trainer(method, kind, tmp_path)
        run.train_dataset.rows["retain"] = empty
    else:
        run = trainer(method, kind, tmp_path, **arguments)
    with pytest.raises(InputError, match="no supervised token"):
        run.train()


@every
def test_missing_set_and_budget_too_small_are_refused(method, kind, tmp_path):
    config, cls = METHODS[method]
    options = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"}
    with pytest.raises(InputError, match="_dataset, which is missing"):
        cls(model=build(kind), args=config(**options), data_collator=CausalLMCollator(0))
    with pytest.raises(InputError, match="does not pay for one step"):
        trainer(method, kind, tmp_path, max_flops=1.0)


@every
def test_the_budget_is_kept_and_filled(method, kind, tmp_path):
    step = trainer(method, kind, tmp_path, max_steps=1).step_costs[0][0]
    run = trainer(method, kind, tmp_path, max_steps=-1, max_flops=7.5 * step)
    run.train()
    assert 0.7 * 7.5 * step < run.cost["flops"] <= 7.5 * step
