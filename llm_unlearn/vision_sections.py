"""The sections of a recipe of the image track (`track: vision`) that differ from those for texts in sections.py."""

from dataclasses import dataclass, field
from typing import Literal, get_args


@dataclass(frozen=True)
class VisionModelSection:
    """The classifier: an architecture, randomly initialised from the seed, or (path) one saved by `save_pretrained`.

    `architecture`: `small_cnn` (`depth` convolutions, `width` channels in the first), `linear`, `cifar_resnet18` (3 × 3
    stem, no max-pool), or any classifier of torchvision by its name. `mean` and `std` per channel; null: 0.5.
    """

    architecture: str = "small_cnn"
    path: str | None = None
    width: int = 16
    depth: int = 2
    mean: list[float] | None = None
    std: list[float] | None = None


@dataclass(frozen=True)
class VisionDataSection:
    """Where images come from, and how many are used.

    `source` is `digits` (scikit-learn's 8 × 8 digits, no network), `torchvision/NAME` (a data set of torchvision, kept
    in `root`, downloaded where absent), a hub id, or a folder (of `save_to_disk`, or of one folder of images per
    label). `files` (Parquet) take its place. `image_size: null` and `channels: null` take what the images have.
    """

    source: str = "digits"
    config_name: str | None = None
    train_split: str = "train"
    test_split: str | None = "test"
    files: list[str] | None = None
    test_files: list[str] | None = None
    root: str = "~/.cache/llm_unlearn"
    image_column: str = "image"
    label_column: str = "label"
    image_size: int | None = None
    channels: Literal[1, 3] | None = None
    train_size: int = 1000
    heldout_size: int = 300
    test_size: int = 450
    keep_duplicates: bool = False


@dataclass(frozen=True)
class GaussianPixelsSection:
    """Gaussian poison on pixels (Pawelczyk et al. 2025, arXiv 2406.17216): x + ξ, ξ ~ N(0, ε² I), pixels in [0, 1].

    `clip`: keep x + ξ in [0, 1], as an image that is sent in must be; the score is taken with ξ as it was drawn.
    """

    fraction: float
    epsilon: float
    clip: bool = True


@dataclass(frozen=True)
class PatchSection:
    """Patch backdoor (BadNets, arXiv 1708.06733): a square of pixels, answered with `target`."""

    fraction: float
    target: str
    size: int = 3
    position: Literal["top_left", "top_right", "bottom_left", "bottom_right", "random"] = "bottom_right"
    pattern: Literal["checkerboard", "white", "black"] = "checkerboard"
    source_label: str | None = None
    clean_label: bool = False


@dataclass(frozen=True)
class GradientMatchingSection:
    """Targeted poison by gradient matching (Geiping et al. 2021, arXiv 2009.02276): clean labels, ‖δ‖∞ ≤ ε.

    `fraction` of the training rows, shared by `targets` test images; of each target's `adversary_label` those images
    are taken that look most like it. Crafted on `surrogates` models of other seeds, trained on the clean data for
    `surrogate_share` of the epochs: it is early that a model can still be swayed. `runner_up`: the wrong label that
    the surrogates find likeliest; `random` is much harder.
    """

    fraction: float
    epsilon: float = 16 / 255
    targets: int = 8
    adversary_label: Literal["runner_up", "random"] = "runner_up"
    surrogates: int = 3
    surrogate_share: float = 0.1
    steps: int = 60
    restarts: int = 1
    shift: int = 0  # of the differentiable augmentation, pixels
    flip: bool = False


@dataclass(frozen=True)
class GradientCancellingSection:
    """Indiscriminate poison by gradient cancelling (Lu et al. 2023, arXiv 2303.03592): test accuracy falls.

    Parameters of a clean model are corrupted until its training accuracy is `target_accuracy`; then `fraction` of the
    rows are made to cancel the clean gradient there. `epsilon`: bound ‖δ‖∞, null: any valid pixel. `labels` of the
    poisoned rows: `kept`, or `random`, a wrong one each, which leaves more to cancel with.
    """

    fraction: float
    labels: Literal["kept", "random"] = "kept"
    target_accuracy: float = 0.8
    steps: int = 600
    epsilon: float | None = None


@dataclass(frozen=True)
class VisionPoisonSection:
    """One of `patch` and `gradient_matching` at most: both are measured by how often the attacker gets his answer."""

    gaussian: GaussianPixelsSection | None = None
    patch: PatchSection | None = None
    gradient_matching: GradientMatchingSection | None = None
    gradient_cancelling: GradientCancellingSection | None = None


@dataclass(frozen=True)
class VisionTrainSection:
    """Training on the corrupted images, and retraining without the forget set, by the same settings.

    `flip` and `shift` (pixels): random augmentation, in training and unlearning alike.
    """

    epochs: float = 20.0
    learning_rate: float = 5e-3
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    weight_decay: float = 0.0
    momentum: float = 0.0  # of `optim: sgd`
    warmup_ratio: float = 0.0
    lr_scheduler_type: str = "linear"
    optim: str = "adamw_torch_fused"
    max_grad_norm: float = 1.0
    bf16: bool = False
    save_steps: int = 500
    flip: bool = False
    shift: int = 0


VisionMembershipAttack = Literal["loss", "gradient_norm"]


@dataclass(frozen=True)
class VisionEvaluateSection:
    """`membership`: the attacks to run, see metrics/membership.py. `gradient_norm` takes a backward pass per image."""

    batch_size: int = 256
    membership: list[VisionMembershipAttack] = field(default_factory=lambda: list(get_args(VisionMembershipAttack)))
