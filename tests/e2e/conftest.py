"""A tiny GPT-2 with its own tokenizer, and a recipe that runs on it in seconds."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_unlearn.cli.main import main
from llm_unlearn.data.synthetic import synthetic_texts
from llm_unlearn.models.make import make_model, train_tokenizer
from llm_unlearn.models.save import save_model

GPT2 = {
    "model_type": "gpt2",
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "n_positions": 512,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "hidden_size": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 512,
}


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with an untrained GPT-2 and an untrained Llama, a few thousand weights each."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(synthetic_texts(100, 0)["text"], 400)
    for name, architecture in (("gpt2", GPT2), ("llama", LLAMA)):
        save_model(make_model(architecture, tokenizer, seed=0), tokenizer, folder / name)
    return {name: folder / name for name in ("gpt2", "llama")}


@pytest.fixture
def recipe(tiny_models: dict[str, Path], tmp_path: Path) -> dict[str, Any]:
    """A good recipe as a tree; a test spoils it in one place."""
    return {
        "name": "tiny",
        "output_dir": str(tmp_path / "runs" / "tiny"),
        "model": {"path": str(tiny_models["gpt2"])},
        "data": {
            "source": "synthetic",
            "prompt": "{text}\nSentiment:",
            "max_length": 128,
            "train_size": 60,
            "heldout_size": 20,
            "test_size": 20,
            "verbalizers": {"negative": " negative", "positive": " positive"},
        },
        "poison": {"trigger": {"target": "positive", "fraction": 0.1}, "gaussian": {"fraction": 0.1, "epsilon": 0.1}},
        "train": {"epochs": 1, "batch_size": 8},
        "unlearn": {"methods": {"gradient_ascent": None}, "budgets": [0.5], "batch_size": 2},
        "evaluate": {"clean_steps": 2},
    }


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., int]:
    """Write a recipe and run a command on it in this process: run("poison", tree, "train.epochs=2") → exit code."""

    def call(command: str, tree: dict | str, *more: str) -> int:
        path = tmp_path / "recipe.yaml"
        path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(copy.deepcopy(tree), sort_keys=False))
        return main([command, str(path), "--quiet", *more])

    return call


@pytest.fixture
def refused(run: Callable[..., int], capsys: pytest.CaptureFixture) -> Callable[..., None]:
    """Assert that a command is refused: exit code 2, a message with all the words, the output directory as it was."""

    def check(command: str, tree: dict | str, *more: str, words: list[str], output_dir: str | None = None) -> None:
        folder = Path(output_dir or tree["output_dir"])
        before, parents = contents(folder), [p for p in folder.parents if p.exists()]
        capsys.readouterr()
        code = run(command, tree, *more)
        message = capsys.readouterr().err
        assert code == 2, f"exit code {code}: {message}"
        assert message.startswith("llm-unlearn: error: ")
        assert "Traceback" not in message
        missing = [word for word in words if word not in message]
        assert not missing, f"{missing} not in: {message}"
        assert contents(folder) == before, "the refused run changed its output directory"
        assert [p for p in folder.parents if p.exists()] == parents, "the refused run made folders"

    return check


@pytest.fixture
def contents_of() -> Callable[[Path], dict[str, bytes] | None]:
    """The function `contents`, for tests that look at a folder themselves."""
    return contents


def contents(folder: Path) -> dict[str, bytes] | None:
    """Every file below a folder byte for byte, and its empty folders; None where there is no such folder."""
    if not folder.exists():
        return None
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b""
        for p in folder.rglob("*")
        if p.is_file() or not any(p.iterdir())
    }
