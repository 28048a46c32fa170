"""The blocks of a language model compiled while it trains, each alone (`compile_blocks`).

What changes from step to step stays outside: the noise on the token embeddings, the packing of rows, the head with its
loss. torch_compile=True would compile all that as well, again at every step, and is refused.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from llm_unlearn.errors import InputError
from llm_unlearn.tasks.blocks import block_list
from llm_unlearn.tasks.causal_lm import CausalLMTask

if TYPE_CHECKING:
    from llm_unlearn.trainers.base import UnlearnTrainer

BACKEND = "inductor"


@contextmanager
def compiled_blocks(trainer: "UnlearnTrainer") -> Iterator[None]:
    """While it lasts the model's blocks run compiled, where the trainer's arguments say so.

    Raises:
        InputError: of a model that is not a causal LM.
    """
    if not trainer.args.compile_blocks:
        yield
        return
    if not isinstance(trainer.task, CausalLMTask):
        raise InputError("compile_blocks: works on language models alone; leave it out")
    blocks = list(block_list(trainer.accelerator.unwrap_model(trainer.model)))
    for block in blocks:
        block.compile(backend=BACKEND, dynamic=True)
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None  # `nn.Module.compile` has no opposite
        torch.compiler.reset()  # the next run's blocks would count against the same limit of recompilations
