"""The blocks of a causal LM: which they are, what follows them, drawing them anew, stopping a forward after one."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llm_unlearn.distributed.sharding import whole_weights
from llm_unlearn.errors import InputError
from llm_unlearn.models.text_blocks import block_list


def last_blocks(model: Any, k: int) -> list[nn.Module]:
    """The last k blocks and what follows them: the final norm, and the LM head unless it is tied to the embedding.

    A tied head *is* the embedding, the first layer of the model: it counts as that and stays as it is.

    Raises:
        InputError: k is not in 1 … the number of blocks.
    """
    blocks = block_list(model)
    if not 1 <= k <= len(blocks):
        raise InputError(f"k: must be between 1 and the model's {len(blocks)} blocks, is {k}")
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is None or head.weight is embedding.weight
    return [*list(blocks)[-k:], *after_blocks(model), *([] if tied else [head])]


def after_blocks(model: Any) -> list[nn.Module]:
    """What stands beside the blocks and comes after them: the final norm."""
    blocks = block_list(model)
    parent = next(module for module in model.modules() if blocks in module.children())
    children = list(parent.named_children())
    position = next(i for i, (_, child) in enumerate(children) if child is blocks)
    return [
        child
        for i, (name, child) in enumerate(children)
        if (i > position or name.startswith("final"))
        and "norm" in type(getattr(child, "original_module", child)).__name__.lower()
    ]  # peft may have wrapped it


MLP_OUTPUTS = ("down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h", "w2", "wo")


def mlp_output(block: nn.Module) -> Any:
    """The MLP's projection back to the residual stream, by the names that architectures give it.

    Raises:
        InputError: there is not exactly one, or it is one of several beside the experts of a mixture.
    """
    if any("expert" in f"{name} {type(module).__name__}".lower() for name, module in block.named_modules()):
        raise InputError(f"{type(block).__name__}: a mixture of experts has no one MLP; unlearn through a LoRA adapter")
    found: list[Any] = [
        module
        for name, module in block.named_modules()
        if name.rpartition(".")[2] in MLP_OUTPUTS
        and "attn" not in name
        and "attention" not in name
        and getattr(module, "weight", None) is not None
        and module.weight.ndim == 2
    ]
    if len(found) != 1:
        raise InputError(
            f"{type(block).__name__}: {len(found)} modules named {' or '.join(MLP_OUTPUTS)} outside "
            "attention, where one MLP was expected; unlearn through a LoRA adapter"
        )
    return found[0]


def reinitialise(model: Any, modules: Iterable[nn.Module], seed: int) -> None:
    """Draw weights anew as the model's own initialisation does, from `seed`; a LoRA adapter becomes the identity.

    Under PEFT only the active adapter inside `modules` is drawn, the base stays.

    Raises:
        InputError: the adapter has weights there that cannot be reset (DoRA's magnitudes, `modules_to_save`), or began
            by changing the base (PiSSA).
    """
    modules = list(modules)
    if hasattr(model, "peft_config"):
        _check_resettable(model, modules)

    def draw(module: Any) -> None:
        if hasattr(model, "peft_config"):
            if hasattr(module, "reset_lora_parameters"):
                module.reset_lora_parameters(model.active_adapter, True)
            return
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = False  # or transformers would leave what it loaded alone
        model._init_weights(module)

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for module in modules:
            with whole_weights(module):
                module.apply(draw)  # children before parents: GPT-2's parents rescale a child's weights


def _check_resettable(model: Any, modules: list[nn.Module]) -> None:
    start = getattr(model.peft_config[model.active_adapter], "init_lora_weights", None)
    if start not in (True, False, "gaussian"):
        raise InputError(
            f"the adapter (init_lora_weights={start!r}) did not begin as the identity and cannot be "
            "reset; use plain LoRA, or a full model"
        )
    inside = {id(p) for module in modules for p in module.parameters()}
    for name, parameter in model.named_parameters():
        low_rank = any(part in name for part in ("lora_A", "lora_B", "lora_embedding_"))
        if parameter.requires_grad and id(parameter) in inside and not low_rank:
            raise InputError(
                f"{name} trains beside the low-rank matrices and cannot be reset; use an adapter without "
                "modules_to_save and DoRA, or a full model"
            )


class _Skipped(nn.Module):
    """Stands for a block that is not run: gives back what the last block that was run gave.

    Args:
        captured: holds that, in a list.
        block: has what the model asks of the block beside running it.
    """

    def __init__(self, captured: list[Any], block: nn.Module) -> None:
        super().__init__()
        self.captured, self.instead_of = captured, [block]  # a list: no submodule

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["instead_of"][0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.captured[0]


@contextmanager
def stopped_after(model: Any, layer: int) -> Iterator[list[Any]]:
    """While it lasts, blocks after `layer` (0 is the first) and the LM head are not computed.

    Yields:
        a list whose first item is block `layer`'s output once the model was called. The model's own output then means
        nothing.
    """
    blocks = block_list(model)
    captured: list[Any] = []

    def capture(module: nn.Module, args: tuple, output: Any) -> None:
        captured[:] = [output]

    skipped, head = list(blocks)[layer + 1 :], model.get_output_embeddings()
    handle = blocks[layer].register_forward_hook(capture)
    try:
        for i in range(layer + 1, len(blocks)):
            blocks[i] = _Skipped(captured, blocks[i])
        no_head: Any = nn.Identity()
        no_head.weight, no_head.bias = head.weight, getattr(head, "bias", None)  # some architectures ask for them
        model.set_output_embeddings(no_head)
        yield captured
    finally:
        handle.remove()
        for i, block in enumerate(skipped, start=layer + 1):
            blocks[i] = block
        model.set_output_embeddings(head)


def hidden_of(output: Any) -> Tensor:
    """The hidden states (B, T, H) in what a block returns: a tensor, or a tuple that begins with it."""
    return output if isinstance(output, Tensor) else output[0]


@contextmanager
def recorded_states(model: Any, states: list[Tensor], nudge: Tensor | None = None) -> Iterator[None]:
    """While it lasts a forward leaves its states in a list: the first block's input, then each block's output.

    Args:
        model: a causal LM without an engine around it.
        states: an empty list; of the model's L blocks it gets L + 1 tensors.
        nudge: is added to the first block's input, of its shape; None: that asks for a gradient of its own.
    """

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        given = args[0] if args else kwargs["hidden_states"]
        states.append(given + (torch.zeros_like(given).requires_grad_() if nudge is None else nudge))
        return ((states[0], *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states[0]})

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        states.append(hidden_of(output))

    blocks = block_list(model)
    handles = [blocks[0].register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [block.register_forward_hook(leave) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
