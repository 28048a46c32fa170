"""What a section refuses, and that the sentence names the field, what was expected and what was found."""

import math
import re
from typing import Any, Literal

import pytest
from pydantic import Field

from llm_unlearn.config.fields import Count, NotBlank, Section, Share, Table, require
from llm_unlearn.config.strict import parse_yaml
from llm_unlearn.config.validate import LONGEST, validated
from llm_unlearn.config.vision_sections import Channels
from llm_unlearn.errors import InputError

pytestmark = pytest.mark.unit


class Inner(Section):
    rate: float = 1.0
    count: int = 1


class Outer(Section):
    name: str
    inner: Inner = Field(default_factory=Inner)
    maybe: Inner | None = None
    either: list[int] | str = ""
    choice: Literal["a", "b"] = "a"
    numeral: Channels | None = None
    flag: bool = False
    numbers: list[float] = Field(default=[])
    share: Share = 1.0
    rows: Count | None = None
    phrases: list[NotBlank] = Field(default=["a"], min_length=1)
    table: Table[str] = Field(default={})
    options: Table[Table[Any] | None] = Field(default={})

    def check_rules(self) -> None:
        require(not self.flag or self.rows, "rows", "needed where `flag` is true")


def outer(**fields: Any) -> Outer:
    return validated(Outer, {"name": "n", **fields}, "top")


def refusal(tree: Any) -> str:
    with pytest.raises(InputError) as error:
        validated(Outer, tree, "top")
    return str(error.value)


def test_nested_sections_and_defaults():
    section = outer(inner={"rate": 2}, maybe={"count": 3}, numbers=[1, 2.5])
    assert section == Outer(
        name="n", inner=Inner(rate=2.0), maybe=Inner(rate=1.0, count=3), numbers=[1.0, 2.5], table={}
    )
    assert type(section.inner.rate) is type(section.numbers[0]) is float
    assert outer(maybe=None).maybe is None


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("name", 3, "text"),
        ("name", None, "text"),
        ("name", True, "text"),
        ("inner.count", 2.5, "a whole number"),
        ("inner.count", 2.0, "a whole number"),
        ("inner.count", True, "a whole number"),
        ("inner.count", "2", "a whole number"),
        ("inner.rate", True, "a number"),
        ("inner.rate", "1e-4", "a number"),
        ("inner.rate", None, "a number"),
        ("inner.rate", math.nan, "a number"),
        ("inner.rate", math.inf, "a number"),
        ("inner.rate", 10**400, "a number"),
        ("inner", None, "a section with fields"),
        ("inner", [1], "a section with fields"),
        ("maybe", 3, "a section with fields or null"),
        ("flag", 1, "true or false"),
        ("flag", "yes", "true or false"),
        ("choice", "c", "one of a, b"),
        ("numeral", 2, "one of 1, 3, or null"),
        ("numeral", True, "one of 1, 3, or null"),
        ("numbers", 1.0, "a list, each a number"),
        ("numbers[1]", [1.0, "a"], "a number"),
        ("share", 0, "a number in (0, 1]"),
        ("share", 1.5, "a number in (0, 1]"),
        ("rows", 0, "a whole number in [1, 10⁹], or null"),
        ("rows", 10**30, "a whole number in [1, 10⁹], or null"),
        ("phrases", [], "a list of at least one, each text that is not blank"),
        ("phrases[0]", [" "], "text that is not blank"),
        ("either", 2.5, "a list, each a whole number, or text"),
        ("either", {}, "a list, each a whole number, or text"),
        ("either[1]", [1, "a"], "a whole number"),
        ("table", ["a"], "a mapping of names to text"),
        ("table.good", {"good": 1}, "text"),
        ("options.kl", {"kl": 2}, "a mapping or null"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_expected_and_found(field, value, expected):
    name, inner = field.split("[")[0].split("."), value
    for key in reversed(name[1:] if name[0] == "inner" else ()):
        inner = {key: inner}
    shown = inner
    if "[" in field:
        shown = value[int(field[-2])]
    elif name[0] in ("table", "options") and len(name) > 1:
        shown = value[name[1]]
    elif name[0] == "inner" and len(name) > 1:
        shown = value
    message = refusal({"name": "n", name[0]: inner})
    found = f"{repr(shown)[:LONGEST]}{'…' * (len(repr(shown)) > LONGEST)} ({type(shown).__name__})"
    assert message == f"top.{field}: expected {expected}, found {found}"


def test_booleans_are_never_numbers_and_a_long_value_is_cut():
    assert "found True (bool)" in refusal({"name": "n", "rows": True})
    assert len(refusal({"name": list(range(10**4))})) < LONGEST + 100


def test_an_unknown_key_is_told_before_the_missing_one_that_it_stands_for():
    assert re.match(r"top: .*'nam'.*'name'", refusal({"nam": "n"}))
    assert re.match(r"top\.inner: .*'zzzz'.*known: rate, count$", refusal({"name": "n", "inner": {"zzzz": 1}}))
    assert re.match(r"top\.maybe: .*'ratee'.*'rate'", refusal({"name": "n", "maybe": {"ratee": 1}}))
    for key in (3, True, None):
        assert f"unknown key '{key}'; known:" in refusal({"name": "n", "inner": {key: 1}})


def test_a_missing_field_and_a_tree_that_is_none():
    assert refusal({}).startswith("top.name: missing")
    assert re.match(r"top: expected a section.*found \[1\]", refusal([1]))


def test_a_rule_names_its_field():
    assert re.match("top.rows: .*`flag`", refusal({"name": "n", "flag": True}))
    assert outer(flag=True, rows=1).rows == 1


def test_whole_numbers_as_keys_become_text_but_yes_and_no_are_refused():
    assert outer(table=parse_yaml("{0: negative, 1: positive}", "f")).table == {"0": "negative", "1": "positive"}
    assert outer(options={"kl": {1: 2}, "npo": None}).options == {"kl": {"1": 2}, "npo": None}
    for text in ("{yes: ' yes', no: ' no'}", "{null: a}", "{0.5: a}"):
        assert "put it in quotes" in refusal({"name": "n", "table": parse_yaml(text, "f")})
    assert re.search("key 0 .*twice", refusal({"name": "n", "table": {0: "a", "0": "b"}}))


def test_a_section_is_frozen_and_a_changed_copy_is_checked():
    section = outer()
    with pytest.raises(ValueError, match="frozen"):
        section.name = "other"
    assert section.changed(rows=3).rows == 3 and section.rows is None
    with pytest.raises(ValueError, match="rows"):
        section.changed(rows=0)
    with pytest.raises(ValueError, match="row"):
        section.changed(row=1)
