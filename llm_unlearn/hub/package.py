"""What may go up to a hub: a package of files of known kinds, none of which holds an access token."""

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_unlearn.errors import SECRETS, InputError
from llm_unlearn.files import read_json
from llm_unlearn.models.checkpoint_files import check_weights

Content = Path | bytes  # a file, or what it holds

CARD = "README.md"
TAG = "llm-unlearn"  # on every card that this package writes
TOKENIZER = {
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
}
MODEL = {"config.json", "generation_config.json", "adapter_config.json", "model.safetensors.index.json"}
WEIGHTS = re.compile(r"(adapter_model|model(-\d+-of-\d+)?)\.safetensors")
AUDIT = re.compile(r"recipe\.yaml|evaluation/[\w.@+-]+\.json|plots/[\w.@+-]+\.png")
# fields of a config: where it was loaded from, and code to run, which does not go up
NOT_PUBLISHED = {"_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file"} | {
    "auto_map",
    "auto_mapping",
    "custom_pipelines",
}
PNG = b"\x89PNG\r\n\x1a\n"
LONGEST_HEADER = 10**8  # bytes, of safetensors
ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)  # a few models have no owner


def is_ours(path: str) -> bool:
    """Whether the uploader writes files of this kind. It replaces and removes no others."""
    return path == CARD or path in TOKENIZER or path in MODEL or bool(WEIGHTS.fullmatch(path) or AUDIT.fullmatch(path))


@dataclass(frozen=True)
class Package:
    """What goes up.

    Args:
        files: path in the repository → a file, or the content itself.

    Raises:
        InputError: a file of another kind than its name says, one that is missing or a link, or one that holds what
            looks like a key or a token.
    """

    files: dict[str, Content]

    def __post_init__(self) -> None:
        for name, content in self.files.items():
            if not is_ours(name):
                raise InputError(f"{name}: is no file of a model, its card or its audit; it is not uploaded")
            source = content if isinstance(content, Path) else "what it is made from"
            if isinstance(content, Path) and content.is_symlink():
                raise InputError(f"{content}: is a link; it is not uploaded. Put the file itself there")
            if isinstance(content, Path) and not content.is_file():
                raise InputError(f"{content}: no such file")
            text = readable(name, content)
            for kind, pattern in SECRETS.items():
                if re.search(pattern, text):
                    raise InputError(
                        f"{name}: holds what looks like a secret ({kind}); take it out of {source}, and revoke it "
                        "if it was ever shared"
                    )

    def content(self, name: str) -> bytes:
        """What a file holds."""
        return _read(self.files[name])

    def size(self, name: str) -> int:
        """Bytes of a file."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size


def readable(name: str, content: Content) -> str:
    """What a file says: its text, or of weights the header.

    Raises:
        InputError: it is not what its name says.
    """
    source = content if isinstance(content, Path) else name
    if WEIGHTS.fullmatch(name):
        header = _safetensors_header(content)
        if header is None:
            raise InputError(f"{source}: is no safetensors file; it is not uploaded")
        return header
    data = _read(content)
    if name.endswith(".png"):
        if not data.startswith(PNG):
            raise InputError(f"{source}: is no PNG image; it is not uploaded")
        return data.decode("latin-1")
    if name.endswith(".model"):  # SentencePiece, a protocol buffer
        if data.startswith((b"\x80", b"PK", b"\x7fELF", b"#!")):
            raise InputError(f"{source}: is no SentencePiece model; it is not uploaded")
        return data.decode("latin-1")
    try:
        text = data.decode("utf-8")
        if name.endswith(".json"):
            json.loads(text)
    except (ValueError, RecursionError):
        kind = "JSON" if name.endswith(".json") else "text"
        raise InputError(f"{source}: is no {kind}; it is not uploaded") from None
    return text


def _safetensors_header(content: Content) -> str | None:
    """The header of a safetensors file; None where it is none."""
    with io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        start = file.read(min(length, LONGEST_HEADER))
    try:
        header = start.decode("utf-8")
        return header if len(start) == length and isinstance(json.loads(header), dict) else None
    except (ValueError, RecursionError):
        return None


def model_files(folder: Path) -> dict[str, Content]:
    """The files of a saved model or adapter and of its tokenizer, and nothing else that lies in the folder.

    Raises:
        InputError: the folder holds no weights in safetensors, or damaged ones.
    """
    files: dict[str, Content] = {
        path.name: without_paths(path) if path.name in ("config.json", "generation_config.json") else path
        for path in sorted(folder.iterdir())
        if path.name in MODEL or WEIGHTS.fullmatch(path.name)
    }
    if not any(WEIGHTS.fullmatch(name) for name in files):
        raise InputError(f"{folder}: it holds no model in safetensors; a pickle is not uploaded")
    check_weights(folder)
    return files | tokenizer_files(folder)


def tokenizer_files(folder: Path) -> dict[str, Content]:
    """The files of a saved tokenizer, or none."""
    return {
        path.name: without_paths(path) if path.name == "tokenizer_config.json" else path
        for path in sorted(folder.iterdir())
        if path.name in TOKENIZER
    }


def without_paths(path: Path) -> bytes:
    """A config of a model or tokenizer without where it was loaded from, and without code to run."""
    if path.is_symlink():
        raise InputError(f"{path}: is a link; it is not uploaded. Put the file itself there")
    return _as_json(_published(read_json(path, "save the model again")))


def _published(config: Any) -> Any:
    if isinstance(config, list):
        return [_published(item) for item in config]
    if not isinstance(config, dict):
        return config
    return {key: _published(value) for key, value in config.items() if key not in NOT_PUBLISHED}


def on_base(adapter_config: Content, base: str | None = None, revision: str | None = None) -> bytes:
    """An adapter_config.json that names its base by a hub id, not by a folder of this machine.

    Args:
        adapter_config: the file, or what it holds.
        base: the hub id; by default what the file names.
        revision: of the base.

    Raises:
        InputError: the file names a folder, which nobody else has.
    """
    if isinstance(adapter_config, Path):
        config = read_json(adapter_config, "save the adapter again")
    else:
        config = json.loads(adapter_config)
    config = _published(config)
    named = base or config.get("base_model_name_or_path")
    if base is None and not is_id(named):
        raise InputError(
            f"the adapter sits on {named or 'a base without a name'}, which nobody else has: upload that "
            "too, and name it here (base=, --base OWNER/NAME)"
        )
    return _as_json(config | {"base_model_name_or_path": named, "revision": revision})


def is_id(name: str | None) -> bool:
    """Whether a name may be a hub's id and is no folder here."""
    return bool(name and ID.fullmatch(name)) and not Path(name or "").exists()


def _read(content: Content) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def _as_json(config: dict) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
