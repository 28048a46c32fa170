"""How many supervised positions a completion has."""

from typing import Any

from llm_unlearn.config.recipe import Recipe
from llm_unlearn.errors import InputError


def completion_positions(recipe: Recipe) -> int:
    """Tokens of the longest verbaliser and EOS, by the recipe's tokenizer; where that is not at hand, as many as a
    verbaliser has bytes, which no tokenizer exceeds. Completions that stand in the data may fill max_length."""
    most = max(1, recipe.data.max_length - 1)
    if recipe.data.task != "classification":
        return most
    tokenizer = _tokenizer(recipe)
    count = (
        (lambda text: len(text.encode()))
        if tokenizer is None
        else (lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    )
    return min(most, 1 + max(map(count, recipe.data.verbalizers.values())))


def _tokenizer(recipe: Recipe) -> Any:
    from llm_unlearn.models.load import load_tokenizer
    from llm_unlearn.training.pretraining import base_folder

    base = recipe.model.path or base_folder(recipe)
    if recipe.model.path is None and not base.is_dir():
        return None
    try:
        return load_tokenizer(str(base), recipe.model)
    except InputError:  # the config was there, so this is said where the tokenizer is needed
        return None
