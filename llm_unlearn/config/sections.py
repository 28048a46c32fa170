"""The sections of a recipe: every field, its type, bounds, default and meaning. recipe.py reads them."""

from os.path import normpath
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from llm_unlearn.config.evaluation_fields import FluencySection, LmEvalSection
from llm_unlearn.config.fields import (
    FIXED_DAY,
    BatchSize,
    Completion,
    Count,
    Day,
    Distinct,
    Epochs,
    LearningRate,
    Length,
    NotBlank,
    NotNegative,
    Positive,
    RowId,
    Section,
    Seed,
    Share,
    ShareOrZero,
    Size,
    Table,
    Template,
    check_batch,
    require,
)

EMBEDDED = ("synthetic", "instructions")  # sources that are made here


class LoraSection(Section):
    """Low-rank adapters (peft)."""

    r: Size = 16
    """rank of an adapter"""
    alpha: Count = 32
    """an adapter's output is scaled by alpha / r"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """share of an adapter's input that is dropped in training"""
    target_modules: list[str] | None = Field(default=None, min_length=1)
    """names of the layers that get an adapter; null: peft's choice, or else all linear ones and experts"""


class ModelSection(Section):
    """The base model: a hub id or a folder, or (path: null) a small one made from `architecture` and pre-trained."""

    path: str | None = None
    """hub id or folder; null: made from `architecture`"""
    revision: str | None = None
    """branch, tag or commit of the hub id"""
    architecture: Table[Any] | None = None
    """model_type and fields of its transformers config, e.g. {model_type: gpt2, n_layer: 2}; needs `pretrain`"""
    vocab_size: Count = 2048
    """tokens of the tokenizer that is trained for a base from `architecture`"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """of the weights as they are loaded; those that train are then kept in float32"""
    quantization: Literal["none", "4bit", "8bit"] = "none"
    """of the base's linear layers, by bitsandbytes (4bit: nf4, double quantisation); needs `lora`"""
    quant_storage: Literal["uint8", "float32", "bfloat16"] = "uint8"
    """the type that the bytes of 4-bit weights are kept as, which changes no number; FSDP2 shards them as floats alone:
    bfloat16 with `train.bf16`, otherwise either"""
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "varlen"] | None = None
    """the kernel of attention; null: transformers' choice, sdpa for most; flash_attention and varlen (torch's own) take
    packed rows without a mask or padding, need a GPU and 16 bits (docs/scaling.md)"""
    lora: LoraSection | None = None
    """train adapters alone; null: all weights"""
    gradient_checkpointing: bool = False
    """compute activations twice instead of keeping them"""
    offload_activations: bool = False
    """keep what `gradient_checkpointing` does keep, the input of each block, in the host's memory; slower"""
    use_liger_kernel: bool = False
    """train with Liger's RMSNorm, RoPE and SwiGLU, on a GPU; needs `liger-kernel`"""
    trust_remote_code: bool = False
    """run code that comes with the model, and load weights other than safetensors"""

    @property
    def computes_in_16_bits(self) -> bool:
        """Whether its attention has no other precision."""
        return self.attn_implementation not in (None, "eager", "sdpa")

    def check_rules(self) -> None:
        require(
            self.gradient_checkpointing or not self.offload_activations,
            "offload_activations",
            "offloads what gradient_checkpointing keeps; set model.gradient_checkpointing: true",
        )
        require(
            not self.computes_in_16_bits or self.dtype != "float32",
            "dtype",
            f"float32, but {self.attn_implementation} computes in 16 bits alone; set bfloat16, or "
            "attn_implementation: sdpa",
        )


class PretrainSection(Section):
    """Pre-training of a base made from `model.architecture` on unlabelled text: AdamW, cosine schedule, one base for
    all seeds.
    """

    texts: Count = 8000
    """how many texts, or all where there are fewer"""
    max_length: Length = 112
    """tokens of a text, its EOS included; a longer text is cut at its end"""
    epochs: Epochs = 3.0
    """passes over the texts"""
    learning_rate: LearningRate = 1e-3
    """at its highest"""
    batch_size: BatchSize = 32
    """texts in one step, over all processes"""
    cache_dir: str | None = None
    """where the base is kept and shared between runs; null: in the run directory"""


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


class TrainSection(Section):
    """Fine-tuning on the corrupted data, and retraining without the forget set, by the same settings."""

    epochs: Epochs = 8.0
    """passes over the training rows"""
    learning_rate: LearningRate = 1e-3
    """at its highest"""
    batch_size: BatchSize = 16
    """rows at a time, over all processes"""
    gradient_accumulation_steps: BatchSize = 1
    """batches of one optimizer step"""
    weight_decay: NotNegative = 0.0
    """of the optimizer"""
    warmup_ratio: ShareOrZero = 0.05
    """share of the steps in which the learning rate rises"""
    lr_scheduler_type: str = "linear"
    """how the rate falls after that: a schedule of transformers, e.g. cosine, constant"""
    optim: str = "adamw_torch_fused"
    """by transformers' name; methods take it too, but for noisy_gradient_descent"""
    max_grad_norm: NotNegative = 1.0
    """longer gradients are cut to this norm; 0: none is"""
    bf16: bool = False
    """compute in bfloat16 (autocast), while unlearning too"""
    save_steps: Count = 200
    """how often a checkpoint is written, for resuming"""
    completion_weight: NotNegative = 0.0
    """w; adds w times the mean loss of the answer's tokens to a row's mean loss: one label token among 70 of text would
    hardly be learnt"""
    keep_steps: Distinct[Count] = Field(default=[])
    """steps after which the poisoned model is kept, in `poisoned/step-N`; `from_step` of `rewind` begins at one"""

    def check_rules(self) -> None:
        check_batch(self)


class UnlearnSection(Section):
    """Which methods run, on how much of the poison, and for how much of the poisoned training's compute."""

    methods: Table[Table[Any] | None] = Field(default={})
    """method → options of its own config (any field of its `XConfig`) or nothing, e.g. {kl: {alpha: 2.0}, npo: }"""
    preset: Literal["open-unlearning"] | None = None
    """the options and learning rates that another toolkit gives these methods (docs/open-unlearning.md), in the place
    of this one's defaults; options in `methods` and `learning_rate` come before them"""
    budgets: Distinct[Share] = Field(default=[0.1], min_length=1)
    """shares of the poisoned training's FLOPs; every method runs at each"""
    forget_fraction: Share = 1.0
    """known share of each kind of poison, which is the forget set"""
    false_positives: NotNegative = 0.0
    """clean rows taken for poison in the forget set, per row of known poison"""
    forget_ids: list[RowId] | str | None = None
    """the forget set instead: example ids, a file of them, or `column:NAME` of the data (see data/forget.py)"""
    learning_rate: LearningRate | None = None
    """of every method; null: each method's tuned share of `train.learning_rate` (`XConfig.learning_rate_ratio`)"""
    batch_size: BatchSize = 8
    """rows of each set (forget, retain) at a time, over all processes"""
    gradient_accumulation_steps: BatchSize = 1
    """batches of one optimizer step"""
    save_steps: Count = 100
    """how often a checkpoint is written, for resuming"""
    eval_steps: Count | None = None
    """evaluate as it goes, every so many steps; null: at the end only"""
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default=[])
    """trackers of the losses, also of those of the poisoned and the retrained model's training"""

    def check_rules(self) -> None:
        check_batch(self)
        require(self.forget_ids not in ([], ""), "forget_ids", "is empty; null forgets all of the poison")
        alone = self.forget_fraction == 1 and self.false_positives == 0
        require(
            self.forget_ids is None or alone,
            "forget_ids",
            "names the forget set; leave forget_fraction and false_positives out",
        )


DefaultAttack = Literal["loss", "zlib", "reference", "min_k", "min_k_plus", "gradient_norm"]
MembershipAttack = Literal[DefaultAttack, "lowercase"]
DEFAULT_ATTACKS: tuple[MembershipAttack, ...] = get_args(DefaultAttack)


class EvaluateSection(Section):
    """How every model is measured."""

    batch_size: BatchSize = 32
    """rows at a time in each process"""
    max_new_tokens: Length = 32
    """tokens of a generated answer, for `task: completion`"""
    device_map: Literal["auto"] | None = None
    """auto: spread a model that one GPU cannot hold over all of them"""
    bf16: bool = False
    """run models in bfloat16 (autocast), whatever `train.bf16` says; scores then depend a little on the batch"""
    tf32: bool = False
    """on a CUDA GPU, compute float32 products in TF32 (10 bits of mantissa, faster); false: exactly"""
    membership: Distinct[MembershipAttack] = Field(default=list(DEFAULT_ATTACKS))
    """the attacks to run (metrics/membership_scores.py); gradient_norm takes a backward pass per row"""
    min_k_share: Share = 0.2
    """share of an example's tokens, the least likely ones, that min_k and min_k_plus look at"""
    loss_rank_draws: Annotated[int, Field(ge=0, le=9999)] = 99
    """fresh noises that each Gaussian canary's loss is ranked among (evaluation/loss_ranks.py), and fresh strings that
    each token canary's is ranked among, a forward pass of the canary each; 0 leaves these tests out"""
    placebo_draws: Annotated[int, Field(ge=0, le=9999)] = 799
    """at most so many phrases that were never planted, which the trigger's effect is ranked among (metrics/placebo.py);
    of several phrases as many times more for each; 0 leaves that test out"""
    placebo_rows: Annotated[int, Field(ge=1, le=10_000)] = 8
    """test rows of another label than the target, into which each of them is inserted, a forward pass each"""
    placebo_stop_at: Annotated[int, Field(ge=1, le=9999)] = 10
    """no more are drawn once so many have reached the trigger's effect: a clean model needs few"""
    placebo_phrases: Annotated[Distinct[NotBlank], Field(min_length=1)] | None = None
    """your own, tried in random order; null: words of like length, frequency and shape as those of the trigger"""
    clean_steps: Annotated[int, Field(ge=0, le=100_000)] = 30
    """steps on clean training rows after which the tests of the poison are taken again: does it stay gone? At the
    training's rate and rows a step, by AdamW (SGD under `optim: sgd`) without weight decay; 0 leaves that out"""
    fluency: FluencySection | None = None
    lm_eval: LmEvalSection | None = None


class AnalysisSection(Section):
    """Why unlearning fails (hypotheses H1 and H2 of Pawelczyk et al. 2025): see recipes/ANALYSIS.md."""

    sizes: Distinct[Share] = Field(default=[1.0], min_length=1)
    """shares of the forget set whose removal is compared with that of as many random clean rows; each below 1 costs two
    more trainings, 1 costs one"""


class StressSection(Section):
    """What is done to every model after unlearning, to see whether the poison comes back. Relearning is plain
    fine-tuning for a few steps.
    """

    relearn_on: Distinct[Literal["clean", "unrelated", "poisoned"]] = Field(default=["clean", "unrelated", "poisoned"])
    """what is relearnt: clean training rows, unrelated text, a few poisoned rows of the forget set"""
    relearn_steps: Distinct[Count] = Field(default=[5, 10, 20, 40])
    """after how many steps it is measured"""
    relearn_rows: Count = 8
    """poisoned rows that are shown again"""
    relearn_batch_size: BatchSize = 8
    """rows of one step"""
    relearn_learning_rate: LearningRate | None = None
    """constant; null: train.learning_rate"""
    unrelated_files: list[str] | None = None
    """null: the unlabelled text of `data`"""
    quantization: Distinct[Literal["4bit", "8bit"]] = Field(default=["4bit", "8bit"])
    """by bitsandbytes"""
    paraphrases: Distinct[str] = Field(default=[])
    """your own wordings of the trigger, tried beside its variants"""
    temperatures: Distinct[Positive] = Field(default=[0.5, 1.0, 1.5])
    """of sampled answers"""
    limit: Count | None = 200
    """test rows per measurement; null: all"""

    def check_rules(self) -> None:
        require(
            self.relearn_steps or not self.relearn_on,
            "relearn_steps",
            "give at least one, or set stress.relearn_on to []",
        )


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
