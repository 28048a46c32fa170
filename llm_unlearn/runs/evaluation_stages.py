"""The stages of `evaluate`: every model, the retrained one first, since the others are compared with it."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llm_unlearn.files import write_json
from llm_unlearn.runs.stages import Stage

if TYPE_CHECKING:
    from llm_unlearn.runs.seed_run import SeedRun


def evaluate_stages(run: "SeedRun", before: dict[str, Stage]) -> list[Stage]:
    """One stage for each model."""
    models = [*((name, None, None) for name in run.plain_models), *run.variants()]
    stages = []
    for name, method, budget in models:
        made_by = before.get(f"unlearned/{name}" if method else name)
        inputs = [
            before["retrained"].key,
            before["poisoned"].key,
            made_by.key if made_by else None,
            name,
            run.recipe.evaluate.model_dump(),
        ]
        outputs = [run.folder / "evaluation" / f"{name}{suffix}" for suffix in (".json", ".parquet")]
        work, about = partial(_evaluate, run, name, method, budget), {"precision": run.arithmetic.precision}
        stages.append(Stage(f"evaluation/{name}", inputs, outputs, work, common=True, about=about))
    return stages


def _evaluate(run: "SeedRun", name: str, method: str | None, budget: float | None, work_dir: Path) -> None:
    """Measure one model beside the retrained one; write its result and its per-example table."""
    from llm_unlearn.evaluation.signal_files import read_signals, write_signals
    from llm_unlearn.evaluation.summarize import summarize
    from llm_unlearn.metrics.results import Cost, Identity

    folder_name, is_oracle = f"unlearned/{name}" if method else name, name == "retrained"
    if name == "base":
        model = run.load_base()
        cost = {"train_tokens": 0, "flops": 0.0, "seconds": 0.0}
    else:
        model, cost = run.retrained if is_oracle else run.evaluated(folder_name), run.cost(folder_name)
    signals = run.evaluator.signals(model, None if is_oracle else run.retrained, is_oracle)
    folder = run.folder / "evaluation"
    oracle = None if is_oracle else read_signals(folder / "retrained.parquet")
    spent = Cost(
        train_tokens=int(cost["train_tokens"]),
        flops=cost["flops"],
        seconds=cost["seconds"],
        share_of_training=cost["flops"] / run.cost("poisoned")["flops"],
    )
    identity = Identity(
        model=name,
        kind="unlearned" if method else name,
        method=method,
        budget=budget,
        seed=run.seed,
        recipe=run.recipe.name,
        precision=run.arithmetic.precision,
    )
    result = summarize(signals, identity, spent, oracle)  # before anything is written
    if not run.processes.is_main:
        return
    write_signals(signals, folder / f"{name}.parquet")
    write_json(folder / f"{name}.json", result.to_json())
