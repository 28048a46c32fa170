"""Compare an unlearning step with plain fine-tuning, with TRL, and with the step that other toolkits take.

    python scripts/benchmark.py                                       # every group, on a small GPT-2 and a small Llama
    python scripts/benchmark.py --only kl naive --shape llama --json benchmark.json     # some; adds to the file
    python scripts/benchmark.py --device cuda --bf16 --shape llama-1b --peak-tflops 989
    python scripts/benchmark.py --show benchmark.json                 # the tables of a file; measures nothing

Times: one process builds and warms up all contenders of a group. They then take turns, a round of steps each, and a
different one goes first each time. A ratio compares two rounds of the same turn, per token; the report gives its
median and quartiles over turns. Fine-tuning is the `gradient_descent` trainer on as many rows as the method takes.
Peaks: each contender runs in a process of its own (scripts/benchmark_memory.py); 1 MB is 10⁶ bytes.
Model-FLOPs utilisation counts matrix products (llm_unlearn/models/flops.py), neither attention's T² nor recomputation.
"""

import argparse
import dataclasses
import json
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# measure → the name of a bar on two contenders; the limit is the largest value allowed, for a speed-up the smallest
MEASURES = {
    "time": "{0} / {1}: time per token",
    "speedup": "{1} / {0}: time per token",
    "peak": "{0} / {1}: peak memory",
    "beyond": "{0} / {1}: memory beyond weights, gradients and optimizer",
    "copies": "{0} − {1}: peak memory, in copies of the weights (bf16 under --bf16)",
}
SHAPES = [
    "gpt2",
    "llama",
    "gpt2-medium",
    "llama-1b",
    "llama-8b",
]  # as in benchmark_steps.py, which takes seconds to import
MET = {True: "met", False: "**not met**", None: "not measured"}
LEGEND = """Median [quartiles] over rounds; tokens without padding. fine_tuning: plain NLL on as many rows as methods
take of both sets; sft: TRL's SFTTrainer on the same rows; naive_…: two forwards, logits of the whole vocabulary at
every position, a deep copy as reference. beyond: peak less weights, gradients and optimizer state."""


@dataclass(frozen=True)
class Bar:
    """A limit on `contender` compared with `against`, by a measure of MEASURES."""

    contender: str
    against: str
    measure: str
    limit: float


@dataclass(frozen=True)
class Group:
    """Contenders that are measured together; the table compares all with the first.

    Args:
        contenders: names in benchmark_steps.CONTENDERS.
        bars: the limits.
        adapter: as in benchmark_steps.Setting, like the rest.
        rows: "text", "completion", "lengths" or "canaries".
        sets: how many sets of rows fine-tuning takes.
    """

    contenders: tuple[str, ...]
    bars: tuple[Bar, ...]
    adapter: str = "full"
    rows: str = "text"
    sets: int = 2


def beside_fine_tuning(limit: float, *methods: str) -> tuple[Bar, ...]:
    """Time per token over fine-tuning's, of each method."""
    return tuple(Bar(method, "fine_tuning", "time", limit) for method in methods)


def beside_naive(speedup: float, beyond: float) -> tuple[Bar, ...]:
    """Speed-up and memory over the naive step's, of kl and npo."""
    return tuple(
        Bar(method, f"naive_{method}", measure, limit)
        for method in ("kl", "npo")
        for measure, limit in (("speedup", speedup), ("beyond", beyond))
    )


NAIVE = ("fine_tuning", "kl", "naive_kl", "npo", "naive_npo")
GROUPS: dict[str, Group] = {
    "ascent": Group(
        ("fine_tuning", "sft", "gradient_ascent"),
        (*beside_fine_tuning(1.05, "gradient_ascent"), Bar("gradient_ascent", "fine_tuning", "peak", 1.05)),
        sets=1,
    ),
    "paired": Group(
        ("fine_tuning", "sft", "grad_diff", "neggrad_plus", "simnpo"),
        beside_fine_tuning(1.10, "grad_diff", "neggrad_plus", "simnpo"),
    ),
    "weighted": Group(("fine_tuning", "wga", "satimp"), beside_fine_tuning(1.10, "wga", "satimp")),
    "preference": Group(("fine_tuning", "npo", "dpo"), beside_fine_tuning(1.10, "npo", "dpo")),
    "kl": Group(("fine_tuning", "kl"), (*beside_fine_tuning(1.25, "kl"), Bar("kl", "fine_tuning", "copies", 1.0))),
    "kl-lora": Group(
        ("fine_tuning", "kl"), (*beside_fine_tuning(1.40, "kl"), Bar("kl", "fine_tuning", "peak", 1.10)), adapter="lora"
    ),
    "scrub": Group(("fine_tuning", "scrub"), beside_fine_tuning(1.45, "scrub"), sets=1),
    "scrub-lora": Group(("fine_tuning", "scrub"), beside_fine_tuning(1.65, "scrub"), adapter="lora", sets=1),
    "rmu": Group(("fine_tuning", "rmu"), beside_fine_tuning(0.5, "rmu")),
    "naive": Group(NAIVE, beside_naive(1.05, 0.6)),
    "completion": Group(NAIVE, beside_naive(2.0, 0.5), rows="completion"),
    "lengths": Group(
        ("grad_diff_padded", "grad_diff"), (Bar("grad_diff", "grad_diff_padded", "speedup", 1.3),), rows="lengths"
    ),
    "gus": Group(
        ("forward_backward", "gaussian_scores", "gaussian_scores_4n"),
        (
            Bar("gaussian_scores", "forward_backward", "time", 0.9),
            Bar("gaussian_scores_4n", "gaussian_scores", "beyond", 1.05),
        ),
        rows="canaries",
        sets=1,
    ),
}
GROUPS |= {
    f"{name}-lora": replace(GROUPS[name], adapter="lora") for name in ("ascent", "paired", "weighted", "preference")
}


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    import numpy as np

    q1, median, q3 = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
    return {"median": median, "q1": q1, "q3": q3}


def ratios(one: dict[str, Any], other: dict[str, Any]) -> list[float]:
    """Time per token of one contender over another's, round by round."""
    return [(a / one["tokens"]) / (b / other["tokens"]) for a, b in zip(one["seconds"], other["seconds"], strict=True)]


def judge(bar: Bar, contenders: dict[str, dict[str, Any]], copy_bytes: int) -> dict[str, Any]:
    """{"bar", "measure", "limit", "value", "q1", "q3", "met"}; the last four are None if it was not measured.

    Args:
        bar: the limit.
        contenders: name → {"seconds" of each round, "tokens" of a round, "peak" and "beyond" in bytes or None}.
        copy_bytes: size of one copy of the weights, in bfloat16 under bf16.
    """
    one, other = contenders[bar.contender], contenders[bar.against]
    value = q1 = q3 = None
    if bar.measure in ("time", "speedup"):
        value, q1, q3 = spread(ratios(one, other) if bar.measure == "time" else ratios(other, one)).values()
    elif bar.measure == "copies" and one["peak"] is not None:
        value = (one["peak"] - other["peak"]) / copy_bytes
    elif one["peak"] is not None:
        value = one[bar.measure] / other[bar.measure]
    met = None if value is None else value >= bar.limit if bar.measure == "speedup" else value <= bar.limit
    return {
        "bar": MEASURES[bar.measure].format(bar.contender, bar.against),
        "measure": bar.measure,
        "limit": bar.limit,
        "value": value,
        "q1": q1,
        "q3": q3,
        "met": met,
    }


# ---- measuring


def take_turns(contenders: dict[str, Any], repeats: int, on_gpu: bool) -> dict[str, list[float]]:
    """Seconds of each round of each contender, after one round (on a GPU two) that does not count."""
    import torch

    synchronize = torch.cuda.synchronize if on_gpu else lambda: None
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(1 + on_gpu):
        for contender in contenders.values():
            contender()
    for k in range(repeats):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            synchronize()
            start = time.perf_counter()
            contenders[name]()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def measure(name: str, setting: Any, repeats: int, memory: bool, peak_tflops: float | None) -> dict[str, Any]:
    """The result of one group on one shape, as the JSON holds it."""
    from benchmark_memory import level, peak_apart
    from benchmark_steps import CONTENDERS

    group, on_gpu, peaks = GROUPS[name], setting.device == "cuda", {}
    level(on_gpu)  # frees what the previous group held
    for contender in group.contenders if memory else ():
        print(f"{name}, {setting.shape}: peak memory of {contender}", file=sys.stderr, flush=True)
        peaks[contender] = peak_apart(contender, setting)
    print(f"{name}, {setting.shape}: {repeats} rounds of {', '.join(group.contenders)}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        built = {contender: CONTENDERS[contender](setting, folder) for contender in group.contenders}
        seconds = take_turns(built, repeats, on_gpu)
    rows = {
        contender: {
            "seconds": seconds[contender],
            "steps": steps.count,
            "tokens": steps.tokens,
            "flops": steps.flops,
            "peak": None,
            "beyond": None,
            **peaks.get(contender, {}),
        }
        for contender, steps in built.items()
    }
    for row in rows.values():
        row |= figures_of(row, rows[group.contenders[0]], peak_tflops)
    weights = sum(p.numel() for p in built[group.contenders[0]].model.parameters())
    copy_bytes = weights * (2 if setting.bf16 else 4)
    return {
        "group": name,
        **dataclasses.asdict(setting),
        "repeats": repeats,
        **machine(on_gpu),
        "baseline": group.contenders[0],
        "copy_bytes": copy_bytes,
        "contenders": rows,
        "bars": [judge(bar, rows, copy_bytes) for bar in group.bars],
    }


def machine(on_gpu: bool) -> dict[str, Any]:
    """The device and the libraries' versions."""
    import torch

    from llm_unlearn.runs.environment import versions

    models = [*re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()), "CPU"]
    name = torch.cuda.get_device_name() if on_gpu else f"{models[0]} (torch threads: {torch.get_num_threads()})"
    return {"device_name": name, "versions": versions()}


def figures_of(row: dict[str, Any], baseline: dict[str, Any], peak_tflops: float | None) -> dict[str, Any]:
    """A contender's figures for the table: ms per step, tokens/s, ratio per token to the baseline, utilisation."""
    second = spread(row["seconds"])
    return {
        "ms_per_step": {key: 1e3 * value / row["steps"] for key, value in second.items()},
        "tokens_per_second": row["tokens"] / second["median"],
        "ratio": spread(ratios(row, baseline)),
        "utilisation": row["flops"] / second["median"] / (peak_tflops * 1e12) if peak_tflops else None,
    }


# ---- reporting


def report(results: list[dict[str, Any]]) -> str:
    """Markdown: a table of each group, then one of all bars."""
    bars = [
        [
            result["group"],
            f"{result['shape']}, {result['device']}{' bf16' * result['bf16']}",
            bar["bar"],
            "–" if bar["value"] is None else quartiles(bar, ".3f"),
            f"{'≥' if bar['measure'] == 'speedup' else '≤'} {bar['limit']:.2f}",
            MET[bar["met"]],
        ]
        for result in results
        for bar in result["bars"]
    ]
    return "\n\n".join(
        [
            LEGEND,
            *map(group_table, results),
            "### Bars",
            markdown(["group", "measured on", "bar", "value", "limit", ""], bars, "lllrrl"),
        ]
    )


def group_table(result: dict[str, Any]) -> str:
    """The table of one group."""
    about = ", ".join(
        [
            result["shape"] + " (tiny)" * result["tiny"],
            result["adapter"],
            f"{result['rows']} rows",
            "bf16" if result["bf16"] else "fp32",
            result["device_name"],
            f"{result['repeats']} rounds",
        ]
    )
    head = ["contender", "ms per step", "tokens/s", f"time per token / {result['baseline']}", "peak MB", "beyond MB"]
    lines = [
        [
            name,
            quartiles(row["ms_per_step"], ",.0f" if row["ms_per_step"]["median"] >= 100 else ".1f"),
            f"{row['tokens_per_second']:,.0f}",
            quartiles(row["ratio"], ".2f"),
            *("–" if row[key] is None else f"{row[key] / 1e6:,.0f}" for key in ("peak", "beyond")),
        ]
        for name, row in result["contenders"].items()
    ]
    if any(row["utilisation"] is not None for row in result["contenders"].values()):
        head.append("utilisation")
        for line, row in zip(lines, result["contenders"].values(), strict=True):
            line.append(f"{row['utilisation']:.1%}")
    return f"### {result['group']}, {about}\n\n" + markdown(head, lines, "l" + "r" * (len(head) - 1))


def markdown(head: list[str], lines: list[list[str]], align: str) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    columns = list(zip(widths, align, strict=True))
    rule = ["-" * (w - 1) + (":" if side == "r" else "-") for w, side in columns]
    return "\n".join(
        "| "
        + " | ".join(
            cell.rjust(w) if side == "r" else cell.ljust(w) for cell, (w, side) in zip(line, columns, strict=True)
        )
        + " |"
        for line in (head, rule, *lines)
    )


def quartiles(figures: dict[str, Any], form: str) -> str:
    """The median, or `value`, and the quartiles where there are any."""
    middle = figures.get("median", figures.get("value"))
    around = "" if figures["q1"] is None else f" [{figures['q1']:{form}}–{figures['q3']:{form}}]"
    return f"{middle:{form}}{around}"


def merge(path: Path, key: str, result: dict[str, Any]) -> None:
    """Write a result to the file under its key; it replaces an older one, and the file is never half written."""
    results = json.loads(path.read_text()) if path.exists() else {}
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(results | {key: result}, indent=1) + "\n")
    os.replace(partial, path)


def key_of(name: str, setting: Any) -> str:
    """A result's key: group/shape/device, then bf16 and tiny if they apply."""
    return "/".join([name, setting.shape, setting.device, *["bf16"] * setting.bf16, *["tiny"] * setting.tiny])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="GROUP", default=GROUPS, help=", ".join(GROUPS))
    parser.add_argument("--shape", nargs="+", default=SHAPES[:2], choices=SHAPES)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--peak-tflops", type=float, help="of the device, for model-FLOPs utilisation")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="toy models and short rows: a test of this script")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results, added to those that are there")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print what is in a file of results")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if args.show:
        print(report(list(json.loads(args.show.read_text()).values())))
        return
    from benchmark_steps import Setting

    from llm_unlearn.runs.environment import calm_libraries

    calm_libraries(quiet=True)
    results = []
    for shape in args.shape:
        for name in args.only:
            group = GROUPS[name]
            setting = Setting(shape, group.adapter, group.rows, group.sets, args.device, args.bf16, args.tiny)
            results.append(measure(name, setting, args.repeats, not args.no_memory, args.peak_tflops))
            if args.json:
                merge(args.json, key_of(name, setting), results[-1])
    print(report(results))


if __name__ == "__main__":
    main()
