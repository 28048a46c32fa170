"""Work in several processes: every item once, order where it matters, the first error, a GPU each."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from llm_unlearn.runs import workers as parallel
from llm_unlearn.runs.workers import run_all

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


def stay(folder: str, name: str) -> None:
    """Leave the number of this process, then work for ever."""
    (Path(folder) / name).write_text(str(os.getpid()))
    time.sleep(600)


def parent_of_workers(folder: str) -> None:
    run_all(stay, [(folder, "a"), (folder, "b")], {}, jobs=2)


def read(folder: Path) -> dict[str, list[str]]:
    return {path.name: path.read_text().split() for path in folder.iterdir()}


def test_in_one_process_items_run_in_their_order(tmp_path):
    run_all(note, [(str(tmp_path), "a"), (str(tmp_path), "b", "a")], {1: {0}}, jobs=1)
    assert {said[1] for said in read(tmp_path).values()} == {str(os.getpid())}


def test_in_two_processes_each_item_runs_once_and_after_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(parallel, "_visible_gpus", lambda: ["3", "5"])
    items = [(str(tmp_path), "a"), (str(tmp_path), "b"), (str(tmp_path), "c", "a"), (str(tmp_path), "d", "b")]
    run_all(note, items, {2: {0}, 3: {0, 1}}, jobs=2)
    said = read(tmp_path)
    assert set(said) == set("abcd")
    assert str(os.getpid()) not in {line[1] for line in said.values()}
    assert {line[2] for line in said.values()} == {"3", "5"}  # one GPU per process
    assert len({(line[1], line[2]) for line in said.values()}) == 2
    assert {line[3] for line in said.values()} == {str(max(1, os.cpu_count() // 2))}


def test_the_first_error_is_raised_and_nothing_new_begins(tmp_path):
    items = [(str(tmp_path), "a"), (str(tmp_path), "bad", None, True), (str(tmp_path), "never", "bad")]
    with pytest.raises(ValueError, match="bad fails"):
        run_all(note, items, {2: {1}}, jobs=2)
    assert set(read(tmp_path)) <= {"a"}


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks at processes where Linux shows them")
def test_workers_end_with_the_process_that_started_them(tmp_path):
    parent = multiprocessing.get_context("spawn").Process(target=parent_of_workers, args=(str(tmp_path),))
    parent.start()
    texts = poll(lambda: [p.read_text() for p in tmp_path.iterdir()], lambda found: len(found) == 2 and all(found))
    pids = [int(text) for text in texts]
    parent.kill()
    parent.join()
    poll(lambda: [pid for pid in pids if is_running(pid)], lambda left: not left)


def poll(look, is_enough, seconds: float = 60):
    """What `look` returns once it is enough."""
    end = time.time() + seconds
    while not is_enough(found := look()):
        assert time.time() < end, f"still {found}"
        time.sleep(0.05)
    return found


def is_running(pid: int) -> bool:
    """Whether a process does anything still; a zombie that nobody has collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
