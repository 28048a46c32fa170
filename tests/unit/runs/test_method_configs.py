"""Options of methods: names, types and bounds are checked before anything runs; the configs keep them in Python too."""

import json
import math

import pytest
from transformers import HfArgumentParser

from llm_unlearn.config.options import options_model
from llm_unlearn.config.presets import PRESETS
from llm_unlearn.config.recipe import build_recipe
from llm_unlearn.config.validate import choices
from llm_unlearn.errors import InputError
from llm_unlearn.runs.method_configs import RESERVED, check_methods, check_training, method_config
from llm_unlearn.trainers import METHODS
from llm_unlearn.trainers.unlearn_config import UnlearnConfig

pytestmark = pytest.mark.unit

# option of its own → one value too small, one too large
BOUNDS = {
    **{(method, "alpha"): (-0.1, 1e7) for method in ("scrub", "ssd", "grad_diff", "kl", "npo", "rmu", "ce_u")},
    **{(method, "alpha"): (-0.1, 1e7) for method in ("task_arithmetic", "reset_distill")},
    **{(method, "gamma"): (-0.1, 1e7) for method in ("scrub", "grad_diff", "npo", "reset_distill")},
    **{(method, "beta"): (0, 1e7) for method in ("npo", "simnpo", "dpo", "altpo")},
    **{(method, "beta"): (-0.1, 1e7) for method in ("undial", "wga")},
    **{(method, "temperature"): (0, 1e7) for method in ("scrub", "reset_distill", "altpo")},
    **{(method, "k"): (0, 10**6) for method in ("cf_k", "eu_k")},
    **{("pdu", option): (-0.1, 1e7) for option in ("gamma", "multiplier", "epsilon", "dual_rate")},
    **{("crow", option): (-0.1, 1e7) for option in ("alpha", "epsilon")},
    **{(method, "gamma"): (-0.1, 1e7) for method in ("idk_sft", "osft", "gu_project")},
    ("gu_project", "alpha"): (0, 1e7),
    ("noisy_gradient_descent", "sigma"): (-0.1, 1e7),
    ("neggrad_plus", "beta"): (-0.1, 1.1),
    ("scrub", "msteps"): (-1, 10**7),
    ("ssd", "lam"): (-0.1, 1e7),
    ("simnpo", "delta"): (-1e7, 1e7),
    ("dpo", "prefactor"): (0, 1e7),
    ("rmu", "layer"): (-1, 10**6),
    ("rmu", "steering"): (0, 1e7),
    ("satimp", "beta1"): (-0.1, 1e7),
    ("satimp", "beta2"): (-0.1, 1e7),
    # of every method
    ("kl", "learning_rate"): (-0.1, 1e7),
    ("kl", "forget_loss_ceiling"): (0, 1e7),
    ("kl", "utility_floor"): (-1e7, 1e7),
    ("kl", "eval_rows"): (0, 10**10),
    ("kl", "max_length"): (0, 10**8),
    ("kl", "completion_weight"): (-0.1, 1e7),
    ("rewind", "from_step"): (0, 10**10),
    # of TrainingArguments
    ("kl", "weight_decay"): (-0.1, 1e7),
    ("kl", "max_steps"): (-2, 10**10),
    ("kl", "adam_beta1"): (-0.1, 1),
    ("kl", "num_train_epochs"): (0, 1e7),
}


RECIPE = {
    "name": "r",
    "output_dir": "out",
    "model": {"path": "m"},
    "data": {"verbalizers": {"bad": " bad", "good": " good"}},
    "poison": {"trigger": {"target": "good", "fraction": 0.1}},
}


def check(method: str, **options) -> None:
    check_methods(build_recipe({**RECIPE, "unlearn": {"methods": {method: options}}}))


@pytest.mark.parametrize(("method", "option"), BOUNDS)
def test_an_option_out_of_bounds_is_refused_by_name(method, option):
    for value in (*BOUNDS[method, option], math.nan, math.inf, 10**30, True, "1"):
        with pytest.raises(InputError, match=rf"^recipe\.unlearn\.methods\.{method}\.{option}: expected .*, found "):
            check(method, **{option: value})


@pytest.mark.parametrize("method", METHODS)
def test_no_number_of_a_method_is_without_bounds(method):
    config = METHODS[method][0]
    schema = options_model(config, RESERVED).model_json_schema()
    for name, field in schema["properties"].items():
        for node in choices(field, schema):
            if node.get("type") in ("integer", "number"):
                assert {"minimum", "exclusiveMinimum"} & set(node), name
                assert {"maximum", "exclusiveMaximum"} & set(node), name


def test_what_is_accepted():
    check("npo", beta=1, retain_loss="none", alpha=0)
    check("rmu", layer=0)
    check("dpo", refusals=["No."])
    check("kl", optim="sgd", optim_args="momentum=0.9, nesterov=true")
    check("kl", lr_scheduler_kwargs={"num_cycles": 2}, lr_scheduler_type="cosine", max_steps=-1)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("npo", {"bta": 1}, ["npo: ", "'bta'", "'beta'"]),
        ("npo", {"zzzzzz": 1}, ["npo: ", "'zzzzzz'", "docs/recipe.md"]),
        ("npo", {"retain_loss": "KL"}, ["npo.retain_loss: ", "none, nll, kl", "'KL'"]),
        ("dpo", {"refusals": []}, ["dpo.refusals: ", "at least one"]),
        ("dpo", {"refusals": ["", "no"]}, ["dpo.refusals[0]: ", "not blank"]),
        ("kl", {"seed": 3}, ["kl.seed: ", "a run sets it"]),
        ("kl", {"report_to": " "}, ["kl.report_to: ", "a run sets it"]),
        ("npo", {"gradient_accumulation_steps": 0}, ["npo.gradient_accumulation_steps: ", "[1, 10⁶]"]),
        ("npo", {"gradient_accumulation_steps": 10**6}, ["gradient_accumulation_steps: ", "8000000 rows"]),
        ("kl", {"label_smoothing_factor": 0.1}, ["label_smoothing_factor: ", "own loss"]),
        ("kl", {"data_seed": 1}, ["data_seed: ", "`seed`"]),
        ("kl", {"optim_args": "rank=8"}, ["kl.optim_args: rank=8", "no effect on adamw_torch_fused"]),
        ("kl", {"optim": "sgd", "optim_args": "momentum=0.9,rank=8"}, ["kl.optim_args: rank=8", "no effect on sgd"]),
        ("kl", {"optim": "sgd", "optim_args": "momentum"}, ["kl.optim: sgd cannot be used"]),
        ("kl", {"optim": "galore_adamw"}, ["kl.optim: galore_adamw cannot be used", "galore_torch"]),
        ("kl", {"lr_scheduler_type": "cosine_with_min_lr"}, ["kl.lr_scheduler_type: ", "min_lr"]),
        ("kl", {"lr_scheduler_type": "reduce_lr_on_plateau"}, ["reduce_lr_on_plateau"]),
        (
            "kl",
            {"lr_scheduler_kwargs": {"x": 1}, "lr_scheduler_type": "cosine"},
            ["kl.lr_scheduler_type: cosine", "'x'"],
        ),
        ("kl", {"lr_scheduler_kwargs": "yes"}, ["kl.lr_scheduler_type: linear", "mapping"]),
        ("kl", {"dataloader_prefetch_factor": 2}, ["kl: ", "prefetch"]),
        ("kll", {}, ["'kll'", "'kl'"]),
        ("gradient_ascent", {"completion_weight": 1.0}, ["completion_weight: ", "no retain row"]),
        ("rewind", {"from_step": 5}, ["rewind.from_step: 5", "train.keep_steps"]),
    ],
)
def test_what_is_refused(method, options, words):
    with pytest.raises(InputError) as error:
        check(method, **options)
    assert all(word in str(error.value) for word in ["recipe.unlearn.methods", *words])


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"optim": "galore_adamw"}, ["recipe.train.optim: galore_adamw", "galore_torch"]),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, ["recipe.train.lr_scheduler_type: ", "min_lr"]),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, ["recipe.train: ", "reduce_lr_on_plateau"]),
        ({"optim": "nothing"}, ["recipe.train: ", "nothing"]),
    ],
)
def test_a_training_that_cannot_be_built_is_refused(train, words):
    with pytest.raises(InputError) as error:
        check_training(build_recipe({**RECIPE, "train": train}))
    assert all(word in str(error.value) for word in words), error.value


def test_a_config_made_in_python_keeps_its_bounds(tmp_path):
    for method, options in {
        "npo": {"beta": -1.0},
        "cf_k": {"k": 0},
        "kl": {"eval_rows": 0, "alpha": 1.0},
        "scrub": {"per_device_train_batch_size": 0},
        "grad_diff": {"gradient_accumulation_steps": 0},
        "dpo": {"num_train_epochs": math.nan},
        "rmu": {"weight_decay": -0.1},
    }.items():
        with pytest.raises(InputError, match=f"Config.{next(iter(options))}: expected"):
            METHODS[method][0](output_dir=str(tmp_path), use_cpu=True, **options)


@pytest.mark.parametrize("method", METHODS)
def test_a_config_can_be_given_on_the_command_line(method, tmp_path):
    (config,) = HfArgumentParser(METHODS[method][0]).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--use_cpu", "--eval_rows", "3", "--loss_on", "completion"]
    )
    assert isinstance(config, UnlearnConfig) and (config.eval_rows, config.loss_on) == (3, "completion")


@pytest.mark.parametrize(
    ("kind", "known", "rate"), [("adapter", None, 1e-4), ("full", None, 1e-5), ("adapter", 0.2, 0.3)]
)
def test_without_the_rate_of_the_training_that_of_a_given_model_is_by_its_kind(tmp_path, kind, known, rate):
    if kind == "adapter":
        config = {"peft_type": "LORA", "base_model_name_or_path": "base", "r": 4, "target_modules": ["q_proj"]}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    given = {"poisoned": str(tmp_path), "manifest": "manifest.json"}
    methods = {"methods": {"npo": None, "kl": {"learning_rate": 0.5}}}
    tree = {"name": "r", "output_dir": "out", "given": given, "unlearn": methods, "evaluate": {"clean_steps": 0}}
    recipe = build_recipe(tree | ({"train": {"learning_rate": known}} if known else {}))
    found = [method_config(recipe, method, 0, "unused", 1.0, True).learning_rate for method in methods["methods"]]
    assert found == pytest.approx([rate, 0.5])  # npo's own share of a known rate is 1.5


class TestPreset:
    def config(self, method: str, **unlearn):
        tree = {**RECIPE, "unlearn": {"methods": {method: unlearn.pop("options", None)}, **unlearn}}
        return method_config(build_recipe(tree), method, 0, "unused", 1.0, True)

    @pytest.mark.parametrize("method", list(PRESETS["open-unlearning"]))
    def test_gives_its_values_and_every_one_is_an_option_of_its_method(self, method):
        found = self.config(method, preset="open-unlearning")
        assert {name: getattr(found, name) for name in PRESETS["open-unlearning"][method]} == PRESETS[
            "open-unlearning"
        ][method]

    def test_stands_behind_what_the_recipe_says_itself(self):
        found = self.config("simnpo", preset="open-unlearning", options={"gamma": 0.5}, learning_rate=3e-4)
        assert (found.gamma, found.beta, found.learning_rate) == (0.5, 4.5, 3e-4)
        assert self.config("npo", preset="open-unlearning", options={"learning_rate": 1.0}).learning_rate == 1.0

    def test_leaves_methods_alone_that_the_other_toolkit_lacks(self):
        found, own = self.config("rewind", preset="open-unlearning"), self.config("rewind")
        assert found.to_dict() == own.to_dict()

    def test_is_one_of_those_that_are_known(self):
        with pytest.raises(InputError, match="unlearn.preset: expected open-unlearning"):
            self.config("npo", preset="peer")
