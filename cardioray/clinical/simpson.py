"""Volumes of the left ventricle from its outline in apical views: discs and area-length.

Masks are (H, W), true inside the cavity; pixels may be higher than wide. Distances are in mm,
volumes in ml. The formulas are those of R. M. Lang et al., J. Am. Soc. Echocardiogr. 28:1-39,
2015, doi:10.1016/j.echo.2014.10.003, and of N. B. Schiller et al., ibid. 2:358-367, 1989,
doi:10.1016/S0894-7317(89)80014-8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_] | NDArray[np.uint8]

DISCS = 20

# The mitral opening is the longest part of the outline that no wall touches. What is shorter than
# a twenty-fifth of the outline is a gap in the wall; longer than half of it is no opening.
_OPENING = (0.04, 0.5)
# How far a wall may be from the outline that it touches, in px: labels leave no gap, networks may.
_REACH = 2
# Where the widths of both ends are compared to tell base from apex, as a share of the length.
_END = 0.15
# Rows of the straightened mask in a disc, at least; more where pixels are finer.
_ROWS = 4
_MAX_SIDE = 2048

_ML = 1e-3  # ml in a cubic mm


@dataclass(frozen=True, eq=False)
class Cavity:
    """The cavity in one view and phase, as far as volumes need it.

    Attributes:
        widths_mm: mean width of each disc, from base to apex, (20,).
        length_mm: from the middle of the mitral plane to the apex.
        area_mm2: of the whole mask, what lies beyond the mitral plane included.
        base: middle of the mitral plane, (row, column) in px, (2,).
        apex: likewise.
        annulus: both ends of the mitral plane, (2, 2); None where no wall shows them.
    """

    widths_mm: Floats
    length_mm: float
    area_mm2: float
    base: Floats
    apex: Floats
    annulus: Floats | None


def measure_cavity(
    cavity: Mask, spacing_mm: tuple[float, float], wall: Mask | None = None
) -> Cavity:
    """The long axis of a cavity, and its widths across it.

    With a wall, the mitral plane is where the wall leaves the outline open, and the apex is the
    point of the outline farthest from its middle, as in the labelling of CAMUS (S. Leclerc et al.,
    IEEE Trans. Med. Imaging 38:2198-2210, 2019, doi:10.1109/TMI.2019.2900516). Without one, or
    where it shows no opening, the long axis is the first principal axis of the mask, and its wider
    end is the base.

    Args:
        cavity: (H, W).
        spacing_mm: height and width of a pixel.
        wall: the myocardium, (H, W).

    Raises:
        ValueError: when the mask is empty, or a pixel has no size.
    """
    mask = _as_bytes(cavity)
    spacing = _checked(spacing_mm)
    outline = _outline(mask)
    area_mm2 = float(cv2.countNonZero(mask)) * spacing[0] * spacing[1]
    annulus = None if wall is None else _annulus(outline, _as_bytes(wall), spacing)
    if annulus is not None:
        base = annulus.mean(axis=0)
        apex = _farthest(outline, base, spacing)
        base = _moved_out(base, base - apex, spacing)
    else:
        base, apex = _principal_ends(mask, outline, spacing)
    axis = (apex - base) * spacing
    length = float(np.hypot(*axis))
    if length == 0:  # a single pixel
        apex = base + np.array([1.0, 0.0])
        axis, length = (apex - base) * spacing, float(spacing[0])
    return Cavity(
        widths_mm=_widths(mask, outline, base, axis / length, length, spacing),
        length_mm=length,
        area_mm2=area_mm2,
        base=base,
        apex=apex,
        annulus=annulus,
    )


def biplane_discs_ml(first: Cavity, second: Cavity) -> float:
    """Biplane method of discs from two perpendicular long-axis views of one phase.

    V = pi / 4 * sum(a_i b_i) * L / 20, with the longer of both lengths (Schiller 1989; Lang 2015).
    """
    length = max(first.length_mm, second.length_mm)
    products = float((first.widths_mm * second.widths_mm).sum())
    return np.pi / 4 * products * length / DISCS * _ML


def single_plane_discs_ml(cavity: Cavity) -> float:
    """Method of discs from one view, with round discs: V = pi / 4 * sum(a_i^2) * L / 20."""
    return biplane_discs_ml(cavity, cavity)


def area_length_ml(cavity: Cavity) -> float:
    """Area-length method from one view: V = 8 A^2 / (3 pi L).

    H. T. Dodge et al., Am. Heart J. 60:762-776, 1960, doi:10.1016/0002-8703(60)90359-8.
    """
    return biplane_area_length_ml(cavity, cavity)


def biplane_area_length_ml(first: Cavity, second: Cavity) -> float:
    """Area-length method from two views: V = 8 A1 A2 / (3 pi L), with the shorter length.

    The length is that of Dodge 1960 and of Lang 2015 for the left atrium.
    """
    length = min(first.length_mm, second.length_mm)
    return 8 * first.area_mm2 * second.area_mm2 / (3 * np.pi * length) * _ML


def ef_percent(edv_ml: float, esv_ml: float) -> float:
    """Ejection fraction in percent, of an end-diastolic and an end-systolic volume.

    Raises:
        ValueError: when the end-diastolic volume is not above 0.
    """
    if not edv_ml > 0:
        raise ValueError(f"An end-diastolic volume of {edv_ml:g} ml has no ejection fraction.")
    return 100 * (edv_ml - esv_ml) / edv_ml


def _as_bytes(mask: Mask) -> NDArray[np.uint8]:
    if mask.ndim != 2:
        raise ValueError(f"A mask has the shape (H, W), not {mask.shape}.")
    return np.ascontiguousarray(mask != 0).view(np.uint8)


def _checked(spacing_mm: Sequence[float]) -> Floats:
    spacing = np.asarray(spacing_mm, float)
    if spacing.shape != (2,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(
            f"Height and width of a pixel in mm must be two numbers above 0, not {spacing_mm}."
        )
    return spacing


def _outline(mask: NDArray[np.uint8]) -> Floats:
    """Outline of the largest part of a mask through its outermost pixels, (N, 2) as row, column."""
    found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not found:
        raise ValueError("The mask is empty: there is no cavity to measure.")
    points: Floats = np.asarray(max(found, key=len), float)[:, 0, ::-1]
    return points


def _annulus(outline: Floats, wall: NDArray[np.uint8], spacing: Floats) -> Floats | None:
    """Both ends of the longest part of an outline that a wall leaves open, (2, 2), or None."""
    if not wall.any():
        return None
    side = 2 * _REACH + 1
    near = cv2.dilate(wall, np.ones((side, side), np.uint8))
    place = outline.astype(int)
    closed = near[place[:, 0], place[:, 1]] > 0
    if closed.all() or not closed.any():
        return None
    # Begun at a closed point, no opening goes across the end of the list.
    turn = int(np.argmax(closed))
    closed, points = np.roll(closed, -turn), np.roll(outline, -turn, axis=0)
    edges = np.flatnonzero(np.diff(np.concatenate([[True], closed, [True]]).astype(np.int8)))
    first, stop = edges[::2], edges[1::2]  # openings are points[first:stop]
    steps = np.hypot(*((np.roll(points, -1, axis=0) - points) * spacing).T)
    run = np.concatenate([[0.0], np.cumsum(steps)])
    lengths = run[np.minimum(stop, len(points))] - run[first - 1]
    widest = int(np.argmax(lengths))
    share = lengths[widest] / run[-1]
    if not _OPENING[0] <= share <= _OPENING[1]:
        return None
    return points[[first[widest] - 1, stop[widest] % len(points)]]


def _farthest(outline: Floats, point: Floats, spacing: Floats) -> Floats:
    """The point of an outline farthest from a point, moved out to the far edge of its pixel."""
    ways = (outline - point) * spacing
    distances = np.hypot(*ways.T)
    most = int(np.argmax(distances))
    return _moved_out(outline[most], outline[most] - point, spacing)


def _moved_out(point: Floats, way: Floats, spacing: Floats) -> Floats:
    """A point moved along a way in px, from the middle of its pixel to the edge."""
    outward = way * spacing
    outward = outward / max(float(np.hypot(*outward)), 1e-9)
    return np.asarray(point + _rim(outward, spacing) * outward / spacing)


def _rim(direction: Floats, spacing: Floats) -> float:
    """How far a pixel reaches beyond its middle in a direction, in mm."""
    return 0.5 * float(np.abs(direction) @ spacing)


def _principal_ends(
    mask: NDArray[np.uint8], outline: Floats, spacing: Floats
) -> tuple[Floats, Floats]:
    """Base and apex on the first principal axis of a mask."""
    moments = cv2.moments(mask, binaryImage=True)
    centre = np.array([moments["m01"], moments["m10"]]) / moments["m00"]
    covariance = np.array(
        [[moments["mu02"], moments["mu11"]], [moments["mu11"], moments["mu20"]]]
    ) * np.outer(spacing, spacing)
    direction = np.linalg.eigh(covariance)[1][:, 1]
    ways = (outline - centre) * spacing
    along, across = ways @ direction, ways @ np.array([-direction[1], direction[0]])
    # The outline goes through the middle of pixels.
    rim = _rim(direction, spacing)
    low, high = along.min() - rim, along.max() + rim
    ends = [centre + end * direction / spacing for end in (low, high)]
    margin = _END * (high - low)
    widths = [
        np.ptp(across[near]) if (near := np.abs(along - end) <= margin).any() else 0.0
        for end in (low, high)
    ]
    base, apex = ends if widths[0] >= widths[1] else ends[::-1]
    return base, apex


def _widths(
    mask: NDArray[np.uint8],
    outline: Floats,
    base: Floats,
    along: Floats,
    length: float,
    spacing: Floats,
) -> Floats:
    """Mean width of the mask in each disc, from its picture turned so that the axis is upright.

    The picture is interpolated linearly, so that a width counts parts of pixels.
    """
    across = np.array([-along[1], along[0]])
    reach = float(np.abs((outline - base) * spacing @ across).max()) + float(spacing.max())
    finest = float(spacing.min())
    rows = int(np.clip(np.ceil(length / DISCS / finest), _ROWS, _MAX_SIDE // DISCS))
    columns = int(np.clip(np.ceil(2 * reach / finest), 2, _MAX_SIDE))
    down, right = length / (DISCS * rows), 2 * reach / columns
    # Where the middle of the first pixel of the turned picture is, and the steps from there.
    corner = base + (0.5 * down * along + (0.5 * right - reach) * across) / spacing
    matrix = np.array(
        [
            [right * across[1] / spacing[1], down * along[1] / spacing[1], corner[1]],
            [right * across[0] / spacing[0], down * along[0] / spacing[0], corner[0]],
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    upright = cv2.warpAffine(mask * np.uint8(255), matrix, (columns, DISCS * rows), flags=flags)
    sums = np.asarray(cv2.reduce(upright, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32F), float)
    return np.asarray(sums.reshape(DISCS, rows).mean(axis=1) * right / 255)
