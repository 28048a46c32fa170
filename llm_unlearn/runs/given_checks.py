"""What a recipe with the section `given` asks of the models that are there, before anything runs."""

from typing import TYPE_CHECKING, Any

from llm_unlearn.config.model_sections import LoraSection, ModelSection
from llm_unlearn.errors import InputError
from llm_unlearn.models.adapters import adapter_config

if TYPE_CHECKING:
    from llm_unlearn.config.recipe import Recipe
    from llm_unlearn.runs.given_run import GivenRun

# what a method needs that the manifest of a user does not say
NOT_SAID = {"osft": "trains on the right answers to the poisoned prompts, which no manifest says; take idk_sft"}


def check_given(run: "GivenRun") -> None:
    """Refuse models that are not there, methods that need what is not given, and budgets that cannot be reckoned.

    Raises:
        InputError: naming the field, and the remedy.
    """
    from llm_unlearn.runs.given_stages import recorded_flops
    from llm_unlearn.trainers import METHODS

    recipe, given = run.recipe, run.recipe.given
    is_adapter, _ = run.is_adapter, run.base_lacks  # both look the models up
    if recipe.model.quantization != "none" and not is_adapter:
        raise InputError(
            f"recipe.model.quantization: {recipe.model.quantization}, but {given.poisoned} is a full model, whose "
            "quantised weights cannot be trained; leave it out"
        )
    for method in recipe.unlearn.methods:
        where = f"recipe.unlearn.methods.{method}"
        if method in NOT_SAID:
            raise InputError(f"{where}: {NOT_SAID[method]}")
        if METHODS[method][1].starts_clean and run.base is None:
            raise InputError(
                f"{where}: begins at the model before fine-tuning, which is not given; name it (given.base), or take "
                "the method out"
            )
    in_shares = bool(recipe.unlearn.methods) and recipe.unlearn.budget_in == "training"
    if in_shares and not recipe.train.epochs and recorded_flops(run) is None:
        raise InputError(
            "recipe.unlearn.budgets: are shares of the poisoned training's compute, which is not known; say how long "
            "it was (train.epochs, and train.rows where it had other rows than the manifest's), or count in other "
            "units (unlearn.budget_in: flops, tokens, steps, epochs or minutes)"
        )


def as_trained(run: "GivenRun") -> "Recipe":
    """A recipe that trains a model of the poisoned one's shape by the same methods: for estimates of memory."""
    from llm_unlearn.config.recipe import build_recipe

    recipe = run.recipe
    unlearn = recipe.unlearn.model_dump(exclude={"budget_in"}) | {"budgets": [1.0]}
    train = recipe.train.model_dump(include={"batch_size", "gradient_accumulation_steps", "optim", "bf16"})
    same = {name: getattr(recipe, name).model_dump() for name in ("data", "evaluate")}
    model = stand_in(run)
    if model.quantization != "none" and model.lora is None:  # layers that are named by a pattern: peft's choice
        model = model.changed(lora=LoraSection())
    poison = {"gaussian": {"fraction": 0.1, "epsilon": 1.0}}
    named = {"name": recipe.name, "output_dir": recipe.output_dir, "model": model.model_dump()}
    return build_recipe({**named, **same, "poison": poison, "train": train, "unlearn": unlearn})


def stand_in(run: "GivenRun") -> ModelSection:
    """A `model` section that makes a model of the poisoned one's shape, with an adapter where its layers are listed."""
    found = run.checkpoints["poisoned"]
    section = run.recipe.model.changed(path=found.base or found.source)
    adapter: dict[str, Any] = (adapter_config(found.source) or {}) if found.base else {}
    targets = adapter.get("target_modules")
    if adapter.get("peft_type") != "LORA" or not isinstance(targets, list) or not targets:
        return section
    lora = LoraSection(
        r=adapter.get("r", 16), alpha=max(1, round(adapter.get("lora_alpha", 32))), target_modules=targets
    )
    return section.changed(lora=lora)
