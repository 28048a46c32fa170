"""Files and folders that are replaced whole or not at all."""

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from llm_unlearn import files
from llm_unlearn.errors import DiskFullError, InputError
from llm_unlearn.files import LOCK, file_stamps, locked_folder, replacing_file, replacing_folder, write_json

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


# ---- the lock

HOLD = """
import os, sys, time
from pathlib import Path
from llm_unlearn.files import locked_folder
with locked_folder(Path(sys.argv[1])):
    child = os.fork() if "fork" in sys.argv else 1
    if child:
        print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def held(folder, *arguments):
    """A process that holds a folder, killed in the end."""
    command = [sys.executable, "-c", HOLD, str(folder), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_a_locked_folder_is_refused_with_who_holds_it_until_that_process_is_killed(tmp_path):
    with held(tmp_path) as process:
        with pytest.raises(InputError) as refusal, locked_folder(tmp_path):
            pass
        for words in (str(tmp_path), f"process {process.pid}", socket.gethostname(), "another output_dir"):
            assert words in str(refusal.value)
        process.kill()
        process.wait()
        with locked_folder(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path) == []


def test_a_child_of_a_killed_process_does_not_hold_its_lock(tmp_path):
    with held(tmp_path, "fork") as process:
        process.kill()
        process.wait()
        with locked_folder(tmp_path):
            pass


def test_a_lock_may_be_waited_for(tmp_path, caplog):
    caplog.set_level("INFO", "llm_unlearn")
    with held(tmp_path) as process:
        signal.signal(signal.SIGALRM, lambda *_: process.kill())
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        began = time.monotonic()
        with locked_folder(tmp_path, wait=True):
            assert time.monotonic() - began > 0.3
    assert [message for message in caplog.messages if str(process.pid) in message and "waiting" in message]


def test_one_process_holds_a_folder_once(tmp_path):
    with (
        locked_folder(tmp_path / "run"),
        pytest.raises(InputError, match=str(os.getpid())),
        locked_folder(tmp_path / "run"),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_a_folder_that_can_only_be_read_is_not_locked(tmp_path, monkeypatch):
    def read_only(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files.os, "open", read_only)
    with locked_folder(tmp_path):
        assert os.listdir(tmp_path) == []


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    with locked_folder(tmp_path):
        assert "no locks" in caplog.text


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
