"""Strict YAML and JSON: a key given twice is refused, and so is what no later reader or writer could hold.

PyYAML reads `1e-4` as a string; that is mended here.
"""

import json
import math
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


DEEPEST = 50  # sections in sections
MOST = 2_000_000  # values of a file; YAML's aliases make billions of them out of a few lines
LARGEST = 10**1000  # Python writes no number of more than 4,300 digits
_BROKEN = (ValueError, LookupError, TypeError, AttributeError, OverflowError)  # what PyYAML's own types raise


def parse_yaml(text: str, name: str) -> Any:
    """Parse YAML text strictly; `name` is the file that error messages speak of."""
    try:
        loader = _StrictLoader(text)
        loader.name = name
        value = loader.get_single_data()
    except InputError:
        raise
    except RecursionError:
        raise InputError(f"{name}: is nested too deep; {DEEPEST} levels are allowed") from None
    except (yaml.YAMLError, *_BROKEN) as error:
        raise InputError(f"{name}: not valid YAML: {error}") from None
    check_tree(value, name, MOST)
    return value


def parse_json(text: str, place: str) -> Any:
    """Parse JSON text strictly.

    Args:
        text: what is parsed.
        place: file and line, for error messages.

    Raises:
        InputError: malformed, a key given twice, nested too deep, or text that is no Unicode.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"{place}: '{twice}' is given twice; keep one")
        return table

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in text else ""
        excerpt = "" if line else f": {' '.join(text.split())[:60]}"
        raise InputError(f"{place}{line}: not valid JSON ({error.msg}, column {error.colno}){excerpt}") from None
    except RecursionError:
        raise InputError(f"{place}: is nested too deep; {DEEPEST} levels are allowed") from None
    except InputError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise InputError(f"{place}: not valid JSON: {error}") from None
    check_tree(value, place)
    return value


def check_tree(tree: Any, name: str, most: float = math.inf) -> None:
    """Raise InputError where a tree is too deep or too large, or holds text or a number that cannot be written."""
    left, count = [(tree, "", 0)], 0
    while left:
        value, path, depth = left.pop()
        count += 1
        if depth > DEEPEST or count > most:
            what = f"nested too deep; {DEEPEST} levels" if depth > DEEPEST else f"too large; {most} values"
            raise InputError(f"{name}{path and ': '}{path[:100]}: is {what} are allowed")
        if isinstance(value, dict):
            for key, item in value.items():
                _check_scalar(key, name, path)
                left.append((item, f"{path}.{key}" if path else f"{key}", depth + 1))
        elif isinstance(value, list | tuple | set):
            left.extend((item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value))
        else:
            _check_scalar(value, name, path)


def _check_scalar(value: Any, name: str, path: str) -> None:
    where = f"{name}{path and ': '}{path[:100]}"
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise InputError(f"{where}: a number of more than 1000 digits; write a smaller one")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: {value[error.start]!a} is half a character (a lone surrogate); take it out"
            ) from None
    if isinstance(value, str) and "\0" in value:
        raise InputError(f"{where}: holds the character U+0000, which no file may; take it out")


def dump_yaml(value: Any) -> str:
    """Write a value as YAML that `parse_yaml` reads back as it was, keys in their order."""
    return yaml.dump(value, Dumper=_StrictDumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file strictly. Raises InputError where the file is missing, malformed or repeats a key."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: a folder; give the file itself (of a finished run, its recipe.yaml)")
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
