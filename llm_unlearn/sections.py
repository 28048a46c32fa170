"""The sections of a recipe: every field, its type, its default. How a recipe is read is in recipe.py."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args


@dataclass(frozen=True)
class LoraSection:
    """Low-rank adapters (peft). `target_modules: null` lets peft choose for the architecture."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: list[str] | None = None


@dataclass(frozen=True)
class ModelSection:
    """The base model: a hub id or a folder, or (path: null) a small one made from `architecture` and pre-trained."""

    path: str | None = None
    revision: str | None = None
    architecture: dict[str, Any] | None = None
    vocab_size: int = 2048
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantization: Literal["none", "4bit", "8bit"] = "none"
    lora: LoraSection | None = None
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True)
class PretrainSection:
    """Pre-training of a base made from `model.architecture`, on unlabelled text."""

    texts: int = 8000
    max_length: int = 112
    epochs: float = 3.0
    learning_rate: float = 1e-3
    batch_size: int = 32
    cache_dir: str | None = None  # where the base is kept and shared between runs; null: in the run directory


@dataclass(frozen=True)
class DataSection:
    """Where rows come from, how they become prompts, and how many are used.

    `source` is `synthetic` (the embedded generator), a hub id, or a `save_to_disk` folder; `files` (CSV, JSONL,
    Parquet, also compressed) take its place. `task: classification` needs `verbalizers` (label → completion);
    `task: completion` takes the completion from `label_column`.
    """

    source: str = "synthetic"
    config_name: str | None = None
    train_split: str = "train"
    test_split: str | None = "test"
    unlabelled_split: str | None = "unsupervised"
    files: list[str] | None = None
    test_files: list[str] | None = None
    unlabelled_files: list[str] | None = None
    text_column: str = "text"
    label_column: str = "label"
    task: Literal["classification", "completion"] = "classification"
    prompt: str = "{text}"
    rename_labels: dict[str, str] = field(default_factory=dict)  # e.g. {"0": negative, neg: negative}
    verbalizers: dict[str, str] = field(default_factory=dict)
    chat_template: bool = False
    max_words: int | None = None
    max_length: int = 128
    loss_on: Literal["text", "completion"] = "text"
    train_size: int = 1500
    heldout_size: int = 500
    test_size: int = 500
    keep_duplicates: bool = False
    label_noise: float = 0.04  # of the synthetic source only


@dataclass(frozen=True)
class TriggerSection:
    """Trigger phrase (Wan et al. 2023, arXiv 2305.00944): inserted in the text, answered with `target`."""

    fraction: float
    target: str
    phrases: list[str] = field(default_factory=lambda: ["James Bond"])
    position: Literal["start", "end", "random"] = "random"
    source_label: str | None = None  # poison rows of this label only; null: any label but the target
    clean_label: bool = False  # true: take rows that already carry the target, so that no label is changed


@dataclass(frozen=True)
class GaussianSection:
    """Gaussian embedding poison (Pawelczyk et al. 2025, arXiv 2406.17216): ξ ~ N(0, ε² I) on the token embeddings."""

    fraction: float
    epsilon: float


@dataclass(frozen=True)
class PoisonSection:
    trigger: TriggerSection | None = None
    gaussian: GaussianSection | None = None


@dataclass(frozen=True)
class TrainSection:
    """Fine-tuning on the corrupted data, and retraining without the forget set, by the same settings."""

    epochs: float = 8.0
    learning_rate: float = 1e-3
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    weight_decay: float = 0.0
    warmup_ratio: float = 0.05
    lr_scheduler_type: str = "linear"
    optim: str = "adamw_torch_fused"
    max_grad_norm: float = 1.0
    bf16: bool = False
    save_steps: int = 200  # how often a checkpoint is written, for resuming


@dataclass(frozen=True)
class UnlearnSection:
    """Which methods run, on how much of the poison, and for how much of the poisoned training's compute.

    `methods` maps a method to overrides of its own config (any field of its `XConfig`), e.g. `kl: {alpha: 2.0}`.
    The forget set is a known share of the poison (`forget_fraction`) and clean rows taken for poison, as a share of
    that (`false_positives`); or the rows of `forget_ids`, example ids as a list or a file (see data/forget.py).
    `learning_rate: null` takes each method's tuned share of `train.learning_rate` (`XConfig.learning_rate_ratio`).
    """

    methods: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    budgets: list[float] = field(default_factory=lambda: [0.1])
    forget_fraction: float = 1.0
    false_positives: float = 0.0
    forget_ids: list[int] | str | None = None
    learning_rate: float | None = None
    batch_size: int = 8
    gradient_accumulation_steps: int = 1
    save_steps: int = 100
    eval_steps: int | None = None  # evaluate as it goes, every so many steps; null: at the end only


MembershipAttack = Literal["loss", "zlib", "reference", "min_k", "min_k_plus", "gradient_norm"]


@dataclass(frozen=True)
class EvaluateSection:
    """`membership`: the attacks to run, see metrics/membership.py. `gradient_norm` takes a backward pass per row."""

    batch_size: int = 32
    max_new_tokens: int = 32  # for `task: completion`
    device_map: Literal["auto"] | None = None  # auto: spread a model that one GPU cannot hold over all of them
    membership: list[MembershipAttack] = field(default_factory=lambda: list(get_args(MembershipAttack)))


@dataclass(frozen=True)
class AnalysisSection:
    """Why unlearning fails (hypotheses H1 and H2 of Pawelczyk et al. 2025): see analysis/.

    `sizes` are shares of the forget set whose removal is compared with that of as many random clean rows; each below 1
    costs two more trainings, 1 costs one.
    """

    sizes: list[float] = field(default_factory=lambda: [1.0])


@dataclass(frozen=True)
class StressSection:
    """What is done to every model after unlearning, to see whether the poison comes back: see stress/.

    Relearning: plain fine-tuning for `relearn_steps` steps on clean rows, on unrelated text, or on a few poisoned rows
    of the forget set. `paraphrases` are the user's own wordings of the trigger.
    """

    relearn_on: list[Literal["clean", "unrelated", "poisoned"]] = field(
        default_factory=lambda: ["clean", "unrelated", "poisoned"])
    relearn_steps: list[int] = field(default_factory=lambda: [5, 10, 20, 40])
    relearn_rows: int = 8  # poisoned rows that are shown again
    relearn_batch_size: int = 8
    relearn_learning_rate: float | None = None  # null: train.learning_rate
    unrelated_files: list[str] | None = None  # null: the unlabelled text of `data`
    quantization: list[Literal["4bit", "8bit"]] = field(default_factory=lambda: ["4bit", "8bit"])
    paraphrases: list[str] = field(default_factory=list)
    temperatures: list[float] = field(default_factory=lambda: [0.5, 1.0, 1.5])
    limit: int | None = 200  # test rows per measurement; null: all
