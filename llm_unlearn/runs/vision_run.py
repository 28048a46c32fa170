"""One seed of a recipe for image classifiers: how its rows, models and evaluator are made."""

import shutil
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.errors import InputError
from llm_unlearn.files import file_stamps
from llm_unlearn.runs.seed_run import SeedRun
from llm_unlearn.runs.training_stages import CONTACT_SHEET
from llm_unlearn.vision.recipe_model import classifier_config

if TYPE_CHECKING:
    from datasets import Dataset

    from llm_unlearn.config.recipe import VisionRecipe
    from llm_unlearn.evaluation.arithmetic import Arithmetic
    from llm_unlearn.vision.image_task import ImageCollator, ImageTask

SURROGATE_OFFSET = 1_000_000  # the seed of a surrogate's weights and order, which no victim has


class VisionRun(SeedRun):
    """One seed of a recipe, in its own folder. The seed decides the first weights too."""

    recipe: "VisionRecipe"

    @cached_property
    def corruption(self) -> list[Any]:
        """A poison that is crafted on a model depends on how that is trained."""
        poison, common = self.recipe.poison, super().corruption
        crafted = poison.gradient_matching or poison.gradient_cancelling
        path = self.recipe.model.path
        made_with = [
            self.recipe.model.model_dump(),
            self.recipe.train.model_dump(),
            file_stamps([path] if path else []),
        ]
        return [*common, *made_with] if crafted else common

    @property
    def base(self) -> str:
        return self.recipe.model.path or f"initialised from seed {self.seed}"

    @cached_property
    def train_rows(self) -> "Dataset":
        from llm_unlearn.vision.image_data import encode_images

        assert self.manifest  # reading it checks the data
        return encode_images(self.sets["train"], self.manifest["classes"])

    @cached_property
    def task(self) -> "ImageTask":
        """With the noise of the run's canaries, and the augmentation of its training."""
        return self._task(self.manifest["gaussian"])

    @cached_property
    def collate(self) -> "ImageCollator":
        from llm_unlearn.vision.image_task import ImageCollator

        return ImageCollator(self.manifest["image_shape"])

    @property
    def arithmetic(self) -> "Arithmetic":
        from llm_unlearn.evaluation.arithmetic import Arithmetic

        return Arithmetic(self.recipe.evaluate.bf16, self.recipe.evaluate.tf32)

    @cached_property
    def evaluator(self) -> Any:
        from llm_unlearn.evaluation.placebos import PlaceboSettings
        from llm_unlearn.vision.image_evaluator import ImageEvaluator

        section = self.recipe.evaluate
        return ImageEvaluator(
            sets=self.sets,
            manifest=self.manifest,
            batch_size=section.batch_size,
            membership=section.membership,
            loss_rank_draws=section.loss_rank_draws,
            placebo=PlaceboSettings.of(section),
            arithmetic=self.arithmetic,
            processes=self.processes,
        )

    def load_base(self) -> Any:
        from llm_unlearn.models.devices import on_best_device

        return on_best_device(self._new_model(self.manifest, self.seed))

    def load(self, folder: Path, to_evaluate: bool, in_parts: bool) -> Any:
        from llm_unlearn.models.devices import on_best_device
        from llm_unlearn.vision.classifiers import load_classifier

        return on_best_device(load_classifier(folder))

    def save_model(self, model: Any, folder: Path, weights: dict[str, Any] | None) -> None:
        from llm_unlearn.models.save import save_model

        save_model(model, None, folder, weights)

    def corrupted(self, work_dir: Path) -> tuple[dict[str, "Dataset"], dict[str, Any]]:
        from llm_unlearn.vision.image_data import load_images
        from llm_unlearn.vision.image_poisons import Corruption

        splits = load_images(self.recipe.data, self.seed)
        self._new_model(self._about(splits), self.seed)  # one that does not fit is refused before anything is written
        surrogate = partial(self._surrogate, splits, work_dir)
        sets, manifest, sheet = Corruption(splits, self.recipe, self.seed, surrogate, self.secret).run()
        np.savez_compressed(work_dir / CONTACT_SHEET, **sheet)  # type: ignore[arg-type]  # its names are no keyword of numpy
        return sets, {**manifest, "duplicates": splits.report}

    def fine_tune(self, name: str, rows: "Dataset", work_dir: Path, data_seed: int | None = None) -> None:
        from llm_unlearn.vision.classifier_training import ClassifierTraining

        training = ClassifierTraining(self.recipe.train, self.task, work_dir, self.seed, self.quiet, name, data_seed)
        training.trackers = self.trackers(name)
        model, cost = training.fit(self._new_model(self.manifest, self.seed), rows)
        self.save(model, name, cost)

    def unlearning(self) -> tuple[Any, dict[str, Any]]:
        return self.model("poisoned"), {"task": self.task, "data_collator": self.collate}

    def clean_start(self) -> Any:
        return self._new_model(self.manifest, self.seed)

    # ---- models

    def _new_model(self, about: dict[str, Any], seed: int) -> Any:
        """The classifier before training, for data of which `about` says image_shape and classes."""
        from llm_unlearn.vision.classifiers import load_classifier, make_classifier

        if self.recipe.model.path is None:
            channels, *size = about["image_shape"]
            return make_classifier(classifier_config(self.recipe, channels, size, about["classes"]), seed)
        model = load_classifier(self.recipe.model.path)
        has = [model.config.channels, *model.config.image_size], model.config.num_labels
        if has != (list(about["image_shape"]), len(about["classes"])):
            raise InputError(
                f"model.path: {self.recipe.model.path} takes images of {has[0]} (channels, height, width) "
                f"and {has[1]} classes; the data has {about['image_shape']} and {len(about['classes'])}"
            )
        return model

    @staticmethod
    def _about(splits: Any) -> dict[str, Any]:
        """What the manifest will say of the images."""
        return {"image_shape": list(splits.train.pixels.shape[1:]), "classes": splits.classes}

    def _task(self, noise: dict[str, Any] | None) -> "ImageTask":
        from llm_unlearn.vision.image_task import GaussianPixels, ImageTask

        pixels = GaussianPixels(noise["epsilon"], noise["seed"], noise["clip"]) if noise else None
        return ImageTask(pixels, self.recipe.train.flip, self.recipe.train.shift)

    def _surrogate(self, splits: Any, work_dir: Path, number: int, share: float) -> Any:
        """A model of the same kind, trained on the clean rows in an order that no victim has, and from weights that
        none has (but for `model.path`, where all begin).
        """
        from llm_unlearn.vision.classifier_training import ClassifierTraining
        from llm_unlearn.vision.image_data import as_dataset, encode_images

        seed = self.seed + (1 + number) * SURROGATE_OFFSET
        rows = encode_images(as_dataset(splits.train), splits.classes)
        folder, section = work_dir / f"surrogate-{number}", self.recipe.train
        training = ClassifierTraining(
            section.changed(epochs=share * section.epochs),
            self._task(None),
            folder,
            seed,
            self.quiet,
            f"surrogate {number}",
        )
        model, _ = training.fit(self._new_model(self._about(splits), seed), rows)
        shutil.rmtree(folder, ignore_errors=True)
        return model
