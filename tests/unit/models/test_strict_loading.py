"""Whatever loads refuses weights that are not the model's: nothing is drawn anew or passed over without a word."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_unlearn.config.model_sections import ModelSection
from llm_unlearn.errors import InputError
from llm_unlearn.models.load import load_checkpoint, load_full, load_model
from llm_unlearn.models.save import save_model
from llm_unlearn.vision.classifiers import ImageClassifierConfig, load_classifier, make_classifier

pytestmark = pytest.mark.unit

ARCHITECTURES = ("gpt2", "llama")  # tied head, head of its own


@pytest.fixture(params=ARCHITECTURES)
def full(request, make_tiny, tokenizer, tmp_path):
    """A saved full model: (folder, its weights)."""
    save_model(make_tiny(request.param), tokenizer, tmp_path / "model")
    return tmp_path / "model", load_file(tmp_path / "model" / "model.safetensors")


@pytest.fixture(params=ARCHITECTURES)
def adapter(request, make_tiny, tokenizer, tmp_path):
    """A saved base and adapter: (base, adapter, its weights)."""
    model = make_tiny(request.param, lora=True)
    save_model(make_tiny(request.param), tokenizer, tmp_path / "base")
    save_model(model, None, tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter", load_file(tmp_path / "adapter" / "adapter_model.safetensors")


def write(folder, weights, name="model.safetensors"):
    save_file(weights, folder / name, metadata={"format": "pt"})


def refused(load, *words):
    with pytest.raises(InputError) as error:
        load()
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "cannot be loaded" not in message  # one reason and its remedy, not one inside another


def test_a_whole_model_is_loaded_as_it_is(full):
    folder, weights = full
    loaded = load_model(folder, ModelSection()).state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module.", "_fsdp_wrapped_module."])
def test_the_prefix_of_a_wrapper_is_left_out_aloud(full, prefix, caplog):
    folder, weights = full
    write(folder, {prefix + name: weight for name, weight in weights.items()})
    loaded = load_model(folder, ModelSection()).state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())
    (record,) = [r for r in caplog.records if r.name.startswith("llm_unlearn")]
    assert record.levelname == "WARNING" and prefix in record.getMessage() and str(folder) in record.getMessage()


def test_a_weight_with_the_prefix_of_a_wrapper_and_without_is_refused(full):
    folder, weights = full
    write(folder, weights | {f"_orig_mod.{name}": weight + 1 for name, weight in weights.items()})
    refused(lambda: load_model(folder, ModelSection()), str(folder), "unknown", "_orig_mod.")


def test_masks_that_older_versions_saved_are_no_weights(full):
    folder, weights = full
    name = next(name for name in weights if "attn." in name).partition("attn.")[0] + "attn"
    write(folder, weights | {f"{name}.bias": torch.ones(1, 1, 8, 8), f"{name}.masked_bias": torch.tensor(-1e4)})
    loaded = load_model(folder, ModelSection()).state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("stored", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_without_their_scale_are_refused(full, stored):
    folder, weights = full
    name = next(name for name in weights if weights[name].ndim == 2)
    write(folder, weights | {name: weights[name].to(stored)})
    refused(lambda: load_model(folder, ModelSection()), str(folder), name, "quantization_config")


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_plain_weights_under_a_quantised_config_are_refused(make_tiny, tokenizer, tmp_path, bits):
    """As a merge leaves them: the first forward would end with an AttributeError."""
    pytest.importorskip("bitsandbytes")
    save_model(make_tiny("llama"), tokenizer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", bits: True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(lambda: load_model(tmp_path, ModelSection()), str(tmp_path), "quantization_config", "merge")


@pytest.mark.parametrize(
    "load",
    [
        lambda path: load_model(path, ModelSection()),
        lambda path: load_full(str(path)),
        lambda path: load_checkpoint(str(path), ModelSection()),
    ],
)
def test_missing_and_unknown_weights_are_named(full, load):
    folder, weights = full
    gone = sorted(weights)[4]
    write(folder, {name: weight for name, weight in weights.items() if name != gone})
    refused(lambda: load(folder), str(folder), "missing", gone)
    write(folder, weights | {"value_head.weight": torch.zeros(2, 2)})
    refused(lambda: load(folder), str(folder), "unknown", "value_head.weight")
    write(folder, {f"student.{name}": weight for name, weight in weights.items()})
    refused(lambda: load(folder), str(folder), "missing", "unknown", "student.")


def test_a_weight_of_another_shape_is_named_with_both(full):
    folder, weights = full
    name = sorted(weights)[4]
    write(folder, weights | {name: torch.zeros(5, 7)})
    refused(lambda: load_model(folder, ModelSection()), name, "[5, 7]", str(list(weights[name].shape)))


@pytest.mark.parametrize("content", [b"", b"x" * 100], ids=["empty", "truncated"])
def test_damaged_weights_name_their_model(full, content):
    folder, _ = full
    (folder / "model.safetensors").write_bytes(content)
    refused(lambda: load_model(folder, ModelSection()), str(folder), "damaged")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(full, value):
    folder, weights = full
    name = sorted(weights)[4]
    weights[name].view(-1)[0] = value
    write(folder, weights)
    refused(lambda: load_model(folder, ModelSection()), str(folder), name, "NaN")


class TestAdapters:
    @staticmethod
    def load(base, folder):
        return load_checkpoint(str(folder), ModelSection(), base=str(base))

    def test_a_whole_one_is_loaded_as_it_is(self, adapter):
        base, folder, weights = adapter
        loaded = {n.replace(".default", ""): p for n, p in self.load(base, folder).named_parameters()}
        assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())

    def test_one_without_its_weights_is_not_its_base(self, adapter):
        base, folder, weights = adapter
        write(folder, {"unrelated": torch.zeros(1)}, "adapter_model.safetensors")
        refused(lambda: self.load(base, folder), str(folder), "missing", "unknown", "unrelated")
        write(folder, {}, "adapter_model.safetensors")
        refused(lambda: self.load(base, folder), str(folder), "missing")
        half = {name: weight for name, weight in weights.items() if "lora_A" in name}
        write(folder, half, "adapter_model.safetensors")
        refused(lambda: self.load(base, folder), "missing", "lora_B")

    @pytest.mark.parametrize("content", [b"", b"x" * 100], ids=["empty", "truncated"])
    def test_a_damaged_one_names_its_folder(self, adapter, content):
        base, folder, _ = adapter
        (folder / "adapter_model.safetensors").write_bytes(content)
        refused(lambda: self.load(base, folder), str(folder), "damaged")

    @pytest.mark.parametrize("changes", [{"r": 5}, {"peft_type": "MAGIC"}], ids=["rank", "type"])
    def test_one_of_another_rank_or_an_unknown_type_names_its_folder(self, adapter, changes):
        base, folder, _ = adapter
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        refused(lambda: self.load(base, folder), str(folder))

    def test_one_that_is_not_finite_is_named(self, adapter):
        base, folder, weights = adapter
        name = sorted(weights)[0]
        weights[name].view(-1)[0] = float("nan")
        write(folder, weights, "adapter_model.safetensors")
        refused(lambda: self.load(base, folder), str(folder), name, "NaN")


def test_a_classifier_with_foreign_weights_is_refused(tmp_path):
    make_classifier(ImageClassifierConfig(num_labels=3), 0).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    write(tmp_path, {f"student.{name}": weight for name, weight in weights.items()})
    refused(lambda: load_classifier(tmp_path), str(tmp_path), "missing", "student.")


def test_a_model_given_by_path_trains_in_float32(full):
    folder, weights = full
    write(folder, {name: weight.bfloat16() for name, weight in weights.items()})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    assert {parameter.dtype for parameter in load_full(str(folder)).parameters()} == {torch.float32}
