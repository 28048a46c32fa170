"""The stages of a recipe's `analysis` section: why does unlearning fail?"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm_unlearn.files import write_json
from llm_unlearn.runs.stages import Stage

if TYPE_CHECKING:
    from llm_unlearn.runs.language_run import LanguageRun

RESEEDED_OFFSET = 1_000_000  # the order of `analysis/reseeded`
GRADIENT_ROWS = 512  # clean rows on which the clean gradient is taken


def analysis_stages(run: "LanguageRun", before: dict[str, Stage]) -> list[Stage]:
    """Trainings to compare with, then the comparison; none without the recipe's `analysis` section."""
    if run.recipe.analysis is None:
        return []
    arms: dict[str, tuple[str, float]] = {}
    for size in run.recipe.analysis.sizes:
        arms |= {f"{kind}@{size:g}": (kind, size) for kind in ("random", "poison") if (kind, size) != ("poison", 1)}
    arms["reseeded"] = ("reseeded", 0.0)
    stages = [
        run.trained(f"analysis/{arm}", [before["poison"].key, kind, size], partial(_train_arm, run, arm, kind, size))
        for arm, (kind, size) in arms.items()
    ]
    inputs = [stage.key for name, stage in before.items() if not name.startswith("evaluation/")]
    inputs += [stage.key for stage in stages]
    work, needs = partial(_analyse, run, list(arms)), tuple(stage.name for stage in stages)
    return [*stages, Stage("analysis", inputs, [run.folder / "analysis.json"], work, needs=needs)]


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

    rows = run.clean_rows().select_columns(["input_ids", "labels"])
    clean = list(rows.select(range(min(GRADIENT_ROWS, len(rows)))))
    result = analyse(
        run.model,
        poisoned="poisoned",
        retrained="retrained",
        methods=run.unlearned_models(),
        arms={arm: f"analysis/{arm}" for arm in arms},
        clean_rows=clean,
        collate=CausalLMCollator(run.tokenizer.pad_token_id),
        task=CausalLMTask(),
        batch_size=run.recipe.evaluate.batch_size,
    )
    write_json(run.folder / "analysis.json", result)
