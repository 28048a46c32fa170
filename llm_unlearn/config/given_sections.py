"""The sections of a recipe that starts from a model that is poisoned already, and what its manifest says for others."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from llm_unlearn.config.fields import BatchSize, Count, Distinct, Epochs, LearningRate, NotBlank, Section, Seed, require
from llm_unlearn.config.manifest import Manifest, read_tree
from llm_unlearn.config.sections import UnlearnSection
from llm_unlearn.config.validate import validated
from llm_unlearn.errors import InputError


class GivenSection(Section):
    """The models that are there: folders or hub ids, each a full model or an adapter."""

    poisoned: NotBlank
    """the model to be unlearned; of an adapter the base is the one that it names, or `base`"""
    manifest: NotBlank
    """file that says which rows are poison, as `llm-unlearn audit` takes it (docs/manifest.md)"""
    base: NotBlank | None = None
    """the model before fine-tuning: for scale, for the attack `reference`, and where `rewind` begins"""
    retrained: NotBlank | None = None
    """the oracle; without it each model is judged by itself, as `audit` does"""
    half: Literal["tuning", "verdict"] | None = None
    """set by a search: the half of the test rows and of the deciding canaries that is measured. The methods get the
    noise of neither half, and a budget in epochs is the FLOPs of as many passes; null: all"""
    half_seed: Seed = 0
    """of the draw of the halves"""


class GivenTrainSection(Section):
    """What is known of the training that made the poisoned model. Nothing is trained by it but the steps of
    `evaluate.clean_steps`.
    """

    rows: Count | None = None
    """rows of that training; null: those of the manifest's `train`"""
    epochs: Epochs | None = None
    """passes over them: with `rows` what the budgets are shares of; null: not known"""
    learning_rate: LearningRate | None = None
    """at its highest; methods take their tuned share of it, and clean steps take it; null: not known, and a
    method without a `learning_rate` of its own takes 1e-5, on an adapter 1e-4"""
    batch_size: BatchSize = 16
    """rows of a clean step, over all processes"""
    gradient_accumulation_steps: BatchSize = 1
    """batches of a clean step"""
    optim: str = "adamw_torch_fused"
    """of the methods, by transformers' name"""
    bf16: bool = False
    """compute in bfloat16 (autocast) while unlearning"""


class GivenUnlearnSection(UnlearnSection):
    """Which methods run on the given model, and for how long."""

    budgets: Distinct[Annotated[float, Field(gt=0, le=1e30)]] = Field(default=[0.1], min_length=1)
    """how much each method may spend, in units of `budget_in`; every method runs at each"""
    budget_in: Literal["training", "flops", "tokens", "steps", "epochs", "minutes"] = "training"
    """training: shares of the poisoned training's FLOPs, whose size must be known (`train.epochs`); else FLOPs, tokens,
    optimizer steps, passes over the forget set, or minutes at the speed that is measured before the first step"""

    def check_rules(self) -> None:
        super().check_rules()
        for name, default in (("forget_fraction", 1.0), ("false_positives", 0.0), ("forget_ids", None)):
            require(getattr(self, name) == default, name, "the manifest's `poison` names the forget set; leave it out")
        if self.budget_in == "training":
            require(max(self.budgets) <= 1, "budgets", "shares of the training are at most 1; or say `budget_in`")
        if self.budget_in in ("tokens", "steps"):
            whole = all(budget == int(budget) for budget in self.budgets)
            require(whole, "budgets", f"{self.budget_in} are counted in whole numbers")


# what a recipe of texts has in these sections and a manifest says
_IN_EVALUATE = {"max_new_tokens": "max_new_tokens", "placebo_phrases": "trigger.placebos"}


def completed(tree: dict[str, Any]) -> dict[str, Any]:
    """A recipe with what its `given.manifest` says of the data, so that all else finds it where a recipe has it.

    Args:
        tree: the recipe's sections; paths as they stand from the working directory.

    Raises:
        InputError: the manifest cannot be read, or the recipe says otherwise.
    """
    given = tree.get("given")
    if not isinstance(given, dict) or not isinstance(path := given.get("manifest"), str) or not path.strip():
        return tree  # the recipe's own checks say what is missing
    manifest_tree = read_tree(Path(path).expanduser())
    if "manifest_sha256" in manifest_tree:
        raise InputError(
            f"recipe.given.manifest: {path} is the manifest of a run, whose models have a recipe already; write one of "
            "your own (docs/manifest.md), whose `poison` and `trigger` say the same"
        )
    manifest = validated(Manifest, manifest_tree, path)
    data = manifest.data.model_dump()
    if tree.get("data") not in (None, data):
        raise InputError(f"recipe.data: {path} says it, and now otherwise; leave the section out")
    evaluate = tree.get("evaluate") or {}
    if not isinstance(evaluate, dict):
        return tree
    said = {
        "max_new_tokens": manifest.max_new_tokens,
        "placebo_phrases": manifest.trigger and manifest.trigger.placebos,
    }
    for name, value in said.items():
        if evaluate.get(name) not in (None, value):
            raise InputError(f"recipe.evaluate.{name}: {path} says it ({_IN_EVALUATE[name]}); leave it out")
    train = tree.get("train")
    rate_known = isinstance(train, dict) and train.get("learning_rate") is not None
    none = {} if rate_known else {"clean_steps": 0}  # they are taken at the training's rate
    return {**tree, "data": data, "evaluate": {**none, **evaluate, **said}}
