"""Strict YAML: numbers, keys given twice, files that are none."""

import json

import pytest
import yaml

from llm_unlearn.config.strict import dump_yaml, parse_json, parse_yaml, read_yaml, set_override
from llm_unlearn.errors import InputError

pytestmark = pytest.mark.unit


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
        with pytest.raises(InputError, match=r"^file: line 3: 'a' .*twice.*line 1\b"):
            parse_yaml("a: 1\nb: 2\na: 3\n", "file")

    def test_a_key_given_twice_in_a_nested_section_is_refused(self):
        with pytest.raises(InputError, match=r"line 4: 'b' .*twice.*line 2\b"):
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
        for path, words in ((tmp_path / "none.yaml", "no such file"), (tmp_path, "a folder; give .* its recipe.yaml")):
            with pytest.raises(InputError, match=words):
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
        with pytest.raises(InputError, match=r"'name\.x=1': 'name' .*not a section"):
            set_override({"name": "quickstart"}, "name.x=1")

    def test_malformed_yaml_in_the_value_names_the_override(self):
        with pytest.raises(InputError, match=r"^override 'seeds=\[0, 1'"):
            set_override({}, "seeds=[0, 1")


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deep"),
        ("{a: " * 5000 + "1" + "}" * 5000, "nested too deep"),
        ("{a: " * 60 + "1" + "}" * 60, "a.a.a.*nested too deep"),
        (LAUGHS, "too large"),
        ('section: {"field": ["a", "\\ud800"]}', r"section\.field\[1\]: .*surrogate"),
        ('"\\ud800": 1', "surrogate"),
        ('field: "a\\0b"', r"field: .*U\+0000"),
        (f"field: {'9' * 5000}", "digits"),
        (f"field: 0x{'f' * 5000}", "field: .*1000 digits"),
        ("field: 2020-13-45", "month"),
        ("field: !!int ''", "not valid YAML"),
        ("field: !!timestamp x", "not valid YAML"),
        ("field: !!bool x", "not valid YAML"),
    ],
)
def test_yaml_that_nothing_could_hold_is_refused_by_name(text, words):
    with pytest.raises(InputError, match=f"^f.yaml: .*{words}"):
        parse_yaml(text, "f.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deep"),
        ('{"a": ' * 60 + "1" + "}" * 60, "nested too deep"),
        ('{"a": {"b": 1, "b": 1}}', "'b' is given twice"),
        ('{"a": "\\ud800"}', "a: .*surrogate"),
        (f'{{"a": {"9" * 5000}}}', "digits"),
        ('{"a": "cut', "column 7.*cut"),
        ('{"a": 1,\n', "f.json, line 2: not valid JSON"),
    ],
)
def test_json_that_nothing_could_hold_is_refused_by_name(text, words):
    with pytest.raises(InputError, match=words) as error:
        parse_json(text, "f.json")
    assert str(error.value).startswith("f.json") and len(str(error.value)) < 500


def test_numbers_and_text_of_every_script_come_back():
    value = {"größe": [2**63, -(10**900), 1e300, "日本", {"a": None}], "b": True}
    assert parse_yaml(dump_yaml(value), "f") == parse_json(json.dumps(value), "f") == value
