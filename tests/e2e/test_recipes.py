"""Every recipe of the repository loads, dry-runs and says true sizes; those of Llamas run on tiny ones."""

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from benchmark_rows import WRITERS
from paths import ROOT
from support import SMALL, write_llama_3, write_reviews

from llm_unlearn.cli.main import main, parser
from llm_unlearn.config.recipe_files import load_recipe
from llm_unlearn.poisons.selection import hidden_count

pytestmark = pytest.mark.e2e

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
READMES = sorted((ROOT / "recipes").rglob("README.md"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="session")
def review_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_reviews(tmp_path_factory.mktemp("reviews"))


@pytest.fixture(scope="session")
def tiny_llama_3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama_3(tmp_path_factory.mktemp("llama-3") / "model")


@pytest.fixture
def local(tiny_models, tiny_llama_3, review_files, tmp_path_factory):
    """The overrides that put tiny local models and files in the place of a recipe's hub ids."""

    def overrides(path: Path) -> list[str]:
        recipe, changes = load_recipe(path), []
        if recipe.model.path:
            kind = "llama" if "llama" in recipe.model.path.lower() else "gpt2"
            chats = any(name in recipe.model.path for name in ("Llama-3.1", "SmolLM2"))
            changes.append(f"model.path={tiny_llama_3 if chats else tiny_models[kind]}")
        if getattr(recipe, "benchmark", None):
            rows = WRITERS[recipe.benchmark.name](tmp_path_factory.mktemp("benchmark"))
            return [*changes, f"benchmark.folder={rows}"]
        if recipe.data.source == "instructions":  # a tokenizer of 400 pieces makes many of a request
            changes.append("data.max_length=256")
        if not getattr(recipe.data, "is_embedded", False):  # images have no such source
            changes += [f"data.files=[{review_files['train']}]", f"data.test_files=[{review_files['test']}]"]
        return changes

    return overrides


def test_the_recipes_are_there():
    assert {"quickstart.yaml", "imdb-small/full.yaml", "gpt2-medium-imdb/full.yaml", "llama-lora-imdb/lora.yaml"} <= {
        str(path.relative_to(ROOT / "recipes")) for path in RECIPES
    }


def test_no_two_recipes_share_a_name_or_an_output_directory():
    recipes = [load_recipe(path) for path in RECIPES]
    for values in ([r.name for r in recipes], [r.output_dir for r in recipes]):
        assert len(set(values)) == len(values)


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_dry_runs_and_writes_nothing(path, local, tmp_path, monkeypatch, capsys, contents_of):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("here before")
    before = contents_of(tmp_path)
    assert main(["run", str(path), "--dry-run", "--json", *local(path)]) == 0
    plan = json.loads(capsys.readouterr().out)
    text = plan["text"]  # what is printed without --json, see test_run.py
    assert contents_of(tmp_path) == before

    recipe = load_recipe(path)
    assert plan["recipe"] == recipe.name and recipe.name in text
    names = {stage["stage"] for stage in plan["stages"]}
    assert {"poison", "poisoned", "retrained", "evaluation/base", "evaluation/retrained"} <= names
    unlearned = [name for name in names if name.startswith("unlearned/")]
    assert len(unlearned) == len(recipe.unlearn.methods) * len(recipe.unlearn.budgets)
    assert {stage["seed"] for stage in plan["stages"]} == set(recipe.seeds)
    assert not any(stage["done"] for stage in plan["stages"])
    assert plan["sizes"]["train"] == recipe.data.train_size
    memory = plan["memory_bytes"]
    assert memory.pop("total") == sum(memory.values()) > 0


@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_the_commands_of_a_readme_name_files_and_fields_that_exist(path):
    blocks = re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("llm-unlearn ")]
    assert commands, "a recipe's README has a command to run it"
    for _, *words in commands:
        args = parser().parse_args(words)  # exits where a command or an option does not exist
        if args.command != "merge":  # which takes a run directory
            assert load_recipe(ROOT / args.recipe, args.overrides)
    for word in re.findall(r"[\w./-]+\.(?:yaml|sh|py)\b", "\n".join(lines)):
        assert (ROOT / word).is_file(), f"{word} does not exist"


@pytest.mark.parametrize("folder", sorted({path.parent for path in RECIPES} - {ROOT / "recipes"}), ids=name_of)
def test_a_recipe_folder_has_a_readme_that_names_its_recipes(folder):
    text = (folder / "README.md").read_text()
    for path in folder.glob("*.yaml"):
        assert name_of(path) in text


# ---- what a dry run says is what a run does


def test_the_sizes_of_a_dry_run_are_those_of_the_run(run, recipe, monkeypatch, capsys):
    from transformers import Trainer

    changes = [
        "data.train_size=61",
        "poison.trigger.fraction=0.12",
        "poison.gaussian.exposures=3",
        "unlearn.forget_fraction=0.6",
        "train.gradient_accumulation_steps=3",
        "train.epochs=1.5",
    ]
    capsys.readouterr()
    assert run("run", recipe, "--dry-run", "--json", *changes) == 0
    plan = json.loads(capsys.readouterr().out)

    steps, train = [], Trainer.train

    def count(trainer, *args, **kwargs):
        output = train(trainer, *args, **kwargs)
        steps.append(trainer.state.global_step)
        return output

    monkeypatch.setattr(Trainer, "train", count)
    assert run("train", recipe, *changes) == 0
    manifest = json.loads((Path(recipe["output_dir"]) / "poison.json").read_text())
    sizes = plan["sizes"]
    assert sizes["train"] == manifest["train_size"] == 61
    assert sizes["triggered"] == len(manifest["trigger"]["example_ids"]) == 7
    assert sizes["canaries"] == len(manifest["gaussian"]["example_ids"]) == 6
    assert sizes["forget"] == len(manifest["forget_ids"]) == 8
    assert sizes["training_steps"] == steps[0] == 6  # 61 + 2 · 6 rows: 10 batches, 4 steps an epoch

    capsys.readouterr()
    assert run("run", recipe, "--dry-run", "--json", *changes) == 0
    done = {stage["stage"] for stage in json.loads(capsys.readouterr().out)["stages"] if stage["done"]}
    assert done == {"poison", "poisoned", "retrained", "clean"}


def test_the_json_of_a_run_is_all_that_it_prints(run, recipe, capsys):
    capsys.readouterr()
    assert run("unlearn", recipe, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"run_dir": recipe["output_dir"]}
    assert run("unlearn", recipe) == 0  # --quiet
    assert capsys.readouterr().out == ""


def test_the_memory_of_a_dry_run_counts_the_weights_that_are_there(run, recipe, tiny_models, capsys):
    from transformers import AutoModelForCausalLM

    weights = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tiny_models["gpt2"]).parameters())

    def memory(*changes: str) -> dict[str, int]:
        capsys.readouterr()
        assert run("run", recipe, "--dry-run", "--json", *changes) == 0
        return json.loads(capsys.readouterr().out)["memory_bytes"]

    # gradients are held whole where those of an earlier micro-batch wait
    waiting = ["train.gradient_accumulation_steps=2", "unlearn.gradient_accumulation_steps=2"]
    full = memory("unlearn.methods={gradient_ascent: null}", *waiting)
    assert (full["weights"], full["gradients"], full["optimizer"]) == (4 * weights, 4 * weights, 8 * weights)
    assert full["reference"] == 0
    assert memory("unlearn.methods={kl: null}", "unlearn.batch_size=8")["reference"] == 4 * weights
    adapter = 4 * (2 * 16 + 2 * 48)  # r × (in + out) of GPT-2's one attention projection, 16 → 48
    lora = memory("model.lora={r: 2}", "unlearn.methods={kl: null}", "unlearn.batch_size=8", *waiting)
    assert lora["gradients"] == lora["reference"] == adapter
    half = memory("model.lora={r: 2}", "model.dtype=bfloat16", *waiting)
    assert (half["weights"], half["gradients"]) == (2 * weights + adapter, adapter)
    assert memory("model.gradient_checkpointing=true", "data.max_length=64")["activations"] < memory()["activations"]
    assert memory("data.loss_on=completion")["logits"] < memory()["logits"]


# ---- the recipes of Llamas (SmolLM2 is one), with Llamas of a few thousand weights


def figures(value: Any) -> list[float]:
    """All numbers in a nested document."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in figures(item)]
    if isinstance(value, list):
        return [number for item in value for number in figures(item)]
    return [value] if isinstance(value, float) else []


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        *(ROOT / "recipes" / name / "lora.yaml" for name in ("llama-lora-imdb", "smollm2-imdb", "smollm2-chat")),
        *sorted(ROOT.glob("recipes/llama-3.1-*/*.yaml")),
    ],
    ids=name_of,
)
def test_a_llama_recipe_runs_from_poison_to_evaluation(path, local, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in ("poison", "train", "unlearn", "evaluate"):
        words = [command, str(path), "--quiet", *local(path), *SMALL, "output_dir=out"]
        assert main(words) == 0, capsys.readouterr().err
    folder, recipe = tmp_path / "out", load_recipe(path)
    methods = recipe.unlearn.methods
    written = (
        {"adapter_model.safetensors", "adapter_config.json"}
        if recipe.model.lora
        else {"model.safetensors", "config.json"}
    )
    other = {"model.safetensors"} if recipe.model.lora else {"adapter_model.safetensors"}
    for where in ("poisoned", "retrained", *(f"unlearned/{m}" for m in methods)):
        files = {p.name for p in (folder / where).iterdir()}
        assert {"cost.json"} | written <= files
        assert not ({"reference", "training_args.bin"} | other) & files
    hidden = hidden_count(6, recipe.poison.gaussian.audit_share)
    for model in ("base", "poisoned", "retrained", *methods):
        document = json.loads((folder / "evaluation" / f"{model}.json").read_text())
        assert document["recipe"] == recipe.name and document["gus"]["n"] == hidden and document["attack"]["n"] > 0
        assert all(map(math.isfinite, figures(document)))
    assert not (folder / ".work").exists()


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/llama-3.1-*/*.yaml")), ids=name_of)
def test_a_recipe_of_a_chat_model_writes_rows_as_its_template_does(path, local, tiny_llama_3):
    from llm_unlearn.data.chat import check_chat_template
    from llm_unlearn.data.encoding import Encoding
    from llm_unlearn.data.token_checks import check_verbalizers
    from llm_unlearn.models.load import load_tokenizer

    recipe = load_recipe(path, local(path))
    tokenizer, data = load_tokenizer(str(tiny_llama_3), recipe.model), recipe.data
    assert data.chat_template
    encoding = Encoding.of(data)
    check_chat_template(encoding.template(tokenizer))
    check_verbalizers(tokenizer, data.verbalizers, encoding, data.prompt)
    row = encoding.row(tokenizer, data.prompt.replace("{text}", "a film"), data.verbalizers["positive"])
    # the template itself gives the same whole conversation
    turns = [
        {"role": "user", "content": data.prompt.replace("{text}", "a film")},
        {"role": "assistant", "content": data.verbalizers["positive"]},
    ]
    assert tokenizer.decode(row["input_ids"]) == tokenizer.apply_chat_template(turns, tokenize=False)


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/llama-3.1-*/*.yaml")), ids=name_of)
def test_a_recipe_for_eight_gpus_gives_each_as_many_rows(path):
    recipe = load_recipe(path)
    if path.name != "lora.yaml":
        assert recipe.train.batch_size % 8 == recipe.unlearn.batch_size % 8 == 0
    assert {"npo", "grad_diff", "kl", "rmu"} <= recipe.unlearn.methods.keys()
    assert not {"ssd", "noisy_gradient_descent", "task_arithmetic"} & recipe.unlearn.methods.keys()
