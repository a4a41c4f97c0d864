"""One picture for every ECG: twelve leads at fixed places and a fixed scale, whatever the page.

Limb leads stand on the left from top to bottom, chest leads on the right; each shows 2.5 s. A model
sees this, and what it attends to is sent back to the picture that was read.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cardioray.data.ecg_flat import Floats, transform
from cardioray.data.ecg_leads import LEADS
from cardioray.data.ecg_result import EcgPage
from cardioray.data.ecg_rows import Curve
from cardioray.data.frames import UInt8Image

CANONICAL_PX = 384
_ROWS, _COLUMNS = 6, 2
_SECONDS = 2.5
# Of the canonical picture, whatever the page has.
_MM_PER_S, _MM_PER_MV = 25.0, 7.0
_FINER = 4  # tiles are drawn so many times finer and averaged
_RIM = 2  # px around a stroke that are still grey


def canonical(page: EcgPage, size: int = CANONICAL_PX) -> UInt8Image:
    """The leads of a page, black on white, in their places.

    A tile's middle is the baseline of its lead. 2.5 s are as wide as the tile, and a millivolt is
    as high as at 7 mm/mV and 25 mm/s, whatever the page's gain and speed: a tile shows 1.5 mV up
    and down, as those of the published system do. Ink that belongs to no lead (names, marks) or to
    a neighbour's curve is left out, and -aVR is turned back.

    Args:
        page: a page in a known arrangement.
        size: side of the picture in px, a multiple of 6.

    Returns:
        (size, size) uint8.

    Raises:
        ValueError: for a page without leads, or another size.
    """
    wide, high = _tile(size)
    picture = np.full((size, size), 255, np.uint8)
    finer = np.diag([1 / _FINER, 1 / _FINER, 1.0])
    finer[:2, 2] = (1 / _FINER - 1) / 2
    layout = page.known_layout
    kept = [_own_ink(page, curve) for curve in page.curves[: layout.rows]]
    for lead in LEADS:
        x, y = canonical_corner(lead, size)
        box = page.boxes[lead]
        first, last = max(0, round(box.left)), max(0, round(box.right))
        # Only this lead's columns, with the homography moved along.
        ink = kept[layout.place(lead)[0]][:, first:last]
        if ink.size == 0:
            continue
        shift = np.array([[1.0, 0.0, -first], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        drawn = cv2.warpPerspective(
            ink,
            shift @ tile_to_page(page, lead, size) @ finer,
            (wide * _FINER, high * _FINER),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        )
        tile = cv2.resize(drawn, (wide, high), interpolation=cv2.INTER_AREA)
        picture[y : y + high, x : x + wide] = 255 - tile
    return picture


def canonical_corner(lead: str, size: int = CANONICAL_PX) -> tuple[int, int]:
    """Upper left px of a lead's tile in the canonical picture, as (x, y)."""
    wide, high = _tile(size)
    column, row = divmod(LEADS.index(lead), _ROWS)
    return column * wide, row * high


def tile_to_page(page: EcgPage, lead: str, size: int = CANONICAL_PX) -> Floats:
    """From px of a lead's tile to px of the rectified page, (3, 3).

    Raises:
        ValueError: for a page without leads.
    """
    wide, high = _tile(size)
    sign = page.known_layout.sign(lead)
    box = page.boxes[lead]
    across = _SECONDS * page.mm_per_s * page.px_per_mm / wide
    mm_per_px = _SECONDS * _MM_PER_S / wide
    down = sign * mm_per_px * page.mm_per_mv / _MM_PER_MV * page.px_per_mm
    middle = (high - 1) / 2
    return np.array(
        [[across, 0.0, box.left], [0.0, down, box.baseline - middle * down], [0.0, 0.0, 1.0]]
    )


def to_original(page: EcgPage, lead: str, size: int = CANONICAL_PX) -> Floats:
    """From px of a lead's tile to px of the picture that was read, (3, 3); right at its corners."""
    wide, high = _tile(size)
    corners = np.array([[0, 0], [wide, 0], [wide, high], [0, high]], float)
    seen = page.mapped.to_picture(transform(tile_to_page(page, lead, size), corners))
    result: Floats = cv2.getPerspectiveTransform(
        corners.astype(np.float32), seen.astype(np.float32)
    )
    return result


def over_original(
    page: EcgPage, heat: NDArray[np.floating], shape: tuple[int, int]
) -> NDArray[np.float32]:
    """A map over the canonical picture laid over the picture that was read.

    Args:
        page: the page.
        heat: (S, S), that of a canonical picture of any size.
        shape: height and width of the picture that was read.

    Returns:
        (H, W) float32, 0 where no lead is; the larger one where tiles overlap.
    """
    size = len(heat)
    wide, high = _tile(size)
    total = np.zeros(shape, np.float32)
    for lead in LEADS:
        x, y = canonical_corner(lead, size)
        tile = np.asarray(heat[y : y + high, x : x + wide], np.float32)
        moved = cv2.warpPerspective(
            tile, to_original(page, lead, size), (shape[1], shape[0]), flags=cv2.INTER_LINEAR
        )
        total = np.maximum(total, moved)
    return total


def _tile(size: int) -> tuple[int, int]:
    if size < 96 or size % _ROWS:
        raise ValueError(f"A canonical picture has 96, 102, 108, ... px; {size} does not do.")
    return size // _COLUMNS, size // _ROWS


def _own_ink(page: EcgPage, curve: Curve) -> UInt8Image:
    """The ink of one row, (H, W): what its strokes cover, and the grey rim of them."""
    rows = np.arange(len(page.ink), dtype=np.int32)[:, None]
    own = (rows >= curve.strokes.top - _RIM) & (rows <= curve.strokes.bottom + _RIM)
    own &= curve.strokes.seen
    return np.where(own, page.ink, 0).astype(np.uint8)
