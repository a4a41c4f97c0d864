"""Which known arrangement a page has, from its rows, its columns and the laws of the limb leads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cardioray.data.ecg_columns import (
    CLEAR,
    Columns,
    Signs,
    Span,
    agreement,
    boundary_signs,
    fit_columns,
)
from cardioray.data.ecg_leads import LAYOUTS, PAGE_SECONDS, EcgLayout
from cardioray.data.ecg_rows import Curve, Pulse
from cardioray.data.frames import UInt8Image, UnreadableImage

# Limb leads obey Einthoven and Goldberger better than this where a page is read well.
_AGREES = 0.75
# Where they obey so well, columns are where they are thought to be.
_CERTAIN = 0.9
# How much better Cabrera's order has to obey them.
RARE = 0.12


@dataclass(frozen=True, eq=False)
class Arrangement:
    """What a page shows.

    Attributes:
        layout: the arrangement.
        columns: where its columns are.
        notes: what is doubtful.
    """

    layout: EcgLayout
    columns: Columns
    notes: tuple[str, ...]


def arrange(
    ink: UInt8Image,
    curves: list[Curve],
    span: Span,
    px_per_mm: float,
    mm_per_s: float,
    layout: str = "auto",
) -> Arrangement:
    """Recognise the arrangement, or take the one that is named.

    Raises:
        UnreadableImage: when the page has none that is known; says what was seen.
    """
    candidates = []
    names = LAYOUTS.names() if layout == "auto" else [layout]
    signs: dict[int, Signs] = {}
    for name in names:
        known = LAYOUTS.get(name)
        if known.rows + len(known.rhythm) != len(curves):
            continue
        if known.rows not in signs:
            signs[known.rows] = boundary_signs(ink, curves[: known.rows], px_per_mm)
        columns = fit_columns(
            signs[known.rows],
            len(known.columns),
            span,
            px_per_mm,
            known.column_seconds * mm_per_s,
        )
        agrees = agreement(known, curves, columns.bounds, px_per_mm)
        candidates.append((known, columns, 0.0 if agrees is None else agrees))
    if not candidates:
        raise UnreadableImage(
            f"{len(curves)} rows of curves were seen; "
            + (
                f"the layout {layout} that was set has another number."
                if layout != "auto"
                else f"known are {', '.join(LAYOUTS.names())}."
            )
        )
    best = max(candidates, key=lambda candidate: _worth(*candidate))
    known, columns, agrees = best
    notes = []
    if layout == "auto" and agrees < _CERTAIN:
        _refuse_other_columns(signs[known.rows], known, columns, span, px_per_mm, mm_per_s)
    if agrees < _AGREES:
        notes.append(
            f"The limb leads obey Einthoven's and Goldberger's laws by {agrees:.2f} of 1 only, so "
            f"that the layout {known.name} is not certain."
        )
    if len(known.columns) > 1 and columns.evidence < CLEAR:
        notes.append("Nothing shows where the columns of leads end; equal ones are assumed.")
    return Arrangement(known, columns, tuple(notes))


def _worth(layout: EcgLayout, columns: Columns, agrees: float) -> float:
    """What speaks for an arrangement; Cabrera's order is rare, and has to be clearly better."""
    rare = RARE if layout.is_cabrera else 0.0
    return 10 * (max(agrees, -1.0) - rare) + min(columns.evidence, 8.0)


def _refuse_other_columns(
    signs: Signs,
    known: EcgLayout,
    columns: Columns,
    span: Span,
    px_per_mm: float,
    mm_per_s: float,
) -> None:
    """Refuse a page whose signs say clearly that it has another number of columns."""
    for count in range(2, 7):
        if count % len(known.columns) == 0 or len(known.columns) % count == 0:
            continue
        other = fit_columns(signs, count, span, px_per_mm, PAGE_SECONDS * mm_per_s / count)
        if other.evidence > max(columns.evidence, CLEAR) and other.score > columns.score + 3:
            raise UnreadableImage(
                f"{known.rows} rows of leads in {count} columns were seen; known are "
                f"{', '.join(LAYOUTS.names())}. Set the layout if it is one of these."
            )


def find_span(
    curves: list[Curve], pulses: list[Pulse | None], valid: NDArray[np.bool_], px_per_mm: float
) -> Span:
    """Where the leads begin and end, without the pulses.

    Args:
        curves: all rows.
        pulses: the pulse of each row, or None.
        valid: where the page is, (H, W).
        px_per_mm: resolution.
    """
    starts, ends = [], []
    left = [
        pulse.last < (curve.row.first + curve.row.last) / 2
        for curve, pulse in zip(curves, pulses, strict=True)
        if pulse is not None
    ]
    # Pulses stand on one side of a page, in all its rows.
    on_left = bool(left) and sum(left) * 2 >= len(left)
    for curve, pulse in zip(curves, pulses, strict=True):
        first, last = float(curve.row.first), float(curve.row.last)
        if pulse is not None and on_left and pulse.last < (first + last) / 2:
            first = pulse.last + 2 * px_per_mm
        elif pulse is not None and not on_left and pulse.last > (first + last) / 2:
            last = pulse.first - px_per_mm
        elif left:
            continue
        starts.append(first)
        ends.append(last)
    start, end = float(np.median(starts)), float(np.median(ends))
    height, width = valid.shape
    cut = []
    for place in (start - 4 * px_per_mm, end + 4 * px_per_mm):
        column = round(place)
        inside = [
            0 <= column < width and valid[min(max(round(curve.row.middle), 0), height - 1), column]
            for curve in curves
        ]
        cut.append(sum(inside) * 2 < len(inside))
    if left:
        cut[0 if on_left else 1] = False
    return Span(start, end, cut[0], cut[1])
