"""Signals drawn on ECG paper, as printers do.

Records of signals reach a model for pictures through this, phantoms are printed by it, and what
reads pictures is tested with it, since it knows where everything lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cardioray.config import config
from cardioray.data.ecg_leads import LEADS, PAGE_SECONDS, EcgLayout, EcgSignals

# Fine and coarse lines and the paper, RGB. The red one is that of Boribalburephan et al. 2024.
_GRIDS = {
    "red": ((250, 200, 168), (216, 111, 98), (255, 255, 255)),
    "pink": ((250, 214, 222), (238, 160, 178), (255, 250, 250)),
    "orange": ((252, 219, 180), (240, 170, 100), (255, 252, 245)),
    "green": ((205, 232, 208), (140, 196, 150), (250, 255, 250)),
    "blue": ((208, 222, 246), (148, 178, 230), (252, 253, 255)),
    "grey": ((216, 216, 216), (172, 172, 172), (255, 255, 255)),
}
_SHIFT = 4  # bits of fractions of a pixel in which curves are drawn


@config
class PaperStyle:
    """How a page is printed.

    Attributes:
        px_per_mm: resolution; 300 dpi are 11.8.
        mm_per_s: paper speed.
        mm_per_mv: gain.
        row_mm: height of a row.
        margin_mm: paper around the rows.
        header_mm: paper above them, for text.
        grid: colour of the lines of 1 and 5 mm, or "none".
        ink_rgb: colour of curves and text.
        ink_mm: width of curves.
        pulse: whether a calibration pulse of 1 mV and 0.2 s begins each row.
        names: whether leads are named.
        separators: whether a mark stands between the leads of a row.
        header: lines of text on top.
    """

    px_per_mm: float = Field(default=8.0, gt=1, le=40)
    mm_per_s: float = Field(default=25.0, gt=0)
    mm_per_mv: float = Field(default=10.0, gt=0)
    row_mm: float = Field(default=26.0, gt=5)
    margin_mm: float = Field(default=8.0, ge=0)
    header_mm: float = Field(default=20.0, ge=0)
    grid: Literal["red", "pink", "orange", "green", "blue", "grey", "none"] = "red"
    ink_rgb: tuple[int, int, int] = (10, 10, 10)
    ink_mm: float = Field(default=0.3, gt=0)
    pulse: bool = True
    names: bool = True
    separators: bool = True
    header: tuple[str, ...] = ()


@dataclass(frozen=True)
class LeadBox:
    """Where a page shows a lead, in px.

    Attributes:
        left: where its first sample is.
        right: where its last one is.
        baseline: height of 0 mV.
        top: upper end of its row.
        bottom: lower end of it.
    """

    left: float
    right: float
    baseline: float
    top: float
    bottom: float


@dataclass(frozen=True, eq=False)
class DrawnPage:
    """A printed page and what is known of it.

    Attributes:
        picture: (H, W, 3) uint8.
        boxes: place of each lead.
        px_per_mm: its resolution.
    """

    picture: NDArray[np.uint8]
    boxes: dict[str, LeadBox]
    px_per_mm: float


# What a pulse takes from the beginning of a row: flat, 0.2 s up, flat.
_PULSE_MM = (1.0, 5.0, 2.0)


def draw_page(signals: EcgSignals, layout: EcgLayout, style: PaperStyle | None = None) -> DrawnPage:
    """Print signals.

    Args:
        signals: twelve leads that begin at once, at least 10 s long; leads of NaN stay empty.
        layout: which lead goes where.
        style: how it looks.

    Raises:
        ValueError: for signals that are too short.
    """
    style = style or PaperStyle()
    scale = style.px_per_mm
    shown = signals.cut(layout)
    before = sum(_PULSE_MM) if style.pulse else 0.0
    left = (style.margin_mm + before) * scale
    rows = layout.rows + len(layout.rhythm)
    width = round((2 * style.margin_mm + before + PAGE_SECONDS * style.mm_per_s) * scale)
    height = round((2 * style.margin_mm + style.header_mm + rows * style.row_mm) * scale)
    picture = _paper(height, width, style)
    _write_header(picture, style)
    tops = (style.margin_mm + style.header_mm + np.arange(rows) * style.row_mm) * scale
    column_px = layout.column_seconds * style.mm_per_s * scale
    boxes = {}
    for lead in LEADS:
        row, column = layout.place(lead)
        begin = left + column * column_px
        boxes[lead] = LeadBox(
            begin,
            begin + column_px,
            tops[row] + style.row_mm * scale / 2,
            tops[row],
            tops[row] + style.row_mm * scale,
        )
        values = layout.sign(lead) * shown.millivolts[LEADS.index(lead)]
        _curve(picture, values, shown.rate_hz, boxes[lead], style)
        name = layout.columns[column][row]
        if style.names:
            _text(picture, name, begin + scale, tops[row] + 4.5 * scale, 3.2 * scale, style)
        if style.separators and column:
            _separator(picture, begin, boxes[lead].baseline, style)
    length = round(PAGE_SECONDS * signals.rate_hz)
    for number, lead in enumerate(layout.rhythm):
        top = tops[layout.rows + number]
        box = LeadBox(
            left,
            left + PAGE_SECONDS * style.mm_per_s * scale,
            top + style.row_mm * scale / 2,
            top,
            top + style.row_mm * scale,
        )
        values = signals.millivolts[LEADS.index(lead or "V1"), :length]
        _curve(picture, values, signals.rate_hz, box, style)
        if style.names and lead:
            _text(picture, lead, left + scale, top + 4.5 * scale, 3.2 * scale, style)
    if style.pulse:
        for top in tops:
            _pulse(picture, left, top + style.row_mm * scale / 2, style)
    return DrawnPage(picture, boxes, scale)


def _paper(height: int, width: int, style: PaperStyle) -> NDArray[np.uint8]:
    if style.grid == "none":
        return np.full((height, width, 3), 255, np.uint8)
    fine, coarse, paper = _GRIDS[style.grid]
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = paper
    thin = max(1, round(0.1 * style.px_per_mm))
    for colour, every, thick in ((fine, 1, thin), (coarse, 5, max(thin, round(1.6 * thin)))):
        for axis, size in ((0, height), (1, width)):
            lines = np.arange(0, size / style.px_per_mm, every) * style.px_per_mm
            for offset in range(thick):
                places = np.round(lines).astype(int) + offset
                index = places[places < size]
                if axis == 0:
                    picture[index] = colour
                else:
                    picture[:, index] = colour
    return picture


def _curve(
    picture: NDArray[np.uint8],
    values: NDArray[np.floating],
    rate_hz: float,
    box: LeadBox,
    style: PaperStyle,
) -> None:
    scale = style.px_per_mm
    across = box.left + np.arange(len(values)) / rate_hz * style.mm_per_s * scale
    down = box.baseline - values.astype(float) * style.mm_per_mv * scale
    known = np.isfinite(down)
    if not known.any():
        return
    points = np.stack([across[known], down[known]], axis=1)
    _line(picture, points, style)


def _line(picture: NDArray[np.uint8], points: NDArray[np.floating], style: PaperStyle) -> None:
    fixed = np.round(points * 2**_SHIFT).astype(np.int32)
    thickness = max(1, round(style.ink_mm * style.px_per_mm))
    cv2.polylines(picture, [fixed], False, style.ink_rgb, thickness, cv2.LINE_AA, _SHIFT)


def _pulse(picture: NDArray[np.uint8], left: float, baseline: float, style: PaperStyle) -> None:
    scale = style.px_per_mm
    flat, wide, after = (part * scale for part in _PULSE_MM)
    begin, top = left - flat - wide - after, baseline - style.mm_per_mv * scale
    corners = [
        (begin, baseline),
        (begin + flat, baseline),
        (begin + flat, top),
        (begin + flat + wide, top),
        (begin + flat + wide, baseline),
        (left, baseline),
    ]
    _line(picture, np.array(corners), style)


def _separator(picture: NDArray[np.uint8], left: float, baseline: float, style: PaperStyle) -> None:
    for above in (-7.0, 4.0):
        ends = [(left, baseline + above * style.px_per_mm)]
        ends.append((left, baseline + (above + 3.0) * style.px_per_mm))
        _line(picture, np.array(ends), style)


def _text(
    picture: NDArray[np.uint8],
    text: str,
    left: float,
    bottom: float,
    height: float,
    style: PaperStyle,
) -> None:
    # The letters of this font are 21 px high at scale 1.
    size = height / 21.0
    place = (round(left), round(bottom))
    thickness = max(1, round(0.25 * style.px_per_mm))
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(picture, text, place, font, size, style.ink_rgb, thickness, cv2.LINE_AA)


def _write_header(picture: NDArray[np.uint8], style: PaperStyle) -> None:
    scale = style.px_per_mm
    for number, line in enumerate(style.header):
        bottom = (style.margin_mm + 4.5 * (number + 1)) * scale
        _text(picture, line, style.margin_mm * scale, bottom, 2.8 * scale, style)
    if style.header or style.names:
        said = f"{style.mm_per_s:g} mm/s  {style.mm_per_mv:g} mm/mV"
        bottom = picture.shape[0] - 2.5 * scale
        _text(picture, said, style.margin_mm * scale, bottom, 2.5 * scale, style)
