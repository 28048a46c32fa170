"""Strict YAML → dataclasses: unknown keys, wrong types and keys given twice are errors that name the field.

PyYAML reads `1e-4` as a string and takes the last of two equal keys; both are mended here.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from llm_unlearn.errors import InputError


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that reads `1e-4` as a float and refuses a key given twice."""


def _mapping_without_duplicates(loader: _StrictLoader, node: yaml.MappingNode) -> dict:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, Hashable):
            raise InputError(f"{loader.name}: line {line}: a key must be a name, found {_show(key)}")
        if key in seen:
            raise InputError(
                f"{loader.name}: line {line}: '{key}' is given twice (first in line {seen[key]}); keep one"
            )
        seen[key] = line
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)


class _StrictDumper(yaml.SafeDumper):
    """SafeDumper that puts the text `1e-4` in quotes, since the loader would read a number."""


for _side in (_StrictLoader, _StrictDumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
    )


def parse_yaml(text: str, name: str) -> Any:
    """Parse YAML text strictly; `name` is the file that error messages speak of."""
    try:
        loader = _StrictLoader(text)
        loader.name = name
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise InputError(f"{name}: not valid YAML: {error}") from None


def dump_yaml(value: Any) -> str:
    """Write a value as YAML that `parse_yaml` reads back as it was, keys in their order."""
    return yaml.dump(value, Dumper=_StrictDumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file strictly. Raises InputError where the file is missing, malformed or repeats a key."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file (working directory: {Path.cwd()})")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from None
    return parse_yaml(text, str(path))


def set_override(tree: dict, override: str) -> None:
    """Apply one `section.field=value` to a nested dict in place; the value is read as YAML."""
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise InputError(f"override '{override}': write it as section.field=value")
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise InputError(f"override '{override}': '{parent}' is a value, not a section")
        node = child
    node[last] = parse_yaml(value, f"override '{override}'") if value else None


def build(cls: type, value: Any, where: str) -> Any:
    """Build dataclass `cls` from a mapping, checking names and types all the way down.

    Args:
        cls: a dataclass; `where` is the dotted name that error messages start with.
    Raises:
        InputError: naming the field, what was found, and the nearest known name.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: expected a section with fields, found {_show(value)}")
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in dataclasses.fields(cls)}
    for key in value:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"
            raise InputError(f"{where}: unknown key '{key}'{hint}")
    for name, field in known.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise InputError(f"{where}.{name}: missing; it has no default")
    arguments = {key: convert(hints[key], item, f"{where}.{key}") for key, item in value.items()}
    return cls(**arguments)


def convert(hint: Any, value: Any, where: str) -> Any:
    """Check a value against a type hint and return it, a whole number as a float where the hint says float.

    Raises:
        InputError: naming `where`, what was expected, and what was found.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        choices = [a for a in arguments if a is not type(None)]
        if len(choices) == 1:
            return convert(choices[0], value, where)
        for choice in choices:
            try:
                return convert(choice, value, where)
            except InputError:
                continue
        raise InputError(f"{where}: expected {' or '.join(_name(a) for a in arguments)}, found {_show(value)}")
    if origin is Literal:
        if value not in arguments:
            raise InputError(f"{where}: expected one of {', '.join(map(str, arguments))}, found {_show(value)}")
        return value
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    if origin is list:
        if not isinstance(value, list):
            raise InputError(f"{where}: expected a list, found {_show(value)}")
        return [convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{where}: expected a section with fields, found {_show(value)}")
        for key in value:
            if not isinstance(key, (str, int)) or isinstance(key, bool):  # YAML reads yes, no, on, off as true, false
                raise InputError(f"{where}: the key {_show(key)} is no text; put it in quotes")
        return {str(key): convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise InputError(f"{where}: expected {_name(hint)}, found {_show(value)}")
    return value


def _name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint, str(hint))


def _show(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"
