"""The blocks of a language model compiled while it trains, each alone (`compile_blocks`).

What changes from step to step stays outside: the noise on the token embeddings, the packing of rows, the head with its
loss. torch_compile=True would compile all that as well, again at every step, and is refused.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from llm_unlearn.errors import InputError
from llm_unlearn.models.text_blocks import block_list
from llm_unlearn.tasks import Task
from llm_unlearn.tasks.causal_lm import CausalLMTask

BACKEND = "inductor"


@contextmanager
def compiled_blocks(model: nn.Module, task: Task, wanted: bool) -> Iterator[None]:
    """While it lasts the model's blocks run compiled.

    Args:
        model: the one that trains, without an engine around it.
        task: how it is run.
        wanted: False: nothing is done.

    Raises:
        InputError: it is no causal LM.
    """
    if not wanted:
        yield
        return
    if not isinstance(task, CausalLMTask):
        raise InputError("compile_blocks: works on language models alone; leave it out")
    blocks = list(block_list(model))
    for block in blocks:
        block.compile(backend=BACKEND, dynamic=True)
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None  # `nn.Module.compile` has no opposite
        torch.compiler.reset()  # the next run's blocks would count against the same limit of recompilations
