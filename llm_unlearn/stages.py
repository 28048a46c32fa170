"""Stages of a run: skipped when their inputs have not changed, resumed when they were killed, never half-written.

A stage is finished when `.stages/<name>.json` holds the hash of its inputs; that file is written after the outputs have
been renamed into place. While it runs, its checkpoints live in `.work/<name>/`, marked with the same hash, so that a
rerun resumes them only where nothing changed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
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


class Stages:
    """The stages of one directory.

    Args:
        root: where `.stages` and `.work` live. say: called with one line per stage.
    """

    def __init__(self, root: Path, say: Callable[[str], None]) -> None:
        self.root, self.say = root, say

    def key(self, name: str) -> str | None:
        """The input hash under which a stage last finished, or None."""
        try:
            return json.loads(self._mark(name).read_text())["key"]
        except (OSError, ValueError, KeyError):
            return None

    def run(self, name: str, inputs: Any, outputs: list[Path], work: Callable[[Path], None]) -> str:
        """Run `work(work_dir)` unless the stage is finished with these inputs and its outputs are there.

        Returns:
            the hash of the inputs, for later stages to depend on.
        """
        key = fingerprint(inputs)
        if self.is_done(name, inputs, outputs):
            self.say(f"{name}: done before, inputs unchanged; skipped")
            return key
        work_dir = self.root / ".work" / name.replace("/", "_")
        owner = work_dir / "inputs.json"
        if owner.is_file() and json.loads(owner.read_text() or "{}").get("key") == key:
            self.say(f"{name}: resuming")
        else:
            shutil.rmtree(work_dir, ignore_errors=True)
            self.say(f"{name}: running")
            write_json(owner, {"key": key})
        self._mark(name).unlink(missing_ok=True)
        work(work_dir)
        write_json(self._mark(name), {"key": key, "outputs": [str(p.relative_to(self.root)) for p in outputs
                                                               if p.is_relative_to(self.root)]})
        shutil.rmtree(work_dir, ignore_errors=True)
        return key

    def is_done(self, name: str, inputs: Any, outputs: list[Path]) -> bool:
        """Whether a stage finished with these inputs and its outputs are still there."""
        return self.key(name) == fingerprint(inputs) and all(path.exists() for path in outputs)

    def _mark(self, name: str) -> Path:
        return self.root / ".stages" / f"{name.replace('/', '_')}.json"
