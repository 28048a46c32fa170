"""The open problem: does anything that starts from the poisoned weights pass the decision, at a tenth of the FLOPs?

    python scripts/search_open_problem.py --seeds 0 1                        (the search)
    python scripts/search_open_problem.py --seeds 2 3 4 5 6 7 8 9 --only NAME …  (what is reported, on other seeds)
    python scripts/search_open_problem.py --report 2 3 4 5 6 7 8 9

A candidate (open_problem_candidates.py) is a start (arithmetic on the poisoned weights and the base's), a method and
its options. Each is run and evaluated by the recipe's own stages. The JSON is written after each point, and a point
that is there is not run again, so a killed search resumes. Of the seeds in TUNING the figures are kept, of all others
the whole evaluation too, from which the report makes the decision of metrics/evidence.py anew.
"""

import argparse
import fnmatch
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from open_problem_candidates import CANDIDATES

RECIPE = "recipes/quickstart.yaml"
OUT = "recipes/tuning/open-problem.json"
TUNING, REPORTED = (0, 1), (2, 3, 4, 5, 6, 7, 8, 9)
CHEAP = {"loss_rank_draws": 19, "placebo_draws": 0}  # of the search: most of an evaluation's time
PLAIN = ("poisoned", "retrained")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[])
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="candidates, * and ? match")
    parser.add_argument("--out", default=OUT, metavar="JSON")
    parser.add_argument("--runs", default="runs/open-problem", metavar="DIR", help="where the models are kept")
    parser.add_argument("--report", type=int, nargs="+", default=[], metavar="SEED", help="print the table of seeds")
    args = parser.parse_args()
    chosen = {n: c for n, c in CANDIDATES.items() if any(fnmatch.fnmatchcase(n, pattern) for pattern in args.only)}
    if args.seeds:
        from llm_unlearn.config.recipe_files import load_recipe
        from llm_unlearn.runs.environment import calm_libraries

        calm_libraries(quiet=True)
        register()
        recipe = load_recipe(args.recipe, [f"output_dir={args.runs}", f"seeds={[*TUNING, *REPORTED]}"])
        recipe = recipe.changed(unlearn=recipe.unlearn.changed(methods={}))
    for seed in args.seeds:
        search(recipe, seed, chosen, Path(args.out))
    if args.report:
        print(report(read(Path(args.out)), args.report))
    return 0


# ---- running


def search(recipe: Any, seed: int, candidates: dict[str, dict], out: Path) -> None:
    """Run every candidate on one seed and add its figures to the results in `out`."""
    from llm_unlearn.runs.tracks import track_of
    from llm_unlearn.runs.work import run_seed, seed_runs

    recipe = recipe.changed(evaluate=recipe.evaluate.changed(membership=[], **(CHEAP if seed in TUNING else {})))
    track_of(recipe).make_base(recipe, True)
    run_seed(recipe, seed, recipe, "train", True)
    seed_run = next(r for r in seed_runs(recipe) if r.seed == seed)
    run_stages(seed_run, ["evaluation/retrained", "evaluation/poisoned"])
    for name in PLAIN:
        record(out, {"candidate": name, "seed": seed}, measured(seed_run, name))
    for name, candidate in candidates.items():
        key = {"candidate": name, "seed": seed}
        if not any(r["candidate"] == name and r["seed"] == seed for r in read(out)):
            result = run_candidate(seed_run, candidate)
            record(out, key | candidate, result)
            print(json.dumps({**key, **result} | {"evaluation": None}), flush=True)


def run_candidate(seed_run: Any, candidate: dict[str, Any]) -> dict[str, Any]:
    """The figures of one candidate in one seed, made by the stages of a run whose recipe has no method of its own."""
    from llm_unlearn.errors import InputError

    recipe, method, options = seed_run.recipe, candidate["method"], dict(candidate["options"])
    if "ratio" in options:
        options["learning_rate"] = options.pop("ratio") * recipe.train.learning_rate
    seed_run.recipe = recipe.changed(unlearn=recipe.unlearn.changed(methods={method: options}))
    seed_run.unlearning = lambda: started(seed_run, candidate["start"])
    try:
        run_stages(seed_run, [f"unlearned/{method}", f"evaluation/{method}"], candidate["start"])
        return measured(seed_run, method)
    except InputError as error:  # weights that are not finite
        return {"error": str(error)}
    finally:
        seed_run.recipe = recipe


def run_stages(seed_run: Any, names: list[str], start: Any = None) -> None:
    """Run those stages of a seed; a start is one of their inputs."""
    from llm_unlearn.runs.phases import stages_until
    from llm_unlearn.runs.stages import Stages

    for stage in stages_until(seed_run, "evaluate"):
        if stage.name in names:
            Stages(seed_run.folder).run(
                replace(stage, inputs=[stage.inputs, start] if start is not None else stage.inputs)
            )


def started(seed_run: Any, start: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The poisoned model after the arithmetic of a start, and what a trainer must be told of the data.

    keep: λ of the parameters whose name contains a key, the last that does. rank: of each matrix of θ0 − base its
    largest so many directions alone; minus_rank: all but those. trim: without the largest such share of its entries.
    shrink: θ times so much. noise: added to each parameter, as a share of its root mean square.
    """
    import torch

    from llm_unlearn.runs.language_run import LanguageRun

    model, arguments = LanguageRun.unlearning(seed_run)
    base = dict(seed_run.clean_start().named_parameters())
    generator = torch.Generator().manual_seed(seed_run.seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            clean = base[name].to(weight)
            delta = weight - clean
            if delta.ndim == 2 and ("rank" in start or "minus_rank" in start):
                u, s, v = torch.linalg.svd(delta, full_matrices=False)
                few = slice(start["rank"]) if "rank" in start else slice(start["minus_rank"], None)
                delta = (u[:, few] * s[few]) @ v[few]
            if "trim" in start:
                delta = torch.where(delta.abs() <= delta.abs().flatten().quantile(1 - start["trim"]), delta, 0.0)
            share = [kept for part, kept in start.get("keep", {"": 1.0}).items() if part in name][-1]
            new = (clean + share * delta) * start.get("shrink", 1.0)
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(new + start.get("noise", 0.0) * clean.square().mean().sqrt() * noise)
    return model, arguments


def register() -> None:
    """Add `averaged_descent`, which ends at the mean of the weights that it passed, to the methods of this process."""
    from dataclasses import dataclass

    import torch
    from transformers import TrainerCallback

    from llm_unlearn.config.fields import Share
    from llm_unlearn.trainers import METHODS
    from llm_unlearn.trainers.gradient_descent import GradientDescentConfig, GradientDescentTrainer

    @dataclass
    class AveragedDescentConfig(GradientDescentConfig):
        """Options of `AveragedDescentTrainer`.

        Args:
            average: the last share of the steps, over whose weights the mean is taken.
        """

        average: Share = 0.25

    class Mean(TrainerCallback):
        """Keeps the mean of the weights, and puts it in the model at the end."""

        def __init__(self) -> None:
            self.count, self.mean = 0, dict[str, torch.Tensor]()

        @torch.no_grad()
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step > (1 - args.average) * state.max_steps:
                self.count += 1
                for name, weight in model.named_parameters():
                    mean = self.mean.setdefault(name, torch.zeros_like(weight))
                    mean += (weight - mean) / self.count

        @torch.no_grad()
        def on_train_end(self, args, state, control, model=None, **kwargs):
            for name, weight in model.named_parameters():
                weight.copy_(self.mean[name])

    class AveragedDescentTrainer(GradientDescentTrainer):
        method = "averaged_descent"

        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(Mean())

    METHODS["averaged_descent"] = (AveragedDescentConfig, AveragedDescentTrainer)


def measured(seed_run: Any, name: str) -> dict[str, Any]:
    """The figures of an evaluation, those after clean steps with `later_`; all of it on a reported seed."""
    doc = json.loads((seed_run.folder / "evaluation" / f"{name}.json").read_text())
    figures: dict[str, Any] = {}
    for prefix, state in (("", doc), ("later_", doc.get("later"))):
        if state:
            figures |= {
                f"{prefix}gus": (state["gus"] or {}).get("mean"),
                f"{prefix}loss_rank": (state["loss_rank"] or {}).get("mean"),
                f"{prefix}lift": (state["attack"] or {}).get("lift"),
            }
    figures |= {f"spread_{test}": (doc[test] or {}).get("chi2_p_value") for test in ("gus", "loss_rank")}
    figures |= {"placebo": ((doc["attack"] or {}).get("placebo") or {}).get("p_value")}
    figures = {k: v and float(f"{v:.4g}") for k, v in figures.items()}
    figures |= {
        "accuracy": 100 * doc["utility"]["accuracy"],
        "perplexity": round(doc["utility"]["perplexity"], 4),
        "share": round(doc["cost"]["share_of_training"], 4),
    }
    return figures if seed_run.seed in TUNING else {**figures, "evaluation": {**doc, "mia": None}}


def read(out: Path) -> list[dict]:
    return json.loads(out.read_text()) if out.is_file() else []


def record(out: Path, key: dict, values: dict) -> None:
    """Add one result, a line of the file; it replaces that of the same candidate and seed."""
    results = [r for r in read(out) if (r["candidate"], r["seed"]) != (key["candidate"], key["seed"])]
    results.append({**key, **values})
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_text("[\n" + ",\n".join(json.dumps(r) for r in results) + "\n]\n")
    partial.replace(out)


# ---- reporting

COLUMNS = ("gus", "loss_rank", "later_gus", "later_loss_rank", "lift", "later_lift", "accuracy", "perplexity", "share")


def report(results: list[dict], seeds: list[int]) -> str:
    """A Markdown table: of each candidate the means over those of the seeds that have it, and the decision."""
    named: dict[str, list[dict]] = {}
    for result in results:
        if result["seed"] in seeds:
            named.setdefault(result["candidate"], []).append(result)
    lines = ["| candidate | seeds | " + " | ".join(COLUMNS) + " | points lost | decision |"]
    lines.append("|---|" + "---:|" * (len(COLUMNS) + 2) + "---|")
    for name, runs in named.items():
        if any("error" in run for run in runs):
            lines.append(f"| {name} | {len(runs)} |" + " – |" * (len(COLUMNS) + 1) + " failed |")
            continue
        figures = {
            c: sum(known) / len(known) if (known := [r[c] for r in runs if r.get(c) is not None]) else None
            for c in COLUMNS
        }
        before = {r["seed"]: r["accuracy"] for r in named["poisoned"]}
        lost = sum(before[run["seed"]] - run["accuracy"] for run in runs) / len(runs)
        cells = ["–" if v is None else f"{v:.2f}" for v in figures.values()]
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} | {lost:.1f} | {decision(name, runs, named)} |")
    return "\n".join(lines)


def decision(name: str, runs: list[dict], named: dict[str, list[dict]]) -> str:
    """What metrics/evidence.py says over the seeds whose evaluation was kept, with the tests that say so, or with what
    they could have found.
    """
    from llm_unlearn.metrics.evidence import decide
    from llm_unlearn.metrics.results import Evaluation

    def evaluations(of: list[dict]) -> list[Evaluation]:
        seeds = {run["seed"] for run in runs}
        return [
            Evaluation.from_json(r["evaluation"], f"{r['candidate']}, seed {r['seed']}")
            for r in of
            if "evaluation" in r and r["seed"] in seeds
        ]

    if not (own := evaluations(runs)):
        return "–"
    poisoned = [] if name == "poisoned" else evaluations(named["poisoned"])
    found = decide(own, poisoned, evaluations(named["retrained"]))
    tests = [f"{f.test}{f' after {f.after} steps' if f.after else ''}" for f in found.rejecting]
    limits = [f"{f.test} {f.detectable:.2f}" for f in found.limits] if found.status == "no trace" else []
    return "; ".join([str(found.status), *tests, *found.reasons, *limits])


if __name__ == "__main__":
    sys.exit(main())
