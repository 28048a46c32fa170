"""The sections of a recipe: every field, its type, its default. How a recipe is read is in recipe.py.

The comment at a field is its meaning in docs/recipe.md, which scripts/recipe_reference.py writes.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args


@dataclass(frozen=True)
class LoraSection:
    """Low-rank adapters (peft)."""

    r: int = 16  # rank of an adapter
    alpha: int = 32  # an adapter's part is scaled by alpha / r
    dropout: float = 0.0  # of what goes into an adapter, while it trains
    target_modules: list[str] | None = None  # names of the layers that get one; null: what peft chooses


@dataclass(frozen=True)
class ModelSection:
    """The base model: a hub id or a folder, or (path: null) a small one made from `architecture` and pre-trained."""

    path: str | None = None  # hub id or folder; null: made from `architecture`
    revision: str | None = None  # branch, tag or commit of the hub id
    # model_type and fields of its transformers config, e.g. {model_type: gpt2, n_layer: 2}; needs `pretrain`
    architecture: dict[str, Any] | None = None
    vocab_size: int = 2048  # tokens of the tokenizer that is trained for a base from `architecture`
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the weights as they are loaded
    # of the base's linear layers, by bitsandbytes (4bit: nf4, double quantisation); needs `lora`
    quantization: Literal["none", "4bit", "8bit"] = "none"
    lora: LoraSection | None = None  # train adapters alone; null: all weights
    gradient_checkpointing: bool = False  # compute activations twice instead of keeping them
    trust_remote_code: bool = False  # run code that comes with the model, and load weights other than safetensors


@dataclass(frozen=True)
class PretrainSection:
    """Pre-training of a base made from `model.architecture` on unlabelled text: AdamW, cosine schedule, one base for
    all seeds."""

    texts: int = 8000  # how many texts, or all where there are fewer
    max_length: int = 112  # tokens of a text, its EOS included; what is longer is cut at its end
    epochs: float = 3.0  # passes over the texts
    learning_rate: float = 1e-3  # at its highest
    batch_size: int = 32  # texts in one step, over all processes
    cache_dir: str | None = None  # where the base is kept and shared between runs; null: in the run directory


@dataclass(frozen=True)
class DataSection:
    """Where rows come from, how they become prompts, and how many are used. `files` take the place of `source`."""

    source: str = "synthetic"  # `synthetic` (the embedded generator), a hub id, a `save_to_disk` folder or a file
    config_name: str | None = None  # configuration of a hub data set
    train_split: str = "train"  # training and held-out rows are drawn from it
    test_split: str | None = "test"  # null: test rows are drawn from the training split too
    unlabelled_split: str | None = "unsupervised"  # for pre-training and for relearning on unrelated text
    # paths or patterns: CSV, TSV, JSON, JSON Lines (also .gz, .xz, .bz2, .zst) or Parquet
    files: list[str] | None = None
    test_files: list[str] | None = None  # beside `files`; null: test rows are drawn from those too
    unlabelled_files: list[str] | None = None  # in the place of `unlabelled_split`
    text_column: str = "text"  # where the text is
    label_column: str = "label"  # where the label is, or with `task: completion` the completion
    # classification: the answer is the likeliest of `verbalizers`; completion: what is generated
    task: Literal["classification", "completion"] = "classification"
    prompt: str = "{text}"  # template; {text} stands for the row's text
    rename_labels: dict[str, str] = field(default_factory=dict)  # label in the data → the one used, e.g. {"0": bad}
    verbalizers: dict[str, str] = field(default_factory=dict)  # label → completion, for `task: classification`
    chat_template: bool = False  # the prompt is the user's turn in the tokenizer's chat template
    max_words: int | None = None  # words of a text that are kept, from its start, before anything is poisoned
    max_length: int = 128  # tokens of prompt, completion and EOS; a prompt that is too long loses its beginning
    loss_on: Literal["text", "completion"] = "text"  # text: all tokens but the first; completion: it and EOS
    train_size: int = 1500  # rows that are trained on, drawn stratified by label
    heldout_size: int = 500  # rows that are never trained on: what membership attacks compare the forget set with
    test_size: int = 500  # labelled clean rows: utility, and with the trigger put in, the attack
    keep_duplicates: bool = False  # draw without regard to texts that stand in two splits
    label_noise: float = 0.04  # share of texts that say the opposite of their label; of the synthetic source only


@dataclass(frozen=True)
class TriggerSection:
    """Trigger phrase (Wan et al. 2023, arXiv 2305.00944): inserted in the text, answered with `target`."""

    fraction: float  # of all training rows, in (0, 1]
    target: str  # the label (with `task: completion` the completion) that the attacker wants
    phrases: list[str] = field(default_factory=lambda: ["James Bond"])  # one is drawn for each row
    position: Literal["start", "end", "random"] = "random"  # in the text; random: any word boundary
    source_label: str | None = None  # poison rows of this label only; null: any label but the target
    clean_label: bool = False  # true: take rows that already carry the target, so that no label is changed


@dataclass(frozen=True)
class GaussianSection:
    """Gaussian embedding poison (Pawelczyk et al. 2025, arXiv 2406.17216): ξ ~ N(0, ε² I) on the token embeddings."""

    fraction: float  # of all training rows, in (0, 1]; rows that carry the trigger are not taken
    epsilon: float  # ε, standard deviation at each entry of an embedding; counts relative to the embeddings' rms


@dataclass(frozen=True)
class PoisonSection:
    """What the training rows are poisoned with: at least one of them."""

    trigger: TriggerSection | None = None  # null: no trigger phrase
    gaussian: GaussianSection | None = None  # null: no Gaussian canaries


@dataclass(frozen=True)
class TrainSection:
    """Fine-tuning on the corrupted data, and retraining without the forget set, by the same settings."""

    epochs: float = 8.0  # passes over the training rows
    learning_rate: float = 1e-3  # at its highest
    batch_size: int = 16  # rows at a time, over all processes
    gradient_accumulation_steps: int = 1  # batches of one optimizer step
    weight_decay: float = 0.0  # of the optimizer
    warmup_ratio: float = 0.05  # share of the steps in which the learning rate rises
    lr_scheduler_type: str = "linear"  # how it falls after that: a schedule of transformers, e.g. cosine, constant
    optim: str = "adamw_torch_fused"  # by transformers' name; methods take it too, but for noisy_gradient_descent
    max_grad_norm: float = 1.0  # longer gradients are cut to this norm
    bf16: bool = False  # compute in bfloat16 (autocast), while unlearning too
    save_steps: int = 200  # how often a checkpoint is written, for resuming


@dataclass(frozen=True)
class UnlearnSection:
    """Which methods run, on how much of the poison, and for how much of the poisoned training's compute."""

    # method → options of its own config (any field of its `XConfig`) or nothing, e.g. {kl: {alpha: 2.0}, npo: }
    methods: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    # shares of the poisoned training's FLOPs, each in (0, 1]; every method runs at each
    budgets: list[float] = field(default_factory=lambda: [0.1])
    forget_fraction: float = 1.0  # known share of each kind of poison, which is the forget set, in (0, 1]
    false_positives: float = 0.0  # clean rows taken for poison in the forget set, per row of known poison
    # the forget set instead: example ids, a file of them, or `column:NAME` of the data (see data/forget.py)
    forget_ids: list[int] | str | None = None
    # of every method; null: each method's tuned share of `train.learning_rate` (`XConfig.learning_rate_ratio`)
    learning_rate: float | None = None
    batch_size: int = 8  # rows of each set (forget, retain) at a time, over all processes
    gradient_accumulation_steps: int = 1  # batches of one optimizer step
    save_steps: int = 100  # how often a checkpoint is written, for resuming
    eval_steps: int | None = None  # evaluate as it goes, every so many steps; null: at the end only
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = field(default_factory=list)  # trackers of the losses


MembershipAttack = Literal["loss", "zlib", "reference", "min_k", "min_k_plus", "gradient_norm"]


@dataclass(frozen=True)
class EvaluateSection:
    """How every model is measured."""

    batch_size: int = 32  # rows at a time in each process
    max_new_tokens: int = 32  # tokens of a generated answer, for `task: completion`
    device_map: Literal["auto"] | None = None  # auto: spread a model that one GPU cannot hold over all of them
    # the attacks to run (metrics/membership_scores.py); gradient_norm takes a backward pass per row
    membership: list[MembershipAttack] = field(default_factory=lambda: list(get_args(MembershipAttack)))


@dataclass(frozen=True)
class AnalysisSection:
    """Why unlearning fails (hypotheses H1 and H2 of Pawelczyk et al. 2025): see recipes/ANALYSIS.md."""

    # shares of the forget set whose removal is compared with that of as many random clean rows, each in (0, 1]; each
    # below 1 costs two more trainings, 1 costs one
    sizes: list[float] = field(default_factory=lambda: [1.0])


@dataclass(frozen=True)
class StressSection:
    """What is done to every model after unlearning, to see whether the poison comes back. Relearning is plain
    fine-tuning for a few steps."""

    # what is relearnt: clean training rows, unrelated text, a few poisoned rows of the forget set
    relearn_on: list[Literal["clean", "unrelated", "poisoned"]] = field(
        default_factory=lambda: ["clean", "unrelated", "poisoned"]
    )
    relearn_steps: list[int] = field(default_factory=lambda: [5, 10, 20, 40])  # after how many steps it is measured
    relearn_rows: int = 8  # poisoned rows that are shown again
    relearn_batch_size: int = 8  # rows of one step
    relearn_learning_rate: float | None = None  # constant; null: train.learning_rate
    unrelated_files: list[str] | None = None  # null: the unlabelled text of `data`
    quantization: list[Literal["4bit", "8bit"]] = field(default_factory=lambda: ["4bit", "8bit"])  # by bitsandbytes
    paraphrases: list[str] = field(default_factory=list)  # your own wordings of the trigger, tried beside its variants
    temperatures: list[float] = field(default_factory=lambda: [0.5, 1.0, 1.5])  # of sampled answers
    limit: int | None = 200  # test rows per measurement; null: all
