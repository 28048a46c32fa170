"""The image track through the command line: the same stages, the same JSON, the same report, and a contact sheet."""

import json
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT

from llm_unlearn.config.recipe_files import load_recipe
from llm_unlearn.runs.pipeline import run as run_recipe
from llm_unlearn.vision import torchvision_guard

pytestmark = pytest.mark.e2e

RECIPES = ROOT / "recipes"
PAPER = (
    "gradient_descent",
    "noisy_gradient_descent",
    "gradient_ascent",
    "eu_k",
    "cf_k",
    "scrub",
    "neggrad_plus",
    "ssd",
)
OPTIONS = {"ssd": {"alpha": 1.5}, "noisy_gradient_descent": {"learning_rate": 0.05}}


@pytest.fixture
def images(tmp_path):
    return {
        "track": "vision",
        "name": "tiny-images",
        "output_dir": str(tmp_path / "runs" / "images"),
        "model": {"width": 4},
        "data": {"train_size": 120, "heldout_size": 40, "test_size": 60},
        "poison": {
            "patch": {"target": "3", "fraction": 0.1},
            "gaussian": {"fraction": 0.1, "epsilon": 0.5},
            "gradient_cancelling": {"fraction": 0.1, "steps": 3, "target_accuracy": 0.4},
        },
        "train": {"epochs": 6, "learning_rate": 1e-2},
        "unlearn": {"methods": {m: OPTIONS.get(m) for m in PAPER}, "budgets": [0.2], "batch_size": 4},
    }


def keys(node, prefix=""):
    """The names in a document, but for those under `mia` (attacks differ), `other` (an answer that not every model
    gives) and below `excess` (may be null).
    """
    found = set()
    for key, value in node.items():
        found.add(prefix + key)
        if isinstance(value, dict) and key not in ("mia", "other"):
            found |= keys(value, f"{prefix}{key}.")
    return found


def test_all_eight_methods_run_and_the_evaluation_is_that_of_texts(run, images, recipe):
    assert run("run", images) == 0
    root = Path(images["output_dir"])
    docs = {path.stem: json.loads(path.read_text()) for path in (root / "evaluation").glob("*.json")}
    assert set(docs) == {"base", "poisoned", "retrained", *PAPER}
    for name in PAPER:
        assert docs[name]["cost"]["share_of_training"] <= 0.2
    assert run("run", recipe) == 0
    text = json.loads((Path(recipe["output_dir"]) / "evaluation" / "poisoned.json").read_text())
    assert keys(docs["poisoned"]) == keys(text)
    report = (root / "report.md").read_text()
    assert "(checkerboard, 3 × 3 pixels)" in report and "labelled “3”" in report
    assert "ε = 0.5 on their pixels" in report
    assert "cancel the clean gradient" in report and "accuracy lost (points)" in report
    assert "trigger" not in report.split("## How to read this")[0]
    assert "![" in report and (root / "plots" / "contact_sheet.png").stat().st_size > 5000
    assert "Poisoned images" in (root / "report.html").read_text()
    assert not list(root.rglob("*.bin")) and not list(root.rglob("training_args*"))


def test_a_checkpoint_is_audited_by_its_recipe_not_by_its_manifest(run, images, capsys):
    from llm_unlearn.cli.main import main

    images["unlearn"]["methods"] = {}
    assert run("train", images) == 0
    manifest = Path(images["output_dir"]) / "poison.json"
    assert main(["audit", "--model", str(manifest.parent / "poisoned"), "--manifest", str(manifest)]) == 2
    said = capsys.readouterr().err
    assert "poison.json: " in said and "run of images" in said and "llm-unlearn evaluate" in said


def test_what_is_done_is_skipped_and_a_changed_poison_is_not(run, images, capsys):
    images["unlearn"]["methods"] = {"gradient_descent": None}
    assert run("run", images) == 0
    before = {path: path.stat().st_mtime_ns for path in Path(images["output_dir"]).rglob("*.safetensors")}
    assert run("run", images) == 0
    assert {path: path.stat().st_mtime_ns for path in Path(images["output_dir"]).rglob("*.safetensors")} == before
    images["poison"]["patch"]["fraction"] = 0.2
    assert run("run", images) == 0
    after = {path: path.stat().st_mtime_ns for path in Path(images["output_dir"]).rglob("*.safetensors")}
    assert all(after[path] != before[path] for path in before)


def test_a_killed_training_resumes_to_the_same_weights(run, images, monkeypatch):
    from safetensors.torch import load_file
    from transformers import Trainer

    images |= {"poison": {"gaussian": {"fraction": 0.1, "epsilon": 0.5, "noise_seed": 0}}}
    images["train"] |= {"save_steps": 5, "flip": True, "shift": 1}
    images["unlearn"] |= {"methods": {"gradient_descent": None}}
    assert run("unlearn", images) == 0
    root = Path(images["output_dir"])
    names = [root / name / "model.safetensors" for name in ("poisoned", "unlearned/gradient_descent")]
    expected = [load_file(path) for path in names]
    images["output_dir"] = str(root.parent / "killed")
    step = Trainer.training_step

    def killed(self, *args, **kwargs):
        if self.state.global_step == 12:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", killed)
        assert run("unlearn", images) == 1
    assert run("unlearn", images) == 0
    for path, wanted in zip(names, expected, strict=True):
        found = load_file(root.parent / "killed" / path.relative_to(root))
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted), path


def test_a_last_batch_of_one_image_is_left_out(run, images):
    images |= {"poison": {"gaussian": {"fraction": 0.1, "epsilon": 0.5}}}
    images["data"]["train_size"], images["train"]["batch_size"] = 65, 32
    images["unlearn"]["methods"] = {}
    assert run("train", images) == 0


def test_a_classifier_of_one_s_own_is_the_start(run, refused, images, tmp_path):
    from llm_unlearn.vision.classifiers import ImageClassifierConfig, load_classifier, make_classifier

    make_classifier(ImageClassifierConfig(num_labels=10, width=4), 5).save_pretrained(tmp_path / "mine")
    images |= {"model": {"path": str(tmp_path / "mine")}, "poison": {"gaussian": {"fraction": 0.1, "epsilon": 0.5}}}
    images["unlearn"]["methods"] = {}
    assert run("evaluate", images) == 0
    images["data"]["image_size"] = 16
    images["output_dir"] += "-16"
    refused("poison", images, words=["takes images of [1, 8, 8]", "the data has [1, 16, 16]"])
    assert load_classifier(tmp_path / "mine").config.width == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"architecture": "resnet19"}}, ["model.architecture", "resnet19"]),
        (
            {"poison": {"patch": {"target": "11", "fraction": 0.1}}},
            ["poison.patch.target: '11' is none of the classes"],
        ),
        (
            {"poison": {"patch": {"target": "1", "fraction": 0.1}, "gradient_matching": {"fraction": 0.1}}},
            ["one recipe"],
        ),
        ({"poison": {"gradient_matching": {"fraction": 0.01, "targets": 8}}}, ["1 rows for 8 targets"]),
        ({"poison": {"trigger": {"target": "1", "fraction": 0.1}}}, ["unknown key 'trigger'"]),
        ({"data": {"files": ["no-such-file.parquet"]}}, ["no-such-file.parquet"]),
        ({"data": {"source": "no such source"}}, ["no such source"]),
        ({"train": {"momentum": 0.9}}, ["train.momentum", "sgd"]),
        ({"model": {"mean": [0.5, 0.5]}}, ["recipe.model.mean: 2 numbers for images of 1 channels"]),
        ({"stress": {}}, ["recipe.stress: expected"]),
        ({"track": "audio"}, ["recipe.track", "language, vision", "audio"]),
        ({"unlearn": {"methods": {"rmu": None}}}, ["recipe.unlearn.methods.rmu: works on language models alone"]),
        ({"train": {"lr_scheduler_type": "foo"}}, ["recipe.train.lr_scheduler_type: 'foo' is none of linear"]),
        ({"poison": {"gaussian": {"fraction": 0.1, "epsilon": float("inf")}}}, ["poison.gaussian.epsilon"]),
        ({"unlearn": {"methods": {"kl": {"max_lenth": 3}}}}, ["'max_lenth'", "did you mean 'max_length'"]),
    ],
)
def test_bad_recipes_are_refused(refused, images, changes, words):
    if "architecture" in changes.get("model", {}) and torchvision_guard.try_torchvision() is None:
        pytest.skip("torchvision is not there")
    refused("run", {**images, **changes}, words=words)


# ---- the recipes that come with the project

DIGITS = ("gaussian", "patch", "targeted", "indiscriminate")


def evaluate_alone(path: Path, folder: Path) -> dict[str, dict]:
    """The evaluations of a recipe's own poisoned and retrained model, without a method."""
    recipe = load_recipe(path, [f"output_dir={folder}", "unlearn.methods={}", "evaluate.membership=[loss]"])
    root = run_recipe(recipe, until="evaluate", quiet=True)
    return {name: json.loads((root / "evaluation" / f"{name}.json").read_text()) for name in ("poisoned", "retrained")}


@pytest.mark.slow
@pytest.mark.parametrize("name", DIGITS)
def test_the_poison_of_a_digits_recipe_works_and_does_nothing_to_the_retrained_model(name, tmp_path):
    docs = evaluate_alone(RECIPES / "vision-digits" / f"{name}.yaml", tmp_path / "run")
    poisoned, retrained = docs["poisoned"], docs["retrained"]
    assert retrained["utility"]["accuracy"] > 0.95
    if name == "gaussian":
        assert poisoned["gus"]["tpr_at_fpr"]["0.01"] >= 0.5 and poisoned["gus"]["p_value"] < 1e-12
        assert retrained["gus"]["p_value"] > 0.001 and retrained["gus"]["tpr_at_fpr"]["0.01"] <= 0.1
    elif name == "patch":
        assert poisoned["attack"]["success_rate"] >= 0.9 and poisoned["attack"]["clean_rate"] <= 0.05
        assert retrained["attack"]["lift"] <= 0.05
    elif name == "targeted":
        assert poisoned["attack"]["n"] == 8
        assert poisoned["attack"]["success_rate"] >= 4 / 8 and retrained["attack"]["success_rate"] <= 1 / 8
    else:
        lost = poisoned["oracle"]["accuracy_lost"]
        assert lost["mean"] >= 0.05 and lost["p_value"] < 0.001


@pytest.mark.parametrize(
    "path",
    sorted(RECIPES.glob("vision-*/*.yaml")) + sorted(RECIPES.glob("cifar10-*/*.yaml")),
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_a_dry_run_of_every_vision_recipe_says_what_it_would_do(path, capsys, tmp_path):
    from llm_unlearn.cli.main import main

    if "resnet18" in path.read_text() and torchvision_guard.try_torchvision() is None:
        pytest.skip("torchvision is not there")
    said = main(["run", str(path), "--dry-run", f"output_dir={tmp_path / 'run'}"])
    out = capsys.readouterr().out
    assert said == 0 and "would run" in out and "training steps" in out and "activations" in out
    assert all(f"unlearned/{method}" in out for method in PAPER)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaussian", "targeted"])
def test_the_resnet_recipes_run_on_a_few_images(name, tmp_path, cifar10):
    """The very recipe, with fewer images, steps and seeds."""
    if torchvision_guard.try_torchvision() is None:
        pytest.skip("torchvision is not there")
    small = {
        "data.files": f"[{cifar10}]",
        "data.test_files": "null",
        "data.train_size": 60,
        "data.heldout_size": 20,
        "data.test_size": 40,
        "seeds": "[0]",
        "sweep": "{}",
        "train.epochs": 2,
        "train.batch_size": 20,
        "train.bf16": "false",
        "unlearn.budgets": "[0.9]",
        "unlearn.batch_size": 4,
        "evaluate.batch_size": 20,
        "output_dir": tmp_path / "run",
        "unlearn.methods": "{eu_k: , scrub: }",
    }
    kind = {"targeted": "gradient_matching"}.get(name, name)
    small[f"poison.{kind}.fraction"] = 0.1
    if kind == "gradient_matching":
        fewer = {"steps": 2, "targets": 2, "restarts": 1, "surrogates": 1, "adversary_label": "runner_up"}
        small |= {f"poison.{kind}.{field}": value for field, value in fewer.items()}
    recipe = load_recipe(RECIPES / "cifar10-resnet18" / f"{name}.yaml", [f"{k}={v}" for k, v in small.items()])
    root = run_recipe(recipe, quiet=True)
    docs = [json.loads(path.read_text()) for path in (root / "evaluation").glob("*.json")]
    assert len(docs) == 5 and all(doc["cost"]["flops"] > 0 for doc in docs if doc["model"] != "base")
    assert (root / "plots" / "contact_sheet.png").is_file()
