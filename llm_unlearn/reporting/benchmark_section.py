"""What the recipe's benchmark says of every model: its own figures, and the picture that the field draws of them."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from llm_unlearn.metrics.benchmarks import UTILITY_PARTS
from llm_unlearn.metrics.benchmarks.benchmark_result import BenchmarkResult
from llm_unlearn.metrics.results import Evaluation
from llm_unlearn.reporting import figures
from llm_unlearn.reporting.contents import Plot, Section
from llm_unlearn.reporting.formats import number, p_value
from llm_unlearn.reporting.run_results import Results
from llm_unlearn.reporting.style import figure, height_beside_legend, png, styles
from llm_unlearn.reporting.tables import Column, table_of
from llm_unlearn.reporting.tradeoff import Side, draw_points, point, worth

_NOTES = {
    "tofu": "Forget quality: p of the Kolmogorov–Smirnov test of the truth ratios on the forget rows against the "
    "retrained model's, by the ratio of TOFU's code and of open-unlearning, then by that of the paper; higher is "
    "better, 1 is the retrained model itself, and below 0.05 the two are told apart. D: the distance behind it, of "
    "which there is an interval. Model utility: harmonic mean of the nine parts below; higher is better. On forget "
    "rows lower is better, and a truth ratio nearer 1 (its score higher), as near as the retrained model's.",
    "muse": "VerbMem and KnowMem: ROUGE-L F1 of continuations and of answers; on forget rows lower, on retain rows "
    "higher is better. PrivLeak, in per cent, compares the Min-40 % attack with the retrained model's: 0 is best, "
    "below 0 forget rows are still recognised, above 0 they look less known than rows never seen.",
    "wmdp": "Accuracy over multiple-choice questions on what is hazardous: lower is better, 1 of the number of choices "
    "is chance. Probability: of the right letter among the letters.",
}


def benchmark_section(results: Results) -> Section | None:
    """Tables and picture of the benchmark; None in a run without one."""
    if (found := _benchmark(results)) is None:
        return None
    columns = [*_COLUMNS[found.name](), _mean("Forget rows", "fluency", "forget_fluency", "high")]
    tables = [table_of(results, columns if "forget_fluency" in found.scores else columns[:-1])]
    if found.name == "tofu":
        parts = [_mean("", part.replace("_", " "), part, "high") for part in UTILITY_PARTS]
        tables.append(replace(table_of(results, parts), title="The nine parts of the model utility"))
    return Section(f"{found.name.upper()}, {found.split}", _NOTES[found.name], tables, benchmark_plots(results))


def _benchmark(results: Results) -> BenchmarkResult | None:
    return next((r.benchmark for run in results.runs for r in run.models.values() if r.benchmark), None)


def _mean(group: str, title: str, measure: str, ideal: str | None) -> Column:
    interval = figures.benchmark_interval(measure)
    return Column(group, title, figures.benchmark_score(measure), partial(number, digits=3), ideal, interval)


def _tofu() -> list[Column]:
    quality, three = "Forget quality", partial(number, digits=3)
    return [
        Column(quality, "p", figures.forget_quality, p_value),
        Column(quality, "p (paper)", figures.forget_quality_paper, p_value),
        Column(quality, "D", figures.forget_distance, three, "low", figures.forget_distance_interval),
        Column("Utility", "model utility", figures.model_utility, three, "high", figures.model_utility_interval),
        _mean("Forget rows", "probability", "forget_probability", "retrained"),
        _mean("Forget rows", "ROUGE-L", "forget_rouge", "retrained"),
        _mean("Forget rows", "truth ratio score", "forget_truth_ratio", "retrained"),
        _mean("Forget rows", "exact memorization", "forget_exact_memorization", "retrained"),
        _mean("Forget rows", "extraction strength", "forget_extraction_strength", "retrained"),
    ]


def _muse() -> list[Column]:
    return [
        _mean("Forget rows", "VerbMem", "forget_verbmem", "low"),
        _mean("Forget rows", "KnowMem", "forget_knowmem", "low"),
        _mean("Forget rows", "exact memorization", "forget_exact_memorization", "retrained"),
        _mean("Forget rows", "extraction strength", "forget_extraction_strength", "retrained"),
        _mean("Retain rows", "KnowMem", "retain_knowmem", "high"),
        Column("Privacy", "PrivLeak (%)", figures.privleak, partial(number, digits=1), 0.0, figures.privleak_interval),
    ]


def _wmdp() -> list[Column]:
    return [_mean("Questions", "accuracy", "accuracy", "low"), _mean("Questions", "probability", "probability", "low")]


_COLUMNS: dict[str, Callable[[], list[Column]]] = {"tofu": _tofu, "muse": _muse, "wmdp": _wmdp}


def _log_quality(result: Evaluation) -> float | None:
    quality = figures.forget_quality(result)
    return None if quality is None else math.log10(max(quality, 1e-300))


_UP = {  # benchmark → what its picture sets against what a model is worth
    "tofu": Side(_log_quality, lambda _: None, "forget quality", "log₁₀ of the forget quality (p), better →"),
    "muse": Side(
        figures.benchmark_score("forget_verbmem"),
        figures.benchmark_interval("forget_verbmem"),
        "VerbMem",
        "VerbMem of forget rows, worse →",
    ),
}


def benchmark_plots(results: Results) -> list[Plot]:
    """Forgetting against utility, every model a point; none where the benchmark has no such pair of figures."""
    found = _benchmark(results)
    if found is None or found.name not in _UP:
        return []
    name = found.name
    across, up = worth(results), _UP[name]
    points = {model: at for model in results.names if (at := point(results, model, across, up))}
    with figure(height_beside_legend(len(points), 5.2)) as (fig, axes):
        axis = axes[0, 0]
        draw_points(axis, points, styles(results.names))
        axis.set(xlabel=across.label, ylabel=up.label)
        axis.margins(0.12)
        if name == "tofu":
            axis.axhline(math.log10(0.05), color="#777777", linestyle=":", linewidth=1.2, zorder=1)
        fig.legend(loc="outside right center", markerscale=0.7)
        content = png(fig)
    whiskers = "± one standard deviation over seeds" if len(results.runs) > 1 else "95 % bootstrap intervals"
    dotted = " Dotted: p = 0.05, below which a model is told apart from the retrained one." if name == "tofu" else ""
    caption = f"The retrained model (star) is the target. Whiskers: {whiskers}.{dotted}"
    alt = "One point per model; the numbers are in the table above."
    return [Plot("benchmark", f"{name.upper()}: forgetting against utility", caption, alt, content)]
