"""Files and folders that are replaced whole or not at all."""

import errno
import os
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from llm_unlearn import files
from llm_unlearn.errors import DiskFullError, InputError
from llm_unlearn.files import file_stamps, replacing_file, replacing_folder, write_json

pytestmark = pytest.mark.unit


def test_a_file_is_replaced_once_all_is_written(tmp_path):
    path = tmp_path / "new" / "a.txt"
    for text in ("one", "two"):
        with replacing_file(path) as partial:
            partial.write_text(text)
            assert partial.parent == path.parent and (path.read_text() if path.exists() else "one") == "one"
        assert path.read_text() == text
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_file_that_breaks_off_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing_file(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EACCES, InputError)])
def test_what_the_system_refuses_names_the_file(tmp_path, number, kind):
    path = tmp_path / "a.txt"
    with pytest.raises(kind, match=str(path)), replacing_file(path):
        raise OSError(number, os.strerror(number))


def test_a_folder_is_replaced_whole_and_what_was_left_half_written_is_removed(tmp_path):
    folder, left = tmp_path / "model", tmp_path / "model.partial"
    left.mkdir()
    (left / "stale").write_text("")
    folder.mkdir()
    (folder / "old").write_text("")
    with replacing_folder(folder) as partial:
        assert partial == left and not left.exists()
        (partial / "inner").mkdir(parents=True)
        (partial / "inner" / "new").write_text("")
        assert (folder / "old").exists()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["inner", "model", "new"]


def test_a_folder_that_breaks_off_leaves_the_old_one(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("")
    with pytest.raises(KeyboardInterrupt), replacing_folder(folder) as partial:
        partial.mkdir()
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["model", "old"]


def test_what_is_written_reaches_the_disk_before_the_name_does(tmp_path, monkeypatch):
    calls = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("sync"), sync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    write_json(tmp_path / "a.json", {})
    assert calls == ["sync", "rename", "sync"]


# ---- stamps


def rewritten(path, text: str) -> None:
    """Write a file and set its time back."""
    before = path.stat()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("large", [2, 2**26])
def test_stamps_see_a_change_that_keeps_size_and_time(tmp_path, monkeypatch, large):
    monkeypatch.setattr(files, "LARGE", large)
    monkeypatch.setattr(files, "SETTLED", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "a.jsonl"
    path.write_text("one")
    before = file_stamps([str(path)])
    time.sleep(0.02)  # a file's times count ticks of a few milliseconds
    rewritten(path, "two")
    assert file_stamps([str(path)]) != before
    time.sleep(0.02)
    rewritten(path, "one")
    os.utime(path)
    assert file_stamps([str(path)]) == before


def test_a_change_within_one_tick_of_the_clock_is_seen(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("one")
    stamps = []
    for text in ("two", "six", "ten"):
        rewritten(path, text)
        stamps.append(file_stamps([str(path)]))
    assert len({str(stamp) for stamp in stamps}) == 3


def test_a_large_file_is_read_once_for_all_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGE", 2)
    monkeypatch.setattr(files, "SETTLED", -1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "weights.safetensors"
    path.write_text("weights")
    before = file_stamps([str(path)])
    files._hash_of_state.cache_clear()
    monkeypatch.setattr(files, "_hash_now", None)
    assert file_stamps([str(path)]) == before


def test_a_file_whose_name_is_a_pattern_is_stamped(tmp_path):
    (tmp_path / "a[1].jsonl").write_text("one")
    assert len(file_stamps([str(tmp_path / "a[1].jsonl")])) == 1


def test_what_is_private_is_for_its_owner_and_the_rest_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {}, private=True)
        write_json(tmp_path / "b.json", {})
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a.json", "b.json")] == [0o600, 0o640]


def test_a_full_quota_is_a_full_disk(tmp_path):
    with pytest.raises(DiskFullError), replacing_file(tmp_path / "a.txt"):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    assert files.is_disk_full(RuntimeError("I/O error: Disk quota exceeded (os error 122)"))


def test_weights_in_a_folder_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with replacing_folder(tmp_path / "model") as partial:
            partial.mkdir()
            save_file({"w": np.zeros(1)}, partial / "model.safetensors")
            assert (partial / "model.safetensors").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    assert (tmp_path / "model" / "model.safetensors").stat().st_mode & 0o777 == 0o640
