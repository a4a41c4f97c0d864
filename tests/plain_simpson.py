"""The method of discs once more, point by point and pixel by pixel, to test the fast one."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from cardioray.clinical.simpson import DISCS

Place = tuple[float, float]  # in mm, down and to the right from the middle of the first pixel


def plain_axis(
    mask: NDArray[np.bool_], spacing: tuple[float, float], wall: NDArray[np.bool_] | None
) -> tuple[Place, Place]:
    """Base and apex."""
    outline = _outline(mask)
    ends = None if wall is None else _opening(outline, wall, spacing)
    if ends is None:
        return _principal_ends(mask, outline, spacing)
    points = [_mm(point, spacing) for point in outline]
    first, last = (_mm(end, spacing) for end in ends)
    middle = ((first[0] + last[0]) / 2, (first[1] + last[1]) / 2)
    distances = [math.dist(point, middle) for point in points]
    # Of points that are equally far away, the first one.
    apex = next(p for p, d in zip(points, distances, strict=True) if d >= max(distances) - 1e-6)
    apex = _to_the_edge(apex, middle, spacing)
    return _to_the_edge(middle, apex, spacing), apex


def plain_widths(
    mask: NDArray[np.bool_], spacing: tuple[float, float], base: Place, apex: Place
) -> list[float]:
    """The area of the mask in each disc over the disc's height, from every pixel cut by planes."""
    length = math.dist(base, apex)
    along = ((apex[0] - base[0]) / length, (apex[1] - base[1]) / length)
    height = length / DISCS
    areas = [0.0] * DISCS
    for pixel in np.argwhere(mask):
        row, column = (float(number) for number in pixel)
        corners = [
            _mm((row + down, column + right), spacing)
            for down, right in ((-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5))
        ]
        # In discs along the axis, and in mm across it.
        turned = [
            (
                ((y - base[0]) * along[0] + (x - base[1]) * along[1]) / height,
                (x - base[1]) * along[0] - (y - base[0]) * along[1],
            )
            for y, x in corners
        ]
        low, high = min(t for t, _ in turned), max(t for t, _ in turned)
        for disc in range(max(0, math.floor(low)), min(DISCS, math.floor(high) + 1)):
            areas[disc] += _area(_below(_below(turned, disc + 1, 1), disc, -1))
    return areas  # discs are of height 1 in these units


def _outline(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [(int(y), int(x)) for x, y in max(found, key=len)[:, 0]]


def _opening(
    outline: list[tuple[int, int]], wall: NDArray[np.bool_], spacing: tuple[float, float]
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The points of the wall on both sides of the longest part that it leaves open."""

    def touched(point: tuple[int, int]) -> bool:
        y, x = point
        return bool(wall[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3].any())

    closed = [touched(point) for point in outline]
    if all(closed) or not any(closed):
        return None
    count = len(outline)

    def step(i: int) -> float:
        return math.dist(_mm(outline[i], spacing), _mm(outline[(i + 1) % count], spacing))

    longest, ends = 0.0, None
    for start in range(count):
        if not closed[start] or closed[(start + 1) % count]:
            continue
        way, i = step(start), (start + 1) % count
        while not closed[i]:
            way, i = way + step(i), (i + 1) % count
        if way > longest:
            longest, ends = way, (outline[start], outline[i])
    share = longest / sum(step(i) for i in range(count))
    return ends if 0.04 <= share <= 0.5 else None


def _principal_ends(
    mask: NDArray[np.bool_], outline: list[tuple[int, int]], spacing: tuple[float, float]
) -> tuple[Place, Place]:
    """The wider and the other end of the axis in which the mask is longest."""
    pixels = np.argwhere(mask) * spacing
    centre = pixels.mean(axis=0)
    # A pixel is a square of its own size, not a point.
    spread = np.cov(pixels.T, bias=True) + np.diag(np.square(spacing)) / 12
    direction = np.linalg.eigh(spread)[1][:, 1]
    ways = np.array(outline) * spacing - centre
    along, across = ways @ direction, ways @ np.array([-direction[1], direction[0]])
    rim = 0.5 * float(np.abs(direction) @ spacing)
    ends = (along.min() - rim, along.max() + rim)
    margin = 0.15 * (ends[1] - ends[0])
    widths = [np.ptp(across[np.abs(along - end) <= margin]) for end in ends]
    first, last = (tuple((centre + end * direction).tolist()) for end in ends)
    return (first, last) if widths[0] >= widths[1] else (last, first)


def _mm(point: tuple[float, float], spacing: tuple[float, float]) -> Place:
    return point[0] * spacing[0], point[1] * spacing[1]


def _to_the_edge(point: Place, other: Place, spacing: tuple[float, float]) -> Place:
    """A point moved away from another one, from the middle of its pixel to the edge."""
    distance = math.dist(point, other)
    y, x = ((mine - its) / distance for mine, its in zip(point, other, strict=True))
    reach = 0.5 * (abs(y) * spacing[0] + abs(x) * spacing[1])
    return point[0] + reach * y, point[1] + reach * x


def _below(polygon: list[Place], plane: float, sign: int) -> list[Place]:
    """The part of a polygon whose first coordinate is below a plane, above it for sign -1."""
    kept: list[Place] = []
    for (t, w), (other_t, other_w) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        mine, its = sign * (plane - t), sign * (plane - other_t)
        if mine >= 0:
            kept.append((t, w))
        if mine * its < 0:
            share = mine / (mine - its)
            kept.append((plane, w + share * (other_w - w)))
    return kept


def _area(polygon: list[Place]) -> float:
    following = polygon[1:] + polygon[:1]
    return abs(sum(a * d - b * c for (a, b), (c, d) in zip(polygon, following, strict=True))) / 2
