"""Versions against what the package declares, and devices: GPUs, cores, memory, disk."""

import contextlib
import os
import platform
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from llm_unlearn.config.recipe import Recipe
from llm_unlearn.distributed.topology import Topology
from llm_unlearn.doctor.finding import Finding, Level, size_text
from llm_unlearn.doctor.memory.workload import is_of_images

PACKAGE = "llm_unlearn"
EXTRA_OF = {"bitsandbytes": "quantization", "deepspeed": "deepspeed", "torchvision": "vision", "scikit-learn": "vision"}
DEV = "dev"  # an extra for those who work on this package
GIB = 2**30
BUILD_MINUTES = 15  # no operator takes as long to compile; most take one


# ---- versions


def needed_extras(recipe: Recipe | None, topology: Topology) -> dict[str, str]:
    """Optional packages that a recipe needs → what for."""
    needs = {"deepspeed": f"the accelerate config ({topology.sharding})"} if topology.is_deepspeed else {}
    if recipe is None:
        return needs
    if is_of_images(recipe):
        if recipe.data.source == "digits" and not recipe.data.files:
            needs["scikit-learn"] = "data.source: digits"
        if recipe.data.source.startswith("torchvision/"):
            needs["torchvision"] = f"data.source: {recipe.data.source}"
        if recipe.model.path is None and recipe.model.architecture not in ("small_cnn", "linear"):
            needs["torchvision"] = f"model.architecture: {recipe.model.architecture}"
    elif recipe.model.quantization != "none":
        needs["bitsandbytes"] = f"model.quantization: {recipe.model.quantization}"
    elif recipe.stress and recipe.stress.quantization:
        needs["bitsandbytes"] = "stress.quantization"
    if any(part in recipe.train.optim for part in ("bnb", "8bit", "paged", "lion", "ademamix")):
        needs["bitsandbytes"] = f"train.optim: {recipe.train.optim}"
    return needs


def check_versions(
    recipe: Recipe | None = None, topology: Topology | None = None, requirements: list[str] | None = None
) -> tuple[dict[str, str | None], list[Finding]]:
    """({package: installed version, None where absent}, findings).

    Args:
        recipe: the recipe whose optional packages must be installed; None if there is no recipe.
        topology: how the run is spread over processes; by default one process.
        requirements: as `pyproject.toml` writes them; by default those of the installed package.
    """
    from packaging.requirements import Requirement

    needs = needed_extras(recipe, topology or Topology())
    declared = metadata.requires(PACKAGE) or [] if requirements is None else requirements
    found: dict[str, str | None] = {}
    findings, count = [], 0
    for requirement in map(Requirement, declared):
        name, marker = requirement.name, str(requirement.marker or "")
        if DEV in marker or name in found:
            continue
        optional = "extra" in marker
        version = found[name] = _version(name)
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        count += fits
        if not fits and (not optional or name in needs or version is not None):
            findings.append(_misfit(name, version, str(requirement.specifier), optional, needs.get(name)))
        elif version is None:
            unused = ", and this recipe does not need it" if recipe else ""
            install = f"pip install 'llm_unlearn[{EXTRA_OF[name]}]' if you want it" if name in EXTRA_OF else None
            findings.append(Finding("versions", "note", f"{name} is not installed; it is optional{unused}", install))
    what = (
        f"Python {platform.python_version()}, {count} packages within the ranges of pyproject.toml; "
        f"torch {found.get('torch')}, transformers {found.get('transformers')}"
    )
    return found, [Finding("versions", "ok", what), *findings]


def _misfit(name: str, version: str | None, wanted: str, optional: bool, need: str | None) -> Finding:
    extra = f"llm_unlearn[{EXTRA_OF[name]}]" if name in EXTRA_OF else f"{name}{wanted}"
    what = f"{name} is not installed" if version is None else f"{name} {version} is not within {wanted}"
    if need:
        what += f", and this recipe needs it ({need})"
    level: Level = "warning" if optional and not need else "problem"
    return Finding("versions", level, what, f"pip install '{extra if version is None else name + wanted}'")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_builds(topology: Topology) -> list[Finding]:
    """Locks of builds in the folder where torch compiles DeepSpeed's operators, which a killed launch leaves there: the
    next one waits for them without end.
    """
    if not topology.is_deepspeed:
        return []
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    findings = []
    for lock in sorted([*root.glob("*/lock"), *root.glob("*/*/lock")]):
        minutes = (time.time() - lock.stat().st_mtime) / 60
        what = (
            f"{lock}: left {minutes:.0f} minutes ago by a build of {lock.parent.name}; a launch waits until it is gone"
        )
        level: Level = "problem" if minutes > BUILD_MINUTES else "warning"
        findings.append(Finding("deepspeed", level, what, f"unless a build is under way, rm {lock}"))
    return findings


# ---- devices


def devices(output_dir: str | None) -> dict[str, Any]:
    """{"gpus": [{"name", "bytes"}], "cpu_cores", "ram_bytes", "ram_available_bytes", "disk_free_bytes"}."""
    import torch

    cards = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ram = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), _container_limit())
    return {
        "gpus": [{"name": card.name, "bytes": card.total_memory} for card in cards],
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "ram_bytes": ram,
        "ram_available_bytes": min(ram, _available()),
        "disk_free_bytes": None if output_dir is None else shutil.disk_usage(_existing(output_dir)).free,
    }


def check_devices(found: dict[str, Any], recipe: Recipe | None, topology: Topology) -> list[Finding]:
    """What there is, and whether the topology and the recipe's precision can be had on it."""
    gpus = found["gpus"]
    listed = "; ".join(f"{gpu['name']}, {gpu['bytes'] / GIB:.0f} GiB" for gpu in gpus) or "no GPU"
    what = (
        f"{listed}; {found['cpu_cores']} CPU cores, {found['ram_bytes'] / GIB:.1f} GiB of memory "
        f"({found['ram_available_bytes'] / GIB:.1f} free)"
    )
    if found["disk_free_bytes"] is not None:
        what += f"; {size_text(found['disk_free_bytes'])} free for the output directory"
    findings = [Finding("devices", "ok", what)]
    per_machine = topology.processes // topology.machines
    if not topology.use_cpu and topology.processes > 1 and len(gpus) < per_machine:
        what = f"the accelerate config starts {per_machine} processes on a machine, one GPU each; here are {len(gpus)}"
        remedy = "run it on a machine that has them, or set num_processes"
        findings.append(Finding("devices", "warning", what, remedy))
    asked = [name for name in ("train", "evaluate") if recipe is not None and getattr(recipe, name).bf16]
    if asked and gpus and not topology.use_cpu:
        import torch

        if not torch.cuda.is_bf16_supported(including_emulation=False):
            for name in asked:
                what = f"{name}.bf16: {gpus[0]['name']} does not compute in bfloat16"
                findings.append(Finding("devices", "problem", what, f"{name}.bf16=false"))
    return findings


def check_disk(free: int | None, needed: int, output_dir: str) -> Finding | None:
    """Whether what a run writes fits."""
    if free is None:
        return None
    what = f"the run writes about {size_text(needed)} to {output_dir}, where {size_text(free)} are free"
    if needed <= free:
        return Finding("disk", "ok", what)
    return Finding("disk", "problem", what, "set output_dir to a larger disk, or take fewer seeds, methods or budgets")


def _existing(path: str) -> Path:
    """The nearest folder above a path that is there."""
    folder = Path(path).expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def _container_limit() -> int:
    """Bytes that a container may use; no limit where it has none of its own."""
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # absent, or "max"
            return int(Path(name).read_text())
    return sys.maxsize


def _available() -> int:
    """Bytes of memory that are free or can be freed; no limit where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return sys.maxsize
