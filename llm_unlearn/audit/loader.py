"""Find and load the checkpoints of an audit: full models and adapters, folders and hub ids."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.audit.subject import Subject
from llm_unlearn.audit.user_files import in_manifest
from llm_unlearn.config.model_sections import ModelSection
from llm_unlearn.config.validate import validated
from llm_unlearn.errors import InputError
from llm_unlearn.files import file_stamps
from llm_unlearn.models.adapters import adapter_config, refuse_pickle
from llm_unlearn.models.load import check_model, load_checkpoint, load_tokenizer, read_config
from llm_unlearn.models.vocabulary import adapter_rows, check_vocabulary, rows_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llm_unlearn.data.encoding import Encoding


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that exists: `source`, a folder or hub id, and the `base` of an adapter (None: a full model).

    `doubt` says why its figures are those of no model, where an adapter was trained on another base.
    """

    source: str
    base: str | None = None
    doubt: str | None = None


class Loader:
    """Loads checkpoints; an option that is None is taken from the run of the manifest.

    Args:
        subject: what the checkpoints are audited with.
        base: the base of adapters; None: the one that each names.
        given: fields of a recipe's `model` section: dtype, quantization, attn_implementation.
        device_map: "auto" spreads each model over all GPUs.

    Raises:
        InputError: what is given does not go together.
    """

    def __init__(
        self, subject: Subject, base: str | None, given: dict[str, str | None], device_map: str | None
    ) -> None:
        changes = {name: value for name, value in given.items() if value is not None}
        self.section = validated(ModelSection, {**dict(subject.model), **changes}, "model")
        self.subject, self.base, self.device_map = subject, base, device_map or subject.evaluate.device_map

    def find(self, source: str) -> Checkpoint:
        """Look up a checkpoint; only its config is read.

        Raises:
            InputError: the checkpoint or its base does not exist, or takes fewer tokens than the manifest's max_length.
        """
        adapter = adapter_config(source)
        if adapter is not None:
            refuse_pickle(source)
        base = None if adapter is None else self._base_of(source, adapter)
        named, doubt = (adapter or {}).get("base_model_name_or_path"), None
        if base and named and _differ(str(named), base):
            where = f"the adapter was trained on {named} and is measured on {base}"
            logger.warning("model %s: %s; where these are two models, its figures are those of neither", source, where)
            if _are_two(str(named), base):
                doubt = f"{where}, whose weight files differ: the figures are those of neither; leave the base out"
        with in_manifest(f"model {source}"):
            check_model(self._section_for(base or source), {"data.max_length": self.subject.encoding.max_length})
        return Checkpoint(source, base, doubt)

    def load(self, checkpoint: Checkpoint) -> "PreTrainedModel":
        """The model on the best device, in evaluation mode."""
        return load_checkpoint(checkpoint.source, self.section, checkpoint.base, self.device_map)

    def tokenizer(self, checkpoint: Checkpoint) -> "PreTrainedTokenizerBase":
        """The tokenizer beside a checkpoint, or else that of its base.

        Raises:
            InputError: there is none, or it has ids for which the checkpoint has no embedding.
        """
        for path in dict.fromkeys((checkpoint.source, checkpoint.base, self.base)):
            if path is not None and _has_tokenizer(path):
                tokenizer = load_tokenizer(path, self.section)
                check_vocabulary(tokenizer, self._rows(checkpoint), checkpoint.source)
                return tokenizer
        raise InputError(
            f"model {checkpoint.source}: there is no tokenizer beside it; save one there, or name a base "
            "that has one (--base)"
        )

    def _rows(self, checkpoint: Checkpoint) -> int | None:
        """Rows of a checkpoint's input embedding, or None if its config does not say."""
        config = read_config(self._section_for(checkpoint.base or checkpoint.source))
        if checkpoint.base is None:
            return rows_of(config)
        return adapter_rows(checkpoint.source, config, self.section.trust_remote_code)

    def _base_of(self, source: str, adapter: dict[str, Any]) -> str:
        """The base of an adapter: --base, or the one it names, or (if its folder was moved) its run's."""
        named = [self.base] if self.base else [adapter.get("base_model_name_or_path"), self.subject.base]
        candidates = list(dict.fromkeys(base for base in named if base))
        if not candidates:
            raise InputError(f"model {source}: an adapter that does not name its base; give it (--base)")
        for base in candidates[:-1]:
            try:
                read_config(self._section_for(base))
                return base
            except InputError:
                continue
        return candidates[-1]

    def _section_for(self, source: str) -> ModelSection:
        """The settings for one checkpoint: a revision belongs to the run's own base."""
        revision = self.section.revision if source == self.section.path else None
        return self.section.changed(path=source, revision=revision)


def _has_tokenizer(source: str) -> bool:
    """Whether a folder holds a tokenizer; True for a hub id, which loading will check."""
    folder = Path(source).expanduser()
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    return not folder.is_dir() or any((folder / name).is_file() for name in names)


def _differ(named: str, base: str) -> bool:
    """Whether the base that an adapter names seems to be another; one that is no longer there may have been moved."""
    if same_model(named, base):
        return False
    return Path(named).is_dir() or Path(named).name != Path(base).name


def _are_two(named: str, base: str) -> bool:
    """Whether two bases are two models for certain: folders whose weights lie in files of the same names, with another
    content. Of others it is not known; one may be a copy in other files.
    """
    own, other = (
        {Path(file).name: digest for file, digest in file_stamps([str(Path(path).expanduser() / "*.safetensors")])}
        for path in (named, base)
    )
    return bool(own) and own.keys() == other.keys() and own != other


def same_model(a: str, b: str | None) -> bool:
    """Whether two paths or ids mean the same checkpoint."""
    return b is not None and (a == b or (Path(a).is_dir() and Path(a).resolve() == Path(b).resolve()))


def added_tokens(tokenizer: "PreTrainedTokenizerBase", before: "PreTrainedTokenizerBase") -> list[str]:
    """The tokens that a tokenizer has beyond an earlier one; none where the earlier one is not a part of it."""
    own, earlier = tokenizer.get_vocab(), before.get_vocab()
    return sorted(own.keys() - earlier.keys()) if earlier.items() <= own.items() else []


def check_same_tokens(
    tokenizer: "PreTrainedTokenizerBase", other: "PreTrainedTokenizerBase", source: str, other_source: str
) -> None:
    """Raise InputError if two models have different vocabularies, since one tokenizer serves all of an audit."""
    if tokenizer.get_vocab() != other.get_vocab():
        raise InputError(
            f"model {other_source}: its tokenizer is not that of {source}; models that are audited together, and "
            "their --base and --retrained, must share one"
        )


def writes_otherwise(
    tokenizer: "PreTrainedTokenizerBase", other: "PreTrainedTokenizerBase", train: "Dataset", encoding: "Encoding"
) -> bool:
    """Whether two tokenizers of one vocabulary write a training row differently; one that has no template does not."""
    from llm_unlearn.data.chat import prompt_and_completion

    row = prompt_and_completion(train[0])
    if encoding.chat_template and not other.chat_template:
        return False  # a base before its chat training
    return encoding.row(tokenizer, *row) != encoding.row(other, *row)
