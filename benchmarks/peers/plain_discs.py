"""The method of discs as notebooks have it: one mask after the other, a Python loop over 20 discs.

Pixels are square, the long axis is the first principal axis of the outline, and discs are round.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

DISCS = 20

Floats = NDArray[np.float64]
Mask = NDArray[np.uint8]


def _long_axis(mask: Mask) -> tuple[Floats, Floats, Floats]:
    """The outline (P, 2) as row and column, its centre, and the direction of its long axis."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = max(contours, key=cv2.contourArea)[:, 0, ::-1].astype(float)
    centre = points.mean(axis=0)
    _, _, directions = np.linalg.svd(points - centre, full_matrices=False)
    return points, centre, directions[0]


def turned_by_scipy(mask: Mask) -> Mask:
    """The mask with its long axis upright, to the nearest pixel."""
    _, _, (down, right) = _long_axis(mask)
    turned: Mask = ndimage.rotate(mask, -np.degrees(np.arctan2(right, down)), order=0)
    return turned


def turned_by_opencv(mask: Mask) -> Mask:
    """The same by OpenCV, within the picture's own frame."""
    _, centre, (down, right) = _long_axis(mask)
    angle = -np.degrees(np.arctan2(right, down))
    matrix = cv2.getRotationMatrix2D((float(centre[1]), float(centre[0])), angle, 1.0)
    turned: Mask = cv2.warpAffine(mask, matrix, mask.shape[::-1], flags=cv2.INTER_NEAREST)
    return turned


def upright_volume_ml(mask: Mask, spacing_mm: float, turned: Callable[[Mask], Mask]) -> float:
    """Turn the mask upright; the width of a disc is the mean over its rows, from edge to edge."""
    upright = turned(mask)
    rows = np.flatnonzero(upright.any(axis=1))
    top, bottom = rows[0], rows[-1] + 1
    height = (bottom - top) / DISCS
    volume = 0.0
    for disc in range(DISCS):
        first, stop = round(top + disc * height), round(top + (disc + 1) * height)
        widths = []
        for row in upright[first : max(stop, first + 1)]:
            columns = np.flatnonzero(row)
            widths.append(columns[-1] - columns[0] + 1 if len(columns) else 0)
        diameter = np.mean(widths) * spacing_mm
        volume += np.pi / 4 * diameter**2 * height * spacing_mm
    return float(volume) / 1000


def walked_volume_ml(mask: Mask, spacing_mm: float) -> float:
    """Walk from the axis to the edge on both sides, in steps of half a pixel.

    So does the script that goes with CAMUS (S. Leclerc et al., IEEE Trans. Med. Imaging
    38:2198-2210, 2019, doi:10.1109/TMI.2019.2900516). It looks for the mitral plane first, among
    all pairs of points of the outline; that takes far longer than the discs, and is left out here.
    """
    points, centre, direction = _long_axis(mask)
    along = (points - centre) @ direction
    length = np.ptp(along) + 1
    across = np.array([-direction[1], direction[0]])
    volume = 0.0
    for disc in range(DISCS):
        middle = centre + (along.min() - 0.5 + length * (disc + 0.5) / DISCS) * direction
        diameter = 0.0
        for side in (across, -across):
            distance = 0.0
            while True:
                row, column = np.round(middle + distance * side).astype(int)
                if not (0 <= row < mask.shape[0] and 0 <= column < mask.shape[1]):
                    break
                if mask[row, column] == 0:
                    break
                distance += 0.5
            diameter += distance * spacing_mm
        volume += np.pi / 4 * diameter**2 * length / DISCS * spacing_mm
    return float(volume) / 1000
