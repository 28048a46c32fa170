"""Whether an optimizer and a schedule can be built and take a step here, found before anything runs."""

from typing import Any

import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.trainer_optimizer import is_optimizer_factory

from llm_unlearn.errors import InputError

SIZE = 64  # of the layer that is tried: bitsandbytes keeps smaller ones in 32 bits


def check_optimizer(args: TrainingArguments, where: str) -> None:
    """Build the optimizer and the schedule of some settings for one small layer, and take a step.

    Args:
        args: their `optim`, `optim_args`, `lr_scheduler_type` and what these read.
        where: what the dotted names of fields begin with, e.g. `recipe.train`.

    Raises:
        InputError: the field that cannot be, with the library's reason.
    """
    name, schedule = (getattr(value, "value", value) for value in (args.optim, args.lr_scheduler_type))
    layer: Any = torch.nn.Linear(SIZE, SIZE, device=args.device)
    try:
        make, options = Trainer.get_optimizer_cls_and_kwargs(args, layer)
        if is_optimizer_factory(make):  # splits the parameters of a whole model
            return
        first = next((options.pop(name) for name in ("params", "model", "optimizer_dict") if name in options), None)
        optimizer = make(layer.parameters() if first is None else first, **options)
        layer(torch.ones(1, SIZE, device=args.device)).sum().backward()
        if hasattr(optimizer, "fused_backward"):  # LOMO steps in its backward pass
            return
        optimizer.step()
    except Exception as error:  # whatever an optional library raises
        raise InputError(f"{where}.optim: {name} cannot be used here: {_first_line(error)}; take another") from None
    _check_optim_args(args, layer, f"{where}.optim_args", name)
    try:
        schedule_options: Any = args.lr_scheduler_kwargs
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 10, schedule_options)
    except Exception as error:
        raise InputError(
            f"{where}.lr_scheduler_type: {schedule} cannot be used here: {_first_line(error)}; take another"
        ) from None


def _check_optim_args(args: TrainingArguments, layer: Any, where: str, name: str) -> None:
    """Raise InputError where a part of `optim_args` changes nothing."""
    given = [part.strip() for part in (args.optim_args or "").split(",") if part.strip()]

    def options(parts: list[str]) -> Any:
        args.optim_args = ",".join(parts) or None
        return {k: v for k, v in Trainer.get_optimizer_cls_and_kwargs(args, layer)[1].items() if k != "params"}

    before = args.optim_args
    try:
        for part in given:
            if str(options(given)) == str(options([each for each in given if each != part])):
                raise InputError(f"{where}: {part} has no effect on {name}; leave it out")
    finally:
        args.optim_args = before


def _first_line(error: Exception) -> str:
    return f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}".rstrip(".")
