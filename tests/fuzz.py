"""Random nonsense for recipes, data files, manifests and options of methods; every input follows from its seed."""

import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import yaml

NUMBERS = (0, -1, 1, 2, 7, 0.5, -0.5, 1e-300, 1e300, 2**31, 2**63, 10**30, math.nan, math.inf, -math.inf)
WORDS = (
    "",
    " ",
    "x",
    "\0",
    "\ud800",
    "é\u0301",
    "yes",
    "1e-4",
    "../..",
    "~",
    "/",
    "*",
    "x" * 10_000,
    "{text}",
    "{",
    "%s",
)
NESTED: Any = [[[[{"a": [{}]}]]]]
VALUES = (*NUMBERS, *WORDS, None, True, False, [], {}, [None], {"": 1}, NESTED)
CHARACTERS = "{}[]:,-#&*!|>'\"%@`?\t\n\r\0\x07\u2028é \ud800"


def places(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value in a tree of mappings and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(tree: Any, draw: random.Random) -> Any:
    """The tree with one value replaced, removed, renamed, doubled or put elsewhere."""
    tree = copy.deepcopy(tree)
    *parents, last = draw.choice(list(places(tree)))
    node = tree
    for key in parents:
        node = node[key]
    value, other = node[last], draw.choice(VALUES)
    if isinstance(value, int | float) and not isinstance(value, bool):
        other = draw.choice([*NUMBERS, -value, value * 10**9, value / 3, str(value), other])
    kind = draw.choice(["replace"] * 5 + ["remove", "rename", "wrap", "swap"])
    if kind == "replace":
        node[last] = other
    elif kind == "wrap":
        node[last] = draw.choice([[value], {"x": value}, [value, value]])
    elif kind == "swap":
        node[last] = copy.deepcopy(at(tree, draw.choice(list(places(tree)))))
    else:
        del node[last]
        if kind == "rename" and isinstance(node, dict):
            node[draw.choice([f"{last}s", str(last).upper(), 3, None, True, ""])] = value
    return tree


def at(tree: Any, path: tuple) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def garbled(text: str, draw: random.Random) -> bytes:
    """The text with characters put in, taken out, lines doubled, an end cut off, or bytes that are no text."""
    for _ in range(draw.choice([1, 1, 2, 5])):
        start = draw.randrange(len(text) + 1)
        end = min(len(text), start + draw.choice([0, 1, 3, 40]))
        inserted = "".join(draw.choices(CHARACTERS, k=draw.choice([0, 1, 2])))
        kind = draw.choice(["replace"] * 4 + ["cut", "double", "deep", "digits"])
        if kind == "cut":
            text = text[:start]
        elif kind == "double":
            text = text[:end] + text[start:]
        else:
            deep = draw.choice(["[", "{a: ", '{"a": ', "- ", "("]) * 5000
            inserted = {"deep": deep, "digits": "9" * 5000}.get(kind, inserted)
            text = text[:start] + inserted + text[end:]
    content = text.encode("utf-8", "surrogatepass")
    if draw.random() < 0.1:
        start = draw.randrange(len(content) + 1)
        content = content[:start] + bytes([draw.randrange(256)]) + content[start:]
    return content


def as_yaml(tree: Any) -> str:
    """Surrogates are escaped, as YAML may hold them."""
    return yaml.safe_dump(tree, sort_keys=False)


def document(tree: Any, draw: random.Random, write: Callable[[Any], str] = as_yaml) -> bytes:
    """A file that was written from the tree and spoilt in the tree, in the text, or in both."""
    for _ in range(draw.choice([0, 1, 1, 1, 2, 3])):
        tree = changed(tree, draw) if isinstance(tree, dict | list) and len(tree) else tree
    text = write(tree)
    if draw.random() < 0.25:
        return garbled(text, draw)
    return text.encode("utf-8", "surrogatepass")


def rows_file(rows: list[dict], draw: random.Random) -> tuple[str, bytes]:
    """(ending, content) of a data file."""
    rows = copy.deepcopy(rows)
    for _ in range(draw.choice([0, 1, 1, 3])):
        rows = changed(rows, draw) if rows else rows
    ending = draw.choice([".jsonl", ".json", ".csv", ".tsv"])
    if ending == ".json":
        text = json.dumps(rows, ensure_ascii=draw.random() < 0.5)
    elif ending == ".jsonl":
        text = "\n".join(json.dumps(row, ensure_ascii=draw.random() < 0.5) for row in rows)
    else:
        separator = "," if ending == ".csv" else "\t"
        header = list(rows[0]) if rows and isinstance(rows[0], dict) else ["text", "label"]
        if draw.random() < 0.2:
            header[draw.randrange(len(header))] = draw.choice(header) if header else "text"
        lines = [header, *([*row.values()] if isinstance(row, dict) else [row] for row in rows)]
        text = "\n".join(
            separator.join(f'"{cell}"' if draw.random() < 0.9 else str(cell) for cell in line) for line in lines
        )
    if draw.random() < 0.4:
        return ending, garbled(text, draw)
    return ending, text.encode("utf-8", "surrogatepass")


def difference(before: str, after: bytes) -> str:
    """The lines of `after` that are not in `before`, cut."""
    known = set(before.splitlines())
    lines = after.decode("utf-8", "replace").splitlines()
    return " | ".join(line[:120] for line in lines if line not in known)[:600] or "lines are missing"
