"""The report's pictures: which there are for these results, and the two of the Gaussian test."""

import math
from dataclasses import dataclass

import numpy as np

from llm_unlearn.metrics.gaussian import gaussian_roc
from llm_unlearn.reporting.formats import number, percent
from llm_unlearn.reporting.run_results import ONE_PERCENT, Results, canary_scores
from llm_unlearn.reporting.style import MAX_SHOWN, figure, png, shown, styles
from llm_unlearn.reporting.tradeoff import cost_plot, tradeoff_plot

_BIN = 0.5
_MAX_BINS = 48


@dataclass(frozen=True)
class Plot:
    """A picture with what stands for it where it cannot be seen."""

    name: str
    title: str
    caption: str
    alt: str
    content: bytes


def all_plots(results: Results) -> list[Plot]:
    """Every plot that these results allow; one whose poison or whose per-example file is absent is left out."""
    plots = []
    several = len(results.runs) > 1
    pooled = f" Scores of {len(results.runs)} seeds together." if several else ""
    scores = {}
    if results.has_gus:
        scores = {name: found for name in shown(results.names) if (found := canary_scores(results, name))}
    if scores:
        means = ", ".join(f"{name} {number(float(s['deleted'].mean()))}" for name, s in scores.items())
        rates = ", ".join(f"{name} {percent(recognised(s['deleted']))}" for name, s in scores.items())
        plots += [
            Plot(
                "gaussian_scores",
                "What is left of the noise: Gaussian scores",
                "One score per canary, against the density of a model without any trace of the noise. Mass to the "
                f"right of it is poison that remains.{pooled}",
                f"Histograms of the Gaussian scores of each model against the N(0, 1) density. Mean scores: {means}.",
                scores_plot(scores),
            ),
            Plot(
                "gaussian_roc",
                "How well single canaries are recognised: ROC of the Gaussian test",
                "The null is the analytic N(0, 1), not a sample. On the chance line the canaries look like noise that "
                f"was never used; each step is one canary.{pooled}",
                "ROC curves of the Gaussian test per model on a log axis. True-positive rates at 1 % false positives: "
                f"{rates}.",
                roc_plot(scores),
            ),
        ]
    whiskers = "± one standard deviation over seeds" if several else "95 % confidence intervals"
    for planted, key, what in ((results.has_attack, "lift", "attack lift"), (results.has_gus, "gus", "Gaussian score")):
        if planted:
            plots.append(
                Plot(
                    f"{key}_vs_utility",
                    f"What removing it costs: {what} against accuracy",
                    f"The target is the retrained model (star). Whiskers: {whiskers}. Dotted: from where on this "
                    "report speaks of poison that remains, and of a cost. The base model is left out; a line joins "
                    "a method's budgets, the largest mark is the largest.",
                    f"{what.capitalize()} against accuracy, one point per model; the numbers are in the table above.",
                    tradeoff_plot(results, key),
                )
            )
    plots.append(
        Plot(
            "cost",
            "Compute spent",
            "FLOPs as a share of the poisoned training's; wall-clock time beside it.",
            "Horizontal bars: compute of each model as a share of the poisoned training; see the table above.",
            cost_plot(results),
        )
    )
    return plots


def scores_plot(scores: dict[str, dict[str, np.ndarray]]) -> bytes:
    """Small multiples: histograms of canary scores and of the control's per model, against N(0, 1)."""
    from matplotlib.patches import Patch
    from matplotlib.patheffects import withStroke

    look = styles(list(scores))
    columns = min(3, len(scores))
    rows = math.ceil(len(scores) / columns)
    edges = bin_edges(np.concatenate([part for found in scores.values() for part in found.values()]))
    x = np.linspace(edges[0], edges[-1], 400)
    null = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    halo = [withStroke(linewidth=3, foreground="white")]
    with figure(2.3 * rows + 0.9, rows, columns, sharex=True, sharey=True) as (fig, axes):
        for axis, (name, found) in zip(axes.flat, scores.items(), strict=False):
            deleted = found["deleted"]
            axis.hist(
                deleted,
                edges,
                density=True,
                color=look[name].colour,
                alpha=0.75,
                edgecolor="white",
                linewidth=0.4,
                label="canaries",
            )
            for key, line, width, label in (
                ("others", ":", 1.5, "canaries that were not deleted"),
                ("control", "-", 1.1, "control: fresh noise"),
            ):
                if found[key].size:
                    axis.hist(
                        found[key],
                        edges,
                        density=True,
                        histtype="step",
                        color="#444444",
                        linestyle=line,
                        linewidth=width,
                        label=label,
                    )
            axis.plot(
                x, null, color="black", linestyle="--", linewidth=1.4, label="N(0, 1): no trace", path_effects=halo
            )
            axis.set_title(name, loc="left", fontweight="bold")
            axis.text(
                0.99,
                0.985,
                f"mean {number(float(deleted.mean()))}, n = {deleted.size}",
                ha="right",
                va="top",
                transform=axis.transAxes,
                fontsize=9.5,
            )
        axes[0, 0].set_ylim(0, 1.16 * axes[0, 0].get_ylim()[1])  # room for that line; the panels share the axis
        for axis in list(axes.flat)[len(scores) :]:
            axis.set_visible(False)
        for column in range(columns):  # sharex hides the ticks of a panel that has nothing below it
            last = max(i for i in range(len(scores)) if i % columns == column)
            axes.flat[last].tick_params(labelbottom=True)
        fig.supxlabel("Gaussian score I of a canary (standard deviations of the null)", fontsize=10)
        fig.supylabel("density", fontsize=10)
        entries = {}
        for axis in axes.flat:
            entries.update({label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)})
        entries["canaries"] = Patch(facecolor="#999999", edgecolor="white")  # each panel has a colour of its own
        fig.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=len(entries))
        return png(fig)


def roc_plot(scores: dict[str, dict[str, np.ndarray]]) -> bytes:
    """ROC of the test I > Φ⁻¹(1 − FPR), log axis from 0.001, with the chance line and a line at 1 %."""
    look = styles(list(scores))
    with figure(max(4.6, 0.205 * len(scores) + 0.7)) as (fig, axes):  # the legend has a line for each
        axis = axes[0, 0]
        chance = np.logspace(-3, 0, 200)
        axis.plot(chance, 100 * chance, color="#777777", linewidth=1.2, label="chance: no trace")
        axis.axvline(0.01, color="#777777", linewidth=1, linestyle=":")
        axis.text(0.0104, 101.5, "1 % false positives", color="#444444", fontsize=9, va="bottom", ha="left")
        curves = {name: gaussian_roc(found["deleted"]) for name, found in scores.items()}
        for name in sorted(curves, key=lambda n: -recognised(scores[n]["deleted"])):
            fpr, tpr = (np.asarray(part, dtype=float) for part in curves[name])
            style = look[name]
            axis.plot(
                np.maximum(fpr, 1e-6),
                100 * tpr,
                drawstyle="steps-post",
                color=style.colour,
                linestyle=style.line,
                linewidth=1.9 if len(scores) <= MAX_SHOWN else 1.2,
                marker=style.marker,
                markevery=_marks(fpr),
                markersize=9 if style.marker == "*" else 6,
                label=f"{name}: {percent(recognised(scores[name]['deleted']))}",
            )
        axis.set(
            xscale="log",
            xlim=(1e-3, 1),
            ylim=(-2, 102),
            xlabel="false-positive rate (log scale)",
            ylabel="true-positive rate: canaries recognised (%)",
        )
        axis.set_xticks([1e-3, 1e-2, 1e-1, 1], ["0.1 %", "1 %", "10 %", "100 %"])
        fig.legend(
            loc="outside right center",
            title="recognised at 1 %\nfalse positives:",
            alignment="left",
            title_fontsize=9.5,
        )
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
