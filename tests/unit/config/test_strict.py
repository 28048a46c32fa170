"""Strict YAML and the checks of names and types on the way into dataclasses."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml

from llm_unlearn.config.strict import build, convert, dump_yaml, parse_yaml, read_yaml, set_override
from llm_unlearn.errors import InputError

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Inner:
    rate: float = 1.0
    count: int = 1


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    either: int | str = 0
    choice: Literal["a", "b"] = "a"
    flag: bool = False
    numbers: list[float] = field(default_factory=list)
    table: dict[str, str] = field(default_factory=dict)
    options: dict[str, dict[str, Any] | None] = field(default_factory=dict)


class TestParsing:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("1e-4", 1e-4),
            ("1E5", 1e5),
            ("-1e-3", -1e-3),
            ("+2.5e+2", 250.0),
            ("1.e3", 1e3),
            (".5e1", 5.0),
            ("3", 3),
            ("2.5", 2.5),
            ("true", True),
            ("null", None),
            ("'1e-4'", "1e-4"),
            ("1e", "1e"),
            ("e5", "e5"),
            ("1e-4b", "1e-4b"),
        ],
    )
    def test_scalars(self, text, value):
        parsed = parse_yaml(f"x: {text}", "file")["x"]
        assert parsed == value
        assert type(parsed) is type(value)

    def test_pyyaml_itself_is_left_as_it_was(self):
        assert yaml.safe_load("x: 1e-4") == {"x": "1e-4"}
        assert yaml.safe_load("{a: 1, a: 2}") == {"a": 2}

    def test_a_key_given_twice_is_refused_with_both_lines(self):
        with pytest.raises(InputError, match=r"^file: line 3: 'a' is given twice \(first in line 1\)"):
            parse_yaml("a: 1\nb: 2\na: 3\n", "file")

    def test_a_key_given_twice_in_a_nested_section_is_refused(self):
        with pytest.raises(InputError, match=r"line 4: 'b' is given twice \(first in line 2\)"):
            parse_yaml("a:\n  b: 1\n  c: 2\n  b: 3\n", "file")
        with pytest.raises(InputError, match="'b' is given twice"):
            parse_yaml("- a: {b: 1, b: 2}\n", "file")

    def test_the_same_key_in_two_sections_is_fine(self):
        assert parse_yaml("a: {x: 1}\nb: {x: 2}", "file") == {"a": {"x": 1}, "b": {"x": 2}}

    @pytest.mark.parametrize(
        "text",
        [
            "a: [1, 2",
            "a: b: c",
            "\ta: 1",
            "a: \x00",
            "? [1, 2]\n: 3",
            "a: 1\n---\nb: 2",
            "a: !!python/object:os.system x",
        ],
    )
    def test_malformed_yaml_is_refused_with_the_name_of_the_file(self, text):
        with pytest.raises(InputError, match="^my.yaml: "):
            parse_yaml(text, "my.yaml")

    def test_a_missing_file_a_folder_and_bytes_that_are_no_text(self, tmp_path):
        for path in (tmp_path / "none.yaml", tmp_path):
            with pytest.raises(InputError, match="no such file"):
                read_yaml(path)
        (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
        with pytest.raises(InputError, match="latin.yaml: not UTF-8"):
            read_yaml(tmp_path / "latin.yaml")

    @pytest.mark.parametrize(
        "value",
        [
            {"b": 1e-5, "a": 1e30},
            {"x": ["1e-4", "1e5", "yes", "null", "3", "", "é\n :"]},
            {"x": None, "y": [True, {"z": []}]},
        ],
    )
    def test_what_is_written_is_read_back_the_same(self, value):
        back = parse_yaml(dump_yaml(value), "file")
        assert back == value
        assert list(back) == list(value)


class TestOverrides:
    def test_values_are_read_as_yaml(self):
        tree = {"train": {"epochs": 1}}
        for override in (
            "train.epochs=2",
            "train.rate=1e-4",
            "seeds=[0, 1]",
            "name=a=b",
            "empty=",
            "flag=true",
            "deep={x: {y: 1}}",
        ):
            set_override(tree, override)
        assert tree == {
            "train": {"epochs": 2, "rate": 1e-4},
            "seeds": [0, 1],
            "name": "a=b",
            "empty": None,
            "flag": True,
            "deep": {"x": {"y": 1}},
        }

    def test_sections_are_made_where_they_are_missing_or_null(self):
        tree = {"unlearn": {"methods": {"kl": None}}}
        set_override(tree, "unlearn.methods.kl.alpha=2.0")
        set_override(tree, "model.lora.r=4")
        assert tree == {"unlearn": {"methods": {"kl": {"alpha": 2.0}}}, "model": {"lora": {"r": 4}}}

    @pytest.mark.parametrize("override", ["train.epochs", "=1", ""])
    def test_a_malformed_override_is_refused(self, override):
        with pytest.raises(InputError, match="write it as section.field=value"):
            set_override({}, override)

    def test_a_value_is_no_section(self):
        with pytest.raises(InputError, match="override 'name.x=1': 'name' is a value, not a section"):
            set_override({"name": "quickstart"}, "name.x=1")

    def test_malformed_yaml_in_the_value_names_the_override(self):
        with pytest.raises(InputError, match=r"^override 'seeds=\[0, 1'"):
            set_override({}, "seeds=[0, 1")


class TestBuilding:
    def test_nested_sections_and_defaults(self):
        built = build(Outer, {"name": "n", "inner": {"rate": 2}, "maybe": {"count": 3}, "numbers": [1, 2.5]}, "top")
        assert built == Outer("n", Inner(2.0, 1), Inner(1.0, 3), numbers=[1.0, 2.5])
        assert type(built.inner.rate) is float
        assert build(Outer, {"name": "n", "maybe": None}, "top").maybe is None

    def test_an_unknown_key_is_refused_with_the_nearest_known_one(self):
        with pytest.raises(InputError, match="top.inner: unknown key 'ratee'; did you mean 'rate'?"):
            build(Outer, {"name": "n", "inner": {"ratee": 1}}, "top")
        with pytest.raises(InputError, match="unknown key 'zzzz'; known: rate, count"):
            build(Inner, {"zzzz": 1}, "top")
        with pytest.raises(InputError, match="unknown key '3'"):
            build(Inner, {3: 1}, "top")

    def test_a_missing_field_without_default_is_refused(self):
        with pytest.raises(InputError, match="top.name: missing; it has no default"):
            build(Outer, {}, "top")

    @pytest.mark.parametrize("value", [None, 3, "text", [1]])
    def test_a_section_must_be_a_mapping(self, value):
        with pytest.raises(InputError, match="top.inner: expected a section with fields, found"):
            build(Outer, {"name": "n", "inner": value}, "top")

    @pytest.mark.parametrize(
        ("hint", "value", "expected"),
        [
            (int, 2.5, "a whole number"),
            (int, 2.0, "a whole number"),
            (int, True, "a whole number"),
            (int, "2", "a whole number"),
            (float, True, "a number"),
            (float, "1e-4", "a number"),
            (float, None, "a number"),
            (str, 3, "text"),
            (str, True, "text"),
            (bool, 1, "true or false"),
            (bool, "yes", "true or false"),
            (list[float], 1.0, "a list"),
            (dict[str, str], ["a"], "a section"),
            (int | None, 2.5, "a whole number"),
            (int | str, 2.5, "a whole number or text"),
            (Literal["a", "b"], "c", "one of a, b"),
        ],
    )
    def test_wrong_types_are_refused_with_what_was_found(self, hint, value, expected):
        with pytest.raises(InputError) as error:
            convert(hint, value, "top.x")
        assert str(error.value).startswith(f"top.x: expected {expected}")
        assert f"found {value!r} ({type(value).__name__})" in str(error.value)

    @pytest.mark.parametrize(
        ("hint", "value"),
        [
            (int | None, None),
            (int | str, "a"),
            (int | str, 3),
            (Inner | None, None),
            (Literal["a"], "a"),
            (Any, object),
            (dict[str, dict[str, Any] | None], {"kl": None, "npo": {"beta": 0.1}}),
        ],
    )
    def test_what_fits_is_returned_as_it_is(self, hint, value):
        assert convert(hint, value, "x") == value

    def test_an_item_is_named_by_its_place(self):
        with pytest.raises(InputError, match=r"top.numbers\[1\]: expected a number, found 'a'"):
            build(Outer, {"name": "n", "numbers": [1.0, "a"]}, "top")
        with pytest.raises(InputError, match="top.table.good: expected text, found 1"):
            build(Outer, {"name": "n", "table": {"good": 1}}, "top")

    def test_whole_numbers_as_keys_become_text_but_yes_and_no_are_refused(self):
        table = parse_yaml("{0: negative, 1: positive}", "f")
        assert convert(dict[str, str], table, "x") == {"0": "negative", "1": "positive"}
        for text in ("{yes: ' yes', no: ' no'}", "{null: a}", "{0.5: a}"):
            with pytest.raises(InputError, match="put it in quotes"):
                convert(dict[str, str], parse_yaml(text, "f"), "x")
