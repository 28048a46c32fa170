"""Put the findings together: what was found, as a mapping and as text."""

import dataclasses
from typing import Any

from llm_unlearn.config.recipe import Recipe
from llm_unlearn.distributed.topology import Topology, read_topology
from llm_unlearn.doctor.canary_findings import check_canaries, check_noise
from llm_unlearn.doctor.finding import LEVELS, Finding, problem_of
from llm_unlearn.doctor.machine_findings import check_builds, check_devices, check_disk, check_versions, devices
from llm_unlearn.doctor.memory.estimate import PARTS, TRAINING, Estimate
from llm_unlearn.doctor.memory.workload import is_of_images
from llm_unlearn.doctor.memory_findings import CONTEXT, Suggestion, capacity, check_memory
from llm_unlearn.errors import InputError

MIB = 2**20
MARKS = {"ok": "ok", "note": "note", "warning": "WARNING", "problem": "PROBLEM"}


def diagnose(recipe: Recipe | None = None, accelerate_config: str | None = None) -> dict[str, Any]:
    """Look at this machine and, where one is given, at a recipe on it. No weight is loaded and nothing is written.

    Returns:
        {"ok": whether there is no problem, "findings": [{"check", "level", "what", "remedy"}], "versions", "devices",
        "topology", "memory": [{"step", parts …, "total", "host"}] in bytes, "capacity", "suggestions"}.

    Raises:
        InputError: the accelerate config cannot be read.
    """
    topology = read_topology(accelerate_config)
    versions, findings = check_versions(recipe, topology)
    found = devices(recipe.output_dir if recipe else None)
    findings += check_devices(found, recipe, topology) + check_builds(topology)
    estimates: list[Estimate] = []
    suggestions: list[Suggestion] = []
    if recipe is not None:
        more, estimates, suggestions = _of_recipe(recipe, topology, accelerate_config, found)
        findings += more
    return {
        "ok": not any(finding.level == "problem" for finding in findings),
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "versions": versions,
        "devices": found,
        "topology": dataclasses.asdict(topology),
        "memory": [estimate.as_dict() for estimate in estimates],
        "capacity": capacity(found, topology),
        "suggestions": [dataclasses.asdict(suggestion) for suggestion in suggestions],
    }


def _of_recipe(
    recipe: Recipe, topology: Topology, accelerate_config: str | None, found: dict[str, Any]
) -> tuple[list[Finding], list[Estimate], list[Suggestion]]:
    from llm_unlearn.runs.pipeline import check

    try:
        check(recipe)
        if accelerate_config is not None and topology.machines == 1:
            from llm_unlearn.runs.launch_checks import check_topology

            check_topology(recipe, accelerate_config)
    except InputError as error:
        # the model's config, too, is read there: what follows would say the same again
        return [problem_of("recipe", error)], [], []
    findings = [Finding("recipe", "ok", f"'{recipe.name}' passes every check that a run makes before its first stage")]
    findings += check_canaries(recipe)
    if not is_of_images(recipe):
        from llm_unlearn.doctor.adapter_findings import check_adapter
        from llm_unlearn.doctor.token_findings import check_tokens

        findings += [*check_tokens(recipe), *check_noise(recipe), *check_adapter(recipe.model)]
    try:
        estimates, suggestions, more = check_memory(recipe, topology, found)
    except InputError as error:
        if not any(finding.check == "lora" and finding.level == "problem" for finding in findings):
            findings.append(problem_of("memory", error))
        return findings, [], []
    findings += more
    disk = check_disk(found["disk_free_bytes"], written(recipe, estimates[0]), recipe.output_dir)
    return [*findings, *([disk] if disk else [])], estimates, suggestions


def written(recipe: Recipe, training: Estimate) -> int:
    """About how many bytes of models a run writes: every model of every seed and point of its sweep, and one checkpoint
    with its optimizer.
    """
    from llm_unlearn.config.sweep import points
    from llm_unlearn.runs.tracks import track_of

    saved = training.saved
    models = sum(
        len(part.seeds)
        * (2 * track_of(part).trains + part.has_clean_oracle + len(part.unlearn.methods) * len(part.unlearn.budgets))
        for part in (recipe, *(point.recipe for point in points(recipe)))
    )
    made = saved if recipe.pretrain is not None and recipe.model.path is None else 0
    return saved * models + made + 3 * saved


# ---- text


def as_text(result: dict[str, Any]) -> str:
    """The result for reading on a terminal: what is wrong comes last, where one looks first."""
    findings = sorted(result["findings"], key=lambda finding: LEVELS.index(finding["level"]))
    lines = []
    if result["memory"]:
        lines += _memory_lines(result)
    for finding in findings:
        lines.append(f"{MARKS[finding['level']]:8} {finding['check']}: {finding['what']}")
        if finding["remedy"]:
            lines.append(f"{'':8} → {finding['remedy']}")
    if result["suggestions"]:
        lines += _suggestion_lines(result["suggestions"])
    counts = {level: sum(finding["level"] == level for finding in findings) for level in LEVELS}
    said = [f"{count} {level}{'s' if count != 1 else ''}" for level, count in counts.items() if level != "ok" and count]
    return "\n".join([*lines, "", ", ".join(reversed(said)) or "no problems found"])


def _memory_lines(result: dict[str, Any]) -> list[str]:
    """A table of the steps, of the parts that any of them has."""
    steps = result["memory"]
    parts = [part for part in PARTS if any(step[part] >= MIB / 2 for step in steps)]
    host = ["host"] if any(step["host"] for step in steps) else []
    columns = [*parts, "total", *host]
    width = max(len(step["step"]) for step in steps) + 2
    lines = [
        "Estimated memory of a step on one device at its peak, in MiB, for rows of the longest length. Activations are",
        f"freed as gradients are made, so few gradients may be held then. A GPU takes {CONTEXT / MIB:.0f} MiB more.",
        "  " + f"{'step':{width}}" + "".join(f"{column:>13}" for column in columns),
    ]
    for step in steps:
        name = "training" if step["step"] == TRAINING else step["step"]
        how = "  activations by formula: this architecture cannot be traced" if step["by_formula"] else ""
        lines.append("  " + f"{name:{width}}" + "".join(f"{step[column] / MIB:>13,.0f}" for column in columns) + how)
    return [*lines, ""]


def _suggestion_lines(suggestions: list[dict[str, Any]]) -> list[str]:
    lines = ["", f"The largest step ({suggestions[0]['step']}) with one change:"]
    for number, suggestion in enumerate(suggestions):
        if suggestion["together"] and not suggestions[number - 1]["together"]:
            lines.append("With these changes one on top of the other:")
        host = f" + {suggestion['host'] / MIB:,.0f} MiB of the host's memory" if suggestion["host"] else ""
        fits = " (fits)" if suggestion["fits"] else ""
        lines.append(f"  {suggestion['total'] / MIB:>10,.0f} MiB{host}  {suggestion['change']}{fits}")
    return lines
