"""The report's pictures: which there are for these results, and the two of the Gaussian test."""

import math
from typing import Any

import numpy as np

from llm_unlearn.metrics.gaussian import gaussian_roc
from llm_unlearn.reporting import figures
from llm_unlearn.reporting.contents import Plot
from llm_unlearn.reporting.formats import number, percent
from llm_unlearn.reporting.run_results import ONE_PERCENT, Results, canary_scores
from llm_unlearn.reporting.style import MAX_SHOWN, figure, height_beside_legend, legend_above, png, shown, styles
from llm_unlearn.reporting.tradeoff import ACCURACY, EFFECTS, cost_plot, noise_effect, tradeoff_plot, worth

_BIN = 0.5
_MAX_BINS = 48


def all_plots(results: Results) -> list[Plot]:
    """Every plot that these results allow; one whose poison or whose per-example file is absent is left out."""
    several, scores = len(results.runs) > 1, {}
    if results.has_gus:
        scores = {name: found for name in shown(results.names) if (found := canary_scores(results, name))}
    plots = _gaussian_plots(scores, f" Scores of {len(results.runs)} seeds together." * several) if scores else []
    whiskers = "± one standard deviation over seeds" if several else "95 % confidence intervals"
    across = worth(results).name
    for planted, key in ((results.has_attack, "lift"), (results.has_gus, noise_effect(results))):
        if planted:
            what = EFFECTS[key].name
            title = f"What removing it costs: {what} against {across}"
            price = ", and of a cost" * (across == ACCURACY.name)
            caption = (
                f"The target is the retrained model (star). Whiskers: {whiskers}. Dotted: from where on this report "
                f"speaks of poison that remains{price}. The base model is left out; a line joins a method's budgets, "
                "the largest mark is the largest."
            )
            alt = f"{what.capitalize()} against {across}, one point per model; the table of all models has the numbers."
            plots.append(Plot(f"{key}_vs_utility", title, caption, alt, tradeoff_plot(results, key)))
    if not any(results.over_seeds(name, figures.share_of_training) for name in results.names if name != "base"):
        return plots  # of a given model it may not be known what its training took
    caption = "FLOPs as a share of the poisoned training's; wall-clock time beside it."
    alt = "Horizontal bars: compute of each model as a share of the poisoned training; see the table above."
    return [*plots, Plot("cost", "Compute spent", caption, alt, cost_plot(results))]


def _gaussian_plots(scores: dict[str, dict[str, np.ndarray]], pooled: str) -> list[Plot]:
    means = ", ".join(f"{name} {number(float(s['deleted'].mean()))}" for name, s in scores.items())
    rates = ", ".join(f"{name} {percent(recognised(s['deleted']))}" for name, s in scores.items())
    return [
        Plot(
            "gaussian_scores",
            "What is left of the noise: Gaussian scores",
            "One score per canary, against the density of a model without any trace of the noise. Mass to the right of "
            f"it is poison that remains.{pooled}",
            f"Histograms of the Gaussian scores of each model against the N(0, 1) density. Mean scores: {means}.",
            scores_plot(scores),
        ),
        Plot(
            "gaussian_roc",
            "How well single canaries are recognised: ROC of the Gaussian test",
            "The null is the analytic N(0, 1), not a sample. On the chance line the canaries look like noise that was "
            f"never used; each step is one canary.{pooled}",
            f"ROC curves of the Gaussian test per model on a log axis. True-positive rates at 1 % false positives: "
            f"{rates}.",
            roc_plot(scores),
        ),
    ]


def scores_plot(scores: dict[str, dict[str, np.ndarray]]) -> bytes:
    """Small multiples: histograms of canary scores and of the control's per model, against N(0, 1)."""
    from matplotlib.patches import Patch
    from matplotlib.patheffects import withStroke

    look, columns = styles(list(scores)), min(3, len(scores))
    rows = math.ceil(len(scores) / columns)
    edges = bin_edges(np.concatenate([part for found in scores.values() for part in found.values()]))
    x = np.linspace(edges[0], edges[-1], 400)
    null = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    dashes: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.4, "label": "N(0, 1): no trace"}
    dashes["path_effects"] = [withStroke(linewidth=3, foreground="white")]
    step: dict[str, Any] = {"density": True, "histtype": "step", "color": "#444444"}
    bars: dict[str, Any] = {"density": True, "alpha": 0.75, "edgecolor": "white", "linewidth": 0.4}
    text: dict[str, Any] = {"ha": "right", "va": "top", "fontsize": 9.5}
    with figure(2.3 * rows + 0.9, rows, columns, sharex=True, sharey=True) as (fig, axes):
        for axis, (name, found) in zip(axes.flat, scores.items(), strict=False):
            deleted, others, control = (found[key] for key in ("deleted", "others", "control"))
            axis.hist(deleted, edges, color=look[name].colour, label="canaries", **bars)
            if others.size:
                axis.hist(others, edges, linestyle=":", linewidth=1.5, label="canaries that were not deleted", **step)
            if control.size:
                axis.hist(control, edges, linestyle="-", linewidth=1.1, label="control: fresh noise", **step)
            axis.plot(x, null, **dashes)
            axis.set_title(name, loc="left", fontweight="bold")
            mean = f"mean {number(float(deleted.mean()))}, n = {deleted.size}"
            axis.text(0.99, 0.985, mean, transform=axis.transAxes, **text)
        axes[0, 0].set_ylim(0, 1.16 * axes[0, 0].get_ylim()[1])  # room for that line; the panels share the axis
        for axis in list(axes.flat)[len(scores) :]:
            axis.set_visible(False)
        for column in range(columns):  # sharex hides the ticks of a panel that has nothing below it
            last = max(i for i in range(len(scores)) if i % columns == column)
            axes.flat[last].tick_params(labelbottom=True)
        fig.supxlabel("Gaussian score I of a canary (standard deviations of the null)", fontsize=10)
        fig.supylabel("density", fontsize=10)
        legend_above(fig, axes, 4, canaries=Patch(facecolor="#999999", edgecolor="white"))  # each panel has its colour
        return png(fig)


def roc_plot(scores: dict[str, dict[str, np.ndarray]]) -> bytes:
    """ROC of the test I > Φ⁻¹(1 − FPR), log axis from 0.001, with the chance line and a line at 1 %."""
    look, caught = styles(list(scores)), {name: recognised(found["deleted"]) for name, found in scores.items()}
    with figure(height_beside_legend(len(scores), 4.6)) as (fig, axes):
        axis = axes[0, 0]
        chance = np.logspace(-3, 0, 200)
        axis.plot(chance, 100 * chance, color="#777777", linewidth=1.2, label="chance: no trace")
        axis.axvline(0.01, color="#777777", linewidth=1, linestyle=":")
        axis.text(0.0104, 101.5, "1 % false positives", color="#444444", fontsize=9, va="bottom", ha="left")
        for name in sorted(scores, key=lambda n: -caught[n]):
            fpr, tpr = gaussian_roc(scores[name]["deleted"])
            axis.plot(
                np.maximum(fpr, 1e-6),
                100 * tpr,
                drawstyle="steps-post",
                color=look[name].colour,
                linestyle=look[name].line,
                linewidth=1.9 if len(scores) <= MAX_SHOWN else 1.2,
                marker=look[name].marker,
                markevery=_marks(fpr),
                markersize=look[name].size,
                label=f"{name}: {percent(caught[name])}",
            )
        axis.set(xscale="log", xlim=(1e-3, 1), ylim=(-2, 102))
        axis.set(xlabel="false-positive rate (log scale)", ylabel="true-positive rate: canaries recognised (%)")
        axis.set_xticks([1e-3, 1e-2, 1e-1, 1], ["0.1 %", "1 %", "10 %", "100 %"])
        title = "recognised at 1 %\nfalse positives:"
        fig.legend(loc="outside right center", title=title, alignment="left", title_fontsize=9.5)
        return png(fig)


def bin_edges(values: np.ndarray) -> np.ndarray:
    """Edges of at most about 48 bins that hold every score, and −4 to 4 in any case."""
    low, high = min(-4.0, math.floor(values.min())), max(4.0, math.ceil(values.max()))
    width = max(_BIN, (high - low) / _MAX_BINS)
    return np.arange(low, high + width, width)


def recognised(scores: np.ndarray) -> float:
    """Share of scores that are a find at 1 % false positives."""
    return float(np.mean(scores > ONE_PERCENT))


def _marks(fpr: np.ndarray) -> list[int]:
    """A marker where the curve crosses each of a few rates, so that curves are told apart without colour."""
    return sorted({int(np.searchsorted(fpr, at)) for at in (0.003, 0.02, 0.1, 0.4)} - {len(fpr)})
