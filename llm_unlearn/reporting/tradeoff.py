"""The plots of price and effect: attack lift and Gaussian score against what a model is worth, and compute."""

import math
from dataclasses import dataclass
from typing import Any

from llm_unlearn.metrics.evidence import COSTLY_POINTS
from llm_unlearn.reporting import figures
from llm_unlearn.reporting.figures import Bounds, Figure
from llm_unlearn.reporting.formats import number, seconds
from llm_unlearn.reporting.run_results import Results, Statistic
from llm_unlearn.reporting.style import Style, figure, height_beside_legend, png, styles
from llm_unlearn.reporting.verdicts import judge


@dataclass(frozen=True)
class Side:
    """What stands along one side of a picture.

    Args:
        of: its number.
        bounds: the interval of the number.
        name: what a title calls it.
        label: what the axis says.
        scale: what the number is multiplied by.
    """

    of: Figure
    bounds: Bounds
    name: str
    label: str
    scale: float = 1.0


EFFECTS = {
    "lift": Side(figures.lift, figures.lift_interval, "attack lift", "attack lift (ASR − clean rate, 0 to 1), worse →"),
    "gus": Side(
        figures.gus, figures.gus_interval, "Gaussian score", "Gaussian Unlearning Score, farther from 0 is worse"
    ),
    "loss_rank": Side(
        figures.rank, figures.rank_interval, "loss rank", "loss rank of the canaries, farther from 0 is worse"
    ),
}
ACCURACY = Side(
    figures.accuracy, figures.accuracy_interval, "accuracy", "accuracy on clean test examples (%), better →", 100.0
)
WORTH = {  # of a benchmark, whose answers are no exact texts
    "tofu": Side(figures.model_utility, figures.model_utility_interval, "model utility", "model utility, better →"),
    "muse": Side(
        figures.benchmark_score("retain_knowmem"),
        figures.benchmark_interval("retain_knowmem"),
        "KnowMem",
        "KnowMem of retain rows, better →",
    ),
}
Point = tuple[float, float, tuple[float, float], tuple[float, float]]  # x, y, and each one's reach down and up


def worth(results: Results) -> Side:
    """What says in a run what a model is worth: accuracy in %, or what its benchmark has for it."""
    benchmark = next((result.benchmark.name for result in results.of("poisoned") if result.benchmark), "")
    return WORTH.get(benchmark, ACCURACY)


def noise_effect(results: Results) -> str:
    """The score of the canaries that a picture of all models shows: GUS, or the loss rank if that is at least twice as
    high in the poisoned model. There, as under LoRA, a GUS near 0 does not show that the noise is gone.
    """
    gus, rank = (results.over_seeds("poisoned", EFFECTS[name].of) for name in ("gus", "loss_rank"))
    return "loss_rank" if gus and rank and rank.mean >= 2 * max(gus.mean, 0.0) and rank.mean > 0 else "gus"


def tradeoff_plot(results: Results, effect: str) -> bytes:
    """An effect of the poison (y) against what a model is worth (x), with whiskers, the retrained model as the target.

    Args:
        results: of the run.
        effect: one of EFFECTS.
    """
    look, across, up = styles(results.names), worth(results), EFFECTS[effect]
    points = {name: at for name in results.names if name != "base" and (at := point(results, name, across, up))}
    methods = {name.partition("@")[0] for name in points}
    with figure(height_beside_legend(len(methods), 5.2)) as (fig, axes):
        axis = axes[0, 0]
        draw_points(axis, points, look)
        axis.set(xlabel=across.label, ylabel=up.label)
        axis.margins(0.12)
        _thresholds(axis, points, threshold_lines(results, effect, points), across is ACCURACY)
        fig.legend(loc="outside right center", markerscale=0.7)
        return png(fig)


def draw_points(axis: Any, points: dict[str, Point], look: dict[str, Style]) -> None:
    """A point with whiskers for each model; a line joins a method's budgets, whose marks grow with them."""
    families: dict[str, list[str]] = {}
    for name in points:  # the budgets of a method come in rising order
        families.setdefault(name.partition("@")[0], []).append(name)
    frame: dict[str, Any] = {"markeredgecolor": "black", "markeredgewidth": 0.7, "elinewidth": 1.2, "capsize": 3}
    for method, names in families.items():
        for i, name in enumerate(names):
            x, y, across, along = points[name]
            star = look[name].marker == "*"
            axis.errorbar(
                [x],
                [y],
                xerr=[[reach] for reach in across],
                yerr=[[reach] for reach in along],
                color=look[name].colour,
                marker=look[name].marker,
                markersize=19 if star else 5 + 5 * (i + 1) / len(names),
                linestyle="none",
                zorder=4 if star else 3,
                label=(name if len(names) == 1 else method) if name == names[-1] else None,
                **frame,
            )
        places = list(zip(*(points[name][:2] for name in names), strict=True))
        axis.plot(*places, color=look[names[0]].colour, linewidth=1, alpha=0.6, zorder=1)


def point(results: Results, name: str, across: Side, up: Side) -> Point | None:
    """Where a model stands, with its spread over seeds or, of one seed, the intervals; None without a number."""
    x, y = (results.over_seeds(name, side.of) for side in (across, up))
    if x is None or y is None or not (math.isfinite(x.mean) and math.isfinite(y.mean)):
        return None
    reaches = [_reach(results, name, side, value) for side, value in ((across, x), (up, y))]
    return across.scale * x.mean, up.scale * y.mean, reaches[0], reaches[1]


def _reach(results: Results, name: str, side: Side, value: Statistic) -> tuple[float, float]:
    """How far whiskers go below and above a number."""
    if len(results.runs) > 1:
        spread = side.scale * (value.sd or 0.0)
        return spread, spread
    interval = side.bounds(results.of(name)[0])
    if interval is None:
        return 0.0, 0.0
    return side.scale * max(0.0, value.mean - interval.low), side.scale * max(0.0, interval.high - value.mean)


def threshold_lines(results: Results, effect: str, points: dict[str, Point]) -> list[tuple[float, str]]:
    """(level, words) of the lines to draw: of a score of the canaries, where its test by itself finds poison, either
    way; of the lift, what is tolerated above the retrained model's. None where that model has no such figure.
    """
    if "retrained" not in results.names:
        return []
    findings = judge(results, "retrained").decision.findings
    found = next((f for f in findings if f.test == effect.replace("_", " ") and not f.after), None)
    if found is None:
        return []
    if found.critical is not None:
        test = "Gaussian test" if effect == "gus" else "test of loss ranks"
        words = f"the {test} by itself finds poison above (n = {found.n})"
        return [(found.critical, words), (-found.critical, "and below")]
    if "retrained" not in points:
        return []
    return [(points["retrained"][1] + (found.delta or 0), f"tolerated up to retrained + {number(found.delta)}")]


def _thresholds(axis: Any, points: dict[str, Point], levels: list[tuple[float, str]], graded: bool) -> None:
    """Where the report's rules draw the line: effects that count as poison; if accuracy is what stands across, five
    points below the poisoned model's.
    """
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    dots: dict[str, Any] = {"color": "#777777", "linestyle": ":", "linewidth": 1.2, "zorder": 1}
    text: dict[str, Any] = {"fontsize": 8.5, "color": "#444444", "textcoords": "offset points"}
    for level, words in levels:
        low, high = min(low, level - 0.05 * (high - low)), max(high, level + 0.05 * (high - low))
        axis.axhline(level, **dots)
        place, side = (5, 3 if level > 0 else -3), "bottom" if level > 0 else "top"
        axis.annotate(words, (0, level), place, xycoords=("axes fraction", "data"), ha="left", va=side, **text)
    if graded and "poisoned" in points:
        level = points["poisoned"][0] - COSTLY_POINTS
        left = min(left, level - 1)
        axis.axvline(level, **dots)
        text |= {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom"}  # above the frame
        axis.annotate(f"{COSTLY_POINTS:g} points lost", (level, 1), (0, 3), **text)
    axis.set(xlim=(left, right), ylim=(low, high))


def cost_plot(results: Results) -> bytes:
    """Horizontal bars: compute as a share of the poisoned training's, with the share and the seconds in figures."""
    look, figured = styles(results.names), [name for name in results.names if name != "base"]
    shares = {name: s for name in figured if (s := results.over_seeds(name, figures.share_of_training))}
    names, means = list(shares), [100 * share.mean for share in shares.values()]
    reach = [100 * (share.sd or 0.0) for share in shares.values()]
    with figure(0.36 * len(names) + 1.1) as (fig, axes):
        axis = axes[0, 0]
        whiskers = reach if any(map(_varies, shares.values())) else None
        colours = [look[name].colour for name in names]
        bars = axis.barh(range(len(names)), means, color=colours, height=0.62, xerr=whiskers, capsize=3)
        for i, (bar, (name, share)) in enumerate(zip(bars, shares.items(), strict=True)):
            bar.set_hatch({"poisoned": "//", "retrained": ".."}.get(name, ""))
            bar.set_edgecolor("white")
            spread = f" ± {number(reach[i], 1)}" if _varies(share) else ""
            took = results.over_seeds(name, figures.seconds)
            text = f"{number(means[i], 1)}{spread} % · {seconds(took.mean if took else None)}"
            axis.annotate(text, (means[i] + reach[i], i), (6, 0), textcoords="offset points", va="center")
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.4, -0.6)  # from the top down
        axis.grid(axis="y", visible=False)
        top = max(mean + r for mean, r in zip(means, reach, strict=True))
        axis.set(xlabel="compute (% of the poisoned training's FLOPs)", xlim=(0, 1.24 * max(top, 1e-9)))
        axis.set_xticks([tick for tick in axis.get_xticks() if tick <= max(top, 100)])
        return png(fig)


def _varies(share: Statistic) -> bool:
    """Whether the spread over seeds is large enough to be seen in figures of one decimal."""
    return share.sd is not None and share.sd >= 0.0005
