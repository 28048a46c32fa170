"""Every method × {full, LoRA, bf16, QLoRA}: one contract. A new method is in here by being in METHODS, once it says in
MOVES what it should move. By default the representatives alone go through it, with `-m slow` all others."""

import copy
import gc
import shutil

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from support import KINDS, SLOW_KINDS, VOCABULARY, assert_same, build, build_llama, own_weights, rows, trainer

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.errors import InputError
from llm_unlearn.models.adapters import REFERENCE_ADAPTER
from llm_unlearn.tasks import causal_lm, chunk_size, head
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.trainers import METHODS
from llm_unlearn.trainers.support.reference import AdapterReference, FrozenModel

pytestmark = pytest.mark.contract

# What must move, by how much at least over 12 steps, and options that let it show on random rows in so few
NO_RETAIN = {"retain_loss": "none"}
MOVES = {
    "gradient_descent": ("eval_retain_loss", -0.05, {}),
    "noisy_gradient_descent": ("eval_retain_loss", -0.02, {"learning_rate": 0.02}),
    "gradient_ascent": ("eval_forget_loss", 0.05, {}),
    "eu_k": ("eval_retain_loss", -0.02, {}),
    "cf_k": ("eval_retain_loss", -0.02, {}),
    "scrub": ("forget_kl", 0.02, {"msteps": 9, "learning_rate": 1e-2}),
    "neggrad_plus": ("eval_forget_loss", 0.05, {"beta": 0.5}),
    "ssd": ("eval_forget_loss", 0.003, {}),
    "grad_diff": ("eval_forget_loss", 0.05, {"alpha": 1.0}),
    "kl": ("eval_forget_loss", 0.05, {}),
    "npo": ("eval_forget_loss", 0.05, {}),
    "simnpo": ("eval_forget_loss", 0.05, NO_RETAIN | {"learning_rate": 3e-3}),
    "dpo": ("eval_forget_loss", 0.05, {}),
    "rmu": ("forget_distance", -0.01, {"learning_rate": 1e-2}),
    "undial": ("eval_forget_loss", 0.05, NO_RETAIN),
    "wga": ("eval_forget_loss", 0.05, NO_RETAIN),
    "satimp": ("eval_forget_loss", 0.05, NO_RETAIN),
    "ce_u": ("eval_forget_loss", 0.05, NO_RETAIN),
    "task_arithmetic": ("eval_forget_loss", 0.05, {}),
    "altpo": ("eval_forget_loss", 0.05, NO_RETAIN),
    "idk_sft": ("eval_refusal_loss", -0.05, {"alpha": 1.0}),
    "osft": ("eval_relabelled_loss", -0.05, {"alpha": 1.0}),
    "pdu": ("flatness", -0.05, {"multiplier": 0.0, "dual_rate": 0.01}),
    "gu_project": ("eval_forget_loss", 0.05, {}),
    "crow": ("inconsistency_nudged", -0.02, {}),
    "undo": ("retain_kl", -0.02, {}),
    "sink": ("eval_forget_loss", 0.05, {"removal_share": 0.9}),
    "kfac_step": ("eval_forget_loss", 0.05, {"uphill_share": 0.9, "step_kl": 0.05}),
    "rewind": ("eval_retain_loss", -0.02, {}),
    "reset_distill": ("eval_retain_loss", -0.02, {}),
}
# Adam turns a gradient that is zero but for rounding (a key's bias, say) into a full step of random sign; SGD does not
SGD = {"optim": "sgd", "learning_rate": 0.05}
NO_CHECKPOINTS = ("ssd",)  # no training loop
TWO_PHASES = ("ssd", "undo", "sink", "kfac_step")  # so at least two steps
TEACHES_ANEW = ("undo",)  # its reference becomes another model halfway

# One for each path through the code; all others are slow
REPRESENTATIVES = {
    ("kl", "full"): "a frozen reference",
    ("rmu", "lora"): "the adapter as reference, hidden states",
    ("npo", "lora"): "cached log-probs, a retain term",
    ("reset_distill", "full"): "a start model, the poisoned one as reference",
    ("scrub", "full"): "its own choice of sets at each step",
    ("ssd", "full"): "no training loop",
    ("cf_k", "lora"): "no reference, frozen blocks",
}


def cases(*kinds: str) -> list:
    return [
        pytest.param(m, k, id=f"{m}-{k}", marks=() if (m, k) in REPRESENTATIVES else pytest.mark.slow)
        for m in METHODS
        for k in kinds
    ]


every = pytest.mark.parametrize(("method", "kind"), cases(*KINDS, *SLOW_KINDS))


def has_adapter(kind: str) -> bool:
    return kind in ("lora", "qlora")


# crow takes the sign of a gradient, which near 0 is that of bf16's rounding
MARGIN = {"crow": 0.2}


def assert_same_run(method: str, start: dict, ours: dict, theirs: dict, kind: str) -> None:
    """Equal weights in fp32; in lower precision, equal up to a small part of how far they moved."""
    if kind in KINDS:
        return assert_same(ours, theirs, atol=2e-6)
    assert_near(start, ours, theirs, MARGIN.get(method, 0.1))


def assert_near(start: dict, ours: dict, theirs: dict, margin: float) -> None:
    """Two runs' weights differ by less than a share of how far one of them moved."""
    moved, apart = (
        sum(float((ours[n].float() - other[n].float()).norm() ** 2) for n in ours) ** 0.5 for other in (start, theirs)
    )
    assert moved > 0
    assert apart < margin * moved, f"apart {apart:.2e}, moved {moved:.2e}"


def memorised(kind: str, folder):
    """A model that has been trained on the forget and retain rows."""
    both = concatenate_datasets([rows(6, 1, noisy=True), rows(10, 2)])
    run = trainer("gradient_descent", kind, folder / "before", retain=both, max_steps=80, learning_rate=1e-2)
    run.train()
    return run.model


def start_of(run) -> dict:
    return own_weights(run.model)


def test_every_method_says_what_it_moves():
    assert MOVES.keys() == METHODS.keys()


def test_the_representatives_take_every_path(tmp_path):
    """References of every kind and none; a start model; sets that change from step to step; no loop; both kinds."""
    runs = {(m, k): trainer(m, k, tmp_path) for m, k in REPRESENTATIVES}
    references = {type(run.reference) for run in runs.values()}
    assert references == {type(None), AdapterReference, FrozenModel}
    assert any(run.requires.log_probs_on for run in runs.values())
    assert any(run.starts_clean for run in runs.values()) and any(run.of_texts for run in runs.values())
    assert any(len(set(run.plan.schedule)) > 1 for run in runs.values())
    assert {k for _, k in runs} == set(KINDS) and set(NO_CHECKPOINTS) <= {m for m, _ in runs}


@every
def test_neither_the_chunks_of_the_head_nor_packing_change_a_number(method, kind, tmp_path, monkeypatch):
    """One step's loss and gradients, away from θ0: packed rows and the head a chunk at a time, its gradient kept or
    computed again; padded rows and whole logits."""
    if method in NO_CHECKPOINTS:
        pytest.skip("it has no step")

    def step(pack: bool, **head_settings: int) -> list[torch.Tensor]:
        for name, value in head_settings.items():
            monkeypatch.setattr(head if name == "KEPT_BYTES" else chunk_size, name, value)
        run = trainer(method, kind, tmp_path, task=CausalLMTask(pack))
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in run.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=0.02)
        inputs = run._prepare_inputs(next(iter(run.get_train_dataloader())))
        with run.accelerator.autocast():
            loss = run.compute_loss(run.model, inputs)
        loss.backward()
        logged = [torch.stack(values).mean() for _, values in sorted(run.components.items())]
        return [loss.detach(), *logged, *(p.grad for p in run.model.parameters() if p.grad is not None)]

    small = {"CHUNK_NUMBERS": 5 * VOCABULARY, "PART_NUMBERS": 2 * VOCABULARY, "KEPT_BYTES": 0}
    variants = [step(True), step(True, **small), step(False)]
    monkeypatch.setattr(causal_lm, "plain_head", lambda *_: None)
    *others, whole = *variants, step(False)
    size = max(float(g.abs().max()) for g in whole)
    for other in others:
        assert len(other) == len(whole)
        for ours, theirs in zip(other, whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=(2e-6 if kind in KINDS else 2e-2) * size)


@every
def test_trains_what_it_should_and_nothing_else(method, kind, tmp_path):
    quantity, least, options = MOVES[method]
    model = memorised(kind, tmp_path) if method == "ssd" else None  # it has something to dampen in a trained model only
    run = trainer(method, kind, tmp_path, model=model, max_steps=12, **options)
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    trainable = {n for n, p in run.model.named_parameters() if p.requires_grad}
    reference = None
    if run.reference is not None and not has_adapter(kind) and method not in TEACHES_ANEW:
        reference = copy.deepcopy(run.reference.model.state_dict())
    start = run.evaluate()
    run.train()
    end = run.evaluate()
    for name, parameter in run.model.named_parameters():
        taught = method in TEACHES_ANEW and REFERENCE_ADAPTER in name.split(".")
        if name not in trainable and not taught:  # of the base, the frozen blocks and the reference adapter
            assert torch.equal(parameter, before[name]), f"{name} was frozen and moved"
    assert any(not torch.equal(p, before[n]) for n, p in run.model.named_parameters() if n in trainable)
    if has_adapter(kind):
        assert all(".default." in name for name in trainable)
    if reference is not None:
        assert_same(reference, run.reference.model.state_dict())
    if quantity in start:
        change = end[quantity] - start[quantity]
    else:
        logged = [entry[quantity] for entry in run.state.log_history if quantity in entry]
        change = sum(logged[-3:]) / 3 - sum(logged[:3]) / 3
    assert change >= least if least > 0 else change <= least, f"{quantity} moved by {change:.4f}"


@every
def test_a_reference_is_held_only_where_it_is_used(method, kind, tmp_path):
    run = trainer(method, kind, tmp_path)
    adapters = set(getattr(run.model, "peft_config", {}))
    if not run.requires.reference_on:
        assert run.reference is None
        assert REFERENCE_ADAPTER not in adapters
    elif has_adapter(kind):
        assert adapters == {"default", REFERENCE_ADAPTER}
        assert not hasattr(run.reference, "copy")  # the base is shared, not copied


def new_tensor_bytes(known: set[int]) -> int:
    """Bytes of all tensors made since `gc.freeze()`, without those at known addresses; storage counted once."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor) and not thing.is_meta]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(size for address, size in storages.items() if address not in known)


@pytest.mark.parametrize(("method", "kind"), cases(*KINDS))
def test_memory_is_that_of_what_is_held(method, kind, tmp_path):
    """Nothing without a reference; with one, what trains once more (under LoRA: the adapter), as for the θ0 from which
    task arithmetic subtracts."""
    given = build(kind), build(kind, seed=1)  # held by whoever calls
    known = {p.data_ptr() for model in given for p in model.parameters()}
    gc.collect()
    gc.freeze()  # what was there before is out of sight from here on, as what is imported is in all tests
    run = trainer(method, kind, tmp_path, model=given[0], start=given[1] if kind == "full" else None)
    grown = new_tensor_bytes(known)
    named = dict(run.model.named_parameters())
    adapter = sum(p.nbytes for n, p in named.items() if f".{REFERENCE_ADAPTER}." in n)
    trained = sum(p.nbytes for p in named.values() if p.requires_grad)
    teacher = method == "reset_distill" and kind == "full"  # the poisoned model itself is the reference
    held = 0 if teacher else adapter or (trained if run.reference or method == "task_arithmetic" else 0)
    assert held <= grown <= held + 1024  # log-probs of the forget rows, rmu's direction


@every
def test_batch_of_8_is_2_times_4(method, kind, tmp_path):
    one = trainer(method, kind, tmp_path / "a", per_device_train_batch_size=8, **SGD)
    two = trainer(method, kind, tmp_path / "b", per_device_train_batch_size=4, gradient_accumulation_steps=2, **SGD)
    start = start_of(one)
    one.train()
    two.train()
    assert_same_run(method, start, own_weights(one.model), own_weights(two.model), kind)
    assert one.cost == two.cost


@every
def test_padding_changes_nothing(method, kind, tmp_path):
    plain = trainer(method, kind, tmp_path / "a", **SGD)
    padded = trainer(method, kind, tmp_path / "b", collator=CausalLMCollator(0, pad_to=24), **SGD)
    start = start_of(plain)
    plain.train()
    padded.train()
    assert_same_run(method, start, own_weights(plain.model), own_weights(padded.model), kind)


@pytest.mark.parametrize(("method", "kind"), cases(*KINDS))
def test_the_kernel_of_attention_changes_nothing(method, kind, tmp_path):
    """In Llama's shape: kfac_step once counted tokens whose gradient of the query was zero but for rounding."""
    starts = METHODS[method][1].starts_clean and kind == "full"
    runs = [
        trainer(
            method,
            kind,
            tmp_path / name,
            model=build_llama(kind),
            start=build_llama(kind, 1) if starts else None,
            **SGD,
        )
        for name in ("eager", "sdpa")
    ]
    start = start_of(runs[0])
    for run, name in zip(runs, ("eager", "sdpa"), strict=True):
        run.model.set_attn_implementation(name)
        run.train()
    assert_near(start, *(own_weights(run.model) for run in runs), margin=1e-4)


@every
def test_save_and_load_gives_the_same_logits(method, kind, tmp_path):
    run = trainer(method, kind, tmp_path / "out")
    run.train()
    run.save_model(str(tmp_path / "saved"))
    files = {p.relative_to(tmp_path / "saved").as_posix() for p in (tmp_path / "saved").rglob("*") if p.is_file()}
    assert not any(REFERENCE_ADAPTER in f or f.endswith((".bin", ".pt", ".pkl")) for f in files), files
    if has_adapter(kind):
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(build(kind).unload(), str(tmp_path / "saved"))
    else:
        from transformers import AutoModelForCausalLM

        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    ids = torch.tensor([[3, 5, 7, 9]])
    # the Trainer's own precision, which it leaves on the model that it trained
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
        ours, theirs = (model.eval()(input_ids=ids).logits.float() for model in (loaded, run.model))
    torch.testing.assert_close(ours, theirs)


@every
def test_resume_equals_uninterrupted(method, kind, tmp_path):
    whole = trainer(method, kind, tmp_path / "a", max_steps=6, save_strategy="steps", save_steps=3)
    whole.train()
    resumed = trainer(method, kind, tmp_path / "b", max_steps=6)
    if method in NO_CHECKPOINTS:
        assert not list((tmp_path / "a").glob("checkpoint-*"))
        with pytest.raises(InputError, match="no checkpoints"):
            resumed.train(resume_from_checkpoint=str(tmp_path / "a"))
        resumed.train()
    else:
        shutil.copytree(tmp_path / "a" / "checkpoint-3", tmp_path / "b" / "checkpoint-3")
        resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))
    assert_same(own_weights(whole.model), own_weights(resumed.model))
    assert whole.cost == resumed.cost


@every
def test_an_empty_supervised_span_is_refused(method, kind, tmp_path):
    items = rows(6, 1, noisy=True).to_list()
    items[2]["labels"] = [-100] * len(items[2]["labels"])  # one row among others
    bad = Dataset.from_list(items)
    with pytest.raises(InputError, match="no supervised token"):
        if "forget" in trainer(method, kind, tmp_path).requires.sets:
            trainer(method, kind, tmp_path, forget=bad, max_steps=6).train()
        else:
            trainer(method, kind, tmp_path, retain=bad, max_steps=6).train()


@every
def test_missing_set_and_budget_too_small_are_refused(method, kind, tmp_path):
    with pytest.raises(InputError, match="_dataset, which is missing"):
        trainer(method, kind, tmp_path, forget=None, retain=None)
    with pytest.raises(InputError, match=r"budget.*one step"):
        trainer(method, kind, tmp_path, max_steps=-1, max_flops=1.0)


@every
def test_the_budget_is_kept_and_filled(method, kind, tmp_path):
    plan = trainer(method, kind, tmp_path, max_steps=2 if method in TWO_PHASES else 1).plan
    budget = plan.setup + 4.5 * max(flops for flops, _ in plan.costs)
    run = trainer(method, kind, tmp_path, max_steps=-1, max_flops=budget)
    run.train()
    assert 0.7 * budget < run.cost["flops"] <= budget
