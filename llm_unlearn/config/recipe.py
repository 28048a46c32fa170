"""One YAML = one experiment: a recipe, how it is read, and what follows from it.

recipe = load_recipe("recipes/quickstart.yaml", ["train.epochs=2", "seeds=[0, 1]"])
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llm_unlearn.config.recipe_checks import check_recipe
from llm_unlearn.config.sections import (
    AnalysisSection,
    DataSection,
    EvaluateSection,
    ModelSection,
    PoisonSection,
    PretrainSection,
    StressSection,
    TrainSection,
    UnlearnSection,
)
from llm_unlearn.config.strict import build, dump_yaml, read_yaml, set_override
from llm_unlearn.config.vision_sections import (
    VisionDataSection,
    VisionEvaluateSection,
    VisionModelSection,
    VisionPoisonSection,
    VisionTrainSection,
)
from llm_unlearn.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """One experiment. Written back, resolved, to `recipe.yaml` in the run directory."""

    name: str  # of the experiment; an output directory takes runs of one name only
    output_dir: str  # the run directory
    model: ModelSection
    data: DataSection
    poison: PoisonSection
    seeds: list[int] = field(default_factory=lambda: [0])  # each is a run of its own: other rows, poison and order
    pretrain: PretrainSection | None = None
    train: TrainSection = field(default_factory=TrainSection)
    unlearn: UnlearnSection = field(default_factory=UnlearnSection)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)
    analysis: AnalysisSection | None = None
    stress: StressSection | None = None
    # a field, or several joined by `, ` which share their values → the values it takes, one axis at a time (sweep.py)
    sweep: dict[str, list[Any]] = field(default_factory=dict)
    track: Literal["language"] = "language"  # language or vision

    def poison_counts(self) -> dict[str, int]:
        """Rows that each kind of poison of the recipe takes, e.g. {"trigger": 75, "gaussian": 75}."""
        sections = vars(self.poison).items()
        return {kind: round(s.fraction * self.data.train_size) for kind, s in sections if s is not None}

    def forget_count(self) -> int | None:
        """Rows of the forget set: the known fraction of each kind of poison, and clean rows taken for it. None where
        `forget_ids` names a file, which is not read here."""
        section = self.unlearn
        if section.forget_ids is not None:
            return len(section.forget_ids) if isinstance(section.forget_ids, list) else None
        known = sum(round(section.forget_fraction * count) for count in self.poison_counts().values())
        return known + round(section.false_positives * known)

    @property
    def has_clean_oracle(self) -> bool:
        """Whether some poison may be left outside the forget set, so that a model trained on clean data alone is
        another oracle beside the retrained one."""
        return self.unlearn.forget_fraction < 1 or self.unlearn.forget_ids is not None

    def to_yaml(self) -> str:
        return dump_yaml(dataclasses.asdict(self))


@dataclass(frozen=True)
class VisionRecipe(Recipe):
    """One experiment of the image track."""

    model: VisionModelSection
    data: VisionDataSection
    poison: VisionPoisonSection
    pretrain: None = None
    train: VisionTrainSection = field(default_factory=VisionTrainSection)
    evaluate: VisionEvaluateSection = field(default_factory=VisionEvaluateSection)
    analysis: None = None
    stress: None = None
    track: Literal["vision"] = "vision"  # language or vision


WITHHELD = "[withheld]"  # in the place of a trigger's phrase in a published recipe
TRACKS = {"language": Recipe, "vision": VisionRecipe}


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
        recipe = build_recipe(tree)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if WITHHELD in getattr(getattr(recipe.poison, "trigger", None), "phrases", []):
        raise InputError(
            f"{path}: poison.trigger.phrases was withheld by who published it, and another phrase would "
            'measure nothing; give it: poison.trigger.phrases="[…]"'
        )
    return recipe


def build_recipe(tree: dict) -> Recipe:
    """A checked recipe from a mapping of its sections. Raises InputError naming the field."""
    track = tree.get("track", "language")
    if track not in TRACKS:
        raise InputError(f"recipe.track: must be one of {', '.join(TRACKS)}, is {track!r}")
    recipe = build(TRACKS[track], tree, "recipe")
    check_recipe(recipe)
    return recipe
