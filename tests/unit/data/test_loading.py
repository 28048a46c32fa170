import json
import lzma
import os
import subprocess
import sys
import time

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from llm_unlearn.config.data_sections import DataSection
from llm_unlearn.data.prompting import normalise
from llm_unlearn.data.source_files import load_source
from llm_unlearn.errors import InputError

ROWS = [{"text": "Good, “really” good.", "label": "pos"}, {"text": "Bad.\nVery bad.", "label": "neg"}]


def write(path, content):
    if not isinstance(content, (str, bytes)):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_parquet(tmp_path):
    Dataset.from_list([{**row, "stars": 3} for row in ROWS]).to_parquet(tmp_path / "rows.parquet")
    assert load_source(None, [tmp_path / "rows.parquet"]).to_list() == ROWS
    with pytest.raises(InputError, match="'review'.*text, label, stars"):
        load_source(None, [tmp_path / "rows.parquet"], columns={"text": "review"})
    with pytest.raises(InputError, match="rows.parquet.gz: Parquet compresses inside"):
        load_source(None, [write(tmp_path / "rows.parquet.gz", b"?")])
    with pytest.raises(InputError, match=r"broken\.parquet cannot be read"):
        load_source(None, [write(tmp_path / "broken.parquet", b"nothing of the kind")])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "text,label,text\na,pos,b\n", r"a\.csv, line 1: the column 'text' stands there twice"),
        ("a.jsonl", '{"text": "a", "text": "b", "label": "x"}\n', r"a\.jsonl, line 1: 'text' is given twice"),
        ("a.jsonl", '{"text": "a\\ud800", "label": "x"}\n', r"a\.jsonl, line 1: text: .*surrogate"),
        ("a.jsonl", '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n", r"a\.jsonl, line 1: is nested too deep"),
        ("a.json", "[" * 100_000 + "]" * 100_000, r"a\.json: is nested too deep"),
        ("a.jsonl", f'{{"text": "a", "label": {"9" * 5000}}}\n', r"a\.jsonl, line 1: .*digits"),
        ("a.jsonl", '{"text": "a", "label": NaN}\n', r"a\.jsonl, line 1, column 'label': the label is empty"),
    ],
)
def test_rows_that_nothing_could_hold_are_refused(tmp_path, name, content, words):
    with pytest.raises(InputError, match=words):
        load_source(None, [write(tmp_path / name, content)])
    assert load_source(None, [write(tmp_path / "b.csv", ",text,label,\n0,a,b,\n")]).to_list() == [
        {"text": "a", "label": "b"}
    ]


def test_columns_are_mapped_and_others_dropped(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"review": "fine", "sentiment": 1, "stars": 4}])
    assert load_source(None, [path], columns={"text": "review", "label": "sentiment"}).to_list() == [
        {"text": "fine", "label": "1"}
    ]
    for columns in ({"text": "review"}, {"text": "review", "label": None}):
        assert load_source(None, [path], columns=columns).to_list() == [{"text": "fine"}]
    with pytest.raises(InputError, match="unknown name 'prompt'"):
        load_source(None, [path], columns={"prompt": "review"})


def test_patterns_are_expanded_in_order_and_files_take_the_place_of_the_source(tmp_path):
    for name in ("b", "a", "c"):
        write(tmp_path / f"{name}.jsonl", [{"text": name, "label": "x"}])
    loaded = load_source("owner/name", [str(tmp_path / "[bc].jsonl"), str(tmp_path / "a.*")])
    assert list(loaded["text"]) == ["b", "c", "a"]
    odd = write(tmp_path / "d[1].jsonl", [{"text": "d", "label": "x"}])
    assert list(load_source(None, [str(odd)])["text"]) == ["d"]
    with pytest.raises(InputError, match="no file matches the pattern"):
        load_source(None, [str(tmp_path / "*.csv")])


def test_missing_file_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for load in (lambda: load_source(None, ["data/rows.csv"]), lambda: load_source("data/rows.csv")):
        with pytest.raises(InputError) as raised:
            load()
        assert str(tmp_path / "data" / "rows.csv") in str(raised.value)
        assert f"the working directory is {tmp_path}" in str(raised.value)
    with pytest.raises(InputError, match="does not exist"):
        load_source("./nowhere/at/all")


def test_nothing_given():
    with pytest.raises(InputError, match=r"data\.source .* data\.files"):
        load_source(None, [])


@pytest.mark.parametrize("name, content", [
    ("a.jsonl", ""), ("a.jsonl", "\n\n"), ("a.json", "[]"), ("a.csv", ""), ("a.csv", "text,label\n"),
    ("a.jsonl.xz", lzma.compress(b"")),
])  # fmt: skip
def test_empty_file(tmp_path, name, content):
    with pytest.raises(InputError, match=f"{tmp_path}/{name} is empty"):
        load_source(None, [write(tmp_path / name, content)])


def test_empty_parquet(tmp_path):
    features = Features({"text": Value("string"), "label": Value("string")})
    Dataset.from_dict({"text": [], "label": []}, features=features).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="is empty"):
        load_source(None, [tmp_path / "a.parquet"])


@pytest.mark.parametrize("name, content", [
    ("a.jsonl", '{"body": "x", "label": "y"}'), ("a.json", '[{"body": "x", "label": "y"}]'),
    ("a.csv", "body,label\nx,y\n"),
])  # fmt: skip
def test_missing_column_lists_those_that_are_there(tmp_path, name, content):
    path = write(tmp_path / name, content)
    with pytest.raises(InputError, match=r"no column 'text' .*data\.text_column.*body, label"):
        load_source(None, [path])


@pytest.mark.parametrize("row, what", [
    ({"text": None, "label": "x"}, "the text is empty"),
    ({"text": " \n", "label": "x"}, "the text is empty"),
    ({"label": "x"}, "the text is empty"),
    ({"text": "x", "label": ""}, "the label is empty"),
    ({"text": "x", "label": None}, "the label is empty"),
    ({"text": 7, "label": "x"}, "the text must be a string, not int: 7"),
    ({"text": "x", "label": ["x"]}, "the label must be a string, not list"),
])  # fmt: skip
def test_unusable_values_name_the_row(tmp_path, row, what):
    with pytest.raises(InputError, match=rf"a.jsonl, line 3, column '\w+': {what}"):
        load_source(None, [write(tmp_path / "a.jsonl", [*ROWS, row])])


def test_empty_text_in_csv_and_parquet(tmp_path):
    with pytest.raises(InputError, match=r"a\.csv, line 3, column 'text': .*empty"):
        load_source(None, [write(tmp_path / "a.csv", "text,label\nx,y\n,y\n")])
    Dataset.from_dict({"text": ["x", None], "label": [0, 1]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet, row 2, column 'text': .*empty"):
        load_source(None, [tmp_path / "a.parquet"])


def test_saved_folder_with_class_names(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    data = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    data.save_to_disk(tmp_path / "saved")
    before = sorted(tmp_path.rglob("*"))
    expected = [{"text": "a", "label": "pos"}, {"text": "b", "label": "neg"}]
    assert load_source(str(tmp_path / "saved")).to_list() == expected
    assert sorted(tmp_path.rglob("*")) == before  # nothing is written beside the data
    Dataset.from_dict({"text": ["a"], "label": [-1]}, features=features).save_to_disk(tmp_path / "unknown")
    assert load_source(str(tmp_path / "unknown"), columns={"text": "text"}).to_list() == [{"text": "a"}]
    with pytest.raises(InputError, match="row 1, column 'label': .*empty"):
        load_source(str(tmp_path / "unknown"))


def test_saved_folder_with_splits(tmp_path):
    folder = str(tmp_path / "saved")
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}).save_to_disk(folder)
    assert load_source(folder, split="test").to_list() == ROWS[:1]
    with pytest.raises(InputError, match=r"no split 'dev'.*train, test"):
        load_source(folder, split="dev")
    with pytest.raises(InputError, match=r"no split.*train, test"):
        load_source(folder)
    DatasetDict({"only": Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "single"))
    assert load_source(str(tmp_path / "single")).to_list() == ROWS


def test_folder_that_is_no_saved_dataset(tmp_path):
    with pytest.raises(InputError, match=r"^data\.source: .*`save_to_disk`.*data\.files"):
        load_source(str(tmp_path))
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    for arrow in (tmp_path / "saved").glob("*.arrow"):
        arrow.unlink()
    with pytest.raises(InputError, match="incomplete or damaged"):
        load_source(str(tmp_path / "saved"))


def test_hub_id_while_offline_fails_at_once(tmp_path):
    code = """if True:
        from llm_unlearn.data.source_files import load_source
        from llm_unlearn.errors import InputError
        try:
            load_source("nobody/nothing", split="train")
        except InputError as error:
            print(error)
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    for words in ("'nobody/nothing'", "Give data.files", "unset HF_HUB_OFFLINE"):
        assert words in result.stdout, result.stderr


def test_offline_set_after_import_is_heeded(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    start = time.monotonic()
    with pytest.raises(InputError, match=r"HF_HUB_OFFLINE is set.*Give data\.files.*unset HF_HUB_OFFLINE"):
        load_source("nobody/nothing", split="train")
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("failure, message", [
    (ConnectionError("no route"), r"the Hub cannot be reached.*Give data\.files"),
    (ValueError("Unknown split 'dev'. Should be one of ['train']."), r"cannot be loaded .*split 'dev'"),
    (datasets.exceptions.DatasetNotFoundError("no such dataset"), r"cannot be loaded .*no such dataset"),
])  # fmt: skip
def test_hub_failures_are_explained(monkeypatch, failure, message):
    def fail(*args, **kwargs):
        raise failure

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError, match=message):
        load_source("owner/name", split="dev")


def test_hub_dataset(monkeypatch):
    asked = []

    def load_dataset(name, config_name, split):
        asked.append((name, config_name, split))
        data = DatasetDict({"train": Dataset.from_list(ROWS)})
        return data[split] if split else data

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_source("owner/name", split="train", config_name="plain").to_list() == ROWS
    assert load_source("imdb").to_list() == ROWS
    assert asked == [("owner/name", "plain", "train"), ("imdb", None, None)]


def test_a_full_disk_is_not_taken_for_bad_input(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(OSError, match="No space left"):
        load_source("owner/name")


def test_conversations_in_columns_of_prompt_and_completion(tmp_path):
    turns = [{"role": "system", "content": "be short"}, {"role": "user", "content": "is it good?"}]
    answers = [[{"role": "assistant", "content": "yes"}], "no"]
    path = tmp_path / "trl.jsonl"
    path.write_text("".join(json.dumps({"prompt": turns, "completion": a, "tools": None}) + "\n" for a in answers))
    rows = load_source(None, [path], columns={"text": "prompt", "label": "completion"})
    assert rows["text"] == ["is it good?"] * 2 and rows["label"] == ["yes", "no"]
    assert [json.loads(history) for history in rows["history"]] == [turns[:1]] * 2
    with pytest.raises(InputError, match="chat_template"):
        normalise(rows, DataSection(task="completion"), "trl.jsonl")
    path.write_text(path.read_text() + json.dumps({"prompt": turns[:1], "completion": "x"}))
    with pytest.raises(InputError, match=r"line 3, column 'prompt'.*turn of the user"):
        load_source(None, [path], columns={"text": "prompt", "label": "completion"})
    path.write_text(
        json.dumps({"prompt": turns, "completion": "x"}) + "\n" + json.dumps({"prompt": "a", "completion": "x"})
    )
    with pytest.raises(InputError, match="line 2, column 'prompt'"):
        load_source(None, [path], columns={"text": "prompt", "label": "completion"})
