"""A page per model beside the report: verdict, figures beside poisoned and retrained, the examples that matter.

Texts of the data stand here and nowhere else in a report: report.md and report.html can be shared where data cannot.
"""

from dataclasses import dataclass

from llm_unlearn.reporting.examples import Examples
from llm_unlearn.reporting.page_examples import Part, attack_part, canary_part
from llm_unlearn.reporting.run_results import Results
from llm_unlearn.reporting.tables import Table, main_table, side_by_side
from llm_unlearn.reporting.verdicts import Verdict, judge

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


@dataclass(frozen=True)
class Page:
    """What the page of one model says.

    Args:
        title: of the report.
        subtitle: the seeds.
        verdict: of an unlearned model, else None.
        lead: what another model is.
        figures: the model beside the poisoned and the retrained one.
        phrases: the triggers, which are marked where they stand in a text.
    """

    model: str
    title: str
    subtitle: str
    verdict: Verdict | None
    lead: str
    figures: Table
    parts: list[Part]
    phrases: list[str]

    @property
    def has_texts(self) -> bool:
        """Whether texts of the data are on it."""
        return any("text" in part.table.looks for part in self.parts if part.table)


def compose_pages(results: Results, title: str, seeds: str) -> list[Page]:
    """The pages of all models, in the order of the table.

    Args:
        results: of the run.
        title: of the report.
        seeds: which they are, in words.

    Raises:
        InputError: naming the per-example file or the folder of data that cannot be read.
    """
    examples, table = Examples(results), main_table(results)
    triggers = [run.poison.get("trigger") or {} for run in results.runs]
    phrases = sorted({phrase for trigger in triggers for phrase in trigger.get("phrases", [])})
    pages = []
    for name in results.names:
        parts = [part for part in (attack_part(examples, name), canary_part(examples, name)) if part]
        verdict = judge(results, name) if name in results.methods else None
        parts = parts or [Part("Examples", [_NO_EXAMPLES])]
        figures = side_by_side(table, name)
        pages.append(Page(name, title, seeds, verdict, LEADS.get(name, ""), figures, parts, phrases))
    return pages


def file_name(model: str) -> str:
    """The file of a model's page in FOLDER: its name is that of a file already, evaluation/<model>.json."""
    return f"{model}.html"
