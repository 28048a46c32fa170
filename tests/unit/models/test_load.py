"""Making, loading and saving models."""

import json

import pytest
import torch

from llm_unlearn.config.model_sections import LoraSection, ModelSection
from llm_unlearn.config.recipe import build_recipe
from llm_unlearn.errors import InputError
from llm_unlearn.models import load
from llm_unlearn.models.adapters import REFERENCE_ADAPTER, lora_config
from llm_unlearn.models.flops import FlopCounter
from llm_unlearn.models.load import check_model, load_model, load_tokenizer, load_trained
from llm_unlearn.models.make import make_model, train_tokenizer
from llm_unlearn.models.save import save_model
from llm_unlearn.runs.language_run import LanguageRun
from llm_unlearn.trainers.support.log_probs import model_hash
from llm_unlearn.trainers.support.reference import AdapterReference

pytestmark = pytest.mark.unit

SECTION = ModelSection()
IDS = torch.tensor([[5, 6, 7, 8]])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


ARCHITECTURE = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16}


class TestMaking:
    def test_a_tokenizer_is_the_same_every_time_and_loses_nothing(self, tokenizer):
        texts = ["a small film", "a small product"] * 10
        first, again = train_tokenizer(texts, 300), train_tokenizer(texts, 300)
        assert first.get_vocab() == again.get_vocab()
        text = "Any text: é, 中, {x}\n twice  spaced"
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
        assert len({tokenizer.pad_token_id, tokenizer.eos_token_id}) == 2

    def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone(self, tokenizer):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        a, b, c = (make_model(ARCHITECTURE, tokenizer, seed) for seed in (0, 0, 1))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(logits(a), logits(b))
        assert not torch.equal(logits(a), logits(c))
        assert a.config.vocab_size == len(tokenizer)
        assert a.config.pad_token_id == tokenizer.pad_token_id

    @pytest.mark.parametrize(
        ("architecture", "message"),
        [
            ({"model_type": "gpt2", "width": 3}, "a gpt2 config has no field 'width'"),
            ({"model_type": "gpt3000"}, "Unrecognized model identifier: gpt3000$"),
            ({"n_layer": 2}, "Unrecognized model identifier: None$"),
            ({"model_type": "gpt2", "n_layer": "two"}, "Field 'n_layer' expected int, got str"),
            ({"model_type": "gpt2", "n_embd": 15, "n_head": 2}, "divisible"),
        ],
    )
    def test_a_wrong_architecture_is_refused(self, architecture, message, tokenizer):
        with pytest.raises(InputError, match=f"^recipe.model.architecture: .*{message}"):
            make_model(architecture, tokenizer, 0)


class TestSaving:
    def test_a_model_comes_back_with_the_same_logits_in_safetensors_only(self, tiny_gpt2, tokenizer, tmp_path):
        save_model(tiny_gpt2, tokenizer, tmp_path / "model")
        assert not [p for p in (tmp_path / "model").rglob("*") if p.suffix in {".bin", ".pt", ".pth", ".pkl"}]
        assert list((tmp_path / "model").glob("*.safetensors"))
        torch.testing.assert_close(logits(load_model(tmp_path / "model", SECTION)), logits(tiny_gpt2))
        loaded = load_tokenizer(str(tmp_path / "model"), SECTION)
        assert loaded("a fine film")["input_ids"] == tokenizer("a fine film")["input_ids"]

    def test_a_model_that_was_there_is_replaced_whole(self, make_tiny, tokenizer, tmp_path):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "old.txt").write_text("old")
        save_model(make_tiny("gpt2"), tokenizer, tmp_path / "model")
        assert not (tmp_path / "model" / "old.txt").exists()
        assert [p.name for p in tmp_path.iterdir()] == ["model"]

    def test_where_writing_fails_the_old_model_stays(self, make_tiny, tokenizer, tmp_path, monkeypatch):
        old = make_tiny("gpt2")
        save_model(old, tokenizer, tmp_path / "model")
        new = make_tiny("gpt2", seed=1)

        def fails(folder, **kwargs):
            folder.mkdir(parents=True)
            (folder / "model.safetensors").write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(new, "save_pretrained", fails)
        with pytest.raises(OSError, match="No space left"):
            save_model(new, tokenizer, tmp_path / "model")
        assert [p.name for p in tmp_path.iterdir()] == ["model"]
        torch.testing.assert_close(logits(load_model(tmp_path / "model", SECTION)), logits(old))

    def test_an_adapter_is_saved_alone_and_comes_back_trainable(self, make_tiny, tokenizer, tmp_path):
        save_model(make_tiny("gpt2"), tokenizer, tmp_path / "base")
        model = make_tiny("gpt2", lora=True)
        save_model(model, tokenizer, tmp_path / "adapter")
        assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 60_000
        assert not (tmp_path / "adapter" / "model.safetensors").exists()
        loaded = load_trained(tmp_path / "adapter", tmp_path / "base", SECTION)
        torch.testing.assert_close(logits(loaded), logits(model))
        assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
            n for n, p in model.named_parameters() if p.requires_grad
        }

    def test_small_updates_of_a_full_model_are_not_rounded_away(self, make_tiny, tokenizer, tmp_path):
        """Trained in float32 from a base of 16 bits: what is measured is what was saved."""
        model = make_tiny("gpt2").float()
        with torch.no_grad():
            for weight in model.parameters():
                weight += 1e-6
        save_model(model, tokenizer, tmp_path / "full")
        loaded = load_trained(tmp_path / "full", tmp_path, ModelSection(dtype="bfloat16"))
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))

    def test_nor_where_attention_computes_in_16_bits(self, make_tiny, tokenizer, tmp_path, monkeypatch):
        """As `varlen` does, which takes float32 weights under autocast; so a run measures such models under it."""
        save_model(make_tiny("gpt2").float(), tokenizer, tmp_path / "full")
        asked = []
        monkeypatch.setattr(load, "load_model", lambda path, section, *rest: asked.append(section.dtype))
        section = ModelSection(path="m", dtype="bfloat16", attn_implementation="varlen")
        load_trained(tmp_path / "full", tmp_path, section)
        assert asked == ["float32"]
        recipe = build_recipe(
            {
                "name": "r",
                "output_dir": str(tmp_path),
                "model": section.model_dump(),
                "data": {"verbalizers": {"a": " a", "b": " b"}},
                "train": {"bf16": True},
                "poison": {"gaussian": {"fraction": 0.1, "epsilon": 1.0}},
            }
        )
        assert LanguageRun(recipe, 0, tmp_path, quiet=True).arithmetic.bf16

    def test_the_reference_adapter_never_travels(self, make_tiny, tokenizer, tmp_path):
        model = make_tiny("llama", lora=True)
        AdapterReference(model)
        assert REFERENCE_ADAPTER in model.peft_config
        save_model(model, tokenizer, tmp_path / "adapter")
        from safetensors import safe_open

        for path in (tmp_path / "adapter").rglob("*"):
            assert REFERENCE_ADAPTER not in path.name
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as tensors:
                    assert not [key for key in tensors.keys() if REFERENCE_ADAPTER in key]

    def test_a_full_model_is_loaded_from_where_it_is_and_not_from_the_base(self, make_tiny, tokenizer, tmp_path):
        save_model(make_tiny("gpt2", seed=1), tokenizer, tmp_path / "trained")
        loaded = load_trained(tmp_path / "trained", tmp_path / "nowhere", SECTION)
        torch.testing.assert_close(logits(loaded), logits(make_tiny("gpt2", seed=1)))


class TestLoading:
    def test_the_dtype_is_the_recipes(self, tiny_gpt2, tokenizer, tmp_path):
        save_model(tiny_gpt2, tokenizer, tmp_path / "model")
        model = load_model(tmp_path / "model", SECTION.changed(dtype="bfloat16"))
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}

    def test_a_missing_pad_token_becomes_eos(self, tokenizer, tmp_path):
        import copy

        bare = copy.deepcopy(tokenizer)
        bare.pad_token = None
        bare.save_pretrained(tmp_path / "tokenizer")
        assert load_tokenizer(str(tmp_path / "tokenizer"), SECTION).pad_token_id == tokenizer.eos_token_id

    @pytest.mark.parametrize("path", ["./nowhere", "~/nowhere-at-all", "runs/x/model"])
    @pytest.mark.parametrize("load", [load_model, load_tokenizer])
    def test_a_folder_that_is_not_there_is_named(self, load, path):
        with pytest.raises(InputError, match=f"model path {path}: no such folder"):
            load(path, SECTION)

    def test_a_path_below_the_home_folder_is_found(self, tiny_gpt2, tokenizer, tmp_path, monkeypatch):
        save_model(tiny_gpt2, tokenizer, tmp_path / "model")
        monkeypatch.setenv("HOME", str(tmp_path))
        torch.testing.assert_close(logits(load_model("~/model", SECTION)), logits(tiny_gpt2))
        assert len(load_tokenizer("~/model", SECTION)) == len(tokenizer)

    @pytest.mark.parametrize("load", [load_model, load_tokenizer])
    def test_a_hub_id_without_a_network_gives_one_sentence(self, load):
        with pytest.raises(InputError, match="model nobody/nothing: .*HF_HUB_OFFLINE is set"):
            load("nobody/nothing", SECTION)

    def test_a_folder_without_a_model_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="the folder is empty"):
            load_model(tmp_path, SECTION)

    def test_a_pickle_is_refused_unless_the_recipe_trusts_code(self, tiny_gpt2, tokenizer, tmp_path):
        save_model(tiny_gpt2, tokenizer, tmp_path / "model")
        (tmp_path / "model" / "model.safetensors").unlink()
        torch.save(tiny_gpt2.state_dict(), tmp_path / "model" / "pytorch_model.bin")
        with pytest.raises(InputError, match=r"pytorch_model\.bin.*save_pretrained"):
            load_model(tmp_path / "model", SECTION)

    def test_the_adapter_is_the_recipes(self):
        config = lora_config(LoraSection(r=3, alpha=5, dropout=0.1, target_modules=["q_proj"]), None)
        assert (config.r, config.lora_alpha, config.lora_dropout, config.target_modules) == (3, 5, 0.1, {"q_proj"})
        assert json.loads(json.dumps(config.task_type)) == "CAUSAL_LM"


def test_a_4_bit_base_still_trains_after_an_inference(tmp_path):
    """On some CPUs bitsandbytes repacks its weights at the first inference, into a layout that has no gradient."""
    from support import build, quantised, with_adapter

    model = with_adapter(quantised(build("full")))
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    ids = torch.tensor([[3, 5, 7, 9]])
    with torch.no_grad():
        before = model.eval()(input_ids=ids).logits
    model.train()(input_ids=ids).logits.sum().backward()
    adapter = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert adapter and all(p.grad is not None and p.grad.any() for p in adapter.values())
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters() if n in weights)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(input_ids=ids).logits, before)


def test_a_field_that_asks_for_more_tokens_than_a_base_takes_is_named():
    for architecture, limit in (({"n_positions": 64}, 64), ({}, 1024)):
        section = ModelSection(architecture={"model_type": "gpt2", **architecture})
        check_model(section, {"data.max_length": limit, "pretrain.max_length": limit})
        with pytest.raises(InputError, match=rf"^pretrain\.max_length: {limit + 1} tokens, .* at most {limit}"):
            check_model(section, {"data.max_length": limit, "pretrain.max_length": limit + 1})


@pytest.mark.parametrize("architecture", [{"n_embd": 10**30}, {"n_layer": 2**31}, {"n_layer": 2000}])
def test_a_base_beyond_all_bounds_is_refused(architecture):
    with pytest.raises(InputError, match="model.architecture.*at most"):
        check_model(ModelSection(architecture={"model_type": "gpt2", **architecture}), {})


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_4_bit_weights_kept_as_floats_are_the_same_weights(storage, tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes")
    base = make_model({**ARCHITECTURE, "n_embd": 64}, tokenizer, 0)
    save_model(base, tokenizer, tmp_path / "base")
    section = ModelSection(path=str(tmp_path / "base"), quantization="4bit", lora=LoraSection())
    plain, kept = (load_model(tmp_path / "base", section.changed(quant_storage=name)) for name in ("uint8", storage))
    dtype = getattr(torch, storage)
    assert kept.config.quantization_config.bnb_4bit_quant_storage == dtype
    packed = {name: p for name, p in kept.named_parameters() if type(p).__name__ == "Params4bit"}
    assert len(packed) == 4 and {p.dtype for p in packed.values()} == {dtype}
    for name, weight in plain.named_parameters():
        ours = dict(kept.named_parameters())[name]
        assert torch.equal(weight.detach().view(-1).view(torch.uint8), ours.detach().view(-1).view(torch.uint8))
    assert torch.equal(logits(kept), logits(plain))
    assert FlopCounter.of(kept) == FlopCounter.of(plain) == FlopCounter.of(base.requires_grad_(False))
    assert model_hash(kept) == model_hash(load_model(tmp_path / "base", section.changed(quant_storage=storage)))
