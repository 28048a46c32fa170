"""Find and load the checkpoints of an audit: full models and adapters, folders and hub ids."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.audit.subject import Subject
from llm_unlearn.audit.user_files import in_manifest
from llm_unlearn.config.sections import ModelSection
from llm_unlearn.errors import InputError
from llm_unlearn.models.adapters import adapter_config
from llm_unlearn.models.load import check_model, load_checkpoint, load_tokenizer, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Checkpoint:
    """A model that is there: `where`, a folder or hub id; `base`, what an adapter sits on (None: a full model)."""

    where: str
    base: str | None = None


class Loader:
    """Loads checkpoints as the options say, and where they say nothing, as the run of the manifest did.

    Args:
        subject: what is audited. base: what adapters sit on; None: what they name. dtype, quantization, device_map: or
            None.
    """

    def __init__(
        self, subject: Subject, base: str | None, dtype: str | None, quantization: str | None, device_map: str | None
    ) -> None:
        given = {"dtype": dtype, "quantization": quantization}
        self.section: ModelSection = subject.model.changed(**{k: v for k, v in given.items() if v is not None})
        self.subject, self.base, self.device_map = subject, base, device_map or subject.evaluate.device_map

    def find(self, where: str) -> Checkpoint:
        """Look a checkpoint up, reading its config alone.

        Raises:
            InputError: it is not there, its base is not, or it takes fewer tokens than the manifest's max_length.
        """
        adapter = adapter_config(where)
        base = None if adapter is None else self._base_of(where, adapter)
        with in_manifest(f"model {where}"):
            check_model(self._section_for(base or where), self.subject.encoding.max_length)
        return Checkpoint(where, base)

    def load(self, checkpoint: Checkpoint) -> "PreTrainedModel":
        """The model, on the best device, in evaluation mode."""
        return load_checkpoint(checkpoint.where, self.section, checkpoint.base, self.device_map)

    def tokenizer(self, checkpoint: Checkpoint) -> "PreTrainedTokenizerBase":
        """The tokenizer beside a checkpoint, or else that of its base."""
        for place in dict.fromkeys((checkpoint.where, checkpoint.base, self.base)):
            if place is not None and _has_tokenizer(place):
                return load_tokenizer(place, self.section)
        raise InputError(
            f"model {checkpoint.where}: there is no tokenizer beside it; save one there, or name a base "
            "that has one (--base)"
        )

    def _base_of(self, where: str, adapter: dict[str, Any]) -> str:
        """What an adapter sits on: as asked for, or what it names, or (its folder was moved) what its run names."""
        places = [self.base] if self.base else [adapter.get("base_model_name_or_path"), self.subject.base]
        places = list(dict.fromkeys(place for place in places if place))
        if not places:
            raise InputError(f"model {where}: an adapter that does not name its base; give it (--base)")
        for place in places[:-1]:
            try:
                read_config(self._section_for(place))
                return place
            except InputError:
                continue
        return places[-1]

    def _section_for(self, where: str) -> ModelSection:
        revision = self.section.revision if where == self.section.path else None
        return self.section.changed(path=where, revision=revision)


def _has_tokenizer(where: str) -> bool:
    """Whether a folder holds a tokenizer; of a hub id, loading will tell."""
    folder = Path(where).expanduser()
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    return not folder.is_dir() or any((folder / name).is_file() for name in names)


def same_model(a: str, b: str | None) -> bool:
    """Whether two paths or ids mean the same checkpoint."""
    return b is not None and (a == b or (Path(a).is_dir() and Path(a).resolve() == Path(b).resolve()))


def check_same_tokens(
    tokenizer: "PreTrainedTokenizerBase", other: "PreTrainedTokenizerBase", of: str, where: str
) -> None:
    """Raise where two models have different tokens: one would be read with the other's, and all its numbers wrong."""
    if tokenizer.get_vocab() != other.get_vocab():
        raise InputError(
            f"model {where}: its tokenizer is not that of {of}; models that are audited together, and "
            "their --base and --retrained, must share one"
        )
