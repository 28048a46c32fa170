"""One method on a model that is poisoned already, without a recipe file.

    trainer, result = unlearn("my-model", "manifest.json", method="npo", out="cured")
    print(result.attack, result.gus)

The folder `cured` is a run directory: `llm-unlearn audit --model cured`, `merge cured --model npo` and `push cured
--model npo` take it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.config.given_sections import completed
from llm_unlearn.config.recipe import GivenRecipe, build_recipe
from llm_unlearn.config.search_fields import SearchSection
from llm_unlearn.config.strict import set_override
from llm_unlearn.config.validate import validated
from llm_unlearn.errors import InputError, NothingPassedError
from llm_unlearn.files import read_json
from llm_unlearn.runs.auto import auto
from llm_unlearn.runs.pipeline import run
from llm_unlearn.runs.search_text import nothing_passes

if TYPE_CHECKING:
    from llm_unlearn.metrics.results import Evaluation
    from llm_unlearn.reporting.verdicts import Verdict
    from llm_unlearn.trainers.base import UnlearnTrainer

AUTO = "auto"  # in the place of a method: the search picks it
EPOCHS = 3.0  # passes over the forget set, as TrainingArguments have it


def given_recipe(
    model: str,
    manifest: str,
    methods: dict[str, dict[str, Any] | None],
    out: str,
    *,
    base: str | None = None,
    retrained: str | None = None,
    overrides: list[str] | None = None,
) -> GivenRecipe:
    """The recipe that runs methods, by their names and options, on a given model; for the rest see `unlearn`."""
    for method in methods:
        if "@" in method:
            raise InputError(
                f"--method {method}: a budget is given apart, e.g. unlearn.budgets=[200] unlearn.budget_in=steps"
            )
    tree: dict[str, Any] = {
        "name": f"{', '.join(methods) or AUTO} on {Path(model).name}",
        "output_dir": str(Path(out).expanduser()),
        "given": {"poisoned": model, "manifest": manifest, "base": base, "retrained": retrained},
        "unlearn": {"methods": methods, "budgets": [EPOCHS], "budget_in": "epochs"},
    }
    for override in overrides or []:
        set_override(tree, override)
    recipe = build_recipe(completed(tree))
    assert isinstance(recipe, GivenRecipe)
    return recipe


def unlearn(
    model: str | Path,
    manifest: str | Path,
    method: str = "npo",
    *,
    out: str | Path,
    base: str | None = None,
    retrained: str | None = None,
    options: dict[str, Any] | None = None,
    overrides: list[str] | None = None,
) -> "tuple[UnlearnTrainer, Evaluation]":
    """Unlearn the poisoned rows of a manifest from a model, measure what came of it, and write a report.

    Args:
        model: folder or hub id of the poisoned model, a full one or an adapter.
        manifest: file that says which rows are poison (docs/manifest.md).
        method: one of METHODS; "auto": the first of some candidates that passes on one half of the test rows and
            canaries, measured on the other half.
        out: the run directory to write; the model will be in `unlearned/<method>`.
        base: folder or hub id of the model before fine-tuning, which some methods need.
        retrained: folder or hub id of the oracle.
        options: fields of the method's config, such as {"learning_rate": 1e-4}; of "auto" those of SearchSection,
            such as {"max_budget": 6}.
        overrides: what else a recipe with `given` may say, such as ["unlearn.budgets=[200]",
            "unlearn.budget_in=steps"]; by default the budget is three passes over the forget set.

    Returns:
        the trainer as training left it, and the evaluation of its model.

    Raises:
        InputError: bad input, or `out` holds this result already, so that no trainer is there.
        NothingPassedError: of "auto", no candidate passes; its text says what was tried and what is left to do.
    """
    methods = {} if method == AUTO else {method: options or None}
    recipe = given_recipe(
        str(model), str(manifest), methods, str(out), base=base, retrained=retrained, overrides=overrides
    )
    trainers: dict[str, Any] = {}
    if method == AUTO:
        found = auto(recipe, validated(SearchSection, options or {}, "options"), trainers=trainers)
        if found.passed is None:
            raise NothingPassedError(nothing_passes(found))
        method = found.passed.method
    else:
        run(recipe, jobs=1, trainers=trainers)
    if method not in trainers:
        raise InputError(f"{out}: holds this result already, and its trainer is gone; give another folder")
    return trainers[method], _evaluation(Path(recipe.output_dir) / "evaluation" / f"{method}.json")


def verdict_of(root: Path, method: str) -> "Verdict":
    """What the report of a run says of a method's model."""
    from llm_unlearn.reporting.run_results import read_results
    from llm_unlearn.reporting.verdicts import judge

    return judge(read_results(root), method)


def _evaluation(path: Path) -> "Evaluation":
    from llm_unlearn.metrics.results import Evaluation

    return Evaluation.from_json(read_json(path), str(path))
