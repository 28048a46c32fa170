"""How blocks run while they train: offloaded activations and Liger's kernels reach the model, or are refused."""

import functools
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import transformers
from support import VOCABULARY, assert_same, own_weights, trainer

from llm_unlearn.config.model_sections import ModelSection
from llm_unlearn.config.recipe import build_recipe
from llm_unlearn.errors import InputError
from llm_unlearn.runs.architecture_checks import check_architecture
from llm_unlearn.runs.method_configs import check_methods, check_training, method_config
from llm_unlearn.training import block_options

LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}


def recipe(**model):
    return build_recipe(
        {
            "name": "tiny",
            "output_dir": "unused",
            "model": {"architecture": LLAMA, **model},
            "pretrain": {},
            "data": {"verbalizers": {"negative": " negative", "positive": " positive"}},
            "poison": {"trigger": {"target": "positive", "fraction": 0.1}},
            "unlearn": {"methods": {"kl": None}},
        }
    )


def losses_of(run):
    run.train()
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_offloaded_activations_give_the_same(kind, tmp_path, monkeypatch):
    kept = []

    class OnHost(torch.autograd.graph.save_on_cpu):
        def __init__(self, pin_memory, device_type):  # without a GPU nothing can be pinned
            kept.append(device_type)
            super().__init__(pin_memory=False)

    monkeypatch.setattr(transformers.modeling_utils, "save_on_cpu", OnHost)
    plain = trainer("kl", kind, tmp_path / "plain")
    offloaded = trainer("kl", kind, tmp_path / "offloaded", gradient_checkpointing=True)
    offloaded.args.activation_checkpointing_kwargs = {"offload": True}
    assert losses_of(offloaded) == losses_of(plain)
    assert_same(own_weights(offloaded.model), own_weights(plain.model))
    assert len(kept) == 4 * 2  # steps and blocks; the reference's forward has no gradient


def test_on_a_cpu_there_is_nothing_to_offload(tmp_path):
    given = {"offload": True, "use_reentrant": False}
    run = trainer("kl", "full", tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs=given)
    assert len(losses_of(run)) == 4 and given["offload"]


def test_a_recipe_says_it_for_training_and_methods():
    blocks = block_options.block_options(recipe(gradient_checkpointing=True, offload_activations=True).model)
    assert (blocks["gradient_checkpointing"], blocks["gradient_checkpointing_kwargs"]) == (True, {"offload": True})
    args = method_config(recipe(gradient_checkpointing=True), "kl", 0, "unused", 1.0, True)
    assert args.activation_checkpointing and not args.use_liger_kernel
    with pytest.raises(InputError, match="offload_activations.*gradient_checkpointing"):
        recipe(offload_activations=True)


@pytest.fixture
def liger(monkeypatch):
    """A stand-in for the package: it notes what it is asked for, and knows Llama alone."""
    asked = []

    def to_llama(rope=True, cross_entropy=False, fused_linear_cross_entropy=True, rms_norm=True, model=None):
        pass

    def apply(model, **kernels):
        asked.append((type(model).__name__, kernels))
        model.kernels = kernels

    package = ModuleType("liger_kernel.transformers")
    package._apply_liger_kernel_to_instance = apply
    package.monkey_patch = ModuleType("liger_kernel.transformers.monkey_patch")
    package.monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": to_llama}
    for name, module in {"": ModuleType("liger_kernel"), ".transformers": package}.items():
        monkeypatch.setitem(sys.modules, f"liger_kernel{name}", module)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", package.monkey_patch)
    for module in (block_options, transformers.integrations.liger):
        monkeypatch.setattr(module, "is_liger_kernel_available", lambda: True)
    return asked


def on_gpu(**kernels):
    args = SimpleNamespace(use_liger_kernel=True, liger_kernel_config=kernels, gradient_checkpointing_kwargs=None)
    args.device = torch.device("cuda")
    return args


def test_ligers_losses_stay_off(liger):
    args = on_gpu(rope=False)
    block_options.settle_blocks(args)
    assert args.liger_kernel_config == {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
    with pytest.raises(InputError, match="^liger_kernel_config.cross_entropy"):
        block_options.settle_blocks(on_gpu(cross_entropy=True))


def test_model_and_reference_have_the_kernels(liger, tmp_path, monkeypatch):
    monkeypatch.setattr("llm_unlearn.trainers.unlearn_config.settle_blocks", lambda args: None)  # this is no GPU
    sizes = {name: value for name, value in LLAMA.items() if name != "model_type"}
    config = transformers.LlamaConfig(**sizes, vocab_size=VOCABULARY)
    make = functools.partial(trainer, "kl", "full", tmp_path, use_liger_kernel=True)
    run = make(model=transformers.LlamaForCausalLM(config), liger_kernel_config={"rope": False})
    assert run.model.kernels == run.reference.model.kernels == {"rope": False}
    assert len(losses_of(run)) == 4 and {name for name, _ in liger} == {"LlamaForCausalLM"}
    with pytest.raises(InputError, match="no kernels for gpt2"):
        make()
    with pytest.raises(InputError, match=r"liger_kernel_config.rms_nrom: .*rms_norm, rope$"):
        make(model=transformers.LlamaForCausalLM(config), liger_kernel_config={"rms_nrom": True})


def test_a_recipe_whose_model_has_no_kernels_is_refused_before_anything_runs(liger):
    section = {"architecture": LLAMA, "use_liger_kernel": True}
    check_architecture(ModelSection(**section), [])
    with pytest.raises(InputError, match=r"^recipe.model.use_liger_kernel: .*gpt2"):
        check_architecture(ModelSection(**section | {"architecture": {"model_type": "gpt2"}}), [])
    kl = method_config(recipe(), "kl", 0, "unused", 1.0, True)
    kl.use_liger_kernel, kl.liger_kernel_config = True, {"rms_nrom": True}
    with pytest.raises(InputError, match=r"^recipe.unlearn.methods.kl: liger_kernel_config.rms_nrom"):
        check_architecture(ModelSection(architecture=LLAMA), [("kl", kl)])


def test_what_this_machine_cannot_run_is_refused(tmp_path, monkeypatch):
    asked = recipe(use_liger_kernel=True)
    monkeypatch.setattr(block_options, "is_liger_kernel_available", lambda: False)
    with pytest.raises(InputError, match=r"^recipe.model.use_liger_kernel: .*pip install liger-kernel"):
        check_training(asked)
    with pytest.raises(InputError, match=r"^recipe.unlearn.methods.kl: use_liger_kernel: .*pip install liger-kernel"):
        check_methods(asked)
    monkeypatch.setattr(block_options, "is_liger_kernel_available", lambda: True)
    with pytest.raises(InputError, match="^use_liger_kernel: .*GPU"):
        trainer("kl", "full", tmp_path, use_liger_kernel=True)
