"""Content → HTML that loads nothing: style, script and pictures inside, user text escaped."""

import base64
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from llm_unlearn.reporting.contents import Page, Report
from llm_unlearn.reporting.fitting import fitted, titles
from llm_unlearn.reporting.pages import FOLDER, file_name
from llm_unlearn.reporting.tables import BEST

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup


def report_html(report: Report) -> str:
    """The report as one page, in which each model's name leads to its own."""
    pictures = {plot.name: base64.b64encode(plot.content).decode() for plot in report.all_plots}
    links = {page.model: quote(f"{FOLDER}/{file_name(page.model)}") for page in report.pages}
    template = _environment().get_template("report.html.j2")
    return template.render(report=report, pictures=pictures, best=BEST, links=links)


def page_html(page: Page, models: Sequence[str]) -> str:
    """The page of one model, with the way back to the report and to the pages of all `models`."""
    links = {model: quote(file_name(model)) for model in models}
    return _environment().get_template("page.html.j2").render(page=page, best=BEST, links=links)


@cache
def _environment() -> "jinja2.Environment":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"fitted": fitted, "titles": titles, "tight": tight, "marked": marked, "sort_key": sort_key}
    return environment


def tight(text: str) -> str:
    """Keep a number and its unit, and `p = 0.01`, on one line."""
    return re.sub(r" (?=%)|(?<=\bp) (?=[=<])|(?<=\bp [=<]) | (?=±)|(?<=±) ", "\u00a0", text)


def marked(text: str, phrases: Sequence[str]) -> "Markup":
    """A text, escaped, with each of some phrases in <mark> where it stands."""
    from markupsafe import Markup, escape

    wanted = [re.escape(phrase) for phrase in sorted(phrases, key=len, reverse=True) if phrase]
    if not wanted:
        return escape(text)
    parts = re.split(f"({'|'.join(wanted)})", text)  # the phrases are at the odd places
    return Markup("").join(Markup("<mark>{}</mark>").format(part) if i % 2 else part for i, part in enumerate(parts))


def sort_key(value: float) -> str:
    """A number as the script that sorts reads it; nothing for NaN, which goes last as a missing value does."""
    if math.isnan(value):
        return ""
    return repr(float(value)) if math.isfinite(value) else f"{'-' * (value < 0)}Infinity"
