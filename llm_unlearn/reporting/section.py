"""A further question that a report answers after the main table."""

from dataclasses import dataclass, field

from llm_unlearn.reporting.plots import Plot
from llm_unlearn.reporting.tables import Table


@dataclass(frozen=True)
class Section:
    """What is asked (`note`, in words), and the tables and plots that answer it."""

    title: str
    note: str
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
