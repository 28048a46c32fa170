"""The reference θ0: the model as it was before unlearning, held in the cheapest exact way.

Under PEFT it is a frozen copy of the *adapter*, the base weights being shared; for a full model a frozen copy of what
trains, sharded as the model that trains is, or in the host's memory on request. Where a method asks for sequence
log-probs alone they are computed once and kept on disk (log_probs.py). A method that asks for nothing holds nothing.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from llm_unlearn.distributed.sharding import is_sharded, set_precision
from llm_unlearn.errors import InputError
from llm_unlearn.models.adapters import REFERENCE_ADAPTER
from llm_unlearn.models.sharded_loading import loaded_again
from llm_unlearn.tasks import Positions, Supervised
from llm_unlearn.tasks.embedding_noise import GaussianNoise, attached_noise

LOWERED = {"bf16": torch.bfloat16, "fp16": torch.float16}  # what DeepSpeed makes of weights in mixed precision


class Reference(ABC):
    """What is asked of a reference: a context in which it is run, and what it says there.

    `placed` says whether its output head may be away once it has run, being sharded or offloaded.
    """

    model: Any
    placed = False

    @abstractmethod
    def prepare(self, accelerator: Any, offload: bool) -> None:
        """Place it as the run wants it, before the first step."""

    @abstractmethod
    def as_model(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """The reference as a model to run, without gradients.

        Args:
            model: the one that trains, as it is called.
        """

    @abstractmethod
    def weights(self) -> dict[str, nn.Parameter]:
        """Its weights by the names that those of the model have, of which it was a copy."""

    def output(self, run: Callable[[Callable[[Any], Tensor]], Tensor]) -> Positions:
        """What the reference says of a batch; of logits the states and the head that they are made of, where it stays.

        Args:
            run: takes a function and evaluates it where the output head is, see Task.compute.
        """
        outputs: list[Any] = []

        def keep(output: Any) -> Tensor:
            outputs.append(output.whole() if self.placed and isinstance(output, Supervised) else output)
            return outputs[0].states

        run(keep)
        return outputs[0]


class AdapterReference(Reference):
    """A frozen copy of the active LoRA adapter under another name; switched in for the reference forward.

    It must not travel: savers write the active adapter alone.

    Raises:
        InputError: the model has an adapter of that name that is not ours, or its adapter changes the base itself.
    """

    def __init__(self, model: Any) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        self.model, active = model, model.active_adapter
        flags = [(p, p.requires_grad) for p in model.parameters()]
        if REFERENCE_ADAPTER not in model.peft_config:
            config = copy.deepcopy(model.peft_config[active])
            _refuse_beyond_adapter(config)
            config.inference_mode = True
            if isinstance(getattr(config, "init_lora_weights", None), str):
                config.init_lora_weights = True  # pissa, olora and others write into the base; the copy below is all
            model.add_adapter(REFERENCE_ADAPTER, config)
            model._holds_our_reference = True
        elif active == REFERENCE_ADAPTER or not getattr(model, "_holds_our_reference", False):
            raise InputError(
                f"the model has an adapter named '{REFERENCE_ADAPTER}', a name that unlearning uses for "
                "its frozen copy; load it under another name"
            )
        copy_adapter(model, active, REFERENCE_ADAPTER)
        model.set_adapter(active)
        for name, parameter in model.named_parameters():
            if REFERENCE_ADAPTER in name.split("."):
                parameter.requires_grad_(False)
        for parameter, trains in flags:  # set_adapter unfreezes all of the adapter
            parameter.requires_grad_(trains)
        self.modules = list(model.modules())
        self.layers: list[Any] = [
            layer for layer in self.modules if isinstance(layer, (BaseTunerLayer, AuxiliaryTrainingWrapper))
        ]

    def prepare(self, accelerator: Any, offload: bool) -> None:
        """Nothing: it is sharded with the model that it is part of."""

    def weights(self) -> dict[str, nn.Parameter]:
        active, named = self.model.active_adapter, self.model.named_parameters()
        return {
            ".".join(active if part == REFERENCE_ADAPTER else part for part in name.split(".")): weight
            for name, weight in named
            if REFERENCE_ADAPTER in name.split(".")
        }

    @contextmanager
    def as_model(self, model: nn.Module) -> Iterator[nn.Module]:
        """The same (possibly wrapped) model with the reference adapter active, without gradients.

        What trains still says so while it lasts: FSDP2 decides in the first forward how it will reduce gradients.
        """
        active = [layer._active_adapter for layer in self.layers]  # peft's set_adapter would also change what trains
        training = [module for module in self.modules if module.training]
        _set_training(training, False)  # a reference has no dropout
        try:
            for layer in self.layers:
                layer._active_adapter = REFERENCE_ADAPTER
            with torch.no_grad():
                yield model
        finally:
            for layer, name in zip(self.layers, active, strict=True):
                layer._active_adapter = name
            _set_training(training, True)


class FrozenModel(Reference):
    """A full model that does not train, in evaluation mode: a frozen copy of the one that does, or a teacher.

    Args:
        model: is frozen in place.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def copy_of(cls, model: nn.Module, share: bool = True) -> "FrozenModel":
        """A copy of a model as it is now; what does not train is shared, not copied, unless it will be placed apart.

        Of a model that was loaded in parts a second one is loaded, of which too each process holds its part.
        """
        if is_sharded(model):
            again, noise = loaded_again(model), attached_noise(model)
            if noise is not None:
                GaussianNoise(noise.epsilon, noise.seed).attach(again)
            return cls(again)
        shared = {id(p): p for p in model.parameters() if share and not p.requires_grad}
        copied = copy.deepcopy(model, memo=shared)
        for module in copied.modules():
            # TRL's SFTTrainer gives a model a forward of its own that closes over the *original*: a copy that kept it
            # would follow the model that trains, and its KL would be 0 for ever
            if not hasattr(module, "_hf_hook"):
                module.__dict__.pop("forward", None)
        return cls(copied)

    def weights(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def lower(self, dtype: torch.dtype, shared_with: nn.Module) -> "FrozenModel":
        """Keep the matrices of its linear layers in the precision to which autocast would cast them at every forward:
        the same numbers from half the memory. Embeddings and norms are used as they are, so they stay.
        """
        kept = {id(p) for p in shared_with.parameters()}
        kept |= {id(m.weight) for m in self.model.modules() if isinstance(m, nn.Embedding)}  # a tied head with it
        for module in self.model.modules():
            if type(module) in (nn.Linear, Conv1D):
                for name, parameter in list(module.named_parameters(recurse=False)):
                    if id(parameter) not in kept and parameter.dtype == torch.float32:
                        setattr(module, name, nn.Parameter(parameter.to(dtype), requires_grad=False))
        return self

    def prepare(self, accelerator: Any, offload: bool) -> None:
        """Shard it where the model that trains will be sharded weight by weight (ZeRO-3, FSDP2); lower it where that
        one is lowered (DeepSpeed in mixed precision), or their divergence would not start at 0.

        Args:
            accelerator: that of the trainer, which says how the model that trains is sharded.
            offload: keep its weights in the host's memory, and bring those of a module when it runs.

        Raises:
            InputError: FSDP2 decides for all models alike whether they are offloaded.
        """
        stage = accelerator.state.deepspeed_plugin.zero_stage if accelerator.state.deepspeed_plugin else 0
        if accelerator.is_fsdp2:
            from accelerate.utils.fsdp_utils import fsdp2_prepare_model

            if offload:
                raise InputError("offload_reference: under FSDP2 set fsdp_offload_params in the accelerate config")
            if is_sharded(self.model):
                set_precision(self.model, accelerator.state.fsdp_plugin.mixed_precision_policy)
            else:
                self.model = fsdp2_prepare_model(accelerator, self.model)  # block by block, as accelerate does it
        if stage and (dtype := LOWERED.get(accelerator.mixed_precision)) is not None:
            self.model.to(dtype)
        if stage == 3:
            self.model = _zero3(self.model, accelerator.state.deepspeed_plugin.deepspeed_config, offload)
        elif offload:
            from accelerate import cpu_offload

            device = accelerator.device if accelerator.device.type != "cpu" else torch.device("cpu")  # not cpu:1
            cpu_offload(self.model.to("cpu"), device)
        self.placed = accelerator.is_fsdp2 or stage == 3 or offload

    @contextmanager
    def as_model(self, model: nn.Module) -> Iterator[nn.Module]:
        """The frozen model, without gradients; moved once to the device of the model that trains."""
        device = next(model.parameters()).device
        if not self.placed and next(self.model.parameters()).device != device:
            self.model.to(device)
        with torch.no_grad():
            yield self.model


def _set_training(modules: list[nn.Module], mode: bool) -> None:
    """Set the mode of each module alone, past the checks of `Module.__setattr__`, which cost a seventh of a step's host
    time with a large adapter.
    """
    for module in modules:
        module.__dict__["training"] = mode


def _zero3(model: nn.Module, config: dict[str, Any], offload: bool) -> nn.Module:
    """A frozen model under an engine of its own, by the config of the one that trains, without its optimizer."""
    import deepspeed

    config = {key: value for key, value in copy.deepcopy(config).items() if key not in ("optimizer", "scheduler")}
    config["zero_optimization"].pop("offload_optimizer", None)
    if offload:
        config["zero_optimization"]["offload_param"] = {"device": "cpu"}
    engine, *_ = deepspeed.initialize(model=model, config=config)
    engine.eval()
    return engine


def _refuse_beyond_adapter(config: Any) -> None:
    """Raise InputError where what trains is not all in the adapter: a copy of it would follow the model."""
    if getattr(config, "bias", "none") != "none":
        raise InputError(
            f"the adapter trains biases of its base (bias={config.bias!r}), so that a frozen copy of it is no "
            "reference; train an adapter with bias='none', or the merged model"
        )
    if getattr(config, "layer_replication", None):
        raise InputError(
            "the adapter repeats layers of its base (layer_replication), so that a second one is no copy of it; train "
            "an adapter without"
        )


def make_reference(model: nn.Module, autocast: torch.dtype | None = None, share: bool = True) -> Reference:
    """The cheapest exact reference of a model as it is now.

    Args:
        model: θ0; it may go on to train.
        autocast: the precision under which it will run, if any.
        share: whether a full one may hold the model's own weights where they do not train; not where it will be
            offloaded, or where DeepSpeed lowers and partitions the weights of either.
    """
    if hasattr(model, "peft_config"):
        return AdapterReference(model)
    copied = FrozenModel.copy_of(model, share)
    return copied if autocast is None else copied.lower(autocast, model)


def copy_adapter(model: nn.Module, source: str, target: str) -> None:
    """Copy the weights of one adapter of a peft model into another of the same shape."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parts = name.split(".")
            if target in parts:
                parameter.copy_(parameters[".".join(source if part == target else part for part in parts)])
