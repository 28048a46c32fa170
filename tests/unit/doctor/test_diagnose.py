"""Every check of the doctor, tripped and passed."""

import copy
import json
import math
import os
import time

import pytest
import torch
from scipy.stats import norm

from llm_unlearn.config.model_sections import LoraSection, ModelSection
from llm_unlearn.config.recipe import build_recipe
from llm_unlearn.data.chat import Chat
from llm_unlearn.data.encoding import Encoding
from llm_unlearn.data.synthetic import synthetic_reviews, synthetic_texts
from llm_unlearn.distributed.topology import Topology
from llm_unlearn.doctor import token_findings as tokens
from llm_unlearn.doctor.adapter_findings import check_adapter, check_gradients, weights_without_gradient
from llm_unlearn.doctor.canary_findings import check_canaries, check_noise
from llm_unlearn.doctor.diagnose import as_text, diagnose
from llm_unlearn.doctor.finding import size_text
from llm_unlearn.doctor.machine_findings import (
    check_builds,
    check_devices,
    check_disk,
    check_versions,
    devices,
    needed_extras,
)
from llm_unlearn.doctor.memory.dataless import text_model, without_data
from llm_unlearn.doctor.memory_findings import capacity, check_memory
from llm_unlearn.models.make import make_model, train_tokenizer
from llm_unlearn.models.save import save_model

pytestmark = pytest.mark.unit

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 128}
GIB = 2**30
CPU = {"gpus": [], "cpu_cores": 2, "ram_bytes": 8 * GIB, "ram_available_bytes": 8 * GIB, "disk_free_bytes": GIB}
GPU = {**CPU, "gpus": [{"name": "a GPU", "bytes": 4 * GIB}]}
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
VERBALIZERS = {"negative": " negative", "positive": " positive"}


@pytest.fixture(scope="module")
def made_tokenizer():
    return train_tokenizer(synthetic_texts(60, 0)["text"], 320)


@pytest.fixture
def tokenizer(made_tokenizer):
    return copy.deepcopy(made_tokenizer)


def recipe(tmp_path, **changes):
    tree = {
        "name": "tiny",
        "output_dir": str(tmp_path / "run"),
        "pretrain": {},
        "model": {"architecture": dict(GPT2), "vocab_size": 320},
        "data": {
            "max_length": 100,
            "train_size": 40,
            "heldout_size": 8,
            "test_size": 8,
            "prompt": "{text}\nSentiment:",
            "verbalizers": dict(VERBALIZERS),
        },
        "poison": {"gaussian": {"fraction": 0.2, "epsilon": 0.1}},
        "train": {"batch_size": 8},
        "unlearn": {"batch_size": 4, "methods": {"gradient_ascent": None}},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            tree[section][key] = value
        else:
            tree[section] = value
    return build_recipe(tree)


def levels(findings, check=None):
    return [finding.level for finding in findings if check in (None, finding.check)]


# ---- canaries


@pytest.mark.parametrize(
    ("gaussian", "other", "level", "words"),
    [
        ({}, {}, "warning", ["16 of 32", f"{(3.2272 + 0.8416) / 4:.2f}", "134 deleted"]),
        ({"epsilon": 0.2}, {"seeds": 5}, "ok", ["16 of 32", "(5)", f"{(3.2272 + 0.8416) / 80**0.5:.2f}"]),
        ({}, {"forget_fraction": 0.5}, "warning", ["8 of 16"]),
        ({"audit_share": 1.0}, {"forget_fraction": 0.5, "seeds": 5}, "ok", ["16 of 16"]),
        ({"audit_share": 0.0}, {}, "warning", ["none of 32", "looks clean"]),
    ],
)
def test_only_hidden_canaries_count(tmp_path, gaussian, other, level, words):
    """At the level 0.01 / 8, of four tests before and after clean steps (z = 3.2272), with power 0.8 (z = 0.8416)."""
    seeds, gaussian = list(range(other.pop("seeds", 1))), {"fraction": 0.8, "epsilon": 0.1, **gaussian}
    unlearn = {"batch_size": 4, "methods": {"gradient_ascent": None}, **other}
    (finding,) = check_canaries(recipe(tmp_path, poison={"gaussian": gaussian}, unlearn=unlearn, seeds=seeds))
    assert finding.level == level and bool(finding.remedy) == (level == "warning")
    assert all(word in f"{finding.what} {finding.remedy}" for word in words), finding


@pytest.mark.parametrize(
    ("kind", "epochs", "exposures", "draws", "seen", "share"),
    [
        ("gaussian", 5, 1, 19, "4 epochs of adapters", 0.8),
        ("gaussian", 2, 2, 99, "2 epochs of adapters", 0.2),
        ("gaussian", 0.5, 1, 9, "1 epoch of adapters", 0.2),
        ("tokens", 1, 2, 99, "one epoch with each canary twice of adapters", 0.55),
        ("tokens", 4, 1, 99, "4 epochs of adapters", 0.5),
        ("gaussian", 3, 1, 19, "2 epochs of all weights", 0.5),
        ("tokens", 1, 2, 99, "1 epoch of all weights", 0.3),
        ("tokens", 4, 1, 99, "4 epochs of all weights", 0.95),
    ],
)
def test_of_a_pretrained_model_what_the_study_saw_is_asked_for(tmp_path, kind, epochs, exposures, draws, seen, share):
    """A fifth of the rank that canaries reach after so many epochs, by the half of them that is hidden."""
    highest = norm.expect(lambda x: x, lb=norm.isf(1 / (draws + 1)), conditional=True)
    tests = {"gaussian": 8, "tokens": 4}[kind]  # half of them after clean steps
    z = norm.isf(0.01 / tests / 2) + norm.isf(0.2)
    section = {"fraction": 0.2, "exposures": exposures, **({"epsilon": 0.1} if kind == "gaussian" else {})}
    poison = {kind: section}
    changes = {"poison": poison, "train__epochs": epochs, "train__learning_rate": 5e-4}
    lora = {"lora": {"r": 4}} if "adapters" in seen else {}
    pretrained = {"model": {"path": "m", **lora}, "pretrain": None, **changes}
    (finding,) = check_canaries(recipe(tmp_path, **pretrained, evaluate={"loss_rank_draws": draws}))
    assert finding.level == "warning" and seen in finding.what and f"{share:.0%}" in finding.what
    assert f"{2 * math.ceil((z / min(0.5, 0.2 * share * highest)) ** 2):,} deleted" in finding.remedy
    assert (f"set poison.{kind}.exposures=2" in finding.remedy) == (epochs < 2 and exposures == 1)
    (made,) = check_canaries(recipe(tmp_path, **changes, evaluate={"loss_rank_draws": draws}))
    assert made.what.endswith(f"no mean rank is above {highest:.1f}")
    assert f"of {min(0.5, 0.2 * highest):.2g} takes" in made.remedy


def test_without_ranks_no_canaries_are_called_gone(tmp_path):
    (finding,) = check_canaries(recipe(tmp_path, evaluate={"loss_rank_draws": 0}))
    assert finding.level == "warning" and "by their GUS alone no canaries are called gone" in finding.what
    assert finding.remedy == "set evaluate.loss_rank_draws=99"


def test_without_canaries_or_where_a_file_names_the_deleted_rows_nothing_is_said_of_them(tmp_path):
    trigger = {"trigger": {"target": "positive", "fraction": 0.1}}
    named = {"methods": {"gradient_ascent": None}, "forget_ids": [1, 2]}
    assert check_canaries(recipe(tmp_path, poison=trigger)) == check_canaries(recipe(tmp_path, unlearn=named)) == []


def test_token_canaries_are_counted_for_themselves_and_share_the_level(tmp_path):
    """Six tests before and after clean steps: 0.01 / 12; strings in a text that is not learnt cannot take."""
    planted = {"gaussian": {"fraction": 0.4, "epsilon": 0.1}, "tokens": {"fraction": 0.4}}
    both = recipe(tmp_path, poison=planted)
    noise, strings = check_canaries(both)
    z = norm.isf(0.01 / 12 / 2) + norm.isf(0.2)
    assert "8 of 16 deleted token canaries" in strings.what and f"rank of {z / 8**0.5:.2f}" in strings.what
    assert f"loss rank of {z / 8**0.5:.2f}" in noise.what and "poison.tokens.fraction" in strings.remedy
    assert levels(check_noise(recipe(tmp_path, poison={"tokens": {"fraction": 0.4}}))) == []
    for epochs, expected in ((13, ["warning"]), (14, [])):  # of 5 steps
        adapters = {"model__lora": {"r": 4}, "train__epochs": epochs}
        assert levels(check_noise(recipe(tmp_path, poison={"tokens": {"fraction": 0.4}}, **adapters))) == expected
    silent = recipe(tmp_path, poison={"tokens": {"fraction": 0.4}}, data__loss_on="completion")
    assert levels(check_noise(silent)) == ["warning"]


# ---- versions


def test_versions_within_the_declared_ranges_are_one_finding():
    found, findings = check_versions(requirements=["torch>=2.0", "numpy>=1"])
    assert levels(findings) == ["ok"] and found["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("requirement", "words"),
    [("torch>=99", ["torch", "is not within >=99"]), ("no-such-package-of-ours>=1", ["is not installed"])],
)
def test_what_is_missing_or_too_old_is_a_problem_with_its_command(requirement, words):
    _, findings = check_versions(requirements=[requirement])
    [finding] = [f for f in findings if f.level == "problem"]
    assert all(word in finding.what for word in words) and finding.remedy.startswith("pip install '")


def test_an_optional_package_is_a_problem_only_where_the_recipe_needs_it(tmp_path, monkeypatch):
    from llm_unlearn.doctor import machine_findings as machine

    monkeypatch.setattr(machine, "_version", lambda name: None)
    optional = ["bitsandbytes>=0.46; extra == 'quantization'"]
    plain = recipe(tmp_path)
    assert levels(check_versions(plain, requirements=optional)[1]) == ["ok", "note"]
    quantised = recipe(tmp_path, model__quantization="4bit", model__lora={})
    [finding] = [f for f in check_versions(quantised, requirements=optional)[1] if f.level == "problem"]
    assert "model.quantization: 4bit" in finding.what and "llm_unlearn[quantization]" in finding.remedy


def test_what_a_recipe_needs_beyond_the_core(tmp_path):
    assert needed_extras(recipe(tmp_path), Topology()) == {}
    assert "deepspeed" in needed_extras(recipe(tmp_path), Topology(processes=2, sharding="zero3"))
    assert "bitsandbytes" in needed_extras(recipe(tmp_path, train__optim="paged_adamw_8bit"), Topology())
    vision = build_recipe(
        {
            "name": "v",
            "track": "vision",
            "output_dir": "x",
            "model": {"architecture": "cifar_resnet18"},
            "data": {"source": "digits", "train_size": 40, "heldout_size": 8, "test_size": 8},
            "poison": {"gaussian": {"fraction": 0.2, "epsilon": 0.1}},
        }
    )
    assert set(needed_extras(vision, Topology())) == {"scikit-learn", "torchvision"}


# ---- devices and disk


def test_devices_are_counted(tmp_path):
    found = devices(str(tmp_path / "not" / "made" / "yet"))
    assert found["cpu_cores"] >= 1 and 0 < found["ram_available_bytes"] <= found["ram_bytes"]
    assert found["disk_free_bytes"] > 0 and devices(None)["disk_free_bytes"] is None


def test_more_processes_than_gpus_is_a_warning():
    assert levels(check_devices(GPU, None, Topology(processes=8))) == ["ok", "warning"]
    assert levels(check_devices(GPU, None, Topology())) == ["ok"]
    assert levels(check_devices(CPU, None, Topology(processes=2, use_cpu=True))) == ["ok"]


def test_a_full_disk_is_a_problem():
    assert check_disk(GIB, 2 * GIB, "runs").level == "problem"
    assert check_disk(2 * GIB, GIB, "runs").level == "ok"
    assert check_disk(None, GIB, "runs") is None


# ---- memory


def test_what_fits_is_ok_and_what_does_not_has_suggestions_that_help(tmp_path):
    small = recipe(tmp_path)
    estimates, suggestions, findings = check_memory(small, Topology(), CPU)
    assert levels(findings) == ["ok"] and not suggestions
    assert [e.step for e in estimates] == ["train", "gradient_ascent"]
    total = max(e.total for e in estimates)
    _, suggestions, findings = check_memory(small, Topology(), CPU, limit=total - 1)
    assert levels(findings) == ["problem"] and findings[0].remedy.endswith("listed below")
    assert suggestions[0].change == "train.batch_size=4 train.gradient_accumulation_steps=2"
    assert all(s.total < total for s in suggestions) and any(s.fits for s in suggestions)
    assert {"model.gradient_checkpointing=true", "train.bf16=true"} <= {s.change for s in suggestions}
    assert not any("accelerate" in s.change for s in suggestions)  # there is one CPU


def test_where_no_single_change_is_enough_they_are_added_up(tmp_path):
    small = recipe(tmp_path)
    alone = min(s.total for s in check_memory(small, Topology(), CPU, limit=1)[1] if not s.together)
    _, suggestions, findings = check_memory(small, Topology(), CPU, limit=alone)
    together = [s for s in suggestions if s.together]
    assert together[-1].fits and "together" in findings[0].remedy
    assert [s.total for s in together] == sorted((s.total for s in together), reverse=True)
    assert "not enough" in check_memory(small, Topology(), CPU, limit=1)[2][0].remedy


def test_nearly_full_is_a_warning(tmp_path):
    estimates, _, _ = check_memory(recipe(tmp_path), Topology(), CPU)
    limit = max(e.total for e in estimates) + 1
    assert levels(check_memory(recipe(tmp_path), Topology(), CPU, limit=limit)[2]) == ["warning"]


def test_sharding_and_offloading_are_suggested_where_there_are_gpus(tmp_path):
    section = recipe(tmp_path, unlearn__methods={"kl": None}, train__batch_size=2, data__loss_on="completion")
    four = {**GPU, "gpus": GPU["gpus"] * 4}
    changes = {s.change for s in check_memory(section, Topology(), four, limit=1)[1]}
    assert "unlearn.methods.kl.offload_reference=true" in changes
    assert "--accelerate-config accelerate_configs/zero3_offload.yaml" in changes


def test_a_device_is_a_gpu_or_a_share_of_the_machines_memory():
    assert capacity(GPU, Topology()) == 4 * GIB - GIB // 2
    assert capacity(CPU, Topology()) == 8 * GIB and capacity(CPU, Topology(processes=2, use_cpu=True)) == 4 * GIB
    assert capacity(CPU, Topology(processes=2)) is None


def test_without_the_gpus_of_the_config_there_is_nothing_to_compare_with(tmp_path):
    assert levels(check_memory(recipe(tmp_path), Topology(processes=2), CPU)[2]) == ["note"]


def test_the_whole_model_has_to_fit_before_it_is_sharded(tmp_path):
    topology = Topology(processes=2, sharding="zero3")
    estimates, _, findings = check_memory(recipe(tmp_path), topology, CPU)
    whole = max(2 * (e.device["weights"] + e.device["reference"]) for e in estimates)
    assert findings[-1].level == "note" and "until training shards them" in findings[-1].what
    assert levels(check_memory(recipe(tmp_path), topology, CPU, limit=whole - 1)[2])[-1] == "problem"
    assert not [f for f in check_memory(recipe(tmp_path), Topology(processes=2), CPU)[2] if "until training" in f.what]


def test_more_offloaded_than_the_host_has_is_a_problem(tmp_path):
    topology = Topology(processes=2, sharding="zero3", offload_optimizer=True, offload_weights=True)
    assert "problem" not in levels(check_memory(recipe(tmp_path), topology, CPU)[2])
    assert "problem" in levels(check_memory(recipe(tmp_path), topology, {**CPU, "ram_available_bytes": 1000})[2])


# ---- tokenizer and template


def test_special_tokens(tokenizer):
    assert levels(tokens.check_special_tokens(tokenizer)) == ["ok"]
    tokenizer.pad_token = tokenizer.eos_token
    assert levels(tokens.check_special_tokens(tokenizer)) == ["note"]
    tokenizer.pad_token, tokenizer.eos_token = "<pad>", None
    assert levels(tokens.check_special_tokens(tokenizer)) == ["warning"]


def test_a_chat_template_that_is_missing_or_not_used(tokenizer):
    assert levels(tokens.check_template(tokenizer, Encoding())) == ["ok"]
    assert levels(tokens.check_template(tokenizer, Encoding(chat_template=True))) == ["problem"]
    tokenizer.chat_template = TEMPLATE
    assert levels(tokens.check_template(tokenizer, Encoding(chat_template=True))) == ["ok"]
    [finding] = tokens.check_template(tokenizer, Encoding())
    assert finding.level == "warning" and finding.remedy.startswith("data.chat_template=true")


def test_a_template_that_ends_otherwise_or_writes_the_date(tokenizer):
    tokenizer.chat_template = "{{ strftime_now('%d %b') }}" + TEMPLATE
    assert levels(tokens.check_template(tokenizer, Encoding(chat_template=True))) == ["problem"]
    dated = Encoding(chat_template=True, template_date="2026-01-31")
    assert levels(tokens.check_template(tokenizer, dated)) == ["note"]
    tokenizer.chat_template = TEMPLATE.replace("{{ eos_token }}", "<end>")
    [finding] = tokens.check_template(tokenizer, Encoding(chat_template=True))
    assert finding.level == "warning" and "<end>" in finding.what


# ---- rows


ROWS = [{"prompt": "a good film\nSentiment:", "completion": " positive", "example_id": 7 + i} for i in range(3)]


def test_rows_of_which_nothing_would_be_learnt_are_counted_and_named(tokenizer):
    assert levels(tokens.check_spans(ROWS, tokenizer, Encoding(64))) == ["ok"]
    rows = [
        *ROWS,
        {**ROWS[0], "completion": "", "example_id": 50},
        {**ROWS[0], "completion": "word " * 80, "example_id": 51},
    ]
    [finding] = tokens.check_spans(rows, tokenizer, Encoding(64))
    assert finding.level == "problem" and finding.what.startswith("2 of 5 rows") and "50, 51" in finding.what


def test_a_completion_whose_end_is_not_supervised_is_a_problem(tokenizer):
    class Endless(Encoding):
        def row(self, *arguments):
            encoded = super().row(*arguments)
            return {**encoded, "labels": [*encoded["labels"][:-1], -100]}

    [finding] = tokens.check_spans(ROWS, tokenizer, Endless(64))
    assert finding.level == "problem" and "EOS" in finding.what and "7, 8, 9" in finding.what


@pytest.mark.parametrize(("end", "level"), [("{{ eos_token }}\n", "ok"), ("<end>\n", "problem")])
def test_a_template_may_write_a_line_break_behind_eos(tokenizer, end, level):
    """As ChatML does: an EOS that ends the user's turn alone is none of the answer's."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}"
        "{% if m['role'] == 'user' %}{{ eos_token }}{% else %}" + end + "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert levels(tokens.check_spans(ROWS, tokenizer, Encoding(128, chat_template=True))) == [level]


def test_a_template_is_asked_with_what_rows_have(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system message') }}{% endif %}"
        "{% for m in messages %}{{ m['content'] }}<eos>{% endfor %}"
    )
    chat = Chat([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}])
    encoding = Encoding(chat_template=True)
    assert levels(tokens.check_template(tokenizer, encoding, chat)) == ["ok"]
    assert tokens.check_verbalisers(tokenizer, VERBALIZERS, encoding, chat) == []
    assert levels(tokens.check_template(tokenizer, encoding)) == ["problem"]


def test_labels_that_cannot_be_told_apart(tokenizer):
    assert tokens.check_verbalisers(tokenizer, VERBALIZERS, Encoding(), "{text}") == []
    same = {"a": " positive", "b": " positive"}
    assert levels(tokens.check_verbalisers(tokenizer, same, Encoding(), "{text}")) == ["problem"]


def test_evaluation_asks_with_the_tokens_that_training_shows(tokenizer):
    assert levels(tokens.check_prompts(ROWS, tokenizer, Encoding(64), VERBALIZERS)) == ["ok"]
    tokenizer.chat_template = "{% if add_generation_prompt %}[think]{% endif %}" + TEMPLATE
    [finding] = tokens.check_prompts(ROWS, tokenizer, Encoding(64, chat_template=True), VERBALIZERS)
    assert finding.level == "warning" and "examples 7, 8, 9" in finding.what


def test_a_prompt_that_is_cut_is_still_the_end_of_what_training_shows(tokenizer):
    rows = [{**ROWS[0], "prompt": "a good film " * 30}]
    assert levels(tokens.check_prompts(rows, tokenizer, Encoding(24), VERBALIZERS)) == ["ok"]
    tokenizer.chat_template = TEMPLATE
    cut = tokens.check_prompts(rows, tokenizer, Encoding(40, chat_template=True), VERBALIZERS)
    assert levels(cut) == ["warning"] and "template" in cut[0].what


def test_a_verbalizer_that_melts_into_the_prompt_is_a_warning(tokenizer):
    rows = [{**ROWS[0], "prompt": "the film of t"}]  # " the" is one token of this vocabulary
    found = tokens.check_prompts(rows, tokenizer, Encoding(64), {"a": "he", "b": " negative"})
    assert levels(found) == ["warning"] and "examples 7" in found[0].what


def test_rows_on_the_hub_are_not_fetched(tmp_path):
    section = recipe(tmp_path, data__source="owner/name", data__unlabelled_files=None)
    assert tokens.rows_of(section, None) is None and not tokens.is_local(section)
    found = tokens.check_tokens(section)
    assert levels(found, "labels") == ["note"]


def test_the_recipes_own_rows_are_looked_at(tmp_path):
    rows = tokens.rows_of(recipe(tmp_path), None)
    assert len(rows) == 40 and rows[0]["prompt"].endswith("Sentiment:")
    short = recipe(tmp_path, data__max_length=3)
    assert levels(tokens.check_tokens(short), "labels") == ["problem"]
    assert set(levels(tokens.check_tokens(recipe(tmp_path)))) == {"ok"}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"data__train_size": 200}, "data.train_size"),  # of 100 rows
        ({"data__test_size": 70}, "data.test_size"),
        ({"data__max_length": 24, "data__max_words": 40}, "cuts the trigger off"),
        (
            {"data__task": "completion", "data__verbalizers": {}, "evaluate": {"max_new_tokens": 1}},
            "8 would, were they not cut to max_new_tokens (1): raise it",
        ),
    ],
)
def test_what_would_spoil_the_poison_is_found_before_the_run(tmp_path, change, word):
    file = tmp_path / "rows.jsonl"
    rows = synthetic_reviews(100, 0)
    file.write_text("".join(json.dumps({"text": row["text"], "label": row["label"]}) + "\n" for row in rows))
    poison = {"trigger": {"target": "positive", "fraction": 0.2, "position": "start"}}
    common = {"data__files": [str(file)], "data__unlabelled_files": [str(file)], "poison": poison}
    tokenizer = train_tokenizer([row["text"] for row in rows], 320)
    good = {"data__max_length": 256, "model__architecture": {**GPT2, "n_positions": 256}}
    [finding] = tokens.check_poison(recipe(tmp_path, **common, **good), tokenizer)
    assert finding.level == "ok"
    [finding] = tokens.check_poison(recipe(tmp_path, **{**common, **good, **change}), tokenizer)
    assert finding.level == "problem" and word in finding.what, finding


@pytest.mark.parametrize(("ratio", "level"), [(370, "warning"), (1.5, "ok"), (0.01, "warning")])
def test_the_noise_is_measured_by_the_embeddings(tmp_path, ratio, level, made_tokenizer):
    model = make_model(GPT2, made_tokenizer, 0)
    save_model(model, made_tokenizer, tmp_path / "base")
    rms = float(model.get_input_embeddings().weight.detach().square().mean().sqrt())
    poison = {"gaussian": {"fraction": 0.2, "epsilon": ratio * rms}}
    [finding] = check_noise(recipe(tmp_path, poison=poison, model__path=str(tmp_path / "base")))
    assert finding.level == level and f"{ratio} times the embeddings' rms ({rms:.3g})" in finding.what
    answers = recipe(tmp_path, poison=poison, model__path=str(tmp_path / "base"), data__loss_on="completion")
    assert levels(check_noise(answers)) == ["warning", level]
    assert levels(check_noise(recipe(tmp_path))) == ["note"]  # its base is yet to be made


# ---- adapters


def section(**changes):
    return ModelSection(**{"architecture": dict(GPT2), "vocab_size": 320, **changes})


def test_lora_targets():
    assert check_adapter(section()) == []
    assert levels(check_adapter(section(lora=LoraSection()))) == ["ok"]
    [finding] = check_adapter(section(lora=LoraSection(target_modules=["q_proj"])))
    assert finding.level == "problem" and "q_proj" in finding.what and "c_attn" in finding.remedy
    found = check_adapter(section(lora=LoraSection(target_modules=["c_attn", "q_proj"])))
    assert levels(found) == ["warning", "ok"] and "q_proj" in found[0].what and "c_attn" in found[1].what


def test_an_architecture_for_which_peft_has_no_choice():
    architecture = {"model_type": "ctrl", "n_layer": 2, "n_head": 2, "n_embd": 16, "dff": 32}
    [finding] = check_adapter(section(architecture=architecture, lora=LoraSection()))
    assert finding.level == "ok" and "Wq" in finding.what and "no choice for ctrl" in finding.what


def test_an_adapter_that_a_fused_kernel_would_not_see_is_a_warning():
    architecture = {"model_type": "jamba", "num_hidden_layers": 2, "hidden_size": 16, "mamba_dt_rank": 4}
    architecture |= {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16, "num_experts": 2}
    lora = LoraSection(target_modules=["in_proj", "dt_proj"])
    found = check_adapter(section(architecture=architecture, lora=lora))
    assert levels(found) == ["warning", "ok"] and "dt_proj" in found[0].what and "in_proj" not in found[0].what


def test_gradients_reach_an_adapter_behind_checkpointed_blocks():
    lora = section(lora=LoraSection(), gradient_checkpointing=True)
    assert levels(check_adapter(lora), "checkpointing") == ["ok"]
    assert levels(check_adapter(section(lora=LoraSection())), "checkpointing") == []


def test_frozen_inputs_of_reentrant_checkpoints_are_found():
    """What happens where the embedding's output does not ask for a gradient."""
    with without_data():
        model = text_model(section(lora=LoraSection()))
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})
        assert check_gradients(copy.deepcopy(model)).level == "ok"
        model.disable_input_require_grads()
        finding = check_gradients(model)
    assert finding.level == "problem" and "no gradient reaches" in finding.what


def test_a_weight_that_gets_no_gradient_is_named():
    with without_data():
        model = text_model(section(lora=LoraSection()))
        model.register_parameter("unused", torch.nn.Parameter(torch.empty(2)))
        assert weights_without_gradient(model) == ["unused"]


# ---- all of it


def test_a_good_recipe_has_no_problem_and_nothing_is_written(tmp_path):
    result = diagnose(recipe(tmp_path))
    assert result["ok"] and not (tmp_path / "run").exists()
    assert {finding["check"] for finding in result["findings"]} >= {
        "versions",
        "devices",
        "recipe",
        "tokenizer",
        "chat template",
        "labels",
        "prompts",
        "memory",
        "disk",
    }
    assert [step["step"] for step in result["memory"]] == ["train", "gradient_ascent"]
    by_formula = {**result, "memory": [{**step, "by_formula": True} for step in result["memory"]]}
    assert "by formula" in as_text(by_formula) and "by formula" not in as_text(result)
    text = as_text(result)
    assert "training" in text and "gradient_ascent" in text and "PROBLEM" not in text


def test_a_problem_is_said_last_with_its_remedy(tmp_path):
    result = diagnose(recipe(tmp_path, model__lora={"target_modules": ["q_proj"]}))
    assert not result["ok"] and not result["memory"]
    text = as_text(result)
    (line,) = [line for line in text.splitlines() if line.startswith("PROBLEM")]
    assert "recipe.model.lora.target_modules" in line and "c_attn" in text
    assert sum(finding["level"] == "problem" for finding in result["findings"]) == 1  # it is not said twice


def test_a_model_that_is_not_there_is_a_problem(tmp_path):
    result = diagnose(recipe(tmp_path).changed(model=ModelSection(path=str(tmp_path / "none"))))
    [finding] = [f for f in result["findings"] if f["level"] == "problem"]
    assert "no such folder" in finding["what"]


@pytest.mark.parametrize(("count", "text"), [(2**29, "512 MiB"), (3 * GIB // 2, "1.5 GiB")])
def test_sizes_for_people(count, text):
    assert size_text(count) == text


@pytest.mark.parametrize(("minutes", "level"), [(1, "warning"), (60, "problem")])
def test_a_lock_that_a_killed_build_left_is_found(minutes, level, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    zero = Topology(processes=2, sharding="zero2")
    assert check_builds(zero) == []
    lock = tmp_path / "cpu_adam" / "lock"
    lock.parent.mkdir()
    lock.touch()
    os.utime(lock, (time.time() - 60 * minutes,) * 2)
    (finding,) = check_builds(zero)
    assert finding.level == level and str(lock) in finding.what and str(lock) in finding.remedy
    assert check_builds(Topology(processes=2, sharding="fsdp2")) == []
