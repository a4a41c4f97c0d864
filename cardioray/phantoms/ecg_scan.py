"""What becomes of a printed page on its way into a computer: scanned, or photographed."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


def scan(page: Picture, rng: np.random.Generator) -> Picture:
    """A page that went through a flatbed scanner: turned a little, blurred, tinted, with dust.

    Args:
        page: (H, W, 3) uint8.
        rng: of all that varies.

    Returns:
        A page of the same size, RGB or with three equal channels.
    """
    height, width = page.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), float(rng.normal(0, 0.8)), 1.0)
    found = cv2.warpAffine(
        page, turn, (width, height), flags=cv2.INTER_LINEAR, borderValue=(255, 255, 255)
    )
    found = cv2.GaussianBlur(found, (0, 0), float(rng.uniform(0.3, 0.8))).astype(np.float32)
    if rng.random() < 0.25:
        found[:] = found.mean(axis=2, keepdims=True)
    tint = 1 - rng.uniform(0, 0.06, 3)
    found = 255 - (255 - found) * float(rng.uniform(0.75, 1.15))
    found = found * tint + rng.normal(0, rng.uniform(1, 4), found.shape)
    for _ in range(rng.poisson(15)):
        place = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.circle(found, place, int(rng.integers(1, 3)), (90.0, 90.0, 90.0), -1)
    return _compressed(found, int(rng.integers(55, 92)))


def photograph(page: Picture, rng: np.random.Generator) -> Picture:
    """A page on a table, held by nobody: seen at an angle, in uneven light, out of focus.

    Args:
        page: (H, W, 3) uint8.
        rng: of all that varies.

    Returns:
        A picture of about the page's size, of which the page takes most.
    """
    height, width = page.shape[:2]
    border = 0.06
    size = (round(width * (1 + 2 * border)), round(height * (1 + 2 * border)))
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    seen = corners + np.array([border * width, border * height], np.float32)
    seen += rng.normal(0, 0.018, (4, 2)) * min(width, height)
    middle = seen.mean(axis=0)
    angle = np.deg2rad(rng.normal(0, 2.5))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    seen = ((seen - middle) @ turn.T + middle).astype(np.float32)
    onto = cv2.getPerspectiveTransform(corners, seen)
    table = rng.uniform(40, 150, 3)
    found = cv2.warpPerspective(page, onto, size, flags=cv2.INTER_LINEAR, borderValue=tuple(table))
    found = cv2.GaussianBlur(found, (0, 0), float(rng.uniform(0.4, 1.1))).astype(np.float32)
    found *= _light(size, rng)[..., None] * (1 - rng.uniform(0, 0.15, 3))
    found += rng.normal(0, rng.uniform(2, 6), found.shape)
    return _compressed(found, int(rng.integers(50, 88)))


def _light(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Brightness over a picture: a slope, darker corners and the edge of a shadow, (H, W)."""
    width, height = size
    across, down = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    towards = rng.uniform(0, 2 * np.pi)
    slope = across * np.cos(towards) + down * np.sin(towards)
    light = 0.9 + rng.uniform(0, 0.15) * slope - rng.uniform(0, 0.12) * (across**2 + down**2) / 2
    if rng.random() < 0.4:
        towards = rng.uniform(0, 2 * np.pi)
        edge = across * np.cos(towards) + down * np.sin(towards) - rng.uniform(0.2, 0.7)
        light -= rng.uniform(0.1, 0.3) / (1 + np.exp(-edge / 0.08))
    return np.asarray(light, np.float32)


def _compressed(picture: NDArray[np.floating], quality: int) -> Picture:
    levels = np.clip(np.round(picture), 0, 255).astype(np.uint8)
    done, coded = cv2.imencode(".jpg", levels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    read = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert read is not None
    return np.ascontiguousarray(read[..., ::-1], np.uint8)
