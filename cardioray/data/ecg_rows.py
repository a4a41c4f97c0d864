"""Rows of curves on a page, what each says, and the calibration pulses before them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d, median_filter, uniform_filter1d

from cardioray.data.ecg_trace import (
    Floats,
    Plane,
    Strokes,
    as_plane,
    centre_line,
    covered,
    follow,
    keep_apart,
    pen_width,
    strokes,
    take_away,
)
from cardioray.data.frames import UInt8Image

# Rows are looked for at this resolution.
_COARSE = 4.0
_MOST_ROWS = 16
# Share of its columns in which a curve has ink. Curves have .90 or more, lines of text .78 or less.
_LEAST_COVER = 0.86
# Share of a page that is ink, at most: real pages have .09 or less, noise has .2.
_MOST_INK = 0.16
# A row is at least this long, and at least this share of the longest.
_LEAST_MM = 130.0
_LEAST_SHARE = 0.8
# A line that is within .3 mm of its running median over more than this share is no curve.
_SMOOTH = 0.97
# Share of the page's darkness that is ink.
_INKED = 0.35


@dataclass(frozen=True, eq=False)
class Row:
    """One curve from the left of a page to its right.

    Attributes:
        path: its height in each column of the page, px, (W,); of no meaning outside.
        first: column in which it begins.
        last: column in which it ends.
        cover: share of the columns between in which it has ink.
    """

    path: NDArray[np.int64]
    first: int
    last: int
    cover: float

    @property
    def middle(self) -> float:
        """Middle height."""
        return float(np.median(self.path[self.first : self.last + 1]))


def find_rows(ink: UInt8Image, px_per_mm: float) -> list[Row]:
    """Curves that go over the page, from top to bottom.

    One way through the ink after another is followed and taken away, the darkest first, until
    what is left is no curve any more: letters have gaps.
    """
    height, width = ink.shape
    scale = _COARSE / px_per_mm
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    small = cv2.resize(ink, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    plane = np.minimum(1, as_plane(small) * np.float32(1.6))
    if (plane > 0.4).mean() > _MOST_INK:
        return []
    found: list[Row] = []
    smooth: list[Row] = []
    misses = 0
    while len(found) + len(smooth) < _MOST_ROWS and misses < 2:
        path = follow(plane)
        row = _as_row(plane, path)
        take_away(plane, path, 1.2 * _COARSE)
        if row is None:
            misses += 1
        else:
            (smooth if _is_smooth(row) else found).append(row)
    if not found:
        return []
    found += _flat_leads(smooth, found)
    longest = max(row.last - row.first for row in found)
    columns = np.minimum((np.arange(width) + 0.5) * size[0] / width, size[0] - 1).astype(int)
    rows = [
        Row(
            np.round((row.path[columns] + 0.5) * height / size[1] - 0.5).astype(np.int64),
            round(row.first * width / size[0]),
            min(width - 1, round((row.last + 1) * width / size[0]) - 1),
            row.cover,
        )
        for row in found
        if row.last - row.first >= _LEAST_SHARE * longest
    ]
    return sorted(rows, key=lambda row: row.middle)


def _as_row(plane: Plane, path: NDArray[np.int64]) -> Row | None:
    inked = covered(plane, path) > 0.4
    share = uniform_filter1d(inked.astype(np.float32), round(10 * _COARSE), mode="constant")
    on = np.flatnonzero(share > 0.6)
    if len(on) == 0:
        return None
    # The window reaches over the ends by some: they are where ink begins and ends.
    inside = np.flatnonzero(inked[on[0] : on[-1] + 1])
    if len(inside) == 0:
        return None
    first, last = int(on[0] + inside[0]), int(on[0] + inside[-1])
    reach = round(5 * _COARSE)
    before = np.flatnonzero(inked[max(0, first - reach) : first])
    after = np.flatnonzero(inked[last + 1 : last + 1 + reach])
    if len(before):
        first = max(0, first - reach) + int(before[0])
    if len(after):
        last = last + 1 + int(after[-1])
    first, last = _trimmed(path, first, last)
    cover = float(inked[first : last + 1].mean())
    if last - first < _LEAST_MM * _COARSE or cover < _LEAST_COVER:
        return None
    return Row(path, first, last, cover)


def _trimmed(path: NDArray[np.int64], first: int, last: int) -> tuple[int, int]:
    """The ends of a row without what lies far above or below it, as letters of a heading do."""
    away, inside = 15 * _COARSE, round(40 * _COARSE)
    if last - first < 2 * inside:
        return first, last
    near = np.abs(path[first : first + inside] - np.median(path[first : first + inside])) < away
    near_end = np.abs(path[last - inside : last] - np.median(path[last - inside : last])) < away
    return first + int(near.argmax()), last - int(near_end[::-1].argmax())


def _is_smooth(row: Row) -> bool:
    """Whether no wave leaves the running median: a frame, an edge, or a lead that is off."""
    path = row.path[row.first : row.last + 1]
    slow = median_filter(path.astype(float), round(20 * _COARSE) + 1, mode="nearest")
    return float((np.abs(path - slow) <= 0.3 * _COARSE).mean()) > _SMOOTH


def _flat_leads(smooth: list[Row], rows: list[Row]) -> list[Row]:
    """Smooth lines that begin and end where the other rows do."""
    first = float(np.median([row.first for row in rows]))
    last = float(np.median([row.last for row in rows]))
    near = 3 * _COARSE
    return [
        row
        for row in smooth
        if abs(row.first - first) < near and abs(row.last - last) < near and len(rows) >= 2
    ]


@dataclass(frozen=True, eq=False)
class Curve:
    """What a row says.

    Attributes:
        row: where it is.
        strokes: its ink.
        line: height of the curve in each column of the page, px with fractions, (W,).
    """

    row: Row
    strokes: Strokes
    line: Floats


def trace_rows(ink: UInt8Image, rows: list[Row], px_per_mm: float) -> list[Curve]:
    """Follow each row at full resolution, and keep rows apart that reach into each other."""
    plane = np.minimum(1, as_plane(ink) / np.float32(0.45))
    # Steep strokes are thin, and break where a scan is coarse: gaps of .4 mm are bridged.
    gap = max(1, round(0.4 * px_per_mm))
    bridge = np.ones((gap + 1, 1), np.uint8)
    inked = cv2.morphologyEx((ink > _INKED * 255).astype(np.uint8), cv2.MORPH_CLOSE, bridge) > 0
    height = len(ink)
    found = []
    for number, row in enumerate(rows):
        # As far as the middle of the rows beside, or where this one reaches.
        top = round(rows[number - 1].middle) if number else 0
        bottom = round(rows[number + 1].middle) if number + 1 < len(rows) else height
        top = max(0, min(top, int(row.path.min()) - 4))
        bottom = min(height, max(bottom, int(row.path.max()) + 5))
        off_mm = np.abs(np.arange(top, bottom) - row.middle)[:, None] / px_per_mm
        towards = (0.002 * off_mm).astype(np.float32)
        path = follow(plane[top:bottom], down=0.15, length=0.005, towards=towards) + top
        # Waves may go on beyond the rows beside.
        beyond = max(0, 2 * top - bottom)
        one = strokes(inked[beyond : min(height, 2 * bottom - top)], path - beyond)
        found.append(Strokes(path, one.top + beyond, one.bottom + beyond, one.seen))
    pen = pen_width(found)
    near = max(1, round(0.4 * px_per_mm))
    for number in range(len(found) - 1):
        found[number : number + 2] = keep_apart(found[number], found[number + 1], pen, near)
    return [
        Curve(row, one, centre_line(one, _wander(one.path, px_per_mm), pen))
        for row, one in zip(rows, found, strict=True)
    ]


def without_marks(curves: list[Curve], bounds: Floats, px_per_mm: float) -> list[Curve]:
    """The rows with the marks gone that stand on them between columns of leads.

    Where two rows or more are taller than 3 mm at the very end of a column, a bar stands there:
    each lead goes on at the height that it has beside the bar.

    Args:
        curves: rows of leads.
        bounds: where columns begin and end, px.
        px_per_mm: resolution.
    """
    reach = max(2, round(0.8 * px_per_mm))
    width = len(curves[0].line)
    pen = pen_width([curve.strokes for curve in curves])
    lines = [curve.line.copy() for curve in curves]
    tops = [curve.strokes.top.copy() for curve in curves]
    bottoms = [curve.strokes.bottom.copy() for curve in curves]
    for bound in bounds:
        middle = round(bound)
        first, last = max(0, middle - reach), min(width, middle + reach + 1)
        if last - first < 3:
            continue
        heights = [b - t for t, b in zip(tops, bottoms, strict=True)]
        tall = [float(height[first:last].max()) > 3 * px_per_mm for height in heights]
        if sum(tall) < min(2, len(curves)):
            continue
        for line, top, bottom in zip(lines, tops, bottoms, strict=True):
            before = line[max(0, first - reach) : first]
            after = line[last : last + reach]
            cut = min(max(middle, first), last)
            if len(before):
                line[first:cut] = np.median(before)
            if len(after):
                line[cut:last] = np.median(after)
            top[first:last] = np.maximum(top[first:last], np.floor(line[first:last] - pen / 2))
            bottom[first:last] = np.minimum(bottom[first:last], np.ceil(line[first:last] + pen / 2))
    return [
        Curve(curve.row, replace(curve.strokes, top=top, bottom=bottom), line)
        for curve, line, top, bottom in zip(curves, lines, tops, bottoms, strict=True)
    ]


def _wander(path: NDArray[np.int64], px_per_mm: float) -> Floats:
    """The slow part of a path: its running median over 20 mm."""
    step = max(1, round(px_per_mm / 2))
    sparse = median_filter(path[::step].astype(float), 41, mode="nearest")
    result: Floats = np.interp(np.arange(len(path)), np.arange(len(sparse)) * step, sparse)
    return result


@dataclass(frozen=True)
class Pulse:
    """A calibration pulse.

    Attributes:
        first: column of its rising edge.
        last: column of its falling edge.
        height: px from the baseline up to its top; negative for one that points down.
    """

    first: int
    last: int
    height: float


def find_pulses(curves: list[Curve], px_per_mm: float) -> list[Pulse | None]:
    """The pulse with which each row begins or ends: a flat top between steep edges.

    Pulses stand on one side of a page and are equally high in all its rows; what only one row has
    is none, unless it is 10 mm high.

    Args:
        curves: rows of a page.
        px_per_mm: resolution.

    Returns:
        One for each row, or None where it has none.
    """
    reach = round(18 * px_per_mm)
    found: list[tuple[int, bool, Pulse]] = []
    for number, curve in enumerate(curves):
        first, last = curve.row.first, curve.row.last
        if last - first < 3 * reach:
            continue
        for begin, end, at_start in ((first, first + reach, True), (last - reach, last, False)):
            # Where a picture ends with the row, it may have cut a pulse.
            near_edge = first < px_per_mm if at_start else last > len(curve.line) - px_per_mm
            part = curve.line[begin : end + 1]
            for pulse in _flat_tops(part, px_per_mm, at_start, near_edge):
                moved = Pulse(begin + pulse.first, begin + pulse.last, pulse.height)
                found.append((number, at_start, moved))
    best: dict[int, Pulse] = {}
    best_worth = 0.0
    for _, side, model in found:
        alike: dict[int, Pulse] = {}
        for number, at_start, pulse in found:
            near = abs(pulse.first - model.first) < 12 * px_per_mm
            equal = abs(pulse.height / model.height - 1) < 0.1
            if at_start == side and near and equal and number not in alike:
                alike[number] = pulse
        usual = 0.92 < model.height / px_per_mm / 10 < 1.08
        worth = len(alike) + 0.5 * usual + 0.1 * (model.height > 0)
        if worth > best_worth and (usual or len(alike) >= max(2, len(curves) / 2)):
            best, best_worth = alike, worth
    return [best.get(number) for number in range(len(curves))]


def _flat_tops(line: Floats, px_per_mm: float, at_start: bool, cut: bool) -> list[Pulse]:
    """Flat tops 1.8 to 7.5 mm wide; at the edge of a picture, what is left of one."""
    step = max(1, round(0.8 * px_per_mm))
    change = np.zeros(len(line))
    change[step // 2 : len(line) - (step - step // 2)] = line[step:] - line[:-step]
    edges = _peaks(np.abs(change), 3.5 * px_per_mm, round(1.2 * px_per_mm))
    pairs = list(zip(edges[:-1], edges[1:], strict=True))
    if edges and cut:
        pairs.insert(0, (0, edges[0]) if at_start else (edges[-1], len(line) - 1))
    margin, wide = max(1, round(0.6 * px_per_mm)), round(1.8 * px_per_mm)
    found = []
    for left, right in pairs:
        cut_left, cut_right = left == 0, right == len(line) - 1
        least = 1.0 if cut_left or cut_right else 1.8
        if not least * px_per_mm <= right - left <= 7.5 * px_per_mm:
            continue
        top = line[left + (0 if cut_left else margin) : right - (0 if cut_right else margin) + 1]
        if len(top) < 2 or np.quantile(top, 0.9) - np.quantile(top, 0.1) > 0.8 * px_per_mm:
            continue
        before, after = line[max(0, left - wide) : left - margin + 1], line[right + margin :][:wide]
        beside = [float(np.median(part)) for part in (before, after) if len(part)]
        if not beside or max(beside) - min(beside) > 1.5 * px_per_mm:
            continue
        height = sum(beside) / len(beside) - float(np.median(top))
        if abs(height) >= 3.5 * px_per_mm:
            found.append(Pulse(int(left), int(right), height))
    return found


def _peaks(values: Floats, least: float, apart: int) -> list[int]:
    tops = (values >= least) & (values == maximum_filter1d(values, 2 * apart + 1))
    places: list[int] = []
    for place in np.flatnonzero(tops):
        if not places or place - places[-1] > apart:
            places.append(int(place))
    return places
