"""One YAML = one experiment: a recipe, and what follows from it."""

from math import ceil
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from llm_unlearn.config.benchmark_fields import BenchmarkSection
from llm_unlearn.config.data_sections import DataSection, PoisonSection, check_labels, check_placebos
from llm_unlearn.config.fields import Distinct, Section, Seed, Table, require
from llm_unlearn.config.given_sections import GivenSection, GivenTrainSection, GivenUnlearnSection
from llm_unlearn.config.model_sections import ModelSection, PretrainSection
from llm_unlearn.config.sections import AnalysisSection, EvaluateSection, StressSection, TrainSection, UnlearnSection
from llm_unlearn.config.strict import dump_yaml
from llm_unlearn.config.validate import validated
from llm_unlearn.config.vision_sections import (
    VisionDataSection,
    VisionEvaluateSection,
    VisionModelSection,
    VisionPoisonSection,
    VisionTrainSection,
)


class Recipe(Section):
    """One experiment. Written back, resolved, to `recipe.yaml` in the run directory."""

    name: str
    """of the experiment; an output directory takes runs of one name only"""
    output_dir: str
    """the run directory"""
    model: ModelSection
    data: DataSection
    poison: PoisonSection = Field(default_factory=PoisonSection)
    benchmark: BenchmarkSection | None = None
    seeds: Distinct[Seed] = Field(default=[0], min_length=1)
    """each is a run of its own: other rows, poison and order"""
    pretrain: PretrainSection | None = None
    train: TrainSection = Field(default_factory=TrainSection)
    unlearn: UnlearnSection = Field(default_factory=UnlearnSection)
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    analysis: AnalysisSection | None = None
    stress: StressSection | None = None
    sweep: Table[Annotated[list[Any], Field(min_length=1)]] = Field(default={})
    """a field, or several joined by `, ` that share their values → the values it takes; one axis at a time"""
    track: Literal["language"] = "language"
    """language or vision"""

    def poison_counts(self) -> dict[str, int]:
        """Rows that each kind of poison of the recipe takes, e.g. {"trigger": 75, "gaussian": 75}."""
        return {kind: round(s.fraction * self.data.train_size) for kind, s in self.poison if s is not None}

    def forget_count(self) -> int | None:
        """Rows of the forget set: the known fraction of each kind of poison, and clean rows taken for it. None where
        `forget_ids` names a file, which is not read here, and of a benchmark.
        """
        section = self.unlearn
        if self.benchmark is not None:
            return None
        if section.forget_ids is not None:
            return len(section.forget_ids) if isinstance(section.forget_ids, list) else None
        known = sum(round(section.forget_fraction * count) for count in self.poison_counts().values())
        return known + round(section.false_positives * known)

    def deleted_canaries(self, kind: str = "gaussian") -> int | None:
        """Canaries of the forget set; None without any, or where `forget_ids` says which rows it has."""
        if (count := self.poison_counts().get(kind)) is None or self.unlearn.forget_ids is not None:
            return None
        return round(self.unlearn.forget_fraction * count)  # of a benchmark all

    @property
    def epoch_rows(self) -> int:
        """Rows of one epoch of the poisoned training, in which canaries may stand several times."""
        return self.data.train_size + self._repeated(self.poison_counts())

    def retained_epoch_rows(self) -> int | None:
        """Likewise of the retrained training, at most; None where `forget_count` is."""
        if (forget := self.forget_count()) is None:
            return None
        kept = {kind: count - (self.deleted_canaries(kind) or 0) for kind, count in self.poison_counts().items()}
        return self.data.train_size - forget + self._repeated(kept)

    def _repeated(self, counts: dict[str, int]) -> int:
        """Rows that so many rows of each kind of poison add to an epoch by standing in it more than once."""
        return sum(counts[kind] * (getattr(s, "exposures", 1) - 1) for kind, s in self.poison if s is not None)

    def training_steps(self) -> int:
        """Optimizer steps of the poisoned training, as the Trainer counts: an epoch's last batch may be smaller."""
        batches = ceil(self.epoch_rows / self.train.batch_size)
        return ceil(self.train.epochs * ceil(batches / self.train.gradient_accumulation_steps))

    @property
    def kept_steps(self) -> list[int]:
        """Steps of the poisoned training after which its model is kept."""
        return self.train.keep_steps

    @property
    def has_clean_oracle(self) -> bool:
        """Whether some poison may be left outside the forget set, so that a model trained on clean data alone is
        another oracle beside the retrained one.
        """
        return (
            self.unlearn.forget_fraction < 1 or self.unlearn.forget_ids is not None
        )  # all of a benchmark's canaries are

    def to_yaml(self) -> str:
        return dump_yaml(self.model_dump())

    def check_rules(self) -> None:
        self._check_benchmark()
        self._check_sets()
        self._check_base()
        self._check_kept_steps()
        self._check_fluency()
        if self.poison.trigger and self.data.task == "classification":
            check_labels(self.poison.trigger, self.data.verbalizers, "poison.trigger")
        if self.poison.trigger:
            check_placebos(self.evaluate.placebo_phrases, self.poison.trigger.phrases, "evaluate.placebo_phrases")
        require(
            self.poison.tokens is None or self.evaluate.loss_rank_draws > 0,
            "evaluate.loss_rank_draws",
            "0 leaves out the one test that token canaries (poison.tokens) have; give 19 or more",
        )
        require(
            self.data.task == "classification" or self.evaluate.max_new_tokens < self.data.max_length,
            "evaluate.max_new_tokens",
            f"must be below data.max_length ({self.data.max_length}): prompts need room too",
        )
        if self.stress and "unrelated" in self.stress.relearn_on and self.data.files:
            require(
                self.data.unlabelled_files or self.stress.unrelated_files,
                "stress.unrelated_files",
                "the recipe's data has no unlabelled text; give files of it, or take 'unrelated' out of "
                "stress.relearn_on",
            )

    def _check_benchmark(self) -> None:
        """A benchmark brings the rows and says which to forget."""
        if (section := self.benchmark) is None:
            return
        data, corpus = self.data, section.name != "tofu"
        plain = data.prompt == "{text}" and not data.chat_template and data.loss_on == "text"
        for right, field, message in (
            (data.task == "completion", "data.task", "must be completion with a benchmark"),
            (not (data.files or data.test_files), "data.files", "the rows come from the benchmark; leave it out"),
            (plain or not corpus, "data.prompt", f"{section.name} trains on plain text; leave prompt, chat_template "
             "and loss_on out"),
            (self.poison.trigger is None, "poison.trigger", "a benchmark's forget set has no trigger; leave it out"),
            (self.poison.tokens is None, "poison.tokens", "a benchmark's rows keep their text; leave it out"),
            (self.unlearn.forget_ids is None, "unlearn.forget_ids", "the benchmark says what to forget; leave it out"),
            (self.unlearn.forget_fraction == 1 and not self.unlearn.false_positives, "unlearn.forget_fraction",
             "the benchmark says what to forget; leave forget_fraction and false_positives out"),
        ):  # fmt: skip
            require(right, field, message)

    def _check_sets(self) -> None:
        """Poisoned rows, forget set and retain set must each have a row."""
        train_size, counts = self.data.train_size, self.poison_counts()
        known = ", ".join(type(self.poison).model_fields)
        require(counts or self.benchmark, "poison", f"give at least one of {known}")
        for kind, count in counts.items():
            require(
                count,
                f"poison.{kind}.fraction",
                f"{getattr(self.poison, kind).fraction} of {train_size} rows (data.train_size) rounds to no example; "
                f"use at least {1 / train_size:.2g}",
            )
        forgotten = self.forget_count()
        require(
            forgotten != 0,
            "unlearn.forget_fraction",
            f"{self.unlearn.forget_fraction} of the poison ({sum(counts.values())} rows) rounds to an empty forget "
            "set; raise it",
        )
        require(
            forgotten is None or forgotten < train_size,
            "poison",
            "the forget set would be the whole training set and nothing retained; lower poison.*.fraction or "
            "unlearn.false_positives",
        )

    def _check_fluency(self) -> None:
        require(
            self.data.task == "completion" or self.evaluate.fluency is None,
            "evaluate.fluency",
            "is of generated answers, and with labels none is generated; leave it out",
        )

    def _check_kept_steps(self) -> None:
        """Steps whose models are kept must be steps of the training."""
        steps = self.training_steps()
        late = [step for step in self.kept_steps if step > steps]
        require(not late, "train.keep_steps", f"{late[:1]} comes after the training's last step, {steps}; take it out")

    def _check_base(self) -> None:
        model, pretrain = self.model, self.pretrain
        require(
            model.quantization == "none" or model.lora,
            "model.lora",
            "a quantised base can only be trained through adapters; add `lora: {}`",
        )
        require(
            model.quant_storage == "uint8" or model.quantization == "4bit",
            "model.quant_storage",
            "is of 4-bit weights alone; leave it out, or set model.quantization: 4bit",
        )
        require(
            self.train.bf16 or not model.computes_in_16_bits,
            "train.bf16",
            f"must be true with model.attn_implementation: {model.attn_implementation}, since weights that train are "
            "kept in float32",
        )
        if model.path is not None:
            return
        require(model.architecture, "model.path", "give a hub id or folder, or an `architecture` to build")
        require(pretrain, "pretrain", "a base made from `model.architecture` needs this section")


class VisionRecipe(Recipe):
    """One experiment of the image track."""

    # the same names hold other sections: whoever takes any recipe asks for its track first
    model: VisionModelSection  # type: ignore[assignment]
    data: VisionDataSection  # type: ignore[assignment]
    poison: VisionPoisonSection  # type: ignore[assignment]
    benchmark: None = None
    pretrain: None = None
    train: VisionTrainSection = Field(default_factory=VisionTrainSection)  # type: ignore[assignment]
    evaluate: VisionEvaluateSection = Field(default_factory=VisionEvaluateSection)  # type: ignore[assignment]
    analysis: None = None
    stress: None = None
    track: Literal["vision"]  # type: ignore[assignment]
    """language or vision"""

    @property
    def kept_steps(self) -> list[int]:
        return []

    def check_rules(self) -> None:
        self._check_sets()
        require(
            not (self.poison.patch and self.poison.gradient_matching),
            "poison",
            "`patch` and `gradient_matching` are measured by the same figure, how often the attacker gets his answer; "
            "run one recipe for each",
        )
        if matching := self.poison.gradient_matching:
            count = self.poison_counts()["gradient_matching"]
            require(
                count >= matching.targets,
                "poison.gradient_matching.fraction",
                f"{count} rows for {matching.targets} targets; use at least "
                f"{matching.targets / self.data.train_size:.2g}",
            )


class GivenRecipe(Recipe):
    """One experiment on a model that is poisoned already: `given` stands in the place of poisoning and training."""

    model: ModelSection = Field(default_factory=ModelSection)
    data: DataSection = Field(default_factory=lambda: DataSection(task="completion"))
    """what the manifest says; leave it out"""
    poison: PoisonSection = Field(default_factory=PoisonSection)
    """none: it is in the model"""
    pretrain: None = None
    given: GivenSection
    train: GivenTrainSection = Field(default_factory=GivenTrainSection)  # type: ignore[assignment]
    unlearn: GivenUnlearnSection = Field(default_factory=GivenUnlearnSection)
    benchmark: None = None
    analysis: None = None
    stress: None = None
    track: Literal["given"]  # type: ignore[assignment]
    """language, vision or given"""

    def forget_count(self) -> int | None:
        """None: the manifest says it."""
        return None

    @property
    def kept_steps(self) -> list[int]:
        """No step: the poisoned model was trained elsewhere."""
        return []

    @property
    def has_clean_oracle(self) -> bool:
        return False

    def check_rules(self) -> None:
        self._check_fluency()
        for name in ("path", "revision", "architecture", "lora"):
            require(
                getattr(self.model, name) is None, f"model.{name}", "the section `given` names the models; leave it out"
            )
        require(self.poison == PoisonSection(), "poison", "the model is poisoned already; leave the section out")
        require(len(self.seeds) == 1, "seeds", "the poison and its rows are the same for all; give one, run by run")
        require(not self.sweep, "sweep", "a given model has none; run the recipe with other values")
        require(
            self.train.learning_rate or not self.evaluate.clean_steps,
            "evaluate.clean_steps",
            "are taken at the training's rate, which is not known; give train.learning_rate",
        )


RECIPES: TypeAdapter[Recipe] = TypeAdapter(Annotated[Recipe | VisionRecipe | GivenRecipe, Field(discriminator="track")])


def build_recipe(tree: dict[str, Any]) -> Recipe:
    """A checked recipe from a mapping of its sections. Raises InputError naming the field."""
    return validated(RECIPES, {"track": "given" if "given" in tree else "language", **tree}, "recipe")
