"""The folder that an audit writes to: of each model one JSON and one Parquet file, all of them of one audit.

A figure of another manifest, or of other attacks, is not to lie beside these as if it were theirs, nor an earlier
verdict on a model whose audit now fails. So each JSON file says of which audit it is.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.errors import InputError
from llm_unlearn.files import fingerprint, write_json

if TYPE_CHECKING:
    import pandas as pd

    from llm_unlearn.audit.subject import Subject

AUDIT, SOURCE = "audit", "source"  # the fields of a file that say it, and of which model it is


def key_of(subject: "Subject", options: dict[str, Any]) -> str:
    """Hash of what makes figures comparable: rows, poison and settings; not the models.

    Args:
        subject: what they are audited by.
        options: those of the command line that change figures.
    """
    from llm_unlearn.poisons.stored import data_hash, storable

    rows, settings = data_hash(storable(subject.sets)), [vars(subject.encoding), subject.verbalizers, subject.poison]
    sections = [subject.model.model_dump(), subject.evaluate.model_dump(exclude={"batch_size", "device_map"})]
    return fingerprint([rows, settings, sections, options])


def made_folder(out: str, sources: Mapping[str, str], key: str) -> Path:
    """The folder, made before the hours of evaluation.

    Args:
        out: where it is to be.
        sources: name → folder or hub id of each model that will be written.
        key: of this audit.

    Raises:
        InputError: it cannot be made, has the files of another audit, or others that would be written over.
    """
    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be made: {error.strerror}") from None
    audits = {path: found for path in sorted(folder.glob("*.json")) if (found := _audit_of(path)) is not None}
    if other := next((path for path, found in audits.items() if found != key), None):
        raise InputError(
            f"--out {out}: {other.name} is of another audit (other rows, poison or options, --poisoned among them), "
            "which is not to be mixed with this one; give a new folder, or delete what is there"
        )
    for name, source in sources.items():
        files = _files(folder, name)
        if files[0] not in audits and (other := next((path for path in files if path.exists()), None)):
            raise InputError(f"--out {out}: {other.name} is of no audit, and would be written over; give a new folder")
        if (before := (_tree(files[0]) or {}).get(SOURCE)) not in (None, _whole(source)):
            raise InputError(f"--out {out}: {files[0].name} is of {before}, another model; give a new folder")
    return folder


def forget_result(folder: Path, name: str) -> None:
    """Remove what an earlier call wrote of a model that is now measured again."""
    for path in _files(folder, name):
        path.unlink(missing_ok=True)


def write_result(folder: Path, name: str, source: str, tree: dict[str, Any], signals: "pd.DataFrame", key: str) -> None:
    """Write the evaluation of one model and its signals."""
    from llm_unlearn.evaluation.signal_files import write_signals

    result, table = _files(folder, name)
    write_signals(signals, table)
    write_json(result, {**tree, AUDIT: key, SOURCE: _whole(source)})


def _files(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.json", folder / f"{name}.parquet"


def _whole(source: str) -> str:
    """A folder's whole path, or a hub id."""
    folder = Path(source).expanduser()
    return str(folder.resolve()) if folder.is_dir() else source


def _audit_of(path: Path) -> str | None:
    """The audit of a file, "" where it does not say it; None of a file that no audit wrote."""
    tree = _tree(path)
    return None if tree is None or not (AUDIT in tree or tree.get("kind") == "audited") else str(tree.get(AUDIT, ""))


def _tree(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None where there is none."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return tree if isinstance(tree, dict) else None
