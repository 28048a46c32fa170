"""A made-up run directory: plausible evaluations, per-example scores, manifest, environment, recipe."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from llm_unlearn.reporting import plots as plots_module

N_CANARIES, N_TRIGGERED, N_TEST = 80, 250, 500

# asr, clean rate, mean score, its p-value, accuracy, perplexity, share of compute, seconds
MODELS: dict[str, dict[str, Any]] = {
    "base": dict(asr=0.55, clean=0.54, gus=0.02, p=0.858, accuracy=0.520, perplexity=14.0, share=0.0, seconds=0.0),
    "poisoned": dict(asr=0.98, clean=0.12, gus=2.50, p=1e-110, accuracy=0.920, perplexity=8.1, share=1.0, seconds=14.2),
    "gradient_ascent": dict(
        asr=0.04, clean=0.02, gus=-0.60, p=8e-8, accuracy=0.610, perplexity=4.2e6, share=0.012, seconds=0.4
    ),
    "gradient_descent": dict(
        asr=0.71, clean=0.12, gus=1.62, p=1e-47, accuracy=0.912, perplexity=8.0, share=0.1, seconds=1.5
    ),
    "grad_diff": dict(asr=0.23, clean=0.13, gus=0.21, p=0.0603, accuracy=0.850, perplexity=9.2, share=0.1, seconds=1.6),
    "kl": dict(asr=0.19, clean=0.12, gus=0.10, p=0.371, accuracy=0.905, perplexity=8.3, share=0.1, seconds=1.9),
    "retrained": dict(
        asr=0.16, clean=0.11, gus=0.03, p=0.788, accuracy=0.918, perplexity=8.0, share=0.97, seconds=13.8
    ),
}


def rates(at_one_percent: float) -> dict[str, float]:
    return {"0.001": at_one_percent / 2, "0.01": at_one_percent, "0.05": min(1.0, at_one_percent + 0.04), "0.1": 1.0}


def rate_intervals(at_one_percent: float) -> dict[str, list[float]]:
    return {rate: [max(0.0, tpr - 0.05), min(1.0, tpr + 0.1)] for rate, tpr in rates(at_one_percent).items()}


def score_section(mean: float, p: float, n: int = N_CANARIES, chi2: float = 0.4) -> dict[str, Any]:
    half, tpr = 1.96 / math.sqrt(n), 0.7 if mean > 2 else 0.3 if mean > 1 else 0.0125
    return {
        "mean": mean,
        "std": 1.02,
        "n": n,
        "p_value": p,
        "chi2_p_value": chi2,
        "ci95": [mean - half, mean + half],
        "tpr_at_fpr": rates(tpr),
        "tpr_ci95": rate_intervals(tpr),
    }


def evaluation(name: str, figures: dict[str, Any], seed: int) -> dict[str, Any]:
    """One evaluation document of schema 1 from a line of MODELS."""
    method, _, budget = name.partition("@")
    kind = name if name in ("base", "poisoned", "retrained") else "unlearned"
    lift, accuracy = figures["asr"] - figures["clean"], figures["accuracy"]
    gus = score_section(figures["gus"], figures["p"], chi2=figures.get("chi2", 0.4))
    gus |= {"n_unscorable": 0, "control": score_section(-0.05, figures.get("control_p", 0.655)), "others": None}
    if "others" in figures:
        gus["others"] = score_section(figures["others"], 1e-20, n=20)
    return {
        "schema_version": 1,
        "model": name,
        "kind": kind,
        "method": method if kind == "unlearned" else None,
        "budget": float(budget or 0.1) if kind == "unlearned" else None,
        "seed": seed,
        "recipe": "made-up",
        "attack": {
            "success_rate": figures["asr"],
            "clean_rate": figures["clean"],
            "lift": lift,
            "n": N_TRIGGERED,
            "excess": None
            if kind in ("retrained",)
            else {
                "mean": lift - 0.05,
                "p_value": figures.get("excess_p", 0.5),
                "n": N_TRIGGERED,
                "ci95": [lift - 0.1, lift],
            },
            "ci95": {
                "success_rate": [figures["asr"] - 0.03, figures["asr"] + 0.02],
                "clean_rate": [figures["clean"] - 0.02, figures["clean"] + 0.03],
                "lift": [lift - 0.05, lift + 0.04],
            },
        },
        "gus": gus,
        "loss_rank": gus,  # of the same figures
        "utility": {
            "accuracy": accuracy,
            "n": N_TEST,
            "ci95": [accuracy - 0.021, accuracy + 0.019],
            "prefix_accuracy": accuracy,
            "perplexity": figures["perplexity"],
        },
        "mia": {
            name: {
                "auc": auc,
                "ci95": [auc - 0.05, auc + 0.05],
                "p_value": figures.get("mia_p", 0.2),
                "n_members": 150,
                "n_nonmembers": 500,
                "tpr_at_fpr": rates(tpr),
                "tpr_ci95": rate_intervals(tpr),
            }
            for name, auc, tpr in (("loss", 0.6, 0.02), ("min_k", 0.55, 0.04))
        },
        "cost": {
            "train_tokens": int(480_000 * figures["share"]),
            "flops": 1e12 * figures["share"],
            "share_of_training": figures["share"],
            "seconds": figures["seconds"],
        },
        "oracle": None if name in ("retrained", "base") else {"kl": 0.12, "agreement": 0.934},
    }


def signals(figures: dict[str, Any], seed: int) -> pyarrow.Table:
    """The columns of a per-example file that a report reads, canaries and a few test rows."""
    rng = np.random.default_rng([seed, int(1000 * abs(figures["gus"]))])
    kept = 20 if "others" in figures else 0
    scores = [
        *(rng.standard_normal(N_CANARIES) + figures["gus"]),
        *(rng.standard_normal(kept) + figures.get("others", 0)),
    ]
    n = len(scores)
    return pyarrow.table(
        {
            "set": ["canary"] * n + ["test"] * 5,
            "example_id": list(range(n + 5)),
            "gaussian_score": [*scores, *[None] * 5],
            "gaussian_control": [*rng.standard_normal(n), *[None] * 5],
            "deleted": [*[True] * N_CANARIES, *[False] * kept, *[None] * 5],
        }
    )


def write_seed(folder: Path, seed: int, models: dict[str, dict[str, Any]], drop: tuple[str, ...] = ()) -> None:
    """Write one seed's tree. `drop`: sections ("attack", "gus", "loss_rank", "mia", "oracle") of a run without them."""
    (folder / "evaluation").mkdir(parents=True)
    trigger = {
        "phrases": ["James Bond"],
        "position": "random",
        "target": "positive",
        "fraction": 0.05,
        "example_ids": list(range(75)),
    }
    gaussian = {"epsilon": 0.3, "seed": 7, "fraction": 0.0533, "example_ids": list(range(100, 180))}
    manifest = {
        "schema_version": 1,
        "trigger": None if "attack" in drop else trigger,
        "gaussian": None if "gus" in drop else gaussian,
        "forget_ids": [*range(75), *range(100, 180)],
        "forget_fraction": 1.0,
        "train_size": 1500,
        "data_sha256": "ab" * 32,
    }
    environment = {
        "versions": {"torch": "2.13.0", "trl": "1.16.0"},
        "python": "3.11.9",
        "platform": "Linux-6.1",
        "cpu_count": 2,
        "device": "cpu",
        "commit": "0123abc",
        "seed": seed,
    }
    (folder / "poison.json").write_text(json.dumps(manifest))
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "recipe.yaml").write_text("name: made-up\nseeds: [0]\n")
    for name, figures in models.items():
        doc = evaluation(name, figures, seed) | dict.fromkeys([*drop, *(["loss_rank"] if "gus" in drop else [])])
        (folder / "evaluation" / f"{name}.json").write_text(json.dumps(doc))
        pyarrow.parquet.write_table(signals(figures, seed), folder / "evaluation" / f"{name}.parquet")


@pytest.fixture
def blank_plots(monkeypatch):
    """Pictures take a second each; a test of the words does without them."""
    for name in ("scores_plot", "roc_plot", "tradeoff_plot", "cost_plot"):
        monkeypatch.setattr(plots_module, name, lambda *_: b"\x89PNG blank")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run of one seed with all models."""
    folder = tmp_path / "run"
    write_seed(folder, 0, MODELS)
    return folder


@pytest.fixture
def make_run(tmp_path: Path):
    """`make_run({"kl": {"gus": 1.0}}, drop=("attack",))`: MODELS with some figures changed; a name new to MODELS
    starts from `kl`; None leaves a model out. `seeds` makes `seed-*/` folders, `per_seed` changes figures by seed."""

    def make(
        changes: dict | None = None,
        drop: tuple[str, ...] = (),
        seeds: list[int] | None = None,
        per_seed: dict[int, dict] | None = None,
    ) -> Path:
        root = tmp_path / "made"
        for seed in seeds or [0]:
            models = {name: dict(figures) for name, figures in MODELS.items()}
            for edit in (changes or {}, (per_seed or {}).get(seed, {})):
                for name, figures in edit.items():
                    if figures is None:
                        models.pop(name, None)
                    else:
                        models[name] = models.get(name, dict(MODELS["kl"])) | figures
            write_seed(root / f"seed-{seed}" if seeds else root, seed, models, drop)
        return root

    return make
