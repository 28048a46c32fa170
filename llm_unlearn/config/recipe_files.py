"""How a recipe file is read.

recipe = load_recipe("recipes/quickstart.yaml", ["train.epochs=2", "seeds=[0, 1]"])
"""

from pathlib import Path
from typing import Any

from llm_unlearn.config.given_sections import completed
from llm_unlearn.config.recipe import Recipe, build_recipe
from llm_unlearn.config.strict import read_yaml, set_override
from llm_unlearn.errors import InputError
from llm_unlearn.files import beside

WITHHELD = "[withheld]"  # in the place of a trigger's phrase in a published recipe


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file, apply `section.field=value` overrides, and check it without touching data or models.

    Raises:
        InputError: naming the file and the field.
    """
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise InputError(f"{path}: a recipe is a mapping of sections; this file holds {type(tree).__name__}")
    _find_files(tree, Path(path).parent)
    for override in overrides or []:
        set_override(tree, override)
    try:
        recipe = build_recipe(completed(tree))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if WITHHELD in getattr(getattr(recipe.poison, "trigger", None), "phrases", []):
        raise InputError(
            f"{path}: poison.trigger.phrases was withheld by who published it, and another phrase would "
            'measure nothing; give it: poison.trigger.phrases="[…]"'
        )
    return recipe


# fields that name files of data; a recipe's own are looked for beside it, those on the command line are not
FILES = (
    ("data", "files"),
    ("data", "test_files"),
    ("data", "unlabelled_files"),
    ("unlearn", "forget_ids"),
    ("stress", "unrelated_files"),
    ("given", "manifest"),
    ("benchmark", "folder"),
    ("benchmark", "reference"),
    ("evaluate.lm_eval", "folder"),
)
MODELS = (  # likewise, or hub ids
    ("given", "poisoned"),
    ("given", "base"),
    ("given", "retrained"),
    ("evaluate.fluency", "classifier"),
)


def fields_of(tree: dict[str, Any], section: str) -> dict[str, Any]:
    """The fields of a section that a dotted name leads to; {} where there is none."""
    fields: Any = tree
    for name in section.split("."):
        fields = fields.get(name) if isinstance(fields, dict) else None
    return fields if isinstance(fields, dict) else {}


def _find_files(tree: dict[str, Any], folder: Path) -> None:
    """Replace names of files by paths from the working directory (see `beside`); other values stay for the checks."""
    for section, field in (*FILES, *MODELS):
        fields = fields_of(tree, section)
        names = fields.get(field)
        if isinstance(names, str):
            fields[field] = beside(folder, names)
        elif isinstance(names, list):
            fields[field] = [beside(folder, name) if isinstance(name, str) else name for name in names]
