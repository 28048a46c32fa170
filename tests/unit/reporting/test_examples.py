"""Reading per-example signals and the texts of a data set: what is there, what is absent, what is damaged."""

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset

from llm_unlearn.errors import InputError
from llm_unlearn.reporting.examples import read_texts
from llm_unlearn.reporting.run_results import read_results, read_rows


@pytest.fixture
def rows(tmp_path):
    """Four texts in two Arrow files."""
    folder = tmp_path / "data" / "train"
    Dataset.from_dict({"text": list("abcd"), "prompt": ["?"] * 4, "example_id": [3, 1, 7, 5]}).save_to_disk(
        str(folder), num_shards=2
    )
    return folder


def test_texts_are_found_by_id_in_every_shard(rows):
    assert read_texts(rows, [5, 3, 99]) == {3: "a", 5: "d"}
    assert read_texts(rows, []) == {}


def test_a_prompt_stands_for_a_text_and_images_have_none(tmp_path):
    Dataset.from_dict({"prompt": ["p"], "example_id": [0]}).save_to_disk(str(tmp_path / "prompts"))
    Dataset.from_dict({"image": [b"PNG"], "example_id": [0]}).save_to_disk(str(tmp_path / "images"))
    assert read_texts(tmp_path / "prompts", [0]) == {0: "p"}
    assert read_texts(tmp_path / "images", [0]) == {}


def test_what_is_absent_is_empty(rows):
    assert read_texts(rows.parent / "test", [0]) == {}
    next(rows.glob("*.arrow")).unlink()  # as where large files were not fetched
    assert read_texts(rows, [3, 5]) == {}


@pytest.mark.parametrize(
    ("name", "content"),
    [("data-00001-of-00002.arrow", b"cut short"), ("state.json", b"{}"), ("state.json", b'{"_data_files": null}')],
)
def test_damaged_data_is_named_with_a_way_out(rows, name, content):
    (rows / name).write_bytes(content)
    with pytest.raises(InputError, match=r"data/train: cannot be read.*restore it"):
        read_texts(rows, [3])


def test_only_test_inputs_and_canaries_are_read(make_run):
    run = make_run(seeds=[0, 1])
    (run / "seed-1" / "evaluation" / "kl.parquet").unlink()
    rows = {
        "set": ["test", "member", "canary"],
        "example_id": [1, 2, 2],
        "nll": [0.1, 0.2, 0.3],
        "gaussian_score": [None, None, 1.5],
    }
    pyarrow.parquet.write_table(pyarrow.table(rows), run / "seed-0" / "evaluation" / "kl.parquet")
    found = read_rows(read_results(run), "kl")
    assert found[["seed", "set", "example_id"]].to_numpy().tolist() == [[0, "test", 1], [0, "canary", 2]]
    assert found["gaussian_score"].tolist()[1] == 1.5 and found["deleted"].isna().all()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: pyarrow.parquet.write_table(pyarrow.table({"set": ["test"]}), path), "column 'example_id' .*"),
        (lambda path: path.write_bytes(b"no parquet"), "cannot .*evaluate kl again"),
    ],
)
def test_a_per_example_file_that_is_none_is_named(run_dir, write, message):
    write(run_dir / "evaluation" / "kl.parquet")
    with pytest.raises(InputError, match=rf"kl\.parquet: {message}"):
        read_rows(read_results(run_dir), "kl")
