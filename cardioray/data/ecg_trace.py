"""Curves followed through ink, and what they say in each column of a page.

A curve is the way from left to right on which the least white is crossed (Viterbi's path). Going
straight down costs only the white between, so that the steep strokes of a QRS complex, which fill
a column from end to end, are followed like any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d, minimum_filter1d

from cardioray.data.frames import UInt8Image

Plane = NDArray[np.float32]
Floats = NDArray[np.float64]


def follow(
    ink: Plane, *, down: float = 0.25, length: float = 0.02, towards: Plane | None = None
) -> NDArray[np.int64]:
    """The cheapest way through ink from the left edge to the right one.

    Args:
        ink: 0 for paper, 1 for ink, (H, W).
        down: cost of a white px that is crossed downwards or upwards; one that is stood on costs 1.
        length: what such a px costs even where there is ink.
        towards: further cost of each place, (H, W) or (H, 1).

    Returns:
        The row in each column, (W,).
    """
    height, width = ink.shape
    stand = 1 - ink
    if towards is not None:
        stand = stand + towards
    # Crossing happens in the ink of the column before or of this one.
    passed = np.maximum(ink, np.roll(ink, 1, axis=1))
    climbs = np.cumsum(down * (1 - passed) + length, axis=0, dtype=np.float32).T
    climbs = np.ascontiguousarray(climbs)
    stand = np.ascontiguousarray(stand.T)
    totals = np.empty((width, height), np.float32)
    totals[0] = stand[0]
    for column in range(1, width):
        before, climb = totals[column - 1], climbs[column]
        from_above = np.minimum.accumulate(before - climb) + climb
        from_below = np.minimum.accumulate((before + climb)[::-1])[::-1] - climb
        totals[column] = np.minimum(from_above, from_below) + stand[column]
        if column % 256 == 0:  # keeps the sums small, for float32
            totals[column] -= totals[column].min()
    path = np.empty(width, np.int64)
    path[-1] = int(totals[-1].argmin())
    for column in range(width - 1, 0, -1):
        climb = climbs[column]
        path[column - 1] = int((totals[column - 1] + np.abs(climb - climb[path[column]])).argmin())
    return path


def covered(ink: Plane, path: NDArray[np.int64], reach: int = 1) -> NDArray[np.float32]:
    """The most ink within `reach` px of a path, (W,)."""
    height, width = ink.shape
    columns = np.arange(width)
    offsets = range(-reach, reach + 1)
    near = [ink[np.clip(path + offset, 0, height - 1), columns] for offset in offsets]
    result: NDArray[np.float32] = np.max(near, axis=0)
    return result


def take_away(ink: Plane, path: NDArray[np.int64], reach: float) -> None:
    """Make the ink within `reach` px of a path, and all that it crosses, white (in place)."""
    height = len(ink)
    before = np.concatenate([path[:1], path[:-1]])
    low = np.minimum(path, before) - reach
    high = np.maximum(path, before) + reach
    rows = np.arange(height)[:, None]
    ink[(rows >= low) & (rows <= high)] = 0


@dataclass(frozen=True, eq=False)
class Strokes:
    """What a pen left of one curve: the upper and lower rim of its ink in each column, in px.

    Attributes:
        path: the way through the ink, (W,).
        top: first row of ink, (W,).
        bottom: last row of it, (W,).
        seen: where there was ink on the way, (W,).
    """

    path: NDArray[np.int64]
    top: NDArray[np.int64]
    bottom: NDArray[np.int64]
    seen: NDArray[np.bool_]


def strokes(inked: NDArray[np.bool_], path: NDArray[np.int64]) -> Strokes:
    """The ink that a path runs through in each column, as far as it is without a gap.

    Args:
        inked: where ink is, (H, W).
        path: row in each column, (W,).
    """
    height, width = inked.shape
    columns = np.arange(width)
    rows = np.arange(height, dtype=np.int32)[:, None]
    # A px beside the line is on it, too.
    place = path.copy()
    for offset in (-1, 1, -2, 2):
        beside = np.clip(path + offset, 0, height - 1)
        better = ~inked[place, columns] & inked[beside, columns]
        place[better] = beside[better]
    seen = inked[place, columns]
    # The last white row above, and the first one below.
    white = np.where(inked, np.int32(-1), rows)
    above = np.maximum.accumulate(white, axis=0)[place, columns]
    white = np.where(inked, np.int32(height), rows)
    below = np.minimum.accumulate(white[::-1], axis=0)[::-1][place, columns]
    top = np.where(seen, above + 1, path)
    bottom = np.where(seen, below - 1, path)
    return Strokes(path, top, bottom, seen)


def keep_apart(upper: Strokes, lower: Strokes, pen: float, near: int) -> tuple[Strokes, Strokes]:
    """Divide ink that two curves share, where one crosses the other or both meet.

    The curve that goes straight ahead there is only crossed, and keeps the width of a pen. Where
    both rise or fall, each keeps what is nearer to it.

    Args:
        upper: the curve whose row is the higher one.
        lower: the other one.
        pen: thickness of a line in px.
        near: px to both sides in which a curve that moves is steep.
    """
    shared = upper.seen & lower.seen & (upper.bottom >= lower.top)
    if not shared.any():
        return upper, lower
    still = [_range(curve.path, near) <= 3 * pen for curve in (upper, lower)]
    half = max(1, round(pen / 2))
    parts = []
    for curve, other, mine, theirs in (
        (upper, lower, still[0], still[1]),
        (lower, upper, still[1], still[0]),
    ):
        top, bottom = curve.top.copy(), curve.bottom.copy()
        crossed = shared & mine
        top[crossed] = np.maximum(top, curve.path - half)[crossed]
        bottom[crossed] = np.minimum(bottom, curve.path + half)[crossed]
        met = shared & ~mine & ~theirs
        middle = (curve.path + other.path) // 2
        if curve is upper:
            bottom[met] = np.maximum(np.minimum(bottom, middle), curve.path)[met]
        else:
            top[met] = np.minimum(np.maximum(top, middle), curve.path)[met]
        parts.append(Strokes(curve.path, top, bottom, curve.seen))
    return parts[0], parts[1]


def _range(path: NDArray[np.int64], near: int) -> NDArray[np.int64]:
    size = 2 * near + 1
    result: NDArray[np.int64] = maximum_filter1d(path, size) - minimum_filter1d(path, size)
    return result


def centre_line(curve: Strokes, baseline: NDArray[np.floating], pen: float) -> Floats:
    """The curve that a pen has drawn.

    The middle of the ink is right where a curve runs ahead and on the flanks of its waves. At a
    narrow peak both flanks fill the same columns, and the rim is right, less half the pen's width:
    there it is further out than in the columns around.

    Args:
        curve: rims of the stroke.
        baseline: height around which the curve goes, in px, (W,).
        pen: thickness of a line in px.

    Returns:
        Height of the curve in each column in px, (W,); between its neighbours where it was not
        seen.
    """
    columns = np.arange(len(curve.path))
    if not curve.seen.any():
        return np.asarray(baseline, float).copy()
    top = np.interp(columns, columns[curve.seen], curve.top[curve.seen])
    bottom = np.interp(columns, columns[curve.seen], curve.bottom[curve.seen])
    around = 2 * max(1, round(pen)) + 1
    half = (pen - 1) / 2
    line = (top + bottom) / 2
    tall = bottom - top + 1 > 1.5 * pen
    peak = tall & (top <= minimum_filter1d(top, around) + 0.5) & (top < baseline)
    trough = tall & (bottom >= maximum_filter1d(bottom, around) - 0.5) & (bottom > baseline)
    # A column that is both belongs to the wave that goes further.
    higher = baseline - top >= bottom - baseline
    both = peak & trough
    for tips, rim in (
        (peak & (~both | higher), top + half),
        (trough & ~(both & higher), bottom - half),
    ):
        _set_tips(line, tips, rim)
    return line


def _set_tips(line: Floats, tips: NDArray[np.bool_], rim: Floats) -> None:
    """Put the middle of each run of columns on the rim, and its flanks straight between (in place).

    The pen makes a tip as wide as itself.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], tips, [False]]).astype(np.int8)))
    for first, beyond in edges.reshape(-1, 2):
        last = beyond - 1
        low, high = (first + last) // 2, (first + last + 1) // 2
        places, values = [low, high], [rim[low], rim[high]]
        if first > 0:
            places.insert(0, first - 1)
            values.insert(0, line[first - 1])
        if beyond < len(line):
            places.append(beyond)
            values.append(line[beyond])
        line[first:beyond] = np.interp(np.arange(first, beyond), places, values)


def pen_width(curves: list[Strokes]) -> float:
    """Thickness of a line that runs straight ahead, in px."""
    heights = np.concatenate([(c.bottom - c.top + 1)[c.seen] for c in curves])
    return float(np.quantile(heights, 0.3)) if heights.size else 1.0


def as_plane(ink: UInt8Image) -> Plane:
    """Ink as shares of 1."""
    plane: Plane = ink.astype(np.float32) / np.float32(255)
    return plane
