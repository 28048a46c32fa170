"""What lm-evaluation-harness says of every model: a column for each figure of a task, with its standard error."""

from llm_unlearn.metrics.results import Evaluation
from llm_unlearn.metrics.task_scores import TaskScore, TaskScores
from llm_unlearn.reporting.contents import Section
from llm_unlearn.reporting.figures import Figure
from llm_unlearn.reporting.formats import number
from llm_unlearn.reporting.run_results import Results
from llm_unlearn.reporting.tables import Cell, Table, statistic_cell

_NOTE = (
    "Figures as lm-evaluation-harness reports them, ± the standard error over the rows of a task, or over several "
    "seeds the standard deviation. Whether high is good depends on the task: of what is hazardous (WMDP) accuracy "
    "should be near chance, of general knowledge as the retrained model's."
)


def lm_eval_section(results: Results) -> Section | None:
    """A table of the tasks and groups that the recipe names, and one of the parts of groups; None without tasks."""
    tasks: dict[str, TaskScores] = {}
    for run in results.runs:
        for result in run.models.values():
            tasks |= result.lm_eval or {}
    if not tasks:
        return None
    own = _table(results, {name: task for name, task in tasks.items() if task.part_of is None})
    parts = {name: task for name, task in tasks.items() if task.part_of is not None}
    return Section(
        "lm-evaluation-harness", _NOTE, [own, *([_table(results, parts, "Parts of groups")] if parts else [])]
    )


def task_score(task: str, metric: str) -> Figure:
    """One figure of a task."""

    def figure(result: Evaluation) -> float | None:
        found = _score(result, task, metric)
        return None if found is None else found.value

    return figure


def _score(result: Evaluation, task: str, metric: str) -> TaskScore | None:
    found = (result.lm_eval or {}).get(task)
    return None if found is None else found.scores.get(metric)


def _table(results: Results, tasks: dict[str, TaskScores], title: str = "") -> Table:
    shown = [(name, metric) for name, task in tasks.items() for metric in task.scores]
    columns = [(metric, f"{name} (n = {tasks[name].n})") for name, metric in shown]
    return Table(
        columns, [(model, [_cell(results, model, *each) for each in shown]) for model in results.names], title=title
    )


def _cell(results: Results, model: str, task: str, metric: str) -> Cell:
    cell = statistic_cell(results.over_seeds(model, task_score(task, metric)), digits=3)
    if len(results.runs) > 1 or not results.of(model):
        return cell
    score = _score(results.of(model)[0], task, metric)
    error = None if score is None else score.stderr
    return cell if error is None else Cell(cell.value, f"± {number(error, 3)}", sort=cell.sort)
