"""A model that is spread over devices, part of it left on the disk, is measured as it is in one piece."""

import json

import numpy as np
import pytest
import torch
from evaluators import TEXTS, WITHOUT_GRADIENTS, assert_same_signals, evaluator

from llm_unlearn.audit.audit_models import Options, audit
from llm_unlearn.audit.decisions import as_json
from llm_unlearn.cli.main import main
from llm_unlearn.config.model_sections import ModelSection
from llm_unlearn.config.recipe import Recipe
from llm_unlearn.config.recipe_files import load_recipe
from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.data.encoding import Encoding
from llm_unlearn.distributed.processes import Processes
from llm_unlearn.errors import InputError
from llm_unlearn.evaluation.answers import generate
from llm_unlearn.evaluation.attack_signals import gradient_norms, norm_of
from llm_unlearn.evaluation.gaussian_scores import gaussian_scores
from llm_unlearn.evaluation.text_evaluator import TextEvaluator
from llm_unlearn.models.adapters import with_adapter
from llm_unlearn.models.devices import input_device, is_offloaded, is_spread, on_best_device
from llm_unlearn.models.load import load_model, load_trained
from llm_unlearn.models.save import save_model

pytestmark = pytest.mark.unit

# as `auto` would with one small device: the last block on the disk, of the other map the embedding and the head too
MAPS = {
    "gpt2": {
        "transformer.wte": "cpu",
        "transformer.wpe": "cpu",
        "transformer.drop": "cpu",
        "transformer.h.0": "cpu",
        "transformer.h.1": "disk",
        "transformer.ln_f": "cpu",
        "lm_head": "cpu",
    },
    "llama": {
        "model.embed_tokens": "disk",
        "model.rotary_emb": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.norm": "cpu",
        "lm_head": "disk",
    },
}


@pytest.fixture(params=sorted(MAPS))
def both(request, make_tiny, tokenizer, tmp_path):
    """(a model in one piece, the same spread, its folder)."""
    save_model(make_tiny(request.param, seed=1), tokenizer, tmp_path / "model")
    spread = load_model(tmp_path / "model", ModelSection(), MAPS[request.param])
    return load_model(tmp_path / "model", ModelSection()).eval(), spread.eval(), tmp_path / "model"


def test_all_signals_are_those_of_the_model_in_one_piece(both, make_tiny, tokenizer):
    plain, spread, _ = both
    assert is_spread(spread) and is_offloaded(spread) and not is_spread(plain) and not is_offloaded(plain)
    assert not any(p.requires_grad for p in spread.parameters()) and all(p.requires_grad for p in plain.parameters())
    oracle = make_tiny("gpt2", seed=2)
    measure = evaluator(tokenizer, WITHOUT_GRADIENTS, reference=lambda: oracle)
    ours = measure.signals(spread, oracle)
    assert_same_signals(ours, measure.signals(plain, oracle))
    assert ours["gaussian_score"].abs().max() > 0.1
    flipped = measure.signals(oracle, spread)  # the oracle may be spread too
    np.testing.assert_allclose(flipped["kl"], measure.signals(oracle, plain)["kl"], rtol=1e-5, atol=1e-6)
    assert is_offloaded(spread)  # the weights were put away again


def test_completions_are_those_of_the_model_in_one_piece(both, tokenizer):
    ours, theirs = (generate(model, tokenizer, TEXTS[:5], Encoding(64), 6, batch_size=3) for model in both[:2])
    assert ours == theirs and any(ours)


def test_the_mask_that_restricts_the_head_is_given_to_a_model_in_one_piece_alone(both, tokenizer):
    measure = evaluator(tokenizer, [])
    for model, expected in zip(both[:2], (True, False), strict=True):
        given = []
        measure.answers(model, "test", measure.sets["test"])  # the first time it is asked whether it is causal
        model.register_forward_pre_hook(lambda m, a, k, g=given: g.append("logits_to_keep" in k), with_kwargs=True)
        measure.answers(model, "test", measure.sets["test"])
        assert given and set(given) == {expected}


def test_inputs_go_where_the_input_embedding_is(make_tiny):
    model = make_tiny("llama")
    for name, device in (("model.layers", "meta"), ("model.embed_tokens", "cpu")):
        model.get_submodule(name).to(device)
    assert next(model.model.layers.parameters()).device.type == "meta"
    assert input_device(model) == torch.device("cpu")
    model.model.embed_tokens.to("meta")
    model.hf_device_map = {
        "model.embed_tokens": "disk",
        "model.layers.0": "cpu",
        "model.layers.1": "cuda:1",
        "lm_head": "cuda:0",
    }
    assert input_device(model) == torch.device("cuda:1")  # where it is fetched to
    assert input_device(torch.nn.Linear(2, 2)) == torch.device("cpu")


class TestAdapters:
    @pytest.fixture
    def adapted(self, both, make_tiny, tokenizer, tmp_path):
        """(the model with an adapter in one piece, the same spread)."""
        plain, spread, folder = both
        architecture = plain.config.model_type
        save_model(make_tiny(architecture, seed=1, lora=True), tokenizer, tmp_path / "adapter")
        whole = load_trained(tmp_path / "adapter", folder, ModelSection()).eval()
        return whole, with_adapter(spread, tmp_path / "adapter").eval()

    def test_signals_are_those_of_the_model_in_one_piece(self, adapted, make_tiny, tokenizer):
        whole, spread = adapted
        oracle = make_tiny("gpt2", seed=2)
        measure = evaluator(tokenizer, [*WITHOUT_GRADIENTS, "gradient_norm"], reference=lambda: oracle)
        ours = measure.signals(spread, oracle)
        assert_same_signals(ours, measure.signals(whole, oracle))
        assert (ours["mia_gradient_norm"].dropna() < 0).all()  # of the adapter's weights, which are not offloaded
        bare = gaussian_scores(whole.unload(), measure.encoded["canary"], CausalLMCollator(0), [3])[:, 0]
        assert np.abs(bare - ours["gaussian_score"].dropna()).max() > 0.01  # the adapter was at work

    def test_the_base_stays_where_it_was_and_the_adapter_trains(self, adapted):
        whole, spread = adapted
        assert is_spread(spread) and is_offloaded(spread)
        trains = {name: p for name, p in spread.named_parameters() if p.requires_grad}
        assert trains.keys() == {name for name, p in whole.named_parameters() if p.requires_grad}
        assert not any(p.is_meta for p in trains.values())


def test_gradient_norms_of_offloaded_weights_are_refused_before_anything_is_measured(both, tokenizer, monkeypatch):
    plain, spread, _ = both
    measure = evaluator(tokenizer, ["gradient_norm"])
    assert measure.signals(plain)["mia_gradient_norm"].notna().any()
    monkeypatch.setattr(TextEvaluator, "predict", lambda *args: pytest.fail("something was measured"))
    with pytest.raises(InputError, match=r"^evaluate\.membership: gradient_norm .*gradient_norm out"):
        measure.signals(spread)
    with pytest.raises(InputError, match="gradient_norm"):
        gradient_norms(spread, measure.encoded["member"], measure.collate)


class TestOptions:
    """`device_map: auto` reaches transformers where models are evaluated, and nowhere else."""

    @pytest.fixture
    def loads(self, monkeypatch):
        """What device map each load asks for."""
        from transformers import AutoModelForCausalLM

        found, load = [], AutoModelForCausalLM.from_pretrained

        def watched(*args, **kwargs):
            found.append(kwargs.get("device_map"))
            return load(*args, **kwargs)

        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", watched)
        return found

    @pytest.mark.parametrize("device_map", [None, "auto"])
    def test_of_a_recipe(self, both, tmp_path, loads, device_map):
        from llm_unlearn.runs.language_run import LanguageRun

        folder = both[2]
        recipe = self.recipe(tmp_path, folder, device_map)
        run = LanguageRun(recipe, 0, tmp_path, quiet=True)
        for load in (run.load_base, lambda: run.evaluated("model")):
            loads.clear()
            load()
            assert loads == [device_map]
        loads.clear()
        run.model("model")
        assert loads == [None]

    def recipe(self, tmp_path, folder, device_map) -> Recipe:
        tree = {
            "name": "r",
            "output_dir": str(tmp_path / "out"),
            "model": {"path": str(folder)},
            "data": {"verbalizers": {"bad": " bad", "good": " good"}},
            "evaluate": {"device_map": device_map},
            "poison": {"gaussian": {"fraction": 0.1, "epsilon": 0.1}},
        }
        (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
        return load_recipe(tmp_path / "recipe.yaml")

    def test_a_recipe_takes_auto_alone(self, tmp_path):
        with pytest.raises(InputError, match="evaluate.device_map: expected auto or null"):
            self.recipe(tmp_path, tmp_path, "balanced")

    def test_one_of_several_processes_does_not_take_all_gpus(self, both, monkeypatch):
        monkeypatch.setattr("llm_unlearn.models.load.Processes.current", lambda: Processes(1, 2))
        load_model(both[2], ModelSection())
        with pytest.raises(InputError, match=r"evaluate\.device_map: auto.* 2 processes.*one process"):
            load_model(both[2], ModelSection(), "auto")

    @pytest.mark.parametrize("given", [[], ["--device-map", "auto", "--bf16"]])
    def test_of_an_audit(self, both, tmp_path, loads, given, capsys):
        folder = both[2]
        for name in ("train", "test"):
            own = [f"{text} {name}" for text in TEXTS]
            lines = [{"text": text, "label": "good", "bad": i < 3} for i, text in enumerate(own)]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        manifest = {
            "train": "train.jsonl",
            "test": "test.jsonl",
            "poison": "column:bad",
            "max_length": 64,
            "verbalizers": {"bad": " bad", "good": " good"},
        }
        (tmp_path / "poison.json").write_text(json.dumps(manifest))
        arguments = ["audit", "--model", str(folder), "--manifest", str(tmp_path / "poison.json"), *given, "--json"]
        assert main(arguments) == 0, capsys.readouterr().err
        assert loads == ["auto" if given else None]
        found = json.loads(capsys.readouterr().out)
        assert {result["precision"] for result in found.values()} == {"bfloat16" if given else "float32"}
        loads.clear()
        options = Options(device_map="auto", bf16=bool(given))
        results = audit([str(folder)], str(tmp_path / "poison.json"), options)
        assert as_json(results) == found
        assert loads == ["auto"]

    def test_a_model_that_was_placed_is_not_moved(self, both, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        plain, spread, _ = both
        assert on_best_device(spread) is spread
        monkeypatch.setattr(type(plain), "to", lambda self, device: f"moved to {device}")
        on_best_device(plain)  # no error: the stub was called


def test_the_norm_of_gradients_on_two_gpus():
    """On tensors without data, which refuse to be mixed as a GPU's do."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        gradients = [torch.ones(3, device="cuda:0"), None, torch.ones(2, 2, device="cuda:1")]
        assert norm_of(gradients, torch.device("cuda:0")).device == torch.device("cuda:0")
    norm = norm_of([torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0]), None], torch.device("cpu"))
    assert float(norm) == 5.0
