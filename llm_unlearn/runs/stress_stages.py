"""The stages of a recipe's `stress` section: does the poison come back?"""

import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.distributed.processes import ALONE
from llm_unlearn.files import file_stamps, write_json
from llm_unlearn.runs.model_hashes import result_hashes
from llm_unlearn.runs.stages import Stage

if TYPE_CHECKING:
    from datasets import Dataset

    from llm_unlearn.config.sections import StressSection
    from llm_unlearn.runs.language_run import LanguageRun


def stress_stages(run: "LanguageRun", before: dict[str, Stage]) -> list[Stage]:
    """A stage for every model but the base; none without the recipe's `stress` section."""
    section = run.recipe.stress
    if section is None:
        return []
    models = {name: name for name in run.plain_models if name != "base"}
    models |= run.unlearned_models()
    common: list[Any] = [
        before["poison"].key,
        section.model_dump(),
        run.recipe.evaluate.model_dump(exclude={"fluency", "lm_eval"}),
        run.seed,
        run.recipe.train.learning_rate,
        file_stamps(section.unrelated_files or []),
    ]
    stages = []
    for name, folder in models.items():
        inputs, output = [*common, before[folder].key], run.folder / "stress" / f"{name}.json"
        work, about = partial(_stress, run, section, name, folder), {"precision": run.arithmetic.precision}
        hashes = partial(result_hashes, output, run.folder / folder, run.base, run.recipe.model)
        stages.append(Stage(f"stress/{name}", inputs, [output], work, about=about, hashes=hashes))
    return stages


def _stress(run: "LanguageRun", section: "StressSection", name: str, folder: str, work_dir: Path) -> None:
    """Stress the model in `folder` and write what was measured."""
    from llm_unlearn.audit.stress.meter import Meter
    from llm_unlearn.audit.stress.stress_model import stress_model

    evaluator = copy.copy(run.evaluator)
    evaluator.processes = ALONE  # of several processes, the main one does this
    meter = Meter(evaluator, run.recipe.data, section.limit, run.seed)
    result = stress_model(
        partial(run.model, folder),
        meter,
        section,
        _relearning_rows(run, section),
        learning_rate=section.relearn_learning_rate or run.recipe.train.learning_rate,
        noise=run.manifest["gaussian"],
        model_section=run.recipe.model,
        work_dir=work_dir,
    )
    write_json(run.folder / "stress" / f"{name}.json", result)


def _relearning_rows(run: "LanguageRun", section: "StressSection") -> dict[str, "Dataset"]:
    """Tokenised rows per kind: clean training rows, unrelated text, and a few rows of the forget set."""
    from llm_unlearn.data.encoding import encode_text
    from llm_unlearn.data.sources import load_unlabelled

    data, rows = run.recipe.data, dict[str, "Dataset"]()
    for kind in section.relearn_on:
        if kind == "clean":
            rows[kind] = run.clean_rows()
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
