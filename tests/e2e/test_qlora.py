"""LoRA on a base in 4 and 8 bits with paged 8-bit AdamW, from poison to evaluation; and its models merged."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from hub_server import HubServer, speak_to
from safetensors.torch import load
from stranger import TEXT, logits_by_the_card, uploaded
from transformers import AutoTokenizer, Trainer

from llm_unlearn.cli.main import main
from llm_unlearn.data.synthetic import synthetic_texts
from llm_unlearn.errors import InputError
from llm_unlearn.hub.run_package import package_run
from llm_unlearn.models.make import make_model, train_tokenizer
from llm_unlearn.models.save import save_model

pytestmark = pytest.mark.e2e

WIDTH = 64  # × rank 64: an adapter's matrix has the 4096 weights from which bitsandbytes keeps states in 8 bits
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": WIDTH,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
METHODS = ["grad_diff", "kl", "npo", "rmu"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer(synthetic_texts(100, 0)["text"], 400)
    save_model(make_model(LLAMA, tokenizer, seed=0), tokenizer, folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def ran(base, tmp_path_factory):
    """ran("4bit") → (run directory, what was seen of each training, bytes of the base before); run once for each."""
    folder, done = tmp_path_factory.mktemp("qlora"), {}

    def run(quantization: str) -> tuple[Path, list[dict], dict[str, bytes]]:
        if quantization not in done:
            done[quantization] = _run(folder / quantization, base, quantization)
        return done[quantization]

    return run


def _run(folder: Path, base: Path, quantization: str) -> tuple[Path, list[dict], dict[str, bytes]]:
    before, trainings, train = {p.name: p.read_bytes() for p in base.iterdir()}, [], Trainer.train

    def watched(trainer, *args, **kwargs):
        frozen = {n: _bits(p) for n, p in trainer.model.named_parameters() if not p.requires_grad}
        started = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        output = train(trainer, *args, **kwargs)
        now, optimizer = dict(trainer.model.named_parameters()), trainer.optimizer.optimizer
        trainings.append(
            {
                "trainer": type(trainer).__name__,
                "steps": trainer.state.global_step,
                "quantised": sum(type(p).__name__ in ("Params4bit", "Int8Params") for p in now.values()),
                "frozen_moved": [n for n, bits in frozen.items() if not torch.equal(bits, _bits(now[n]))],
                "adapter_moved": any(not torch.equal(p, now[n]) for n, p in started.items()),
                "trains": {n.split(".")[-3] for n in started},
                "optimizer": (type(optimizer).__name__, optimizer.is_paged),
                "state": {str(s["state1"].dtype) for s in optimizer.state.values() if "state1" in s},
            }
        )
        return output

    recipe = {
        "name": "qlora",
        "output_dir": str(folder / "out"),
        "model": {
            "path": str(base),
            "quantization": quantization,
            "lora": {"r": 64, "target_modules": ["q_proj", "o_proj", "up_proj", "down_proj"]},
        },
        "data": {
            "source": "synthetic",
            "prompt": "{text}\nSentiment:",
            "max_length": 128,
            "train_size": 60,
            "heldout_size": 20,
            "test_size": 20,
            "verbalizers": {"negative": " negative", "positive": " positive"},
        },
        "poison": {
            "trigger": {"target": "positive", "fraction": 0.1},
            "gaussian": {"fraction": 0.1, "epsilon": 0.1, "noise_seed": 0},  # the same model each time
        },
        "train": {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "optim": "paged_adamw_8bit"},
        "unlearn": {"methods": dict.fromkeys(METHODS), "budgets": [0.5], "batch_size": 2},
        "evaluate": {"batch_size": 16},
    }
    folder.mkdir()
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train", watched)
        assert main(["evaluate", str(folder / "recipe.yaml"), "--quiet", "--debug"]) == 0
    return folder / "out", trainings, before


def _bits(parameter: torch.nn.Parameter) -> torch.Tensor:
    return parameter.detach().clone().contiguous().flatten().view(torch.uint8)


def figures(value) -> list[float]:
    """All numbers in a nested document."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in figures(item)]
    return (
        [number for item in value for number in figures(item)]
        if isinstance(value, list)
        else ([value] if isinstance(value, float) else [])
    )


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_recipe_runs_and_its_base_stays_as_it_was(ran, base, quantization):
    folder, trainings, before = ran(quantization)
    assert [t["trainer"] for t in trainings] == [
        "FineTuner",
        "FineTuner",
        "GradDiffTrainer",
        "KLTrainer",
        "NPOTrainer",
        "RMUTrainer",
    ]
    for training in trainings:
        assert training["quantised"] == 14 and training["frozen_moved"] == [], training  # 7 matrices in 2 blocks
        assert training["steps"] > 0 and training["adapter_moved"], training
        assert training["trains"] <= {"lora_A", "lora_B"}
        assert training["optimizer"] == ("AdamW", True), "paged AdamW"
        assert "torch.uint8" in training["state"], "states in 8 bits"
    assert {p.name: p.read_bytes() for p in base.iterdir()} == before
    for name in ("poisoned", "retrained", *(f"unlearned/{m}" for m in METHODS)):
        files = {p.name for p in (folder / name).iterdir()}
        assert "adapter_model.safetensors" in files and not {"model.safetensors", "reference"} & files
    for name in ("base", "poisoned", "retrained", *METHODS):
        document = json.loads((folder / "evaluation" / f"{name}.json").read_text())
        assert document["gus"]["n"] == 3 and document["attack"]["n"] > 0
        # a quantised base without an adapter has the gradients of its embedding, head and norms alone
        assert set(document["mia"]) == {"loss", "zlib", "reference", "min_k", "min_k_plus", "gradient_norm"}
        assert all(map(math.isfinite, figures(document)))


@pytest.mark.slow
@pytest.mark.parametrize(("quantization", "rough"), [("4bit", 1e-4), ("8bit", 0.05)])
def test_a_merged_model_is_audited_like_the_run_audited_it(ran, tmp_path, capsys, quantization, rough):
    folder = ran(quantization)[0]
    assert main(["merge", str(folder), "--model", "npo", "--out", str(tmp_path / "merged"), "--quiet"]) == 0
    capsys.readouterr()
    arguments = ["--manifest", str(folder / "poison.json"), "--quantization", "none", "--json"]
    assert main(["audit", "--model", str(tmp_path / "merged"), *arguments]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)["merged"]
    expected = json.loads((folder / "evaluation" / "npo.json").read_text())
    for section, name in (("gus", "mean"), ("utility", "perplexity")):
        assert found[section][name] == pytest.approx(expected[section][name], abs=rough, rel=rough), (section, name)
    # in 8 bits, one answer whose labels are nearly tied may turn
    turned = 1 / expected["attack"]["n"] if quantization == "8bit" else 0
    assert found["attack"]["success_rate"] == pytest.approx(expected["attack"]["success_rate"], abs=turned + 1e-9)
    assert found["gus"]["n"] == expected["gus"]["n"] == 3


@pytest.mark.slow
def test_a_merge_onto_the_original_weights_does_not_go_up_under_the_audit_of_the_quantised_ones(ran):
    folder = ran("4bit")[0]
    words = ["merge", str(folder), "--model", "rmu", "--quiet"]
    assert main([*words, "--onto", "original"]) == 0
    with pytest.raises(InputError, match=r"merged/rmu: it is merged onto the original weights.*--model rmu"):
        package_run(folder, "rmu", "me/merged", merged=True)
    shutil.rmtree(folder / "merged" / "rmu")
    assert main(words) == 0
    card = package_run(folder, "rmu", "me/merged", merged=True).content("README.md").decode()
    assert "Base in 4 bits (dequantised) and adapter are merged here, rounded to float32" in card


@pytest.mark.slow
def test_what_is_pushed_is_loaded_in_four_bits_by_its_cards_own_code(ran, base, tmp_path, monkeypatch):
    from llm_unlearn.config.recipe_files import load_recipe
    from llm_unlearn.models.load import load_checkpoint

    folder = ran("4bit")[0]
    with HubServer() as server:
        speak_to(monkeypatch, server, tmp_path / "hub")
        assert main(["push", str(folder), "--model", "base", "--repo", "me/base", "--quiet"]) == 0
        assert main(["push", str(folder), "--model", "npo", "--repo", "me/npo", "--base", "me/base", "--quiet"]) == 0
        card = uploaded(server, "me/npo")["README.md"].decode()
        assert "load_in_4bit=True" in card
        theirs = logits_by_the_card(server, card, tmp_path)
        pushed = load(uploaded(server, "me/npo")["adapter_model.safetensors"])
    model = load_checkpoint(str(folder / "unlearned" / "npo"), load_recipe(folder / "recipe.yaml").model, str(base))
    tokenizer = AutoTokenizer.from_pretrained(folder / "unlearned" / "npo")
    with torch.no_grad():
        ours = model(tokenizer(TEXT, return_tensors="pt")["input_ids"]).logits[0, -1].double().tolist()
    # some CPUs' inference kernel of bitsandbytes computes in bfloat16; this package turns it off where it trains
    assert theirs == pytest.approx(ours, abs=0.005)
    loaded = {name.replace(".default", ""): p for name, p in model.named_parameters() if ".lora_" in name}
    assert set(loaded) == set(pushed) and all(torch.equal(loaded[name].cpu(), pushed[name]) for name in pushed)
