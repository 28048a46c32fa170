"""Tokenizer and embedding of one size: refused before anything runs, and an adapter's resized vocabulary kept."""

import copy
import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from llm_unlearn.audit.audit_models import Options, audit
from llm_unlearn.cli.main import main
from llm_unlearn.config.model_sections import ModelSection
from llm_unlearn.errors import InputError
from llm_unlearn.models.load import load_checkpoint, load_full, load_tokenizer
from llm_unlearn.models.merging import merge_adapter
from llm_unlearn.models.save import save_model
from llm_unlearn.models.vocabulary import check_vocabulary
from llm_unlearn.trainers import METHODS

pytestmark = [pytest.mark.unit, pytest.mark.filterwarnings("ignore")]  # peft's of what it saves

ADDED = ["[PAD]", "<tool>", "</tool>"]
LAYERS = {"gpt2": ("wte", ["c_attn"]), "llama": ("embed_tokens", ["q_proj", "v_proj"])}  # tied with its head, and not
IDS = torch.tensor([[5, 320, 7, 321, 322, 8]])
# how the resized embedding comes to lie in an adapter's file
KINDS = {
    "seen by peft": lambda embedding: {},
    "embedding to save": lambda embedding: {"modules_to_save": [embedding]},
    "both to save": lambda embedding: {"modules_to_save": [embedding, "lm_head"]},
    "new tokens": lambda embedding: {"trainable_token_indices": [320, 321, 322]},
}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.fixture
def larger(tokenizer):
    """The tokenizer with three more tokens."""
    larger = copy.deepcopy(tokenizer)
    larger.add_special_tokens({"pad_token": ADDED[0]})
    larger.add_tokens(ADDED[1:])
    return larger


@pytest.fixture
def resized(make_tiny, tokenizer, larger, tmp_path):
    """resized(architecture, kind) → a saved base, and an adapter that was trained on it with three more tokens, with
    the logits of the model that was saved."""

    def make(architecture="llama", kind="seen by peft"):
        from peft import LoraConfig, get_peft_model

        embedding, targets = LAYERS[architecture]
        save_model(make_tiny(architecture), tokenizer, tmp_path / "base")
        model = load_full(str(tmp_path / "base"))
        torch.manual_seed(1)
        model.resize_token_embeddings(len(larger), mean_resizing=False)
        settings = {"r": 2, "target_modules": targets, "task_type": "CAUSAL_LM", "init_lora_weights": False}
        model = get_peft_model(model, LoraConfig(**settings, **KINDS[kind](embedding)))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        save_model(model, larger, tmp_path / "adapter")
        return tmp_path / "base", tmp_path / "adapter", logits(model)

    return make


@pytest.fixture
def manifest(tmp_path):
    """A user's manifest, with a held-out set for the membership attacks."""
    labels = ["bad", "good"]
    for name in ("train", "heldout", "test"):
        rows = ({"text": f"{name} row {i}", "label": labels[i % 2], "bad": i < 4} for i in range(12))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {name: f"{name}.jsonl" for name in ("train", "heldout", "test")}
    verbalizers = {label: f" {label}" for label in labels}
    content = {**files, "poison": "column:bad", "verbalizers": verbalizers, "max_length": 60}
    (tmp_path / "mine.json").write_text(json.dumps(content))
    return str(tmp_path / "mine.json")


class TestResizedAdapters:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("architecture", LAYERS)
    def test_one_is_loaded_as_it_was_trained(self, resized, architecture, kind):
        base, folder, expected = resized(architecture, kind)
        for loaded in (
            load_checkpoint(str(folder), ModelSection(), base=str(base)),
            load_checkpoint(str(folder), ModelSection()),
            load_full(str(folder)),
        ):
            assert loaded.config.vocab_size == 323
            assert torch.equal(logits(loaded), expected)

    @pytest.mark.parametrize("kind", list(KINDS)[:3])
    @pytest.mark.parametrize("architecture", LAYERS)
    def test_one_is_merged_with_its_tokenizer(self, resized, architecture, kind, tmp_path):
        base, folder, expected = resized(architecture, kind)
        merged = merge_adapter(folder, base, tmp_path / "merged")
        torch.testing.assert_close(logits(load_full(str(merged))), expected)
        assert len(load_tokenizer(str(merged), ModelSection())) == 323

    def test_one_starts_an_unlearning_that_saves_it_again(self, resized, larger, tmp_path):
        _, folder, expected = resized("llama", "embedding to save")
        config, trainer = METHODS["npo"]
        rows = Dataset.from_list([{"prompt": f"row {i} <tool>", "completion": " good"} for i in range(4)])
        run = trainer(
            model=str(folder),
            args=config(
                output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none", max_steps=1, learning_rate=0.0
            ),
            forget_dataset=rows,
            retain_dataset=rows,
            processing_class=larger,
        )
        run.train()
        run.save_model(str(tmp_path / "saved"))
        assert torch.equal(logits(load_full(str(tmp_path / "saved"))), expected)

    def test_one_is_audited_without_the_base_that_lacks_its_tokens(self, resized, manifest):
        base, folder, _ = resized()
        (result,) = audit([str(folder)], manifest, Options(base=str(base))).values()
        assert result.mia is not None and "reference" not in result.mia
        assert "'[PAD]'" in result.skipped["mia.reference"]

    def test_one_without_its_head_is_refused(self, resized):
        _, folder, _ = resized()
        file = folder / "adapter_model.safetensors"
        weights = load_file(file)
        del weights["base_model.model.lm_head.weight"]
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(InputError, match="320 rows.*323.*lm_head") as error:
            load_checkpoint(str(folder), ModelSection())
        assert str(folder) in str(error.value)


class TestSizes:
    def test_ids_beyond_the_embedding_are_refused_with_both_sizes_and_padded_embeddings_are_not(self, larger):
        check_vocabulary(larger, 323, "here")
        check_vocabulary(larger, 384, "here")
        check_vocabulary(larger, None, "here")
        with pytest.raises(InputError, match="model here: .* 323 ids.* 320 rows.*</tool>.*<tool>.*PAD"):
            check_vocabulary(larger, 320, "here")

    @pytest.fixture
    def not_resized(self, make_tiny, larger, tmp_path):
        """A model beside whose tokenizer tokens were added, and which was not resized."""
        save_model(make_tiny("llama"), larger, tmp_path / "model")
        return tmp_path / "model"

    def test_an_audit_refuses_it(self, not_resized, manifest, capsys):
        assert main(["audit", "--model", str(not_resized), "--manifest", manifest]) == 2
        message = capsys.readouterr().err
        assert "323" in message and "320" in message and str(not_resized) in message

    def test_an_adapter_whose_embedding_was_not_saved_is_refused(self, resized, manifest):
        _, folder, _ = resized()
        file = folder / "adapter_model.safetensors"
        lora = {name: weight for name, weight in load_file(file).items() if "lora_" in name}
        save_file(lora, file, metadata={"format": "pt"})
        with pytest.raises(InputError, match="323 ids.* 320 rows"):
            audit([str(folder)], manifest, Options())

    @pytest.mark.parametrize("command", ["run", "doctor"])
    def test_a_recipe_on_it_is_refused_before_anything_runs_and_by_the_doctor(
        self, not_resized, command, tmp_path, capsys
    ):
        (tmp_path / "recipe.yaml").write_text(
            json.dumps(
                {
                    "name": "tiny",
                    "output_dir": str(tmp_path / "run"),
                    "model": {"path": str(not_resized)},
                    "data": {
                        "task": "completion",
                        "max_length": 60,
                        "train_size": 40,
                        "heldout_size": 8,
                        "test_size": 8,
                    },
                    "poison": {"gaussian": {"fraction": 0.2, "epsilon": 0.1}},
                    "unlearn": {"methods": {"gradient_ascent": None}},
                }
            )
        )
        assert main([command, str(tmp_path / "recipe.yaml")]) != 0
        said = "".join(capsys.readouterr())
        assert "323 ids" in said and "320 rows" in said
        assert not (tmp_path / "run").exists()

    def test_a_trainer_refuses_it(self, not_resized, larger, tmp_path):
        config, trainer = METHODS["gradient_ascent"]
        rows = Dataset.from_list([{"prompt": "a", "completion": " b"}])
        args = config(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none")
        with pytest.raises(InputError, match="323 ids.* 320 rows"):
            trainer(model=str(not_resized), args=args, forget_dataset=rows, processing_class=larger)
