"""Put a name beside each point of a scatter plot so that no name covers another, a point or a whisker."""

import math
from itertools import pairwise, product
from typing import Any

Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels

_RADII = (13, 20, 30, 42, 56, 74, 96)  # points of type
_ANGLES = (20, 160, -20, -160, 60, 120, -60, -120, 90, -90, 0, 180)


def place_labels(axis: Any, labels: list[tuple[float, float, str, bool]], whiskers: list[tuple]) -> list[Box]:
    """Write each label at the nearest free place around its point, with a thin line to it where that is far.

    Args:
        axis: matplotlib axes whose limits and layout are final.
        labels: (x, y, text, bold) in data coordinates.
        whiskers: (x, y, (left, right), (down, up)) per point, in data coordinates; names keep off them.
    Returns:
        The boxes that the labels took, in pixels.
    """
    renderer = axis.figure.canvas.get_renderer()
    scale = axis.figure.dpi / 72
    frame = _box(axis.get_window_extent(renderer))
    taken: list[Box] = [_box(text.get_window_extent(renderer)) for text in axis.texts]
    for x, y, across, along in whiskers:
        px, py = axis.transData.transform((x, y))
        (left, _), (right, _) = axis.transData.transform([(x - across[0], y), (x + across[1], y)])
        (_, low), (_, high) = axis.transData.transform([(x, y - along[0]), (x, y + along[1])])
        mark = 7 * scale
        taken += [
            (px - mark, py - mark, px + mark, py + mark),
            (left - 2, py - 3, right + 2, py + 3),
            (px - 3, low - 2, px + 3, high + 2),
        ]
    lines = [box for line in axis.lines if len(line.get_xdata()) > 1 for box in _line_boxes(line)]
    placed: list[Box] = []
    for x, y, text, bold in labels:
        note = axis.annotate(
            text,
            (x, y),
            (0, 0),
            textcoords="offset points",
            fontsize=9.5,
            fontweight="bold" if bold else "normal",
            ha="center",
            va="center",
        )
        own = _box(note.get_window_extent(renderer))
        size = ((own[2] - own[0]) / scale, (own[3] - own[1]) / scale)
        point = axis.transData.transform((x, y))
        best = min(_candidates(size), key=lambda c: _clash(_at(point, c[:2], size, scale), taken, lines, frame) + c[2])
        note.set_position(best[:2])
        box = _at(point, best[:2], size, scale)
        if best[2] >= 2 or _nearest(axis, box, whiskers) != (x, y):
            _leader(axis, (x, y), best[:2], size)
        taken.append(box)
        placed.append(box)
    return placed


def _line_boxes(line: Any) -> list[Box]:
    """Small boxes along a line, for names to keep off it where they can."""
    points = line.get_transform().transform(line.get_xydata())
    steps = [(a + (b - a) * i / 40) for a, b in pairwise(points) for i in range(41)]
    return [(x - 2, y - 2, x + 2, y + 2) for x, y in steps]


def _nearest(axis: Any, box: Box, whiskers: list[tuple]) -> tuple[float, float]:
    """The point that a reader would take a label for: the one nearest to its box."""

    def distance(point: tuple[float, float]) -> float:
        px, py = axis.transData.transform(point)
        return math.hypot(max(box[0] - px, 0, px - box[2]), max(box[1] - py, 0, py - box[3]))

    return min(((x, y) for x, y, _, _ in whiskers), key=distance)


def _candidates(size: tuple[float, float]) -> list[tuple[float, float, float]]:
    """Offsets of a label's middle from its point, in points of type, with a small price for distance."""
    found = []
    for step, radius in enumerate(_RADII):
        for order, angle in enumerate(_ANGLES):
            dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            side = 0.0 if abs(dx) < 0.3 else math.copysign(size[0] / 2, dx)
            found.append((radius * dx + side, radius * dy, step + order / 100))
    return found


def _at(point: Any, offset: tuple[float, float], size: tuple[float, float], scale: float) -> Box:
    x, y = point[0] + offset[0] * scale, point[1] + offset[1] * scale
    half = (size[0] * scale / 2 + 2, size[1] * scale / 2 + 1)
    return x - half[0], y - half[1], x + half[0], y + half[1]


def _clash(box: Box, taken: list[Box], lines: list[Box], frame: Box) -> float:
    """The price of a place: leaving the frame is the worst, then covering something, then lying on a guide line."""
    outside = box[0] < frame[0] or box[1] < frame[1] or box[2] > frame[2] or box[3] > frame[3]
    return (
        1000.0 * outside
        + 100.0 * sum(overlap(box, other) for other in taken)
        + 0.5 * sum(overlap(box, other) for other in lines)
    )


def overlap(a: Box, b: Box) -> bool:
    """Whether two boxes share any area."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _leader(axis: Any, point: tuple[float, float], offset: tuple[float, float], size: tuple[float, float]) -> None:
    sides = product((-0.5, 0, 0.5), (-0.5, 0, 0.5))
    corners = [(offset[0] + sx * size[0], offset[1] + sy * size[1]) for sx, sy in sides]
    near = min(corners, key=lambda c: math.hypot(*c))
    axis.annotate(
        "",
        point,
        near,
        textcoords="offset points",
        zorder=1,
        arrowprops={"arrowstyle": "-", "color": "#888888", "linewidth": 0.7, "shrinkA": 1, "shrinkB": 5},
    )


def _box(extent: Any) -> Box:
    return extent.x0, extent.y0, extent.x1, extent.y1
