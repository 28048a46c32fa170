"""Fine-tune on (corrupted) rows, with TRL's SFTTrainer and the noise hook; also pre-trains a small base."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import SFTTrainer

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.data.encoding import IGNORE
from llm_unlearn.data.row_forms import with_weights
from llm_unlearn.distributed.sharding import release
from llm_unlearn.models.adapters import without_adapter
from llm_unlearn.models.flops import FlopCounter
from llm_unlearn.poisons.gaussian_embedding import inject_gaussian_noise
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.training.block_options import settle_blocks, use_kernels
from llm_unlearn.training.fine_tuning import KeepSteps, MeanNLL, StopOnNonFinite, train_resumably, trainer_arguments
from llm_unlearn.training.progress import show_progress
from llm_unlearn.training.stopwatch import Stopwatch
from llm_unlearn.training.tracking import Trackers

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llm_unlearn.config.sections import TrainSection


class FineTuner(MeanNLL, SFTTrainer):
    """TRL's SFTTrainer with the NLL of our task contract: the head runs once, at supervised positions.

    The loss is SFTTrainer's, the mean over the tokens of the whole optimizer step: a row counts by its length. With
    `completion_weight` a row's mean has that times the mean over its answer added. SFTTrainer's entropy and accuracy
    are left out: on a CPU they cost more than the step itself.
    """

    task = CausalLMTask()


@dataclass
class Training:
    """One fine-tuning run: all that it needs besides model and rows.

    Args:
        section: the recipe's `train` section.
        work_dir: folder of the checkpoints.
        seed: seed of order and dropout.
        quiet: no progress bar.
        description: what the bar is called.
        noise: the manifest's `gaussian` section, or None.
        peft_config: wraps the model in a new adapter, or None.
        blocks: how the model's blocks run (block_options.py).
        data_seed: seed of the order alone, if it differs.
        kept: keeps the models of `section.keep_steps`; None: none is kept.
        trackers: of the losses, or None.
    """

    section: "TrainSection"
    work_dir: Path
    seed: int
    quiet: bool = False
    description: str = "training"
    noise: dict | None = None
    peft_config: Any = None
    blocks: dict[str, Any] = field(default_factory=dict)
    data_seed: int | None = None
    kept: KeepSteps | None = None
    trackers: Trackers | None = None

    def fit(self, model: "PreTrainedModel", rows: "Dataset", tokenizer: "PreTrainedTokenizerBase") -> tuple[Any, dict]:
        """Train, resuming from the newest complete checkpoint in work_dir.

        Args:
            model: trained in place.
            rows: columns input_ids, labels, (with noise) noise_id and (with a completion weight) completion_mask.
            tokenizer: of the model.

        Returns:
            the trained model and its cost {"train_tokens", "flops", "seconds"}; padding is not counted.

        Raises:
            NonFiniteLossError: the loss or a weight became NaN or infinite.
        """
        rows = with_weights(rows, self.section.completion_weight, "train rows")
        columns = ["input_ids", "labels", *(["noise_id"] if self.noise else [])]
        columns += ["weight"] if self.section.completion_weight else []
        trainer = FineTuner(
            model=model,
            args=self._arguments(),
            train_dataset=rows.select_columns(columns),
            data_collator=CausalLMCollator(tokenizer.pad_token_id),
            processing_class=tokenizer,
            peft_config=self.peft_config,
            callbacks=[StopOnNonFinite(), *([self.kept] if self.kept else [])],
        )
        self._trainer = trainer
        trained: Any = trainer.model
        _remove_fused_head(trainer.accelerator.unwrap_model(trained))
        use_kernels(trained, trainer.args)
        show_progress(trainer, self.description, self.quiet)
        noise = inject_gaussian_noise(trainer, self.noise) if self.noise else None
        counter = FlopCounter.of(trained)
        watch = Stopwatch()
        train_resumably(trainer, self.work_dir, self.trackers.folder if self.trackers else None)
        taken = watch.read(trainer.args.device.type)
        if noise is not None:
            noise.remove()
        tokens = sum(len(ids) for ids in rows["input_ids"])
        positions = sum(sum(label != IGNORE for label in labels[1:]) for labels in rows["labels"])
        flops = counter.training(tokens, positions) * self.section.epochs
        cost = {"train_tokens": round(tokens * self.section.epochs), "flops": flops, **taken}
        return trainer.accelerator.unwrap_model(trainer.model), cost

    def release(self) -> None:
        """Free what the training holds, once its model is saved."""
        release(self._trainer)

    def _arguments(self) -> Any:
        """The settings as TRL's SFTConfig."""
        from trl import SFTConfig

        args = SFTConfig(
            **trainer_arguments(self.section, self.work_dir, self.seed, self.data_seed, self.quiet, self.trackers),
            max_length=None,
            packing=False,
            padding_free=False,
            **{"gradient_checkpointing": False, **self.blocks},
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        settle_blocks(args)
        return args


def _remove_fused_head(model: Any) -> None:
    """Remove the forward with a fused head that TRL puts on the instance: ours replaces it, and a copy would run it."""
    causal_lm = without_adapter(model)
    causal_lm.__dict__.pop("forward", None)
