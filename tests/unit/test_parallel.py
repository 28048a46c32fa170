"""Work in several processes: every item once, order where it matters, the first error, a GPU each."""

import os
import time
from pathlib import Path

import pytest

from llm_unlearn import parallel
from llm_unlearn.parallel import run_all

pytestmark = pytest.mark.unit


def note(folder: str, name: str, wait_for: str | None = None, fail: bool = False) -> None:
    """Leave a file with the start, the end and the process of this item."""
    began = time.time()
    if wait_for is not None:
        assert (Path(folder) / wait_for).is_file(), f"{name} began before {wait_for} ended"
    if fail:
        raise ValueError(f"{name} fails")
    time.sleep(0.05)
    said = [began, os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS")]
    (Path(folder) / name).write_text(" ".join(map(str, said)))


def read(folder: Path) -> dict[str, list[str]]:
    return {path.name: path.read_text().split() for path in folder.iterdir()}


def test_in_one_process_items_run_in_their_order(tmp_path):
    run_all(note, [(str(tmp_path), "a"), (str(tmp_path), "b", "a")], {1: 0}, jobs=1)
    assert {said[1] for said in read(tmp_path).values()} == {str(os.getpid())}


def test_in_two_processes_each_item_runs_once_and_after_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(parallel, "_visible_gpus", lambda: ["3", "5"])
    items = [(str(tmp_path), "a"), (str(tmp_path), "b"), (str(tmp_path), "c", "a"), (str(tmp_path), "d", "b")]
    run_all(note, items, {2: 0, 3: 1}, jobs=2)
    said = read(tmp_path)
    assert set(said) == set("abcd")
    assert str(os.getpid()) not in {line[1] for line in said.values()}
    assert {line[2] for line in said.values()} == {"3", "5"}  # one GPU per process
    assert len({(line[1], line[2]) for line in said.values()}) == 2
    assert {line[3] for line in said.values()} == {str(max(1, os.cpu_count() // 2))}


def test_the_first_error_is_raised_and_nothing_new_begins(tmp_path):
    items = [(str(tmp_path), "a"), (str(tmp_path), "bad", None, True), (str(tmp_path), "never", "bad")]
    with pytest.raises(ValueError, match="bad fails"):
        run_all(note, items, {2: 1}, jobs=2)
    assert set(read(tmp_path)) <= {"a"}
