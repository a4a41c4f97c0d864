"""Paper laid flat: from px of a picture to millimetres and to px of a page, and back."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cardioray.data.frames import UInt8Image

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Bend:
    """How far points of bent paper lie from where a homography has them, in mm.

    A polynomial of the third degree between the tiles that it was fitted to; straight beyond them.

    Attributes:
        coefficients: of x and of y, (2, 9).
        middle: of the tiles, mm.
        reach: of them to both sides, mm.
    """

    coefficients: Floats
    middle: Floats
    reach: Floats

    def offsets(self, points: Floats) -> Floats:
        """Offsets (..., 2) of points (..., 2)."""
        place = (points - self.middle) / self.reach
        inside = np.clip(place, -1, 1)
        slopes = np.einsum("...ij,kj->...ki", bend_slopes(inside), self.coefficients)
        beyond = np.einsum("...ki,...i->...k", slopes, place - inside)
        result: Floats = _terms(inside) @ self.coefficients.T + beyond
        return result

    def flatten(self, points: Floats) -> Floats:
        """From where the homography has points to where they are on flat paper."""
        return points + self.offsets(points)

    def unflatten(self, points: Floats) -> Floats:
        """The other way, by iteration: offsets change by a few hundredths of a mm per mm."""
        found = points - self.offsets(points)
        for _ in range(4):
            found = points - self.offsets(found)
        return found


@dataclass(frozen=True, eq=False)
class PageMap:
    """What of a picture lies where on a page.

    Attributes:
        homography: from px of the picture to mm, (3, 3).
        bend: of the paper.
        to_px: from mm to px of the page, (3, 3).
    """

    homography: Floats
    bend: Bend | None
    to_px: Floats

    @property
    def as_homography(self) -> Floats:
        """From px of the picture to px of the page, as if the paper were flat."""
        return self.to_px @ self.homography

    def to_page(self, points: NDArray[np.floating]) -> Floats:
        """Px of the page of points (..., 2) of the picture."""
        flat = transform(self.homography, points)
        return transform(self.to_px, flat if self.bend is None else self.bend.flatten(flat))

    def to_picture(self, points: NDArray[np.floating]) -> Floats:
        """Px of the picture of points (..., 2) of the page."""
        to_mm = np.linalg.inv(self.to_px).astype(np.float64)
        to_picture = np.linalg.inv(self.homography).astype(np.float64)
        flat = transform(to_mm, points)
        if self.bend is not None:
            flat = self.bend.unflatten(flat)
        return transform(to_picture, flat)


def rectify(
    picture: UInt8Image, homography: Floats, px_per_mm: float, bend: Bend | None = None
) -> tuple[UInt8Image, NDArray[np.bool_], PageMap]:
    """Lay the paper flat.

    Args:
        picture: (H, W) or (H, W, 3).
        homography: from its px to mm.
        px_per_mm: resolution of the result.
        bend: of the paper.

    Returns:
        The paper, white outside the picture; where it is from the picture, (H, W); and what lies
        where.

    Raises:
        ValueError: when the picture reaches the horizon of the paper.
    """
    height, width = picture.shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
    depth = corners @ homography[2, :2] + homography[2, 2]
    if depth.min() <= 0.1 * depth.max():
        raise ValueError("The page is seen at too flat an angle to be laid flat.")
    along = np.linspace(0, 1, 12)[:, None]
    edge = np.concatenate(
        [a + along * (b - a) for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True)]
    )
    flat = transform(homography, edge)
    if bend is not None:
        flat = bend.flatten(flat)
    low, high = flat.min(axis=0), flat.max(axis=0)
    size = np.ceil((high - low) * px_per_mm).astype(int)
    to_px = np.array(
        [[px_per_mm, 0, -low[0] * px_per_mm], [0, px_per_mm, -low[1] * px_per_mm], [0, 0, 1]]
    )
    mapped = PageMap(homography, bend, to_px)
    local = jacobian(homography, corners.mean(axis=0))
    scale = px_per_mm * float(np.sqrt(abs(np.linalg.det(local))))
    source, across, down = picture, 1.0, 1.0
    if scale < 0.7:  # averaged before, or thin lines would fall between samples
        smaller = (max(1, round(width * scale)), max(1, round(height * scale)))
        source = cv2.resize(picture, smaller, interpolation=cv2.INTER_AREA)
        across, down = smaller[0] / width, smaller[1] / height
    # Where each px comes from: exactly at every 16th, and straight between.
    step = 16
    x, y = (np.arange(0, side + 2 * step, step, dtype=float) for side in size)
    places = mapped.to_picture(np.stack(np.meshgrid(x, y), axis=2))
    # Centres of pixels lie at integers.
    places = (places + 0.5) * [across, down] - 0.5
    finer = np.array([[1 / step, 0, 0], [0, 1 / step, 0]])
    maps = cv2.warpAffine(
        places.astype(np.float32),
        finer,
        (int(size[0]), int(size[1])),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
    )
    page = cv2.remap(
        source,
        maps,
        None,
        cv2.INTER_LINEAR if scale < 2 else cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(255, 255, 255),
    )
    last = np.array([source.shape[1], source.shape[0]], np.float32) - 1
    valid: NDArray[np.bool_] = ((maps >= 0) & (maps <= last)).all(axis=2)
    return page, valid, mapped


def transform(homography: Floats, points: NDArray[np.floating]) -> Floats:
    """Points (..., 2) moved by a homography."""
    moved = np.asarray(points, float) @ homography[:, :2].T + homography[:, 2]
    result: Floats = moved[..., :2] / moved[..., 2:]
    return result


def jacobian(homography: Floats, point: Floats) -> Floats:
    """How far the image of a point moves for a step of 1 px, (2, 2): rows are x and y of it."""
    x, y = point
    u, v, w = homography @ np.array([x, y, 1.0])
    rows = [
        (homography[0, :2] * w - u * homography[2, :2]) / w**2,
        (homography[1, :2] * w - v * homography[2, :2]) / w**2,
    ]
    return np.array(rows)


def _terms(place: Floats) -> Floats:
    x, y = place[..., 0], place[..., 1]
    return np.stack([x, y, x * x, x * y, y * y, x**3, x * x * y, x * y * y, y**3], axis=-1)


def bend_slopes(place: Floats) -> Floats:
    """How the terms change with x and y, (..., 2, 9)."""
    x, y = place[..., 0], place[..., 1]
    one, zero = np.ones_like(x), np.zeros_like(x)
    along = [one, zero, 2 * x, y, zero, 3 * x * x, 2 * x * y, y * y, zero]
    beside = [zero, one, zero, x, 2 * y, zero, x * x, 2 * x * y, 3 * y * y]
    return np.stack([np.stack(along, axis=-1), np.stack(beside, axis=-1)], axis=-2)
