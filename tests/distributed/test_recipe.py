"""A recipe in two processes: the same models and the same evaluation as in one, also after a kill."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from launched import ENVIRONMENT, run_launched
from paths import ROOT
from safetensors.torch import load_file
from support import SMALL, write_llama_3, write_reviews

from llm_unlearn.config.recipe_files import load_recipe
from llm_unlearn.data.synthetic import synthetic_texts
from llm_unlearn.models.load import load_trained
from llm_unlearn.models.make import make_model, train_tokenizer
from llm_unlearn.models.save import save_model

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "hidden_size": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 512,
}
# Adam would make steps of a fixed size of the rounding errors that are all the gradient of tokens that do not occur
SGD = {"optim": "sgd", "learning_rate": 0.05}
RECIPE = {
    "name": "tiny",
    "output_dir": "",
    "model": {"path": "", "lora": None},
    # 61 rows: the last step of a pass is not full, and the test rows do not come out even either
    "data": {
        "source": "synthetic",
        "prompt": "{text}\nSentiment:",
        "max_length": 128,
        "train_size": 61,
        "heldout_size": 21,
        "test_size": 21,
        "verbalizers": {"negative": " negative", "positive": " positive"},
    },
    "poison": {
        "trigger": {"target": "positive", "fraction": 0.1},
        "gaussian": {"fraction": 0.1, "epsilon": 0.1, "noise_seed": 0},
    },
    "train": {"epochs": 2, "batch_size": 8},
    "unlearn": {
        "methods": {"gradient_ascent": None, "kl": SGD, "npo": SGD},
        "budgets": [0.5],
        "batch_size": 2,
        "eval_steps": 2,
    },
    "evaluate": {"batch_size": 4},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Write the recipe with changes: recipe(output_dir, {"train": {…}}) → path."""
    base = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer(synthetic_texts(100, 0)["text"], 400)
    save_model(make_model(LLAMA, tokenizer, seed=0), tokenizer, base / "model")

    def write(out: Path, changes: dict) -> Path:
        tree = {
            name: {**part, **changes.get(name, {})} if isinstance(part, dict) else part for name, part in RECIPE.items()
        }
        tree |= {"output_dir": str(out)}
        tree["model"]["path"] = str(base / "model")
        path = out.with_suffix(".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(tree))
        return path

    return write


def command(path: Path, config: str | None = None, name: str = "run") -> list[str]:
    words = [sys.executable, "-m", "llm_unlearn", name, str(path), "--quiet"]
    return [*words, "--accelerate-config", f"accelerate_configs/{config}.yaml"] if config else words


def assert_same(ours: Path, theirs: Path, processes: int = 2, n_models: int = 5) -> None:
    """The same weights of every model, the same numbers for every example."""
    assert json.loads((theirs / "environment.json").read_text())["processes"] == processes
    found = (path.relative_to(ours) for path in ours.rglob("*.safetensors"))
    models = sorted(path for path in found if not path.parts[0].startswith("."))
    assert len(models) == n_models
    for model in models:
        a, b = load_file(ours / model), load_file(theirs / model)
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(b[name], a[name], rtol=0, atol=5e-6, msg=f"{model}: {name}")
    for path in sorted((ours / "evaluation").glob("*.parquet")):
        a, b = pd.read_parquet(path), pd.read_parquet(theirs / "evaluation" / path.name)
        assert (a.dtypes == b.dtypes).all() and len(a) == len(b)
        for column in a:
            if a[column].dtype.kind == "f":
                np.testing.assert_allclose(b[column], a[column], rtol=2e-4, atol=2e-4, err_msg=f"{path.name} {column}")
            else:
                assert a[column].equals(b[column]), f"{path.name} {column}"
    assert not list(theirs.rglob("*.partial")) and not (theirs / ".work").exists()


KINDS = {
    "full": {},
    "lora": {"model": {"lora": {"r": 4}}},
    # what can be measured of a model of which each process has its part
    "parts": {"evaluate": {"batch_size": 4, "membership": ["loss", "zlib", "min_k", "min_k_plus", "reference"]}},
    "texts": {
        "data": {"task": "completion", "verbalizers": {}, "label_column": "label"},
        "evaluate": {"batch_size": 4, "max_new_tokens": 3},
    },
}


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory):
    """Each kind of recipe in one process, run once."""
    folder, done = tmp_path_factory.mktemp("alone"), {}

    def run(kind: str) -> Path:
        if kind not in done:
            done[kind] = folder / kind
            run_launched(command(recipe(folder / kind, KINDS[kind])))
        return done[kind]

    return run


@pytest.mark.parametrize(("kind", "config"), [("full", "cpu_ddp"), ("lora", "cpu_zero3"), ("texts", "cpu_zero3")])
def test_two_processes_end_as_one(kind, config, recipe, alone, tmp_path):
    run_launched(command(recipe(tmp_path / "two", KINDS[kind]), config))
    assert_same(alone(kind), tmp_path / "two")


def test_the_same_by_accelerate_launch_and_under_fsdp2(recipe, alone, tmp_path):
    """From the first stage to the report in two processes, as one would launch it on several machines."""
    path = recipe(tmp_path / "two", KINDS["parts"])
    worker = str(ROOT / "tests" / "distributed" / "recipe_worker.py")
    run_launched(
        [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            "accelerate_configs/cpu_fsdp2.yaml",
            worker,
            "run",
            str(path),
            "--quiet",
        ]
    )
    assert_same(alone("parts"), tmp_path / "two")
    assert (tmp_path / "two" / "report.html").is_file()


@pytest.mark.parametrize("name", ["llama-3.1-8b/full", "llama-3.1-70b/qlora"])
def test_a_recipe_for_eight_gpus_unlearns_under_zero3(name, tmp_path):
    """The very recipe, with a tiny Llama in the place of its model, and what is saved loads without DeepSpeed."""
    base, reviews = write_llama_3(tmp_path / "base"), write_reviews(tmp_path)
    run_launched(
        [
            sys.executable,
            "-m",
            "llm_unlearn",
            "unlearn",
            f"recipes/{name}.yaml",
            "--quiet",
            *SMALL,
            f"model.path={base}",
            f"data.files=[{reviews['train']}]",
            f"data.test_files=[{reviews['test']}]",
            f"output_dir={tmp_path / 'run'}",
            "--accelerate-config",
            "accelerate_configs/cpu_zero3.yaml",
        ]
    )
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["processes"] == 2
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml", [f"model.path={base}"])
    folders = [tmp_path / "run" / "poisoned", *(tmp_path / "run" / "unlearned" / m for m in recipe.unlearn.methods)]
    poisoned = None
    for folder in folders:
        model = load_trained(folder, base, recipe.model)
        weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert weights and all(torch.isfinite(w).all() and w.numel() for w in weights.values())
        if poisoned is None:
            poisoned = weights
        else:
            assert any(not torch.equal(weights[n], poisoned[n]) for n in weights), folder


# ---- faults

LONG = {
    "train": {"epochs": 6, "batch_size": 8, "save_steps": 3},
    "unlearn": {"methods": {"kl": RECIPE["unlearn"]["methods"]["kl"]}, "budgets": [0.1], "batch_size": 2},
}


@pytest.fixture(scope="module")
def uninterrupted(recipe, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    run_launched(command(recipe(out, LONG), name="unlearn"))
    return out


def started(path: Path, config: str, out: Path) -> subprocess.Popen:
    """A run that has written its first checkpoint of `poisoned`."""
    process = subprocess.Popen(
        command(path, config, "unlearn"), cwd=ROOT, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE
    )
    limit = time.monotonic() + 120
    while not list((out / ".work" / "poisoned").glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit
        time.sleep(0.05)
    return process


def workers(process: subprocess.Popen) -> list[psutil.Process]:
    """Those that the launcher started, by rank."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        if (rank := child.environ().get("RANK")) is not None:
            found.setdefault(int(rank), child)
    return [found[rank] for rank in sorted(found)]


@pytest.mark.parametrize(("victim", "config"), [(1, "cpu_ddp"), (0, "cpu_zero3")])
def test_a_killed_worker_ends_the_launch_and_the_rerun_resumes(victim, config, recipe, uninterrupted, tmp_path):
    out = tmp_path / "run"
    path = recipe(out, LONG)
    process = started(path, config, out)
    both = workers(process)
    assert len(both) == 2
    both[victim].send_signal(signal.SIGKILL)
    _, message = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "llm-unlearn: error: " in message and "status 1" in message and "run the same command again" in message
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in both)
    assert not (out / "poisoned").exists()
    run_launched(command(path, config, "unlearn"))
    assert_same(uninterrupted, out, n_models=3)


@pytest.mark.parametrize(("config", "then"), [("cpu_ddp", None), ("cpu_zero3", "cpu_zero3")])
def test_sigterm_writes_a_checkpoint_and_other_processes_go_on_from_it(config, then, recipe, uninterrupted, tmp_path):
    out = tmp_path / "run"
    path = recipe(out, LONG)
    process = started(path, config, out)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "stopped by SIGTERM at step" in message
    step = int(message.partition("stopped by SIGTERM at step ")[2].partition(";")[0])
    assert [p.name for p in (out / ".work" / "poisoned").glob("checkpoint-*")] == [f"checkpoint-{step}"]
    run_launched(command(path, then, "unlearn"))
    assert_same(uninterrupted, out, processes=2 if then else 1, n_models=3)


def test_a_checkpoint_of_deepspeed_says_why_others_cannot_resume_it(recipe, tmp_path):
    out = tmp_path / "run"
    path = recipe(out, LONG)
    process = started(path, "cpu_zero3", out)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=90)
    message = run_launched(command(path, name="train"), code=2)
    for part in ("written under DeepSpeed", "without a sharding engine", "launch as before"):
        assert part in message
    run_launched([*command(path, name="train"), "train.save_steps=4"])  # other inputs: begun anew
    assert (out / "retrained" / "config.json").is_file()


def test_what_an_engine_cannot_do_is_refused_before_anything_runs(recipe, tmp_path):
    path = recipe(tmp_path / "run", {"unlearn": {"methods": {"ssd": None}, "batch_size": 2}})
    message = run_launched(command(path, "cpu_zero3"), code=2)
    assert "recipe.unlearn.methods.ssd: " in message and "each example's gradients" in message
    assert not (tmp_path / "run").exists()
    path = recipe(tmp_path / "run", {"unlearn": {"methods": {"kl": None}, "batch_size": 3}})
    message = run_launched(command(path, "cpu_ddp"), code=2)
    assert "recipe.unlearn.batch_size: 3 rows" in message and "2 processes" in message
    assert not (tmp_path / "run").exists()
