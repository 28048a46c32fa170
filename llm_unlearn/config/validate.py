"""One sentence for what is wrong with a tree of values: which field, what was expected in plain words, what was found.

pydantic validates, and reports every error; people mend one at a time, so the first is told.
"""

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from llm_unlearn.config.fields import RuleError
from llm_unlearn.errors import InputError

Schema = dict[str, Any]
M = TypeVar("M", bound=BaseModel)

UNKNOWN = ("extra_forbidden", "invalid_key")  # names that are no field: more telling than the field that is missing
TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "array": "a list",
}
LONGEST = 200  # characters of a value that are shown
MOST_NAMES = 40  # that are listed


def validated(model: type[M] | TypeAdapter[M], tree: Any, where: str) -> M:
    """A model from a tree of plain values.

    Args:
        model: a pydantic model, or the adapter of a union of them that a field tells apart.
        tree: what was read from a file.
        where: what the dotted names of fields begin with, e.g. `recipe`.

    Raises:
        InputError: naming the first field that is wrong.
    """
    try:
        return model.validate_python(tree) if isinstance(model, TypeAdapter) else model.model_validate(tree)
    except ValidationError as error:
        schema = model.json_schema() if isinstance(model, TypeAdapter) else model.model_json_schema()
        raise InputError(sentence(error, schema, where)) from None


def sentence(error: ValidationError, schema: Schema, where: str) -> str:
    """The first of pydantic's errors, in words: unknown names before missing fields, those before wrong values."""
    ranks = {**dict.fromkeys(UNKNOWN, 0), "missing": 1}
    first = min(error.errors(include_url=False), key=lambda one: ranks.get(one["type"], 2))
    steps, kind, value, cause = first["loc"], first["type"], first["input"], first.get("ctx", {}).get("error")
    node, path = _follow(schema, steps[:-1] if kind in UNKNOWN else steps, where)
    if kind in UNKNOWN:
        known = list(choices(node, schema)[0]["properties"])
        close = difflib.get_close_matches(str(steps[-1]), known, n=1)
        names = ", ".join(known) if len(known) <= MOST_NAMES else "see docs/recipe.md"
        hint = f"did you mean '{close[0]}'?" if close else f"known: {names}"
        return f"{path}: unknown key '{str(value if kind == 'invalid_key' else steps[-1])[:LONGEST]}'; {hint}"
    if kind == "missing":
        return f"{path}: missing; it has no default"
    if kind.startswith("union_tag") and isinstance(value, Mapping):
        tag = node["discriminator"]
        given = value.get(tag["propertyName"])
        return f"{path}.{tag['propertyName']}: expected one of {', '.join(tag['mapping'])}, found {shown(given)}"
    if cause is not None:
        return f"{path}.{cause.field}: {cause}" if isinstance(cause, RuleError) else f"{path}: {cause}"
    return f"{path}: expected {words(node, schema)}, found {shown(value)}"


def _follow(schema: Schema, steps: tuple[int | str, ...], path: str) -> tuple[Schema, str]:
    """The node of a JSON Schema that pydantic's location names, and its dotted name."""
    node = resolved(schema, schema)
    for depth, step in enumerate(steps):
        if mapping := node.get("discriminator", {}).get("mapping"):  # the step names the alternative, not a field
            node = resolved({"$ref": mapping[step]}, schema)
        elif len(alternatives := choices(node, schema)) > 1:  # likewise; a list is the one with something below it
            if depth + 1 < len(steps):
                node = next(each for each in alternatives if "items" in each)
        else:
            node = alternatives[0]
            if "properties" in node:
                node, path = node["properties"].get(step, {}), f"{path}.{step}"
            elif "items" in node:
                node, path = node["items"], f"{path}[{step}]"
            else:
                node, path = node.get("additionalProperties", {}), f"{path}.{step}"
            node = resolved(node, schema)
    return node, path


def resolved(node: Schema, schema: Schema) -> Schema:
    """What a node refers to, or else the node."""
    return schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def choices(node: Schema, schema: Schema) -> list[Schema]:
    """The alternatives of a node, without null."""
    return [resolved(each, schema) for each in node.get("anyOf", [node]) if each.get("type") != "null"] or [node]


def words(node: Schema, schema: Schema) -> str:
    """What a node of a JSON Schema accepts, in plain words: `a number in (0, 1]`, `one of text, completion`."""
    if "anyOf" in node:
        each = [words(alternative, schema) for alternative in node["anyOf"]]
        return (", or " if any("," in text or " to " in text for text in each) else " or ").join(each)
    node = resolved(node, schema)
    if "x-words" in node:
        return node["x-words"]
    if "properties" in node:
        return "a section with fields"
    if "const" in node or "enum" in node:
        values = node.get("enum", [node.get("const")])
        return f"one of {', '.join(map(str, values))}" if len(values) > 1 else str(values[0])
    if node.get("type") == "object":
        return _with_content("a mapping", " of names to ", node.get("additionalProperties", {}), schema)
    if node.get("type") == "array":
        least, most = node.get("minItems", 0), node.get("maxItems")
        size = f" of {least} to {most}" if most else " of at least one" * bool(least)
        return _with_content(f"a list{size}", ", each ", node.get("items", {}), schema)
    return TYPES.get(node.get("type", ""), "anything") + interval(node)


def _with_content(text: str, joint: str, content: Any, schema: Schema) -> str:
    inside = words(content, schema) if isinstance(content, dict) else "anything"
    return text if inside == "anything" else text + joint + inside


def interval(node: Schema) -> str:
    """The bounds of a number, ` in [1, 10⁹]`; empty where it has none."""
    low, high = node.get("minimum", node.get("exclusiveMinimum")), node.get("maximum", node.get("exclusiveMaximum"))
    if low is None and high is None:
        return ""
    left = f"({_number(low, '−∞')}" if "minimum" not in node else f"[{_number(low, '')}"
    right = f"{_number(high, '∞')})" if "maximum" not in node else f"{_number(high, '')}]"
    return f" in {left}, {right}"


def _number(value: float | None, otherwise: str) -> str:
    """A bound as a person writes it: 10⁹, 2³¹, 0.5."""
    if value is None:
        return otherwise
    if value < 0:
        return f"−{_number(-value, otherwise)}"
    for base in (10, 2):
        power = next((n for n in range(5 if base == 10 else 16, 64) if value == base**n), None)
        if power is not None:
            return f"{base}{str(power).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    return f"{value:g}"


def shown(value: Any) -> str:
    """A value with its type, cut where it is long."""
    text = repr(value)
    return f"{text if len(text) <= LONGEST else text[:LONGEST] + '…'} ({type(value).__name__})"
