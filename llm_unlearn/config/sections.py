"""The sections of a recipe about what is done with model and data: fields, types, bounds, defaults and meanings."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from llm_unlearn.config.evaluation_fields import FluencySection, LmEvalSection
from llm_unlearn.config.fields import (
    BatchSize,
    Count,
    Distinct,
    Epochs,
    LearningRate,
    Length,
    NotBlank,
    NotNegative,
    Positive,
    RowId,
    Section,
    Share,
    ShareOrZero,
    Table,
    check_batch,
    require,
)


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
    each token canary's is ranked among, a forward pass of the canary each; 0 leaves these tests out, and no canaries
    are then called gone"""
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
