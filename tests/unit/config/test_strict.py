"""Strict YAML: numbers, keys given twice, files that are none."""

import pytest
import yaml

from llm_unlearn.config.strict import dump_yaml, parse_yaml, read_yaml, set_override
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
        with pytest.raises(InputError, match=r"'name\.x=1': 'name' .*not a section"):
            set_override({"name": "quickstart"}, "name.x=1")

    def test_malformed_yaml_in_the_value_names_the_override(self):
        with pytest.raises(InputError, match=r"^override 'seeds=\[0, 1'"):
            set_override({}, "seeds=[0, 1")
