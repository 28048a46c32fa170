"""The manifest that a user writes by hand: what was poisoned, and with which files it is measured."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llm_unlearn.config.sections import DataSection
from llm_unlearn.config.strict import read_yaml
from llm_unlearn.errors import InputError


@dataclass(frozen=True)
class ManifestTrigger:
    """The trigger phrase and the label (or completion) that it asks for; where test rows get it.

    `source_label`, `clean_label`: which rows were poisoned, as in a recipe; held-out rows get the trigger alike.
    """

    phrases: list[str]
    target: str
    position: Literal["start", "end", "random"] = "random"
    source_label: str | None = None
    clean_label: bool = False


@dataclass(frozen=True)
class ManifestGaussian:
    """Canaries: the seed of their noise, and which rows they are (null: all rows of `poison` that have noise).

    `ids` as in `poison`. The noise of a row is that of its column `noise_id` (−1: none), or else of its example id.
    """

    seed: int
    epsilon: float | None = None  # not needed: scores do not depend on it
    ids: list[int] | str | None = None


@dataclass(frozen=True)
class Manifest:
    """What a user says of their own poisoned data. Paths are relative to the manifest.

    `train` holds the rows as they were trained on; `poison` says which of them are to be forgotten: ids (the column
    `example_id`, or else row numbers from 0), a file of them, or `column:NAME` (see data/forget.py). `heldout` rows
    were never trained on (membership inference); `test` rows are labelled and clean (utility, attack). What a part is
    missing for is left out, with the reason. Without `verbalizers` the label column is the completion.
    """

    train: str
    poison: list[int] | str
    heldout: str | None = None
    test: str | None = None
    text_column: str = "text"
    label_column: str = "label"
    prompt: str = "{text}"
    rename_labels: dict[str, str] = field(default_factory=dict)
    verbalizers: dict[str, str] | None = None
    chat_template: bool = False
    max_length: int = 512
    max_new_tokens: int = 32  # of an answer, where there are no verbalizers
    loss_on: Literal["text", "completion"] = "text"
    trigger: ManifestTrigger | None = None
    gaussian: ManifestGaussian | None = None
    seed: int = 0  # of where the trigger lands in test rows

    @property
    def data(self) -> DataSection:
        """The same as a recipe's section, for what reads and renders rows."""
        return DataSection(
            text_column=self.text_column,
            label_column=self.label_column,
            prompt=self.prompt,
            task="classification" if self.verbalizers else "completion",
            verbalizers=self.verbalizers or {},
            rename_labels=self.rename_labels,
            chat_template=self.chat_template,
            max_length=self.max_length,
            loss_on=self.loss_on,
        )


def read_tree(path: Path) -> dict[str, Any]:
    """The mapping in a manifest, JSON or YAML by the file's name.

    Raises:
        InputError: missing, malformed, no mapping, or a key given twice.
    """
    tree = _read_json(path) if path.suffix == ".json" else read_yaml(path)
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected a mapping with `train` and `poison`, found {type(tree).__name__}")
    return tree


def _read_json(path: Path) -> Any:
    """JSON by its own rules: YAML's differ (tabs, escapes), and are slow on the ids of a large run."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if twice:
            raise InputError(f"{path}: '{twice[0]}' is given twice; keep one")
        return dict(pairs)

    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file (working directory: {Path.cwd()})") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}, column {error.colno})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def check_manifest(manifest: Manifest, where: str) -> None:
    """What a manifest must keep beyond names and types. Raises InputError naming the field and the remedy."""

    def require(condition: Any, name: str, message: str) -> None:
        if not condition:
            raise InputError(f"{where}.{name}: {message}")

    verbalizers, trigger, gaussian = manifest.verbalizers, manifest.trigger, manifest.gaussian
    require("{text}" in manifest.prompt, "prompt", "the template must contain {text}")
    if verbalizers:
        require(len(verbalizers) >= 2, "verbalizers", "classification needs at least two labels")
        require(all(verbalizers.values()), "verbalizers", "a completion must not be empty")
    require(manifest.max_length >= 1, "max_length", "must be at least 1")
    require(
        verbalizers or 1 <= manifest.max_new_tokens < manifest.max_length,
        "max_new_tokens",
        f"must be at least 1, and below max_length ({manifest.max_length}): prompts need room too",
    )
    require(manifest.seed >= 0, "seed", "must be 0 or more")
    if gaussian:
        require(gaussian.seed >= 0, "gaussian.seed", "must be 0 or more")
        require(gaussian.ids != [], "gaussian.ids", "is empty; null takes all rows of `poison` that have noise")
    if trigger:
        require(
            trigger.phrases and all(phrase.strip() for phrase in trigger.phrases),
            "trigger.phrases",
            "give at least one phrase that is not blank",
        )
        for key in ("target", "source_label"):
            label = getattr(trigger, key)
            require(
                not verbalizers or label is None or label in verbalizers,
                f"trigger.{key}",
                f"'{label}' has no verbalizer; known labels: {', '.join(verbalizers or {})}",
            )
        require(
            not (trigger.clean_label and trigger.source_label),
            "trigger.source_label",
            "clean_label takes rows of the target; leave source_label out",
        )
