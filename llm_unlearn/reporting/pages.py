"""A page per model beside the report: verdict, figures beside poisoned and retrained, the examples that matter.

Texts of the data stand here and nowhere else in a report: report.md and report.html can be shared where data cannot.
"""

from functools import lru_cache, partial

from llm_unlearn.reporting.contents import Page, Section
from llm_unlearn.reporting.examples import attack_examples, canary_examples
from llm_unlearn.reporting.run_results import Results, read_rows
from llm_unlearn.reporting.tables import main_table, side_by_side
from llm_unlearn.reporting.verdicts import judge

FOLDER = "report"
LEADS = {
    "base": "The model before any fine-tuning.",
    "poisoned": "The model before unlearning, trained on everything.",
    "retrained": "Retrained without the deleted examples: what a perfect deletion looks like.",
    "clean": "Trained on the clean rows alone.",
}
_NO_EXAMPLES = (
    "The poison of this run shows in the accuracy over all test examples, and in no single one: there are "
    "no examples to show."
)


def compose_pages(results: Results, title: str, seeds: str) -> list[Page]:
    """The pages of all models, in the order of the table.

    Args:
        results: of the run.
        title: of the report.
        seeds: which they are, in words.

    Raises:
        InputError: naming the per-example file or the folder of data that cannot be read.
    """
    read = lru_cache(maxsize=3)(partial(read_rows, results))  # poisoned and retrained stay beside every model
    table = main_table(results)
    triggers = [run.poison.get("trigger") or {} for run in results.runs]
    phrases = sorted({phrase for trigger in triggers for phrase in trigger.get("phrases", [])})
    pages = []
    for name in results.names:
        found = [of(results, read, name) for of in (attack_examples, canary_examples)]
        sections = [section for section in found if section] or [Section("Examples", _NO_EXAMPLES)]
        verdict = judge(results, name) if name in results.methods else None
        figures = side_by_side(table, name)
        pages.append(Page(name, title, seeds, verdict, LEADS.get(name, ""), figures, sections, phrases))
    return pages


def file_name(model: str) -> str:
    """The file of a model's page in FOLDER: its name is that of a file already, evaluation/<model>.json."""
    return f"{model}.html"
