"""One content, two forms: report.md and a self-contained report.html, with plots and a page per model beside them.

write_report(Path("runs/quickstart"))
"""

import re
from pathlib import Path

from llm_unlearn.files import replacing_file
from llm_unlearn.reporting import guide
from llm_unlearn.reporting.analysis_section import analysis_section
from llm_unlearn.reporting.benchmark_section import benchmark_section
from llm_unlearn.reporting.canary_tables import control_table, part_table
from llm_unlearn.reporting.contact_sheet import contact_sheet_section
from llm_unlearn.reporting.contents import Plot, Report, Section
from llm_unlearn.reporting.decision_section import decision_section
from llm_unlearn.reporting.lm_eval_section import lm_eval_section
from llm_unlearn.reporting.markdown import code, escape, table_text
from llm_unlearn.reporting.membership_section import membership_section
from llm_unlearn.reporting.pages import FOLDER, compose_pages, file_name
from llm_unlearn.reporting.phrase_section import phrase_section
from llm_unlearn.reporting.plots import all_plots
from llm_unlearn.reporting.rendering import page_html
from llm_unlearn.reporting.rendering import report_html as html
from llm_unlearn.reporting.run_results import Results, read_results
from llm_unlearn.reporting.stress_section import stress_section
from llm_unlearn.reporting.sweep_section import sweep_sections
from llm_unlearn.reporting.tables import BEST, cost_columns, cost_table, early_stops, main_table, present
from llm_unlearn.reporting.verdicts import Verdict, headline, judge, obstacles, warnings
from llm_unlearn.reporting.words import attack_words, what_was_poisoned

LEAD = "_vs_utility"  # how the names of the pictures end that stand under the headline
OUR_PLOTS = (  # what an earlier report may have left, which no longer applies
    "gaussian_* *_vs_utility cost residual_vs_budget sweep_* *_by_layer stress_relearn_* contact_sheet benchmark"
).split()
CONTROL_NOTE = (
    "The same scores with fresh noise, or fresh strings, that were never used in training. On every model they must "
    "look like N(0, 1); where they do not, that test is off and so are its verdicts."
)
KEPT_NOTE = (
    "The forget set held a part of the poison. These canaries were not in it: they are expected to remain, and as long "
    "as they are found no model is said to hold no trace."
)
COST_NOTE = (
    "What a budget paid for. With few steps, or a forget set that was hardly seen, a method was not tried at its best."
)
SHOWN_NOTE = (
    "Of the deleted canaries these were handed to the methods with their noise, which can make them look clean. They "
    "do not count: all other figures are of the hidden ones."
)
MISSING_NOTE = "The plots of the Gaussian test are left out: there are no per-example scores (evaluation/*.parquet)."


def write_report(run_dir: str | Path) -> list[Path]:
    """Write `plots/*.png`, `report/<model>.html`, `report.md` and `report.html` for a run of one seed or of several.

    Everything is made in memory first, then each file is written under a temporary name and renamed: a report that
    fails leaves the one before it as it was. Plots and pages of an earlier report that no longer apply are removed.

    Args:
        run_dir: holds `evaluation/`, or `seed-*/evaluation/`.

    Returns:
        The files written: plots, then a page per model, then report.md, then report.html.

    Raises:
        InputError: naming the file that is missing or damaged.
    """
    results = read_results(run_dir)
    report, root = compose(results), results.run_dir
    models = [page.model for page in report.pages]
    files = {root / "plots" / f"{plot.name}.png": plot.content for plot in report.all_plots}
    files |= {root / FOLDER / file_name(page.model): page_html(page, models).encode() for page in report.pages}
    files |= {root / "report.md": markdown(report).encode(), root / "report.html": html(report).encode()}
    for path, content in files.items():
        with replacing_file(path) as partial:
            partial.write_bytes(content)
    for pattern in (*(f"plots/{name}.png" for name in OUR_PLOTS), f"{FOLDER}/*.html"):
        for path in root.glob(pattern):
            if path not in files:
                path.unlink()
    return list(files)


def compose(results: Results) -> Report:
    """Turn results into what the report and its pages say, plots included."""
    numbers = ", ".join(map(str, results.seeds))
    seeds = f"seed {numbers}" if len(results.seeds) == 1 else f"{len(results.seeds)} seeds ({numbers})"
    title, verdicts = f"Unlearning report: {results.recipe}", [judge(results, name) for name in results.methods]
    plots = all_plots(results)
    return Report(
        title=title,
        subtitle=f"{seeds} · what each method removed of the poison, at what cost, beside retraining",
        headline=headline(verdicts, obstacles(results)),
        warnings=warnings(results),
        lead=[plot for plot in plots if plot.name.endswith(LEAD)],
        poisoned=what_was_poisoned(results),
        verdicts=verdicts,
        table=main_table(results),
        table_note=_table_note(results),
        sections=_sections(results, [plot for plot in plots if not plot.name.endswith(LEAD)]),
        reading=guide.reading(results, [*present(results), *cost_columns(results)]),
        limits=guide.limits(results),
        reproduction=guide.reproduction(results),
        recipe=guide.recipe_text(results),
        pages=compose_pages(results, title, seeds),
    )


def _sections(results: Results, plots: list[Plot]) -> list[Section]:
    control = control_table(results)
    kept, shown = part_table(results, "others"), part_table(results, "shown")
    missing = results.has_gus and not any(plot.name == "gaussian_scores" for plot in plots)
    found = [
        benchmark_section(results),
        lm_eval_section(results),
        contact_sheet_section(results),
        Section("Control", CONTROL_NOTE, [control]) if control else None,
        Section("Canaries that were not deleted", KEPT_NOTE, [kept]) if kept else None,
        decision_section(results),
        phrase_section(results),
        Section("Canaries that the methods knew", SHOWN_NOTE, [shown]) if shown else None,
        membership_section(results),
        *sweep_sections(results),
        Section("Cost", f"{COST_NOTE} {early_stops(results)}".strip(), [cost_table(results)]),
        analysis_section(results),
        stress_section(results),
        Section("Plots", MISSING_NOTE * missing, [], plots),
    ]
    return [section for section in found if section]


def _table_note(results: Results) -> str:
    poisoned, count = results.runs[0].models["poisoned"], len(results.seeds)
    sizes = [f"n = {poisoned.attack.n} {attack_words(results).inputs}"] if poisoned.attack else []
    sizes += [f"n = {poisoned.gus.n} canaries that decide"] if poisoned.gus else []
    sizes += [f"n = {poisoned.utility.n} clean test examples"] if poisoned.utility else []
    spread = f"Mean ± standard deviation over {count} seeds; per seed "
    spread = spread if count > 1 else "95 % confidence intervals in brackets; "
    return f"{spread}{', '.join(sizes)}. {BEST} marks the best of the methods in a column."


def markdown(report: Report) -> str:
    """The report as Markdown, with the plots as files beside it."""
    parts = [f"# {escape(report.title)}", escape(report.subtitle), f"**{escape(report.headline)}**"]
    parts += [f"> **Warning.** {escape(text)}" for text in report.warnings]
    parts += [text for plot in report.lead for text in _plot_text(plot)]
    parts += [escape(report.poisoned), "\n".join(map(_verdict_line, report.verdicts))]
    parts += ["## All models", table_text(report.table), escape(report.table_note)]
    for section in report.sections:
        parts += [f"## {section.title}", escape(section.note)]
        for table in section.tables:
            parts += [f"### {escape(table.title)}" * bool(table.title), table_text(table)]
        for plot in section.plots:
            parts += [f"### {plot.title}", *_plot_text(plot)]
    parts += ["## How to read this", "\n".join(f"- **{escape(t)}**: {escape(text)}" for t, text in report.reading)]
    parts += ["## Limits", "\n".join(f"- {escape(text)}" for text in report.limits)]
    parts += ["## Reproduce", "\n".join(f"- {escape(key)}: {code(text)}" for key, text in report.reproduction)]
    if report.recipe:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", report.recipe)), default=0))
        parts += ["The recipe as it was run:", f"{fence}yaml\n{report.recipe.rstrip()}\n{fence}"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _plot_text(plot: Plot) -> list[str]:
    return [f"![{escape(plot.alt)}](plots/{plot.name}.png)", escape(plot.caption)]


def _verdict_line(verdict: Verdict) -> str:
    return f"- **{escape(verdict.model)}: {verdict.judgement}.** {escape(verdict.because)}".rstrip()
