"""What one GPU shows of this toolkit in nine minutes: a CPU's numbers, host syncs, speed, memory, engines.

    python scripts/gpu_check.py --json gpu.jsonl                  # every section
    python scripts/gpu_check.py --sections ceilings,parity        # some of them; lines are added to the file
    python scripts/gpu_check.py --device cpu --tiny               # tries the script itself

Each section runs in a process of its own and is ended when its share of --limit is used up; what a short one leaves
goes to those after it. Where there are CPUs enough, those that measure no time run beside each other, parity in as
many processes as --jobs says. A figure is a line of JSON that is written as soon as it is known, so that what was
measured before a section, or all of it, was cut off is kept. A line says `ok` where there is a bar. The exit code is
0 if no line failed, no bar was missed and no section was cut off. docs/scaling.md says how to read the lines.
"""

import argparse
import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# section → its share of the time: seconds as planned for an H200 with 16 slow cores, of parity with ten jobs
SECTIONS = {
    "ceilings": 20,
    "parity": 70,
    "syncs": 45,
    "engines": 90,
    "steps": 140,
    "variants": 120,
    "large": 110,
    "qlora": 30,
}
UNTIMED = ("parity", "syncs", "engines")
MOST_JOBS = 10
RUNNING: set[subprocess.Popen] = set()
# the card's name → TFLOP/s in bf16 without sparsity, by its data sheet; of another, what `ceilings` measures
PEAKS = {"H100": 989.0, "H200": 989.0, "B200": 2250.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "A10": 125.0}


@dataclass(frozen=True)
class Report:
    """Where the figures of a section go.

    Args:
        section: its name.
        path: the file of JSON lines.
    """

    section: str
    path: Path

    def add(self, name: str, **figures: Any) -> None:
        """Write one line: {"section", "name", **figures}."""
        with self.path.open("a") as file:
            file.write(json.dumps({"section": self.section, "name": name, **figures}) + "\n")
        shown = ", ".join(f"{key} {v:.4g}" if isinstance(v, float) else f"{key} {v}" for key, v in figures.items())
        print(f"{self.section:9} {name:34} {shown}", flush=True)

    def trying(self, name: str, measure: Callable[[], None]) -> None:
        """Measure; what goes wrong becomes a line, and the section goes on."""
        try:
            measure()
        except Exception as error:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if str(ROOT) in f.filename]
            at = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-3:]]
            self.add(name, failed=f"{type(error).__name__}: {str(error)[:300]}", at=at)
        gc.collect()
        if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
            torch.cuda.empty_cache()


def lines_of(path: Path, start: int = 0) -> list[dict[str, Any]]:
    """The lines of a file from a byte on; one that was cut off is left out."""
    found = []
    for line in path.read_bytes()[start:].splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def run_section(name: str, args: argparse.Namespace) -> None:
    """Measure a section in this process."""
    sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests")]
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    import gpu_check_numbers
    import gpu_check_speed

    from llm_unlearn.runs.environment import calm_libraries

    calm_libraries(quiet=True)
    module = gpu_check_numbers if hasattr(gpu_check_numbers, name) else gpu_check_speed
    getattr(module, name)(Report(name, args.json), args)


def start_section(name: str, args: argparse.Namespace, seconds: float, part: int = 0, parts: int = 1) -> int | str:
    """The exit code of a section or a part of it in a process of its own, or "cut off"; its children end with it."""
    flags = ["--section", name, "--device", args.device, "--json", str(args.json), *["--tiny"] * args.tiny]
    flags += ["--jobs", str(args.jobs), "--part", str(part), "--parts", str(parts)]
    flags += [*(["--methods", ",".join(args.methods)] if args.methods else [])]
    flags += [*(["--peak-tflops", str(args.peak_tflops)] if args.peak_tflops else [])]
    process = subprocess.Popen([sys.executable, __file__, *flags], cwd=ROOT, start_new_session=True)
    RUNNING.add(process)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return "cut off"
    finally:
        end(process)
        RUNNING.discard(process)


def end(process: subprocess.Popen) -> None:
    """End a section and its children, those first that torchrun has put into sessions of their own."""
    deadline = time.monotonic() + 5
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            process.poll()  # or what is left of it would count as there
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def share(name: str, jobs: int) -> float:
    """A section's share of the time."""
    return SECTIONS[name] * (MOST_JOBS / jobs if name == "parity" else 1)


def waves(sections: list[str], jobs: int) -> list[list[str]]:
    """The sections in their order, those that run at the same time together."""
    found: list[list[str]] = []
    for name in sections:
        beside = jobs > 1 and found and {name, *found[-1]} <= set(UNTIMED)
        found[-1:] = [[*found[-1], name]] if beside else [*found[-1:], [name]]
    return found


def run_wave(wave: list[str], args: argparse.Namespace, seconds: float) -> list[str]:
    """Run sections at the same time, each but parity in one process; says which did not end by themselves."""
    parts = [(name, part, n) for name in wave for n in [args.jobs if name == "parity" else 1] for part in range(n)]
    start, ended, took = time.monotonic(), dict[str, int | str](), dict[str, float]()

    def run(at: tuple[str, int, int]) -> None:
        name, *part = at
        ended[name] = start_section(name, args, seconds, *part) or ended.get(name, 0)
        took[name] = time.monotonic() - start

    with ThreadPoolExecutor(len(parts)) as pool:
        try:
            list(pool.map(run, parts))
        except BaseException:  # Ctrl-C is told to this thread alone
            for process in list(RUNNING):
                end(process)
            raise
    for name in wave:
        Report(name, args.json).add("section", seconds=took[name], ended=ended[name])
    return [f"{name} ({ended[name]})" for name in wave if ended[name]]


def names_of(text: str) -> list[str]:
    """Names separated by commas."""
    return [name for name in text.split(",") if name]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", type=names_of, default=list(SECTIONS), help=",".join(SECTIONS))
    parser.add_argument("--methods", type=names_of, help="only these, where a section goes through methods")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="toy models and short rows: a test of this script")
    parser.add_argument("--limit", type=float, default=540, help="seconds for all sections (default: 540)")
    parser.add_argument("--peak-tflops", type=float, help="of the device, for model-FLOPs utilisation")
    parser.add_argument("--json", type=Path, default=Path("gpu_check.jsonl"), help="lines are added to it")
    parser.add_argument("--jobs", type=int, help="processes of parity at a time (default: CPUs but six, at most ten)")
    parser.add_argument("--part", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--parts", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--section", choices=SECTIONS, help="one section, in this process and without a limit")
    args = parser.parse_args(arguments)
    args.json = args.json.absolute()
    args.jobs = max(1, args.jobs or min(MOST_JOBS, (os.cpu_count() or 1) - 6))
    for name in args.sections:
        if name not in SECTIONS:
            parser.error(f"--sections: {name!r} is none of {', '.join(SECTIONS)}")
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    if args.section:
        run_section(args.section, args)
        return 0
    began, before, wrong = time.monotonic(), args.json.stat().st_size if args.json.exists() else 0, []
    all_waves = waves(args.sections, args.jobs)
    for i, wave in enumerate(all_waves):
        left = args.limit - (time.monotonic() - began)
        shares = [max(share(name, args.jobs) for name in each) for each in all_waves[i:]]
        wrong += run_wave(wave, args, left * shares[0] / sum(shares))
    lines = lines_of(args.json, before)
    wrong += [f"{x['section']}: {x['name']}" for x in lines if "failed" in x or x.get("ok") is False]
    print(f"{len(lines)} lines in {args.json}; {len(wrong)} wrong{': ' * bool(wrong)}{', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
