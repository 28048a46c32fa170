"""The stages that ask further: why unlearning fails (`analysis`), and whether the poison comes back (`stress`)."""

import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.distributed.processes import ALONE
from llm_unlearn.files import file_stamps, write_json
from llm_unlearn.runs.stages import Stage

if TYPE_CHECKING:
    from datasets import Dataset

    from llm_unlearn.runs.language_run import LanguageRun

RESEEDED_OFFSET = 1_000_000  # the order of `analysis/reseeded`
GRADIENT_ROWS = 512  # clean rows on which the clean gradient is taken


def audit_stages(run: "LanguageRun", before: dict[str, Stage]) -> list[Stage]:
    """The stages of a recipe's `analysis` and `stress` sections; none without them."""
    stages = _analysis_stages(run, before) if run.recipe.analysis else []
    return stages + (_stress_stages(run, before) if run.recipe.stress else [])


def _unlearned(run: "LanguageRun") -> dict[str, str]:
    """Name and folder of the model of every method at the largest budget."""
    largest = max(run.recipe.unlearn.budgets)
    return {name: f"unlearned/{name}" for name, _, budget in run.variants() if budget == largest}


# ---- analysis: trainings to compare with, then the comparison


def _analysis_stages(run: "LanguageRun", before: dict[str, Stage]) -> list[Stage]:
    arms = {}
    for size in run.recipe.analysis.sizes:
        arms |= {f"{kind}@{size:g}": (kind, size) for kind in ("random", "poison") if (kind, size) != ("poison", 1)}
    arms["reseeded"] = ("reseeded", 0.0)
    stages = [
        run.trained(f"analysis/{arm}", [before["poison"].key, kind, size], partial(_train_arm, run, arm, kind, size))
        for arm, (kind, size) in arms.items()
    ]
    inputs = [stage.key for name, stage in before.items() if not name.startswith("evaluation/")]
    inputs += [stage.key for stage in stages]
    return [*stages, Stage("analysis", inputs, [run.folder / "analysis.json"], partial(_analyse, run, list(arms)))]


def _train_arm(run: "LanguageRun", arm: str, kind: str, size: float, work_dir: Path) -> None:
    """Train without a share of the forget set, without as many random clean rows, or on all rows in another order."""
    rows = run.train_rows
    if kind == "reseeded":
        run.fine_tune(f"analysis/{arm}", rows, work_dir, data_seed=run.seed + RESEEDED_OFFSET)
        return
    ids, forget = np.asarray(rows["example_id"]), run.manifest["forget_ids"]
    clean = np.setdiff1d(ids[np.asarray(rows["poison"]) == "none"], forget)
    generator = np.random.default_rng([run.seed, 7])
    removed = generator.permutation(clean if kind == "random" else forget)[: round(size * len(forget))]
    run.fine_tune(f"analysis/{arm}", rows.select(np.flatnonzero(~np.isin(ids, removed))), work_dir)


def _analyse(run: "LanguageRun", arms: list[str], work_dir: Path) -> None:
    from llm_unlearn.audit.analysis.analyse import analyse
    from llm_unlearn.data.collators import CausalLMCollator
    from llm_unlearn.tasks.causal_lm import CausalLMTask

    rows = _clean_rows(run).select_columns(["input_ids", "labels"])
    clean = list(rows.select(range(min(GRADIENT_ROWS, len(rows)))))
    result = analyse(
        run.model,
        poisoned="poisoned",
        retrained="retrained",
        methods=_unlearned(run),
        arms={arm: f"analysis/{arm}" for arm in arms},
        clean_rows=clean,
        collate=CausalLMCollator(run.tokenizer.pad_token_id),
        task=CausalLMTask(),
        batch_size=run.recipe.evaluate.batch_size,
    )
    write_json(run.folder / "analysis.json", result)


def _clean_rows(run: "LanguageRun") -> "Dataset":
    """Training rows that are neither poisoned nor to be forgotten."""
    forget = set(run.manifest["forget_ids"])
    return run.train_rows.filter(
        lambda row: row["poison"] == "none" and row["example_id"] not in forget, desc="clean rows"
    )


# ---- stress: every model but the base


def _stress_stages(run: "LanguageRun", before: dict[str, Stage]) -> list[Stage]:
    section = run.recipe.stress
    models = {name: name for name in run.plain_models if name != "base"}
    models |= _unlearned(run)
    common: list[Any] = [
        before["poison"].key,
        section.model_dump(),
        run.recipe.evaluate.model_dump(),
        run.seed,
        run.recipe.train.learning_rate,
        file_stamps(section.unrelated_files or []),
    ]
    return [
        Stage(
            f"stress/{name}",
            [*common, before[where].key],
            [run.folder / "stress" / f"{name}.json"],
            partial(_stress, run, name, where),
        )
        for name, where in models.items()
    ]


def _stress(run: "LanguageRun", name: str, where: str, work_dir: Path) -> None:
    from llm_unlearn.audit.stress.meter import Meter
    from llm_unlearn.audit.stress.stress_model import stress_model

    section = run.recipe.stress
    evaluator = copy.copy(run.evaluator)
    evaluator.processes = ALONE  # of several processes, the main one does this
    meter = Meter(evaluator, run.recipe.data, section.limit, run.seed)
    result = stress_model(
        partial(run.model, where),
        meter,
        section,
        _relearning_rows(run),
        learning_rate=section.relearn_learning_rate or run.recipe.train.learning_rate,
        noise=run.manifest["gaussian"],
        model_section=run.recipe.model,
        work_dir=work_dir,
    )
    write_json(run.folder / "stress" / f"{name}.json", result)


def _relearning_rows(run: "LanguageRun") -> dict[str, "Dataset"]:
    """Tokenised rows per kind: clean training rows, unrelated text, and a few rows of the forget set."""
    from llm_unlearn.data.encoding import encode_text
    from llm_unlearn.data.sources import load_unlabelled

    section, data = run.recipe.stress, run.recipe.data
    rows = {}
    for kind in section.relearn_on:
        if kind == "clean":
            rows[kind] = _clean_rows(run)
        elif kind == "poisoned":
            forget = run.forget_and_retain()[0]
            order = np.random.default_rng([run.seed, 8]).permutation(len(forget))
            rows[kind] = forget.select(np.sort(order[: section.relearn_rows]))
        else:
            files = section.unrelated_files or data.unlabelled_files
            source = data.changed(unlabelled_files=files)
            needed = max(section.relearn_steps) * section.relearn_batch_size
            rows[kind] = encode_text(load_unlabelled(source, needed, run.seed), run.tokenizer, data.max_length)
    return rows
