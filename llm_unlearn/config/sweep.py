"""`sweep:` in a recipe: one field at a time takes other values, everything else stays; each value is a run of its own.

    sweep:
      unlearn.forget_fraction: [1.0, 0.5, 0.1]
      poison.trigger.fraction, poison.gaussian.fraction: [0.015, 0.02, 0.025]   # both take the value

The recipe's own values are the centre, which lies in the run directory as ever; the other points are whole run
directories in `sweep/<field>/<value>/`, at the largest budget. Budgets and seeds need no axis: they are lists already.
"""

from dataclasses import dataclass
from typing import Any

from llm_unlearn.config.fields import name_of
from llm_unlearn.config.recipe import Recipe, build_recipe
from llm_unlearn.config.validate import shown
from llm_unlearn.errors import InputError

LONGEST_NAME = 255  # bytes, of a folder


@dataclass(frozen=True)
class Point:
    """One value of one axis, and the recipe that it makes."""

    axis: str
    value: Any
    recipe: Recipe


def points(recipe: Recipe) -> list[Point]:
    """Every point of a recipe's sweep but the centre, checked like any recipe.

    Analysis, stress, the smaller budgets, the membership attacks but for the loss and the tasks of
    lm-evaluation-harness are done at the centre only.

    Raises:
        InputError: naming the axis and the value; an unknown field, or one that a point may not change.
    """
    found = []
    _check_names(recipe.sweep)
    for axis, values in recipe.sweep.items():
        fields = [name.strip() for name in axis.split(",")]
        for value in values:
            tree = recipe.model_dump()
            same = [_set(tree, name, value, axis) for name in fields]
            if all(same):
                continue
            tree |= {
                "sweep": {},
                "analysis": None,
                "stress": None,
                "output_dir": f"{recipe.output_dir}/{point_folder(axis, value)}",
            }
            tree["unlearn"]["budgets"] = [max(recipe.unlearn.budgets)]
            tree["evaluate"]["membership"] = ["loss"]
            tree["evaluate"].pop("lm_eval", None)
            if tree["pretrain"]:  # one base for all
                tree["pretrain"]["cache_dir"] = tree["pretrain"]["cache_dir"] or recipe.output_dir
            try:
                found.append(Point(axis, value, build_recipe(tree)))
            except InputError as error:
                raise InputError(f"recipe.sweep.{axis}: {value}: {error}") from None
    return found


def _check_names(sweep: dict[str, list[Any]]) -> None:
    """Raise InputError where a value of an axis cannot be a folder's name, or two points would share a folder."""
    taken: dict[str, Any] = {}
    for axis, values in sweep.items():
        where = f"recipe.sweep.{axis}"
        for value in values:
            if isinstance(value, (dict, list)) or value is None:
                raise InputError(f"{where}: each value is a number, a text or true/false, found {value!r}")
            name = point_folder(axis, value).rpartition("/")[2]
            if name.strip(".") == "" or len(name.encode("utf-8", "replace")) > LONGEST_NAME or "\0" in name:
                raise InputError(f"{where}: {shown(value)} cannot be the name of a folder; leave it out")
            key = point_folder(axis, name_of(value))
            if key in taken:
                raise InputError(f"{where}: {taken[key]!r} and {value!r} would both be the point {key}; keep one")
            taken[key] = value


def point_folder(axis: str, value: Any) -> str:
    """The folder of a point, relative to the run directory; fields of an axis are joined by a plus sign."""
    fields = "+".join(name.strip() for name in axis.split(","))
    return f"sweep/{fields}/{str(value).replace('/', '_')}"


def _set(tree: dict, name: str, value: Any, axis: str) -> bool:
    """Set a dotted field; returns whether it had that value already."""
    if name.split(".", maxsplit=1)[0] in ("name", "output_dir", "seeds", "sweep", "analysis", "stress", "pretrain"):
        raise InputError(f"recipe.sweep.{axis}: '{name}' cannot be swept; seeds and budgets are lists already")
    *parents, last = name.split(".")
    node: Any = tree
    for depth, key in enumerate(parents):
        if parents[:depth] == ["unlearn", "methods"] and node.get(key, 0) is None:
            node[key] = {}  # a method without options
        node = node.get(key) if isinstance(node, dict) else None
    if not isinstance(node, dict) or (last not in node and parents[:2] != ["unlearn", "methods"]):
        raise InputError(f"recipe.sweep.{axis}: the recipe has no field '{name}'")
    same = node.get(last) == value
    node[last] = value
    return same
