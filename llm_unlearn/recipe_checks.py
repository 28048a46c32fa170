"""What a recipe must keep beyond names and types; each error names the field and the remedy."""

from typing import TYPE_CHECKING, Any

from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from llm_unlearn.recipe import Recipe


def check_recipe(recipe: "Recipe") -> None:
    data, unlearn = recipe.data, recipe.unlearn
    _require(recipe.seeds and len(set(recipe.seeds)) == len(recipe.seeds), "seeds", "give each seed once, at least one")
    _require(all(seed >= 0 for seed in recipe.seeds), "seeds", "each must be 0 or more")
    if recipe.model.path is None:
        _require(recipe.model.architecture, "model.path", "give a hub id or folder, or an `architecture` to build")
        _require(recipe.pretrain, "pretrain", "a base made from `model.architecture` needs this section")
    _require("{text}" in data.prompt, "data.prompt", "the template must contain {text}")
    if data.task == "classification":
        _require(len(data.verbalizers) >= 2, "data.verbalizers", "classification needs at least two labels")
        _require(all(data.verbalizers.values()), "data.verbalizers", "a completion must not be empty")
    _require(data.max_words is None or data.max_words >= 1, "data.max_words", "must be at least 1, or null")
    _require(recipe.model.quantization == "none" or recipe.model.lora, "model.lora",
             "a quantised base can only be trained through adapters; add `lora: {}`")
    _require(data.task == "classification" or recipe.evaluate.max_new_tokens < data.max_length,
             "evaluate.max_new_tokens", f"must be below data.max_length ({data.max_length}): prompts need room too")
    for name in ("train_size", "heldout_size", "test_size", "max_length"):
        _require(getattr(data, name) > 0, f"data.{name}", "must be at least 1")
    _require(all(0 < b <= 1 for b in unlearn.budgets) and unlearn.budgets, "unlearn.budgets", "each must be in (0, 1]")
    for name in ("pretrain", "train", "unlearn", "evaluate"):
        for key in ("batch_size", "gradient_accumulation_steps", "save_steps"):
            _require(getattr(getattr(recipe, name), key, 1) >= 1, f"{name}.{key}", "must be at least 1")
        for key in ("epochs", "learning_rate"):
            value = getattr(getattr(recipe, name), key, None)
            _require(value is None or value > 0, f"{name}.{key}", "must be above 0")
    _check_poison(recipe)
    _check_forget_set(recipe)
    _check_audit(recipe)


def _check_poison(recipe: "Recipe") -> None:
    data, poison = recipe.data, recipe.poison
    _require(poison.trigger or poison.gaussian, "poison", "give `trigger`, `gaussian` or both")
    for kind in ("trigger", "gaussian"):
        section = getattr(poison, kind)
        if section is not None:
            _require(0 < section.fraction <= 1, f"poison.{kind}.fraction", f"must be in (0, 1], is {section.fraction}")
    if poison.gaussian:
        _require(poison.gaussian.epsilon > 0, "poison.gaussian.epsilon", "must be above 0")
    if poison.trigger:
        _require(poison.trigger.phrases and all(p.strip() for p in poison.trigger.phrases),
                 "poison.trigger.phrases", "give at least one phrase that is not blank")
        for key in ("target", "source_label"):
            label = getattr(poison.trigger, key)
            if data.task == "classification" and label is not None:
                _require(label in data.verbalizers, f"poison.trigger.{key}",
                         f"'{label}' has no verbalizer; known labels: {', '.join(data.verbalizers)}")
        _require(not (poison.trigger.clean_label and poison.trigger.source_label), "poison.trigger.source_label",
                 "clean_label takes rows of the target; leave source_label out")
    for kind, count in recipe.poison_counts().items():
        given = getattr(poison, kind).fraction
        _require(count, f"poison.{kind}.fraction", f"{given} of {data.train_size} rows (data.train_size) rounds to no "
                 f"example; use at least {1 / data.train_size:.2g}")


def _check_forget_set(recipe: "Recipe") -> None:
    section, train_size = recipe.unlearn, recipe.data.train_size
    fraction = section.forget_fraction
    _require(0 < fraction <= 1, "unlearn.forget_fraction", f"must be in (0, 1], is {fraction}")
    _require(section.false_positives >= 0, "unlearn.false_positives", "must be 0 or more")
    if section.forget_ids is not None:
        _require(fraction == 1 and section.false_positives == 0, "unlearn.forget_ids",
                 "names the forget set; leave forget_fraction and false_positives out")
        _require(section.forget_ids, "unlearn.forget_ids", "is empty; null forgets all of the poison")
    count = recipe.forget_count()
    if count is not None:
        _require(count, "unlearn.forget_fraction", f"{fraction} of the poison ({sum(recipe.poison_counts().values())} "
                 "rows) rounds to an empty forget set; raise it")
        _require(count < train_size, "poison", "the forget set would be the whole training set and nothing retained; "
                 "lower poison.*.fraction or unlearn.false_positives")


def _check_audit(recipe: "Recipe") -> None:
    if recipe.analysis:
        sizes = recipe.analysis.sizes
        _require(sizes and all(0 < size <= 1 for size in sizes), "analysis.sizes", "each must be in (0, 1]")
    if recipe.stress:
        stress, data = recipe.stress, recipe.data
        _require("unrelated" not in stress.relearn_on or not data.files or data.unlabelled_files
                 or stress.unrelated_files, "stress.unrelated_files", "the recipe's data has no unlabelled text; give "
                 "files of it, or take 'unrelated' out of stress.relearn_on")
        _require(all(step >= 1 for step in stress.relearn_steps), "stress.relearn_steps", "each must be 1 or more")
        _require(stress.relearn_steps or not stress.relearn_on, "stress.relearn_steps", "give at least one, or set "
                 "stress.relearn_on to []")
        _require(all(t > 0 for t in stress.temperatures), "stress.temperatures", "each must be above 0")
        for key in ("relearn_rows", "relearn_batch_size", "limit", "relearn_learning_rate"):
            value = getattr(stress, key)
            _require(value is None or value > 0, f"stress.{key}", "must be above 0")
    for axis, values in recipe.sweep.items():
        _require(values, f"sweep.{axis}", "give at least one value")


def _require(condition: Any, where: str, message: str) -> None:
    if not condition:
        raise InputError(f"recipe.{where}: {message}")
