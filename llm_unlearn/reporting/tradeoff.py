"""The plots of price and effect: attack lift and Gaussian score against accuracy, and compute."""

import math
from statistics import NormalDist
from typing import Any

from llm_unlearn.reporting.formats import number, seconds
from llm_unlearn.reporting.labels import place_labels
from llm_unlearn.reporting.results import Results
from llm_unlearn.reporting.run_summary import Statistic, statistics
from llm_unlearn.reporting.style import MAX_SHOWN, Style, figure, png, shown, styles
from llm_unlearn.reporting.tables import interval
from llm_unlearn.reporting.verdicts import ALPHA, COSTLY_POINTS, LIFT_GAP

_ACCURACY = "utility.accuracy"
# section of an evaluation → its number, what its axis says
_EFFECTS = {
    "attack": ("attack.lift", "attack lift (ASR − clean rate, 0 to 1), worse →"),
    "gus": ("gus.mean", "Gaussian Unlearning Score, farther from 0 is worse"),
}
Point = tuple[float, float, tuple[float, float], tuple[float, float]]  # x, y, and each one's reach down and up


def tradeoff_plot(results: Results, section: str) -> bytes:
    """Attack lift or GUS (y) against accuracy in % (x), whiskers, each point named, the retrained model as the target.

    Args:
        section: "attack" or "gus".
    """
    key, label = _EFFECTS[section]
    look = styles(results.names)
    points = {
        name: point
        for name, entries in statistics(results).items()
        if name != "base" and (point := _point(results, name, entries, key))
    }
    with figure(5.2 if len(points) <= MAX_SHOWN else 7.2) as (fig, axes):
        axis = axes[0, 0]
        for name, (x, y, across, along) in points.items():
            style = look[name]
            axis.errorbar(
                [x],
                [y],
                xerr=[[across[0]], [across[1]]],
                yerr=[[along[0]], [along[1]]],
                fmt="none",
                ecolor=style.colour,
                elinewidth=1.3,
                capsize=3,
                alpha=0.65,
                zorder=2,
            )
            target = name == "retrained"
            axis.plot(
                [x],
                [y],
                linestyle="none",
                marker=style.marker,
                color=style.colour,
                markeredgecolor="black",
                markeredgewidth=0.7,
                markersize=19 if target else 10,
                zorder=4 if target else 3,
            )
        _budget_lines(axis, points, look)
        axis.set(xlabel="accuracy on clean test examples (%), better →", ylabel=label)
        axis.margins(0.12)
        _thresholds(axis, points, _remains(results, section, points))
        texts = {name: "retrained: the target" if name == "retrained" else name for name in _named(points)}
        fig.canvas.draw()  # the layout must be settled before labels are placed in pixels
        fig.set_layout_engine("none")
        place_labels(
            axis,
            [(*points[name][:2], text, name == "retrained") for name, text in texts.items()],
            list(points.values()),
        )
        return png(fig)


def _point(results: Results, name: str, entries: dict[str, Statistic], key: str) -> Point | None:
    if key not in entries or _ACCURACY not in entries:
        return None
    x, y = 100 * entries[_ACCURACY].mean, entries[key].mean
    if not (math.isfinite(x) and math.isfinite(y)):
        return None
    if len(results.runs) > 1:
        spread = [100 * (entries[_ACCURACY].sd or 0.0), entries[key].sd or 0.0]
        return x, y, (spread[0], spread[0]), (spread[1], spread[1])
    reaches = []
    for value, number_of, scale in ((x, _ACCURACY, 100.0), (y, key, 1.0)):
        bounds = interval(results.docs(name)[0], number_of)
        low, high = (scale * bounds[0], scale * bounds[1]) if bounds else (value, value)
        reaches.append((max(0.0, value - low), max(0.0, high - value)))
    return x, y, reaches[0], reaches[1]


def _named(points: dict[str, Point]) -> list[str]:
    """The points that get a label: all of a few, or one budget (the largest) per method."""
    if len(points) <= MAX_SHOWN:
        return list(points)
    return shown(list(points))


def _budget_lines(axis: Any, points: dict[str, Point], look: dict[str, Style]) -> None:
    """Join the budgets of one method, which come in rising order, by a thin line."""
    families: dict[str, list[str]] = {}
    for name in points:
        families.setdefault(name.partition("@")[0], []).append(name)
    for family in families.values():
        if len(family) > 1:
            axis.plot(
                [points[n][0] for n in family],
                [points[n][1] for n in family],
                color=look[family[0]].colour,
                linewidth=1,
                alpha=0.6,
                zorder=1,
            )


def _remains(results: Results, section: str, points: dict[str, Point]) -> list[tuple[float, str]]:
    """(level, words) of the lines beyond which the report's rules say that poison remains."""
    if section == "attack":
        words = f"poison remains above (retrained + {LIFT_GAP:g})"
        return [(points["retrained"][1] + LIFT_GAP, words)] if "retrained" in points else []
    n = results.runs[0].models["poisoned"]["gus"]["n"]
    level = NormalDist().inv_cdf(1 - ALPHA / 2) / math.sqrt(n)
    return [(level, f"poison remains above (p < {ALPHA:g} at n = {n})"), (-level, "and below")]


def _thresholds(axis: Any, points: dict[str, Point], levels: list[tuple[float, str]]) -> None:
    """Where the report's rules draw the line: effects that count as poison, accuracy below the poisoned model's."""
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    for level, words in levels:
        low, high = min(low, level - 0.05 * (high - low)), max(high, level + 0.05 * (high - low))
        axis.axhline(level, color="#777777", linestyle=":", linewidth=1.2, zorder=1)
        axis.annotate(
            words,
            (0, level),
            (5, 3 if level > 0 else -3),
            fontsize=8.5,
            color="#444444",
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="left",
            va="bottom" if level > 0 else "top",
        )
    if "poisoned" in points:
        level = points["poisoned"][0] - COSTLY_POINTS
        left = min(left, level - 1)
        axis.axvline(level, color="#777777", linestyle=":", linewidth=1.2, zorder=1)
        axis.annotate(
            f"{COSTLY_POINTS:g} points lost",
            (level, 1),
            (-4, -2),
            fontsize=8.5,
            color="#444444",
            rotation=90,
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right",
            va="top",
        )
    axis.set(xlim=(left, right), ylim=(low, high))


def cost_plot(results: Results) -> bytes:
    """Horizontal bars: compute as a share of the poisoned training's, with the share and the seconds in figures."""
    look, table = styles(results.names), statistics(results)
    names = [name for name in results.names if name != "base"]
    with figure(0.36 * len(names) + 1.1) as (fig, axes):
        axis = axes[0, 0]
        shares = [table[name]["cost.share_of_training"] for name in names]
        reach = [100 * (s.sd or 0.0) for s in shares]
        bars = axis.barh(
            range(len(names)),
            [100 * s.mean for s in shares],
            color=[look[n].colour for n in names],
            height=0.62,
            xerr=reach if any(map(_varies, shares)) else None,
            capsize=3,
        )
        for bar, name in zip(bars, names, strict=True):
            bar.set_hatch({"poisoned": "//", "retrained": ".."}.get(name, ""))
            bar.set_edgecolor("white")
        for i, (name, share) in enumerate(zip(names, shares, strict=True)):
            spread = f" ± {number(100 * share.sd, 1)}" if _varies(share) else ""
            text = f"{number(100 * share.mean, 1)}{spread} % · {seconds(table[name]['cost.seconds'].mean)}"
            axis.annotate(text, (100 * share.mean + reach[i], i), (6, 0), textcoords="offset points", va="center")
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.4, -0.6)  # from the top down
        axis.grid(axis="y", visible=False)
        top = max(100 * s.mean + r for s, r in zip(shares, reach, strict=True))
        axis.set(xlabel="compute (% of the poisoned training's FLOPs)", xlim=(0, 1.24 * max(top, 1e-9)))
        axis.set_xticks([tick for tick in axis.get_xticks() if tick <= max(top, 100)])
        return png(fig)


def _varies(share: Statistic) -> bool:
    """Whether the spread over seeds is large enough to be seen in figures of one decimal."""
    return share.sd is not None and share.sd >= 0.0005
