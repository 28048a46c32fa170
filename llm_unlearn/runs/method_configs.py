"""From a recipe's `unlearn` section to a method's config: names, types and bounds are checked before anything runs."""

import dataclasses
import difflib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.config.options import options_model
from llm_unlearn.config.presets import preset_of
from llm_unlearn.config.validate import validated
from llm_unlearn.distributed.processes import Processes
from llm_unlearn.errors import InputError
from llm_unlearn.runs.tracks import track_of

if TYPE_CHECKING:
    from llm_unlearn.config.recipe import Recipe

# set by the run, its launch or other sections of the recipe: an option would be overruled, or break the run
RESERVED = set(
    """output_dir seed max_flops max_tokens remove_unused_columns save_steps save_strategy save_total_limit
    save_only_model
    save_on_each_node enable_jit_checkpoint load_best_model_at_end metric_for_best_model greater_is_better
    resume_from_checkpoint restore_callback_states_from_checkpoint ignore_data_skip reference_cache_dir
    push_to_hub hub_model_id hub_token hub_strategy hub_private_repo hub_always_push hub_revision
    run_name report_to project trackio_space_id trackio_bucket_id trackio_static_space_id disable_tqdm log_level
    log_level_replica log_on_each_node logging_nan_inf_filter debug skip_memory_metrics
    use_cpu local_rank accelerator_config parallelism_config fsdp fsdp_config deepspeed ddp_backend ddp_timeout
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph
    average_tokens_across_devices dataloader_pin_memory dataloader_multiprocessing_context
    do_train do_eval do_predict label_names include_for_metrics include_num_input_tokens_seen
    torch_compile torch_compile_backend torch_compile_mode""".split()
)


def check_methods(recipe: "Recipe") -> None:
    """Raise InputError for an unknown method, an unknown option, or an option that the config refuses."""
    from llm_unlearn.trainers import METHODS
    from llm_unlearn.training.optimizer_check import check_optimizer

    for tracker in recipe.unlearn.report_to:
        if importlib.util.find_spec(tracker) is None:
            raise InputError(f"recipe.unlearn.report_to: {tracker} is not installed: pip install {tracker}")
    for method, options in recipe.unlearn.methods.items():
        if method not in METHODS:
            close = difflib.get_close_matches(method, METHODS, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(METHODS)}"
            raise InputError(f"recipe.unlearn.methods: unknown method '{method}'; {hint}")
        if not track_of(recipe).runs(METHODS[method][1]):
            raise InputError(f"recipe.unlearn.methods.{method}: works on language models alone")
        for key in sorted(RESERVED & set(options or {})):
            raise InputError(f"recipe.unlearn.methods.{method}.{key}: a run sets it itself; leave it out")
        validated(options_model(METHODS[method][0], RESERVED), options or {}, f"recipe.unlearn.methods.{method}")
        config = method_config(recipe, method, seed=0, output_dir="unused", max_flops=1.0, quiet=True)
        check_optimizer(config, f"recipe.unlearn.methods.{method}")
        step, kept = vars(config).get("from_step"), recipe.kept_steps
        if step is not None and step not in kept:
            raise InputError(
                f"recipe.unlearn.methods.{method}.from_step: {step} is no step whose model is kept; name it in "
                f"train.keep_steps (texts only), which has {kept or 'none'}"
            )


def check_training(recipe: "Recipe") -> None:
    """Raise InputError where the optimizer or the schedule of the recipe's training cannot be built here."""
    from transformers import TrainingArguments

    from llm_unlearn.training.block_options import settle_blocks
    from llm_unlearn.training.fine_tuning import trainer_arguments
    from llm_unlearn.training.optimizer_check import check_optimizer

    settings = trainer_arguments(recipe.train, Path("unused"), 0, None, True)
    try:
        args = TrainingArguments(**settings, **track_of(recipe).training_settings(recipe))
    except (ValueError, ImportError) as error:
        raise InputError(f"recipe.train: {error}") from None
    try:
        settle_blocks(args)
    except InputError as error:
        raise InputError(f"recipe.model.{error}") from None
    check_optimizer(args, "recipe.train")


def method_config(
    recipe: "Recipe",
    method: str,
    seed: int,
    output_dir: str,
    max_flops: float | None,
    quiet: bool,
    cache_dir: str | None = None,
    limits: dict[str, float] | None = None,
) -> Any:
    """The method's config: the recipe's common settings where the method has no default of its own (NGD's optimizer),
    then those of its preset, then the recipe's overrides for this method.

    Args:
        recipe: whose `unlearn`, `train`, `evaluate` and `model` sections are read.
        method: one of METHODS.
        seed: of the order of rows.
        output_dir: for checkpoints.
        max_flops: the budget.
        quiet: no progress bar.
        cache_dir: where the reference's log-probs are kept.
        limits: the budget by another field of the config (`SeedRun.limits`), in the place of max_flops.
    """
    import torch

    from llm_unlearn.trainers import METHODS

    section, config = recipe.unlearn, METHODS[method][0]
    preset, known = preset_of(section.preset, method), recipe.train.learning_rate
    rate = section.learning_rate or preset.get("learning_rate")
    if not rate:  # None in the end: the config has its own
        rate = config.learning_rate_ratio * known if known else track_of(recipe).rate_of_unknown_training(recipe)
    common: dict[str, Any] = {
        **({"learning_rate": rate} if rate else {}),
        "per_device_train_batch_size": Processes.current().part_of(section.batch_size, "unlearn.batch_size"),
        "gradient_accumulation_steps": section.gradient_accumulation_steps,
        "eval_strategy": "steps" if section.eval_steps else "no",
        "eval_steps": section.eval_steps,
        "bf16": recipe.train.bf16,
        "optim": recipe.train.optim,
        "per_device_eval_batch_size": recipe.evaluate.batch_size,
        "logging_steps": 5,
        "report_to": section.report_to or "none",
        "run_name": f"{recipe.name}-{method}-seed-{seed}",
    }
    common |= track_of(recipe).method_settings(recipe)
    options = {key: value for key, value in common.items() if key not in vars(config)}
    options |= {key: value for key, value in preset.items() if key != "learning_rate"} | (section.methods[method] or {})
    try:
        return config(
            output_dir=output_dir,
            seed=seed,
            save_strategy="steps",
            save_steps=section.save_steps,
            save_total_limit=1,
            reference_cache_dir=cache_dir,
            disable_tqdm=quiet,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            **({"max_flops": max_flops} if limits is None else limits),
            **options,
        )
    except (ValueError, TypeError, ImportError, LookupError, AttributeError, OSError) as error:  # of transformers' own
        raise InputError(f"recipe.unlearn.methods.{method}: {error}") from None


def needs_reference(recipe: "Recipe", method: str) -> bool:
    """Whether the method, with the recipe's options, holds a reference model while it trains."""
    config = method_config(recipe, method, seed=0, output_dir="unused", max_flops=1.0, quiet=True)
    return bool(config.requires().reference_on)


def settings(recipe: "Recipe", method: str) -> dict[str, Any]:
    """What decides the method's result and may come from the code's defaults: its own options and the optimizer's."""
    from transformers import TrainingArguments

    config = method_config(recipe, method, seed=0, output_dir="unused", max_flops=1.0, quiet=True)
    inherited = {f.name for f in dataclasses.fields(TrainingArguments)} | {
        "max_flops",
        "max_tokens",
        "reference_cache_dir",
        "offload_reference",
    }
    own = {f.name for f in dataclasses.fields(config)} - inherited
    return {name: getattr(config, name) for name in sorted(own | {"learning_rate", "optim"})}
