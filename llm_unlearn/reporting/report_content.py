"""What a report says, before it is set in Markdown or HTML."""

from dataclasses import dataclass

from llm_unlearn.reporting.pages import Page
from llm_unlearn.reporting.plots import Plot
from llm_unlearn.reporting.section import Section
from llm_unlearn.reporting.tables import Table
from llm_unlearn.reporting.verdicts import Verdict


@dataclass(frozen=True)
class Report:
    """What a report says, before it is set in Markdown or HTML."""

    title: str
    subtitle: str
    headline: str
    warnings: list[str]
    poisoned: str
    verdicts: list[Verdict]
    table: Table
    table_note: str
    sections: list[Section]
    plots: list[Plot]
    plots_missing: str
    reading: list[tuple[str, str]]
    limits: list[str]
    reproduction: list[tuple[str, str]]
    recipe: str | None
    pages: list[Page]

    @property
    def all_plots(self) -> list[Plot]:
        return [*self.plots, *(plot for section in self.sections for plot in section.plots)]
