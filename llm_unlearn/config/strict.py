"""Strict YAML: PyYAML reads `1e-4` as a string and takes the last of two equal keys; both are mended here."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

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
            raise InputError(f"{loader.name}: line {line}: a key must be a name, found {key!r} ({type(key).__name__})")
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
