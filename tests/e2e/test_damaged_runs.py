"""A damaged file of a run directory: exit code 2, the file, what to delete; and then the same numbers as before."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_unlearn.runs.language_run import LanguageRun

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Where the first test leaves the run that all of them damage a copy of."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def folder(finished, recipe, run):
    """A run directory with every model trained."""
    folder = Path(recipe["output_dir"])
    recipe["model"]["lora"] = {"r": 2, "target_modules": ["c_attn"]}
    if not finished.is_dir():
        assert run("unlearn", recipe) == 0
        shutil.copytree(folder, finished)
    elif not folder.is_dir():
        shutil.copytree(finished, folder)
    return folder


@pytest.fixture
def refused(run, capsys):
    """Assert that a command ends with exit code 2 and one message with all the words."""

    def check(recipe: dict, *words: str) -> None:
        assert run("evaluate", recipe) == 2
        message = capsys.readouterr().err
        assert message.startswith("llm-unlearn: error: ") and "Traceback" not in message
        assert all(word in message for word in words), message

    return check


def nan(path: Path) -> None:
    weights = load_file(path)
    save_file({name: torch.full_like(weight, float("nan")) for name, weight in weights.items()}, path)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "foreign": lambda path: path.write_text('{"unrelated": 1}'),
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("poisoned/cost.json", "empty"),
        ("poisoned/cost.json", "foreign"),
        ("poisoned/adapter_model.safetensors", "cut off"),
        ("poisoned/adapter_config.json", "foreign"),
        ("retrained/adapter_model.safetensors", "empty"),
        (".stages/poisoned.json", "cut off"),
        (".stages/unlearned_gradient_ascent.json", "foreign"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_delete(folder, refused, recipe, name, damage):
    DAMAGE[damage](folder / name)
    recipe["unlearn"]["methods"]["kl"] = None  # reads them again
    culprit = folder / name if name.startswith(".stages") else (folder / name).parent
    refused(recipe, str(culprit), "delete")


def test_once_it_is_deleted_the_same_command_mends_the_run(folder, refused, run, recipe):
    before = (folder / "poisoned" / "adapter_model.safetensors").read_bytes()
    nan(folder / "poisoned" / "adapter_model.safetensors")
    refused(recipe, "NaN", f"delete {folder / 'poisoned'}")
    shutil.rmtree(folder / "poisoned")
    assert run("evaluate", recipe) == 0
    assert (folder / "poisoned" / "adapter_model.safetensors").read_bytes() == before


def test_a_damaged_table_of_the_oracle_is_named(folder, refused, run, recipe):
    assert run("evaluate", recipe) == 0
    table = folder / "evaluation" / "retrained.parquet"
    table.write_bytes(table.read_bytes()[:100])
    (folder / "evaluation" / "poisoned.json").unlink()
    refused(recipe, str(table), "delete it")
    table.unlink()
    assert run("evaluate", recipe) == 0


def test_what_made_each_stage_is_kept_in_the_environment(folder):
    environment = json.loads((folder / "environment.json").read_text())
    assert {"poison", "poisoned", "retrained", "unlearned/gradient_ascent"} == environment["stages"].keys()
    for made_by in environment["stages"].values():
        assert made_by["versions"]["torch"] == torch.__version__ and made_by["device"]


def test_what_other_libraries_made_is_said_and_made_again(folder, run, recipe, capsys):
    mark = folder / ".stages" / "poison.json"
    made = json.loads(mark.read_text())
    made["made_by"]["versions"] |= {"torch": "2.0.0", "transformers": "4.0.0"}
    mark.write_text(json.dumps(made))
    capsys.readouterr()
    assert run("poison", recipe) == 0
    said = capsys.readouterr().err
    assert "torch 2.0.0, now 2." in said and "transformers 4.0.0, now" in said
    assert json.loads(mark.read_text())["made_by"]["versions"]["torch"] == torch.__version__


def test_another_encoding_of_rows_trains_again(folder, run, recipe, monkeypatch):
    def keys() -> dict[str, str]:
        return {path.stem: json.loads(path.read_text())["key"] for path in (folder / ".stages").glob("*.json")}

    before = keys()
    monkeypatch.setattr(LanguageRun, "encoding_version", 99)
    assert run("train", recipe) == 0
    after = keys()
    assert {name for name in after if after[name] != before[name]} == {"poisoned", "retrained"}
