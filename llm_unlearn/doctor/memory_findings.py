"""Whether the steps of a recipe fit their devices, and what to change where they do not."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from llm_unlearn.config.recipe import Recipe, build_recipe
from llm_unlearn.config.strict import set_override
from llm_unlearn.distributed.topology import Topology
from llm_unlearn.doctor.finding import Finding, Level, size_text
from llm_unlearn.doctor.memory.estimate import TRAINING, Estimate, estimate_steps, largest, stays_whole
from llm_unlearn.errors import InputError
from llm_unlearn.runs.tracks import track_of

CONTEXT = 2**29  # what the driver and its libraries take of a GPU before the first tensor, about
# Of a device's memory, from which on an allocator's losses may be too much: glibc keeps a fifth and more of what is
# freed (scripts/measure_memory.py --default-malloc)
TIGHT_GPU, TIGHT_CPU = 0.9, 0.78


@dataclass(frozen=True)
class Suggestion:
    """One change and what it gives.

    Args:
        change: the change, as one would write it on the command line.
        step: the step that it concerns, "train" or the name of a method.
        total: bytes of that step on one device after the change.
        host: bytes offloaded to the memory of one machine after it.
        fits: whether the step then fits the device.
        together: whether the figures include every `together` change that is listed before it.
    """

    change: str
    step: str
    total: int
    host: int
    fits: bool
    together: bool = False


def capacity(found: dict[str, Any], topology: Topology) -> int | None:
    """Bytes that one process can have on its device; None where the topology asks for GPUs and there is none here.

    Args:
        found: the devices of this machine, as machine_findings.devices gives them.
        topology: how the run is spread over processes.
    """
    if topology.use_cpu or (not found["gpus"] and topology.processes == 1):
        return found["ram_available_bytes"] // max(1, topology.processes // topology.machines)
    return min(gpu["bytes"] for gpu in found["gpus"]) - CONTEXT if found["gpus"] else None


def check_memory(
    recipe: Recipe, topology: Topology, found: dict[str, Any], limit: int | None = None
) -> tuple[list[Estimate], list[Suggestion], list[Finding]]:
    """The estimate of every step, what to change if the largest does not fit, and findings.

    Args:
        recipe: the recipe whose steps are estimated.
        topology: how the run is spread over processes.
        found: the devices of this machine, as machine_findings.devices gives them.
        limit: bytes that one process can have on its device; by default what `capacity` finds.

    Raises:
        InputError: see estimate_steps.
    """
    on_gpu = not topology.use_cpu and (bool(found["gpus"]) or topology.processes > 1)
    limit = capacity(found, topology) if limit is None else limit
    estimates = estimate_steps(recipe, topology, on_gpu)
    most = largest(estimates)
    what = f"the largest step ({_named(most.step)}) needs {size_text(most.total)} on a device"
    suggestions: list[Suggestion] = []
    if limit is None:
        findings = [Finding("memory", "note", f"{what}; this machine has no GPU to compare it with")]
    elif most.total <= (tight := round((TIGHT_GPU if on_gpu else TIGHT_CPU) * limit)):
        findings = [Finding("memory", "ok", f"{what}, where {size_text(limit)} are free")]
    else:
        suggestions = suggest(recipe, topology, most, tight, on_gpu, len(found["gpus"]))
        level: Level = "problem" if most.total > limit else "warning"
        what += f", where {size_text(limit)} are free" + (": tight" if level == "warning" else "")
        findings = [Finding("memory", level, what, _advice(suggestions))]
    free = found["ram_available_bytes"]
    if (host := max(estimate.host for estimate in estimates)) > free:
        what = f"{size_text(host)} are offloaded to the memory of each machine, where {size_text(free)} are free"
        findings.append(Finding("memory", "problem", what, "take more machines, or offload less (the optimizer alone)"))
    if stays_whole(recipe, topology):
        what = f"FSDP2 shards floats alone: the {recipe.model.quantization} base stays whole in each process"
        storage = "bfloat16" if recipe.train.bf16 else "float32"
        remedy = f"model.quant_storage={storage}" if recipe.model.quantization == "4bit" else None
        findings.append(Finding("memory", "warning" if remedy else "note", what, remedy))
    elif topology.share("weights") < 1:
        findings.append(_whole(estimates, topology, limit))
    return estimates, suggestions, findings


def _whole(estimates: list[Estimate], topology: Topology, limit: int | None) -> Finding:
    """What a process holds before training shards it: the model, and a frozen copy where a method has one."""
    share = topology.share("weights")
    whole = max(round((estimate.device["weights"] + estimate.device["reference"]) / share) for estimate in estimates)
    what = f"until training shards them, each process holds all weights itself: {size_text(whole)}"
    if limit is None or whole <= limit:
        return Finding("memory", "note", what)
    remedy = "take larger devices, or model.quantization=4bit"
    return Finding("memory", "problem", f"{what}, where {size_text(limit)} are free", remedy)


def suggest(
    recipe: Recipe, topology: Topology, most: Estimate, limit: int, on_gpu: bool, gpus: int
) -> list[Suggestion]:
    """Each change alone with what it gives, in the order in which to try them; where none is enough, all of them one
    after the other until it fits. A change that the recipe or the step refuses is left out.

    Args:
        recipe: the recipe to change.
        topology: how the run is spread over processes.
        most: the estimate of the largest step.
        limit: bytes that this step may take on one device.
        on_gpu: whether the devices are GPUs.
        gpus: how many GPUs this machine has.
    """

    def after(made: list[str]) -> Suggestion | None:
        estimate = _after(made, recipe, topology, most.step, on_gpu, gpus)
        if estimate is None or estimate.total >= most.total:
            return None
        return Suggestion(made[-1], most.step, estimate.total, estimate.host, estimate.total <= limit, len(made) > 1)

    offered = changes(recipe, topology, most, gpus if on_gpu else None)
    alone = [suggestion for change in offered if (suggestion := after([change])) is not None]
    if not alone or any(suggestion.fits for suggestion in alone):
        return alone
    strongest = {_field(suggestion.change): suggestion.change for suggestion in alone}  # of one kind the last is it
    joint: list[Suggestion] = []
    for number, change in enumerate(made := list(strongest.values())):
        suggestion = after(made[: number + 1])
        if suggestion is None:
            break
        joint.append(replace(suggestion, change=change, together=True))
        if suggestion.fits:
            break
    return [*alone, *joint]


ENGINES: dict[str, dict[str, Any]] = {
    "--accelerate-config accelerate_configs/fsdp2.yaml": {"sharding": "fsdp2"},
    "--accelerate-config accelerate_configs/zero3.yaml": {"sharding": "zero3"},
    "--accelerate-config accelerate_configs/zero3_offload.yaml": {
        "sharding": "zero3",
        "offload_optimizer": True,
        "offload_weights": True,
    },
}


def changes(recipe: Recipe, topology: Topology, most: Estimate, gpus: int | None) -> Iterator[str]:
    """What can be changed, as one would write it on the command line: first what changes no result, then what changes
    precision, then what trains less. What is so already, and what this recipe has no field for, is left to `suggest`.

    Args:
        recipe: the recipe to change.
        topology: how the run is spread over processes.
        most: the estimate of the largest step.
        gpus: how many GPUs this machine has; None where the devices are CPUs, from which nothing can be offloaded.
    """
    name = "train" if most.step == TRAINING else "unlearn"
    section, least = getattr(recipe, name), topology.processes
    halved = []
    rows, times = section.batch_size, section.gradient_accumulation_steps
    while rows > least and rows % (2 * least) == 0:
        rows, times = rows // 2, times * 2
        halved.append(f"{name}.batch_size={rows} {name}.gradient_accumulation_steps={times}")
    yield from dict.fromkeys([*halved[:1], *halved[-1:]])
    yield "model.gradient_checkpointing=true"
    adapter = getattr(recipe.model, "lora", None) is not None
    if gpus is not None:
        if most.device["reference"] and not adapter and topology.sharding != "fsdp2":
            yield f"unlearn.methods.{most.step}.offload_reference=true"
        sharded, several = topology.share("weights") < 1, max(gpus, topology.processes) > 1
        for change, engine in ENGINES.items():
            if not topology.offload_weights if "offload_weights" in engine else several and not sharded:
                yield change
    yield "train.bf16=true"
    if recipe.train.optim.startswith("adamw_torch") and not topology.is_deepspeed:
        yield "train.optim=paged_adamw_8bit"
    yield "model.dtype=bfloat16" if adapter else "model.lora={}"  # weights that train are kept in float32
    yield "model.quantization=4bit" + ("" if adapter else " model.lora={}")
    half = getattr(recipe.data, "max_length", 0) // 2
    if half >= 32:
        yield f"data.max_length={half} (and data.max_words to suit)"


def _after(made: list[str], recipe: Recipe, topology: Topology, step: str, on_gpu: bool, gpus: int) -> Estimate | None:
    """The estimate of one step after some changes; None where they cannot be made to this recipe."""
    from llm_unlearn.trainers import METHODS

    tree = recipe.model_dump()
    config: Any = METHODS[step][0] if step in METHODS else None
    try:
        for change in made:
            if change in ENGINES:
                topology = replace(topology, processes=max(gpus, topology.processes), **ENGINES[change])
                track_of(recipe).check_topology(recipe, topology, change)
                if config is not None and topology.engine in config.refuses:
                    return None
            for word in change.partition(" (")[0].split(" ") if change not in ENGINES else ():
                # an earlier change may have added the adapter
                if word != "model.lora={}" or tree["model"].get("lora") is None:
                    set_override(tree, word)
        return estimate_steps(build_recipe(tree), topology, on_gpu, only=step)[0]
    except InputError:
        return None


def _field(change: str) -> str:
    """What a change sets first."""
    return change.partition("=")[0] if change not in ENGINES else "engine"


def _advice(suggestions: list[Suggestion]) -> str:
    if not suggestions:
        return "take a larger device: no change that the doctor knows makes the step smaller"
    if enough := [s for s in suggestions if s.fits and not s.together]:
        return f"{enough[0].change} is enough ({size_text(enough[0].total)}); the changes that help are listed below"
    joint = [s for s in suggestions if s.together]
    if joint and joint[-1].fits:
        all_of_them = " ".join(s.change for s in joint)
        return f"no single change is enough, but {all_of_them} together are ({size_text(joint[-1].total)})"
    return "take a larger device, or more of them: the changes below are not enough, even together"


def _named(step: str) -> str:
    return "training" if step == TRAINING else step
