"""Damaged, absent and foreign files of a model: one error that names the file and the remedy."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_unlearn.cli.main import main
from llm_unlearn.config.model_sections import ModelSection
from llm_unlearn.errors import InputError
from llm_unlearn.models.adapters import adapter_config
from llm_unlearn.models.load import check_model, load_checkpoint, load_full, load_model, load_tokenizer, read_config
from llm_unlearn.models.save import save_model

pytestmark = pytest.mark.unit

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(make_tiny, tokenizer, tmp_path):
    """A saved model."""
    save_model(make_tiny("llama"), tokenizer, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def adapter(make_tiny, tokenizer, folder):
    """A saved adapter on the model."""
    model = make_tiny("llama", lora=True)
    model.peft_config["default"].base_model_name_or_path = str(folder)
    save_model(model, tokenizer, folder.parent / "adapter")
    return folder.parent / "adapter"


def load_all(folder):
    section = ModelSection(path=str(folder))
    read_config(section)
    load_tokenizer(str(folder), section)
    load_model(folder, section)


def refused(load, *words):
    with pytest.raises(InputError) as error:
        load()
    assert all(word in str(error.value) for word in words), str(error.value)


def changed(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("content", ["", '{"a": ', "[1]", "null", "[" * 100_000, b"\xff\xfe\x00"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_json_is_named(folder, name, content):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(lambda: load_all(folder), str(folder / name), "save or download it again")


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "unheard_of"},
        {"hidden_size": "two"},
        {"hidden_size": -16},
        {"num_attention_heads": 3},
        {"num_attention_heads": 0},
        {"hidden_act": "unheard_of"},
        {"dtype": "unheard_of"},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_a_config_that_makes_no_model_is_told_in_one_sentence(folder, fields):
    changed(folder / "config.json", **fields)
    refused(lambda: load_all(folder), str(folder), "config.json")


def test_a_tokenizer_that_is_json_and_no_tokenizer_is_named(folder):
    (folder / "tokenizer.json").write_text("{}")
    refused(lambda: load_all(folder), str(folder), "tokenizer.json")


def test_running_out_of_memory_is_no_fault_of_the_files(folder, monkeypatch):
    from transformers import AutoModelForCausalLM

    def fill_up(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fill_up)
    with pytest.raises(torch.OutOfMemoryError):
        load_model(folder, ModelSection())


class TestWeights:
    """Each is found by the check that runs before the first stage, and by what loads."""

    @staticmethod
    def refused(folder, *words):
        section = ModelSection(path=str(folder))
        refused(lambda: check_model(section, {"data.max_length": 8}), *words)
        refused(lambda: load_model(folder, section), *words)
        refused(lambda: load_full(str(folder)), *words)

    def test_an_empty_folder(self, tmp_path):
        self.refused(tmp_path, str(tmp_path), "the folder is empty")

    def test_no_config(self, folder):
        (folder / "config.json").unlink()
        self.refused(folder, str(folder), "no config.json")

    def test_no_weights(self, folder):
        (folder / "model.safetensors").unlink()
        self.refused(folder, str(folder), "no weights in safetensors")

    def test_only_pickles(self, folder):
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        self.refused(folder, str(folder), "pytorch_model.bin", "save_pretrained")

    def test_a_file_cut_off(self, folder):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-10])
        self.refused(folder, str(file), "damaged")

    def test_an_adapter_in_the_place_of_a_full_model(self, adapter):
        section = ModelSection(path=str(adapter))
        refused(lambda: check_model(section, {"data.max_length": 8}), str(adapter), "is an adapter", "merge")
        refused(lambda: load_model(adapter, section), str(adapter), "is an adapter", "merge")

    @pytest.mark.parametrize("load", [load_full, lambda path: load_checkpoint(path, ModelSection())])
    def test_an_adapter_beside_a_full_model(self, folder, adapter, load):
        """transformers would load the base that the adapter names, or put the adapter onto the full model."""
        shutil.copy(folder / "config.json", adapter)  # as axolotl saves an adapter: with its base's config.json
        assert load(str(adapter)).peft_config
        refused(lambda: load_model(adapter, ModelSection()), str(adapter), "is an adapter", "merge")
        shutil.copy(folder / "model.safetensors", adapter)
        refused(lambda: load(str(adapter)), str(adapter), "a full model and an adapter")
        refused(lambda: load_model(adapter, ModelSection()), str(adapter), "a full model and an adapter")

    def test_a_file_in_the_place_of_a_folder(self, folder):
        self.refused(folder / "model.safetensors", "is a file", "folder")

    @pytest.fixture
    def shards(self, folder):
        """The model in two shards."""
        names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        where = {name: names[i % 2] for i, name in enumerate(weights)}
        for shard in names:
            save_file(
                {n: w for n, w in weights.items() if where[n] == shard}, folder / shard, metadata={"format": "pt"}
            )
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
        return names

    def test_shards(self, folder, shards):
        check_model(ModelSection(path=str(folder)), {"data.max_length": 8})
        load_model(folder, ModelSection())
        shutil.copy(folder / shards[0], folder / "model.safetensors")
        self.refused(folder, str(folder), "model.safetensors and the shards", "older")
        (folder / "model.safetensors").unlink()
        (folder / shards[1]).unlink()
        self.refused(folder, str(folder / INDEX), shards[1])
        (folder / shards[1]).write_bytes(b"half")
        self.refused(folder, str(folder / shards[1]), "damaged")

    @pytest.mark.parametrize("content", ['{"weight_map": ', "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
    def test_a_damaged_index(self, folder, shards, content):
        (folder / INDEX).write_text(content)
        self.refused(folder, str(folder / INDEX))


class TestAdapters:
    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"peft_type": "MAGIC"}, ["MAGIC"]),
            ({"peft_type": None}, ["peft_type"]),
            ({"peft_type": ["LORA"]}, ["peft_type"]),
            ({"peft_type": "PREFIX_TUNING"}, ["PREFIX_TUNING", "virtual tokens"]),
            ({"use_magic": True, "peft_version": "9.9"}, ["use_magic", "9.9"]),
        ],
    )
    def test_a_config_that_peft_cannot_follow(self, adapter, fields, words):
        changed(adapter / "adapter_config.json", **fields)
        for load in (lambda: adapter_config(str(adapter)), lambda: load_checkpoint(str(adapter), ModelSection())):
            refused(load, str(adapter / "adapter_config.json"), *words)

    def test_a_field_of_a_newer_peft_that_is_off(self, adapter):
        changed(adapter / "adapter_config.json", use_magic=False, magic_words=None)
        load_checkpoint(str(adapter), ModelSection())

    @pytest.mark.parametrize("content", ["", "[]", '{"peft_type": '])
    def test_a_damaged_config(self, adapter, content):
        (adapter / "adapter_config.json").write_text(content)
        refused(lambda: load_full(str(adapter)), str(adapter / "adapter_config.json"))

    @pytest.mark.parametrize("fields", [{"r": "two"}, {"r": -1}, {"rank_pattern": 3}, {"target_modules": ["nothing"]}])
    def test_a_config_that_is_not_its_weights(self, adapter, fields):
        changed(adapter / "adapter_config.json", **fields)
        refused(lambda: load_checkpoint(str(adapter), ModelSection()), str(adapter))

    def test_no_base(self, adapter):
        changed(adapter / "adapter_config.json", base_model_name_or_path=None)
        refused(lambda: load_full(str(adapter)), str(adapter), "does not name its base")

    def test_a_base_that_is_an_adapter_itself(self, adapter, tmp_path):
        shutil.copytree(adapter, tmp_path / "second")
        changed(tmp_path / "second" / "adapter_config.json", base_model_name_or_path=str(adapter))
        for load in (load_full, lambda path: load_checkpoint(path, ModelSection())):
            refused(lambda load=load: load(str(tmp_path / "second")), str(adapter), "is an adapter", "merge")

    def test_a_start_model_may_be_one(self, adapter):
        loaded = load_full(str(adapter))
        weights = {name.replace(".default", ""): weight for name, weight in loaded.named_parameters()}
        saved = load_file(adapter / "adapter_model.safetensors")
        assert saved and all(torch.equal(weights[name], weight) for name, weight in saved.items())
        assert all(p.requires_grad == ("lora_" in name) for name, p in loaded.named_parameters())


class TestGGUF:
    @pytest.mark.parametrize("place", ["file", "folder"])
    def test_one_is_refused_with_the_lines_that_convert_it(self, tmp_path, place, capsys):
        (tmp_path / "small.Q4_1.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
        path = str(tmp_path / "small.Q4_1.gguf" if place == "file" else tmp_path)
        for load in (load_all, load_full):
            refused(lambda load=load: load(path), path, "GGUF")
        recipe = {"name": "t", "output_dir": str(tmp_path / "run"), "model": {"path": path}}
        recipe |= {"data": {"task": "completion"}, "poison": {"gaussian": {"fraction": 0.2, "epsilon": 0.1}}}
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
        assert main(["run", str(tmp_path / "recipe.yaml")]) == 2
        lines = (said := capsys.readouterr().err).splitlines()
        code = "\n".join(line.strip() for line in lines if line.startswith("    "))
        assert code, said
        compile(code, "conversion", "exec")
        assert "gguf_file='small.Q4_1.gguf'" in code and repr(str(tmp_path)) in code

    def test_one_beside_safetensors_does_no_harm(self, folder):
        (folder / "small.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
        load_all(folder)
