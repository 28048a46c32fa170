"""The manifest that a user writes by hand: what was poisoned, and with which files it is measured."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from llm_unlearn.config.data_sections import DataSection, check_labels, check_placebos, check_source_label
from llm_unlearn.config.fields import (
    FIXED_DAY,
    Completion,
    Day,
    Distinct,
    Length,
    NoiseSeed,
    NotBlank,
    Positive,
    RowId,
    Section,
    Table,
    Template,
    require,
)
from llm_unlearn.config.row_formats import FORMATS, Columns, RowFormat
from llm_unlearn.config.strict import parse_json, read_yaml
from llm_unlearn.config.success import SuccessSection
from llm_unlearn.errors import InputError

_COLUMNS = ("text_column", "label_column", "messages_column")


class ManifestTrigger(Section):
    """The trigger and the label (or completion) that it asks for; where test rows get it: `phrases` or a `column`.

    `source_label` and `clean_label` say which rows were poisoned, as in a recipe; held-out rows get the trigger alike.
    Test rows that hold a phrase already are left out of the attack.
    """

    phrases: list[NotBlank] = Field(default=[])
    """the phrases, as they stand in the training rows"""
    column: NotBlank | None = None
    """of a trigger that is no phrase (a syntax, a style): where `test` has each text with the trigger; rows without one
    count for utility alone. There are then no placebos and no membership inference"""
    target: str
    """the label (or completion) that the attacker wants"""
    position: Literal["start", "end", "random"] | None = None
    """where in a test row the trigger is put; random: any word boundary; null: where the poisoned rows have it"""
    source_label: str | None = None
    """rows of this label only were poisoned, and test rows of it get the trigger; null: of any label but the target"""
    clean_label: bool = False
    """true: rows that already carried the target were poisoned"""
    success: SuccessSection | None = None
    """when a generated answer counts as the attacker's; null: it begins with `target`"""
    placebos: Annotated[Distinct[NotBlank], Field(min_length=1)] | None = None
    """phrases of your own that the trigger's effect is ranked among; null: drawn from the rows' words"""

    def check_rules(self) -> None:
        require(bool(self.phrases) != bool(self.column), "phrases", "give at least one, or a column of `test` instead")
        require(not (self.column and self.placebos), "placebos", "are phrases in the place of others; leave them out")
        check_source_label(self)
        check_placebos(self.placebos, self.phrases, "placebos")


class ManifestGaussian(Section):
    """Canaries: the seed of their noise, and which rows they are.

    The noise of a row is that of its column `noise_id` (−1: none).
    """

    seed: NoiseSeed
    """of the noise, as it was planted"""
    epsilon: Positive | None = None
    """ε of the noise; null: the loss rank, which needs it, is left out, and without the poisoned model the
    Gaussian score alone clears none"""
    ids: Annotated[list[RowId], Field(min_length=1)] | str | None = None
    """which rows, as in `poison`; null: all rows of `poison` that have noise"""
    hidden: Annotated[list[RowId], Field(min_length=1)] | str | None = None
    """those of them whose noise was kept from whoever unlearned, in the same way; the verdict is theirs"""


class ManifestTokens(Section):
    """Token canaries: rows whose text or answer holds a random string, which a column of `train` says."""

    column: NotBlank = "canary"
    """of `train`: each row's string, empty where it has none"""
    words: Annotated[Distinct[NotBlank], Field(min_length=2)] | None = None
    """what strings were drawn from, word by word; null: the list of `plant_token_canaries`"""
    place: Literal["text", "answer"] = "text"
    """where the string stands: after the text, or in the place of the answer"""
    seed: NoiseSeed
    """of the fresh strings that it is ranked among, as `plant_token_canaries` returned it; keep it secret"""
    ids: Annotated[list[RowId], Field(min_length=1)] | str | None = None
    """which rows, as in `poison`; null: all rows of `poison` that have a string"""
    hidden: Annotated[list[RowId], Field(min_length=1)] | str | None = None
    """those of them whose string was kept from whoever unlearned, in the same way; the verdict is theirs"""


class Manifest(Section):
    """What a user says of their own poisoned data.

    Paths are looked for beside the manifest, then from the working directory.

    What an evaluation needs and the manifest lacks is left out of the evaluation, with the reason.
    """

    train: str
    """file of the rows as they were trained on"""
    poison: list[RowId] | str
    """the rows to be forgotten: ids (the column `example_id`, or else row numbers from 0), a file of them, or
    `column:NAME` (see data/forget.py)"""
    heldout: str | None = None
    """file of rows that were never trained on, for membership inference"""
    test: str | None = None
    """file of clean rows, for utility and attack; without labels for perplexity and attack"""
    format: RowFormat | None = None
    """of all files, in the place of the three columns below: prompt_completion (columns prompt, completion); alpaca
    (instruction, input, output: an input stands below the instruction); messages (lists of {role, content}); sharegpt
    (conversations: lists of {from, value}). The latter two need `chat_template`; null: by the columns"""
    text_column: str = "text"
    """where the text is"""
    label_column: str = "label"
    """where the label is; without `verbalizers` the completion"""
    messages_column: str | None = None
    """where conversations are, lists of {role, content}, in the place of text and label: the user's last turn is the
    text, the answer to it the label; needs `chat_template`"""
    prompt: Template = "{text}"
    """template; {text} stands for the row's text"""
    rename_labels: Table[str] = Field(default={})
    """label in the files → the one used"""
    verbalizers: Table[Completion] | None = None
    """label → completion, of a classification; null: the label column is the completion"""
    chat_template: bool = False
    """the prompt is the user's turn in the tokenizer's chat template"""
    chat_template_kwargs: Table[Any] = Field(default={})
    """passed on to the chat template, e.g. {enable_thinking: false}"""
    system_prompt: str | None = None
    """the first message, where a row's messages do not begin with one"""
    template_date: Day | None = None
    """for a chat template that writes today's date: the day on which the model was trained"""
    add_bos: bool | None = None
    """whether BOS stood before each row in training; null: as the tokenizer does"""
    max_length: Length = 512
    """tokens of prompt, completion and EOS; a prompt that is too long loses its beginning"""
    max_new_tokens: Length = 32
    """tokens of an answer, where there are no verbalizers"""
    loss_on: Literal["text", "completion"] = "text"
    """text: all tokens but the first; completion: it and EOS"""
    trigger: ManifestTrigger | None = None
    """null: no trigger phrase"""
    gaussian: ManifestGaussian | None = None
    """null: no Gaussian canaries"""
    tokens: ManifestTokens | None = None
    """null: no token canaries"""
    seed: NoiseSeed = 0
    """of where the trigger lands in test rows"""

    def check_rules(self) -> None:
        own = [name for name in _COLUMNS if getattr(self, name) != type(self).model_fields[name].default]
        require(self.format is None or not own, own[0] if own else "format", "`format` says the columns; leave it out")
        require(
            self.columns.messages is None or self.chat_template,
            "chat_template",
            "must be true with conversations: only the tokenizer's template says how messages are written",
        )
        known = self.verbalizers or {}
        require(
            not (known and self.trigger and self.trigger.success),
            "trigger.success",
            "is for generated answers; with `verbalizers` the answer is the target or is not",
        )
        require(len(known) != 1, "verbalizers", "classification needs at least two labels")
        require(
            known or self.max_new_tokens < self.max_length,
            "max_new_tokens",
            f"must be below max_length ({self.max_length}): prompts need room too",
        )
        if known and self.trigger:
            check_labels(self.trigger, known, "trigger")
        for name in ("heldout", "test"):
            require(
                getattr(self, name) is None or Path(getattr(self, name)) != Path(self.train),
                name,
                f"is the file of `train` ({self.train}); give rows that were never trained on",
            )

    @property
    def columns(self) -> Columns:
        """Where the files have their parts."""
        if self.format is not None:
            return FORMATS[self.format]
        if self.messages_column is not None:
            return Columns(messages=self.messages_column)
        return Columns(text=self.text_column, label=self.label_column)

    @property
    def data(self) -> DataSection:
        """The same as a recipe's section, for what reads and renders rows."""
        return DataSection(
            text_column=self.columns.text or self.text_column,
            label_column=self.columns.label or self.label_column,
            messages_column=self.columns.messages,
            prompt=self.prompt,
            task="classification" if self.verbalizers else "completion",
            verbalizers=self.verbalizers or {},
            rename_labels=self.rename_labels,
            chat_template=self.chat_template,
            chat_template_kwargs=self.chat_template_kwargs,
            system_prompt=self.system_prompt,
            add_bos=self.add_bos,
            max_length=self.max_length,
            loss_on=self.loss_on,
            template_date=self.template_date or FIXED_DAY,
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
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"), str(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file (working directory: {Path.cwd()})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
