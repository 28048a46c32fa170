"""UnlearnConfig: the settings that every method shares, what the method needs with them, and what it refuses."""

import os
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field
from transformers import TrainingArguments

from llm_unlearn.config.fields import LARGEST_BATCH, Count, Day, Length, NotNegative, Positive
from llm_unlearn.config.options import INHERITED, options_model
from llm_unlearn.config.validate import validated
from llm_unlearn.data.encoding import Encoding
from llm_unlearn.errors import InputError
from llm_unlearn.training.block_options import settle_blocks

# What TrainingArguments has and no method looks at, and why
WITHOUT_EFFECT = {
    "label_smoothing_factor": "a method has its own loss, which it does not change",
    "data_seed": "the order of rows follows `seed`",
    "train_sampling_strategy": "the order of rows follows `seed`",
    "length_column_name": "the order of rows follows `seed`",
    "auto_find_batch_size": "the steps of a run are planned before the first",
}


class Requirements(NamedTuple):
    """What a method needs of a batch.

    Attributes:
        sets: the sets of rows that it is given.
        reference_on: those on which the loss asks for the reference's output.
        log_probs_on: those on which it asks for the reference's sequence log-probs alone, which are computed once.
    """

    sets: tuple[str, ...] = ("forget", "retain")
    reference_on: tuple[str, ...] = ()
    log_probs_on: tuple[str, ...] = ()


@dataclass
class UnlearnConfig(TrainingArguments):
    """TrainingArguments plus what unlearning adds. Without a budget, `num_train_epochs` counts passes over the
    forget set (over the retain set where the method needs no other).

    Args:
        max_flops: stop before this many FLOPs (reference passes count); the run then fills this budget.
        max_tokens: stop before this many tokens of the sets went through the model; the run then fills this budget.
        forget_loss_ceiling: stop once a step's mean forget NLL, in nats per token, is above this.
        utility_floor: at an evaluation where `utility_metric` (higher is better) is below this, go back to the last
            evaluated state that was not, and stop. Off by default.
        utility_metric: a name in what `evaluate()` returns.
        eval_rows: rows of each set on which `evaluate()` takes the mean loss.
        reference_cache_dir: where log-probs of the reference are kept and looked for; null: in the output directory.
        offload_reference: keep a frozen full reference in the host's memory and bring it a module at a time; slower.
        compile_blocks: run the blocks of a language model through torch.compile while it trains: on two CPU cores 6 to
            11 % off a step, after some 25 seconds of compiling. Not under DeepSpeed, where it was not tried.
        max_length: tokens that are kept of a text row.
        loss_on: the tokens of a text row that are supervised (see data/encoding.py).
        chat_template: whether text rows go through the tokenizer's chat template.
        chat_template_kwargs: passed on to the chat template, e.g. {"enable_thinking": False}.
        system_prompt: the first message, where a row's messages do not begin with one.
        template_date: what a chat template that writes today's date takes for today, e.g. "2026-01-31".
        add_bos: put BOS before each text row (true) or never (false); null: as the tokenizer does.
        completion_weight: w; a mean over a retain row has w times the mean over its answer added, so that ℓ(r) is
            mean_t ℓ_t − w · (1/|y|) log π(y | prompt): one label token among 70 of text would hardly be learnt.
    """

    # A recipe without a learning rate takes this share of the training's, see scripts/tune.py
    learning_rate_ratio: ClassVar[float] = 0.1
    # What the method cannot be run with, and why: fields of the config, "deepspeed", "fsdp", "peft_config"
    refuses: ClassVar[dict[str, str]] = {}

    learning_rate: Annotated[float, Field(ge=0, le=10**6)] = 1e-5  # TOFU (arXiv 2401.06121)
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False  # it would hide what NonFiniteLossError must see
    hub_strategy: str = "end"  # with push_to_hub: at save_model()
    max_flops: Annotated[float, Field(gt=0, allow_inf_nan=True)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    forget_loss_ceiling: Positive | None = None
    utility_floor: Annotated[float, Field(ge=-(10**6), le=10**6)] | None = None
    utility_metric: str = "eval_utility"
    eval_rows: Count = 256
    reference_cache_dir: str | None = None
    offload_reference: bool = False
    compile_blocks: bool = False
    max_length: Length = 512
    loss_on: Literal["text", "completion"] = "text"
    chat_template: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    system_prompt: str | None = None
    template_date: Day | None = None
    add_bos: bool | None = None
    completion_weight: NotNegative = 0.0

    def requires(self) -> Requirements:
        """What the method needs with these options: forget and retain rows and no reference, unless it says more."""
        return Requirements()

    @property
    def encoding(self) -> Encoding:
        """How text rows are tokenised."""
        return Encoding.of(self)

    @property
    def examples_per_step(self) -> int:
        """Rows of each set in one optimizer step, over accumulation and processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size

    def __post_init__(self) -> None:
        if self.torch_compile or self.torch_compile_backend or self.torch_compile_mode:
            raise InputError("torch_compile: would compile noise and head again at every step; set compile_blocks")
        self._check_options()
        if self.accelerator_config is None:  # from pinned memory a batch goes to a GPU without the host waiting for it
            self.accelerator_config = {"non_blocking": self.dataloader_pin_memory and not self.use_cpu}
        super().__post_init__()
        settle_blocks(self)
        launched = {
            "deepspeed": vars(self).get("deepspeed_plugin") is not None,  # by `accelerate launch`
            "fsdp": os.environ.get("ACCELERATE_USE_FSDP") == "true",
        }
        launched["ddp"] = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not any(launched.values())
        for name, reason in self.refuses.items():
            value = vars(self).get(name)
            unset = value is None or value is False or value == getattr(type(self), name, None)
            if launched.get(name) or not unset:
                raise InputError(f"{name}: {reason}; leave it out")
        if self.forget_loss_ceiling is not None and "forget" not in self.requires().sets:
            raise InputError("forget_loss_ceiling: the method sees no forget row and never fires; leave it out")
        if self.completion_weight and "retain" not in self.requires().sets:
            raise InputError("completion_weight: the method sees no retain row; leave it out")
        if self.compile_blocks and launched["deepspeed"]:
            raise InputError("compile_blocks: not tried under DeepSpeed; leave it out, or launch with ddp or fsdp2")
        if self.remove_unused_columns:
            raise InputError("remove_unused_columns=True would drop the forget and retain rows; set it to False")
        if self.push_to_hub and self.hub_strategy != "end":
            raise InputError("hub_strategy: only 'end' is supported; checkpoints are not meant to leave the machine")
        self.hub_private_repo = self.hub_private_repo is not False  # private unless the user says otherwise
        if self.utility_floor is not None and self.eval_strategy == "no":
            raise InputError("utility_floor: set eval_strategy and eval_steps, or the floor is never looked at")

    def _check_options(self) -> None:
        """Refuse a value that is not of an option's type or bounds, and what a method would not look at.

        What TrainingArguments has is left to that, but for the bounds of numbers.
        """
        for name, reason in WITHOUT_EFFECT.items():
            if getattr(self, name) != getattr(UnlearnConfig, name):
                raise InputError(f"{name}: {reason}; leave it out")
        inherited = {field.name for field in fields(TrainingArguments)} - {"learning_rate", *INHERITED}
        options = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in inherited}
        validated(options_model(type(self), inherited), options, type(self).__name__)
        if (rows := self.per_device_train_batch_size * self.gradient_accumulation_steps) > LARGEST_BATCH:
            raise InputError(
                f"gradient_accumulation_steps: a step of {rows} rows; at most {LARGEST_BATCH} are possible"
            )
