"""Write docs/recipe.md, docs/manifest.md and the recipe's JSON Schema from the models that check recipes.

    python scripts/recipe_reference.py            # write them
    python scripts/recipe_reference.py --check    # exit 1 where one is not current; write nothing

A field's meaning is the text below it in its section. An option's is in the `Args:` of its config's docstring, and a
comment at the option says why its default is what it is.
"""

import llm_unlearn.vision  # noqa: F401  before transformers, see vision/torchvision_guard.py

# isort: split
import argparse
import dataclasses
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic.json_schema import GenerateJsonSchema
from transformers import TrainingArguments

from llm_unlearn.config.manifest import Manifest
from llm_unlearn.config.options import options_model
from llm_unlearn.config.recipe import RECIPES
from llm_unlearn.config.validate import Schema, choices, resolved, words
from llm_unlearn.runs.method_configs import RESERVED
from llm_unlearn.trainers import METHODS
from llm_unlearn.trainers.support.retain_term import RetainTermConfig
from llm_unlearn.trainers.unlearn_config import UnlearnConfig

ROOT = Path(__file__).parents[1]
NOTE = "<!-- Written by scripts/recipe_reference.py from the models; change what they say, not this page. -->"
OPENING = """One YAML is one experiment; [running.md](running.md) says how one is run. A field that is left out has its
    default; `required` has none. An unknown field, a wrong type, a number out of bounds or a key that is given twice is
    refused, by name. A section whose default is null is left out unless it is named; `{}` takes all its defaults."""
EDITOR = """Editors that know YAML's language server complete and check a recipe whose first line names the schema that
    the package ships, `llm_unlearn/config/recipe.schema.json`. From a folder in `recipes/`:"""
EDITOR_LINE = "```yaml\n# yaml-language-server: $schema=../../llm_unlearn/config/recipe.schema.json\nname: mine\n```"
IMAGES = """`track: vision` takes these sections in the place of those above. `unlearn`, `sweep`, `seeds`, `name` and
    `output_dir` are the same; there is no `benchmark`, `pretrain`, `analysis` or `stress`. [images.md](images.md)
    shows one."""
GIVEN = """A recipe with the section `given` takes these in the place of those above: there is no `poison`, `pretrain`,
    `analysis`, `stress`, `benchmark` or `sweep`, and `data` is what the manifest says. [your-model.md](your-model.md)
    shows one."""
OPTIONS = """`unlearn.methods` maps a method to options of its config: any field in the tables below, or of
    transformers' TrainingArguments, but for those that a run sets itself: {}."""
METHOD = """What a method adds, or has another default for. *Rate* is its learning rate where a recipe gives none, as a
    share of the training's (`ssd` takes no steps); [recipes](../recipes/README.md#defaults) has the tuning."""
MANIFEST = """What you say of your own poisoned data, in YAML or JSON;
    [auditing.md](auditing.md#poison-that-is-already-there) shows one. The checks are those of a
    [recipe](recipe.md): unknown fields, wrong types and numbers out of bounds are refused, by name."""


class Untitled(GenerateJsonSchema):
    """Without a title at every field, which would repeat its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def recipe_schema() -> Schema:
    """The JSON Schema of a recipe of any track, with the options that the methods themselves have."""
    schema = RECIPES.json_schema(schema_generator=Untitled)
    methods: Schema = {}
    shared = option_schema(UnlearnConfig, set(TrainingArguments.__mro__))
    schema["$defs"] |= {"UnlearnConfig": {"properties": shared["properties"]}}
    for name, (config, _) in METHODS.items():
        own = option_schema(config, set(UnlearnConfig.__mro__)).get("properties", {})
        # any field of TrainingArguments may be given too; the recipe's own check knows them
        options = {"allOf": [{"$ref": "#/$defs/UnlearnConfig"}], "properties": own, "type": "object"}
        methods[name] = {"anyOf": [options, {"type": "null"}]}
    for section in ("UnlearnSection", "GivenUnlearnSection"):
        node = schema["$defs"][section]["properties"]["methods"]
        node |= {"properties": methods, "additionalProperties": False}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A recipe of llm_unlearn", **schema}


def option_schema(config: type, without: set[type]) -> Schema:
    """The options that a config, or one that it derives from, declares; those of `without` left out."""
    names = {name for base in set(config.__mro__) - without for name in vars(base).get("__annotations__", {})}
    others = {field.name for field in dataclasses.fields(config)} - names
    schema = options_model(config, others).model_json_schema(schema_generator=Untitled)
    for name, node in schema.get("properties", {}).items():
        node["description"] = option_meaning(config, name)
    return schema


def arguments(cls: type) -> dict[str, str]:
    """Field → its text in the `Args:` of the class's docstring, where `a, b: text` is of both."""
    name = "(?:" + "|".join(field.name for field in dataclasses.fields(cls)) + ")"
    text = " ".join((cls.__doc__ or "").partition("Args:")[2].split())
    _, *parts = re.split(rf"(?:^|(?<=[.;] ))({name}(?:, {name})*): ", text)
    return {
        field: meaning.strip(" .")
        for names, meaning in zip(parts[::2], parts[1::2], strict=True)
        for field in names.split(", ")
    }


def option_meaning(cls: type, name: str) -> str:
    """What an option of a method means, from the nearest class that says so, and why its default is what it is."""
    bases = [base for base in cls.__mro__ if issubclass(base, UnlearnConfig) and name in arguments(base)]
    meaning = arguments(bases[0])[name] if bases else "as in TrainingArguments" * hasattr(TrainingArguments, name)
    if bases and bases[0] is RetainTermConfig is not cls:
        meaning = "as above"
    reasons = dict(re.findall(r"^    (\w+): [^#\n]*  # (.+)$", inspect.getsource(cls), flags=re.M))
    parts = (meaning, reasons.get(name), "a run sets it" if name in RESERVED else "")
    return "; ".join(part for part in parts if part)


def filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 125, break_long_words=False, break_on_hyphens=False)


def prose(node: Schema) -> str:
    """The description of a section, wrapped; paragraphs are kept."""
    return "\n\n".join(map(filled, node["description"].split("\n\n")))


def section_of(node: Schema, schema: Schema) -> Schema | None:
    """The section that a field holds, or None."""
    return next((each for each in choices(resolved(node, schema), schema) if "properties" in each), None)


def sections(node: Schema, schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """(dotted path, section) of a section and all below it."""
    yield path, node
    for name, field in node["properties"].items():
        if section := section_of(field, schema):
            yield from sections(section, schema, f"{path}.{name}".strip("."))


def show(value: Any) -> str:
    """A default as YAML, on one line."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(map(show, value))}]"
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def row(name: str, node: Schema, section: Schema, schema: Schema) -> list[str]:
    """Name, type, default and meaning of a field; a section's meaning is the beginning of its description."""
    inner = section_of(node, schema)
    default = f"`{show(node['default'])}`" if "default" in node else "its defaults"
    if name in section.get("required", ()):
        default = "`required`"
    first = re.split(r" \(|[.:](?:\s|$)", " ".join(inner["description"].split()))[0] if inner else ""
    text = words(node, schema).removeprefix("a ").replace("section with fields", "section")
    return [f"`{name}`", text, default, " ".join(node.get("description", "").split()) or first]


def table(names: list[str], rows: list[list[str]]) -> str:
    head = [*names, "type", "default", "meaning"]
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in line] for line in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(root: Schema, schema: Schema, title: str, known: dict[str, Schema]) -> list[str]:
    """Every section, but for those that are known to be the same."""
    parts = []
    for path, node in sections(root, schema):
        if known.get(path) is not node:
            fields = {name: field for name, field in node["properties"].items() if field.get("type") != "null"}
            rows = [row(name, field, node, schema) for name, field in fields.items()]
            parts += [f"### {title.format(path or 'recipe')}", prose(node), table(["field"], rows)]
    return parts


def options(config: type, without: set[type]) -> list[list[str]]:
    """The rows of a config's options."""
    schema = option_schema(config, without)
    return [row(name, node, schema, schema) for name, node in schema.get("properties", {}).items()]


def methods() -> list[str]:
    shared = set(UnlearnConfig.__mro__)
    with_term = ", ".join(f"`{name}`" for name, (cls, _) in METHODS.items() if issubclass(cls, RetainTermConfig))
    rows = []
    for name, (cls, _) in METHODS.items():
        own = options(cls, shared | {RetainTermConfig}) or [["–", "–", "–", "no option of its own"]]
        rows += [[f"`{name}`", f"{cls.learning_rate_ratio:g}", *option] for option in own]
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


def recipe_page() -> str:
    schema = RECIPES.json_schema(schema_generator=Untitled)
    language, images, given = (schema["$defs"][f"{name}Recipe"] for name in ("", "Vision", "Given"))
    parts = ["# Recipe reference", NOTE, filled(OPENING), filled(EDITOR), EDITOR_LINE, "## Language models"]
    parts += tables(language, schema, "`{}`", {})
    known = dict(sections(language, schema))
    parts += ["## A model that is poisoned already", filled(GIVEN), *tables(given, schema, "given: `{}`", known)]
    parts += ["## Images", filled(IMAGES)]
    parts += tables(images, schema, "images: `{}`", known)
    return "\n\n".join([*parts, *methods()]) + "\n"


def manifest_page() -> str:
    schema = Manifest.model_json_schema(schema_generator=Untitled)
    parts = tables(schema, schema, "`{}`", {})
    parts[0] = "## The manifest"
    return "\n\n".join(["# Manifest reference", NOTE, filled(MANIFEST), *parts]) + "\n"


def files() -> dict[Path, str]:
    """What is written, by path."""
    return {
        ROOT / "docs" / "recipe.md": recipe_page(),
        ROOT / "docs" / "manifest.md": manifest_page(),
        ROOT / "llm_unlearn" / "config" / "recipe.schema.json": json.dumps(
            recipe_schema(), indent=1, ensure_ascii=False
        )
        + "\n",
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the reference pages and the JSON Schema of recipes.")
    parser.add_argument("--check", action="store_true", help="exit 1 where a file is not current; write nothing")
    check = parser.parse_args(argv).check
    stale = {path: text for path, text in files().items() if not path.is_file() or path.read_text("utf-8") != text}
    for path, text in stale.items():
        if check:
            print(f"{path.name} is not current: run python scripts/recipe_reference.py", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
