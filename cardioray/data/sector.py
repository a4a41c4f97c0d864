"""Where the ultrasound is in a picture: the sector, apart from text, traces and bars around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cardioray.data.frames import UInt8Image

# Grey levels that a pixel has to change by to be tissue or blood and not a burned-in letter, which
# comes out of a codec the same in every frame.
_ACTIVE = 4
_BRIGHT = 12
# Smallest share of the region that a sector takes up.
_SMALLEST = 0.08
# A part that takes up more than this is no sector, but a picture without an edge.
_LARGEST = 0.97


@dataclass(frozen=True)
class Box:
    """Part of a picture in px; a square box may reach beyond the picture."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Sector:
    """What of a picture is kept.

    Attributes:
        mask: True where there is ultrasound, (H, W); everything where no sector was found.
        box: the smallest square around it.
        found: whether a sector was found.
    """

    mask: NDArray[np.bool_]
    box: Box
    found: bool

    def crop(self, picture: UInt8Image) -> UInt8Image:
        """The square of a picture, black outside the mask and beyond the picture's edge.

        Args:
            picture: (H, W) or (H, W, 3).
        """
        masked = picture * (self.mask if picture.ndim == 2 else self.mask[..., None])
        box, (height, width) = self.box, picture.shape[:2]
        square = np.zeros((box.height, box.width, *picture.shape[2:]), np.uint8)
        top, left = max(box.top, 0), max(box.left, 0)
        bottom, right = min(box.top + box.height, height), min(box.left + box.width, width)
        square[top - box.top : bottom - box.top, left - box.left : right - box.left] = masked[
            top:bottom, left:right
        ]
        return square


def whole_picture(height: int, width: int) -> Sector:
    """No sector: the whole picture, in the middle of a square."""
    everything = np.ones((height, width), np.bool_)
    return Sector(everything, _square(Box(0, 0, height, width)), found=False)


def find_sector(frames: Sequence[UInt8Image], region: Box | None = None) -> Sector:
    """Find the ultrasound sector of a cine or still.

    Tissue moves and speckle changes; letters and scales stand still. What changes is taken
    together to its largest connected part, whose convex hull is the sector: phased arrays and
    curved probes draw convex pictures. Thin traces, such as an ECG, are opened away before.

    Args:
        frames: grey frames (H, W) of one cine, spread over about a beat; one for a still.
        region: where the file says that the ultrasound is.

    Returns:
        The sector; with `found` False, the region or else the whole picture.
    """
    height, width = frames[0].shape
    region = region or Box(0, 0, height, width)
    rows = slice(region.top, region.top + region.height)
    columns = slice(region.left, region.left + region.width)
    cut = np.stack([frame[rows, columns] for frame in frames])
    if len(cut) > 1:
        active = (cut.max(axis=0) - cut.min(axis=0)) > _ACTIVE
    else:
        active = cut[0] > _BRIGHT
    hull = _hull(active.astype(np.uint8))
    mask = np.zeros((height, width), np.bool_)
    if hull is None:
        mask[rows, columns] = True
        return Sector(mask, _square(region), found=False)
    mask[rows, columns] = hull
    return Sector(mask, _square(_bounds(mask)), found=True)


def _hull(active: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
    """The convex hull of the largest solid part, or None where it is too small."""
    side = max(3, round(max(active.shape) / 80) | 1)
    # Speckle is full of holes: close them before thin lines are opened away.
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    solid = cv2.morphologyEx(active, cv2.MORPH_CLOSE, kernel)
    wider = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * side + 1, 2 * side + 1))
    solid = cv2.morphologyEx(solid, cv2.MORPH_OPEN, wider)
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(solid)
    if count < 2:
        return None
    largest = 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))
    if statistics[largest, cv2.CC_STAT_AREA] < _SMALLEST * active.size:
        return None
    part = (labels == largest).astype(np.uint8)
    contours, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = np.concatenate([contour.reshape(-1, 2) for contour in contours])
    hull = np.zeros(active.shape, np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(points), 1)
    return hull.astype(np.bool_) if hull.mean() < _LARGEST else None


def _bounds(mask: NDArray[np.bool_]) -> Box:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Box(
        int(rows[0]),
        int(columns[0]),
        int(rows[-1] - rows[0]) + 1,
        int(columns[-1] - columns[0]) + 1,
    )


def _square(box: Box) -> Box:
    """The smallest square around a box, with the same centre."""
    side = max(box.height, box.width)
    return Box(box.top - (side - box.height) // 2, box.left - (side - box.width) // 2, side, side)
