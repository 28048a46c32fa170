"""Sections of scripts/gpu_check.py about what is computed, on toy models: `parity`, `syncs`, `engines`."""

import llm_unlearn.vision  # noqa: F401  before transformers, see vision/torchvision_guard.py

# isort: split
import collections
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import support
import torch
from gpu_check import ROOT, Report, lines_of
from torch import Tensor, nn
from transformers import TrainerCallback

from llm_unlearn.distributed.sharding import is_sharded, local
from llm_unlearn.models.adapters import REFERENCE_ADAPTER
from llm_unlearn.tasks import causal_lm
from llm_unlearn.trainers import METHODS

# float32 on two devices differs by the order of sums; bf16 may be so many times further from float32 than on a CPU
LOSS_ERROR, UPDATE_ERROR, BF16_TIMES = 1e-4, 1e-3, 3.0
SYNC_METHODS = ("gradient_descent", "grad_diff", "kl", "npo", "simnpo", "rmu", "scrub", "noisy_gradient_descent")
ENGINES = ("none", "fsdp2", "zero2", "zero3")
ENGINE_CASES = ("grad_diff full", "kl full", "npo full", "kl lora", "scrub lora")


def toy(shape: str, kind: str, seed: int = 0) -> nn.Module:
    """A GPT-2 or a Llama of two layers, of weights so large that predictions are not uniform."""
    return support.build(kind, seed) if shape == "gpt2" else support.build_llama(kind, seed)


def trainer(method: str, shape: str, kind: str, device: str, folder: str, **options: Any) -> Any:
    """A method's trainer on rows of uneven length, canaries among them; plain SGD, so that an update is a gradient."""
    start = toy(shape, "full", 1) if METHODS[method][1].starts_clean and kind == "full" else None
    plain = {"optim": "sgd", "learning_rate": 0.05, "use_cpu": device == "cpu"}
    return support.trainer(method, kind, folder, model=toy(shape, kind), start=start, **{**plain, **options})


def own(model: nn.Module) -> dict[str, Tensor]:
    """The weights that a method may change, float32 on the CPU."""
    named = model.named_parameters()
    return {n: local(p).detach().float().cpu().clone() for n, p in named if f".{REFERENCE_ADAPTER}." not in n}


def losses_of(run: Any) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


# ---- parity


def parity(report: Report, args: Any) -> None:
    """Two steps of every method here and on a CPU, in float32 and in bf16: their losses, and how the weights moved."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for method in list(args.methods or METHODS)[args.part :: args.parts]:
        for shape in ("gpt2", "llama"):
            for kind in support.KINDS:
                name = f"{method} {shape} {kind}"
                report.trying(name, lambda case=(method, shape, kind), name=name: compare(report, name, case, args))


def compare(report: Report, name: str, case: tuple[str, str, str], args: Any) -> None:
    """One line of `parity`.

    `loss` is the largest difference from the CPU's loss, relative where losses are above 1; `update` the distance
    between the weights' moves relative to the CPU's. In bf16 both are from the CPU in float32, and `cpu_bf16_*` says
    how far a CPU in bf16 is.
    """
    with tempfile.TemporaryDirectory() as folder:
        there = two_steps(case, "cpu", folder)
        figures = apart(two_steps(case, args.device, folder), there)
        half = apart(two_steps(case, args.device, folder, bf16=True), there)
        half_there = apart(two_steps(case, "cpu", folder, bf16=True), there)
    close = figures[0] <= LOSS_ERROR and figures[1] <= UPDATE_ERROR
    as_close = all(a <= BF16_TIMES * b + 5e-3 for a, b in zip(half, half_there, strict=True))
    names = ("loss", "update", "bf16_loss", "bf16_update", "cpu_bf16_loss", "cpu_bf16_update")
    report.add(name, **dict(zip(names, (*figures, *half, *half_there), strict=True)), ok=close and as_close)


def two_steps(case: tuple[str, str, str], device: str, folder: str, **options: Any) -> tuple[list[float], Tensor]:
    """The losses of two steps, and all that the weights moved by, one vector."""
    run = trainer(*case, device, folder, max_steps=2, **options)
    before = own(run.model)
    run.train()
    after = own(run.model)
    return losses_of(run), torch.cat([(after[name] - before[name]).flatten() for name in before])


def apart(ours: tuple[list[float], Tensor], theirs: tuple[list[float], Tensor]) -> tuple[float, float]:
    pairs = zip(ours[0], theirs[0], strict=True)
    loss = max((abs(a - b) / max(1.0, abs(b)) for a, b in pairs), default=0.0)
    return loss, float((ours[1] - theirs[1]).norm() / theirs[1].norm().clamp(min=1e-12))


# ---- syncs


class Watch(TrainerCallback):
    """Counts what torch calls a synchronisation, from the fourth step to the seventh, by the line that asks for it."""

    STEPS = range(3, 7)

    def __init__(self, device: str) -> None:
        self.found: collections.Counter[str] = collections.Counter()
        self.on_gpu = device == "cuda"

    def on_step_begin(self, args, state, control, **kwargs):
        if self.on_gpu:
            torch.cuda.set_sync_debug_mode("warn" if state.global_step in self.STEPS else "default")

    def on_step_end(self, args, state, control, **kwargs):
        if self.on_gpu:
            torch.cuda.set_sync_debug_mode("default")

    def seen(self, message: Any, *_: Any, **__: Any) -> None:
        """In the place of warnings.showwarning."""
        if "synchroniz" in str(message):
            frames = traceback.extract_stack()[:-1]  # without this one
            not_told = (f"{os.sep}torch{os.sep}", f"{os.sep}warnings.py")
            asked = [f for f in frames if not any(part in f.filename for part in not_told)][-1]
            path = Path(asked.filename)
            place = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path(*path.parts[-3:])
            self.found[f"{place}:{asked.lineno}"] += 1


def syncs(report: Report, args: Any) -> None:
    """Where a step makes the host wait; none of these lines may be ours."""
    for method in args.methods or SYNC_METHODS:
        for kind in support.KINDS:
            report.trying(f"{method} {kind}", lambda case=(method, kind): count(report, *case, args.device))


def count(report: Report, method: str, kind: str, device: str) -> None:
    watch = Watch(device)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        run = trainer(method, "llama", kind, device, folder, max_steps=8, logging_steps=1000)
        run.add_callback(watch)
        warnings.simplefilter("always")
        with mock.patch.object(warnings, "showwarning", watch.seen):
            run.train()
    per_step = {where: n / len(watch.STEPS) for where, n in watch.found.most_common()}
    ours = sum(n for where, n in per_step.items() if where.startswith("llm_unlearn/"))
    ok = {"ok": ours == 0} if watch.on_gpu else {}  # a CPU shows nothing
    report.add(f"{method} {kind}", per_step=sum(per_step.values()), ours=ours, where=per_step, **ok)


# ---- engines


def engines(report: Report, args: Any) -> None:
    """FSDP2, ZeRO-2 and ZeRO-3 with one process each, in bf16, beside none: losses, fused head, weights' type."""
    if engine := os.environ.get("GPU_CHECK_ENGINE"):
        for case in ENGINE_CASES:
            report.trying(f"{engine} {case}", lambda case=case: take_steps(report, engine, case, args.device))
        return
    start = report.path.stat().st_size if report.path.exists() else 0
    wanted = ENGINES[:2] if args.tiny else ENGINES
    if importlib.util.find_spec("deepspeed") is None:
        for engine in (engine for engine in wanted if engine.startswith("zero")):
            report.add(engine, absent="DeepSpeed is not installed")
        wanted = [engine for engine in wanted if not engine.startswith("zero")]
    with ThreadPoolExecutor(len(wanted) if args.jobs > 1 else 1) as pool:
        list(pool.map(lambda engine: launch(report, engine, args), wanted))
    lines = {line["name"]: line for line in lines_of(report.path, start) if "losses" in line}
    for name, line in lines.items():
        engine, _, case = name.partition(" ")
        if engine != "none" and (plain := lines.get(f"none {case}")):
            error = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(line["losses"], plain["losses"], strict=True))
            as_asked = line["sharded"] or engine == "zero2" or args.device == "cpu"  # FSDP2 does not shard on a CPU
            report.add(f"{name} beside none", loss=error, ok=error < 2e-2 and line["fused_head"] and as_asked)


def launch(report: Report, engine: str, args: Any) -> None:
    """One engine's process. `accelerate launch` would start one without a process group, and FSDP2 be left out."""
    configs, settings = ROOT / "accelerate_configs", {}
    if engine == "fsdp2":
        settings = {
            "ACCELERATE_USE_FSDP": "true",
            "FSDP_VERSION": "2",
            "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
            "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
            "FSDP_RESHARD_AFTER_FORWARD": "true",
        }
    elif engine != "none":
        name = f"{'cpu_' * (args.device == 'cpu')}{engine}.json"
        settings = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(configs / name)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    command += [str(ROOT / "scripts/gpu_check.py"), "--section", "engines", "--device", args.device]
    environment = {**os.environ, "GPU_CHECK_ENGINE": engine, **settings}
    done = subprocess.run([*command, "--json", str(report.path)], env=environment, capture_output=True, text=True)
    if done.returncode:
        report.add(engine, failed=signal.strsignal(-done.returncode) if done.returncode < 0 else done.stderr[-600:])


class Heads:
    """Whether the output head could always be taken out of the model."""

    def __init__(self, plain_head: Callable[..., Any]) -> None:
        self.plain_head, self.always = plain_head, True

    def __call__(self, *args: Any) -> Any:
        head = self.plain_head(*args)
        self.always &= head is not None
        return head


def take_steps(report: Report, engine: str, case: str, device: str) -> None:
    """Two steps of a method under the engine that the environment names, without and with checkpointing."""
    method, kind = case.split()
    for checkpointing in (False, True):
        heads = Heads(causal_lm.plain_head)
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(causal_lm, "plain_head", heads):
            options = {"bf16": True, "gradient_checkpointing": checkpointing, "max_steps": 2}
            run = trainer(method, "llama", kind, device, folder, **options)
            run.train()
            trained = next(p for p in run.model.parameters() if p.requires_grad)
            report.add(
                f"{engine} {case}{' checkpointed' * checkpointing}",
                losses=losses_of(run),
                fused_head=heads.always,
                weights=str(local(trained).dtype),
                sharded=is_sharded(run.model),
            )
