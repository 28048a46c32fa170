"""What the poison stage keeps: the sets in `data/` and the manifest `poison.json`, which a hash ties to each other."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.config.strict import parse_json
from llm_unlearn.errors import InputError
from llm_unlearn.files import fingerprint, write_json

if TYPE_CHECKING:
    from datasets import Dataset

_REMEDY = "restore it, or delete poison.json and data/ and poison again"
SETS = ("train", "heldout", "test", "triggered", "nonmember")


def seed_of(manifest: dict[str, Any]) -> int:
    """The seed of a run or of a user's manifest; manifests of older runs have it, if any, in a poison's section."""
    section = manifest if "seed" in manifest else manifest["trigger"] or manifest["gaussian"]
    return int(section.get("seed", 0))


def data_hash(sets: dict[str, "Dataset"]) -> str:
    """SHA-256 over the rows of all sets; it does not depend on where they are stored."""
    digest = hashlib.sha256()
    for name in SETS:
        digest.update(name.encode())
        for row in _undecoded(sets[name]):
            digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=bytes.hex).encode())
    return digest.hexdigest()


def _undecoded(rows: "Dataset") -> "Dataset":
    """The rows with images as the bytes of their files."""
    if "image" not in rows.column_names:
        return rows
    from datasets import Image

    return rows.cast_column("image", Image(decode=False))


def storable(sets: dict[str, "Dataset"]) -> dict[str, "Dataset"]:
    """The sets, with each empty one replaced by an empty choice of training rows: `datasets` reads no other."""
    return {
        name: rows if len(rows) else sets["train"].filter(lambda row: False, desc=name) for name, rows in sets.items()
    }


def read_sets(folder: Path) -> dict[str, "Dataset"]:
    """Read the sets that the poison stage wrote to `data/`.

    Raises:
        InputError: a set is missing or damaged.
    """
    from datasets import load_from_disk

    try:
        return {name: load_from_disk(str(folder / name)) for name in SETS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder}: the poisoned data cannot be read ({error}); {_REMEDY}") from error


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write poison.json, which names the poison and its seeds, for its owner alone, with the hash of its contents."""
    write_json(path, {**manifest, "manifest_sha256": _manifest_hash(manifest)}, private=True)


def read_manifest(path: Path, sets: dict[str, "Dataset"]) -> dict[str, Any]:
    """Read poison.json and check that it belongs to the data.

    Args:
        path: the manifest.
        sets: the data beside it.

    Raises:
        InputError: the manifest is missing, malformed or edited, or `sets` have another hash.
    """
    manifest = sealed_manifest(path)
    if data_hash(sets) != manifest["data_sha256"]:
        raise InputError(
            f"{path}: the manifest does not match the data beside it ({path.parent / 'data'}): the data was changed "
            f"after poisoning; {_REMEDY}"
        )
    return manifest


def sealed_manifest(path: Path) -> dict[str, Any]:
    """Read poison.json without its data. Raises InputError where it is missing, malformed or edited."""
    try:
        manifest = parse_json(path.read_text(encoding="utf-8"), str(path))
        seal, _ = manifest["manifest_sha256"], manifest["data_sha256"]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run `llm-unlearn poison` first") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a poison manifest ({error!r}); {_REMEDY}") from None
    if _manifest_hash(manifest) != seal:
        raise InputError(f"{path}: the manifest was edited after poisoning and does not match the data; {_REMEDY}")
    return manifest


def _manifest_hash(manifest: dict[str, Any]) -> str:
    """The hash of a manifest's contents."""
    return fingerprint({key: value for key, value in manifest.items() if key != "manifest_sha256"})
