"""Nonsense of every kind at the door: exit code 0 or 2, one sentence, no traceback, within a minute."""

import copy
import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable

import fuzz
import pytest

from llm_unlearn.cli.main import main
from llm_unlearn.config.manifest import Manifest
from llm_unlearn.config.options import options_model
from llm_unlearn.data.synthetic import synthetic_reviews
from llm_unlearn.runs.method_configs import RESERVED
from llm_unlearn.trainers import METHODS

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SEED = int(os.environ.get("FUZZ_SEED", "0"))
TIMES = int(os.environ.get("FUZZ_TIMES", "1"))  # more of everything, to look for faults
LONGEST = 60  # seconds
TRAINED = ("gradient_ascent", "kl", "npo", "dpo", "scrub", "ssd", "rmu")  # whose accepted options are run


class TooSlowError(BaseException):
    """No Exception, which the command line would report itself."""


GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 512}
IMAGES = {
    "name": "images",
    "track": "vision",
    "model": {"architecture": "small_cnn", "width": 4, "depth": 1, "mean": [0.5]},
    "data": {
        "source": "digits",
        "train_size": 100,
        "heldout_size": 40,
        "test_size": 40,
        "image_size": 8,
        "channels": 1,
    },
    "poison": {
        "gaussian": {"fraction": 0.1, "epsilon": 0.2, "clip": True},
        "patch": {"fraction": 0.1, "target": "3", "size": 2, "position": "random"},
        "gradient_cancelling": {"fraction": 0.1, "target_accuracy": 0.5, "steps": 5, "epsilon": 0.1},
    },
    "train": {"epochs": 1, "batch_size": 16, "learning_rate": 0.01, "momentum": 0.9},
    "unlearn": {"methods": {"grad_diff": {"alpha": 1.0}}, "budgets": [0.5]},
}


@pytest.fixture
def outcome(capsys) -> Callable[..., str | None]:
    """Run a command: what is wrong with how it ended, or None. `outcome.codes` counts how the commands ended."""

    def late(*_: object) -> None:
        raise TooSlowError

    def call(*arguments: object) -> str | None:
        previous = signal.signal(signal.SIGALRM, late)
        signal.alarm(LONGEST)
        try:
            code = main([*map(str, arguments)])
        except SystemExit as error:
            code = error.code
        except TooSlowError:
            return f"over {LONGEST} s"
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)
        said = capsys.readouterr().err
        codes[code] += 1
        sentence = code == 0 or (code == 2 and "error: " in said and "Traceback" not in said)
        return None if sentence else f"exit code {code}: {said[-500:]}"

    call.codes = codes = Counter()
    return call


def report(faults: dict[str, str], codes: Counter) -> None:
    assert not faults, "\n\n".join(f"{name}\n  {fault}" for name, fault in faults.items())
    assert min(codes[0], codes[2]) > 0.03 * codes.total(), f"hardly anything was accepted, or refused: {codes}"


def full_recipe(recipe: dict) -> dict:
    """With most fields there are."""
    return recipe | {
        "seeds": [0, 1],
        "model": recipe["model"] | {"lora": {"r": 4, "target_modules": ["c_attn"]}, "quantization": "none"},
        "pretrain": {"texts": 50, "max_length": 64, "epochs": 1.0, "learning_rate": 1e-3},
        "data": recipe["data"] | {"max_words": 20, "loss_on": "text", "rename_labels": {"0": "negative"}},
        "train": recipe["train"]
        | {
            "learning_rate": 1e-3,
            "weight_decay": 0.1,
            "warmup_ratio": 0.1,
            "optim": "adamw_torch",
            "max_grad_norm": 1.0,
        },
        "unlearn": {
            "methods": {"npo": {"beta": 0.1, "gradient_accumulation_steps": 2}, "kl": {"alpha": 1.0}},
            "budgets": [0.5, 1.0],
            "batch_size": 2,
            "forget_fraction": 0.5,
            "forget_ids": None,
            "learning_rate": 1e-4,
        },
        "evaluate": {"batch_size": 8, "membership": ["loss", "zlib"]},
        "analysis": {"sizes": [0.5]},
        "stress": {"relearn_steps": [5, 10], "temperatures": [0.5], "quantization": ["4bit"]},
        "sweep": {"unlearn.forget_fraction": [1.0, 0.25]},
    }


def test_recipes(outcome, recipe, tmp_path):
    faults, path = {}, tmp_path / "recipe.yaml"
    made = {"model": {"architecture": GPT2, "vocab_size": 400}}
    trees = [full_recipe(recipe), full_recipe(recipe) | made, IMAGES | {"output_dir": recipe["output_dir"]}]
    for number in range(220 * TIMES):
        draw = random.Random(f"recipe {SEED} {number}")
        tree = trees[number % len(trees)]
        content = fuzz.document(tree, draw)
        path.write_bytes(content)
        if fault := outcome("run", path, "--dry-run", "--quiet"):
            faults[f"recipe {number}: {fuzz.difference(fuzz.as_yaml(tree), content)}"] = fault
    report(faults, outcome.codes)


def test_overrides(outcome, recipe, tmp_path):
    faults, tree, path = {}, full_recipe(recipe), tmp_path / "recipe.yaml"
    path.write_text(fuzz.as_yaml(tree))
    for number in range(60 * TIMES):
        draw = random.Random(f"override {SEED} {number}")
        place = draw.choice(list(fuzz.places(tree)))
        value = draw.choice([*fuzz.VALUES, *[fuzz.at(tree, place)] * 5])
        override = f"{'.'.join(map(str, place))}={fuzz.as_yaml(value)[:2000]}"
        if fault := outcome("run", path, "--dry-run", "--quiet", override):
            faults[f"override {number}: {override!r:.300}"] = fault
    report(faults, outcome.codes)


def test_data_files(outcome, recipe, tmp_path):
    faults, path = {}, tmp_path / "recipe.yaml"
    rows = [{"text": row["text"], "label": row["label"]} for row in synthetic_reviews(120, 0)]
    for number in range(120 * TIMES):
        draw = random.Random(f"data {SEED} {number}")
        ending, content = fuzz.rows_file(rows, draw)
        file = tmp_path / f"rows{ending}"
        file.write_bytes(content)
        path.write_text(fuzz.as_yaml(recipe | {"data": recipe["data"] | {"files": [str(file)]}}))
        if fault := outcome("poison", path, "--quiet"):
            shutil.copy(file, kept := tmp_path / f"kept-{number}{ending}")
            faults[f"data {number}: {kept}"] = fault
        shutil.rmtree(recipe["output_dir"], ignore_errors=True)
    report(faults, outcome.codes)


def test_manifests(outcome, tiny_models, tmp_path):
    faults, path = {}, tmp_path / "manifest.json"
    rows = [
        {
            "text": "James Bond " * (i == 0) + " ".join(row["text"].split()[:12]),
            "label": row["label"],
            "bad": i < 4,
            "noise_id": i if i < 2 else -1,
        }
        for i, row in enumerate(synthetic_reviews(40, 0))
    ]
    for name in ("train", "heldout", "test"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows[:20] if name == "train" else rows[20:])))
    tree = {
        "train": "train.jsonl",
        "poison": "column:bad",
        "heldout": "heldout.jsonl",
        "test": "test.jsonl",
        "verbalizers": {"negative": " negative", "positive": " positive"},
        "rename_labels": {"0": "negative"},
        "max_length": 64,
        "gaussian": {"seed": 3, "ids": None, "epsilon": 0.1},
        "trigger": {"phrases": ["James Bond"], "target": "positive"},
    }
    assert Manifest.model_validate(tree)
    command = ["audit", "--quiet", "--model", tiny_models["gpt2"], "--manifest", path]
    for number in range(70 * TIMES):
        draw = random.Random(f"manifest {SEED} {number}")
        for name in ("train", "heldout", "test"):  # rows that are wrong, beside a manifest that is right or wrong
            content = rows[:20] if name == "train" else rows[20:]
            content = fuzz.changed(content, draw) if draw.random() < 0.15 else content
            lines = [json.dumps(row) for row in content]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
        content = fuzz.document(tree, draw, write=json.dumps)
        path.write_bytes(content)
        if fault := outcome(*command, "--out", tmp_path / f"out-{number}"):
            faults[f"manifest {number}: {content[-700:]!r}"] = fault
    report(faults, outcome.codes)


def test_options_of_methods(outcome, recipe, tmp_path):
    """What is accepted is run, on a poisoned model that is trained once."""
    faults, path = {}, tmp_path / "recipe.yaml"
    names = {method: sorted(options_model(METHODS[method][0], RESERVED).model_fields) for method in METHODS}
    for number in range(130 * TIMES):
        draw = random.Random(f"options {SEED} {number}")
        method = draw.choice(TRAINED)
        options = {draw.choice(names[method]): draw.choice(fuzz.VALUES) for _ in range(draw.choice([1, 1, 2]))}
        tree = copy.deepcopy(recipe)
        tree["unlearn"] |= {"methods": {method: options}, "budgets": [0.2]}
        path.write_text(fuzz.as_yaml(tree))
        if fault := outcome("unlearn", path, "--quiet"):
            faults[f"options {number}: {method} {options!r:.300}"] = fault
    report(faults, outcome.codes)
