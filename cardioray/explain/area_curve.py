"""A cine beside the curve of an area over time: the curve is drawn once, and a marker moves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

# Sides of the picture above the curve, in px: small ones are enlarged, so that text fits below.
_SHORTEST, _LONGEST = 320, 512
_STRIP = 140
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 22, 22
_FONT, _LETTERS = cv2.FONT_HERSHEY_SIMPLEX, 0.4
_GREY, _WHITE, _DIM = (150, 150, 150), (225, 225, 225), (70, 70, 70)
# Told apart by whoever does not see red and green.
_MARKER, _ED, _ES = (255, 140, 0), (86, 180, 233), (240, 228, 66)
_TICKS = 5


@dataclass(frozen=True)
class AreaCurve:
    """An area over the frames of a cine.

    Attributes:
        areas: one a frame (T,), NaN where there is none.
        unit: of the areas, "cm2" or "px".
        fps: frames a second; None where it is not known, and the axis counts frames.
        first_frame: number of the first one in its file, from 0.
        end_diastoles: places of frames in the cine.
        end_systoles: likewise.
    """

    areas: NDArray[np.float64]
    unit: str
    fps: float | None
    first_frame: int
    end_diastoles: Sequence[int]
    end_systoles: Sequence[int]


def curve_frames(
    pictures: Iterable[Picture], shape: tuple[int, int], curve: AreaCurve, note: str
) -> Picture:
    """Pictures of a cine with the curve below them, and in it a marker at each one's place.

    Args:
        pictures: T pictures (H, W, 3), RGB; one after the other, so that they need no memory.
        shape: their height and width.
        curve: the areas in them.
        note: a line above the curve.

    Returns:
        RGB frames (T, H', W', 3) with even sides; a picture's longer side is at most 512 px.
    """
    height, width = shape
    scale = min(_LONGEST / max(height, width), max(1.0, _SHORTEST / width))
    size = (_even(max(width * scale, _SHORTEST)), _even(height * scale))
    strip, points = _strip(curve, size[0], note)
    frames = np.empty((len(curve.areas), size[1] + _STRIP, size[0], 3), np.uint8)
    names = {**dict.fromkeys(curve.end_diastoles, "ED"), **dict.fromkeys(curve.end_systoles, "ES")}
    for place, (picture, frame) in enumerate(zip(pictures, frames, strict=True)):
        frame[: size[1]] = _fitted(picture, size)
        if place in names:
            colour = _ED if names[place] == "ED" else _ES
            _write(frame, names[place], (8, 18), colour, thickness=2)
        below = strip.copy()
        _mark(below, points[place], curve, place)
        frame[size[1] :] = below
    return frames


def _fitted(picture: Picture, size: tuple[int, int]) -> Picture:
    """A picture in the middle of (width, height), as large as it fits."""
    height, width = picture.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    canvas[top : top + inner[1], left : left + inner[0]] = cv2.resize(
        picture, inner, interpolation=method
    )
    return canvas


def _strip(curve: AreaCurve, width: int, note: str) -> tuple[Picture, NDArray[np.int32]]:
    """The curve with its axes, and where on it each frame is, (T, 2); y is -1 without an area."""
    strip = np.zeros((_STRIP, width, 3), np.uint8)
    count = len(curve.areas)
    known = np.isfinite(curve.areas)
    low, high = _range(curve.areas[known])
    x = np.linspace(_LEFT, width - _RIGHT - 1, count).round().astype(int)
    share = (np.where(known, curve.areas, low) - low) / (high - low)
    y = (_STRIP - _BOTTOM - share * (_STRIP - _BOTTOM - _TOP)).round().astype(int)
    points = np.stack([x, np.where(known, y, -1)], axis=1).astype(np.int32)
    floor = _STRIP - _BOTTOM
    cv2.line(strip, (_LEFT, floor), (width - _RIGHT, floor), _DIM, 1)
    cv2.line(strip, (_LEFT, _TOP), (_LEFT, floor), _DIM, 1)
    _write(strip, note, (_LEFT, 13), _GREY)
    for value, height in ((high, _TOP + 4), (low, floor)):
        _write(strip, f"{value:.4g}", (4, height), _GREY)
    _write(strip, curve.unit, (4, (_TOP + floor) // 2 + 4), _GREY)
    for place in np.unique(np.linspace(0, count - 1, min(_TICKS, count)).round().astype(int)):
        text = _when(curve, int(place)) if place == 0 else _number(curve, int(place))
        left = min(int(x[place]), width - _RIGHT - 7 * len(text))
        _write(strip, text, (left, _STRIP - 7), _GREY)
        cv2.line(strip, (int(x[place]), floor), (int(x[place]), floor + 3), _DIM, 1)
    for piece in np.split(points, np.flatnonzero(~known)):
        drawn = piece[piece[:, 1] >= 0]
        cv2.polylines(strip, [drawn.reshape(-1, 1, 2)], False, _WHITE, 1, cv2.LINE_AA)
    for places, name, colour in (
        (curve.end_diastoles, "ED", _ED),
        (curve.end_systoles, "ES", _ES),
    ):
        for place in places:
            if known[place]:
                across, down = points[place].tolist()
                cv2.circle(strip, (across, down), 3, colour, -1, cv2.LINE_AA)
                _write(strip, name, (min(across + 6, width - 18), down + 4), colour)
    return strip, points


def _mark(strip: Picture, point: NDArray[np.int32], curve: AreaCurve, place: int) -> None:
    x, y = point.tolist()
    cv2.line(strip, (x, _TOP), (x, _STRIP - _BOTTOM), _MARKER, 1)
    area = "no cavity"
    if y >= 0:
        cv2.circle(strip, (x, y), 3, _MARKER, -1, cv2.LINE_AA)
        area = f"{curve.areas[place]:.4g} {curve.unit}"
    text = f"{_when(curve, place)}  {area}"
    _write(strip, text, (strip.shape[1] - _RIGHT - 7 * len(text), 13), _MARKER)


def _number(curve: AreaCurve, place: int) -> str:
    """When a frame is, in s or as the number of the frame."""
    number = curve.first_frame + place
    return str(number) if curve.fps is None else f"{number / curve.fps:.2f}"


def _when(curve: AreaCurve, place: int) -> str:
    number = _number(curve, place)
    return f"frame {number}" if curve.fps is None else f"{number} s"


def _range(areas: NDArray[np.float64]) -> tuple[float, float]:
    """Ends of the axis: 0 where nothing is known, and never the same number."""
    if not len(areas):
        return 0.0, 1.0
    low, high = float(areas.min()), float(areas.max())
    margin = 0.05 * (high - low) or 0.5 * max(high, 1.0)
    return max(0.0, low - margin), high + margin


def _write(
    picture: Picture,
    text: str,
    place: tuple[int, int],
    colour: tuple[int, int, int],
    thickness: int = 1,
) -> None:
    cv2.putText(picture, text, place, _FONT, _LETTERS, colour, thickness, cv2.LINE_AA)


def _even(side: float) -> int:
    return max(2, round(side / 2) * 2)
