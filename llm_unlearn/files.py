"""Write files whole or not at all, lock a folder, hash what a stage depends on, and recognise a full disk."""

import contextlib
import errno
import fcntl
import functools
import glob
import hashlib
import json
import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_unlearn.errors import DiskFullError, InputError, redacted

logger = logging.getLogger(__name__)

LARGE = 2**26  # bytes of a file whose hash is kept between runs: reading a smaller one takes under 0.1 s
SETTLED = 2.0  # seconds after which a change must show in a file's times; those of some file systems count seconds


def fingerprint(inputs: Any) -> str:
    """SHA-256 of a JSON-able value."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def file_stamps(paths: list[str]) -> list[Any]:
    """[path, SHA-256] of every local file that paths, globs and folders name, to notice a change of its content.

    A file whose inode, size and times (that of its last change among them, which nobody can set) are those of an
    earlier reading is not read again.
    """
    names = [os.path.expanduser(path) for path in paths]
    matches = [
        m for name in names for m in ([name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True)))
    ]
    files = [
        f for path in matches for f in (sorted(map(str, Path(path).rglob("*"))) if os.path.isdir(path) else [path])
    ]
    return [[file, _content_hash(file)] for file in files if os.path.isfile(file)]


def _content_hash(file: str) -> str:
    try:
        found = os.stat(file)
        state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if time.time() - found.st_ctime < SETTLED:
            return _hash_now(file)
        return _hash_of_state(os.path.abspath(file), state)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error


@functools.lru_cache(maxsize=10_000)
def _hash_of_state(file: str, state: tuple[int, ...]) -> str:
    """The hash of a file that is in this state, remembered in the user's cache where reading it takes long."""
    if state[2] < LARGE:
        return _hash_now(file)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llm_unlearn" / "hashes"
    memo = cache / fingerprint([file, *state])
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if len(known := memo.read_text()) == 64:
            return known
    digest = _hash_now(file)
    with contextlib.suppress(InputError):  # a cache that cannot be written costs time alone
        write_text(memo, digest)
    return digest


def _hash_now(file: str) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


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


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: to a temporary name beside it, synced, then renamed.

    Args:
        path: the file, replaced once the block ends without an error. Its folder is made if it is missing.

    Yields:
        the temporary name for the block to write. It holds the process id, since several processes may write one file.

    Raises:
        InputError: the file cannot be written.
        DiskFullError: there is no space left.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)
    except OSError as error:
        kind = DiskFullError if is_disk_full(error) else InputError
        raise kind(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Write a folder whole or not at all: under a temporary name beside it, synced, then renamed.

    Args:
        folder: replaced once the block ends without an error.

    Yields:
        the temporary name for the block to create; the leftovers of a killed process are removed first.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        for path in partial.rglob("*"):
            _sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync(path: Path) -> None:
    """Flush a file, or a folder's directory entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, private: bool = False) -> None:
    """Write a text file whole or not at all, where it is private for its owner alone; see `replacing_file`."""
    with replacing_file(path) as partial:
        partial.touch(0o600 if private else 0o666)
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, private: bool = False) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", private)


# How pyarrow, safetensors and torch.save report a full disk; torch.save raises no OSError.
DISK_FULL_WORDS = (
    "No space left on device",
    "Disk quota exceeded",
    "iostream error",
    "PytorchStreamWriter failed writing",
)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one in its chain of causes, means a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in DISK_FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def explained_full_disk(root: Path, what: str) -> Iterator[None]:
    """Turn any error that a full disk causes during `what` into a DiskFullError that names `root` and the remedy."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or not is_disk_full(error):
            raise
        raise DiskFullError(
            f"{root}: no space left on the disk, or in its quota, during '{what}'; free some and run the same command "
            "again to resume"
        ) from error
