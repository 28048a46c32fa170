"""Measure how the cost of unlearning grows with the model, the text length, the forget set and the processes.

    python scripts/benchmark_growth.py --json scripts/benchmarks/growth.json --plot scripts/benchmarks/growth.png
    python scripts/benchmark_growth.py --only length --methods kl
    python scripts/benchmark_growth.py --show scripts/benchmarks/growth.json --plot growth.png   # measures nothing

Each point is a short run of a trainer in processes of its own. It gives the seconds of a step (median, without the
first), the seconds before the first step (encoding, the reference's log-probabilities), and the peak memory of the
first process, as in benchmark_memory.py. The model is a Llama with hidden size 256, 4 layers and a vocabulary of
32,000; the batch is 8 + 8 rows; on CPUs each process has one thread.
"""

import argparse
import dataclasses
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark import markdown

METHODS = ["gradient_descent", "grad_diff", "npo", "kl"]  # the first is plain fine-tuning, on as many rows
LABELS = {"gradient_descent": "fine-tuning"}
ARCHITECTURE = {
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
VOCABULARY, BATCH, STEPS, TINY_VOCABULARY = 32_000, 8, 4, 96


@dataclass(frozen=True)
class Point:
    """One measurement.

    Args:
        axis: what grows. hidden, layers: of the model. tokens: of each text. rows: of the forget set, of which a pass
            is taken; None: as many as STEPS steps take. processes, engine: how it is launched; the batch of a step is
            of all processes.
    """

    axis: str
    method: str
    hidden: int = 256
    layers: int = 4
    tokens: int = 128
    rows: int | None = None
    processes: int = 1
    engine: str | None = None
    tiny: bool = False

    @property
    def forget_rows(self) -> int:
        """How many rows the forget set has."""
        return BATCH * STEPS if self.rows is None else self.rows


def points(axis: str, methods: list[str], tiny: bool = False) -> list[Point]:
    """All of an axis, smallest first."""
    grown: dict[str, list[dict[str, Any]]] = {
        "model": [{"hidden": h, "layers": n} for h, n in ((128, 2), (192, 3), (256, 4), (384, 6))],
        "length": [{"tokens": t} for t in (64, 128, 256, 512)],
        "forget set": [{"rows": n, "tokens": 32} for n in (32, 64, 128, 256)],
        "processes": [
            {"processes": p, "engine": engine}
            for engine, p in ((None, 1), ("cpu_ddp", 2), ("cpu_ddp", 4), ("cpu_zero3", 2), ("cpu_zero3", 4))
        ],
    }
    small = {"hidden": 16, "layers": 1, "tokens": 8, "tiny": True} if tiny else {}
    return [Point(axis, method, **(change | small)) for change in grown[axis] for method in methods]


AXES = ("model", "length", "forget set", "processes")
X_OF = {
    "model": ("parameters", "parameters"),
    "length": ("tokens", "tokens per text"),
    "forget set": ("rows", "rows of the forget set"),
    "processes": ("processes", "processes"),
}


# ---- in the processes of a point


def take(point: Point, folder: str) -> dict[str, Any]:
    """{"parameters", "prepare", "step", "train"} of a run of a trainer, seconds; in every process of the point."""
    import torch
    from transformers import AutoModelForCausalLM, TrainerCallback

    from llm_unlearn.data.collators import CausalLMCollator
    from llm_unlearn.models.make import make_config
    from llm_unlearn.trainers import METHODS

    vocabulary = TINY_VOCABULARY if point.tiny else VOCABULARY
    fields = {
        **ARCHITECTURE,
        "hidden_size": point.hidden,
        "num_hidden_layers": point.layers,
        "intermediate_size": 43 * point.hidden // 16,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(fields, vocabulary), dtype=torch.float32)
    parameters = sum(p.numel() for p in model.parameters())
    plain = point.method == "gradient_descent"
    rows = rows_of(point, vocabulary, seed=1), rows_of(point, vocabulary, seed=2)
    config, trainer_class = METHODS[point.method]
    args = config(
        output_dir=folder,
        per_device_train_batch_size=BATCH * (1 + plain) // point.processes,
        use_cpu=True,
        max_steps=-(-point.forget_rows // BATCH),
        learning_rate=1e-6,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        dataloader_pin_memory=False,
        logging_strategy="no",
    )
    seconds = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_, **__):
            seconds.append(time.perf_counter())

        def on_step_end(self, *_, **__):
            seconds[-1] = time.perf_counter() - seconds[-1]

    start = time.perf_counter()
    trainer = trainer_class(
        model=model,
        args=args,
        forget_dataset=rows[0],
        retain_dataset=rows[1],
        data_collator=CausalLMCollator(0),
        callbacks=[Watch()],
    )
    del model
    prepared = time.perf_counter()
    trainer.train()
    return {
        "parameters": parameters,
        "prepare": prepared - start,
        "step": statistics.median(seconds[1:]),
        "train": time.perf_counter() - prepared,
    }


def rows_of(point: Point, vocabulary: int, seed: int) -> Any:
    """Random tokens, all of one length: twice the forget set, which is what fine-tuning takes of both sets."""
    import numpy as np
    from datasets import Dataset

    ids = np.random.default_rng(seed).integers(2, vocabulary, size=(2 * point.forget_rows, point.tokens)).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def measure_here(point: Point) -> dict[str, Any]:
    """`take`, and the peak of this process beyond the libraries' memory."""
    from benchmark_memory import level
    from measure_memory import resident
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from llm_unlearn.distributed.processes import Processes
    from llm_unlearn.runs.environment import calm_libraries

    calm_libraries(quiet=True)
    Processes.start()
    with tempfile.TemporaryDirectory() as folder:
        small = dataclasses.replace(point, hidden=16, layers=1, tokens=8, rows=None, tiny=True)
        take(small, f"{folder}/warm")
        unset_hf_deepspeed_config()  # or DeepSpeed would partition the next model while it is made
        gc.collect()
        before = level(on_gpu=False)
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        found = take(point, f"{folder}/run")
        return {**found, "peak": resident("VmHWM") - before}


# ---- all points


def measure(point: Point) -> dict[str, Any]:
    """A point's fields and figures, in seconds and bytes."""
    from benchmark_memory import ALLOCATOR

    root = Path(__file__).parents[1]
    launcher = (
        []
        if point.engine is None
        else [
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            f"accelerate_configs/{point.engine}.yaml",
            "--num_processes",
            str(point.processes),
        ]
    )
    environment = {
        **os.environ,
        **ALLOCATOR,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [sys.executable, "-W", "ignore", *launcher, __file__, "--here", json.dumps(dataclasses.asdict(point))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
    if done.returncode:
        raise RuntimeError(f"{point}: {done.stderr[-2000:]}")
    figures = next(line.split(" ", 1)[1] for line in done.stdout.splitlines() if line.startswith("MEASURED "))
    return {**dataclasses.asdict(point), "rows": point.forget_rows, **json.loads(figures)}


def series(results: list[dict[str, Any]], axis: str) -> dict[str, list[dict[str, Any]]]:
    """The results of an axis by method (and engine), sorted by the quantity that grows."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        if result["axis"] == axis:
            engine = (result["engine"] or "").removeprefix("cpu_")
            name = LABELS.get(result["method"], result["method"])
            found.setdefault(f"{name}, {engine}" if engine else name, []).append(result)
    key = X_OF[axis][0]
    return {name: sorted(line, key=lambda result: result[key]) for name, line in found.items()}


def table(results: list[dict[str, Any]], axis: str) -> str:
    """Markdown: a row per point, in the order of measurement."""
    key, label = X_OF[axis]
    lines = [
        [
            name,
            f"{result[key]:,}",
            f"{1e3 * result['step']:,.0f}",
            f"{result['prepare']:.2f}",
            f"{result['train']:.1f}",
            f"{result['peak'] / 1e6:,.0f}",
        ]
        for name, line in series(results, axis).items()
        for result in line
    ]
    head = ["run", label, "ms per step", "s before training", "s of training", "peak MB"]
    return f"### {axis}\n\n" + markdown(head, lines, "lrrrrr")


def curves(results: list[dict[str, Any]], axis: str) -> dict[str, list[dict[str, Any]]]:
    """As `series`; the line of an engine starts at one process without the engine."""
    lines = series(results, axis)
    alone = {name: line for name, line in lines.items() if line[0]["engine"] is None}
    engines = {name: alone.get(name.split(",")[0], []) + line for name, line in lines.items() if name not in alone}
    return engines or alone


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Plot time above memory, a column per axis; all start at 0, so a line through the corner means proportion."""
    from matplotlib.figure import Figure

    grown = [axis for axis in AXES if any(result["axis"] == axis for result in results)]
    figure = Figure(figsize=(3.6 * len(grown) + 0.4, 6.4), layout="constrained")
    panels = figure.subplots(2, len(grown), squeeze=False)
    for (above, below), axis in zip(panels.T, grown, strict=True):
        key, label = X_OF[axis]
        of_time, unit = "train" if axis == "forget set" else "step", 1e6 if key == "parameters" else 1
        for name, line in curves(results, axis).items():
            x = [result[key] / unit for result in line]
            above.plot(x, [result[of_time] for result in line], marker="o", markersize=4, label=name)
            below.plot(x, [result["peak"] / 1e6 for result in line], marker="o", markersize=4)
        above.set(title=axis, ylabel="s of one pass" if of_time == "train" else "s per step")
        below.set(xlabel="million parameters" if unit > 1 else label, ylabel="peak MB per process")
        for panel in (above, below):
            panel.set_xlim(left=0)
            panel.set_ylim(bottom=0)
            panel.set_xticks(sorted({round(result[key] / unit) for result in results if result["axis"] == axis}))
            panel.grid(True, alpha=0.3)
        above.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def save(results: list[dict[str, Any]], path: Path) -> None:
    """Write all points so far and the machine; the file is never half written."""
    from benchmark import machine

    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps({**machine(False), "points": results}, indent=1) + "\n")
    os.replace(partial, path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=AXES, default=AXES, metavar="AXIS", help=", ".join(AXES))
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD")
    parser.add_argument("--json", type=Path, metavar="FILE", help="points are added to those that are there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them")
    parser.add_argument("--show", type=Path, metavar="FILE", help="take the points of a file; measures nothing")
    parser.add_argument("--tiny", action="store_true", help="toy models: a test of this script")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.here:
        found = measure_here(Point(**json.loads(args.here)))
        if os.environ.get("RANK", "0") == "0":
            print("MEASURED", json.dumps(found), flush=True)
        return
    source = args.show or args.json
    results = json.loads(source.read_text())["points"] if source and source.exists() else []
    known = {Point(**{field.name: result[field.name] for field in dataclasses.fields(Point)}) for result in results}
    for axis in () if args.show else args.only:
        for point in points(axis, args.methods, args.tiny):
            if dataclasses.replace(point, rows=point.forget_rows) in known:
                continue
            print(point, file=sys.stderr, flush=True)
            results.append(measure(point))
            if args.json:
                save(results, args.json)
    if args.plot:
        draw(results, args.plot)
    print("\n\n".join(table(results, axis) for axis in AXES if any(r["axis"] == axis for r in results)))


if __name__ == "__main__":
    main()
