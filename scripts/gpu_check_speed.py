"""Sections of scripts/gpu_check.py about time and memory: `ceilings`, `steps`, `variants`, `large`, `qlora`.

Contenders and models are those of benchmark_steps.py: Llama's 1B and 8B shapes, random weights, 4 + 4 rows of 512
tokens.
"""

import llm_unlearn.vision  # noqa: F401  before transformers, see vision/torchvision_guard.py

# isort: split
import importlib.util
import math
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import benchmark_steps
import torch
from benchmark_steps import CONTENDERS, LORA_TARGETS, Setting, method_steps
from gpu_check import PEAKS, Report
from gpu_check_kernels import attention, attentions, compare_kernels

from llm_unlearn.config.model_sections import LoraSection, ModelSection
from llm_unlearn.config.recipe import build_recipe
from llm_unlearn.doctor.memory.estimate import TRAINING, estimate_steps
from llm_unlearn.models.load import load_model
from llm_unlearn.tasks import causal_lm, head
from llm_unlearn.tasks.noise import unit_noise
from llm_unlearn.trainers.support.compiling import compiled_blocks

ROUNDS, WARM = 7, 3
# rows of how many sets a step takes → methods; each is compared with plain fine-tuning on as many
STEP_METHODS = {2: ("grad_diff", "npo", "kl", "dpo", "undial", "ce_u", "rmu"), 1: ("gradient_ascent", "scrub")}
# in bf16 on the 1B shape: how many times as long as plain fine-tuning a step may take, by method and adapter
TIMES = {("gradient_ascent", "full"): 1.05, ("grad_diff", "full"): 1.05, ("npo", "full"): 1.05}
TIMES |= {(method, "lora"): limit for (method, _), limit in TIMES.items()} | {
    ("kl", "full"): 1.30,
    ("kl", "lora"): 1.35,
}
UTILISATION, DOCTOR_ERROR = 0.40, 0.15
CHUNKS = (128, 512, 1024, 2048, 4096)  # positions that the head takes at a time


def ceilings(report: Report, args: Any) -> None:
    """What the device gives at the most: one large matrix product, one large copy."""
    n, dtype = (256, torch.float32) if args.tiny else (8192, torch.bfloat16)
    a, b = (torch.randn(n, n, device=args.device, dtype=dtype) for _ in range(2))
    big = torch.empty(2**20 if args.tiny else 2**31, dtype=torch.uint8, device=args.device)
    product, copy = (timed(step, args.device)[0] for step in (lambda: a @ b, big.clone))
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    rates = {"tflops": 2 * n**3 / product / 1e12, "tb_per_s": 2 * big.numel() / copy / 1e12}
    report.add(name, **rates, torch=torch.__version__, cuda=torch.version.cuda)


def timed(step: Callable[[], Any], device: str, rounds: int = ROUNDS, warm: int = WARM) -> tuple[float, int]:
    """(median seconds of a call, bytes of tensors at the most)."""
    on_gpu, seconds = device == "cuda", []
    for _ in range(warm):
        step()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(rounds):
        _ = torch.cuda.synchronize() if on_gpu else None
        start = time.perf_counter()
        step()
        _ = torch.cuda.synchronize() if on_gpu else None
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[rounds // 2], torch.cuda.max_memory_allocated() if on_gpu else 0


def peak_tflops(args: Any) -> float:
    """What utilisation is a share of."""
    if args.peak_tflops or args.device == "cpu":
        return args.peak_tflops or 1.0
    name = torch.cuda.get_device_name()
    if known := [peak for card, peak in PEAKS.items() if card in name.replace("-", " ").split()]:
        return known[0]
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 8192**3 / timed(lambda: a @ a, "cuda")[0] / 1e12


class Measuring:
    """Contenders of one section, one after the other, each beside plain fine-tuning.

    Args:
        report: where the lines go.
        args: of the command line.
    """

    def __init__(self, report: Report, args: Any) -> None:
        self.report, self.args, self.peak = report, args, peak_tflops(args)
        self.judged = args.device == "cuda" and not args.tiny  # toys meet no bar
        self.base: dict[tuple[str, int], float] = {}  # (adapter, sets) → seconds per token of plain fine-tuning
        self.ms: dict[str, float] = {}  # line → milliseconds a step

    def setting(
        self, shape: str, adapter: str, rows: str = "long", sets: int = 2, checkpointing: bool = False
    ) -> Setting:
        device, tiny = self.args.device, self.args.tiny
        shape = "llama" if tiny else shape
        return Setting(shape, adapter, rows, sets, device, device == "cuda", tiny, checkpointing)

    def take(
        self,
        name: str,
        setting: Setting,
        method: str,
        during: Callable[[Any], AbstractContextManager] = lambda steps: nullcontext(),
        bar: Callable[[float, float], bool] | None = None,
    ) -> int:
        """One line: milliseconds a step, tokens/s, utilisation, peak memory, and the time beside fine-tuning's.

        Args:
            name: of the line.
            setting: the model and its rows.
            method: a contender or another method.
            during: the contender → what holds while it runs.
            bar: (utilisation, times as long as fine-tuning) → whether that is good enough; None: there is no bar.

        Returns:
            bytes of tensors at the most, 0 where it failed.
        """
        peaks = []

        def measure() -> None:
            with tempfile.TemporaryDirectory() as folder:
                steps = CONTENDERS.get(method, partial(method_steps, method=method))(setting, folder)
                with during(steps):
                    seconds, peak = timed(steps, self.args.device)
            peaks.append(peak)
            per_token, group = seconds / steps.tokens, (setting.adapter, setting.sets)
            if method == "fine_tuning":
                self.base.setdefault(group, per_token)
            times = per_token / self.base.get(group, per_token)
            used = steps.flops / seconds / 1e12 / self.peak
            self.ms[name] = 1e3 * seconds / steps.count
            rates = {"ms": self.ms[name], "tokens_per_s": steps.tokens / seconds, "utilisation": used}
            ok = {"ok": bar(used, times)} if bar and self.judged else {}
            self.report.add(name, **rates, times=times, peak_gib=peak / 2**30, **ok)

        self.report.trying(name, measure)
        return peaks[0] if peaks else 0


def steps(report: Report, args: Any) -> None:
    """Methods beside plain fine-tuning on Llama 3.2 1B's shape, and what the doctor says of their memory."""
    measuring = Measuring(report, args)
    for adapter in ("full", "lora"):
        peaks: dict[str, int] = {}
        for sets, all_methods in STEP_METHODS.items():
            setting = measuring.setting("llama-1b", adapter, sets=sets)
            used_enough = (lambda used, _: used >= UTILISATION) if (adapter, sets) == ("full", 2) else None
            name = f"fine_tuning 1b {adapter}, {setting.sets} sets"
            peaks |= {f"fine_tuning {sets}": measuring.take(name, setting, "fine_tuning", bar=used_enough)}
            # noise has the size of the weights: of an adapter it is little
            methods = [*all_methods, *["noisy_gradient_descent"] * (sets == 1 and adapter == "full")]
            for method in (m for m in methods if m in (args.methods or methods)):
                limit = TIMES.get((method, adapter), math.inf)
                fast_enough = None if limit == math.inf else lambda _, times, limit=limit: times <= limit
                peaks[method] = measuring.take(f"{method} 1b {adapter}", setting, method, bar=fast_enough)
        setting = measuring.setting("llama-1b", adapter)
        report.trying(f"doctor 1b {adapter}", partial(ask_doctor, report, setting, peaks, measuring.judged))


def ask_doctor(report: Report, setting: Setting, peaks: dict[str, int], judged: bool) -> None:
    """The doctor's estimate of steps that were measured, and its error."""
    (fields, vocabulary), lora = setting.architecture, setting.adapter == "lora"
    model = {
        "architecture": fields,
        "vocab_size": vocabulary,
        "dtype": "bfloat16" if lora and setting.bf16 else "float32",
    }
    methods = [m for m in ("grad_diff", "kl", "npo", "scrub") if m in peaks]
    recipe = build_recipe(
        {
            "name": "check",
            "output_dir": "unused",
            "pretrain": {},
            "model": {**model, **({"lora": {"target_modules": LORA_TARGETS["llama"]}} if lora else {})},
            "data": {"max_length": 32 if setting.tiny else 512, "verbalizers": {"negative": " no", "positive": " yes"}},
            "poison": {"gaussian": {"fraction": 0.1, "epsilon": 0.1}},
            "train": {"batch_size": 2 * setting.batch, "bf16": setting.bf16},
            "unlearn": {"batch_size": setting.batch, "methods": dict.fromkeys(methods)},
        }
    )
    for estimate in estimate_steps(recipe, on_gpu=setting.device == "cuda"):
        measured = peaks["fine_tuning 2" if estimate.step == TRAINING else estimate.step]
        error = {"error": estimate.total / measured - 1} if measured else {}
        ok = {"ok": abs(error["error"]) <= DOCTOR_ERROR} if error and judged else {}
        parts = {part: held / 2**30 for part, held in estimate.device.items() if held}
        report.add(f"doctor {estimate.step} 1b {setting.adapter}", gib=estimate.total / 2**30, **error, **parts, **ok)


def variants(report: Report, args: Any) -> None:
    """One thing changed at a time: chunks of the head, packing and masks on uneven rows, blocks compiled or Liger's."""
    measuring = Measuring(report, args)
    long, uneven = (measuring.setting("llama-1b", "full", rows) for rows in ("long", "lengths"))
    measuring.take("fine_tuning", long, "fine_tuning")
    for size in CHUNKS:
        changed = mock.patch.object(head, "chunk_positions", lambda *_, size=size: size)
        measuring.take(f"fine_tuning, chunks of {size}", long, "fine_tuning", lambda _, changed=changed: changed)
    for method in ("fine_tuning", "kl"):
        compare_kernels(measuring, long, method)
    measuring.take("grad_diff uneven, packed", uneven, "grad_diff")
    measuring.take("grad_diff uneven, padded", uneven, "grad_diff_padded")
    measuring.take("grad_diff uneven, padded and masked", uneven, "grad_diff_padded", lambda _: masked())
    for name in attentions(args.device):
        measuring.take(f"grad_diff uneven, packed, {name}", uneven, "grad_diff", partial(attention, name=name))
    if args.device == "cuda":  # a CPU's compiler takes half a minute
        measuring.take("fine_tuning, compiled", long, "fine_tuning", compiled)
    if importlib.util.find_spec("liger_kernel"):
        measuring.take("fine_tuning, Liger's blocks", long, "fine_tuning", liger)


def masked() -> AbstractContextManager:
    """The attention mask is passed, though the rows are padded on the right."""
    plain = causal_lm._arguments

    def arguments(inner: Any, inputs: dict, *others: Any) -> dict:
        return {**plain(inner, inputs, *others), "attention_mask": inputs["attention_mask"]}

    return mock.patch.object(causal_lm, "_arguments", arguments)


def compiled(steps: Any) -> AbstractContextManager:
    return compiled_blocks(steps.trainer.model, steps.trainer.task, True)


def liger(steps: Any) -> AbstractContextManager:
    """RMSNorm, RoPE and SwiGLU of this model; the loss stays ours."""
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    apply_liger_kernel_to_llama(cross_entropy=False, fused_linear_cross_entropy=False, model=steps.trainer.model)
    return nullcontext()


def large(report: Report, args: Any) -> None:
    """Llama 3.1 8B's shape: LoRA with checkpointing as in its recipe, and the Gaussian scores."""
    measuring = Measuring(report, args)
    for method in ("fine_tuning", "kl", "npo"):
        setting = measuring.setting("llama-8b", "lora", checkpointing=True)
        measuring.take(f"{method} 8b lora", setting, method)
    setting = measuring.setting("llama-8b", "full", "canaries")

    def scores() -> None:
        with tempfile.TemporaryDirectory() as folder:
            made = benchmark_steps.scores(setting, folder, times=2)
            seconds, peak = timed(made, args.device, 2, 1)
        start, hidden = time.perf_counter(), made.model.config.hidden_size
        for row in made.rows:
            unit_noise(0, row["example_id"], len(row["input_ids"]), hidden)
        share = (time.perf_counter() - start) / seconds
        rates = {"rows_per_s": len(made.rows) / seconds, "peak_gib": peak / 2**30}
        report.add("gaussian_scores 8b", **rates, noise_on_host=share)

    report.trying("gaussian_scores 8b", scores)


def qlora(report: Report, args: Any) -> None:
    """An adapter on a 4-bit base of the 1B shape, loaded as a recipe loads it."""
    from peft import LoraConfig, get_peft_model

    measuring, made = Measuring(report, args), benchmark_steps.model_of
    setting = measuring.setting("llama-1b", "lora")
    adapter = LoraConfig(r=16, target_modules=LORA_TARGETS["llama"], task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as folder:
        whole = Setting(setting.shape, "full", device=args.device, tiny=args.tiny)
        made(whole, torch.bfloat16).save_pretrained(folder)
        section = ModelSection(path=folder, quantization="4bit", lora=LoraSection(), dtype="bfloat16")

        def quantised(*_: Any) -> Any:
            return get_peft_model(load_model(folder, section), adapter)

        with mock.patch.object(benchmark_steps, "model_of", quantised):
            for method in ("fine_tuning", "kl"):
                measuring.take(f"{method} 1b 4bit", setting, method)
