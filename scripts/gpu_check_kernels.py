"""Kernels that scripts/gpu_check.py tries in the place of ours, in its section `variants`."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any
from unittest import mock

import torch

from llm_unlearn import tasks
from llm_unlearn.models.attention import lacking, register_varlen
from llm_unlearn.tasks import kernels

PACKED = ("varlen", "flash_attention_2", "flash_attention_3")
PAYS = 0.05  # of a step, from which a compiled kernel would be worth its upkeep


def compare_kernels(measuring: Any, setting: Any, method: str) -> None:
    """A method with its loss at the head compiled, beside the method as it is: what share of a step that saves.

    Args:
        measuring: a gpu_check_speed.Measuring, which holds the time of what it measured before.
        setting: the model and its rows.
        method: a contender or another method.
    """
    name = f"{method}, compiled kernel"
    if method not in measuring.ms:
        measuring.take(method, setting, method)
    measuring.take(name, setting, method, lambda _: compiled_kernels(measuring.args.tiny))
    if {method, name} <= measuring.ms.keys():
        saved = 1 - measuring.ms[name] / measuring.ms[method]
        measuring.report.add(f"{method}: what compiling saves", share=saved, pays=saved >= PAYS)


def compiled_kernels(tiny: bool) -> AbstractContextManager:
    """The NLL and the divergence at the head go through torch.compile; of a toy as far as the compiler's graph."""
    compile_ = partial(torch.compile, backend="aot_eager" if tiny else "inductor", dynamic=True)
    of_kl = cache(lambda *settings: compile_(kernels.kl_kernel(*settings)))
    return mock.patch.multiple(tasks, nll_kernel=compile_(kernels.nll_kernel), kl_kernel=of_kl)


def attentions(device: str) -> list[str]:
    """The kernels of attention here that take packed rows without a mask or padding."""
    return [name for name in PACKED if device == "cuda" and lacking(name) is None]


def attention(steps: Any, name: str) -> AbstractContextManager:
    """The model of the steps computes attention by another kernel."""
    register_varlen()
    steps.trainer.model.set_attn_implementation(name)
    return nullcontext()
