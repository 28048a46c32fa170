"""One YAML = one experiment: the sections of a recipe, what they mean, and how a recipe is read and checked.

    recipe = load_recipe("recipes/quickstart.yaml", ["train.epochs=2", "seeds=[0, 1]"])
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llm_unlearn.errors import InputError
from llm_unlearn.strict import build, dump_yaml, read_yaml, set_override


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
    optim: str = "adamw_torch"
    max_grad_norm: float = 1.0
    bf16: bool = False
    save_steps: int = 200  # how often a checkpoint is written, for resuming


@dataclass(frozen=True)
class UnlearnSection:
    """Which methods run, on how much of the poison, and for how much of the poisoned training's compute.

    `methods` maps a method to overrides of its own config (any field of its `XConfig`), e.g. `kl: {alpha: 2.0}`.
    `learning_rate: null` takes each method's tuned share of `train.learning_rate` (`XConfig.learning_rate_ratio`).
    """

    methods: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    budgets: list[float] = field(default_factory=lambda: [0.1])
    forget_fraction: float = 1.0
    learning_rate: float | None = None
    batch_size: int = 8
    gradient_accumulation_steps: int = 1
    save_steps: int = 100
    eval_steps: int | None = None  # evaluate as it goes, every so many steps; null: at the end only


@dataclass(frozen=True)
class EvaluateSection:
    batch_size: int = 32
    max_new_tokens: int = 32  # for `task: completion`


@dataclass(frozen=True)
class Recipe:
    """One experiment. Written back, resolved, to `recipe.yaml` in the run directory."""

    name: str
    output_dir: str
    model: ModelSection
    data: DataSection
    poison: PoisonSection
    seeds: list[int] = field(default_factory=lambda: [0])
    pretrain: PretrainSection | None = None
    train: TrainSection = field(default_factory=TrainSection)
    unlearn: UnlearnSection = field(default_factory=UnlearnSection)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)

    def poison_counts(self) -> dict[str, int]:
        """Rows that each kind of poison of the recipe takes, e.g. {"trigger": 75, "gaussian": 75}."""
        sections = {"trigger": self.poison.trigger, "gaussian": self.poison.gaussian}
        return {kind: round(s.fraction * self.data.train_size) for kind, s in sections.items() if s is not None}

    def forget_count(self) -> int:
        """Rows of the forget set: the known fraction of each kind of poison."""
        return sum(round(self.unlearn.forget_fraction * count) for count in self.poison_counts().values())

    def to_yaml(self) -> str:
        return dump_yaml(dataclasses.asdict(self))


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file, apply `section.field=value` overrides, and check it without touching data or models.

    Raises:
        InputError: naming the file and the field.
    """
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise InputError(f"{path}: a recipe is a mapping of sections; this file holds {type(tree).__name__}")
    for override in overrides or []:
        set_override(tree, override)
    try:
        recipe = build(Recipe, tree, "recipe")
        _check(recipe)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return recipe


def _check(recipe: Recipe) -> None:
    data, unlearn = recipe.data, recipe.unlearn
    _require(recipe.seeds and len(set(recipe.seeds)) == len(recipe.seeds), "seeds", "give each seed once, at least one")
    _require(all(seed >= 0 for seed in recipe.seeds), "seeds", "each must be 0 or more")
    if recipe.model.path is None:
        _require(recipe.model.architecture, "model.path", "give a hub id or folder, or an `architecture` to build")
        _require(recipe.pretrain, "pretrain", "a base made from `model.architecture` needs this section")
    _require("{text}" in data.prompt, "data.prompt", "the template must contain {text}")
    if data.task == "classification":
        _require(len(data.verbalizers) >= 2, "data.verbalizers", "classification needs at least two labels")
        _require(all(data.verbalizers.values()), "data.verbalizers", "a completion must not be empty")
    _require(data.max_words is None or data.max_words >= 1, "data.max_words", "must be at least 1, or null")
    _require(recipe.model.quantization == "none" or recipe.model.lora, "model.lora",
             "a quantised base can only be trained through adapters; add `lora: {}`")
    _require(data.task == "classification" or recipe.evaluate.max_new_tokens < data.max_length,
             "evaluate.max_new_tokens", f"must be below data.max_length ({data.max_length}): prompts need room too")
    for name in ("train_size", "heldout_size", "test_size", "max_length"):
        _require(getattr(data, name) > 0, f"data.{name}", "must be at least 1")
    _require(all(0 < b <= 1 for b in unlearn.budgets) and unlearn.budgets, "unlearn.budgets", "each must be in (0, 1]")
    for name in ("pretrain", "train", "unlearn", "evaluate"):
        for key in ("batch_size", "gradient_accumulation_steps", "save_steps"):
            _require(getattr(getattr(recipe, name), key, 1) >= 1, f"{name}.{key}", "must be at least 1")
        for key in ("epochs", "learning_rate"):
            value = getattr(getattr(recipe, name), key, None)
            _require(value is None or value > 0, f"{name}.{key}", "must be above 0")
    _check_poison(recipe)


def _check_poison(recipe: Recipe) -> None:
    data, poison, fraction = recipe.data, recipe.poison, recipe.unlearn.forget_fraction
    _require(poison.trigger or poison.gaussian, "poison", "give `trigger`, `gaussian` or both")
    for kind in ("trigger", "gaussian"):
        section = getattr(poison, kind)
        if section is not None:
            _require(0 < section.fraction <= 1, f"poison.{kind}.fraction", f"must be in (0, 1], is {section.fraction}")
    if poison.gaussian:
        _require(poison.gaussian.epsilon > 0, "poison.gaussian.epsilon", "must be above 0")
    if poison.trigger:
        _require(poison.trigger.phrases and all(p.strip() for p in poison.trigger.phrases),
                 "poison.trigger.phrases", "give at least one phrase that is not blank")
        for key in ("target", "source_label"):
            label = getattr(poison.trigger, key)
            if data.task == "classification" and label is not None:
                _require(label in data.verbalizers, f"poison.trigger.{key}",
                         f"'{label}' has no verbalizer; known labels: {', '.join(data.verbalizers)}")
        _require(not (poison.trigger.clean_label and poison.trigger.source_label), "poison.trigger.source_label",
                 "clean_label takes rows of the target; leave source_label out")
    for kind, count in recipe.poison_counts().items():
        given = getattr(poison, kind).fraction
        _require(count, f"poison.{kind}.fraction", f"{given} of {data.train_size} rows (data.train_size) rounds to no "
                 f"example; use at least {1 / data.train_size:.2g}")
    _require(0 < fraction <= 1, "unlearn.forget_fraction", f"must be in (0, 1], is {fraction}")
    _require(recipe.forget_count(), "unlearn.forget_fraction", f"{fraction} of the poison "
             f"({sum(recipe.poison_counts().values())} rows) rounds to an empty forget set; raise it")
    _require(recipe.forget_count() < data.train_size, "poison", "the forget set would be the whole training set and "
             "nothing retained; lower poison.*.fraction")


def _require(condition: Any, where: str, message: str) -> None:
    if not condition:
        raise InputError(f"recipe.{where}: {message}")
