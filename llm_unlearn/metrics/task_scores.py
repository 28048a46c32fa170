"""What lm-evaluation-harness says of one model, task by task."""

from dataclasses import dataclass
from typing import Any, ClassVar

from llm_unlearn.metrics.typed import Result


@dataclass(frozen=True, kw_only=True)
class TaskScore(Result):
    """One metric of a task.

    Args:
        value: as the harness reports it; infinite or undefined for a model that diverged.
        stderr: its standard error; None where the harness has none for this metric, or for a single row.
        better: "high" or "low"; None where the task does not say.
    """

    unbounded: ClassVar = frozenset({"value", "stderr"})

    value: float
    stderr: float | None
    better: str | None


@dataclass(frozen=True, kw_only=True)
class TaskScores(Result):
    """A task, or a group of tasks.

    Args:
        scores: metric → its figure; where a task reads answers in several ways, "metric (filter)".
        n: rows.
        shots: examples before each question; None of a group.
        version: of the task, as the harness counts it; "" where it has none.
        part_of: the group with figures of its own to which it belongs; None without one.
    """

    scores: dict[str, TaskScore]
    n: int
    shots: int | None
    version: str
    part_of: str | None = None


def task_scores(results: dict[str, Any]) -> dict[str, TaskScores]:
    """The figures in what lm-evaluation-harness returns: task or group → its scores; what has no figure is left out.

    Args:
        results: of `lm_eval.evaluate`, whose entries are named "metric,filter" and "metric_stderr,filter".

    Examples:
        >>> entry = {"name": "t", "alias": "t", "sample_len": 4, "acc,none": 0.5, "acc_stderr,none": 0.25}
        >>> found = task_scores({"results": {"t": entry}, "higher_is_better": {"t": {"acc": True}}})
        >>> found["t"].n, found["t"].scores["acc"]
        (4, TaskScore(value=0.5, stderr=0.25, better='high'))
    """
    groups, entries = results.get("groups", {}), {**results.get("groups", {}), **results["results"]}
    parts = results.get("group_subtasks", {})
    parents = {part: name for name in groups for part in parts.get(name, ())}
    found = {}
    for name, entry in entries.items():
        if scores := _scores(entry, results.get("higher_is_better", {}).get(name) or {}):
            counted = results.get("n-samples", {}).get(name, {}).get("effective")
            found[name] = TaskScores(
                scores=scores,
                n=int(counted if counted is not None else entry.get("sample_len", 0)),
                shots=results.get("n-shot", {}).get(name) if name not in groups else None,
                version=str(results.get("versions", {}).get(name) or ""),
                part_of=parents.get(name),
            )
    return found


def _scores(entry: dict[str, Any], directions: dict[str, Any]) -> dict[str, TaskScore]:
    found = {}
    for key, value in entry.items():
        metric, comma, reading = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = entry.get(f"{metric}_stderr,{reading}")
        better = {True: "high", False: "low", None: None}[directions.get(metric)]
        title = metric if reading == "none" else f"{metric} ({reading})"
        stderr = float(error) if isinstance(error, int | float) else None  # "N/A" where there is none
        found[title] = TaskScore(value=float(value), stderr=stderr, better=better)
    return found
