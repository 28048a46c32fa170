"""Train an image classifier on encoded rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments

from llm_unlearn.tasks.embedding_noise import refuse_data_parallel
from llm_unlearn.training.fine_tuning import MeanNLL, StopOnNonFinite, train_resumably, trainer_arguments
from llm_unlearn.training.progress import show_progress
from llm_unlearn.training.stopwatch import Stopwatch
from llm_unlearn.training.tracking import Trackers
from llm_unlearn.vision.image_task import ImageCollator, ImageTask

if TYPE_CHECKING:
    from datasets import Dataset

    from llm_unlearn.config.vision_sections import VisionTrainSection
    from llm_unlearn.vision.classifiers import ImageClassifier


class ClassifierTrainer(MeanNLL):
    """transformers' Trainer with the NLL of our task contract."""

    def __init__(self, *args: Any, task: ImageTask, **kwargs: Any) -> None:
        self.task = task
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # so that the mean is over the whole step, with accumulation too


@dataclass
class ClassifierTraining:
    """One training run: all that it needs besides model and rows.

    Args:
        section: the recipe's `train` section.
        task: with the noise of the canaries.
        work_dir: folder of the checkpoints.
        seed: seed of order and augmentation.
        quiet: no progress bar.
        description: what the bar is called.
        data_seed: seed of the order alone, if it differs.
        trackers: of the losses, or None.
    """

    section: "VisionTrainSection"
    task: ImageTask
    work_dir: Path
    seed: int
    quiet: bool = False
    description: str = "training"
    data_seed: int | None = None
    trackers: Trackers | None = None

    def fit(self, model: "ImageClassifier", rows: "Dataset") -> tuple["ImageClassifier", dict]:
        """Train, resuming from the newest complete checkpoint in work_dir.

        Args:
            model: trained in place.
            rows: columns pixels, label_id and (with noise) noise_id, see `encode_images`.

        Returns:
            the trained model and its cost {"train_tokens": images seen, "flops", "seconds"}.

        Raises:
            NonFiniteLossError: the loss or a weight became NaN or infinite.
        """
        args, config = self._arguments(len(rows)), model.config
        refuse_data_parallel(args)
        columns = ["pixels", "label_id", *(["noise_id"] if self.task.noise else [])]
        trainer = ClassifierTrainer(
            model=model,
            args=args,
            train_dataset=rows.select_columns(columns),
            task=self.task,
            data_collator=ImageCollator((config.channels, *config.image_size)),
            callbacks=[StopOnNonFinite()],
            optimizers=(self._optimizer(model), None),
        )
        show_progress(trainer, self.description, self.quiet)
        watch = Stopwatch()
        train_resumably(trainer, self.work_dir, self.trackers.folder if self.trackers else None)
        taken, epochs = watch.read(trainer.args.device.type), self.section.epochs
        flops = self.task.flop_counter(model).training(len(rows), len(rows)) * epochs
        cost = {"train_tokens": round(len(rows) * epochs), "flops": flops, **taken}
        # without the wrapper, with which the model would compute in bf16 for ever
        return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False), cost

    def _optimizer(self, model: "ImageClassifier") -> torch.optim.Optimizer | None:
        """SGD with momentum, for which TrainingArguments has no field; None for any other `optim`."""
        section, weights = self.section, model.parameters()
        if section.optim != "sgd":
            return None
        return torch.optim.SGD(weights, section.learning_rate, section.momentum, weight_decay=section.weight_decay)

    def _arguments(self, n_rows: int) -> TrainingArguments:
        return TrainingArguments(
            **trainer_arguments(self.section, self.work_dir, self.seed, self.data_seed, self.quiet, self.trackers),
            # batch norm needs a variance, and a single image has none
            dataloader_drop_last=n_rows % self.section.batch_size == 1 and n_rows > 1,
        )
