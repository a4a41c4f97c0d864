"""Volumes of the left ventricle from its outline in apical views: discs and area-length.

Masks are (H, W), true inside the cavity; pixels may be higher than wide. Distances are in mm,
volumes in ml. The formulas are those of R. M. Lang et al., J. Am. Soc. Echocardiogr. 28:1-39,
2015, doi:10.1016/j.echo.2014.10.003, and of N. B. Schiller et al., ibid. 2:358-367, 1989,
doi:10.1016/S0894-7317(89)80014-8.

Many masks are measured together. Places of N masks are then (2, N), in mm down and to the right
from the middle of the first pixel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest

import numpy as np
from numpy.typing import ArrayLike

from cardioray.clinical.mask_points import (
    Flags,
    Floats,
    Groups,
    Mask,
    Points,
    Traced,
    corners_of,
    moments,
    outlines_of,
    trace,
)

DISCS = 20

# The mitral opening is the longest part of the outline that no wall touches. What is shorter than
# a twenty-fifth of the outline is a gap in the wall; longer than half of it is no opening.
_OPENING = (0.04, 0.5)
# Where the widths of both ends are compared to tell base from apex, as a share of the length.
_END = 0.15
# Sine of the angle between the long axis and rows or columns, at least: `_widths` divides by it.
# What is wrong by it is less than a thousandth of a mm.
_SLANT = 1e-6
# Masks that are computed together: their points fit into the cache of a core.
_TOGETHER = 128

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
    """The long axis of a cavity, and its widths across it; `measure_cavities` of a single one.

    Args:
        cavity: (H, W).
        spacing_mm: height and width of a pixel.
        wall: the myocardium, (H, W).

    Raises:
        ValueError: as of `measure_cavities`.
    """
    return measure_cavities([cavity], [spacing_mm], None if wall is None else [wall])[0]


def measure_cavities(
    cavities: Iterable[Mask], spacing_mm: ArrayLike, walls: Iterable[Mask] | None = None
) -> list[Cavity]:
    """The long axis of each of many cavities, and its widths across it.

    With a wall, the mitral plane is where the wall leaves the outline open, and the apex is the
    point of the outline farthest from its middle, as in the labelling of CAMUS (S. Leclerc et al.,
    IEEE Trans. Med. Imaging 38:2198-2210, 2019, doi:10.1109/TMI.2019.2900516). Without one, or
    where it shows no opening, the long axis is the first principal axis of the mask, and its wider
    end is the base.

    Args:
        cavities: N masks (H, W), of one size or of several. A generator need not hold them all.
        spacing_mm: height and width of a pixel of each, (N, 2).
        walls: the myocardium beside each, as large as its cavity's mask.

    Raises:
        ValueError: when a mask is empty, a pixel has no size, or there are not as many of one as of
            the other.
    """
    spacing = _checked(spacing_mm)
    pairs = _pairs(cavities, walls)
    measured: list[Cavity] = []
    for start in range(0, len(spacing), _TOGETHER):
        some = spacing[start : start + _TOGETHER]
        traced = [trace(cavity, wall) for cavity, wall in islice(pairs, len(some))]
        if len(traced) < len(some):
            break
        measured += _measured(traced, some.T)
    if len(measured) < len(spacing) or next(pairs, None) is not None:
        raise ValueError(f"There are not as many cavities as sizes of pixels, {len(spacing)}.")
    return measured


def biplane_discs_ml(first: Cavity, second: Cavity) -> float:
    """Biplane method of discs from two perpendicular long-axis views of one phase.

    V = pi / 4 * sum(a_i b_i) * L / 20, with the longer of both lengths (Schiller 1989; Lang 2015).
    """
    length = max(first.length_mm, second.length_mm)
    products = float(first.widths_mm @ second.widths_mm)
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


def _checked(spacing_mm: ArrayLike) -> Floats:
    spacing = np.asarray(spacing_mm, float)
    if spacing.shape[1:] != (2,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(
            "Height and width of a pixel in mm must be two numbers above 0 for each mask, not "
            f"{spacing.tolist()}."
        )
    return spacing


def _pairs(
    cavities: Iterable[Mask], walls: Iterable[Mask] | None
) -> Iterator[tuple[Mask, Mask | None]]:
    """Each cavity with its wall, one after the other."""
    if walls is None:
        for cavity in cavities:
            yield cavity, None
        return
    for cavity, wall in zip_longest(cavities, walls):
        if cavity is None or wall is None:
            raise ValueError("There are not as many walls as cavities.")
        yield cavity, wall


def _measured(traced: Sequence[Traced], spacing: Floats) -> list[Cavity]:
    """What is measured of masks whose pixels have the sizes `spacing`, (2, N)."""
    outlines, corners = outlines_of(traced, spacing), corners_of(traced, spacing)
    annuli, seen = _openings(outlines)
    base, apex = np.empty_like(spacing), np.empty_like(spacing)
    base[:, seen], apex[:, seen] = _axes_from(
        annuli[..., seen], outlines.of(seen), spacing[:, seen]
    )
    other = ~seen
    if other.any():
        base[:, other], apex[:, other] = _principal_axes(
            outlines.of(other), corners.of(other), spacing[:, other]
        )
    lengths = np.hypot(*(apex - base))
    widths = _widths(corners, base, (apex - base) / lengths, lengths)
    areas = corners.groups.total(corners.values * corners.at[0] * corners.at[1])
    annuli /= spacing[:, None]
    known = [ends if there else None for ends, there in zip(annuli.T, seen, strict=True)]
    columns = (
        *(widths, lengths.tolist(), areas.tolist()),
        *((base / spacing).T, (apex / spacing).T, known),
    )
    return [Cavity(*row) for row in zip(*columns, strict=True)]


def _openings(outlines: Points) -> tuple[Floats, Flags]:
    """Both ends of the longest part of each outline that a wall leaves open.

    Returns:
        The ends (2, 2, N), place before end, and whether there is such a part, (N,).
    """
    groups, points = outlines.groups, outlines.at
    following = np.arange(1, points.shape[1] + 1)
    following[groups.ends - 1] = groups.starts
    steps = np.sqrt(((points[:, following] - points) ** 2).sum(axis=0))
    run = np.concatenate([[0.0], np.cumsum(steps)])
    around = run[groups.ends] - run[groups.starts]
    annuli, seen = np.zeros((2, 2, len(around))), np.zeros(len(around), bool)
    walled = np.flatnonzero(groups.most(outlines.values))
    if not len(walled):
        return annuli, seen
    # From every closed point to the next one of its outline, which follows at once or after an
    # opening.
    here = np.flatnonzero(outlines.values)
    closed = Groups(groups.total(outlines.values)[walled].astype(np.int64))
    there = np.append(here[1:], 0)
    there[closed.ends - 1] = here[closed.starts]
    ways = run[there] - run[here]
    ways[closed.ends - 1] += around[walled]
    ways[there == following[here]] = 0.0
    longest = closed.place_of_most(ways)
    shares = ways[longest] / np.maximum(around[walled], 1e-9)
    annuli[..., walled] = points[:, [here[longest], there[longest]]]
    seen[walled] = (shares >= _OPENING[0]) & (shares <= _OPENING[1])
    return annuli, seen


def _axes_from(annuli: Floats, outlines: Points, spacing: Floats) -> tuple[Floats, Floats]:
    """Base and apex, (2, N) each: the middle of the annulus, and what is farthest from it."""
    middle = annuli.mean(axis=1)
    ways = outlines.at - outlines.groups.each(middle)
    apex = outlines.at[:, outlines.groups.place_of_most((ways**2).sum(axis=0))]
    apex = _moved_out(apex, apex - middle, spacing)
    return _moved_out(middle, middle - apex, spacing), apex


def _moved_out(place: Floats, way: Floats, spacing: Floats) -> Floats:
    """Places (2, N) moved along a way, from the middle of their pixels to the edge."""
    outward = way / np.maximum(np.hypot(*way), 1e-9)
    return np.asarray(place + _rim(outward, spacing) * outward)


def _rim(direction: Floats, spacing: Floats) -> Floats:
    """How far a pixel reaches beyond its middle in a direction, (N,)."""
    return np.asarray(0.5 * (np.abs(direction) * spacing).sum(axis=0))


def _principal_axes(outlines: Points, corners: Points, spacing: Floats) -> tuple[Floats, Floats]:
    """Base and apex, (2, N) each, on the first principal axis of masks."""
    groups = outlines.groups
    centre, covariance = moments(corners)
    direction = np.linalg.eigh(covariance)[1][:, :, 1].T
    ways, own = outlines.at - groups.each(centre), groups.each(direction)
    along = ways[0] * own[0] + ways[1] * own[1]
    across = ways[1] * own[0] - ways[0] * own[1]
    # The outline goes through the middle of pixels.
    rim = _rim(direction, spacing)
    ends = groups.least(along) - rim, groups.most(along) + rim
    margin = groups.each(_END * (ends[1] - ends[0]))
    widths = []
    for end in ends:
        near = np.abs(along - groups.each(end)) <= margin
        right = groups.most(np.where(near, across, -np.inf))
        widths.append(np.maximum(right - groups.least(np.where(near, across, np.inf)), 0))
    low, high = (centre + end * direction for end in ends)
    base_is_low = widths[0] >= widths[1]
    return np.where(base_is_low, low, high), np.where(base_is_low, high, low)


def _widths(corners: Points, base: Floats, along: Floats, lengths: Floats) -> Floats:
    """Mean width of masks in each disc, (N, 20): their area in it over its height, exactly.

    A mask is a sum of quadrants (see `Traced`). Where the axis has the direction (u, v), with both
    above 0, and the corner of a quadrant lies at the height t along it, a triangle of the area
    (s - t)^2 / (2 u v) is below the height s, and nothing where s < t. The sum is the same for
    other signs: turns sum to 0 in each row and column, so that quadrants may open either way.
    """
    groups, count = corners.groups, len(lengths)
    # Along rows or columns u v is 0, and so is the sum that it divides.
    along = np.copysign(np.maximum(np.abs(along), _SLANT), along)
    disc = lengths / DISCS
    ways = corners.at - groups.each(base)
    direction = groups.each(along / disc)
    t = ways[0] * direction[0] + ways[1] * direction[1]
    # A corner counts from the first plane above it, of those at the heights 0 to 20.
    first = np.clip(np.floor(t) + 1, 0, DISCS + 1).astype(np.int64)
    place = first + np.repeat(np.arange(count) * (DISCS + 2), groups.counts)
    turns = corners.values
    ones, ts, squares = (
        np.bincount(place, weights, count * (DISCS + 2))
        .reshape(count, DISCS + 2)[:, : DISCS + 1]
        .cumsum(axis=1)
        for weights in (turns, turns * t, turns * t * t)
    )
    s = np.arange(DISCS + 1)
    below = ones * s * s - 2 * ts * s + squares
    scale = disc / (2 * along[0] * along[1])
    return np.asarray(np.diff(below, axis=1) * scale[:, None])
