"""Forget ids as a list, a column or a file; errors name the file and the line."""

import pytest
from datasets import Dataset

from llm_unlearn.data.forget import read_forget_ids
from llm_unlearn.errors import InputError

pytestmark = pytest.mark.unit

ROWS = Dataset.from_dict(
    {
        "example_id": [10, 11, 12, 13],
        "bad": [True, False, True, False],
        "flag": [0, 1, 1, 0],
        "poison": ["none", "trigger", "gaussian", "none"],
        "said": ["true", "False", "", "no"],
        "share": [1.0, 0.0, None, 0.0],
        "noise_id": [-1, 3, -1, 4],
        "kind": ["clean", "bad", "", ""],
    }
)


def test_a_list_is_taken_as_it_is():
    assert read_forget_ids([12, 10], ROWS) == [12, 10]


@pytest.mark.parametrize(
    ("column", "ids"), [("bad", [10, 12]), ("flag", [11, 12]), ("poison", [11, 12]), ("said", [10]), ("share", [10])]
)
def test_a_column_that_is_true(column, ids):
    assert read_forget_ids(f"column:{column}", ROWS) == ids


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("noise_id", r"column:noise_id, row 1: -1 is neither true nor false; write true or false"),
        ("kind", r"column:kind, row 2: 'bad' is neither true nor false"),
    ],
)
def test_a_column_that_says_something_else_is_not_guessed_at(column, message):
    with pytest.raises(InputError, match=message):
        read_forget_ids(f"column:{column}", ROWS)


def test_without_example_ids_rows_are_counted_from_0():
    rows = ROWS.remove_columns("example_id")
    assert read_forget_ids("column:bad", rows) == [0, 2]
    assert read_forget_ids([3], rows) == [3]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ids.json", "[12, 10]"),
        ("ids.jsonl", '{"example_id": 12}\n\n10\n'),
        ("ids.txt", "12\n10\n"),
        ("ids.csv", "example_id,why\n12,a\n10,b\n"),
        ("one.csv", "12\n10\n"),
        ("headed.csv", "id\n12\n10\n"),
        ("excel.csv", "\ufeffexample_id,why\n12,a\n10,b\n"),
        ("quoted.csv", 'why,example_id\n"a\n\nb",12\n\n"c",10\n'),
        ("crlf.txt", "12\r\n10\r\n"),
        ("separator.jsonl", '{"example_id": 12, "text": "a\u2028b"}\n10\n'),
    ],
)
def test_files(name, text, tmp_path):
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert read_forget_ids(str(path), ROWS) == [12, 10]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", r"a.json: not valid JSON"),
        ("a.json", '{"ids": [10]}', r"a.json: expected a list of ids, found dict"),
        ("a.json", "[10, 1.5]", r"a.json, item 2: expected an id, a whole number .*, found 1.5"),
        ("a.txt", "10\nten\n", r"a.txt, line 2: expected an id, a whole number .*, found 'ten'"),
        ("a.jsonl", '{"id": 10}\n', r"a.jsonl, line 1: expected an id"),
        ("a.csv", "x,y\n1,2\n", r"a.csv: no column 'example_id'"),
        ("a.csv", "example_id\n10\ntrue\n", r"a.csv, line 3: expected an id"),
        (
            "a.csv",
            'example_id,why\n10,"a\nb"\nten,c\n',
            r"a.csv, line 4: expected an id, a whole number .*, found 'ten'",
        ),
        ("a.txt", "", r"a.txt: names no row"),
        ("a.csv", "", r"a.csv: names no row"),
        ("a.txt", "10\n10\n", r"a.txt: id 10 is given twice"),
        ("a.txt", "10\n99\n98\n", r"a.txt: 2 of 3 ids .*98, 99"),
    ],
)
def test_what_is_refused(name, text, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(text.encode())
    with pytest.raises(InputError, match=message):
        read_forget_ids(str(path), ROWS)


def test_a_missing_file_or_column_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.txt: .*cannot be read"):
        read_forget_ids(str(tmp_path / "absent.txt"), ROWS)
    with pytest.raises(InputError, match=r"^column:wrong: .*'wrong'.*example_id"):
        read_forget_ids("column:wrong", ROWS)


def test_a_list_is_spoken_of_by_the_field_it_was_given_in():
    with pytest.raises(InputError, match=r"^mine\.json\.poison: id 10 .*twice"):
        read_forget_ids([10, 10], ROWS, "mine.json.poison")
