"""Which known arrangement the rows of a page are, without reading its letters.

The number of rows leaves few arrangements. Marks, names and jumps that stand at the same place in
all rows say where columns end. Limb leads that were recorded at once depend on each other (two of
the six say all: Einthoven 1912, Goldberger 1942), which an arrangement taken wrongly violates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, uniform_filter1d

from cardioray.data.ecg_leads import EcgLayout
from cardioray.data.ecg_rows import Curve
from cardioray.data.ecg_trace import Floats, as_plane, covered, take_away
from cardioray.data.frames import UInt8Image

# Each limb lead as a sum of I and II.
_OF_I_AND_II = {
    "I": (1.0, 0.0),
    "II": (0.0, 1.0),
    "III": (-1.0, 1.0),
    "aVR": (-0.5, -0.5),
    "aVL": (1.0, -0.5),
    "aVF": (-0.5, 1.0),
}
# Signs at the ends of columns, mean in standard deviations, that are more than chance: real ones
# have 8 or more, other places 5.6 or less.
CLEAR = 6.0
_SMOOTH_MM, _DRIFT_MM = 0.6, 6.0


@dataclass(frozen=True)
class Span:
    """Where curves begin and end, in px.

    Attributes:
        start: where leads begin, after the pulse.
        end: where they end.
        start_cut: whether the picture begins there, so that more may have been before.
        end_cut: whether it ends there.
    """

    start: float
    end: float
    start_cut: bool
    end_cut: bool


@dataclass(frozen=True, eq=False)
class Columns:
    """Where the columns of leads are.

    Attributes:
        bounds: where each begins, and where the last one ends, in px, (C + 1,).
        evidence: mean strength of the signs at the bounds between columns.
        score: of the whole, for comparison with other numbers of columns.
    """

    bounds: Floats
    evidence: float
    score: float


@dataclass(frozen=True, eq=False)
class Signs:
    """What shows where columns of leads begin.

    Attributes:
        strength: of all signs in each column of the page, in standard deviations of what there is
            by chance, (W,).
        marks: of marks and bars alone, which stand exactly there, (W,).
    """

    strength: Floats
    marks: Floats


def boundary_signs(ink: UInt8Image, curves: list[Curve], px_per_mm: float) -> Signs:
    """Marks, names, gaps and jumps that stand at the same place in all rows.

    Args:
        ink: of the page, (H, W).
        curves: rows of leads, without those for the rhythm.
        px_per_mm: resolution.

    Returns:
        How much each column of the page looks like the beginning of a column of leads.
    """
    plane = as_plane(ink)
    rest = plane.copy()
    numbers = np.arange(len(rest), dtype=np.int32)[:, None]
    rim = round(0.3 * px_per_mm)
    for curve in curves:
        take_away(rest, curve.row.path, 1.2 * px_per_mm)
        above, below = curve.strokes.top - rim, curve.strokes.bottom + rim
        rest[(numbers >= above) & (numbers <= below)] = 0
    signs: list[list[Floats]] = [[], [], [], []]
    for curve in curves:
        top = max(0, round(curve.row.middle - 10 * px_per_mm))
        bottom = min(len(rest), round(curve.row.middle + 10 * px_per_mm))
        amount = rest[top:bottom].sum(axis=0, dtype=np.float64) / px_per_mm
        marks = np.minimum(amount, 6.0)
        after = uniform_filter1d(amount, round(7 * px_per_mm), origin=-round(3 * px_per_mm))
        before = uniform_filter1d(amount, round(5 * px_per_mm), origin=round(2.4 * px_per_mm))
        seen = covered(plane, curve.row.path, 2) > 0.35
        gaps = 1 - uniform_filter1d(seen.astype(float), max(1, round(0.8 * px_per_mm)))
        wide = round(4 * px_per_mm)
        level = uniform_filter1d(curve.line, wide)
        jumps = np.zeros(len(level))
        jumps[wide:-wide] = np.abs(level[2 * wide :] - level[: -2 * wide]) / px_per_mm
        kinds = (marks, np.clip(after - before, 0, 1), gaps, np.minimum(jumps, 4.0))
        for found, kind in zip(signs, kinds, strict=True):
            found.append(kind)
    # Bars that stand on the curves are equally long in all rows; waves are not.
    lengths = np.stack([curve.strokes.bottom - curve.strokes.top for curve in curves]) / px_per_mm
    bars = (lengths.min(axis=0) > 5) & (np.ptp(lengths, axis=0) < 0.8)
    total = 16.0 * gaussian_filter1d((bars & (len(curves) > 1)).astype(float), 0.3 * px_per_mm)
    marks = total
    for kind, weight in zip(signs, (2.0, 1.0, 1.0, 0.5), strict=True):
        table = np.sort(np.stack(kind), axis=0)
        # What all rows but one have there, or all of fewer than three.
        common = gaussian_filter1d(table[1] if len(table) > 2 else table[0], 0.3 * px_per_mm)
        spread = float(np.std(common)) + 1e-3
        deviations = (common - common.mean()) / spread
        total = total + weight * np.minimum(deviations, 6.0)
        if kind is signs[0]:  # without the limit, where they stand is where they are the strongest
            marks = marks + deviations
    return Signs(total, marks)


def fit_columns(signs: Signs, count: int, span: Span, px_per_mm: float, width_mm: float) -> Columns:
    """Equal columns where the signs are, near the width that the paper's speed gives them.

    Args:
        signs: in each column of px.
        count: number of columns of leads.
        span: where the curves are.
        px_per_mm: resolution.
        width_mm: width of a column at the paper's speed.
    """
    strength = signs.strength
    width = len(strength)
    # A sign may stand a millimetre off.
    near = np.maximum.reduce(
        [np.roll(strength, round(shift * px_per_mm)) for shift in (-1, -0.5, 0, 0.5, 1)]
    )
    starts = span.start + np.arange(-16, 16, 0.25) * px_per_mm
    widths = width_mm * np.arange(0.9, 1.1, 0.0025) * px_per_mm
    begin, wide = np.meshgrid(starts, widths, indexing="ij")
    evidence = np.zeros(begin.shape)
    for number in range(1, count):
        place = np.round(begin + number * wide).astype(int)
        inside = (place >= 0) & (place < width)
        evidence += np.where(inside, near[np.clip(place, 0, width - 1)], 0)
    place = np.round(begin).astype(int)
    first = np.where((place >= 0) & (place < width), near[np.clip(place, 0, width - 1)], 0)
    off_width = (wide / px_per_mm / width_mm - 1) / 0.03
    off_start = (begin - span.start) / (2.5 * px_per_mm)
    off_end = (begin + count * wide - span.end) / (4 * px_per_mm)
    if span.start_cut:  # it may have begun before the picture
        off_start = np.maximum(off_start, 0) + np.minimum(off_start, 0) * 0.3
    if span.end_cut:
        off_end = np.minimum(off_end, 0) + np.maximum(off_end, 0) * 0.3
    penalty = off_width**2 + np.minimum(off_start**2, 12) + np.minimum(off_end**2, 16)
    score = evidence + 0.3 * np.clip(first, 0, 6) - penalty
    at = np.unravel_index(int(score.argmax()), score.shape)
    mean = float(evidence[at]) / max(1, count - 1)
    if count > 1 and mean < CLEAR and not (span.start_cut and span.end_cut):
        # Nothing shows: equal columns from where curves begin, or up to where they end.
        step = width_mm * px_per_mm
        start = span.end - count * step if span.start_cut else span.start
        equal = (start + np.arange(count + 1) * step).astype(np.float64)
        return Columns(equal, mean, float(score[at]))
    bounds = _settle(signs, begin[at] + np.arange(count + 1) * wide[at], span, px_per_mm, width_mm)
    return Columns(bounds, mean, float(score[at]))


def _settle(signs: Signs, bounds: Floats, span: Span, px_per_mm: float, width_mm: float) -> Floats:
    """Bounds between columns at the nearest sign; the first and the last one from all of them.

    The width is held to the paper's within 1 %, the start to where curves begin within 2 mm, and
    each sign is trusted within half a millimetre.
    """
    count = len(bounds) - 1
    rows, values = (
        [
            [0.0, 1 / 0.01],
        ],
        [1 / 0.01],
    )
    if not span.start_cut:
        rows.append([px_per_mm * width_mm / (2 * px_per_mm), 0.0])
        values.append(span.start / (2 * px_per_mm))
    scale = px_per_mm * width_mm
    places = bounds.copy()
    for number in range(1, count):
        place, clear = _snap(signs, float(bounds[number]), 1.5 * px_per_mm)
        places[number] = place
        weight = scale / ((0.5 if clear else 3.0) * px_per_mm)
        rows.append([weight, number * weight])
        values.append(place / scale * weight)
    if len(rows) < 2:
        rows.append([1.0, 0.0])
        values.append(bounds[0] / scale)
    solution = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
    start, width = solution * scale
    places[0], places[-1] = start, start + count * width
    return places


def _snap(signs: Signs, place: float, reach: float) -> tuple[float, bool]:
    """The mark near a place, or else the strongest sign, and whether there is one at all."""
    low = max(0, round(place - reach))
    high = min(len(signs.strength), round(place + reach) + 1)
    if high - low < 2:
        return place, False
    for values in (signs.marks, signs.strength):
        best = low + int(values[low:high].argmax())
        if values[best] > 4:
            return float(best), True
    return place, False


def agreement(
    layout: EcgLayout, curves: list[Curve], bounds: Floats, px_per_mm: float
) -> float | None:
    """How far limb leads of one column obey Einthoven and Goldberger.

    Args:
        layout: the arrangement that is tried.
        curves: the rows.
        bounds: of its columns.
        px_per_mm: resolution.

    Returns:
        1 when they do, 0 for curves that have nothing to do with each other, below for worse; None
        where no column has three limb leads.
    """
    # Rows of a photo are not quite above each other: steep waves are smoothed. Curled paper makes
    # baselines drift apart: what is better without slow drifts counts.
    smooth = [-gaussian_filter1d(curve.line, _SMOOTH_MM * px_per_mm) for curve in curves]
    steady = [line - gaussian_filter1d(line, _DRIFT_MM * px_per_mm) for line in smooth]
    found = [_obeyed(layout, lines, bounds, px_per_mm) for lines in (smooth, steady)]
    known = [value for value in found if value is not None]
    return max(known) if known else None


def _obeyed(
    layout: EcgLayout, lines: list[Floats], bounds: Floats, px_per_mm: float
) -> float | None:
    rim = round(2 * px_per_mm)  # where marks may stand; twice at the ends of rows, for letters
    left_over, expected = 0.0, 0.0
    for number, column in enumerate(layout.columns):
        rows = [row for row, name in enumerate(column) if name.removeprefix("-") in _OF_I_AND_II]
        outer = number == 0, number == len(layout.columns) - 1
        first = max(0, round(bounds[number])) + rim * (1 + outer[0])
        last = round(bounds[number + 1]) - rim * (1 + outer[1])
        if len(rows) < 3 or min(last, len(lines[0])) - first < 20:
            continue
        values = np.stack([lines[row][first:last] for row in rows])
        values -= np.median(values, axis=1, keepdims=True)
        weights = np.array([_weights(column[row]) for row in rows])
        others = np.eye(len(rows)) - weights @ np.linalg.pinv(weights)
        left_over += float(((others @ values) ** 2).sum())
        expected += float((np.diag(others)[:, None] * values**2).sum())
    return None if expected == 0 else 1 - left_over / expected


def _weights(name: str) -> NDArray[np.float64]:
    sign = -1.0 if name.startswith("-") else 1.0
    return sign * np.array(_OF_I_AND_II[name.removeprefix("-")])
