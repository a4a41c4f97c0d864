"""Masks as points, so that many of them can be measured at once: their outlines and corners.

OpenCV traces one mask after the other. The points of all of them then lie behind one another in one
array, in mm down and to the right from the middle of the first pixel, row before column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_] | NDArray[np.uint8]

# How far a wall may be from the outline that it touches, in px: labels leave no gap, networks may.
REACH_PX = 2
_NEAR = np.ones((2 * REACH_PX + 1, 2 * REACH_PX + 1), np.uint8)


class Traced(NamedTuple):
    """What there is in one mask, in px from the first pixel of its bounding box.

    Attributes:
        outline: of the largest part through its outermost pixels, (P, 2), column before row.
        closed: which of these points a wall touches, (P,).
        corners: where the edge of the mask turns, (K,), as row * row_length + column; the upper
            left corner of a pixel has the pixel's row and column.
        turns: the second difference of the mask at each of them, down and to the right, (K,): the
            mask is the sum of the quadrants below and right of its corners, each times its turn.
        row_length: of the numbers of corners.
        box: row and column of the first pixel of the bounding box.
    """

    outline: NDArray[np.int32]
    closed: Flags
    corners: Indices
    turns: NDArray[np.int8]
    row_length: int
    box: tuple[int, int]


def trace(cavity: Mask, wall: Mask | None) -> Traced:
    """Find the outline and the corners of a mask (H, W).

    Args:
        cavity: the mask.
        wall: what lies around it, of the same size.

    Raises:
        ValueError: when the mask is empty or no mask, or the sizes differ.
    """
    mask = np.ascontiguousarray(_as_bytes(cavity))
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
        raise ValueError("The mask is empty: there is no cavity to measure.")
    part = mask[top : top + height, left : left + width]
    found, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = max(found, key=len)[:, 0]
    if wall is None:
        closed = np.zeros(len(outline), bool)
    else:
        if wall.shape != cavity.shape:
            raise ValueError(f"The wall is {wall.shape} in size, the cavity {cavity.shape}.")
        above, before = min(top, REACH_PX), min(left, REACH_PX)
        around = _as_bytes(
            wall[top - above : top + height + REACH_PX, left - before : left + width + REACH_PX]
        )
        near = cv2.dilate(around, _NEAR)
        columns, rows = outline.T
        closed = near.take((rows + above) * near.shape[1] + columns + before) > 0
    framed = np.zeros((height + 2, width + 2), np.uint8)
    framed[1:-1, 1:-1] = part
    # Rows end and begin with a pixel outside, so that differences across their ends are 0.
    down = (framed[1:] - framed[:-1]).ravel()
    turns = (down[1:] - down[:-1]).view(np.int8)
    (corners,) = (turns != 0).nonzero()
    return Traced(outline, closed, corners, turns[corners], width + 2, (top, left))


def _as_bytes(mask: Mask) -> NDArray[np.uint8]:
    if mask.ndim != 2:
        raise ValueError(f"A mask has the shape (H, W), not {mask.shape}.")
    flags = mask if mask.dtype == np.bool_ else mask != 0
    return flags.view(np.uint8)


class Groups:
    """Values of several masks behind one another; every mask has at least one."""

    def __init__(self, counts: Indices) -> None:
        self.counts = counts
        self.ends = np.cumsum(counts)
        self.starts = self.ends - counts

    def each(self, values: Floats) -> Floats:
        """What is known of every mask (..., N), for each of its values (..., P)."""
        return np.repeat(values, self.counts, axis=-1)

    def total(self, values: Floats) -> Floats:
        """The sum of every mask's values, (N,)."""
        return np.asarray(np.add.reduceat(values, self.starts))

    def least(self, values: Floats) -> Floats:
        """The smallest of every mask's values, (N,)."""
        return np.asarray(np.minimum.reduceat(values, self.starts))

    def most(self, values: Floats) -> Floats:
        """The largest of every mask's values, (N,)."""
        return np.asarray(np.maximum.reduceat(values, self.starts))

    def place_of_most(self, values: Floats) -> Indices:
        """Where the largest of every mask's values is, the first one of equals, (N,).

        Values are not negative; those that rounding alone may tell apart are equal.
        """
        equal = np.flatnonzero(values >= self.each(self.most(values) * (1 - 1e-9)))
        return equal[np.searchsorted(equal, self.starts)]


@dataclass(frozen=True, eq=False)
class Points:
    """Points of several masks.

    Attributes:
        at: (2, P).
        values: what is known of each point, (P,).
        groups: which are whose.
    """

    at: Floats
    values: Floats
    groups: Groups

    def of(self, chosen: Flags) -> Points:
        """The points of some of the masks."""
        if chosen.all():
            return self
        counts = self.groups.counts
        own = np.repeat(chosen, counts)
        return Points(self.at[:, own], self.values[own], Groups(counts[chosen]))


def outlines_of(traced: Sequence[Traced], spacing: Floats) -> Points:
    """The outlines of masks; a point's value is whether a wall touches it.

    Args:
        traced: N masks.
        spacing: height and width of their pixels in mm, (2, N).
    """
    groups = Groups(np.array([len(one.outline) for one in traced]))
    boxes = np.array([one.box for one in traced], float).T
    places = np.concatenate([one.outline for one in traced]).T[::-1]
    closed = np.concatenate([one.closed for one in traced]).astype(float)
    return Points((places + groups.each(boxes)) * groups.each(spacing), closed, groups)


def corners_of(traced: Sequence[Traced], spacing: Floats) -> Points:
    """The corners of masks; a point's value is its turn.

    Args:
        traced: N masks.
        spacing: height and width of their pixels in mm, (2, N).
    """
    groups = Groups(np.array([len(one.corners) for one in traced]))
    boxes = np.array([one.box for one in traced], float).T
    lengths = np.repeat([one.row_length for one in traced], groups.counts)
    places = np.divmod(np.concatenate([one.corners for one in traced]), lengths)
    turns = np.concatenate([one.turns for one in traced]).astype(float)
    # A pixel reaches half its side beyond its middle.
    return Points((places + groups.each(boxes - 0.5)) * groups.each(spacing), turns, groups)


def moments(corners: Points) -> tuple[Floats, Floats]:
    """Centre (2, N) and covariance (N, 2, 2) of the areas of masks.

    The integral of x^p y^q over the quadrants below and right of the corners is, but for terms that
    vanish in their sum, x^(p+1) y^(q+1) / ((p+1) (q+1)) of the corner.
    """
    groups = corners.groups
    origin = corners.at[:, groups.starts]  # near the mask, or the digits of small ones are lost
    y, x = corners.at - groups.each(origin)
    piece = corners.values * x * y
    area = groups.total(piece)
    centre = np.stack([groups.total(piece * y), groups.total(piece * x)]) / (2 * area)
    squares = [groups.total(piece * product) for product in (y * y, y * x, x * x)]
    yy, yx, xx = np.stack(squares) / (area * np.array([[3.0], [4.0], [3.0]]))
    covariance = np.array([[yy, yx], [yx, xx]]) - centre[:, None] * centre
    return origin + centre, np.moveaxis(covariance, 2, 0)
