"""Files and folders that are replaced whole or not at all."""

import errno
import os

import pytest

from llm_unlearn.errors import DiskFullError, InputError
from llm_unlearn.files import replacing_file, replacing_folder, write_json

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
