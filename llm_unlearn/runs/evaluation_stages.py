"""The stages of `evaluate`: every model, the retrained one first, since the others are compared with it."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.audit.halves import looked_before, looks, note_choice
from llm_unlearn.files import file_stamps, write_json
from llm_unlearn.runs.model_hashes import result_hashes
from llm_unlearn.runs.stages import Stage

if TYPE_CHECKING:
    from llm_unlearn.metrics.benchmarks.benchmark_result import BenchmarkResult
    from llm_unlearn.metrics.results import Cost
    from llm_unlearn.metrics.task_scores import TaskScores
    from llm_unlearn.runs.seed_run import SeedRun


def evaluate_stages(run: "SeedRun", before: dict[str, Stage]) -> list[Stage]:
    """One stage for each model."""
    models = [*((name, None, None) for name in run.plain_models), *run.variants()]
    stages, choice = [], run.choice(before)
    for name, method, budget in models:
        made_by = before.get(f"unlearned/{name}" if method else name)
        inputs: list[Any] = [
            before["retrained"].key if run.has_oracle else None,
            before["poisoned"].key,
            before["poison"].key,
            made_by.key if made_by else None,
            name,
            *_settings(run.recipe.evaluate),
            *(run.clean_training if _clean_steps(run, name) else []),
        ]
        if method and choice and (count := looks(run.folder, choice)) > 1:
            inputs.append({"looks": count})  # which the result tells
        outputs = [run.folder / "evaluation" / f"{name}{suffix}" for suffix in (".json", ".parquet")]
        if (section := run.recipe.benchmark) is not None:
            inputs += [section.model_dump(), file_stamps([section.reference] if section.reference else [])]
            outputs.append(_measured_file(run, name))
        work, about = (
            partial(_evaluate, run, name, method, budget, choice if method else None),
            {"precision": run.arithmetic.precision},
        )
        needs = ("evaluation/retrained",) if run.has_oracle and name != "retrained" else ()
        folder = Path(run.base or "") if name == "base" else run.folder / (f"unlearned/{name}" if method else name)
        hashes = partial(result_hashes, outputs[0], folder, run.base, run.recipe.model)
        options: dict[str, Any] = {"common": True, "code": 2, "about": about, "hashes": hashes, "needs": needs}
        stages.append(Stage(f"evaluation/{name}", inputs, outputs, work, **options))
    return stages


def _settings(section: Any) -> list[Any]:
    """What a measurement depends on of the section `evaluate`. Fields that came later count where they are set."""
    inputs: list[Any] = [
        {k: v for k, v in section.model_dump().items() if v is not None or k not in ("fluency", "lm_eval")}
    ]
    if (tasks := getattr(section, "lm_eval", None)) is not None:
        from llm_unlearn.evaluation.lm_eval_tasks import lm_eval_version

        inputs += [lm_eval_version(), file_stamps([tasks.folder] if tasks.folder else [])]
    if (reader := getattr(section, "fluency", None)) is not None:
        inputs.append(file_stamps([reader.classifier]))
    return inputs


def _clean_steps(run: "SeedRun", name: str) -> int:
    """Steps on clean rows after which a model is tested again; the base and the poisoned model are what they are."""
    return 0 if name in ("base", "poisoned") else run.recipe.evaluate.clean_steps


def _evaluate(
    run: "SeedRun", name: str, method: str | None, budget: float | None, choice: str | None, work_dir: Path
) -> None:
    """Measure one model beside the retrained one; write its result and its per-example table."""
    import pandas as pd

    from llm_unlearn.evaluation.signal_files import read_signals, write_signals
    from llm_unlearn.evaluation.summarize import summarize
    from llm_unlearn.metrics.results import Identity

    folder_name, is_oracle = f"unlearned/{name}" if method else name, name == "retrained"
    model = run.load_base() if name == "base" else run.retrained if is_oracle else run.evaluated(folder_name)
    signals = run.evaluator.signals(model, None if is_oracle else run.retrained, is_oracle)
    steps = _clean_steps(run, name)
    if steps and (relearned := _relearned(run, folder_name, steps)) is not None:
        signals = pd.concat([signals, run.evaluator.later_signals(relearned)], ignore_index=True)
    folder = run.folder / "evaluation"
    oracle = None if is_oracle or not run.has_oracle else read_signals(folder / "retrained.parquet")
    identity = Identity(
        model=name,
        kind="unlearned" if method else name,
        method=method,
        budget=budget,
        seed=run.seed,
        recipe=run.recipe.name,
        precision=run.arithmetic.precision,
        planted=run.evaluator.planted,
    )
    cost = _cost(run, name, method)
    result = run.annotated(summarize(signals, identity, cost, oracle, steps), model)  # before anything is written
    if choice:
        result = replace(result, warnings=[*(result.warnings or ()), *looked_before(looks(run.folder, choice))])
    result = replace(result, benchmark=_benchmark(run, name, model), lm_eval=_lm_eval(run, model))
    if not run.processes.is_main:
        return
    if choice:
        note_choice(run.folder, choice)
    write_signals(signals, folder / f"{name}.parquet")
    write_json(folder / f"{name}.json", result.to_json())


def _cost(run: "SeedRun", name: str, method: str | None) -> "Cost | None":
    """What a model's training took, beside that of the poisoned model."""
    from llm_unlearn.metrics.results import Cost

    if (spent := run.spent(name, method)) is None:
        return None
    training = run.training_flops
    return Cost(
        train_tokens=int(spent["train_tokens"]),
        flops=spent["flops"],
        seconds=spent["seconds"],
        share_of_training=None if training is None else spent["flops"] / training,
        device_seconds=spent.get("device_seconds"),
        steps=spent.get("steps"),
        forget_seen=spent.get("forget_seen"),
        stopped_by=spent.get("stopped_by"),
    )


def _measured_file(run: "SeedRun", name: str) -> Path:
    return run.folder / "benchmark" / f"{name}.json"


def _benchmark(run: "SeedRun", name: str, model: Any) -> "BenchmarkResult | None":
    """Measure a model by the recipe's benchmark and keep its values per row; None without a benchmark.

    The retrained model comes first, and what was measured of it is what the others are compared with, unless the recipe
    gives another retain model's values.
    """
    from llm_unlearn.evaluation.benchmarks.measured_files import read_measured, write_measured
    from llm_unlearn.metrics.benchmarks.benchmark_result import benchmark_result

    section, benchmark = run.recipe.benchmark, run.benchmark
    if section is None or benchmark is None:
        return None
    given = Path(section.reference) if section.reference else _measured_file(run, "retrained")
    reference = read_measured(given, benchmark) if section.reference or name != "retrained" else None
    values = benchmark.values(run.evaluator, model)
    found = benchmark_result(benchmark.name, benchmark.split, values, reference or values)
    if run.processes.is_main:
        write_measured(_measured_file(run, name), benchmark, values)
    return found


def _lm_eval(run: "SeedRun", model: Any) -> "dict[str, TaskScores] | None":
    """Put a model to the recipe's tasks of lm-evaluation-harness; None without any."""
    if (section := getattr(run.recipe.evaluate, "lm_eval", None)) is None:
        return None
    from llm_unlearn.evaluation.lm_eval_tasks import lm_eval_scores

    return lm_eval_scores(run.evaluator, model, section, run.quiet)


def _relearned(run: "SeedRun", folder: str, steps: int) -> Any:
    """The model in `folder` after steps on clean training rows at the training's rate: does the poison stay gone?

    Every process trains the same. None where there are no such rows.
    """
    import torch

    from llm_unlearn.audit.stress.relearn import training_steps

    section, evaluator, rows = run.recipe.train, run.evaluator, run.clean_rows()
    if not len(rows):
        return None
    rows = rows.select_columns([c for c in ("input_ids", "labels", "pixels", "label_id") if c in rows.column_names])
    if section.optim == "sgd":
        momentum = getattr(section, "momentum", 0.0)  # of images alone
        optimizer: Any = partial(torch.optim.SGD, lr=section.learning_rate, momentum=momentum)
    else:
        optimizer = partial(torch.optim.AdamW, lr=section.learning_rate, weight_decay=0.0)
    model = run.model(folder, common=run.measures_parts)
    size = min(section.batch_size * section.gradient_accumulation_steps, len(rows))
    given = (optimizer, evaluator.collate, size, run.seed, evaluator.task, evaluator.arithmetic)
    for _ in training_steps(model, rows, steps, *given):
        pass
    return model
