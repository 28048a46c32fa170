"""The folder that an audit writes to: of each model one JSON and one Parquet file, all of them of one audit.

A figure of another manifest, or of other attacks, is not to lie beside these as if it were theirs, nor an earlier
verdict on a model whose audit now fails. So each JSON file says of which audit it is.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.errors import InputError
from llm_unlearn.files import fingerprint, write_json

if TYPE_CHECKING:
    import pandas as pd

    from llm_unlearn.audit.subject import Subject

AUDIT = "audit"  # the field of a file that says it


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


def made_folder(out: str, names: Iterable[str], key: str) -> Path:
    """The folder, made before the hours of evaluation; what an earlier call of this audit wrote of these models goes.

    Args:
        out: where it is to be.
        names: of the models that will be written.
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
            f"--out {out}: {other.name} is of another audit (other rows, poison or options), which is not to be mixed "
            "with this one; give a new folder, or delete what is there"
        )
    for name in names:
        result, signals = folder / f"{name}.json", folder / f"{name}.parquet"
        if result not in audits and (other := next((path for path in (result, signals) if path.exists()), None)):
            raise InputError(f"--out {out}: {other.name} is of no audit, and would be written over; give a new folder")
        result.unlink(missing_ok=True)
        signals.unlink(missing_ok=True)
    return folder


def write_result(folder: Path, name: str, tree: dict[str, Any], signals: "pd.DataFrame", key: str) -> None:
    """Write the evaluation of one model and its signals."""
    from llm_unlearn.evaluation.signal_files import write_signals

    write_signals(signals, folder / f"{name}.parquet")
    write_json(folder / f"{name}.json", {**tree, AUDIT: key})


def _audit_of(path: Path) -> str | None:
    """The audit of a file, "" where it does not say it; None of a file that no audit wrote."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(tree, dict) and (AUDIT in tree or tree.get("kind") == "audited")
    return str(tree.get(AUDIT, "")) if ours else None
