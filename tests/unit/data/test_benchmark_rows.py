"""Rows of benchmarks: schema and errors, chunks of a corpus that lose nothing, and what is trained on and forgotten."""

import json
import lzma

import pytest
from benchmark_rows import corpus, pairs, write_muse, write_rows, write_tofu, write_wmdp

from llm_unlearn.config.benchmark_fields import SPLITS, BenchmarkSection
from llm_unlearn.config.data_sections import DataSection
from llm_unlearn.data.benchmarks.benchmark_sets import FORGET, benchmark_splits, check_parts, measured_rows, parts_of
from llm_unlearn.data.benchmarks.corpora import BETWEEN, cut_corpus, halves
from llm_unlearn.data.benchmarks.parts import CHOICE, TEXT, TEXTS, Part, read_part
from llm_unlearn.errors import InputError
from llm_unlearn.models.make import train_tokenizer

pytestmark = pytest.mark.unit

PART = Part("rows", {"question": TEXT, "wrong": TEXTS}, "owner/name", "rows", "train")
GOOD = {"question": "Who?", "wrong": ["a", "b"], "more": 1}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([row["text"] for row in corpus(5, 7)] + ["Überfluß ☃ 🙂"], 300)


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.xz", "json", "parquet"])
def test_a_part_is_read_in_every_format_with_its_columns_alone(tmp_path, ending):
    rows, path = [GOOD, {**GOOD, "question": "What?"}], tmp_path / f"rows.{ending}"
    if ending == "parquet":
        import pandas as pd

        pd.DataFrame(rows).to_parquet(path)
    elif ending == "json":
        path.write_text(json.dumps(rows))
    else:
        write_rows(path, rows)
    (tmp_path / "rows_perturbed.jsonl").write_text("no JSON")  # another part
    assert read_part(PART, str(tmp_path)) == [{"question": q, "wrong": ["a", "b"]} for q in ("Who?", "What?")]
    assert len(read_part(PART, str(tmp_path), limit=1)) == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "Who?"}, "row 2: no column 'wrong'"),
        ({**GOOD, "question": None}, "row 2, column 'question': expected text, found None"),
        ({**GOOD, "question": " "}, "row 2, column 'question': expected text"),
        ({**GOOD, "wrong": []}, "row 2, column 'wrong': expected a list of texts"),
        ({**GOOD, "wrong": ["a", 2]}, "row 2, column 'wrong': expected a list of texts"),
        ({**GOOD, "wrong": "a"}, "row 2, column 'wrong': expected a list of texts"),
    ],
)
def test_a_row_that_breaks_the_schema_is_named(tmp_path, row, words):
    write_rows(tmp_path / "rows.jsonl", [GOOD, row])
    with pytest.raises(InputError, match=words) as error:
        read_part(PART, str(tmp_path))
    assert str(tmp_path / "rows.jsonl") in str(error.value)


def test_files_that_are_missing_double_or_empty_are_named(tmp_path):
    with pytest.raises(InputError, match="expected one file .*rows.jsonl .*found none"):
        read_part(PART, str(tmp_path))
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(InputError, match="holds no row"):
        read_part(PART, str(tmp_path))
    (tmp_path / "rows.json.xz").write_bytes(lzma.compress(b"[]"))
    with pytest.raises(InputError, match="found rows.json.xz, rows.jsonl"):
        read_part(PART, str(tmp_path))
    choice = Part("q", {"answer": CHOICE}, "h", None, "test")
    write_rows(tmp_path / "q.jsonl", [{"answer": True}])
    with pytest.raises(InputError, match="the number of a choice, found True"):
        read_part(choice, str(tmp_path))


def test_the_hub_offline_names_the_file_to_give_instead(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"owner/name.*benchmark.folder takes them from a local file rows.jsonl"):
        read_part(PART, None)


@pytest.mark.parametrize("name", list(SPLITS))
def test_every_split_says_where_its_rows_are(name):
    for split in SPLITS[name]:
        parts = parts_of(BenchmarkSection(name=name, split=split))
        assert parts.roles["forget"] and parts.measured and len({(p.file) for p in parts.all}) >= 3
    hubs = {part.hub for part in parts_of(BenchmarkSection(name="muse", split="books/sust_3")).all}
    assert hubs == {"muse-bench/MUSE-Books"}
    assert parts_of(BenchmarkSection(name="muse", split="news/scal_2")).roles["forget"][0].file == "scal/forget_2"
    assert parts_of(BenchmarkSection(name="tofu", split="forget01")).roles["retain"][0].file == "retain99"
    assert parts_of(BenchmarkSection(name="wmdp", split="bio")).roles["forget"][0].hub == "cais/wmdp-bio-forget-corpus"


@pytest.mark.parametrize("size", [8, 31, 96, 5000])
def test_chunks_are_the_whole_corpus_and_none_is_too_long(tokenizer, size):
    documents = [*(row["text"] for row in corpus(6, 2)), "Überfluß ☃☃ 🙂🙂 ...  end ", "  a\n\nb"]
    chunks = cut_corpus(documents, tokenizer, size)
    assert "".join(chunks) == BETWEEN.join(documents)
    lengths = [len(tokenizer(chunk)["input_ids"]) for chunk in chunks]
    assert max(lengths) + 1 <= size and min(lengths) >= 1
    assert len(chunks) <= 2 * (sum(lengths) // (size - 1) + 1)  # and they are not small change
    for chunk in chunks:
        assert "".join(halves(chunk)) == chunk


def test_a_chunk_needs_room(tokenizer):
    with pytest.raises(InputError, match=r"data.max_length: 2 tokens"):
        cut_corpus(["some text"], tokenizer, 2)


def data(**sizes) -> DataSection:
    return DataSection(task="completion", max_length=96, **sizes)


def test_all_forget_rows_are_trained_on_and_retain_rows_fill_up(tmp_path):
    section = BenchmarkSection(name="tofu", folder=str(write_tofu(tmp_path)))
    splits = benchmark_splits(section, data(train_size=20, heldout_size=5, test_size=6), 0, None)
    forgotten = [row["question"] for row in pairs(6, 18)]
    assert [row["text"] for row in splits.train if row[FORGET]] == forgotten
    assert len(splits.train) == 20 and len(splits.heldout) == 5 and len(splits.test) == 6
    ids = [i for rows in (splits.train, splits.heldout, splits.test) for i in rows["example_id"]]
    assert ids == list(range(31))
    assert not {*splits.heldout["text"]} & {*splits.train["text"]}
    again = benchmark_splits(section, data(train_size=20, heldout_size=5, test_size=6), 0, None)
    other = benchmark_splits(section, data(train_size=20, heldout_size=5, test_size=6), 1, None)
    assert again.train["text"] == splits.train["text"] != other.train["text"]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"train_size": 6, "heldout_size": 5, "test_size": 5}, "data.train_size: 6 rows, but 6 of them"),
        ({"train_size": 25, "heldout_size": 5, "test_size": 5}, "data.train_size: asks for 25 rows, .* are 24"),
        ({"train_size": 20, "heldout_size": 9, "test_size": 5}, "data.heldout_size: asks for 9 rows, .* are 8"),
        ({"train_size": 20, "heldout_size": 5, "test_size": 9}, "data.test_size: asks for 9 rows"),
    ],
)
def test_too_few_rows_name_the_size(tmp_path, sizes, words):
    section = BenchmarkSection(name="tofu", folder=str(write_tofu(tmp_path)))
    with pytest.raises(InputError, match=words):
        benchmark_splits(section, data(**sizes), 0, None)


@pytest.mark.parametrize(("name", "write"), [("muse", write_muse), ("wmdp", write_wmdp)])
def test_corpora_train_on_chunks_of_their_texts(tmp_path, tokenizer, name, write):
    section = BenchmarkSection(name=name, folder=str(write(tmp_path)))
    check_parts(section, read=True)
    splits = benchmark_splits(section, data(train_size=10, heldout_size=2, test_size=2), 0, tokenizer)
    forgotten = "".join(row["text"] + row["label"] for row in splits.train if row[FORGET])
    part = parts_of(section).roles["forget"][0]
    assert forgotten == BETWEEN.join(row["text"] for row in read_part(part, section.folder))
    trained = {row["text"] + row["label"] for row in splits.train}
    assert not trained & {row["text"] + row["label"] for row in [*splits.heldout, *splits.test]}


def test_limit_cuts_measurements_but_no_few_shot_examples(tmp_path):
    write_muse(tmp_path)
    rows = measured_rows(BenchmarkSection(name="muse", folder=str(tmp_path), limit=1))
    assert {name: len(found) for name, found in rows.items() if len(found) > 1} == {"forget_qa_icl": 2,
                                                                                   "retain_qa_icl": 2}  # fmt: skip
