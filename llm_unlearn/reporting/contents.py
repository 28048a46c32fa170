"""What a report and its pages say, before they are set in Markdown or HTML."""

from dataclasses import dataclass, field

from llm_unlearn.reporting.tables import Table
from llm_unlearn.reporting.verdicts import Verdict


@dataclass(frozen=True)
class Plot:
    """A picture with what stands for it where it cannot be seen."""

    name: str
    title: str
    caption: str
    alt: str
    content: bytes


@dataclass(frozen=True)
class Section:
    """A question (`note`, in words) with the tables and plots that answer it."""

    title: str
    note: str = ""
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """What the page of one model says.

    Args:
        title: of the report.
        subtitle: the seeds.
        verdict: of an unlearned model, else None.
        lead: what another model is.
        figures: the model beside the poisoned and the retrained one.
        sections: its examples.
        phrases: the triggers, which are marked where they stand in a text.
    """

    model: str
    title: str
    subtitle: str
    verdict: Verdict | None
    lead: str
    figures: Table
    sections: list[Section]
    phrases: list[str]

    @property
    def has_texts(self) -> bool:
        """Whether texts of the data are on it."""
        return any("text" in table.looks for section in self.sections for table in section.tables)


@dataclass(frozen=True)
class Report:
    """What the report says; `lead` are the pictures under its headline, `pages` are those of its models."""

    title: str
    subtitle: str
    headline: str
    warnings: list[str]
    lead: list[Plot]
    poisoned: str
    verdicts: list[Verdict]
    table: Table
    table_note: str
    sections: list[Section]
    reading: list[tuple[str, str]]
    limits: list[str]
    reproduction: list[tuple[str, str]]
    recipe: str | None
    pages: list[Page]

    @property
    def all_plots(self) -> list[Plot]:
        return [*self.lead, *(plot for section in self.sections for plot in section.plots)]
