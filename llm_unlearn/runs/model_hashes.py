"""What a result was measured on, and what a model was merged from, as hashes: whether it is what lies there now."""

from pathlib import Path
from typing import Any

from llm_unlearn.files import file_stamps, fingerprint

# what a saved model is loaded from
LOADED = ("*.safetensors*", "*config.json", "*.py", "tokenizer*", "vocab*", "merges.txt", "*_tokens*.json", "*.jinja")


def model_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of a saved model's weights, configs and tokenizer."""
    files = sorted({str(path) for pattern in LOADED for path in folder.glob(pattern)})
    return fingerprint([[Path(file).name, digest] for file, digest in file_stamps(files)])


def model_hashes(folder: Path, base: str | None, section: Any) -> dict[str, str]:
    """Of what a model consists.

    Args:
        folder: of the model.
        base: the folder or hub id of what an adapter sits on; None where it is not there any more.
        section: the recipe's `model` section, which says how that is loaded.

    Returns:
        {"model": SHA-256}, and of an adapter whose base is known {"base": that of the base, as it is loaded}.
    """
    hashes = {"model": model_hash(folder)}
    if base is not None and (folder / "adapter_config.json").is_file():
        source = model_hash(Path(base)) if Path(base).is_dir() else base
        hashes["base"] = fingerprint([source, section.revision, section.quantization, section.dtype])
    return hashes


def result_hashes(result: Path, folder: Path, base: str | None, section: Any) -> dict[str, str]:
    """A result and what it was measured on.

    Args:
        result: `evaluation/<model>.json` or `stress/<model>.json` of a seed's folder.
        folder: of the model; see model_hashes for it and the others.
        base: of an adapter.
        section: how that is loaded.

    Returns:
        that of model_hashes, {"result"} and {"poison"}, the seed's `poison.json`.
    """
    (_, own), (_, poison) = file_stamps([str(result), str(result.parent.parent / "poison.json")])
    return {"result": own, "poison": poison, **model_hashes(folder, base, section)}
