"""A run directory is held by one process, and by none that is gone."""

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

from llm_unlearn.errors import InputError
from llm_unlearn.runs import folder_lock
from llm_unlearn.runs.folder_lock import LOCK, locked_folder

pytestmark = pytest.mark.unit

HOLD = """
import os, sys, time
from pathlib import Path
from llm_unlearn.runs.folder_lock import locked_folder
with locked_folder(Path(sys.argv[1])):
    if "fork" not in sys.argv or os.fork() == 0:
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

    monkeypatch.setattr(folder_lock.os, "open", read_only)
    with locked_folder(tmp_path):
        assert os.listdir(tmp_path) == []


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "flock", no_locks)
    with locked_folder(tmp_path):
        assert "no locks" in caplog.text
