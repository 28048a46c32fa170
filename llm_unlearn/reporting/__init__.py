"""From the files of a run to a report for people: JSON, Parquet and YAML in; Markdown, HTML and pictures out.

    write_report(Path("runs/quickstart"))   # report.md, report.html, report/<model>.html, plots/*.png
    write_summary(Path("runs/imdb"))        # summary.json: mean, sd and n over the seeds

Nothing here loads a model or imports torch; matplotlib, pyarrow and jinja2 are imported when they are used.
"""

from llm_unlearn.reporting.report import write_report
from llm_unlearn.reporting.run_results import Results, read_results
from llm_unlearn.reporting.run_summary import write_summary

__all__ = ["Results", "read_results", "write_report", "write_summary"]
