"""How large a page without a grid was printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cardioray.data.ecg_flat import Bend, Floats, rectify
from cardioray.data.ecg_grid import find_grid
from cardioray.data.ecg_ink import find_ink
from cardioray.data.ecg_rows import find_pulses, find_rows, trace_rows
from cardioray.data.frames import UInt8Image, UnreadableImage

Source = Literal["grid", "setting", "pulse", "page size"]
_MM_PER_INCH = 25.4
# Height and width of sheets, mm: ISO 216 A4, and ANSI letter.
_SHEETS = {"A4": (210.0, 297.0), "letter": (215.9, 279.4)}
_RESOLUTIONS = (72, 96, 100, 120, 144, 150, 200, 240, 250, 300, 400, 600)
# A page whose pulses are looked for is taken for so wide at first.
_GUESSED_MM = 280.0
# A pulse of 1 mV and 0.2 s is 10 mm high and 5 mm wide.
_PULSE_MM = 10.0
_PULSE_SHAPE = (0.28, 0.72)


@dataclass(frozen=True, eq=False)
class PaperScale:
    """Where the millimetres of a page are.

    Attributes:
        homography: from px of the picture to mm.
        source: what told.
        said: the same as a sentence.
        bend: of the paper.
    """

    homography: Floats
    source: Source
    said: str
    bend: Bend | None = None


def find_scale(picture: UInt8Image, scan_dpi: float = 0.0) -> PaperScale:
    """Where the millimetres of a page are, from its grid, a setting, its pulses or its size.

    Args:
        picture: (H, W) or (H, W, 3).
        scan_dpi: resolution of the scan where it is known; 0 otherwise.

    Raises:
        UnreadableImage: when nothing tells.
    """
    grid = find_grid(picture)
    if grid is not None:
        said = (
            f"The grid has {grid.px_per_mm:.2f} px per mm, tilted by {grid.tilt_deg:.1f} degrees."
        )
        if grid.bend is not None:
            said += " The paper is bent, and was laid flat."
        return PaperScale(grid.homography, "grid", said, grid.bend)
    if scan_dpi:
        said = f"No grid was found; the setting says {scan_dpi:g} dpi."
        return PaperScale(_upright(scan_dpi / _MM_PER_INCH), "setting", said)
    px_per_mm, curves = _by_pulses(picture)
    if px_per_mm:
        said = f"No grid was found; by the calibration pulses, {px_per_mm:.2f} px are a mm."
        return PaperScale(_upright(px_per_mm), "pulse", said)
    height, width = picture.shape[:2]
    if curves < 3:
        raise UnreadableImage(
            f"This is no picture of an ECG: it has no grid of millimetres, and {curves} of the 3 "
            "or more curves that an ECG has."
        )
    for name, sides in _SHEETS.items():
        for dpi in _RESOLUTIONS:
            for down, across in (sides, sides[::-1]):
                wanted = np.array([down, across]) * dpi / _MM_PER_INCH
                if np.abs(np.array([height, width]) / wanted - 1).max() < 0.006:
                    said = f"No grid and no pulse was found; the picture is as large as {name} at "
                    said += f"{dpi} dpi."
                    return PaperScale(_upright(dpi / _MM_PER_INCH), "page size", said)
    raise UnreadableImage(
        f"The picture has {curves} curves, but no grid, no calibration pulse, and no known size of "
        f"a sheet ({width} x {height} px) that tells how large it was printed. Set scan_dpi."
    )


def _upright(px_per_mm: float) -> Floats:
    return np.diag([1 / px_per_mm, 1 / px_per_mm, 1.0])


def _by_pulses(picture: UInt8Image) -> tuple[float, int]:
    """Px per mm by the pulses, 0 without any; and how many rows of curves there are."""
    height, width = picture.shape[:2]
    guess = max(height, width) / _GUESSED_MM
    scale = 6.0
    page, valid, mapped = rectify(picture, _upright(guess), scale)
    ink = find_ink(page, valid, scale)
    rows = find_rows(ink, scale)
    sizes = []
    curves = trace_rows(ink, rows, scale) if len(rows) >= 3 else []
    for pulse in find_pulses(curves, scale):
        if pulse is not None and pulse.height > 0:
            shape = (pulse.last - pulse.first) / pulse.height
            if _PULSE_SHAPE[0] <= shape <= _PULSE_SHAPE[1]:
                sizes.append(pulse.height)
    if len(sizes) < 2:
        return 0.0, len(rows)
    middle = float(np.median(sizes))
    alike = sum(abs(size / middle - 1) < 0.08 for size in sizes)
    if alike < max(2, len(sizes) / 2):
        return 0.0, len(rows)
    return middle / _PULSE_MM / mapped.as_homography[0, 0], len(rows)
