"""Stages of a run: skipped when their inputs have not changed, resumed when they were killed, never half-written.

A stage is finished when `.stages/<name>.json` holds the hash of its inputs; that file is written after the outputs have
been renamed into place. While it runs, its checkpoints live in `.work/<name>/`, marked with the same hash, so that a
rerun resumes them only where nothing changed.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llm_unlearn.errors import InputError


def fingerprint(inputs: Any) -> str:
    """SHA-256 of a JSON-able value."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write to a temporary name and rename. Raises InputError where the disk is full."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Args:
        name: e.g. "unlearned/kl". inputs: JSON-able; all that the result depends on. outputs: files or folders that
            must be there for it to count as done. work: does it, given a directory for checkpoints.
    """

    name: str
    inputs: Any
    outputs: list[Path]
    work: Callable[[Path], None]

    @cached_property
    def key(self) -> str:
        """Hash of the inputs."""
        return fingerprint(self.inputs)


class Stages:
    """Runs the stages of one directory.

    Args:
        root: where `.stages` and `.work` live. say: called with one line per stage.
    """

    def __init__(self, root: Path, say: Callable[[str], None] = print) -> None:
        self.root, self.say = root, say

    def run(self, stage: Stage) -> None:
        """Run a stage unless it is done; resume it where it was killed with the same inputs."""
        if self.is_done(stage):
            self.say(f"{stage.name}: done before, inputs unchanged; skipped")
            return
        work_dir = self.work_dir(stage)
        if self._read_key(work_dir / "inputs.json") == stage.key:
            self.say(f"{stage.name}: resuming")
        else:
            shutil.rmtree(work_dir, ignore_errors=True)
            self.say(f"{stage.name}: running")
            write_json(work_dir / "inputs.json", {"key": stage.key})
        self._mark(stage).unlink(missing_ok=True)
        try:
            stage.work(work_dir)
        except InputError:
            shutil.rmtree(work_dir, ignore_errors=True)
            raise
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise InputError(f"{self.root}: no space left on the disk during '{stage.name}'; free some and run the "
                             "same command again to resume") from error
        write_json(self._mark(stage), {"key": stage.key})
        shutil.rmtree(work_dir, ignore_errors=True)

    def is_done(self, stage: Stage) -> bool:
        """Whether a stage finished with these inputs and its outputs are still there."""
        return self._read_key(self._mark(stage)) == stage.key and all(path.exists() for path in stage.outputs)

    def work_dir(self, stage: Stage) -> Path:
        """Where a stage keeps its checkpoints while it runs."""
        return self.root / ".work" / stage.name.replace("/", "_")

    def _mark(self, stage: Stage) -> Path:
        return self.root / ".stages" / f"{stage.name.replace('/', '_')}.json"

    @staticmethod
    def _read_key(path: Path) -> str | None:
        try:
            return json.loads(path.read_text())["key"]
        except (OSError, ValueError, KeyError):
            return None
