"""Weights that no process holds whole: under DeepSpeed's ZeRO-3, and under FSDP2, whose parameters are DTensors.

FSDP2 shards a model as it is loaded from its folder (models/sharded_loading.py), or when training begins; ZeRO-3 when
training begins, and until then it is whole in every process. What is done to weights afterwards (look at them, copy
them out, change them) goes through here, one parameter at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llm_unlearn.errors import InputError


def is_partitioned(parameter: Any) -> bool:
    """Whether it is ZeRO-3's: an empty tensor here, with this process's part in `ds_tensor`."""
    return hasattr(parameter, "ds_id")


def is_sharded(model: nn.Module) -> bool:
    """Whether no process holds all of a model's weights."""
    return any(is_partitioned(p) or hasattr(p, "device_mesh") for p in model.parameters())


def local(parameter: Any) -> Tensor:
    """The part of a parameter that this process holds, all of it where nothing is sharded; shares its memory."""
    if is_partitioned(parameter):
        return parameter.ds_tensor
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def set_precision(model: nn.Module, policy: Any) -> None:
    """Give a model that FSDP2 sharded as it was loaded the precision of a training, before the first forward.

    Args:
        model: as FSDP2 sharded it, or that in an adapter, which is left as it is.
        policy: FSDP2's MixedPrecisionPolicy, or None for that of the weights.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    if not isinstance(model, FSDPModule):
        fully_shard(model)  # nothing is left to shard, but FSDP2 wants the outermost module to be its own
    for module in model.modules():
        if isinstance(module, FSDPModule):
            state = module._get_fsdp_state()
            state._mp_policy = policy or MixedPrecisionPolicy()
            if state._fsdp_param_group is not None:
                state._fsdp_param_group.mp_policy = state._mp_policy


def average_gradients(model: nn.Module) -> None:
    """Average over the processes, as it comes, the gradient of what trains in a sharded model without being sharded: an
    adapter that was put onto a base that is. An average of what earlier micro-batches left changes nothing of that.
    """
    from torch import distributed

    put_away(model)  # or weights that a forward has gathered would pass for such

    def average(parameter: Tensor) -> None:
        assert parameter.grad is not None  # the hook runs after it is there
        distributed.all_reduce(parameter.grad)
        parameter.grad /= distributed.get_world_size()

    for parameter in model.parameters():
        if parameter.requires_grad and local(parameter) is parameter and not hasattr(parameter, "_is_averaged"):
            parameter.register_post_accumulate_grad_hook(average)
            parameter._is_averaged = True  # type: ignore[attr-defined]  # a model may train twice


def put_away(model: nn.Module) -> None:
    """Give up weights that a forward has gathered and no backward has given up, as after an evaluation; called by every
    process. What is then written into a part would otherwise be lost, or the gathered weights saved in its place.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "reshard"):  # FSDP2's
            module.reshard()
    parameter: Any
    for parameter in model.parameters():
        if is_partitioned(parameter) and parameter.ds_status.name == "AVAILABLE":
            parameter.partition([parameter])


def release(trainer: Any) -> None:
    """Give back what DeepSpeed holds of a trainer whose model is saved and not needed any more. Its hooks keep an
    engine of ZeRO-3 alive for good, so the memory behind it is emptied.
    """
    if not trainer.is_deepspeed_enabled:
        return
    reference = getattr(getattr(trainer, "reference", None), "model", None)
    engines: list[Any] = [engine for engine in (trainer.model_wrapped, reference) if hasattr(engine, "destroy")]
    partitioned = [p for engine in engines for p in engine.module.parameters() if is_partitioned(p)]
    held = [vars(engine.optimizer) for engine in engines if partitioned and hasattr(engine.optimizer, "__dict__")]
    for engine in engines:
        engine.destroy()
    trainer.accelerator.free_memory()
    _empty([held, [p.ds_tensor for p in partitioned]])


def _empty(value: Any) -> None:
    """Give back the memory of the tensors in lists and dicts."""
    if isinstance(value, Tensor):
        if value.untyped_storage().resizable():
            value.untyped_storage().resize_(0)
    elif isinstance(value, torch.optim.Optimizer):
        _empty([list(value.state.values()), value.param_groups])
    elif isinstance(value, (list, tuple, set, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            _empty(item)


def change(parameter: nn.Parameter, function: Callable[[Tensor], Tensor]) -> None:
    """Replace a parameter by `function` of it whole; called by every process, `function` giving the same in each."""
    with torch.no_grad():
        if is_partitioned(parameter):
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(function(parameter.detach()))
        elif hasattr(parameter, "full_tensor"):
            parameter.copy_(shard_like(function(parameter.full_tensor()), parameter))
        else:
            parameter.copy_(function(parameter.detach()))


@contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """While it lasts, what FSDP2 sharded of a module is whole in every process; what is then written there is kept.

    All processes call it and write the same. For one block at a time.
    """
    put_away(module)
    parts: list[tuple[nn.Module, str, Any]] = [
        (m, n, p) for m in module.modules() for n, p in m._parameters.items() if hasattr(p, "device_mesh")
    ]
    wholes = {id(part): nn.Parameter(part.full_tensor(), part.requires_grad) for *_, part in parts}
    for owner, name, part in parts:
        owner._parameters[name] = wholes[id(part)]
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, name, part in parts:
                owner._parameters[name] = part
                part.copy_(shard_like(wholes[id(part)].detach(), part))


def shard_like(whole: Tensor, parameter: Any) -> Tensor:
    """A tensor that every process has whole, laid out as a parameter (or its gradient) is."""
    if not hasattr(parameter, "device_mesh"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(parameter.device), parameter.device_mesh, parameter.placements)


def whole_state_dict(model: nn.Module, adapter: str | None = None, keep: bool = True) -> dict[str, Tensor]:
    """The state dict of an unwrapped model with every weight whole, on the CPU; called by every process.

    Args:
        model: the unwrapped model, which ZeRO-3 or FSDP2 may have sharded.
        adapter: the adapter of a peft model whose weights alone are taken, as saving it needs; None takes all weights.
        keep: whether this process receives the state dict; if not, it contributes its shards and gets an empty dict.
    """
    found: dict[str, Tensor] = {}
    copies: dict[int, Tensor] = {}  # tied weights stay tied
    for name, value in model.state_dict(keep_vars=True).items():
        if adapter is not None and adapter not in name.split("."):
            continue
        if id(value) not in copies:
            copies[id(value)] = _whole(value, keep)
        found[name] = copies[id(value)]
    return found if keep else {}


def _whole(value: Tensor, keep: bool) -> Tensor:
    if is_partitioned(value):
        import deepspeed

        with deepspeed.zero.GatheredParameters([value]):
            return value.detach().to("cpu", copy=True) if keep else torch.empty(0)
    whole = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole.detach().to("cpu", copy=True) if keep else torch.empty(0)


def refuse_partitioned(model: nn.Module) -> None:
    """Raise where ZeRO-3 partitioned a model as it was loaded: a reference, a budget and a hash need it whole."""
    if any(is_partitioned(p) for p in model.parameters()):
        raise InputError(
            "the model is partitioned already: with ZeRO-3 that happens to a model that is loaded after "
            "TrainingArguments were made. Give its path instead, or load it before; it is sharded when "
            "training begins"
        )
