"""Stages of a run: skipped when their inputs have not changed, resumed when they were killed, never half-written.

A stage is finished when `.stages/<name>.json` holds the hash of its inputs, beside what made it; that file is written
after the outputs have been renamed into place. While it runs, its checkpoints live in `.work/<name>/`, marked with the
same hash, so that a rerun resumes them only where nothing changed. What other versions of the libraries made counts as
changed: all figures of a run come from one set of versions. Of several processes (`accelerate launch`) the main one
keeps the books.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llm_unlearn.distributed.processes import ALONE, Processes
from llm_unlearn.errors import DiskFullError, InputError
from llm_unlearn.files import explained_full_disk, fingerprint, read_json, replacing_folder, write_json
from llm_unlearn.runs.environment import describe_environment, other_versions, versions

logger = logging.getLogger(__name__)

MARK_REMEDY = "delete it to have that stage run again"


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Args:
        name: the stage's name, e.g. "unlearned/kl".
        inputs: all that the result depends on, as JSON can hold it.
        outputs: files or folders that must exist for the stage to count as done.
        work: does the work, given a directory for checkpoints.
        common: whether all processes work on it together; else the main one works alone.
        code: version of the code that does the work, raised where a change of it changes the outputs.
        about: what the mark says of it beside the environment.
        hashes: of what was read and written, by name, which the mark keeps; taken when the work is done.
        is_shared: whether other runs may stand on the outputs, which then stay whichever libraries made them.
        needs: stages of its own phase that must end before it begins.
    """

    name: str
    inputs: Any
    outputs: list[Path]
    work: Callable[[Path], None]
    common: bool = False
    code: int = 1
    about: dict[str, Any] = field(default_factory=dict)
    hashes: Callable[[], dict[str, str]] = dict
    is_shared: bool = False
    needs: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """Hash of the inputs and of the code's version."""
        return fingerprint([self.inputs, self.code])


class Stages:
    """Runs the stages of one directory.

    Args:
        root: where `.stages` and `.work` live.
        processes: those that run it; the main one logs a line per stage.
        prefix: before each line, where several runs log at a time.
    """

    def __init__(self, root: Path, processes: Processes = ALONE, prefix: str = "") -> None:
        self.root, self.processes, self.prefix = root, processes, prefix
        self._said: set[str] = set()

    def log(self, line: str) -> None:
        """Log a line about this run, from its main process."""
        if self.processes.is_main:
            logger.info("%s%s", self.prefix, line)

    def run(self, stage: Stage) -> bool:
        """Run a stage unless it is done (False); resume it where it was killed with the same inputs."""
        if self.processes.from_main(self.is_done(stage)):
            self.log(f"{stage.name}: done before, inputs unchanged; skipped")
            return False
        if self.processes.is_main:
            with self._entered(stage):
                self._work(stage)
        else:
            self._work(stage)
        self.processes.wait()
        return True

    def _work(self, stage: Stage) -> None:
        self.processes.wait()  # until the main process has looked at what is there
        if stage.common or self.processes.is_main:
            stage.work(self.work_dir(stage.name))
        self.processes.wait()

    @contextlib.contextmanager
    def _entered(self, stage: Stage) -> Iterator[None]:
        """Prepare the work of a stage; mark it as done after, or leave what can be resumed where input is bad."""
        work_dir, mark = self.work_dir(stage.name), self._mark(stage.name)
        made_here = [folder for folder in work_dir.parents if not folder.exists()]
        done_before = mark.read_bytes() if mark.is_file() else None
        resumes = self._is_current(work_dir / "inputs.json", stage)
        try:
            with explained_full_disk(self.root, stage.name):
                self._enter(stage, work_dir, resumes)
                mark.unlink(missing_ok=True)
                yield
                made_by = describe_environment() | stage.about
                content = {"stage": stage.name, "key": stage.key, "made_by": made_by, "sha256": stage.hashes()}
                write_json(mark, content)
        except InputError as error:
            _keep_resumable(work_dir)
            _remove_empty(made_here)
            if done_before is not None and not isinstance(error, DiskFullError):
                mark.write_bytes(done_before)  # refused before an output was touched: the old result stands
            raise
        shutil.rmtree(work_dir, ignore_errors=True)
        _remove_empty([work_dir.parent])

    def adopt(self, stage: Stage, others: list[Path]) -> bool:
        """Take the folder of a stage from another run directory that finished it with the same inputs, if one has.

        Files are linked, not copied, where the file system allows it: no stage writes into a file that is there.
        """
        return self.processes.from_main(self.processes.is_main and self._adopt(stage, others))

    def _adopt(self, stage: Stage, others: list[Path]) -> bool:
        if self.is_done(stage):
            return False
        for root in others:
            outputs = [root / path.relative_to(self.root) for path in stage.outputs]
            mark = Stages(root)._mark(stage.name)
            if self._is_current(mark, stage) and all(path.exists() for path in outputs):
                for target in dict.fromkeys(path.parent for path in stage.outputs):
                    source = root / target.relative_to(self.root)
                    with replacing_folder(target) as partial:
                        shutil.copytree(source, partial, copy_function=_link)
                write_json(self._mark(stage.name), _read_mark(mark))
                self.log(f"{stage.name}: the same as in {root}; taken from there")
                return True
        return False

    def _enter(self, stage: Stage, work_dir: Path, resumes: bool) -> None:
        if resumes:
            self.log(f"{stage.name}: resuming")
        else:
            shutil.rmtree(work_dir, ignore_errors=True)
            self.log(f"{stage.name}: running")
            write_json(work_dir / "inputs.json", {"key": stage.key, "made_by": {"versions": versions()}})

    def is_done(self, stage: Stage) -> bool:
        """Whether a stage finished with these inputs and its outputs are still there."""
        return self._is_current(self._mark(stage.name), stage) and all(path.exists() for path in stage.outputs)

    def made_by(self) -> dict[str, Any]:
        """Name of every finished stage → versions, device and commit that made it."""
        marks = [_read_mark(path) for path in sorted((self.root / ".stages").glob("*.json"))]
        return {mark["stage"]: mark["made_by"] for mark in marks if "stage" in mark}

    def hashes(self, name: str) -> dict[str, str]:
        """What the mark of a stage keeps of its `hashes`; nothing where there is no mark, or one without them."""
        kept = _read_mark(self._mark(name)).get("sha256")
        return kept if isinstance(kept, dict) else {}

    def _is_current(self, path: Path, stage: Stage) -> bool:
        """Whether a mark is of these inputs and, unless others may stand on the outputs, of these libraries."""
        mark = _read_mark(path)
        if mark.get("key") != stage.key:
            return False
        others = other_versions(mark["made_by"]["versions"])
        if others and self.processes.is_main and self._said.isdisjoint(others):
            self._said.update(others)  # once for all stages
            what = "is kept, since other runs may use it" if stage.is_shared else "is made again, as is all else"
            logger.warning(
                "%s%s was made with %s; it %s. Install these versions to keep a run as it is",
                self.prefix,
                stage.name,
                "; ".join(others),
                what,
            )
        return stage.is_shared or not others

    def work_dir(self, name: str) -> Path:
        """Where a stage keeps its checkpoints while it runs."""
        return self.root / ".work" / name.replace("/", "_")

    def _mark(self, name: str) -> Path:
        return self.root / ".stages" / f"{name.replace('/', '_')}.json"


def _read_mark(path: Path) -> dict[str, Any]:
    """{"key", "made_by"} of a stage that is done or begun, {} where there is no mark. Raises InputError if damaged."""
    if not path.is_file():
        return {}
    mark = read_json(path, MARK_REMEDY)
    made_by = mark.get("made_by", {})
    if not isinstance(mark.get("key"), str) or not isinstance(made_by, dict):
        raise InputError(f"{path}: is no mark of a stage; {MARK_REMEDY}")
    recorded = made_by.get("versions")
    return mark | {"made_by": made_by | {"versions": recorded if isinstance(recorded, dict) else {}}}


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _keep_resumable(work_dir: Path) -> None:
    """Leave of a stage that failed its last whole checkpoint, if it has one, and nothing else."""
    from llm_unlearn.training.checkpoints import last_checkpoint

    checkpoints = list(work_dir.glob("checkpoint-*"))
    last = last_checkpoint(work_dir) if checkpoints else None
    for path in checkpoints if last else [work_dir]:
        if str(path) != last:
            shutil.rmtree(path, ignore_errors=True)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # not empty, or never made
            continue
