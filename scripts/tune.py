"""Search each method's learning rate and hyper-parameters at a recipe's budget, on seeds that are not reported.

    python scripts/tune.py recipes/quickstart.yaml --seeds 0 1 --out recipes/tuning/quickstart.json
    python scripts/tune.py recipes/imdb-small/full.yaml --seeds 0 --around recipes/tuning/quickstart.json \
        --out recipes/tuning/imdb-small.json

For each seed, the script trains the poisoned and the retrained model (in `runs/tune-<name>`, or `output_dir=…`), then
unlearns and evaluates every point of GRIDS. It writes the JSON after each point and skips points that are already in
it, so a killed search resumes. `--choose` prints the choice from the results and runs nothing.

The rule is the same for every method. A point qualifies if its accuracy (mean over seeds) is within 10 points of the
poisoned model's and its perplexity is at most twice the poisoned model's. Of those, the rule takes the point with the
least poison left: the lowest mean of |lift − lift_retrained| / |lift_poisoned − lift_retrained|, |GUS| / |GUS_poisoned|
and the same of the loss rank (older results lack it). If no point qualifies, it takes the point with the lowest
perplexity and marks it `collapses`.
"""

import argparse
import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

from llm_unlearn.runs.points import figures_of, residual

COSTLY_POINTS, COSTLY_PERPLEXITY = 10.0, 2.0


def grid(ratios: list[float], **options: list[Any]) -> list[dict[str, Any]]:
    """Every combination; `ratio` is the learning rate as a share of the training's."""
    names = ["ratio", *options]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(ratios, *options.values())]


UP = [0.03, 0.1, 0.3]  # for methods that climb the forget loss
DOWN = [0.5, 1.0, 2.0, 4.0]  # for methods that train on retain only
HIGH = [2.0, 4.0]  # where fine-tuning on retain removes poison by itself
RETAIN = ["none", "nll"]
# A method's second line was added later: the best point lay on the grid's edge, or no point changed anything.
GRIDS: dict[str, list[dict[str, Any]]] = {
    "gradient_descent": grid([*DOWN, 8.0, 16.0]),
    "noisy_gradient_descent": grid([30.0, 100.0, 300.0], sigma=[3e-4, 1e-3, 3e-3])
    + grid([1000.0, 3000.0], sigma=[1e-3, 1e-2]),
    "gradient_ascent": grid([0.005, 0.01, 0.02, 0.03, 0.05, 0.1]),
    "eu_k": grid([*DOWN, 8.0, 16.0]),
    "cf_k": grid([*DOWN, 8.0, 16.0]),
    "scrub": [
        {**point, **weights}
        for point in grid([0.1, 0.3, 1.0], msteps=[1, 2]) + grid(HIGH, msteps=[1])
        for weights in ({"alpha": 0.5, "gamma": 1.0}, {"alpha": 0.001, "gamma": 0.99})
    ],
    "neggrad_plus": grid([0.3, 1.0, 2.0, 4.0], beta=[0.9, 0.95, 0.99]),
    "ssd": [{"alpha": alpha, "lam": lam} for alpha in (1.5, 2.0, 3.0, 5.0) for lam in (0.5, 1.0)]
    + [{"alpha": alpha, "lam": lam} for alpha, lam in ((4.0, 3.0), (5.0, 3.0), (5.0, 4.5), (6.0, 3.0), (6.0, 5.0))],
    "grad_diff": grid([*UP, 1.0, 2.0], alpha=[1.0, 5.0]),
    "kl": grid(UP, alpha=[1.0, 5.0]) + grid([0.5, 1.0], alpha=[5.0, 20.0]),
    "npo": grid([*UP, 1.0], alpha=[1.0, 5.0]) + grid(HIGH, alpha=[1.0]),
    "simnpo": grid([*UP, 1.0, *HIGH], gamma=[0.125, 1.0]),
    "dpo": grid(UP, retain_loss=RETAIN) + grid([1.0, *HIGH], retain_loss=["nll"]),
    "rmu": grid([0.3, 1.0, 3.0], steering=[2.0, 6.5], alpha=[10.0, 1200.0])
    + grid([1.0, 10.0], steering=[20.0], alpha=[1.0], layer=[0, 1]),
    "undial": grid([*UP, 1.0], retain_loss=RETAIN) + grid(HIGH, retain_loss=["nll"]),
    "wga": grid([*UP, 1.0, *HIGH], gamma=[0.3, 1.0]),
    "satimp": grid([*UP, 1.0, *HIGH], gamma=[0.1, 1.0]),
    "ce_u": grid(UP, retain_loss=RETAIN) + grid([0.3, 1.0, *HIGH], retain_loss=["nll"], alpha=[5.0]),
    "task_arithmetic": grid([0.03, 0.1, 0.3], alpha=[0.5, 1.0]) + grid([0.3, 1.0], alpha=[1.0, 2.0]),
    "altpo": grid([0.3, 1.0, 4.0], alpha=[1.0, 5.0]),
    "idk_sft": grid([0.3, 1.0, 4.0], alpha=[1.0, 5.0]),
    "osft": grid([0.3, 1.0, 4.0], alpha=[1.0, 5.0]),
    "pdu": grid([0.1, 1.0, 4.0], multiplier=[1.0, 10.0]),
    "gu_project": grid(UP, alpha=[1.0, 5.0]),
    "crow": grid([1.0, 2.0, 4.0], alpha=[5.5, 11.0]),
    "undo": grid([1.0, 4.0], alpha=[0.1, 0.3, 0.6]),
    "sink": grid([0.3, 1.0, 4.0], removal_share=[0.05, 0.2]),
    "kfac_step": grid([1.0, 4.0], step_kl=[0.003, 0.03, 0.3]),
    "rewind": grid([*DOWN, 8.0])
    + grid([2.0, 4.0], per_device_train_batch_size=[4, 8], warmup_steps=[0.1], completion_weight=[1.0, 3.0, 10.0]),
    "reset_distill": [
        {**point, **weights}
        for point in grid([*DOWN, 8.0])
        for weights in ({"alpha": 1.0, "gamma": 1.0}, {"alpha": 1.0, "gamma": 0.0})
    ],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="not the recipe's own")
    parser.add_argument("--methods", nargs="+", default=list(GRIDS), choices=list(GRIDS), metavar="METHOD")
    parser.add_argument("--points", metavar="JSON", help="{method: [point, …]} instead of GRIDS")
    parser.add_argument(
        "--around",
        metavar="JSON",
        help="results of another recipe: its choices, at 1, 0.4 and 0.1 times their learning-rate ratio, "
        "instead of GRIDS",
    )
    parser.add_argument("--defaults", action="store_true", help="every method with its defaults, {} in the results")
    parser.add_argument("--out", required=True, metavar="JSON")
    parser.add_argument("--choose", action="store_true", help="print the choice from the results; run nothing")
    args = parser.parse_args()
    out = Path(args.out)
    if args.choose:
        print(json.dumps(choose(json.loads(out.read_text())), indent=2))
        return 0
    points = json.loads(Path(args.points).read_text()) if args.points else GRIDS
    if args.around:
        points = around(json.loads(Path(args.around).read_text()))
    if args.defaults:
        points = {method: [{}] for method in GRIDS}
    for seed in args.seeds:
        search(args.recipe, args.overrides, seed, {m: points[m] for m in args.methods if m in points}, out)
    return 0


def search(path: str, overrides: list[str], seed: int, points: dict[str, list[dict]], out: Path) -> None:
    """Run every point for one seed and add its figures to the results in `out`."""
    from llm_unlearn.config.recipe_files import load_recipe
    from llm_unlearn.errors import DiskFullError, InputError
    from llm_unlearn.runs.environment import calm_libraries
    from llm_unlearn.runs.phases import stages_until
    from llm_unlearn.runs.pipeline import run
    from llm_unlearn.runs.stages import Stages
    from llm_unlearn.runs.work import seed_runs

    recipe = load_recipe(path, overrides)
    if seed in recipe.seeds:
        sys.exit(f"seed {seed} is reported by {path}: tune on another")
    calm_libraries(quiet=True)
    if not any(o.startswith("output_dir=") for o in overrides):
        recipe = recipe.changed(output_dir=f"runs/tune-{recipe.name}")
    root = Path(recipe.output_dir)
    recipe = recipe.changed(seeds=[seed], output_dir=str(root / f"tune-{seed}"))
    recipe = recipe.changed(unlearn=recipe.unlearn.changed(methods={}))
    run(recipe, until="evaluate", quiet=True)  # base, poisoned, retrained
    seed_run = next(seed_runs(recipe))
    stages = Stages(seed_run.folder)
    for name in ("poisoned", "retrained"):
        record(out, {"method": name, "seed": seed}, figures(seed_run.folder / "evaluation" / f"{name}.json"))
    for method, options in ((m, o) for m, listed in points.items() for o in listed):
        key = {"method": method, "seed": seed, "options": options}
        if find(read(out), key):
            continue
        settings = {k: v for k, v in options.items() if k != "ratio"}
        if "ratio" in options:
            settings["learning_rate"] = options["ratio"] * recipe.train.learning_rate
        seed_run.recipe = recipe.changed(unlearn=recipe.unlearn.changed(methods={method: settings}))
        try:
            for stage in stages_until(seed_run, "evaluate"):
                if stage.name in (f"unlearned/{method}", f"evaluation/{method}"):
                    stages.run(stage)
            result = figures(seed_run.folder / "evaluation" / f"{method}.json")
        except DiskFullError:
            raise
        except InputError as error:  # weights that are not finite, an alpha that dampens nothing
            result = {"error": str(error)}
        record(out, key, result)
        print(json.dumps({**key, **result}), flush=True)


def around(results: list[dict]) -> dict[str, list[dict]]:
    """The chosen point of each method and, where it has a learning rate, two slower ones."""
    chosen = {method: choice["options"] for method, choice in choose(results).items()}
    return {
        method: [{**o, "ratio": float(f"{o['ratio'] * f:.3g}")} for f in (1, 0.4, 0.1)] if "ratio" in o else [o]
        for method, o in chosen.items()
    }


def figures(path: Path) -> dict[str, Any]:
    """The figures of an evaluation that `choose` compares."""
    from llm_unlearn.metrics.results import Evaluation

    return figures_of(Evaluation.from_json(json.loads(path.read_text()), str(path)))


def read(out: Path) -> list[dict]:
    return json.loads(out.read_text()) if out.is_file() else []


def find(results: list[dict], key: dict) -> dict | None:
    return next(
        (r for r in results if {k: r.get(k) for k in ("method", "seed", "options")} == {"options": None, **key}), None
    )


def record(out: Path, key: dict, values: dict) -> None:
    """Add one result, a line of the file; it replaces a result with the same key."""
    results = [r for r in read(out) if r is not find([r], key)]
    results.append({**key, **values})
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_text("[\n" + ",\n".join(json.dumps(r) for r in results) + "\n]\n")
    partial.replace(out)


def choose(results: list[dict]) -> dict[str, dict]:
    """{method: the point that the rule in the module's docstring picks, with its mean figures}."""
    models = {(r["method"], r["seed"]): r for r in results if "options" not in r}
    chosen = {}
    for method in dict.fromkeys(r["method"] for r in results if r.get("options")):
        scored = []
        mine = [r for r in results if r["method"] == method and r.get("options")]
        for options in {json.dumps(r["options"]): r["options"] for r in mine}.values():
            runs = [r for r in mine if r["options"] == options]
            if any("error" in r for r in runs):
                continue
            scored.append({"options": options, **_mean([_judged(r, models) for r in runs]), "seeds": len(runs)})
        most = max((s["seeds"] for s in scored), default=0)
        scored = [s for s in scored if s["seeds"] == most]
        able = [s for s in scored if s["points_lost"] <= COSTLY_POINTS and s["perplexity_ratio"] <= COSTLY_PERPLEXITY]
        if able:
            chosen[method] = min(able, key=lambda s: s["residual"])
        elif scored:
            chosen[method] = {**min(scored, key=lambda s: s["perplexity_ratio"]), "collapses": True}
    return chosen


def _judged(result: dict, models: dict) -> dict[str, float]:
    poisoned, retrained = models["poisoned", result["seed"]], models["retrained", result["seed"]]
    gus = result["gus"]
    if poisoned["gus"] is not None:
        gus = gus if gus is not None and math.isfinite(gus) else math.inf  # no direction left to score
    return {
        "residual": residual(result, poisoned, retrained),
        "lift": result["lift"] or 0.0,
        "gus": gus or 0.0,
        "points_lost": poisoned["accuracy"] - result["accuracy"],
        "perplexity_ratio": result["perplexity"] / poisoned["perplexity"],
    }


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(sum(row[key] for row in rows) / len(rows), 4) for key in rows[0]}


if __name__ == "__main__":
    sys.exit(main())
