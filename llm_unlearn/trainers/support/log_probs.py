"""Sequence log-probs of the reference: computed once, kept on disk, no reference forward in the loop (NPO, DPO)."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from llm_unlearn.distributed.processes import Processes
from llm_unlearn.distributed.sharding import is_sharded, local, put_away
from llm_unlearn.errors import InputError
from llm_unlearn.files import replacing_file
from llm_unlearn.tasks import Task
from llm_unlearn.tasks.embedding_noise import attached_noise
from llm_unlearn.trainers.unlearn_config import UnlearnConfig

FOLDER = "_reference_log_probs"  # a Trainer does not upload what begins with an underscore


def reference_log_probs(
    model: nn.Module, rows: Any, args: UnlearnConfig, compute: Callable[[], torch.Tensor], task: Task
) -> np.ndarray:
    """Log π_θ0(y|x) of every row of a set, from the model as it is now, in evaluation mode.

    Read from `args.reference_cache_dir` where a file of this model and these rows is there, else computed and written.
    All processes call it.

    Args:
        model: the reference, θ0.
        rows: the set, tokenised.
        args: the run's settings.
        compute: gives the log-probs, (n,) float32 on the CPU.
        task: how the model is run.

    Returns:
        (n,) float32.

    Raises:
        InputError: the task shows a row differently from step to step.
    """
    if task.augments:
        raise InputError("the method compares with what the reference said once; turn augmentation off")
    processes = Processes.current()
    folder = Path(args.reference_cache_dir) if args.reference_cache_dir else Path(str(args.output_dir)) / FOLDER
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "plain"
    parts = [model_hash(model), rows_hash(rows), precision, *([repr(task.noise)] if task.noise else [])]
    path = folder / f"{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:32]}.safetensors"
    log_probs = _read(path, len(rows))
    if processes.any(log_probs is None):  # or some would compute, and wait for the others
        training = model.training
        if not getattr(model, "is_quantized", False):
            model.to(args.device)  # an engine would do so when training begins
        model.eval()
        log_probs = compute()
        model.train(training)
        if processes.is_main:
            with replacing_file(path) as partial:
                save_file({"log_prob": log_probs}, partial)
    assert log_probs is not None  # for the type checker
    return log_probs.numpy()


def row_values(compute: Callable[[list[Any]], torch.Tensor], rows: Any, size: int) -> torch.Tensor:
    """A value of every row, (n,) on the CPU; the processes share the rows, and each gets all values.

    Args:
        compute: up to `size` rows → their values (b,).
        rows: a dataset of n rows.
        size: of a batch.
    """
    processes, n = Processes.current(), len(rows)
    own = {
        start: compute([rows[i] for i in range(start, min(start + size, n))]).cpu()
        for start in processes.share(range(0, n, size))
    }
    by_start = {start: values for part in processes.merged(own) for start, values in part.items()}
    return torch.cat([by_start[start] for start in sorted(by_start)])


def model_hash(model: Any) -> str:
    """SHA-256 over what a model computes with: names, dtypes, shapes and values of its weights and buffers (of
    quantised ones their scales too), its config, the active adapter's, and the noise attached to it.

    Of a sharded model each process reads its part, and all get the hash of their hashes; all call it.
    """
    digest = hashlib.sha256()
    put_away(model)
    # bitsandbytes keeps it beside the weight, too: FSDP2 replaces the weight
    states = {f"{name}.weight": getattr(module, "quant_state", None) for name, module in model.named_modules()}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        state = getattr(tensor, "quant_state", None) or states.get(name)
        scales = [
            getattr(state, "absmax", None),
            getattr(getattr(state, "state2", None), "absmax", None),
            getattr(state, "offset", None),
            getattr(tensor, "SCB", None),
        ]
        for part in (tensor, *(scale for scale in scales if isinstance(scale, torch.Tensor))):
            digest.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
            digest.update(local(part).detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    adapter = getattr(model, "active_adapter", None) if hasattr(model, "peft_config") else None
    noise = attached_noise(model)
    settings = [
        model.config.to_dict(),
        adapter,
        model.peft_config[adapter].to_dict() if adapter else None,
        (noise.epsilon, noise.seed) if noise else None,
    ]
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    if is_sharded(model):
        digest = hashlib.sha256(" ".join(Processes.current().merged(digest.hexdigest())).encode())
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
