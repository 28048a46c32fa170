"""A method's options, checked like a recipe: names, types and bounds come from the dataclass that holds them.

An option's bounds stand at its field, e.g. `alpha: NotNegative = 1.0`.
"""

import dataclasses
import typing
from collections.abc import Collection
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, create_model

from llm_unlearn.config.fields import BatchSize, Count, Epochs, NotNegative, Section, Seed, ShareOrZero

PLAIN = (int, float, bool, str, NoneType)  # and lists and unions of them; whoever reads other types checks them

# Bounds of numbers that transformers' TrainingArguments leaves open
INHERITED: dict[str, Any] = {
    "num_train_epochs": Epochs,
    "max_steps": Annotated[int, Field(ge=-1, le=10**9)],  # −1: by the epochs
    "per_device_train_batch_size": BatchSize,
    "per_device_eval_batch_size": BatchSize,
    "gradient_accumulation_steps": BatchSize,
    "eval_accumulation_steps": BatchSize | None,
    "warmup_steps": NotNegative,  # below 1: a share of the steps
    "weight_decay": NotNegative,
    "adam_beta1": Annotated[float, Field(ge=0, lt=1)],
    "adam_beta2": Annotated[float, Field(ge=0, lt=1)],
    "adam_epsilon": ShareOrZero,
    "max_grad_norm": NotNegative,
    "label_smoothing_factor": ShareOrZero,
    "neftune_noise_alpha": NotNegative | None,
    "logging_steps": Annotated[float, Field(gt=0, le=10**9)],
    "eval_steps": Annotated[float, Field(gt=0, le=10**9)] | None,
    "eval_delay": Annotated[float, Field(ge=0, le=10**9)],
    "torch_empty_cache_steps": Count | None,
    "save_total_limit": Count | None,
    "data_seed": Seed | None,
    "dataloader_num_workers": Annotated[int, Field(ge=0, le=1000)],
    "dataloader_prefetch_factor": BatchSize | None,
    "ddp_bucket_cap_mb": Count | None,
    "ddp_timeout": Count,
    "local_rank": Annotated[int, Field(ge=-1, le=10**6)],  # −1: not launched
}


def options_model(config: type, without: Collection[str] = ()) -> type[Section]:
    """A model of the fields of a dataclass but those in `without`."""
    return _options_model(config, frozenset(without))


@cache
def _options_model(config: type, without: frozenset[str]) -> type[Section]:
    hints = typing.get_type_hints(config, include_extras=True)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if field.init and field.name not in without:
            hint = hints[field.name]
            hint = INHERITED.get(field.name, hint) if get_origin(hint) is not Annotated else hint
            make: Any = field.default_factory
            default = Field(default=field.default) if make is dataclasses.MISSING else Field(default_factory=make)
            fields[field.name] = (hint if _is_plain(hint) else Any, default)
    return create_model(config.__name__, __base__=Section, **fields)


def _is_plain(hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is Annotated:
        return _is_plain(get_args(hint)[0])
    return hint in PLAIN or origin is Literal or (origin is not None and all(map(_is_plain, get_args(hint))))
