"""A picture of an ECG, read: where its paper is, which lead stands where, and what each says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cardioray.config import config
from cardioray.data.ecg_arrangement import RARE, Arrangement, arrange, find_span
from cardioray.data.ecg_canonical import CANONICAL_PX, canonical, over_original, to_original
from cardioray.data.ecg_columns import Columns, agreement
from cardioray.data.ecg_flat import Floats, PageMap, rectify
from cardioray.data.ecg_formats import FORMATS, PageFormat
from cardioray.data.ecg_ink import find_ink
from cardioray.data.ecg_leads import LEADS, EcgSignals
from cardioray.data.ecg_paper import LeadBox
from cardioray.data.ecg_result import EcgPage, GainSource
from cardioray.data.ecg_rows import (
    Curve,
    Pulse,
    Row,
    find_pulses,
    find_rows,
    trace_rows,
    without_marks,
)
from cardioray.data.ecg_scale import PaperScale, find_scale
from cardioray.data.ecg_trace import as_plane, covered, follow
from cardioray.data.frames import UInt8Image, UnreadableImage

__all__ = [
    "CANONICAL_PX",
    "EcgPage",
    "PageSettings",
    "canonical",
    "over_original",
    "read_page",
    "to_original",
]

_RATE_HZ = 500.0
_MM_PER_INCH = 25.4
# Gains that recorders have, mm/mV. A pulse within 25 % of one is that one: next to a pulse, the
# curve does not always begin at the height of its foot.
_GAINS = np.array([2.5, 5.0, 10.0, 20.0, 40.0])
_GAIN_MM_PER_MV = 10.0
# Pages whose limb leads agree less than this may stand upside down, or lie on their side; another
# way up has to be better by so much.
_SURE, _SIDEWAYS, _CLEARLY = 0.85, 0.4, 0.15
# Where they agree less than this, a line of text or the paper's edge may have been taken for a row.
_DOUBTFUL = 0.75


@config
class PageSettings:
    """How pictures of ECGs are read.

    Attributes:
        layout: name of the arrangement (`LAYOUTS`), or "auto".
        format: a printer's page with leads at known places (`FORMATS`), or "auto" for any page.
        px_per_mm: resolution at which a page is read.
        scan_dpi: resolution of scans, for pages without a grid; 0 where it is not known.
        mm_per_s: paper speed. A page does not show it.
        mm_per_mv: gain; 0 for that of the calibration pulses, or 10 where there are none.
        unknown_layout: whether a page in no known arrangement is refused, or handed on without
            leads.
    """

    layout: str = "auto"
    format: Literal["auto", "mtecg-old", "mtecg-new"] = "auto"
    px_per_mm: float = Field(default=8.0, ge=4, le=16)
    scan_dpi: float = Field(default=0.0, ge=0, le=2400)
    mm_per_s: float = Field(default=25.0, gt=0)
    mm_per_mv: float = Field(default=0.0, ge=0)
    unknown_layout: Literal["refuse", "as_is"] = "refuse"


def read_page(picture: UInt8Image, settings: PageSettings | None = None) -> EcgPage:
    """Read a picture of a twelve-lead ECG.

    Args:
        picture: (H, W) or (H, W, 3) RGB, a scan, a screenshot or a photo.
        settings: how.

    Raises:
        UnreadableImage: for a picture that is no ECG, whose size nothing tells, or whose
            arrangement is not known; says what was seen.
    """
    settings = settings or PageSettings()
    if settings.format != "auto":
        return _read_format(picture, FORMATS.get(settings.format), settings)
    scale = find_scale(picture, settings.scan_dpi)
    flat = _flatten(picture, scale, settings.px_per_mm)
    read = _interpret(flat, settings)
    if not isinstance(read, _Read) or read.agreement < _SIDEWAYS:
        read = _better(read, _interpret(_on_its_side(picture, settings), settings))
    if isinstance(read, _Read):
        return _finish(read, settings)
    if settings.unknown_layout == "as_is" and len(flat.rows) >= 3:
        curves = trace_rows(flat.ink, flat.rows, settings.px_per_mm)
        return _without_leads(flat, curves, settings, str(read))
    raise read


@dataclass(frozen=True, eq=False)
class _Read:
    """One way to understand a page, and how well the limb leads then agree."""

    flat: _Flat
    curves: list[Curve]
    pulses: list[Pulse | None]
    arrangement: Arrangement
    agreement: float

    @property
    def worth(self) -> float:
        """The agreement, less for what is rare."""
        return self.agreement - (RARE if self.arrangement.layout.is_cabrera else 0.0)


def _interpret(flat: _Flat, settings: PageSettings) -> _Read | UnreadableImage:
    """A page as it lies or turned upside down, or why it cannot be understood."""
    if len(flat.rows) < 3:
        return UnreadableImage(
            f"This is no picture of an ECG: {len(flat.rows)} of the 3 or more curves that an ECG "
            "has go over the page."
        )
    read = _as_it_lies(flat, settings)
    pulses = [pulse for pulse in read.pulses if pulse] if isinstance(read, _Read) else []
    # Pulses point upwards. Without any, the limb leads tell, where they do so clearly.
    if isinstance(read, _Read) and (read.worth >= _SURE or any(p.height > 0 for p in pulses)):
        return read
    return _better(read, _as_it_lies(_upside_down(flat), settings), 0.0 if pulses else _CLEARLY)


def _better(
    one: _Read | UnreadableImage, other: _Read | UnreadableImage, by: float = _CLEARLY
) -> _Read | UnreadableImage:
    if isinstance(other, _Read) and not isinstance(one, _Read):
        return other
    if isinstance(one, _Read) and isinstance(other, _Read):
        surer = other.worth > one.worth + by and (by == 0 or other.worth >= _SURE)
        return other if surer else one
    return one


def _as_it_lies(flat: _Flat, settings: PageSettings) -> _Read | UnreadableImage:
    """A page this way up; where the limb leads disagree, without its first or its last row."""
    read = _with_rows(flat, settings)
    if isinstance(read, _Read) and read.agreement >= _DOUBTFUL:
        return read
    for first, beyond in ((1, 0), (0, 1), (1, 1)):
        rows = flat.rows[first : len(flat.rows) - beyond]
        fewer = _with_rows(replace(flat, rows=rows), settings) if len(rows) >= 3 else read
        if isinstance(fewer, _Read) and fewer.worth >= _SURE:
            return fewer
    return read


def _with_rows(flat: _Flat, settings: PageSettings) -> _Read | UnreadableImage:
    px_per_mm = settings.px_per_mm
    curves = trace_rows(flat.ink, flat.rows, px_per_mm)
    pulses = find_pulses(curves, px_per_mm)
    span = find_span(curves, pulses, flat.valid, px_per_mm)
    try:
        found = arrange(flat.ink, curves, span, px_per_mm, settings.mm_per_s, settings.layout)
    except UnreadableImage as refusal:
        return refusal
    agrees = agreement(found.layout, curves, found.columns.bounds, px_per_mm)
    return _Read(flat, curves, pulses, found, 0.0 if agrees is None else agrees)


def _on_its_side(picture: UInt8Image, settings: PageSettings) -> _Flat:
    """The page turned by a quarter."""
    side = cv2.rotate(picture, cv2.ROTATE_90_CLOCKWISE)
    turn = np.array([[0.0, -1.0, picture.shape[0] - 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    flat = _flatten(side, find_scale(side, settings.scan_dpi), settings.px_per_mm)
    mapped = replace(flat.mapped, homography=flat.mapped.homography @ turn)
    said = flat.scale.said + " The page lies on its side and was turned."
    return replace(flat, mapped=mapped, scale=replace(flat.scale, said=said))


@dataclass(frozen=True, eq=False)
class _Flat:
    """A page laid flat, with its rows."""

    picture: UInt8Image
    valid: NDArray[np.bool_]
    ink: UInt8Image
    mapped: PageMap
    rows: list[Row]
    scale: PaperScale


def _flatten(picture: UInt8Image, scale: PaperScale, px_per_mm: float) -> _Flat:
    try:
        page, valid, mapped = rectify(picture, scale.homography, px_per_mm, scale.bend)
    except ValueError as error:
        raise UnreadableImage(str(error)) from None
    ink = find_ink(page, valid, px_per_mm)
    return _Flat(page, valid, ink, mapped, find_rows(ink, px_per_mm), scale)


def _upside_down(flat: _Flat) -> _Flat:
    height, width = flat.ink.shape
    turn = np.array([[-1.0, 0.0, width - 1.0], [0.0, -1.0, height - 1.0], [0.0, 0.0, 1.0]])
    rows = [
        Row(height - 1 - row.path[::-1], width - 1 - row.last, width - 1 - row.first, row.cover)
        for row in flat.rows[::-1]
    ]
    return _Flat(
        np.ascontiguousarray(flat.picture[::-1, ::-1]),
        np.ascontiguousarray(flat.valid[::-1, ::-1]),
        np.ascontiguousarray(flat.ink[::-1, ::-1]),
        replace(flat.mapped, to_px=turn @ flat.mapped.to_px),
        rows,
        replace(flat.scale, said=flat.scale.said + " The page is upside down and was turned."),
    )


def _read_format(picture: UInt8Image, known: PageFormat, settings: PageSettings) -> EcgPage:
    """Read a page whose leads stand at known places."""
    dpi = settings.scan_dpi or known.dpi
    box, ratio = known.box, dpi / known.dpi
    top, left = round(box.top * ratio), round(box.left * ratio)
    bottom, right = round((box.top + box.height) * ratio), round((box.left + box.width) * ratio)
    height, width = picture.shape[:2]
    if bottom > height or right > width:
        raise UnreadableImage(
            f"A page of format {known.name} at {dpi:g} dpi has leads as far as {right} x {bottom} "
            f"px; this picture is {width} x {height}. Set scan_dpi, or format auto."
        )
    shift = np.array([[1.0, 0.0, -left], [0.0, 1.0, -top], [0.0, 0.0, 1.0]])
    per_px = _MM_PER_INCH / dpi
    said = f"The leads stand where format {known.name} has them at {dpi:g} dpi."
    scale = PaperScale(np.diag([per_px, per_px, 1.0]), "setting", said)
    part = np.ascontiguousarray(picture[top:bottom, left:right])
    px_per_mm = settings.px_per_mm
    page, valid, mapped = rectify(part, scale.homography, px_per_mm)
    ink = find_ink(page, valid, px_per_mm)
    factor = px_per_mm * _MM_PER_INCH / known.dpi
    rows = _banded_rows(ink, known.row_height * factor, known.arrangement.rows)
    whole = replace(mapped, homography=mapped.homography @ shift)
    flat = _Flat(page, valid, ink, whole, rows, scale)
    curves = trace_rows(ink, rows, px_per_mm)
    pulses = find_pulses(curves, px_per_mm)
    bounds = np.array([*known.lefts, box.width]) * factor
    columns = Columns(bounds, 0.0, 0.0)
    arrangement = Arrangement(known.arrangement, columns, ())
    agrees = agreement(known.arrangement, curves, bounds, px_per_mm)
    read = _Read(flat, curves, pulses, arrangement, 0.0 if agrees is None else agrees)
    return _finish(read, settings)


def _banded_rows(ink: UInt8Image, row_height: float, count: int) -> list[Row]:
    """The darkest way through each of the bands that rows have."""
    plane = np.minimum(1, as_plane(ink) * np.float32(1.6))
    rows = []
    for number in range(count):
        top, bottom = round(number * row_height), round((number + 1) * row_height)
        path = follow(plane[top:bottom]) + top
        cover = float((covered(plane, path) > 0.4).mean())
        if cover < 0.5:
            raise UnreadableImage(
                f"Row {number + 1} of {count} has no curve where the format has one."
            )
        rows.append(Row(path, 0, ink.shape[1] - 1, cover))
    return rows


def _without_leads(flat: _Flat, curves: list[Curve], settings: PageSettings, why: str) -> EcgPage:
    nothing = np.full((len(LEADS), 1), np.nan, np.float32)
    return EcgPage(
        layout=None,
        picture=flat.picture,
        ink=flat.ink,
        mapped=flat.mapped,
        px_per_mm=settings.px_per_mm,
        scale_source=flat.scale.source,
        mm_per_mv=settings.mm_per_mv or _GAIN_MM_PER_MV,
        gain_source="setting" if settings.mm_per_mv else "assumed",
        mm_per_s=settings.mm_per_s,
        boxes={},
        rhythm=(),
        curves=tuple(curves),
        agreement=None,
        signals=EcgSignals(nothing, _RATE_HZ, np.zeros(len(LEADS))),
        notes=(flat.scale.said, why),
    )


def _finish(read: _Read, settings: PageSettings) -> EcgPage:
    flat, curves, arrangement = read.flat, read.curves, read.arrangement
    layout, columns = arrangement.layout, arrangement.columns
    px_per_mm = settings.px_per_mm
    leads = without_marks(curves[: layout.rows], columns.bounds, px_per_mm)
    curves = [*leads, *curves[layout.rows :]]
    gain, gain_source, said = _gain(read.pulses, px_per_mm, settings.mm_per_mv)
    middles = [curve.row.middle for curve in curves]
    edges = [0.0, *((a + b) / 2 for a, b in zip(middles[:-1], middles[1:], strict=True))]
    edges.append(float(len(flat.ink)))
    length = round(layout.column_seconds * _RATE_HZ)
    values = np.full((len(LEADS), length), np.nan, np.float32)
    boxes = {}
    for number, lead in enumerate(LEADS):
        row, column = layout.place(lead)
        left, right = columns.bounds[column : column + 2]
        box = _box(curves[row], left, right, edges[row], edges[row + 1])
        boxes[lead] = box
        places = left + np.arange(length) / _RATE_HZ * settings.mm_per_s * px_per_mm
        down = _sample(curves[row], places, right)
        values[number] = layout.sign(lead) * (box.baseline - down) / (gain * px_per_mm)
    starts = np.array([layout.place(lead)[1] * layout.column_seconds for lead in LEADS])
    rhythm = tuple(
        _box(curves[row], columns.bounds[0], columns.bounds[-1], edges[row], edges[row + 1])
        for row in range(layout.rows, len(curves))
    )
    speed = f"The paper's speed is taken for {settings.mm_per_s:g} mm/s."
    return EcgPage(
        layout=layout,
        picture=flat.picture,
        ink=flat.ink,
        mapped=flat.mapped,
        px_per_mm=px_per_mm,
        scale_source=flat.scale.source,
        mm_per_mv=gain,
        gain_source=gain_source,
        mm_per_s=settings.mm_per_s,
        boxes=boxes,
        rhythm=rhythm,
        curves=tuple(curves),
        agreement=agreement(layout, curves, columns.bounds, px_per_mm),
        signals=EcgSignals(values, _RATE_HZ, starts),
        notes=(flat.scale.said, said, speed, *arrangement.notes),
    )


def _gain(
    pulses: list[Pulse | None], px_per_mm: float, wanted: float
) -> tuple[float, GainSource, str]:
    if wanted:
        return wanted, "setting", f"The gain is set to {wanted:g} mm/mV."
    heights = np.array([pulse.height for pulse in pulses if pulse is not None]) / px_per_mm
    heights = heights[heights > 0]
    middle = float(np.median(heights)) if len(heights) else 0.0
    alike = int((np.abs(heights / middle - 1) < 0.12).sum()) if middle else 0
    if alike < max(1, len(heights) / 2):
        said = f"No calibration pulse was seen; {_GAIN_MM_PER_MV:g} mm/mV are assumed."
        return _GAIN_MM_PER_MV, "assumed", said
    nearest = float(_GAINS[np.abs(np.log(_GAINS / middle)).argmin()])
    gain = nearest if abs(middle / nearest - 1) < 0.25 else middle
    said = f"Calibration pulses in {alike} rows are {middle:.1f} mm high: {gain:g} mm/mV."
    return gain, "pulse", said


def _box(curve: Curve, left: float, right: float, top: float, bottom: float) -> LeadBox:
    first, last = max(0, round(left)), min(len(curve.line), round(right))
    part = curve.line[first:last]
    baseline = float(np.median(part)) if len(part) else curve.row.middle
    return LeadBox(float(left), float(right), baseline, float(top), float(bottom))


def _sample(curve: Curve, places: Floats, right: float) -> Floats:
    """Height of a curve at places; NaN beyond its ends and beyond its column."""
    columns = np.arange(len(curve.line))
    down: Floats = np.interp(places, columns, curve.line)
    outside = (places < curve.row.first - 1) | (places > curve.row.last + 1) | (places >= right)
    down[outside] = np.nan
    return down
