"""Label maps of the heart in echo pictures: what is in them, and tidying what a network drew."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cardioray.config import config

Labels = NDArray[np.uint8]

BACKGROUND, CAVITY, MYOCARDIUM, ATRIUM = range(4)
STRUCTURES = {"cavity": CAVITY, "myocardium": MYOCARDIUM, "atrium": ATRIUM}
"""The labels of CAMUS: cavity and wall of the left ventricle, and the left atrium."""

# Where structures claim the same pixel after closing, the later one has it.
_ORDER = (ATRIUM, MYOCARDIUM, CAVITY)


@config
class CleanUp:
    """How a predicted label map is tidied, each structure by itself.

    Attributes:
        largest: keep the largest part of each structure; the others become background.
        fill: give each structure what it encloses of the background, and the cavity all that it
            encloses.
        closing_px: side of the square that gaps are closed with; 0 closes none.
    """

    largest: bool = True
    fill: bool = True
    closing_px: int = Field(default=3, ge=0, le=31)

    def apply(self, labels: Labels) -> Labels:
        """A tidied copy of a label map (H, W)."""
        tidied = np.zeros_like(labels)
        for structure in _ORDER:
            mask = (labels == structure).view(np.uint8)
            if not mask.any():
                continue
            if self.closing_px:
                mask = _closed(mask, self.closing_px)
            if self.largest:
                mask = _largest(mask)
            if self.fill:
                enclosed = _filled(mask)
                mask = enclosed if structure == CAVITY else mask | (enclosed & (labels == 0))
            tidied[mask > 0] = structure
        return tidied


NO_CLEAN_UP = CleanUp(largest=False, fill=False, closing_px=0)


def _closed(mask: Labels, side: int) -> Labels:
    # Without a margin, closing would join what touches the border to it.
    padded = cv2.copyMakeBorder(mask, side, side, side, side, cv2.BORDER_CONSTANT, value=0)
    closed: Labels = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, np.ones((side, side), np.uint8))
    return np.ascontiguousarray(closed[side:-side, side:-side])


def _largest(mask: Labels) -> Labels:
    count, parts, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count <= 2:
        return mask
    best = 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))
    return np.asarray(parts == best).view(np.uint8)


def _filled(mask: Labels) -> Labels:
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros_like(mask)
    cv2.drawContours(filled, outlines, -1, 1, cv2.FILLED)
    return filled
