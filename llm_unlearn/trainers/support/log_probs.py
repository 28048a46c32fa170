"""Sequence log-probs of the reference: computed once, kept on disk, no reference forward in the loop (NPO, DPO)."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from llm_unlearn.tasks import Supervised
from llm_unlearn.tasks.embedding_noise import attached_noise

if TYPE_CHECKING:
    from llm_unlearn.trainers.base import UnlearnTrainer

FOLDER = "_reference_log_probs"  # a Trainer does not upload what begins with an underscore


def reference_log_probs(trainer: "UnlearnTrainer", name: str) -> np.ndarray:
    """log π_θ0(y|x) of every row of a set, from the model as it is now, in evaluation mode.

    Read from `args.reference_cache_dir` where a file of this model and these rows is there, else computed and written.

    Returns:
        (n,) float32.
    """
    args, rows = trainer.args, trainer.rows[name]
    folder = Path(args.reference_cache_dir) if args.reference_cache_dir else Path(args.output_dir) / FOLDER
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "plain"
    noise = getattr(trainer.task, "noise", None)  # of a task that adds it itself
    parts = [model_hash(trainer.model), rows_hash(rows), precision, *([repr(noise)] if noise else [])]
    key = hashlib.sha256(" ".join(parts).encode()).hexdigest()
    path = folder / f"{key[:32]}.safetensors"
    found = _read(path, len(rows))
    if trainer.processes.any(found is None):  # or some would compute, and wait for the others
        training = trainer.model.training
        if not getattr(trainer.model, "is_quantized", False):
            trainer.model.to(args.device)  # an engine would do so when training begins
        trainer.model.eval()
        found = per_row(trainer, rows, Supervised.log_prob)
        trainer.model.train(training)
        if trainer.accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
            save_file({"log_prob": found}, partial)
            os.replace(partial, path)
    return found.numpy()


@torch.no_grad()
def per_row(trainer: "UnlearnTrainer", rows: Any, value: Callable[[Supervised], torch.Tensor]) -> torch.Tensor:
    """(n,) `value` (B,) of every row's supervised positions under the model as it is, on the CPU; the processes share
    the rows, and each gets all values."""
    size, n, found = trainer.args.per_device_eval_batch_size, len(rows), {}
    for start in trainer.processes.share(range(0, n, size)):
        batch = trainer.data_collator.collate([rows[i] for i in range(start, min(start + size, n))])
        with trainer.accelerator.autocast():
            found[start] = trainer.task.compute(trainer.model_wrapped, trainer._prepare_inputs(batch), value).cpu()
    found = {start: values for part in trainer.processes.merged(found) for start, values in part.items()}
    return torch.cat([found[start] for start in sorted(found)])


def model_hash(model: nn.Module) -> str:
    """SHA-256 over what a model computes with: names, dtypes, shapes and values of its weights and buffers (of
    quantised ones their scales too), its config, the active adapter's, and the noise attached to it."""
    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        state = getattr(tensor, "quant_state", None)
        scales = [
            getattr(state, "absmax", None),
            getattr(getattr(state, "state2", None), "absmax", None),
            getattr(state, "offset", None),
            getattr(tensor, "SCB", None),
        ]
        for part in (tensor, *(scale for scale in scales if isinstance(scale, torch.Tensor))):
            digest.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    adapter = getattr(model, "active_adapter", None) if hasattr(model, "peft_config") else None
    noise = attached_noise(model)
    settings = [
        model.config.to_dict(),
        adapter,
        model.peft_config[adapter].to_dict() if adapter else None,
        (noise.epsilon, noise.seed) if noise else None,
    ]
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def rows_hash(rows: Any) -> str:
    """SHA-256 over what a model is shown of rows, in their order."""
    columns = [c for c in rows.column_names if c != "example_id"]
    digest = hashlib.sha256()
    for row in rows.select_columns(columns):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _read(path: Path, n: int) -> torch.Tensor | None:
    try:
        found = load_file(path)["log_prob"]
    except (OSError, KeyError, SafetensorError):  # absent, or cut off by a crash of the machine: computed again
        return None
    return found if found.shape == (n,) else None
