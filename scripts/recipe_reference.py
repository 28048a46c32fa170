"""Write docs/recipe.md: every field of a recipe and every option of a method, from the dataclasses that hold them.

    python scripts/recipe_reference.py            # write the page
    python scripts/recipe_reference.py --check    # exit 1 where it is not current; write nothing

What a field means is said at the field: of a section in the comment on its line or right above it, of a method's config
in the `Args:` of its docstring, where a comment at the field says why the default is what it is.
"""

import llm_unlearn.vision  # noqa: F401  before transformers, see vision/torchvision_guard.py

# isort: split
import argparse
import ast
import dataclasses
import inspect
import io
import re
import sys
import textwrap
import tokenize
import types
import typing
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from transformers import TrainingArguments

from llm_unlearn.config.recipe import TRACKS
from llm_unlearn.runs.method_configs import RESERVED
from llm_unlearn.trainers import METHODS
from llm_unlearn.trainers.support.retain_term import RetainTermConfig
from llm_unlearn.trainers.unlearn_config import UnlearnConfig

PAGE = Path(__file__).parents[1] / "docs" / "recipe.md"
TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}
NOTE = "<!-- Written by scripts/recipe_reference.py from the dataclasses; change what they say, not this page. -->"
OPENING = """One YAML is one experiment; [running.md](running.md) says how one is run. A field that is left out has its
    default; `required` has none. An unknown field, a wrong type or a key that is given twice is refused, by name. A
    section whose default is null is left out unless it is named; `{}` takes all its defaults."""
IMAGES = """`track: vision` takes these sections in the place of those above. `unlearn`, `sweep`, `seeds`, `name` and
    `output_dir` are the same; there is no `pretrain`, `analysis` or `stress`. [images.md](images.md) shows one."""
OPTIONS = """`unlearn.methods` maps a method to options of its config: any field in the tables below, or of
    transformers' TrainingArguments, but for those that a run sets itself: {}."""
METHOD = """What a method adds, or has another default for. *Rate* is its learning rate where a recipe gives none, as a
    share of the training's (`ssd` takes no steps); [recipes](../recipes/README.md#defaults) has the tuning."""


def comments(cls: type) -> dict[str, str]:
    """Field → the comment at it: on its own lines, or alone on the lines right above."""
    source = textwrap.dedent(inspect.getsource(cls))
    lines, found = source.splitlines(), {}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    said = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign):
            first = node.lineno
            while lines[first - 2].lstrip().startswith("#"):
                first -= 1
            found[node.target.id] = " ".join(said[i] for i in range(first, node.end_lineno + 1) if i in said)
    return found


def arguments(cls: type) -> dict[str, str]:
    """Field → its text in the `Args:` of the class's docstring, where `a, b: text` is of both."""
    name = "(?:" + "|".join(field.name for field in dataclasses.fields(cls)) + ")"
    text = " ".join((cls.__doc__ or "").partition("Args:")[2].split())
    _, *parts = re.split(rf"(?:^|(?<=[.;] ))({name}(?:, {name})*): ", text)
    return {
        field: said.strip(" .")
        for names, said in zip(parts[::2], parts[1::2], strict=True)
        for field in names.split(", ")
    }


def prose(cls: type) -> str:
    """The docstring of a class, wrapped; paragraphs are kept."""
    return "\n\n".join(map(filled, inspect.cleandoc(cls.__doc__ or "").split("\n\n")))


def section_of(hint: Any) -> type | None:
    """The section that a field of this type holds, or None."""
    return next((part for part in (hint, *get_args(hint)) if dataclasses.is_dataclass(part)), None)


def sections(cls: type, path: str = "") -> dict[str, type]:
    """Dotted path → section, of a class and all below it."""
    found = {path: cls}
    for name, hint in typing.get_type_hints(cls).items():
        if section := section_of(hint):
            found |= sections(section, f"{path}.{name}".strip("."))
    return found


def meaning(cls: type, name: str) -> str:
    """What a field of a section means: its comment, or the beginning of the docstring of the section that it holds."""
    said = {
        k: text
        for base in reversed(cls.__mro__)
        if dataclasses.is_dataclass(base)
        for k, text in comments(base).items()
        if text
    }
    section = section_of(typing.get_type_hints(cls)[name])
    return said.get(name) or (re.split(r" \(|[.:](?:\s|$)", prose(section))[0] if section else "")


def option_meaning(cls: type, name: str) -> str:
    """What an option of a method means, from the nearest class that says so, and why its default is what it is."""
    bases = [base for base in cls.__mro__ if issubclass(base, UnlearnConfig) and name in arguments(base)]
    said = arguments(bases[0])[name] if bases else "as in TrainingArguments" * hasattr(TrainingArguments, name)
    if bases and bases[0] is RetainTermConfig is not cls:
        said = "as above"
    parts = (said, comments(cls).get(name), "a run sets it" if name in RESERVED else "")
    return "; ".join(part for part in parts if part)


def filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 125, break_long_words=False, break_on_hyphens=False)


def type_text(hint: Any) -> str:
    """A type in words, values as one writes them."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin in (Union, types.UnionType):
        return " or ".join(map(type_text, inside))
    if origin in (list, dict):
        name, joint = {list: ("list", " of "), dict: ("mapping", " to ")}[origin]
        return name if inside[-1] is Any else name + joint + type_text(inside[-1])
    return "section" if dataclasses.is_dataclass(hint) else TYPES[hint]


def show(value: Any) -> str:
    """A default as YAML, on one line."""
    if value is dataclasses.MISSING or isinstance(value, float):
        return "required" if value is dataclasses.MISSING else f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(map(show, value))}]"
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def row(cls: type, field: dataclasses.Field, what: str) -> list[str]:
    """Name, type, default and meaning of a field."""
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    default = "its defaults" if dataclasses.is_dataclass(value) else f"`{show(value)}`"
    return [f"`{field.name}`", type_text(typing.get_type_hints(cls)[field.name]), default, what]


def table(names: list[str], rows: list[list[str]]) -> str:
    head = [*names, "type", "default", "meaning"]
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in line] for line in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def track(name: str, title: str, known: dict[str, type]) -> list[str]:
    """Every section of a track, but for those that are known to be the same."""
    parts = []
    for path, cls in sections(TRACKS[name]).items():
        if known.get(path) is not cls:
            rows = [
                row(cls, field, meaning(cls, field.name))
                for field in dataclasses.fields(cls)
                if typing.get_type_hints(cls)[field.name] is not type(None)
            ]  # else the track lacks the section
            parts += [f"### {title}`{path or 'recipe'}`", prose(cls), table(["field"], rows)]
    return parts


def options(cls: type, without: set[type]) -> list[list[str]]:
    """The options that a config, or one that it derives from, declares; those of `without` left out."""
    names = {name for base in set(cls.__mro__) - without for name in vars(base).get("__annotations__", {})}
    return [row(cls, f, option_meaning(cls, f.name)) for f in dataclasses.fields(cls) if f.name in names]


def methods() -> list[str]:
    shared = set(UnlearnConfig.__mro__)
    with_term = ", ".join(f"`{name}`" for name, (cls, _) in METHODS.items() if issubclass(cls, RetainTermConfig))
    rows = []
    for name, (cls, _) in METHODS.items():
        found = options(cls, shared | {RetainTermConfig}) or [["–", "–", "–", "no option of its own"]]
        rows += [[f"`{name}`", f"{cls.learning_rate_ratio:g}", *option] for option in found]
    return [
        "## Options of the methods",
        filled(OPTIONS.format(", ".join(f"`{name}`" for name in sorted(RESERVED)))),
        "### Of every method",
        table(["option"], options(UnlearnConfig, set(TrainingArguments.__mro__))),
        "### Of the methods with a retain term",
        f"{with_term}:",
        table(["option"], options(RetainTermConfig, shared)),
        "### Of one method",
        filled(METHOD),
        table(["method", "rate", "option"], rows),
    ]


def page() -> str:
    language = track("language", "", {})
    images = track("vision", "images: ", sections(TRACKS["language"]))
    return (
        "\n\n".join(
            [
                "# Recipe reference",
                NOTE,
                filled(OPENING),
                "## Language models",
                *language,
                "## Images",
                filled(IMAGES),
                *images,
                *methods(),
            ]
        )
        + "\n"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write docs/recipe.md from the dataclasses of recipes and methods.")
    parser.add_argument("--check", action="store_true", help="exit 1 where the page is not current; write nothing")
    if not parser.parse_args(argv).check:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        print(f"{PAGE.name} is not current: run python scripts/recipe_reference.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
