"""Whether the steps of a recipe fit their devices, and what to change where they do not."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llm_unlearn.config.recipe import Recipe
from llm_unlearn.config.sections import LoraSection
from llm_unlearn.distributed.topology import Topology
from llm_unlearn.doctor.finding import Finding, size_text
from llm_unlearn.doctor.memory.estimate import TRAINING, Estimate, estimate_steps, largest
from llm_unlearn.errors import InputError

CONTEXT = 2**29  # what the driver and its libraries take of a GPU before the first tensor, about
# Of a device's memory, from which on an allocator's losses may be too much: glibc keeps a fifth and more of what is
# freed (scripts/measure_memory.py --default-malloc)
TIGHT_GPU, TIGHT_CPU = 0.9, 0.78


@dataclass(frozen=True)
class Suggestion:
    """One change and what it gives. `together`: with all those before it."""

    change: str
    step: str
    total: int
    host: int
    fits: bool
    together: bool = False


def capacity(found: dict[str, Any], topology: Topology) -> int | None:
    """Bytes that one process can have on its device; None where the topology asks for GPUs and there is none here.

    Args:
        found: as machine.devices gives it.
    """
    if topology.use_cpu or (not found["gpus"] and topology.processes == 1):
        return found["ram_available_bytes"] // max(1, topology.processes // topology.machines)
    return min(gpu["bytes"] for gpu in found["gpus"]) - CONTEXT if found["gpus"] else None


def check_memory(
    recipe: Recipe, topology: Topology, found: dict[str, Any], limit: int | None = None
) -> tuple[list[Estimate], list[Suggestion], list[Finding]]:
    """The estimate of every step, what to change if the largest does not fit, and findings.

    Args:
        limit: bytes of a device, by default what there is.
    Raises:
        InputError: see estimate_steps.
    """
    on_gpu = not topology.use_cpu and (bool(found["gpus"]) or topology.processes > 1)
    limit = capacity(found, topology) if limit is None else limit
    estimates = estimate_steps(recipe, topology, on_gpu)
    most = largest(estimates)
    what = f"the largest step ({_named(most.step)}) takes {size_text(most.total)} on a device"
    suggestions: list[Suggestion] = []
    if limit is None:
        findings = [Finding("memory", "note", f"{what}; no GPU is here to compare it with")]
    elif most.total <= (tight := round((TIGHT_GPU if on_gpu else TIGHT_CPU) * limit)):
        findings = [Finding("memory", "ok", f"{what}, where {size_text(limit)} are free")]
    else:
        over = most.total > limit
        suggestions = suggest(recipe, topology, most, tight, on_gpu, len(found["gpus"]))
        findings = [
            Finding(
                "memory",
                "problem" if over else "warning",
                f"{what}, where {size_text(limit)} are free" + ("" if over else ": tight"),
                _advice(suggestions),
            )
        ]
    if (host := max(estimate.host for estimate in estimates)) > found["ram_available_bytes"]:
        free = size_text(found["ram_available_bytes"])
        findings.append(
            Finding(
                "memory",
                "problem",
                f"{size_text(host)} are offloaded to the memory of each machine, where {free} are free",
                "take more machines, or offload less (the optimizer alone)",
            )
        )
    if topology.share("weights") < 1:
        findings.append(_whole(estimates, topology, limit))
    return estimates, suggestions, findings


def _whole(estimates: list[Estimate], topology: Topology, limit: int | None) -> Finding:
    """What a process holds before training shards it: the model, and a frozen copy where a method has one."""
    share = topology.share("weights")
    whole = max(round((estimate.device["weights"] + estimate.device["reference"]) / share) for estimate in estimates)
    what = f"until training shards them, each process holds all weights itself: {size_text(whole)}"
    if limit is None or whole <= limit:
        return Finding("memory", "note", what)
    return Finding(
        "memory",
        "problem",
        f"{what}, where {size_text(limit)} are free",
        "take larger devices, or model.quantization=4bit",
    )


def suggest(
    recipe: Recipe, topology: Topology, most: Estimate, limit: int, on_gpu: bool, gpus: int
) -> list[Suggestion]:
    """Each change alone with what it gives, in the order in which to try them; where none is enough, all of them one
    after the other until it fits.

    Args:
        most: the largest step. limit: bytes that it may take. gpus: how many there are here.
    """
    found, alone, together = [], [], (recipe, topology)
    for change, apply in changes(recipe, topology, most, gpus if on_gpu else None):
        estimate = _estimate(apply((recipe, topology)), most.step, on_gpu)
        if estimate is None or estimate.total >= most.total:
            continue
        found.append(apply)
        alone.append(Suggestion(change, most.step, estimate.total, estimate.host, estimate.total <= limit))
    if not alone or any(suggestion.fits for suggestion in alone):
        return alone
    joint = []
    for number, (suggestion, apply) in enumerate(zip(alone, found, strict=True)):
        if any(_field(later.change) == _field(suggestion.change) for later in alone[number + 1 :]):
            continue  # a stronger one of the same kind follows
        together = apply(together)
        estimate = _estimate(together, most.step, on_gpu)
        if estimate is None:
            break
        fits = estimate.total <= limit
        joint.append(Suggestion(suggestion.change, most.step, estimate.total, estimate.host, fits, together=True))
        if fits:
            break
    return [*alone, *joint]


Subject = tuple[Recipe, Topology]
Change = tuple[str, Callable[[Subject], Subject]]


def changes(recipe: Recipe, topology: Topology, most: Estimate, gpus: int | None) -> Iterator[Change]:
    """What can be changed, as one would write it on the command line, and how: first what changes no result, then
    what changes precision, then what trains less.

    Args:
        gpus: how many there are here; None where the devices are CPUs, from which nothing can be offloaded.
    """
    name = "train" if most.step == TRAINING else "unlearn"
    section = getattr(recipe, name)
    rows, times = section.batch_size, section.gradient_accumulation_steps
    while rows > topology.processes and rows % (2 * topology.processes) == 0:
        rows, times = rows // 2, times * 2
        if rows in (section.batch_size // 2, topology.processes) or rows % (2 * topology.processes):
            yield (
                f"{name}.batch_size={rows} {name}.gradient_accumulation_steps={times}",
                _section(name, batch_size=rows, gradient_accumulation_steps=times),
            )
    if recipe.track == "language":
        if not recipe.model.gradient_checkpointing:
            yield "model.gradient_checkpointing=true", _section("model", gradient_checkpointing=True)
        held = gpus is not None and most.device["reference"] and not recipe.model.lora
        if held and most.step != "task_arithmetic" and topology.sharding != "fsdp2":
            yield f"unlearn.methods.{most.step}.offload_reference=true", _option(most.step, offload_reference=True)
    if gpus is not None and recipe.track == "language":
        yield from _engines(topology, gpus, _refused(most.step))
    if not recipe.train.bf16:
        yield "train.bf16=true", _section("train", bf16=True)
    if recipe.track == "vision":
        return
    if recipe.train.optim.startswith("adamw_torch") and not topology.is_deepspeed:
        yield "train.optim=paged_adamw_8bit", _section("train", optim="paged_adamw_8bit")
    if recipe.model.dtype == "float32":
        yield "model.dtype=bfloat16", _section("model", dtype="bfloat16")
    if recipe.model.lora is None:
        yield "model.lora={}", _section("model", lora=LoraSection())
    if recipe.model.quantization == "none":
        adapter = {} if recipe.model.lora else {"lora": LoraSection()}
        yield (
            "model.quantization=4bit" + ("" if recipe.model.lora else " model.lora={}"),
            _section("model", quantization="4bit", **adapter),
        )
    half = recipe.data.max_length // 2
    if half >= 32 and (recipe.data.task == "classification" or half > recipe.evaluate.max_new_tokens):
        yield f"data.max_length={half} (and data.max_words to suit)", _section("data", max_length=half)


def _refused(step: str) -> set[str]:
    """Of "fsdp" and "deepspeed", what a step cannot run under."""
    from llm_unlearn.trainers import METHODS

    return set(METHODS[step][0].refuses) if step in METHODS else set()


def _engines(topology: Topology, gpus: int, refused: set[str]) -> Iterator[Change]:
    """Sharding over the GPUs that there are or that the config speaks of, then offloading."""
    processes = max(gpus, topology.processes)
    if processes > 1 and topology.share("weights") == 1:
        for name in ("fsdp2", "zero3"):
            if ("fsdp" if name == "fsdp2" else "deepspeed") in refused:
                continue
            yield (
                f"--accelerate-config accelerate_configs/{name}.yaml",
                lambda s, name=name: (s[0], dataclasses.replace(s[1], processes=processes, sharding=name)),
            )
    if not topology.offload_weights and "deepspeed" not in refused:
        yield (
            "--accelerate-config accelerate_configs/zero3_offload.yaml",
            lambda s: (
                s[0],
                dataclasses.replace(
                    s[1], processes=processes, sharding="zero3", offload_optimizer=True, offload_weights=True
                ),
            ),
        )


def _section(name: str, **values: Any) -> Callable[[Subject], Subject]:
    def apply(subject: Subject) -> Subject:
        recipe, topology = subject
        kept = {key: value for key, value in values.items() if key != "lora" or recipe.model.lora is None}
        section = getattr(recipe, name).changed(**kept)
        return recipe.changed(**{name: section}), topology

    return apply


def _option(method: str, **values: Any) -> Callable[[Subject], Subject]:
    def apply(subject: Subject) -> Subject:
        recipe, topology = subject
        methods = {**recipe.unlearn.methods, method: {**(recipe.unlearn.methods[method] or {}), **values}}
        return recipe.changed(unlearn=recipe.unlearn.changed(methods=methods)), topology

    return apply


def _estimate(subject: Subject, step: str, on_gpu: bool) -> Estimate | None:
    """The estimate of one step; None where the change cannot be made to this recipe."""
    try:
        return estimate_steps(*subject, on_gpu, only=step)[0]
    except InputError:
        return None


def _field(change: str) -> str:
    """What a change sets first: of two that set the same the later one is the stronger."""
    return change.partition("=")[0] if "=" in change else change.partition(" ")[0]


def _advice(suggestions: list[Suggestion]) -> str:
    if not suggestions:
        return "take a larger device: nothing that is known here makes it smaller"
    if enough := [s for s in suggestions if s.fits and not s.together]:
        return f"{enough[0].change} is enough ({size_text(enough[0].total)}); all that helps is listed below"
    joint = [s for s in suggestions if s.together]
    if joint and joint[-1].fits:
        all_of_them = " ".join(s.change for s in joint)
        return f"no single change is enough; together {all_of_them} are ({size_text(joint[-1].total)})"
    return "take a larger device, or more of them: all changes below together are not enough"


def _named(step: str) -> str:
    return "training" if step == TRAINING else step
