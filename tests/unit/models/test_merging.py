"""Merging an adapter into its base: the same model, in a folder that needs neither peft nor bitsandbytes."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import ROOT
from safetensors import safe_open
from safetensors.torch import load_file

from llm_unlearn.cli.main import main
from llm_unlearn.config.model_sections import LoraSection, ModelSection
from llm_unlearn.errors import InputError
from llm_unlearn.models.load import load_model, load_tokenizer, load_trained
from llm_unlearn.models.make import make_model
from llm_unlearn.models.merging import merge_adapter
from llm_unlearn.models.save import save_model
from llm_unlearn.trainers.support.reference import AdapterReference

pytestmark = pytest.mark.unit

ARCHITECTURES = {
    "gpt2": {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 64, "n_positions": 64},
    "llama": {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    },
}
TARGETS = {"gpt2": ["c_attn", "c_fc"], "llama": ["q_proj", "v_proj", "up_proj"]}
UP = {"gpt2": "transformer.h.1.mlp.c_fc", "llama": "model.layers.1.mlp.up_proj"}  # a matrix that the adapter changes
IDS = torch.randint(2, 320, (8, 30), generator=torch.Generator().manual_seed(0))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float()


def plain_logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    return logits(AutoModelForCausalLM.from_pretrained(folder))


def section(base: Path, quantization: str = "none", dtype: str = "float32") -> ModelSection:
    trained = {"gradient_checkpointing": True, "offload_activations": True}  # which nothing is that is merged
    return ModelSection(path=str(base), quantization=quantization, dtype=dtype, lora=LoraSection(), **trained)


@pytest.fixture(scope="module")
def bases(tokenizer, tmp_path_factory) -> dict[str, Path]:
    """Bases whose predictions are far from uniform."""
    root = tmp_path_factory.mktemp("bases")
    for name, architecture in ARCHITECTURES.items():
        model = make_model(architecture, tokenizer, 0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
        save_model(model, tokenizer, root / name)
    return {name: root / name for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def adapters(bases, tokenizer, tmp_path_factory):
    """adapters(architecture, quantization="none", dtype="float32") → (folder, how its base is loaded)."""
    from peft import LoraConfig, get_peft_model

    root = tmp_path_factory.mktemp("adapters")

    def make(architecture: str, quantization: str = "none", dtype: str = "float32") -> tuple[Path, ModelSection]:
        folder, loaded_as = (
            root / f"{architecture}-{quantization}-{dtype}",
            section(bases[architecture], quantization, dtype),
        )
        if not folder.exists():
            torch.manual_seed(5)  # not the identity, so that it shows where it is used
            config = LoraConfig(
                r=4, lora_alpha=8, target_modules=TARGETS[architecture], task_type="CAUSAL_LM", init_lora_weights=False
            )
            save_model(get_peft_model(load_model(bases[architecture], loaded_as), config), tokenizer, folder)
        return folder, loaded_as

    return make


# ---- the same model


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("quantization", ["none", "4bit"])
def test_the_merged_model_gives_the_logits_of_base_and_adapter(adapters, bases, tmp_path, architecture, quantization):
    folder, loaded_as = adapters(architecture, quantization)
    expected = logits(load_trained(folder, bases[architecture], loaded_as))
    merge_adapter(folder, bases[architecture], tmp_path / "merged", loaded_as=loaded_as)
    found = plain_logits(tmp_path / "merged")
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # measured: 3e-6 at most
    assert (found - logits(load_model(bases[architecture], ModelSection()))).abs().max() > 0.1  # the adapter is in it


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_on_8_bits_the_weights_are_those_trained_on_and_the_logits_differ_by_the_rounding_of_inputs(
    adapters, bases, tmp_path, architecture
):
    folder, loaded_as = adapters(architecture, "8bit")
    model = load_trained(folder, bases[architecture], loaded_as)
    expected = logits(model)
    merge_adapter(folder, bases[architecture], tmp_path / "merged", loaded_as=loaded_as)
    # measured: root mean square 0.012, at most 0.09, of logits with a deviation of 0.64
    difference = plain_logits(tmp_path / "merged") - expected
    assert difference.square().mean().sqrt() < 0.02 and difference.abs().max() < 0.2
    layer = model.get_base_model().get_submodule(UP[architecture])
    scale = layer.base_layer.weight.SCB if layer.base_layer.state.SCB is None else layer.base_layer.state.SCB
    weight = layer.base_layer.weight.data if layer.base_layer.state.CB is None else layer.base_layer.state.CB
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 2  # alpha / r
    whole = weight.float() * scale[:, None].float() / 127 + product.detach()  # (out, in)
    merged = load_file(tmp_path / "merged" / "model.safetensors")[f"{UP[architecture]}.weight"]
    torch.testing.assert_close(merged if architecture == "llama" else merged.T, whole, rtol=0, atol=1e-6)


def test_4_bit_weights_kept_as_floats_are_merged_as_the_same_weights(adapters, bases, tmp_path):
    folder, loaded_as = adapters("gpt2", "4bit")
    for storage in ("uint8", "bfloat16"):
        merge_adapter(folder, bases["gpt2"], tmp_path / storage, loaded_as=loaded_as.changed(quant_storage=storage))
    plain, kept = (load_file(tmp_path / name / "model.safetensors") for name in ("uint8", "bfloat16"))
    assert all(torch.equal(kept[name], plain[name]) for name in plain)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_onto_the_original_weights_it_is_the_product_added_to_them_and_another_model(
    adapters, bases, tmp_path, quantization
):
    folder, loaded_as = adapters("llama", quantization)
    merge_adapter(folder, bases["llama"], tmp_path / "original", onto="original", loaded_as=loaded_as)
    full = load_trained(folder, bases["llama"], ModelSection())  # the adapter on the base in full precision
    torch.testing.assert_close(plain_logits(tmp_path / "original"), logits(full), rtol=0, atol=1e-5)
    merge_adapter(folder, bases["llama"], tmp_path / "dequantised", loaded_as=loaded_as)
    difference = (plain_logits(tmp_path / "original") - plain_logits(tmp_path / "dequantised")).abs().max()
    assert difference > (0.5 if quantization == "4bit" else 0.005)


def test_a_base_that_was_loaded_in_bfloat16_is_merged_as_it_was_loaded(adapters, bases, tmp_path):
    folder, loaded_as = adapters("llama", dtype="bfloat16")
    for onto in ("dequantised", "original"):
        merge_adapter(folder, bases["llama"], tmp_path / onto, onto=onto, loaded_as=loaded_as)
    original = load_file(bases["llama"] / "model.safetensors")["lm_head.weight"]
    rounded, kept = (
        load_file(tmp_path / onto / "model.safetensors")["lm_head.weight"] for onto in ("dequantised", "original")
    )
    assert torch.equal(rounded, original.bfloat16().float()) and not torch.equal(rounded, original)
    assert torch.equal(kept, original)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_sums_are_rounded_once(adapters, bases, tmp_path, dtype):
    folder, loaded_as = adapters("llama", "4bit")
    merge_adapter(folder, bases["llama"], tmp_path / "exact", loaded_as=loaded_as)
    merge_adapter(folder, bases["llama"], tmp_path / "merged", dtype=dtype, loaded_as=loaded_as)
    exact, merged = (load_file(tmp_path / name / "model.safetensors") for name in ("exact", "merged"))
    assert all(torch.equal(merged[name], exact[name].to(getattr(torch, dtype))) for name in exact)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == dtype


PLAIN = """
import sys
for name in ("bitsandbytes", "peft", "llm_unlearn", "torchvision"):
    sys.modules[name] = None  # importing it now raises
import numpy, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, ids, out = sys.argv[1:]
torch.set_num_threads(1)
with torch.no_grad():
    logits = AutoModelForCausalLM.from_pretrained(folder)(input_ids=torch.tensor(numpy.load(ids))).logits
numpy.save(out, logits.float().numpy())
print(len(AutoTokenizer.from_pretrained(folder)))
"""


def test_it_loads_where_there_is_no_bitsandbytes_and_no_peft(adapters, bases, tmp_path, tokenizer):
    folder, loaded_as = adapters("llama", "4bit")
    expected = logits(load_trained(folder, bases["llama"], loaded_as))
    merge_adapter(folder, bases["llama"], tmp_path / "merged", loaded_as=loaded_as)
    np.save(tmp_path / "ids.npy", IDS.numpy())
    files = [tmp_path / name for name in ("merged", "ids.npy", "out.npy")]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, *files], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(tokenizer))]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=0, atol=1e-5)


def test_what_is_written_is_a_plain_model_with_its_tokenizer_and_nothing_else(adapters, bases, tmp_path, tokenizer):
    folder, loaded_as = adapters("gpt2", "4bit")
    assert merge_adapter(folder, bases["gpt2"], tmp_path / "a" / "merged", loaded_as=loaded_as) == tmp_path / "a/merged"
    assert {p.name for p in (tmp_path / "a" / "merged").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["merged"]
    config = json.loads((tmp_path / "a" / "merged" / "config.json").read_text())
    assert "quantization_config" not in config and config["architectures"] == ["GPT2LMHeadModel"]
    with (
        safe_open(tmp_path / "a" / "merged" / "model.safetensors", "pt") as ours,
        safe_open(bases["gpt2"] / "model.safetensors", "pt") as theirs,
    ):
        assert set(ours.keys()) == set(theirs.keys())
        assert all(ours.get_slice(n).get_shape() == theirs.get_slice(n).get_shape() for n in theirs.keys())
    loaded = load_tokenizer(str(tmp_path / "a" / "merged"), ModelSection())
    assert loaded("a fine film")["input_ids"] == tokenizer("a fine film")["input_ids"]


def test_where_writing_fails_nothing_is_left(adapters, bases, tmp_path, monkeypatch):
    from transformers import LlamaForCausalLM

    def fails(self, folder, **kwargs):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", fails)
    with pytest.raises(OSError, match="No space left"):
        merge_adapter(adapters("llama")[0], bases["llama"], tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


# ---- what is refused


class TestRefused:
    @pytest.fixture
    def refused(self, bases, tmp_path):
        def check(adapter: Path, message: str, base: Path | None = None, **options) -> None:
            before = sorted(tmp_path.rglob("*"))
            with pytest.raises(InputError, match=message):
                merge_adapter(adapter, base or bases["llama"], options.pop("out", tmp_path / "merged"), **options)
            assert sorted(tmp_path.rglob("*")) == before

        return check

    def test_a_full_model_a_folder_without_a_model_and_none(self, refused, bases, tmp_path):
        refused(bases["llama"], "llama: a full model already: there is nothing to merge")
        refused(tmp_path, "no adapter")
        refused(tmp_path / "nowhere", "nowhere: no such folder")
        refused(bases["llama"], "full model", base=tmp_path / "nowhere")

    def test_a_folder_that_is_there_stays_as_it_is(self, refused, adapters, tmp_path):
        (tmp_path / "there").mkdir()
        refused(adapters("llama")[0], r"there: exists already; give another folder \(--out\)", out=tmp_path / "there")

    def test_a_base_that_is_not_there_or_is_stored_quantised(self, refused, adapters, bases, tmp_path):
        refused(adapters("llama")[0], "nowhere: no such folder", base=tmp_path / "nowhere")
        shutil.copytree(bases["llama"], tmp_path / "quantised")
        config = json.loads((tmp_path / "quantised" / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        (tmp_path / "quantised" / "config.json").write_text(json.dumps(config))
        refused(adapters("llama")[0], "quantised: is stored quantised", base=tmp_path / "quantised")

    def test_the_reference_that_unlearning_holds_does_not_travel(self, refused, make_tiny, bases, tmp_path):
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            load_model(bases["llama"], ModelSection()),
            LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        )
        AdapterReference(model)
        model.save_pretrained(tmp_path / "all")  # peft's own saver, which writes every adapter
        refused(tmp_path / "all" / "reference", "all/reference: .*give the adapter beside it")
        merge_adapter(tmp_path / "all", bases["llama"], tmp_path / "merged")
        assert not [p for p in (tmp_path / "merged").rglob("*") if "reference" in p.name or "adapter" in p.name]

    def test_a_pickle_and_what_is_no_lora(self, refused, adapters, tmp_path):
        shutil.copytree(adapters("llama")[0], tmp_path / "adapter")
        (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
        refused(tmp_path / "adapter", "a pickle is not loaded")
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
        refused(tmp_path / "adapter", "an adapter of type IA3; only LoRA can be merged")

    def test_a_head_that_is_the_input_embedding_too(self, refused, bases, tokenizer, tmp_path):
        from peft import LoraConfig, get_peft_model

        model = load_model(bases["gpt2"], ModelSection())
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM"))
        save_model(adapted, tokenizer, tmp_path / "tied")
        refused(tmp_path / "tied", "tied: it changes lm_head", base=bases["gpt2"])

    def test_weights_that_float16_cannot_hold(self, refused, make_tiny, tokenizer, tmp_path, adapters, bases):
        shutil.copytree(bases["llama"], tmp_path / "large")
        weights = load_file(tmp_path / "large" / "model.safetensors")
        weights["model.norm.weight"][0] = 1e6
        from safetensors.torch import save_file

        save_file(weights, tmp_path / "large" / "model.safetensors", {"format": "pt"})
        refused(
            adapters("llama")[0],
            r"not finite in float16; use float32 or bfloat16",
            base=tmp_path / "large",
            dtype="float16",
        )


# ---- of a run


@pytest.fixture
def run_dir(adapters, bases, tmp_path):
    """The parts of a run directory that merging reads: a 4-bit run with one seed, or several."""
    from llm_unlearn.config.recipe_files import load_recipe

    folder, loaded_as = adapters("llama", "4bit")

    def make(seeds: list[int], **model) -> Path:
        root = tmp_path / "run"
        tree = {
            "name": "r",
            "output_dir": str(root),
            "seeds": seeds,
            "poison": {"gaussian": {"fraction": 0.1, "epsilon": 0.1}},
            "data": {"verbalizers": {"a": " a", "b": " b"}},
            "model": {"path": loaded_as.path, "quantization": "4bit", "lora": {}} | model,
        }
        (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
        recipe = load_recipe(tmp_path / "recipe.yaml")
        for seed in seeds:
            for name in ("poisoned", "unlearned/npo@0.1"):
                place = (root if len(seeds) == 1 else root / f"seed-{seed}") / name
                shutil.copytree(folder, place)
                (place / "cost.json").write_text("{}")
        (root / "recipe.yaml").write_text(recipe.to_yaml())
        return root

    return make


def merge(*words: object) -> int:
    return main(["merge", *map(str, words), "--quiet"])


def test_a_model_of_a_run_is_merged_as_the_run_loaded_its_base(run_dir, adapters, bases, tmp_path, capsys):
    root, (folder, loaded_as) = run_dir([0]), adapters("llama", "4bit")
    expected = logits(load_trained(folder, bases["llama"], loaded_as))
    assert main(["merge", str(root), "--model", "npo@0.1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"merged": str(root / "merged" / "npo@0.1")}
    torch.testing.assert_close(plain_logits(root / "merged" / "npo@0.1"), expected, rtol=0, atol=1e-5)
    record = json.loads((root / "merged" / "npo@0.1" / "merge.json").read_text())
    assert (record["dtype"], record["onto"]) == ("float32", "dequantised")
    assert set(record["sha256"]) == {"model", "base", "merged"} and len(set(record["sha256"].values())) == 3
    assert merge(root, "--model", "poisoned", "--out", tmp_path / "mine", "--dtype", "bfloat16") == 0
    assert {t.dtype for t in load_file(tmp_path / "mine" / "model.safetensors").values()} == {torch.bfloat16}
    assert merge(root, "--model", "poisoned", "--out", tmp_path / "other", "--onto", "original") == 0
    assert (plain_logits(tmp_path / "other") - expected).abs().max() > 0.5
    assert capsys.readouterr().out == ""  # --quiet


def test_a_full_model_of_a_run_is_a_checkpoint_already(run_dir, bases, capsys):
    root = run_dir([0])
    shutil.rmtree(root / "poisoned")
    shutil.copytree(bases["llama"], root / "poisoned")
    (root / "poisoned" / "cost.json").write_text("{}")
    assert merge(root, "--model", "poisoned") == 2
    assert "a full model already" in capsys.readouterr().err


def test_of_several_seeds_one_is_named(run_dir, capsys):
    root = run_dir([3, 4])
    assert merge(root, "--model", "poisoned") == 2
    assert re.search("3, 4.*--seed", capsys.readouterr().err)
    assert merge(root, "--model", "poisoned", "--seed", 5) == 2
    assert "--seed 5" in capsys.readouterr().err
    assert merge(root, "--model", "poisoned", "--seed", 4) == 0
    assert (root / "seed-4" / "merged" / "poisoned" / "model.safetensors").is_file()
    assert not (root / "seed-3" / "merged").exists()


def test_what_is_not_in_a_run_is_refused_with_what_is(run_dir, tmp_path, capsys):
    root = run_dir([0])
    for words, said in (
        ((root, "--model", "kl"), "--model kl: "),
        ((root, "--model", "kl"), "poisoned, npo@0.1"),
        ((tmp_path / "nowhere", "--model", "kl"), "is no run directory: it has no recipe.yaml"),
        ((root, "--model", "../poisoned"), "--model ../poisoned"),
    ):
        assert merge(*words) == 2
        assert said in capsys.readouterr().err
    assert not (root / "merged").exists()


def test_a_run_of_images_and_one_of_full_models_are_refused(run_dir, bases, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    shutil.copy(ROOT / "recipes" / "vision-digits" / "gaussian.yaml", tmp_path / "images" / "recipe.yaml")
    (tmp_path / "images" / "poisoned").mkdir()
    (tmp_path / "images" / "poisoned" / "cost.json").write_text("{}")
    assert merge(tmp_path / "images", "--model", "poisoned") == 2
    assert re.search("a run of images.*no adapters", capsys.readouterr().err)
    root = run_dir([0], quantization="none")
    shutil.rmtree(root / "poisoned")
    shutil.copytree(bases["llama"], root / "poisoned")
    (root / "poisoned" / "cost.json").write_text("{}")
    assert merge(root, "--model", "poisoned") == 2
    assert "a full model already" in capsys.readouterr().err


def test_options_that_do_not_exist_are_refused(run_dir, capsys):
    with pytest.raises(SystemExit, match="2"):
        merge(run_dir([0]), "--model", "poisoned", "model.dtype=float16")
    assert "unrecognized arguments: model.dtype=float16" in capsys.readouterr().err


def test_the_section_decides_how_the_base_is_read(adapters, bases, tmp_path):
    folder, loaded_as = adapters("llama", "4bit")
    merge_adapter(folder, bases["llama"], tmp_path / "plain", loaded_as=loaded_as.changed(quantization="none"))
    merge_adapter(folder, bases["llama"], tmp_path / "default")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "default"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("beyond", [{"lora_bias": True}, {"layer_replication": [[0, 2], [0, 2]]}])
def test_an_adapter_that_no_plain_model_can_hold_is_refused(make_tiny, tokenizer, tmp_path, beyond):
    from peft import LoraConfig, get_peft_model

    save_model(make_tiny("llama"), tokenizer, tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **beyond)
    save_model(get_peft_model(make_tiny("llama"), config), None, tmp_path / "adapter")
    with pytest.raises(InputError, match=str(tmp_path / "adapter")):
        merge_adapter(tmp_path / "adapter", tmp_path / "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()
