"""Results as frozen dataclasses, whose JSON is their fields."""

from dataclasses import MISSING, dataclass, fields
from math import isfinite
from types import NoneType
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.intervals import Interval

_REMEDY = "run the stage that wrote it again"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a metric returns: each field is a key of its JSON, an interval a list of two numbers.

    `unbounded` names the fields that a diverged model may leave infinite or undefined; all others are finite.
    """

    unbounded: ClassVar[frozenset[str]] = frozenset()

    def to_json(self) -> dict[str, Any]:
        """The fields as what JSON holds: numbers, texts, lists, mappings."""
        return {field.name: _to_json(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, tree: Any, source: str, name: str = "") -> Self:
        """The result that `to_json` gave; a field that older files lack takes its default.

        Args:
            tree: what was read.
            source: the file, for messages.
            name: the dotted name of `tree` in that file, empty for the whole.

        Raises:
            InputError: naming the file and the field that is missing or of another kind.
        """
        if not isinstance(tree, dict):
            raise InputError(f"{source}: section '{name}' is no mapping but {type(tree).__name__}; {_REMEDY}")
        values, kinds = {}, get_type_hints(cls)
        for field in fields(cls):
            kind, path = kinds[field.name], f"{name}.{field.name}".lstrip(".")
            if field.name in tree:
                values[field.name] = _value(kind, tree[field.name], source, path, field.name in cls.unbounded)
            elif field.default is MISSING:
                word = "field" if name or kind in (int, float, str) else "section"
                raise InputError(f"{source}: {word} '{path}' is missing; {_REMEDY}")
        return cls(**values)


def _to_json(value: Any) -> Any:
    if isinstance(value, Result):
        return value.to_json()
    if isinstance(value, dict):
        return {key: _to_json(entry) for key, entry in value.items()}
    return [_to_json(entry) for entry in value] if isinstance(value, list | tuple) else value


def _value(kind: Any, value: Any, source: str, name: str, unbounded: bool = False) -> Any:
    """A value of JSON as a field of this type: a result, a mapping, an interval, a number, a text, or `| None`."""
    if NoneType in get_args(kind):
        if value is None:
            return None
        (kind,) = (option for option in get_args(kind) if option is not NoneType)
    if isinstance(kind, type) and issubclass(kind, Result):
        return kind.from_json(value, source, name)
    if (many := get_origin(kind)) in (dict, list) and isinstance(value, many):
        if isinstance(value, list):
            return [_value(get_args(kind)[0], entry, source, f"{name}.{i}") for i, entry in enumerate(value)]
        return {key: _value(get_args(kind)[1], entry, source, f"{name}.{key}") for key, entry in value.items()}
    if many in (dict, list):
        raise InputError(f"{source}: section '{name}' is no {many.__name__} but {value!r}; {_REMEDY}")
    if kind is Interval and isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)):
        return Interval(*value)
    if kind is float and _is_number(value, unbounded):
        return value
    if kind in (int, str) and isinstance(value, kind) and not isinstance(value, bool):
        return value
    expected = {Interval: "interval [low, high]", float: "usable number", int: "whole number"}.get(kind, "text")
    raise InputError(f"{source}: field '{name}' is no {expected} but {value!r}; {_REMEDY}")


def _is_number(value: Any, unbounded: bool = False) -> bool:
    """NaN would pass every test, as it is below no threshold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and (unbounded or isfinite(value))
