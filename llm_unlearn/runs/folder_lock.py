"""One command at a time in a run directory: a lock that the system releases when the process ends, however it ends."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from llm_unlearn.errors import DiskFullError, InputError, redacted
from llm_unlearn.files import is_disk_full

logger = logging.getLogger(__name__)

LOCK = ".lock"


@contextlib.contextmanager
def locked_folder(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold a folder for one command: the lock file in it is locked, and says who holds it.

    The system releases the lock when the process ends, however it ends; the file may then stay behind, which locks
    nothing. NFS and most cluster file systems honour it between machines.

    Args:
        folder: made if it is missing; removed again where it is empty in the end.
        wait: wait for whoever holds the lock, saying so once, instead of refusing.

    Raises:
        InputError: another command holds the folder; the message says which. Or the lock cannot be written.
    """
    made_here = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(folder, wait)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{folder}: is a file, or below one; choose another output_dir") from error
    except OSError as error:
        kind = DiskFullError if is_disk_full(error) else InputError
        raise kind(f"{folder}: cannot be locked: {error.strerror}") from error
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()
            _held.discard(descriptor)
            os.close(descriptor)
        for each in made_here:
            with contextlib.suppress(OSError):  # not empty
                each.rmdir()


_held: set[int] = set()  # descriptors of the locks of this process


def _close_inherited() -> None:
    """In a forked process: a copy of the descriptor would hold the lock after its owner was killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_inherited)


def _lock(folder: Path, wait: bool) -> int | None:
    """The descriptor of the folder's lock; None where nothing can be written, or no file be locked, which is said."""
    path, said = folder / LOCK, False
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EROFS) and not path.exists():
                return None  # to be read only, as `push` does
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_holder(descriptor)
            os.close(descriptor)
            if not wait:
                raise InputError(
                    f"{folder}: is in use: {holder}. Wait until that has ended, or choose another output_dir"
                ) from None
            if not said:
                logger.info("%s: is in use: %s; waiting", folder, holder)
            said = True
            time.sleep(1)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            logger.warning("%s: its file system has no locks (%s); start one run there at a time", folder, error)
            return None
        else:
            if _is_file_of(descriptor, path):
                _held.add(descriptor)
                _write_holder(descriptor)
                return descriptor
            os.close(descriptor)  # whoever held it removed the file meanwhile


def _is_file_of(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _write_holder(descriptor: int) -> None:
    command = redacted(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": since, "command": command}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode("utf-8", "replace"), 0)


def _read_holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 10_000, 0))
        return "process {pid} on {host} since {since} (`{command}`)".format(**holder)
    except (OSError, ValueError, KeyError, TypeError):  # it has only just been locked
        return "a process that has only just begun"
