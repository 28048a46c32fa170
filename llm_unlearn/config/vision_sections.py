"""The sections of a recipe of the image track (`track: vision`) that differ from those for texts in sections.py."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from llm_unlearn.config.data_sections import check_source_label, check_test_rows
from llm_unlearn.config.fields import (
    BatchSize,
    Count,
    Epochs,
    LearningRate,
    NotNegative,
    PixelChange,
    Positive,
    Section,
    Seed,
    Share,
    ShareOrZero,
    Shift,
    Size,
    require,
)


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):  # which equals 0 or 1, and so a literal
        raise PydanticCustomError("literal_error", "not a number")
    return value


Channels = Annotated[Literal[1, 3], BeforeValidator(_no_bool)]


class VisionModelSection(Section):
    """The classifier: an architecture, randomly initialised from the seed, or (path) one saved by `save_pretrained`."""

    architecture: str = "small_cnn"
    """small_cnn, linear, cifar_resnet18 (3 × 3 stem, no max-pool), or any classifier of torchvision by its name"""
    path: str | None = None
    """folder of a saved classifier, which has its own architecture; null: made anew"""
    width: Size = 16
    """of small_cnn: channels of the first convolution, twice as many in each further one"""
    depth: Size = 2
    """of small_cnn: convolutions, before one dense layer"""
    mean: list[Annotated[float, Field(ge=-1000, le=1000)]] | None = Field(default=None, min_length=1, max_length=3)
    """subtracted from pixels in [0, 1], one number per channel; null: 0.5"""
    std: list[Positive] | None = Field(default=None, min_length=1, max_length=3)
    """what they are then divided by, one number per channel; null: 0.5"""

    def check_rules(self) -> None:
        require(
            self.path is None or self.architecture == "small_cnn",
            "architecture",
            "a saved model (model.path) has its own; leave it out",
        )


class VisionDataSection(Section):
    """Where images come from, and how many are used. `files` take the place of `source`."""

    source: str = "digits"
    """digits (scikit-learn's 8 × 8 digits, no network), torchvision/NAME (downloaded where absent), a hub id, or a
    folder of `save_to_disk` or of one folder of images per label"""
    config_name: str | None = None
    """configuration of a hub data set"""
    train_split: str = "train"
    """training and held-out images are drawn from it"""
    test_split: str | None = "test"
    """null: test images are drawn from the training split too"""
    files: list[str] | None = None
    """Parquet, paths or patterns"""
    test_files: list[str] | None = None
    """beside `files`; null: test images are drawn from those too"""
    root: str = "~/.cache/llm_unlearn"
    """where data sets of torchvision are kept"""
    image_column: str = "image"
    """where the image is"""
    label_column: str = "label"
    """where the label is"""
    image_size: Size | None = None
    """pixels of a side, images are resized to it; null: as they are, all of one size"""
    channels: Channels | None = None
    """1: grey, 3: RGB; null: as the first image"""
    train_size: Count = 1000
    """images that are trained on, drawn stratified by label"""
    heldout_size: Count = 300
    """images that are never trained on: what membership attacks compare the forget set with"""
    test_size: Count = 450
    """labelled clean images: utility, and with the patch on, the attack"""
    keep_duplicates: bool = False
    """draw without regard to images that stand in two splits"""

    def check_rules(self) -> None:
        check_test_rows(self)


class GaussianPixelsSection(Section):
    """Gaussian poison on pixels (Pawelczyk et al. 2025, arXiv 2406.17216): x + ξ, ξ ~ N(0, ε² I), pixels in [0, 1]."""

    fraction: Share
    """of all training images"""
    epsilon: Positive
    """ε, standard deviation at each pixel and channel"""
    clip: bool = True
    """keep x + ξ in [0, 1], as a sent-in image must be; the score is taken with ξ as it was drawn"""
    audit_share: ShareOrZero = 0.5
    """share of the canaries to be deleted that are hidden: given to the methods as plain images, without noise; the
    verdict is theirs. 0: none, and a method that works on known noise alone looks clean"""
    noise_seed: Seed | None = None
    """null: the noise is drawn from the system, and its secret kept in poison.json; a number, to which that of the run
    is added: the same noise again, which whoever knows the recipe knows too"""


class PatchSection(Section):
    """Patch backdoor (BadNets, arXiv 1708.06733): a square of pixels, answered with `target`."""

    fraction: Share
    """of all training images"""
    target: str
    """the label that the attacker wants"""
    size: Size = 3
    """pixels of a side of the square"""
    position: Literal["top_left", "top_right", "bottom_left", "bottom_right", "random"] = "bottom_right"
    """one pixel from the border where there is room; random: anywhere, drawn for each image"""
    pattern: Literal["checkerboard", "white", "black"] = "checkerboard"
    """of the square, in all channels"""
    source_label: str | None = None
    """poison images of this label only; null: any label but the target"""
    clean_label: bool = False
    """true: take images that already carry the target, so that no label is changed"""

    def check_rules(self) -> None:
        check_source_label(self)


class GradientMatchingSection(Section):
    """Targeted poison by gradient matching (Geiping et al. 2021, arXiv 2009.02276): clean labels, ‖δ‖∞ ≤ ε.

    For each target those images of the adversary's label are taken that look most like it. Surrogates are models of
    other seeds, trained on the clean data for a part of the epochs only: it is early that a model can still be swayed.
    """

    fraction: Share
    """of all training images, shared by the targets"""
    epsilon: PixelChange = 16 / 255
    """ε, bound on the change of a pixel, pixels being in [0, 1] and stored in 8 bits"""
    targets: Count = 8
    """test images that are to be answered with the adversary's label"""
    adversary_label: Literal["runner_up", "random"] = "runner_up"
    """the wrong label that surrogates find likeliest, or a random wrong one, which is much harder"""
    surrogates: Size = 3
    """models on which the poison is crafted"""
    surrogate_share: Share = 0.1
    """of `train.epochs`, for which a surrogate is trained"""
    steps: Count = 60
    """of signed Adam, in each restart"""
    restarts: Size = 1
    """from random δ, of which the best is taken"""
    shift: Shift = 0
    """pixels of the differentiable augmentation that the poison is to survive"""
    flip: bool = False
    """whether that augmentation flips left to right"""


class GradientCancellingSection(Section):
    """Indiscriminate poison by gradient cancelling (Lu et al. 2023, arXiv 2303.03592): test accuracy falls.

    Parameters of a clean model are corrupted until its training accuracy is low; then rows are made to cancel the clean
    gradient there.
    """

    fraction: Share
    """of all training images"""
    labels: Literal["kept", "random"] = "kept"
    """of the poisoned rows; random: a wrong one each, more to cancel with"""
    target_accuracy: float = Field(default=0.8, ge=0, lt=1)
    """training accuracy down to which the parameters are corrupted"""
    steps: Count = 600
    """of Adam"""
    epsilon: PixelChange | None = None
    """ε, bound on the change of a pixel, pixels being in [0, 1] and stored in 8 bits; null: any valid pixel"""


class VisionPoisonSection(Section):
    """What the training images are poisoned with: at least one of them, and one of `patch` and `gradient_matching` at
    most, since both are measured by how often the attacker gets his answer.
    """

    gaussian: GaussianPixelsSection | None = None
    """null: no Gaussian canaries"""
    patch: PatchSection | None = None
    """null: no patch"""
    gradient_matching: GradientMatchingSection | None = None
    """null: no targeted poison"""
    gradient_cancelling: GradientCancellingSection | None = None
    """null: no indiscriminate poison"""


class VisionTrainSection(Section):
    """Training on the corrupted images, and retraining without the forget set, by the same settings."""

    epochs: Epochs = 20.0
    """passes over the training images"""
    learning_rate: LearningRate = 5e-3
    """at its highest"""
    batch_size: BatchSize = 32
    """images at a time, over all processes"""
    gradient_accumulation_steps: BatchSize = 1
    """batches of one optimizer step"""
    weight_decay: NotNegative = 0.0
    """of the optimizer"""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """of `optim: sgd`"""
    warmup_ratio: ShareOrZero = 0.0
    """share of the steps in which the learning rate rises"""
    lr_scheduler_type: str = "linear"
    """how the rate falls after that: a schedule of transformers, e.g. cosine, constant"""
    optim: str = "adamw_torch_fused"
    """by transformers' name; methods take it too, but for noisy_gradient_descent"""
    max_grad_norm: NotNegative = 1.0
    """longer gradients are cut to this norm; 0: none is"""
    bf16: bool = False
    """compute in bfloat16 (autocast), while unlearning too"""
    save_steps: Count = 500
    """how often a checkpoint is written, for resuming"""
    flip: bool = False
    """flip images left to right at random, in training and unlearning alike"""
    shift: Shift = 0
    """move images at random by up to so many pixels, in training and unlearning alike"""

    def check_rules(self) -> None:
        require(self.momentum == 0 or self.optim == "sgd", "momentum", "is of `train.optim: sgd` alone")


VisionMembershipAttack = Literal["loss", "gradient_norm"]


class VisionEvaluateSection(Section):
    """How every model is measured."""

    batch_size: BatchSize = 256
    """images at a time in each process"""
    bf16: bool = False
    """run models in bfloat16 (autocast), whatever `train.bf16` says"""
    tf32: bool = False
    """on a CUDA GPU, compute float32 products and convolutions in TF32 (10 bits of mantissa, faster); false: exactly"""
    membership: list[VisionMembershipAttack] = Field(default=list(get_args(VisionMembershipAttack)))
    """the attacks to run (metrics/membership_scores.py); gradient_norm takes a backward pass per image"""
    loss_rank_draws: Annotated[int, Field(ge=0, le=9999)] = 99
    """fresh noises that each Gaussian canary's loss is ranked among (evaluation/loss_ranks.py), a forward pass of the
    canary each; 0 leaves that test out, and no canaries are then called gone"""
    placebo_draws: Annotated[int, Field(ge=0, le=9999)] = 799
    """at most so many patches of other patterns, which the patch's effect is ranked among (metrics/placebo.py); 0
    leaves that test out"""
    placebo_rows: Annotated[int, Field(ge=1, le=10_000)] = 8
    """test images of another class than the target, on which each of them is put, a forward pass each"""
    placebo_stop_at: Annotated[int, Field(ge=1, le=9999)] = 10
    """no more are drawn once so many have reached the patch's effect: a clean model needs few"""
    clean_steps: Annotated[int, Field(ge=0, le=100_000)] = 30
    """steps on clean training rows after which the tests of the poison are taken again: does it stay gone? At the
    training's rate and rows a step, by AdamW (SGD under `optim: sgd`) without weight decay; 0 leaves that out"""
