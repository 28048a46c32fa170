"""Where Gaussian noise enters a language model: at the embedding output, by seed, through two forward hooks."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm_unlearn.errors import InputError
from llm_unlearn.models.adapters import without_adapter
from llm_unlearn.models.devices import moved
from llm_unlearn.tasks.noise import check_noise, unit_noise


@dataclass(frozen=True)
class PlacedNoise:
    """Which noise goes where, known on the host: the row of id ids[i] ≥ 0 has its lengths[i] tokens from starts[i] on
    in the batch as the model sees it, flattened.
    """

    ids: tuple[int, ...]
    starts: tuple[int, ...]
    lengths: tuple[int, ...]


class GaussianNoise:
    """Adds each canary's noise to the output of the model's input embedding, by two forward hooks.

    The model is called with `noise_id` (B,) int64 beside its usual inputs, −1 for rows without noise; the first hook
    takes it out before the model sees it, the second adds ε z to that row's real tokens (attention_mask = 1, or where
    `PlacedNoise` says), wherever padding puts them. Works under PEFT, gradient checkpointing and mixed precision.

    Args:
        epsilon: standard deviation ε > 0, in units of the embedding.
        seed: the seed of the noise, at least 0.
    """

    def __init__(self, epsilon: float, seed: int) -> None:
        check_noise(epsilon, seed)
        self.epsilon, self.seed = epsilon, seed
        self._pending: PlacedNoise | tuple[Tensor, Tensor | None] | None = None
        self._handles: list[Any] = []

    def attach(self, model: Any) -> "GaussianNoise":
        """Install the hooks on a model that has none yet; returns self, which `remove()`s them."""
        if attached_noise(model) is not None:
            raise InputError("this model already has Gaussian noise attached: remove() it first")
        self._handles = [
            model.register_forward_pre_hook(self._take_ids, with_kwargs=True),
            model.get_input_embeddings().register_forward_hook(self._add),
        ]
        return self

    def remove(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _take_ids(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        noise_id = kwargs.pop("noise_id", None)
        if noise_id is None and model.training:
            raise ValueError(
                "this model trains with Gaussian canaries but the batch has no `noise_id`: use CausalLMCollator, "
                "remove_unused_columns=False, and neither packing nor padding_free"
            )
        asked = isinstance(noise_id, Tensor)
        self._pending = (noise_id, kwargs.get("attention_mask")) if asked else noise_id
        return args, kwargs

    def _add(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        pending, self._pending = self._pending, None
        if isinstance(pending, PlacedNoise):
            return output + self.placed(pending, output) if max(pending.ids) >= 0 else output
        if pending is None or not bool((pending[0] >= 0).any()):
            return output
        return output + self.batch_noise(*pending, output)

    def placed(self, noise: PlacedNoise, like: Tensor) -> Tensor:
        """ξ of a batch as `like` (…, d) has it; drawn while the device is still at work on what came before."""
        out = torch.zeros_like(like)
        flat = out.view(-1, like.shape[-1])
        for example_id, start, length in zip(noise.ids, noise.starts, noise.lengths, strict=True):
            if example_id >= 0:
                z = torch.from_numpy(unit_noise(self.seed, example_id, length, like.shape[-1])) * self.epsilon
                flat[start : start + length] = moved(z.to(like.dtype), like.device)
        return out

    def batch_noise(self, noise_id: Tensor, attention_mask: Tensor | None, like: Tensor) -> Tensor:
        """ξ of a batch: (B, T, d) in the dtype and on the device of `like` (B, T, d), zero where there is none."""
        noise = torch.zeros(like.shape, dtype=torch.float32)
        mask = torch.ones(like.shape[:2], dtype=torch.bool) if attention_mask is None else attention_mask.bool().cpu()
        for row, example_id in enumerate(noise_id.tolist()):
            if example_id >= 0:
                length = int(mask[row].sum())
                noise[row, mask[row]] = torch.from_numpy(unit_noise(self.seed, example_id, length, like.shape[-1]))
        return (noise * self.epsilon).to(device=like.device, dtype=like.dtype)


def attached_noise(model: Any) -> GaussianNoise | None:
    """The GaussianNoise whose hooks are on this model, or on the one inside its adapter; or None."""
    base = without_adapter(model)
    for hook in (*model._forward_pre_hooks.values(), *base._forward_pre_hooks.values()):
        if isinstance(getattr(hook, "__self__", None), GaussianNoise):
            return hook.__self__
    return None


def refuse_data_parallel(args: Any) -> None:
    """Raise where a Trainer would wrap the model in torch's DataParallel: its threads would share one noise hook."""
    if getattr(args, "n_gpu", 1) > 1:
        raise InputError(
            f"one process sees {args.n_gpu} GPUs: set CUDA_VISIBLE_DEVICES to one of them, or start one "
            "process per GPU with `accelerate launch`"
        )
