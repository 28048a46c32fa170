"""Load a model in parts: under FSDP2 each process reads its own rows of every weight, and none holds the model whole.

transformers can load a model that is sharded already, but by a plan of its own, under which a head tied to the
embedding becomes a second weight. Here it is sharded as accelerate does it when training begins, block by block, so
that accelerate takes it as it is and all else finds what it knows.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from llm_unlearn.distributed.processes import Processes
from llm_unlearn.distributed.sharding import local
from llm_unlearn.errors import InputError


def loads_in_parts() -> bool:
    """Whether this launch shards models with FSDP2; accelerate does that on accelerators alone."""
    if os.environ.get("ACCELERATE_USE_FSDP") != "true" or Processes.current().count == 1:
        return False
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    return PartialState().distributed_type != DistributedType.MULTI_CPU


def from_pretrained_in_parts(model_class: Any, path: str, **arguments: Any) -> Any:
    """`model_class.from_pretrained` in all processes, of which each gets its part; with the same arguments and answers.

    The model remembers how it was loaded, see `loaded_again`.
    """
    from accelerate import PartialState
    from transformers.distributed import DistributedConfig

    # sizes of 1: else transformers would make meshes of its own, with six process groups more for every model
    how = {"device_map": PartialState().device, "distributed_config": DistributedConfig(fsdp_size=1)}
    with _sharding_as_accelerate():
        answer = model_class.from_pretrained(path, **arguments, **how)
    model = answer[0] if isinstance(answer, tuple) else answer
    model.config.distributed_config = None  # or the Trainer and `save_pretrained` would take it for transformers' own
    model._load_again = partial(from_pretrained_in_parts, model_class, path, **arguments)
    for parameter in model.parameters():
        if hasattr(parameter, "_local_tensor") and parameter.device.type == "cpu":
            parameter._local_tensor = parameter._local_tensor.clone()  # so far a view of the file
    return answer


@contextmanager
def _sharding_as_accelerate() -> Iterator[None]:
    """While it lasts, transformers shards a model, before it reads the weights, as accelerate would."""
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    from transformers.distributed.mixin import DistributedMixin

    plugin = FullyShardedDataParallelPlugin(cpu_ram_efficient_loading=False)
    accelerator: Any = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision="no", is_main_process=False
    )

    def shard(model_class: type, model: Any, distributed_config: Any, mesh_manager: Any) -> nn.Module:
        model.tie_weights()  # FSDP2 asks at this time which weights are one
        return fsdp2_prepare_model(accelerator, model)

    mixin: Any = DistributedMixin  # has no other way in
    before = vars(mixin)["maybe_distribute_model"]
    mixin.maybe_distribute_model = classmethod(shard)
    try:
        yield
    finally:
        mixin.maybe_distribute_model = before


def loaded_again(model: Any) -> nn.Module:
    """A second model with the weights of one that was loaded in parts, as they are now: FSDP2 cannot copy a model.

    Raises:
        InputError: it was sharded otherwise.
    """
    if not hasattr(model, "_load_again"):
        raise InputError(
            "the model is sharded already, so that it cannot be copied as a reference: give its path, or a model that "
            "is whole; it is sharded when training begins"
        )
    answer = model._load_again()
    again = answer[0] if isinstance(answer, tuple) else answer
    with torch.no_grad():
        for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
            local(ours).copy_(local(theirs))
        for ours, theirs in zip(again.buffers(), model.buffers(), strict=True):
            ours.copy_(theirs)
    return again
