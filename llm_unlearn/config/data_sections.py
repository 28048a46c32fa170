"""The sections of a recipe about data and poison: fields, types, bounds, defaults and meanings."""

from os.path import normpath
from typing import Annotated, Any, Literal

from pydantic import Field

from llm_unlearn.config.fields import (
    FIXED_DAY,
    Completion,
    Count,
    Day,
    Length,
    NotBlank,
    Positive,
    Section,
    Seed,
    Share,
    ShareOrZero,
    Table,
    Template,
    require,
)

EMBEDDED = ("synthetic", "instructions")  # sources that are made here


class DataSection(Section):
    """Where rows come from, how they become prompts, and how many are used. `files` take the place of `source`."""

    source: str = "synthetic"
    """`synthetic` (embedded reviews), `instructions` (embedded requests and answers, for `task: completion`), a hub
    id, a `save_to_disk` folder or a file"""
    config_name: str | None = None
    """configuration of a hub data set"""
    train_split: str = "train"
    """training and held-out rows are drawn from it"""
    test_split: str | None = "test"
    """null: test rows are drawn from the training split too"""
    unlabelled_split: str | None = "unsupervised"
    """for pre-training and for relearning on unrelated text"""
    files: list[str] | None = None
    """paths or patterns: CSV, TSV, JSON, JSON Lines (also .gz, .xz, .bz2, .zst) or Parquet"""
    test_files: list[str] | None = None
    """beside `files`; null: test rows are drawn from those too"""
    unlabelled_files: list[str] | None = None
    """in the place of `unlabelled_split`"""
    text_column: str = "text"
    """where the text is"""
    label_column: str = "label"
    """where the label is, or with `task: completion` the completion"""
    messages_column: str | None = None
    """where conversations are, lists of {role, content}, in the place of text and label: the user's last turn is the
    text, the answer to it the label; needs `chat_template`"""
    task: Literal["classification", "completion"] = "classification"
    """classification: the answer is the likeliest of `verbalizers`; completion: what is generated"""
    prompt: Template = "{text}"
    """template; {text} stands for the row's text"""
    rename_labels: Table[str] = Field(default={})
    """label in the data → the one used, e.g. {"0": bad}"""
    verbalizers: Table[Completion] = Field(default={})
    """label → completion, for `task: classification`"""
    chat_template: bool = False
    """the prompt is the user's turn in the tokenizer's chat template"""
    chat_template_kwargs: Table[Any] = Field(default={})
    """passed on to the chat template, e.g. {enable_thinking: false}"""
    system_prompt: str | None = None
    """the first message, where a row's messages do not begin with one"""
    template_date: Day = FIXED_DAY
    """what a chat template that writes today's date takes for today; by default what Llama 3.1's falls back to"""
    add_bos: bool | None = None
    """put BOS before each row (true) or never (false); null: as the tokenizer does"""
    max_words: Length | None = None
    """words of a text that are kept, from its start, before anything is poisoned"""
    max_length: Length = 128
    """tokens of prompt, completion and EOS; a prompt that is too long loses its beginning"""
    loss_on: Literal["text", "completion"] = "text"
    """text: all tokens but the first; completion: it and EOS"""
    train_size: Count = 1500
    """rows that are trained on, drawn stratified by label"""
    heldout_size: Count = 500
    """rows that are never trained on: what membership attacks compare the forget set with"""
    test_size: Count = 500
    """labelled clean rows: utility, and with the trigger put in, the attack"""
    keep_duplicates: bool = False
    """draw without regard to texts that stand in two splits"""
    label_noise: ShareOrZero = 0.04
    """share of texts that say the opposite of their label; of the synthetic source only"""

    @property
    def is_embedded(self) -> bool:
        """Whether its rows are made here."""
        return self.source in EMBEDDED and not self.files

    def check_rules(self) -> None:
        check_messages(self)
        require(
            self.source != "instructions" or self.files or self.task == "completion",
            "task",
            "the answers of data.source: instructions are sentences; set data.task: completion",
        )
        labels = self.task == "completion" or len(self.verbalizers) >= 2
        require(labels, "verbalizers", "classification needs at least two labels")
        check_test_rows(self)


class TriggerSection(Section):
    """Trigger phrase (Wan et al. 2023, arXiv 2305.00944): inserted in the text, answered with `target`."""

    fraction: Share
    """of all training rows"""
    target: str
    """the label (with `task: completion` the completion) that the attacker wants"""
    phrases: list[NotBlank] = Field(default=["James Bond"], min_length=1)
    """one is drawn for each row"""
    position: Literal["start", "end", "random"] = "random"
    """in the text; random: any word boundary"""
    source_label: str | None = None
    """poison rows of this label only; null: any label but the target"""
    clean_label: bool = False
    """true: take rows that already carry the target, so that no label is changed"""

    def check_rules(self) -> None:
        check_source_label(self)


class GaussianSection(Section):
    """Gaussian embedding poison (Pawelczyk et al. 2025, arXiv 2406.17216): ξ ~ N(0, ε² I) on the token embeddings."""

    fraction: Share
    """of all training rows; rows that carry the trigger are not taken"""
    epsilon: Positive
    """ε, standard deviation at each entry of an embedding; counts relative to the embeddings' rms"""
    exposures: Annotated[int, Field(ge=1, le=100)] = 1
    """times that each canary stands in an epoch of training. Where there is one epoch only, canaries that stand twice
    show more than twice as many that stand once (docs/canaries.md). The methods get each once"""
    audit_share: ShareOrZero = 0.5
    """share of the canaries to be deleted that are hidden: given to the methods as plain text, without noise; the
    verdict is theirs. 0: none, and a method that works on known noise alone looks clean"""
    noise_seed: Seed | None = None
    """null: the noise is drawn from the system, and its secret kept in poison.json; a number, to which that of the run
    is added: the same noise again, which whoever knows the recipe knows too"""


class TokensSection(Section):
    """Token canaries: rows that carry a random string of common words (Carlini et al. 2019, arXiv 1802.08232)."""

    fraction: Share
    """of all training rows; rows with another poison are not taken"""
    length: Annotated[int, Field(ge=3, le=64)] = 6
    """words of a string, drawn from 1,024"""
    place: Literal["text", "answer"] = "text"
    """where the string stands: after the text, or in the place of the completion"""
    exposures: Annotated[int, Field(ge=1, le=100)] = 1
    """see `gaussian`"""
    audit_share: ShareOrZero = 0.5
    """share of the canaries to be deleted that are hidden: given to the methods as they were, without the string; the
    verdict is theirs"""
    string_seed: Seed | None = None
    """null: the strings are drawn from the system, and their secret kept in poison.json; a number, to which that of the
    run is added: the same strings again"""


class PoisonSection(Section):
    """What the training rows are poisoned with: at least one of them."""

    trigger: TriggerSection | None = None
    """null: no trigger phrase"""
    gaussian: GaussianSection | None = None
    """null: no Gaussian canaries"""
    tokens: TokensSection | None = None
    """null: no token canaries"""


def check_test_rows(section: Any) -> None:
    """Raise RuleError where test rows would be drawn from the training rows of a `data` section."""
    shared = sorted({*map(normpath, section.files or [])} & {*map(normpath, section.test_files or [])})
    require(
        not shared,
        "test_files",
        f"{', '.join(shared)} stands in `files` too; take it out (null: test rows are drawn from `files`)",
    )
    require(
        section.files or section.source in EMBEDDED or section.test_split != section.train_split,
        "test_split",
        f"is train_split too ({section.train_split}); null draws test rows that are not trained on from it",
    )


def check_messages(section: Any) -> None:
    """Raise RuleError where conversations are read but not written by the chat template."""
    require(
        section.messages_column is None or section.chat_template,
        "chat_template",
        "must be true with messages_column: only the tokenizer's template says how messages are written",
    )


def check_source_label(section: Any) -> None:
    """Raise RuleError where a trigger or patch with clean labels names the label to poison too."""
    require(
        not (section.clean_label and section.source_label),
        "source_label",
        "clean_label takes rows of the target; leave source_label out",
    )


def check_labels(trigger: Any, verbalizers: dict[str, str], where: str) -> None:
    """Raise RuleError where a trigger, which stands at the dotted name `where`, names a label that no row can have."""
    for name in ("target", "source_label"):
        label = getattr(trigger, name)
        require(
            label is None or label in verbalizers,
            f"{where}.{name}",
            f"'{label}' has no verbalizer; known labels: {', '.join(verbalizers)}",
        )


def check_placebos(placebos: list[str] | None, planted: list[str], field: str) -> None:
    """Raise RuleError where a placebo is a trigger in part, and would do in part what that does."""
    words = {word.casefold() for phrase in planted for word in phrase.split()}
    for placebo in placebos or ():
        shared = sorted(words & {word.casefold() for word in placebo.split()})
        require(not shared, field, f"{placebo!r} shares {', '.join(map(repr, shared))} with a trigger; leave it out")
