"""What depends on the kind of data of a recipe, texts or images. Nothing else in `runs/` tells them apart."""

from abc import ABC, abstractmethod
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.config.recipe import GivenRecipe, Recipe, VisionRecipe
from llm_unlearn.distributed.processes import Processes
from llm_unlearn.distributed.topology import Topology
from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from llm_unlearn.config.benchmark_fields import BenchmarkSection
    from llm_unlearn.config.sections import EvaluateSection
    from llm_unlearn.runs.seed_run import SeedRun
    from llm_unlearn.runs.stages import Stage
    from llm_unlearn.trainers.base import UnlearnTrainer


ADAPTER_RATE = 1e-4  # of a method on a given adapter: ten times that on a full model, see docs/your-model.md


class Track(ABC):
    """One kind of data: how a seed of its recipes is run, and what can be done with its models."""

    items: str  # what its rows are called
    checkpoints: bool  # whether any checkpoint can be judged on its data, and adapters merged
    trains = True  # whether its runs train the poisoned model themselves

    @abstractmethod
    def seed_run(self, recipe: Recipe, seed: int, folder: Path, quiet: bool) -> "SeedRun":
        """One seed of a recipe, in its own folder."""

    @abstractmethod
    def check(self, recipe: Recipe) -> None:
        """Raise InputError for what can be seen before any data is read: missing files, a model that does not fit."""

    def check_architecture(self, recipe: Recipe, configs: list[tuple[str, Any]]) -> None:  # noqa: B027
        """Raise InputError for what the model's architecture cannot do; by default nothing.

        Args:
            recipe: whose model is looked at, without its weights.
            configs: method and config of everything that it runs.
        """

    def make_base(self, recipe: Recipe, quiet: bool) -> None:
        """Make the base of a recipe that names none, before its first stage; by default each seed draws its own."""
        return

    def train_stages(self, run: Any, before: "dict[str, Stage]") -> "list[Stage]":
        """The stages that make the poisoned model and those that it is compared with."""
        from llm_unlearn.runs.training_stages import train_stages

        return train_stages(run, before)

    @abstractmethod
    def base_of_run(self, recipe: Recipe, root: Path) -> str | None:
        """What the run in `root` started from, a hub id or a folder; None where it is not there."""

    def runs(self, method: "type[UnlearnTrainer]") -> bool:
        """Whether a method works on this kind of data: by default each does."""
        return True

    def training_settings(self, recipe: Recipe) -> dict[str, Any]:
        """What the recipe's `model` section says for TrainingArguments, those of every method included."""
        return {}

    def method_settings(self, recipe: Recipe) -> dict[str, Any]:
        """What the recipe's other sections say for the config of every method."""
        return {}

    def rate_of_unknown_training(self, recipe: Recipe) -> float | None:
        """The learning rate of a method where that of the training is not known; None: its config's own."""
        return None

    def sizes(self, recipe: Recipe) -> dict[str, int]:
        """Sizes that a dry run shows beside the numbers of rows."""
        return {}

    def as_trained(self, recipe: Recipe) -> Recipe:
        """The recipe whose training and methods take the memory that this one takes."""
        return recipe

    @abstractmethod
    def check_topology(self, recipe: Recipe, topology: Topology, path: str) -> None:
        """Raise InputError for what these recipes cannot do under the accelerate config `path`."""


class LanguageTrack(Track):
    """Runs on texts, with a language model."""

    items, checkpoints = "texts", True

    def seed_run(self, recipe: Recipe, seed: int, folder: Path, quiet: bool) -> "SeedRun":
        from llm_unlearn.runs.language_run import LanguageRun

        return LanguageRun(recipe, seed, folder, quiet)

    def check(self, recipe: Recipe) -> None:
        from llm_unlearn.audit.stress.stress_model import check_stress
        from llm_unlearn.data.source_files import check_source
        from llm_unlearn.models.load import check_base

        if recipe.stress:
            check_stress(recipe.stress)
        if recipe.benchmark:
            check_benchmark(recipe.benchmark)
        check_measures(recipe.evaluate)
        data = recipe.data
        unlabelled = data.unlabelled_files if recipe.model.path is None else None
        if not data.is_embedded:
            check_source(None if data.files else data.source, data.files or [])
        check_source(None, [*(data.test_files or []), *(unlabelled or [])])
        lengths = {"data.max_length": data.max_length}
        if recipe.model.path is None and recipe.pretrain is not None:
            lengths["pretrain.max_length"] = recipe.pretrain.max_length
        check_base(recipe.model, lengths)

    def check_architecture(self, recipe: Recipe, configs: list[tuple[str, Any]]) -> None:
        from llm_unlearn.runs.architecture_checks import check_architecture

        check_architecture(recipe.model, configs)

    def make_base(self, recipe: Recipe, quiet: bool) -> None:
        from llm_unlearn.data.benchmarks.benchmark_sets import check_parts
        from llm_unlearn.runs.base_stage import make_base
        from llm_unlearn.runs.language_run import LanguageRun
        from llm_unlearn.training.pretraining import base_folder

        if recipe.model.path is not None:
            return
        if Processes.current().is_main and not base_folder(recipe).is_dir():
            # a base takes minutes, so bad data is refused before
            if recipe.benchmark:  # its chunks need the tokenizer of the base
                check_parts(recipe.benchmark, read=True)
            else:
                LanguageRun(recipe, recipe.seeds[0], Path(recipe.output_dir), quiet).poisoned_sets()
        make_base(recipe, quiet)

    def base_of_run(self, recipe: Recipe, root: Path) -> str | None:
        from llm_unlearn.training.pretraining import base_of_run

        return base_of_run(recipe, root)

    def training_settings(self, recipe: Recipe) -> dict[str, Any]:
        from llm_unlearn.training.block_options import block_options

        return block_options(recipe.model)

    def method_settings(self, recipe: Recipe) -> dict[str, Any]:
        from llm_unlearn.data.encoding import Encoding

        return {**self.training_settings(recipe), **vars(Encoding.of(recipe.data))}

    def sizes(self, recipe: Recipe) -> dict[str, int]:
        return {"max_length": recipe.data.max_length}

    def check_topology(self, recipe: Recipe, topology: Topology, path: str) -> None:
        if recipe.evaluate.device_map is not None:
            raise InputError(
                f"recipe.evaluate.device_map: spreads a model over the GPUs of one process, and {path} starts "
                f"{topology.processes}; evaluate without --accelerate-config"
            )
        storage = recipe.model.quant_storage
        if storage != "uint8" and topology.is_deepspeed:
            raise InputError(f"recipe.model.quant_storage: {storage}, which DeepSpeed would convert; take uint8")
        if storage == "float32" and topology.sharding == "fsdp2" and recipe.train.bf16:
            raise InputError(
                "recipe.model.quant_storage: float32, which FSDP2 would round to the bfloat16 of train.bf16; "
                "take bfloat16"
            )


@cache  # each method asks, and a hub may be far
def _is_adapter(source: str) -> bool:
    from llm_unlearn.models.adapters import adapter_config

    return adapter_config(source) is not None


class GivenTrack(LanguageTrack):
    """Runs on texts, on a language model that is poisoned already."""

    trains = False

    def seed_run(self, recipe: Recipe, seed: int, folder: Path, quiet: bool) -> "SeedRun":
        from llm_unlearn.runs.given_run import GivenRun

        assert isinstance(recipe, GivenRecipe)
        return GivenRun(recipe, seed, folder, quiet)

    def check(self, recipe: Recipe) -> None:
        from llm_unlearn.runs.given_checks import check_given

        check_given(self.seed_run(recipe, recipe.seeds[0], Path(recipe.output_dir), True))  # type: ignore[arg-type]
        check_measures(recipe.evaluate)

    def check_architecture(self, recipe: Recipe, configs: list[tuple[str, Any]]) -> None:
        from llm_unlearn.runs.architecture_checks import check_architecture
        from llm_unlearn.runs.given_checks import stand_in

        run: Any = self.seed_run(recipe, recipe.seeds[0], Path(recipe.output_dir), True)
        check_architecture(stand_in(run), configs)

    def make_base(self, recipe: Recipe, quiet: bool) -> None:
        """No base is made."""

    def rate_of_unknown_training(self, recipe: Recipe) -> float | None:
        assert isinstance(recipe, GivenRecipe)
        return ADAPTER_RATE if _is_adapter(recipe.given.poisoned) else None

    def sizes(self, recipe: Recipe) -> dict[str, int]:
        from llm_unlearn.audit.subject import read_subject

        assert isinstance(recipe, GivenRecipe)
        subject = read_subject(Path(recipe.given.manifest).expanduser())
        counts = {name: len(subject.sets[name]) for name in ("train", "heldout", "test", "triggered")}
        return {**counts, "forget": len(subject.poison["forget_ids"]), **super().sizes(recipe)}

    def as_trained(self, recipe: Recipe) -> Recipe:
        from llm_unlearn.runs.given_checks import as_trained

        run: Any = self.seed_run(recipe, recipe.seeds[0], Path(recipe.output_dir), True)
        return as_trained(run)

    def train_stages(self, run: Any, before: "dict[str, Stage]") -> "list[Stage]":
        from llm_unlearn.runs.given_stages import given_stages

        return given_stages(run, before)

    def base_of_run(self, recipe: Recipe, root: Path) -> str | None:
        run: Any = self.seed_run(recipe, recipe.seeds[0], root, True)
        return run.base

    def kept_steps(self, recipe: Recipe) -> list[int]:
        return []


class VisionTrack(Track):
    """Runs on images, with a classifier."""

    items, checkpoints = "images", False

    def seed_run(self, recipe: Recipe, seed: int, folder: Path, quiet: bool) -> "SeedRun":
        from llm_unlearn.runs.vision_run import VisionRun

        return VisionRun(recipe, seed, folder, quiet)

    def check(self, recipe: Recipe) -> None:
        from llm_unlearn.vision.recipe_model import check_vision

        assert isinstance(recipe, VisionRecipe)
        check_vision(recipe)

    def base_of_run(self, recipe: Recipe, root: Path) -> str | None:
        return recipe.model.path

    def runs(self, method: "type[UnlearnTrainer]") -> bool:
        return not method.of_texts

    def check_topology(self, recipe: Recipe, topology: Topology, path: str) -> None:
        if topology.engine is not None:
            raise InputError(f"{path}: images are trained whole in each process; take accelerate_configs/ddp.yaml")


def check_benchmark(section: "BenchmarkSection") -> None:
    """Raise InputError where local files of a benchmark are missing, or what its metrics are measured with is."""
    from llm_unlearn.data.benchmarks.benchmark_sets import check_parts
    from llm_unlearn.metrics.benchmarks.overlap import check_rouge

    check_parts(section)
    if section.name != "wmdp":
        check_rouge()
    if section.reference is not None and not Path(section.reference).is_file():
        raise InputError(f"recipe.benchmark.reference: {section.reference} is no file")


def check_measures(section: "EvaluateSection") -> None:
    """Raise InputError where a task of lm-evaluation-harness or the classifier of the fluency cannot be had."""
    if section.lm_eval is not None:
        from llm_unlearn.evaluation.lm_eval_tasks import check_tasks

        check_tasks(section.lm_eval)
    if section.fluency is not None:
        from llm_unlearn.models.answer_classifier import check_classifier

        try:
            check_classifier(section.fluency.classifier, section.fluency.label)
        except InputError as error:
            raise InputError(f"recipe.evaluate.fluency: {error}") from None


TRACKS: dict[str, Track] = {"language": LanguageTrack(), "vision": VisionTrack(), "given": GivenTrack()}


def track_of(recipe: Recipe) -> Track:
    """The track that a recipe names."""
    return TRACKS[recipe.track]
