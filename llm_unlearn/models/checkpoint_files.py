"""The files of a checkpoint at the door: what is damaged, absent or of another format is named, with its remedy.

transformers and peft pass over some of it (a damaged generation_config.json, a field of an adapter that they do not
know), and of the rest they raise errors of every type. So the files are looked at before, and an error that comes all
the same is told with the file that is at fault.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_unlearn.errors import InputError
from llm_unlearn.files import read_json

CONFIG, ADAPTER_CONFIG, INDEX = "config.json", "adapter_config.json", "model.safetensors.index.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
FULL_WEIGHTS = "model.safetensors"
WEIGHTS = (FULL_WEIGHTS, ADAPTER_WEIGHTS)
_SETTINGS = (
    CONFIG,
    ADAPTER_CONFIG,
    INDEX,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_LARGE = ("tokenizer.json", "vocab.json")  # read again only where loading has failed
_REMEDY = "save or download it again"
_AN_ADAPTER = "is an adapter and no full model; merge it into its base (llm_unlearn.merge_adapter) and give the result"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CONVERSION = """\
    from transformers import AutoModelForCausalLM as Model, AutoTokenizer as Tokenizer  # pip install gguf
    at = dict(pretrained_model_name_or_path={folder!r}, gguf_file={name!r}); model = Model.from_pretrained(**at)
    model.hf_quantizer = None; model.is_quantized = False; del model.config.quantization_config
    model.save_pretrained("converted"); Tokenizer.from_pretrained(**at).save_pretrained("converted")"""


@contextlib.contextmanager
def explained(path: str, needs: str | None = CONFIG) -> Iterator[str]:
    """Check the files of a local checkpoint, and turn the errors of what loads it, or of the hub, into InputError.

    Args:
        path: a folder or a hub id.
        needs: the file that a folder must have.

    Yields:
        the path with `~` expanded.

    Raises:
        InputError: naming the path or the file at fault, and the remedy.
    """
    folder = Path(path).expanduser()
    _refuse_gguf(folder)
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if folder.is_file():
        raise InputError(f"model path {path}: is a file; give the folder of a model")
    if looks_local and not folder.is_dir():
        raise InputError(f"model path {path}: no such folder (working directory: {Path.cwd()})")
    if folder.is_dir():
        _read_all(folder, _SETTINGS)
        if needs and not (folder / needs).is_file():
            raise InputError(f"model {path}: {_without(folder, needs)}")
        if needs and (folder / ADAPTER_CONFIG).is_file():
            _refuse_mixture(folder, needs)
    try:
        yield str(folder)
    except InputError:  # says already what is wrong
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        _read_all(folder, _LARGE)
        raise InputError(f"model {path}: cannot be loaded: {_reason(error, folder, needs)}") from error


def check_weights(folder: Path) -> None:
    """Refuse a folder without weights in safetensors, without a shard that its index names, with two sets of weights,
    with a file cut off, or with quantised weights of which nothing says how they were quantised.

    Only the heads of the files are read, which say how long each must be.

    Raises:
        InputError: naming the file at fault, and the remedy.
    """
    files = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if (index := folder / INDEX).is_file():
        whole, names = files, read_json(index, _REMEDY).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise InputError(f"{index}: has no `weight_map` of weights to files; {_REMEDY}")
        files = [folder / name for name in sorted(set(names.values()))]
        if whole and whole != files:
            raise InputError(f"model {folder}: holds {whole[0].name} and the shards of {INDEX}; delete what is older")
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise InputError(f"{index}: names {', '.join(missing)}, which is not there; download it again")
    if not files:
        pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in _PICKLES]
        if pickles:
            raise InputError(
                f"model {folder}: its weights are in a pickle ({', '.join(pickles[:3])}), which can run code when it "
                "is loaded; where you trust it, load it with transformers and `save_pretrained` it as safetensors"
            )
        raise InputError(f"model {folder}: has no weights in safetensors ({', '.join(WEIGHTS)}); {_REMEDY}")
    config = read_json(folder / CONFIG, _REMEDY) if (folder / CONFIG).is_file() else {}
    for file in files:
        check_safetensors(file)
        if not config.get("quantization_config"):
            _refuse_quantised(file)


def _refuse_quantised(file: Path) -> None:
    """Raise InputError where a matrix is stored in integers or 8-bit floats, which would be read without its scale."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118
            stored = weights.get_slice(name).get_dtype()
            if name.endswith("weight") and stored.startswith(("I", "U", "F8")):
                raise InputError(
                    f"{file}: {name} is quantised ({stored}), but {CONFIG} has no quantization_config that says how; "
                    "give the unquantised model, or the config.json that was saved with it"
                )


def check_safetensors(file: Path, remedy: str = _REMEDY) -> dict[str, list[int]]:
    """Name and shape of every weight in a file.

    Raises:
        InputError: the file is damaged or cut off.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as weights:
            return {name: list(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: damaged ({error}); {remedy}") from None


def check_adapter_config(path: Path) -> dict[str, Any]:
    """Read an adapter_config.json that the installed peft can follow to the letter.

    peft drops fields that it does not know, with a warning. One that is on may change what the adapter computes.

    Raises:
        InputError: the file is damaged, its type is unknown or has virtual tokens, or a field that peft does not know
            is on.
    """
    from peft import PromptLearningConfig, __version__
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    config = read_json(path, _REMEDY)
    kind, kinds = config.get("peft_type"), {str(name.value): cls for name, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if not isinstance(kind, str) or kind not in kinds:
        raise InputError(
            f"{path}: peft_type is {kind!r}, which peft {__version__} does not have; install the peft that wrote it, "
            "or save the adapter again"
        )
    if issubclass(kinds[kind], PromptLearningConfig):
        raise InputError(
            f"{path}: a {kind} adapter puts virtual tokens before every row, where neither losses nor noise are "
            "measured; give an adapter of weights, such as LoRA"
        )
    known = {field.name for field in dataclasses.fields(kinds[kind])}
    unknown = sorted(name for name, value in config.items() if name not in known and value)
    if unknown:
        writer = config.get("peft_version") or "a newer one"
        raise InputError(
            f"{path}: peft {__version__} does not know {', '.join(unknown)} of a {kind} adapter and would leave it "
            f"out; install the peft that wrote it ({writer}), or remove it from the file"
        )
    return config


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is full, which is no fault of the files."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, MemoryError) or should_reduce_batch_size(error)


def _read_all(folder: Path, names: tuple[str, ...]) -> None:
    """Raise InputError if one of these files is there and damaged."""
    for name in names:
        if (folder / name).is_file():
            read_json(folder / name, _REMEDY)


def _refuse_mixture(folder: Path, needs: str) -> None:
    """Raise InputError where a folder holds an adapter beside a full model, or in its place: transformers would load
    the base that the adapter names, or put the adapter onto the full model, without a word.
    """
    if any((folder / name).is_file() for name in (FULL_WEIGHTS, INDEX)):
        raise InputError(
            f"model {folder}: holds a full model and an adapter ({ADAPTER_CONFIG}); move one of them to a folder of "
            "its own, so that it is clear which is meant"
        )
    if needs == CONFIG:
        raise InputError(f"model {folder}: {_AN_ADAPTER}")


def _without(folder: Path, name: str) -> str:
    """What is the matter with a folder that lacks a file, and what to do."""
    if not any(folder.iterdir()):
        return "the folder is empty; give one that holds a model"
    if name == CONFIG and (folder / ADAPTER_CONFIG).is_file():
        return _AN_ADAPTER
    return f"has no {name}, so it is no model; give a folder that `save_pretrained` wrote"


def _refuse_gguf(path: Path) -> None:
    """Raise InputError, with the lines that convert it, for a GGUF file or a folder that holds nothing else to load."""
    files = [path] if path.suffix.lower() == ".gguf" and path.is_file() else sorted(path.glob("*.gguf"))
    if files and not any(path.glob("*.safetensors")):
        lines = _CONVERSION.format(folder=str(files[0].parent), name=files[0].name)
        raise InputError(
            f"model {path}: is in GGUF, which cannot be trained; convert it, and give the result:\n{lines}"
        )


def _reason(error: Exception, folder: Path, file: str | None) -> str:
    """What a library says first, and what to do."""
    said = " ".join(str(error).split("\n", 2)[:2]).strip().rstrip(".,:")
    if not isinstance(error, OSError | ValueError | ImportError):
        said = f"{type(error).__name__}: {said}"
    if folder.is_dir():
        return f"{said}. Mend or replace its {file or 'tokenizer.json'}, or give another folder"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        said = "it is not in the local cache, and HF_HUB_OFFLINE is set"
    return f"{said}. Give a folder that holds a model (model.path), or a hub id while online"
