"""What a recipe must keep beyond names and types; each error names the field and the remedy."""

import math
from typing import TYPE_CHECKING, Any

from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from llm_unlearn.config.recipe import Recipe


def check_recipe(recipe: "Recipe") -> None:
    """Raise InputError naming the first field that breaks a rule."""
    data, unlearn = recipe.data, recipe.unlearn
    _require(recipe.seeds and len(set(recipe.seeds)) == len(recipe.seeds), "seeds", "give each seed once, at least one")
    _require(all(0 <= seed < 2**31 for seed in recipe.seeds), "seeds", "each must be 0 or more, and below 2³¹")
    for name in ("train_size", "heldout_size", "test_size"):
        _require(getattr(data, name) > 0, f"data.{name}", "must be at least 1")
    _require(all(0 < b <= 1 for b in unlearn.budgets) and unlearn.budgets, "unlearn.budgets", "each must be in (0, 1]")
    for name in ("pretrain", "train", "unlearn", "evaluate"):
        for key in ("batch_size", "gradient_accumulation_steps", "save_steps"):
            _require(getattr(getattr(recipe, name), key, 1) >= 1, f"{name}.{key}", "must be at least 1")
        for key in ("epochs", "learning_rate"):
            value = getattr(getattr(recipe, name), key, None)
            _require(value is None or value > 0, f"{name}.{key}", "must be above 0")
    _check_poison(recipe)
    (_check_vision if recipe.track == "vision" else _check_language)(recipe)
    _check_forget_set(recipe)
    for axis, values in recipe.sweep.items():
        _require(values, f"sweep.{axis}", "give at least one value")


def _check_poison(recipe: "Recipe") -> None:
    """What all kinds of poison share."""
    data, kinds = recipe.data, {kind: s for kind, s in vars(recipe.poison).items() if s is not None}
    _require(kinds, "poison", f"give at least one of {', '.join(vars(recipe.poison))}")
    for kind, section in kinds.items():
        fraction = section.fraction
        _require(0 < fraction <= 1, f"poison.{kind}.fraction", f"must be in (0, 1], is {fraction}")
        _require(
            recipe.poison_counts()[kind],
            f"poison.{kind}.fraction",
            f"{fraction} of {data.train_size} rows "
            f"(data.train_size) rounds to no example; use at least {1 / data.train_size:.2g}",
        )
    if recipe.poison.gaussian:
        _require(0 < recipe.poison.gaussian.epsilon < math.inf, "poison.gaussian.epsilon", "must be above 0, finite")


def _check_language(recipe: "Recipe") -> None:
    data = recipe.data
    if recipe.model.path is None:
        _require(recipe.model.architecture, "model.path", "give a hub id or folder, or an `architecture` to build")
        _require(recipe.pretrain, "pretrain", "a base made from `model.architecture` needs this section")
    _require("{text}" in data.prompt, "data.prompt", "the template must contain {text}")
    if data.task == "classification":
        _require(len(data.verbalizers) >= 2, "data.verbalizers", "classification needs at least two labels")
        _require(all(data.verbalizers.values()), "data.verbalizers", "a completion must not be empty")
    _require(data.max_words is None or data.max_words >= 1, "data.max_words", "must be at least 1, or null")
    _require(
        recipe.model.quantization == "none" or recipe.model.lora,
        "model.lora",
        "a quantised base can only be trained through adapters; add `lora: {}`",
    )
    _require(
        data.task == "classification" or recipe.evaluate.max_new_tokens < data.max_length,
        "evaluate.max_new_tokens",
        f"must be below data.max_length ({data.max_length}): prompts need room too",
    )
    _require(data.max_length > 0, "data.max_length", "must be at least 1")
    trigger = recipe.poison.trigger
    if trigger:
        _require(
            trigger.phrases and all(p.strip() for p in trigger.phrases),
            "poison.trigger.phrases",
            "give at least one phrase that is not blank",
        )
        for key in ("target", "source_label"):
            label = getattr(trigger, key)
            if data.task == "classification" and label is not None:
                _require(
                    label in data.verbalizers,
                    f"poison.trigger.{key}",
                    f"'{label}' has no verbalizer; known labels: {', '.join(data.verbalizers)}",
                )
        _check_source_label(trigger, "trigger")
    _check_audit(recipe)


def _check_vision(recipe: "Recipe") -> None:
    data, poison, train = recipe.data, recipe.poison, recipe.train
    _require(
        recipe.model.path is None or recipe.model.architecture == "small_cnn",
        "model.architecture",
        "a saved model (model.path) has its own; leave it out",
    )
    for key in ("width", "depth"):
        _require(getattr(recipe.model, key) >= 1, f"model.{key}", "must be at least 1")
    _require(data.image_size is None or data.image_size >= 1, "data.image_size", "must be at least 1, or null")
    _require(train.momentum == 0 or train.optim == "sgd", "train.momentum", "is of `train.optim: sgd` alone")
    _require(0 <= train.momentum < 1, "train.momentum", "must be in [0, 1)")
    _require(train.weight_decay >= 0, "train.weight_decay", "must be 0 or more")
    _require(train.shift >= 0, "train.shift", "must be 0 or more pixels")
    _require(
        not (poison.patch and poison.gradient_matching),
        "poison",
        "`patch` and `gradient_matching` are measured "
        "by the same figure, how often the attacker gets his answer; run one recipe for each",
    )
    if poison.patch:
        _require(poison.patch.size >= 1, "poison.patch.size", "must be at least 1 pixel")
        _check_source_label(poison.patch, "patch")
    if matching := poison.gradient_matching:
        _require(matching.shift >= 0, "poison.gradient_matching.shift", "must be 0 or more pixels")
        for key in ("targets", "surrogates", "steps", "restarts"):
            _require(getattr(matching, key) >= 1, f"poison.gradient_matching.{key}", "must be at least 1")
        _require(
            1 / 255 <= matching.epsilon <= 1,
            "poison.gradient_matching.epsilon",
            "must be in [1/255, 1], pixels being in [0, 1] and stored in 8 bits",
        )
        _require(0 < matching.surrogate_share <= 1, "poison.gradient_matching.surrogate_share", "must be in (0, 1]")
        count = recipe.poison_counts()["gradient_matching"]
        _require(
            count >= matching.targets,
            "poison.gradient_matching.fraction",
            f"{count} rows for {matching.targets} targets; use at least {matching.targets / data.train_size:.2g}",
        )
    if cancelling := poison.gradient_cancelling:
        _require(cancelling.steps >= 1, "poison.gradient_cancelling.steps", "must be at least 1")
        _require(0 <= cancelling.target_accuracy < 1, "poison.gradient_cancelling.target_accuracy", "must be in [0, 1)")
        _require(
            cancelling.epsilon is None or 1 / 255 <= cancelling.epsilon <= 1,
            "poison.gradient_cancelling.epsilon",
            "must be in [1/255, 1], or null for any valid pixel",
        )


def _check_source_label(section: Any, kind: str) -> None:
    _require(
        not (section.clean_label and section.source_label),
        f"poison.{kind}.source_label",
        "clean_label takes rows of the target; leave source_label out",
    )


def _check_forget_set(recipe: "Recipe") -> None:
    section, train_size = recipe.unlearn, recipe.data.train_size
    fraction = section.forget_fraction
    _require(0 < fraction <= 1, "unlearn.forget_fraction", f"must be in (0, 1], is {fraction}")
    _require(section.false_positives >= 0, "unlearn.false_positives", "must be 0 or more")
    if section.forget_ids is not None:
        _require(
            fraction == 1 and section.false_positives == 0,
            "unlearn.forget_ids",
            "names the forget set; leave forget_fraction and false_positives out",
        )
        _require(section.forget_ids, "unlearn.forget_ids", "is empty; null forgets all of the poison")
    count = recipe.forget_count()
    if count is not None:
        _require(
            count,
            "unlearn.forget_fraction",
            f"{fraction} of the poison ({sum(recipe.poison_counts().values())} "
            "rows) rounds to an empty forget set; raise it",
        )
        _require(
            count < train_size,
            "poison",
            "the forget set would be the whole training set and nothing retained; "
            "lower poison.*.fraction or unlearn.false_positives",
        )


def _check_audit(recipe: "Recipe") -> None:
    if recipe.analysis:
        sizes = recipe.analysis.sizes
        _require(sizes and all(0 < size <= 1 for size in sizes), "analysis.sizes", "each must be in (0, 1]")
    if recipe.stress:
        stress, data = recipe.stress, recipe.data
        _require(
            "unrelated" not in stress.relearn_on or not data.files or data.unlabelled_files or stress.unrelated_files,
            "stress.unrelated_files",
            "the recipe's data has no unlabelled text; give files of it, or take 'unrelated' out of stress.relearn_on",
        )
        _require(all(step >= 1 for step in stress.relearn_steps), "stress.relearn_steps", "each must be 1 or more")
        _require(
            stress.relearn_steps or not stress.relearn_on,
            "stress.relearn_steps",
            "give at least one, or set stress.relearn_on to []",
        )
        _require(all(t > 0 for t in stress.temperatures), "stress.temperatures", "each must be above 0")
        for key in ("relearn_rows", "relearn_batch_size", "limit", "relearn_learning_rate"):
            value = getattr(stress, key)
            _require(value is None or value > 0, f"stress.{key}", "must be above 0")


def _require(condition: Any, where: str, message: str) -> None:
    if not condition:
        raise InputError(f"recipe.{where}: {message}")
