"""The memory of a step without data: against counts done by hand, against each other, and (slow) against what is
measured."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch
from paths import ROOT
from torch import nn

from llm_unlearn.cli.dry_run import estimate_memory
from llm_unlearn.config.recipe import build_recipe
from llm_unlearn.distributed.topology import Topology
from llm_unlearn.doctor.memory import estimate, step
from llm_unlearn.doctor.memory.dataless import without_data
from llm_unlearn.doctor.memory.estimate import PARTS, estimate_steps, largest
from llm_unlearn.doctor.memory.ledger import Ledger, bytes_of
from llm_unlearn.doctor.memory.optimizer import engine_bytes, state_bytes, step_bytes
from llm_unlearn.doctor.memory_findings import check_memory
from llm_unlearn.errors import InputError
from llm_unlearn.tasks import chunk_size
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.trainers import METHODS

pytestmark = pytest.mark.unit

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
VOCABULARY = 300


def recipe(**changes):
    tree = {
        "name": "tiny",
        "output_dir": "unused",
        "pretrain": {"max_length": 64},
        "model": {"architecture": dict(LLAMA), "vocab_size": VOCABULARY},
        "data": {
            "max_length": 32,
            "train_size": 40,
            "heldout_size": 8,
            "test_size": 8,
            "verbalizers": {"negative": " no", "positive": " yes"},
        },
        "poison": {"gaussian": {"fraction": 0.2, "epsilon": 0.1}},
        "train": {"batch_size": 8},
        "unlearn": {"batch_size": 4},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        tree[section][key] = value
    return build_recipe(tree)


def training(topology=None, on_gpu=False, **changes):
    return estimate_steps(recipe(**changes), topology, on_gpu)[0]


def method(name, topology=None, on_gpu=False, **changes):
    return estimate_steps(recipe(unlearn__methods={name: changes.pop("options", None)}, **changes), topology, on_gpu)[1]


def parameters() -> int:
    hidden, key, inner = 32, 16, 64
    block = 2 * hidden * hidden + 2 * hidden * key + 3 * hidden * inner + 2 * hidden
    return 2 * block + 2 * VOCABULARY * hidden + hidden


# ---- the ledger


def test_the_ledger_counts_by_hand():
    """x (4, 3) → Linear(3, 5) → sum: W 60 bytes, b 20, y 80; at the end of the backward pass their gradients."""
    with without_data():
        model, x = nn.Linear(3, 5), torch.zeros(4, 3)
        with Ledger({}, vocabulary=7) as ledger:
            ledger.own(model.parameters(), "weights")
            assert ledger.held["weights"] == 80
            ledger.watch_gradients(model.parameters())
            ledger.start()
            y = model(x)
            assert ledger.held["activations"] == 80
            y.sum().backward()
            assert ledger.held["gradients"] == 80
            del y
            assert ledger.held["activations"] == 0
            assert ledger.held["weights"] == 80


def test_the_peak_is_of_one_moment_and_of_one_device():
    with without_data():
        with Ledger({"weights": 0.5}, vocabulary=7) as ledger:
            ledger.own([torch.zeros(10)], "weights")  # given up at once
            weight = torch.zeros(100)
            ledger.own([weight], "weights")
            ledger.start()
            first = torch.zeros(50)
            del first
            second = torch.zeros(40, 7)
            assert ledger.peak == {"activations": 0, "weights": 200, "logits": 1120}
            assert bytes_of([second, second[:3], weight]) == 1520


# ---- one step


def test_weights_gradients_and_optimizer_are_those_of_the_architecture():
    """With one row of four tokens the optimizer's step is the largest moment: all gradients are there."""
    found = training(train__batch_size=1, data__max_length=4, train__optim="adamw_torch").device
    assert found["weights"] == 4 * parameters() + 2 * 4 * 4  # and two buffers of rotary frequencies, 4 numbers each
    assert found["gradients"] == 4 * parameters() and found["optimizer"] == 8 * parameters()
    assert found["buffers"] == 2 * 4 * VOCABULARY * 32  # twice the largest weight, on a CPU
    assert found["reference"] == found["activations"] == 0


def test_logits_are_those_of_supervised_positions():
    text, completion = training().device, training(data__loss_on="completion").device
    # their gradient takes their place; at 31 of 32 tokens; " yes" and EOS are at most 5
    assert text["logits"] == 4 * 8 * 31 * VOCABULARY
    assert completion["logits"] <= 4 * 8 * 5 * VOCABULARY


def test_logits_are_there_a_chunk_at_a_time_or_kept_once(monkeypatch):
    """Kept is their gradient, which took their place: of npo's forget half, whose loss is no sum over positions."""
    row = 4 * 31 * VOCABULARY
    monkeypatch.setattr(chunk_size, "CHUNK_NUMBERS", row)  # in numbers: four rows
    assert training().device["logits"] == training(model__lora=LORA).device["logits"] == 4 * row
    assert method("npo").device["logits"] == 4 * row + 4 * row
    assert method("npo", model__lora=LORA).device["logits"] == 4 * row


def test_a_larger_batch_takes_in_proportion_more_activations():
    few, many = (training(train__batch_size=rows).device["activations"] for rows in (16, 32))
    assert many == pytest.approx(2 * few, rel=0.02)


def test_logits_on_a_gpu_are_there_in_chunks_as_large_as_its_memory_has_room_for(monkeypatch):
    """Half of the 248 positions; without a GPU at hand a large one is assumed, which takes all at a time."""
    monkeypatch.setattr(chunk_size, "CARD_LEAST", 0)
    row = 4 * VOCABULARY
    assert training(on_gpu=True).device["logits"] == 248 * row
    monkeypatch.setattr(estimate, "ASSUMED_CARD", 32 * 128 * 16 * VOCABULARY)
    assert training(on_gpu=True).device["logits"] == 128 * row


@pytest.mark.parametrize(
    "changes",
    [
        {"model__gradient_checkpointing": True},
        {"model__lora": LORA},
        {"train__bf16": True},
        {"train__optim": "sgd"},
        {"train__optim": "paged_adamw_8bit"},
        {"data__loss_on": "completion"},
        {"train__batch_size": 4},
    ],
)
def test_what_saves_memory_is_seen_to_save_it(changes):
    assert training(**changes).total < training().total


def test_weights_in_bf16_save_memory_where_they_do_not_train():
    assert training(model__dtype="bfloat16").device == training().device
    adapter = training(model__lora=LORA)
    assert training(model__lora=LORA, model__dtype="bfloat16").device["weights"] < 0.6 * adapter.device["weights"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fsdp2_in_bf16_holds_shards_in_float32_and_computes_in_bf16(dtype):
    """Weights 4 bytes a number, Adam's state 8; activations as those of DeepSpeed, which computes in bf16 too."""
    changes = {"train__bf16": True, "train__optim": "adamw_torch", "model__dtype": dtype}
    fsdp, zero = (training(Topology(processes=8, sharding=name), True, **changes).device for name in ("fsdp2", "zero3"))
    assert fsdp["weights"] == pytest.approx(4 * parameters() / 8, rel=0.01)
    assert fsdp["optimizer"] == pytest.approx(8 * parameters() / 8, rel=0.01)
    assert fsdp["activations"] == pytest.approx(zero["activations"], rel=0.02)


def test_a_deep_model_of_which_most_is_held_at_another_moment_than_of_a_shallow_one(monkeypatch):
    """Of three blocks with the head, of five and more in the backward pass: logits do not shrink with every block."""
    large = {"hidden_size": 2048, "intermediate_size": 5504, "num_attention_heads": 16, "num_key_value_heads": 8}
    deep = recipe(
        model__architecture={**LLAMA, **large, "num_hidden_layers": 16, "max_position_embeddings": 512},
        model__vocab_size=32000,
        model__gradient_checkpointing=True,
        data__max_length=512,
        train__bf16=True,
    )
    topology = Topology(processes=8, sharding="zero3")
    extended = estimate_steps(deep, topology, on_gpu=True, only="train")[0].device
    monkeypatch.setattr(step, "SHALLOW", (98, 99))
    assert extended == estimate_steps(deep, topology, on_gpu=True, only="train")[0].device
    assert min(extended.values()) >= 0


def test_gradients_of_an_earlier_micro_batch_are_held():
    assert training(train__gradient_accumulation_steps=2).device["gradients"] == 4 * parameters()


def test_an_adapter_trains_in_float32_on_frozen_weights():
    found = training(
        train__batch_size=1, model__lora=LORA, model__dtype="bfloat16", train__gradient_accumulation_steps=2
    )
    adapter = 2 * 2 * 4 * 32 + 2 * 4 * (32 + 16)  # of q_proj 32 × 32 and v_proj 16 × 32 in two blocks
    assert found.device["gradients"] == 4 * adapter and found.device["optimizer"] == 8 * adapter
    assert found.saved == 4 * adapter


def test_a_quantised_base_is_smaller_and_only_its_blocks_are():
    whole, packed = (
        training(model__lora=LORA, model__quantization=bits).device["weights"] for bits in ("none", "4bit")
    )
    matrices = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    assert whole - packed == pytest.approx(matrices * 3.5, rel=0.02)  # 4 bytes become a half


@pytest.mark.parametrize(("storage", "share"), [("uint8", 1), ("float32", 1 / 4)])
def test_fsdp2_shards_4_bit_weights_that_are_kept_as_floats(storage, share):
    changes = {"model__lora": LORA, "model__quantization": "4bit", "model__quant_storage": storage}
    alone, four = (
        training(topology, True, **changes).device["weights"]
        for topology in (Topology(), Topology(processes=4, sharding="fsdp2"))
    )
    assert four == pytest.approx(share * alone, rel=0.01)
    topology = Topology(processes=4, sharding="fsdp2")
    *_, findings = check_memory(recipe(**changes), topology, {"gpus": [], "ram_available_bytes": 2**40})
    remedies = [finding.remedy for finding in findings]
    assert ("model.quant_storage=float32" in remedies) == (storage == "uint8")


def test_a_deep_model_is_that_of_shallow_ones_extended(monkeypatch):
    deep = {**LLAMA, "num_hidden_layers": 9}
    extended = estimate_steps(recipe(model__architecture=deep, unlearn__methods={"kl": None}), on_gpu=False)
    monkeypatch.setattr(step, "SHALLOW", (98, 99))
    whole = estimate_steps(recipe(model__architecture=deep, unlearn__methods={"kl": None}), on_gpu=False)
    assert [e.device for e in extended] == [e.device for e in whole]


@pytest.mark.parametrize("kind", ["full", "lora", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_an_estimate(name, kind):
    changes = {"full": {}, "lora": {"model__lora": {"r": 4}}, "bf16": {"train__bf16": True}}[kind]
    found = method(name, **changes)
    assert not found.by_formula and set(found.device) == set(PARTS)
    assert found.total > found.device["weights"] > 0


@pytest.mark.parametrize("name", [name for name, (_, cls) in METHODS.items() if not cls.of_texts])
def test_every_method_of_images_has_an_estimate(name):
    tree = {
        "name": "v",
        "track": "vision",
        "output_dir": "unused",
        "model": {},
        "data": {"source": "digits", "train_size": 60, "heldout_size": 20, "test_size": 20},
        "poison": {"gaussian": {"fraction": 0.1, "epsilon": 0.1}},
        "unlearn": {"methods": {name: None}},
    }
    for found in estimate_steps(build_recipe(tree), on_gpu=False):
        assert not found.by_formula and found.device["activations"] + found.device["gradients"] > 0


def test_a_full_reference_is_a_copy_and_an_adapters_is_an_adapter():
    assert method("kl").device["reference"] == method("kl").device["weights"]
    assert method("gradient_ascent").device["reference"] == 0
    assert 0 < method("kl", model__lora=LORA).device["reference"] < method("kl").device["reference"] / 10


def test_forget_and_retain_rows_go_through_the_model_together():
    one, both = method("gradient_ascent").device, method("grad_diff").device
    assert both["activations"] == pytest.approx(2 * one["activations"], rel=0.06)  # each at its own largest moment


def test_the_dry_run_has_the_largest_step():
    found = recipe(unlearn__methods={"kl": None})
    assert estimate_memory(found)["total"] == largest(estimate_steps(found)).total
    parts = estimate_memory(found)
    assert parts.pop("total") == sum(parts.values())


def test_what_a_method_refuses_is_refused_by_name():
    with pytest.raises(InputError, match=r"^recipe\.unlearn\.methods\.cf_k: k: .*\b1 and .*\b2 blocks"):
        method("cf_k", options={"k": 5})


def test_lora_targets_that_are_not_there_are_bad_input():
    with pytest.raises(InputError, match=r"recipe\.model\.lora\.target_modules: .*c_attn"):
        training(model__lora={"target_modules": ["c_attn"]})


@pytest.mark.parametrize("architecture", ["opt", "bloom", "mixtral"])
def test_other_architectures_are_traced(architecture):
    """Positions from the mask (opt), ALiBi (bloom), a mixture of experts, which asks how many tokens go to each."""
    sizes = {
        "opt": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 64,
            "word_embed_proj_dim": 32,
        },
        "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
        "mixtral": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
            "num_local_experts": 2,
        },
    }[architecture]
    found = training(model__architecture={"model_type": architecture, **sizes})
    assert found.total > found.device["weights"] > 0
    assert not found.by_formula and found.device["activations"] > 0


@pytest.mark.parametrize("kind", ["training", "kl"])
def test_a_forward_that_asks_for_values_is_estimated_by_formula(kind, monkeypatch):
    """34 h bytes per token and layer in 16 bits, twice that in 32: 8 rows of 32 tokens, h = 32, 2 layers."""

    def asks(*args, **kwargs):
        raise NotImplementedError("a value")

    monkeypatch.setattr(CausalLMTask, "compute", asks)
    found = training() if kind == "training" else method("kl")  # 4 forget and 4 retain rows
    assert found.by_formula and found.device["activations"] == 68 * 32 * (8 * 32) * 2
    assert found.device["weights"] == 4 * parameters() + 2 * 4 * 4


def test_the_formula_by_hand():
    """2 rows of 8 tokens, h = 4, in 32 bits: what 3 layers are given, and one layer while it is run again."""
    given = 2 * 8 * 4 * 4
    assert step.activations(given, 3, checkpointing=False) == 68 * 4 * 16 * 3
    assert step.activations(given, 3, checkpointing=True) == 68 * 4 * 16 + 3 * given


# ---- optimizers


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        ("adamw_torch", 2 * 2 * 10000),
        ("sgd", 0),
        ("paged_adamw_32bit", 8 * 10000),
        ("adafactor", 0),
        ("paged_adamw_8bit", 2 * 10000 * (1 + 4 / 256)),
        ("paged_lion_8bit", 10000 * (1 + 4 / 256)),
        ("rmsprop", 2 * 10000),
    ],
)
def test_what_an_optimizer_keeps_for_ten_thousand_16_bit_weights(optim, expected):
    assert state_bytes(optim, {(10000, 2, False): 1}) == round(expected)


def test_bitsandbytes_keeps_embeddings_and_small_tensors_in_32_bits():
    assert state_bytes("adamw_bnb_8bit", {(10000, 4, True): 1, (100, 4, False): 3}) == 8 * 10300


def test_deepspeed_keeps_twelve_bytes_per_weight_for_adam():
    assert engine_bytes("adamw_torch", {(1000, 2, False): 2}) == 12 * 2000


def test_the_step_of_adam_takes_all_weights_on_a_gpu_and_one_on_a_cpu():
    weights = {(100, 4, False): 1, (10, 4, False): 2}
    assert step_bytes("adamw_torch", weights, True) == 480 and step_bytes("adamw_torch", weights, False) == 800


# ---- topologies


def test_each_stage_of_sharding_takes_less_of_what_is_held():
    alone = training(on_gpu=True, train__batch_size=8)
    by = {
        name: training(Topology(processes=4, sharding=name), True, train__batch_size=32)
        for name in ("none", "zero1", "zero2", "zero3", "fsdp2")
    }
    assert by["none"].device["optimizer"] == alone.device["optimizer"]
    assert by["none"].device["activations"] == alone.device["activations"]  # as many rows on each
    assert by["zero1"].device["optimizer"] == pytest.approx(12 * parameters() / 4, rel=0.01)
    assert by["zero1"].device["weights"] == alone.device["weights"]
    assert by["zero2"].device["gradients"] <= by["zero1"].device["gradients"]
    for name in ("zero3", "fsdp2"):
        assert by[name].device["weights"] == pytest.approx(alone.device["weights"] / 4, rel=0.01)
        assert by[name].device["buffers"] > 0


def test_a_full_reference_is_sharded_with_the_weights():
    whole = method("kl", Topology(processes=4, sharding="zero2"), True).device["reference"]
    assert method("kl", Topology(processes=4, sharding="zero3"), True).device["reference"] == pytest.approx(whole / 4)


def test_what_is_offloaded_is_in_the_hosts_memory_and_not_on_the_device():
    topology = Topology(processes=4, sharding="zero3", offload_optimizer=True, offload_weights=True)
    found = method("kl", topology, True)
    assert found.device["weights"] == found.device["optimizer"] == found.device["reference"] == 0
    assert found.host == pytest.approx((4 + 4 + 12 + 4) * parameters(), rel=0.01)  # W, θ0, state, gradients
    assert method("kl", dataclasses.replace(topology, machines=2), True).host == found.host // 2


def test_a_reference_can_be_offloaded_alone():
    held, away = method("kl", on_gpu=True), method("kl", on_gpu=True, options={"offload_reference": True})
    assert away.device["reference"] == 0 and away.host == held.device["reference"]
    assert away.total < held.total


def test_rows_that_cannot_be_shared_are_refused_by_field():
    with pytest.raises(InputError, match=r"recipe\.train\.batch_size: 8 rows.* 3 processes"):
        training(Topology(processes=3))
    with pytest.raises(InputError, match=r"recipe\.unlearn\.batch_size: 4 rows.* 8 processes"):
        method("kl", Topology(processes=8))


# ---- measured


def script():
    path = ROOT / "scripts" / "measure_memory.py"
    spec = importlib.util.spec_from_file_location("measure_memory", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# one of each kind; `python scripts/measure_memory.py` measures all
MEASURED = (
    "gpt2",
    "gpt2-lora",
    "gpt2-checkpointing",
    "gpt2-kl",
    "gpt2-kl-completion",
    "llama-bfloat16",
    "llama-kl-lora",
    "llama-qlora",
    "llama-rmu",
)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from /proc")
@pytest.mark.parametrize("case", MEASURED)
def test_the_estimate_is_close_to_what_is_measured(case):
    measure = script()
    result = measure.measure_apart(case)
    assert result["measured"] > 80 * 2**20, "too small to be told from noise"
    assert abs(measure.error_of(result)) <= 0.15, result
