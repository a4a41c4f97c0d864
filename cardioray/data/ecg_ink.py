"""The ink of a page of ECG paper, with the paper, its shadows and its grid gone."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from cardioray.data.frames import UInt8Image

Plane = NDArray[np.float32]

# Mm over which a line of the grid is averaged: a vertical one over more, since curves seldom run
# straight down but often straight ahead.
_DOWN_MM, _ACROSS_MM = 17, 21
# Share of a page that is taken for its ink when the ink's colour is measured.
_INK_SHARE = 0.006
_NOISE = 0.03  # absorption that is paper, whatever its colour


def find_ink(page: UInt8Image, valid: NDArray[np.bool_], px_per_mm: float) -> UInt8Image:
    """Darkness of curves and letters.

    Absorption is measured against the paper around, so that shadows fall out. A weighted sum of
    the channels then lets the ink stand out of whatever colours the grid has: the weights that
    keep the ink at 1 and make everything else the smallest (Capon's). What is left of the grid,
    as where it is grey, is taken off along its lines.

    Args:
        page: a rectified page, (H, W) or (H, W, 3).
        valid: where the page is, (H, W); outside it was filled up.
        px_per_mm: its resolution.

    Returns:
        (H, W) uint8, 255 where ink is as dark as the page's ink is.
    """
    absorbed = _absorption(page, valid, px_per_mm)
    plane = _stand_out(absorbed, valid)
    plane -= _lines(plane, px_per_mm)
    plane[~valid] = 0
    dark = plane[valid]
    if dark.size == 0:
        return np.zeros(valid.shape, np.uint8)
    level = max(float(np.quantile(dark, 1 - _INK_SHARE)), 2 * _NOISE)
    ink: UInt8Image = np.clip(plane * (255 / level), 0, 255).astype(np.uint8)
    return ink


def _absorption(page: UInt8Image, valid: NDArray[np.bool_], px_per_mm: float) -> Plane:
    """Share of the light that is missing, against the paper around, (H, W, C)."""
    picture = page[..., None] if page.ndim == 2 else page
    if picture.shape[2] == 3 and (picture[..., :1] == picture).all():
        picture = picture[..., :1]
    height, width = valid.shape
    small = (max(3, round(width / px_per_mm)), max(3, round(height / px_per_mm)))
    channels = []
    for number in range(picture.shape[2]):
        channel = np.ascontiguousarray(picture[..., number])
        paper = cv2.resize(channel, small, interpolation=cv2.INTER_AREA)
        paper = cv2.dilate(paper, np.ones((3, 3), np.uint8))
        paper = cv2.medianBlur(paper, 9)
        paper = cv2.GaussianBlur(paper, (0, 0), 3)
        around = cv2.resize(paper, (width, height), interpolation=cv2.INTER_LINEAR)
        share = 1 - channel.astype(np.float32) / np.maximum(around.astype(np.float32), 8)
        channels.append(share)
    absorbed: Plane = np.stack(channels, axis=2)
    # The rim of a page is half filling: no ink is read there.
    inside = cv2.erode(
        valid.astype(np.uint8), np.ones((5, 5), np.uint8), borderType=cv2.BORDER_REPLICATE
    )
    absorbed[inside == 0] = 0
    return absorbed


def _stand_out(absorbed: Plane, valid: NDArray[np.bool_]) -> Plane:
    """The weighted sum of channels in which ink is 1 and the rest the smallest, (H, W)."""
    if absorbed.shape[2] == 1:
        return np.ascontiguousarray(absorbed[..., 0])
    least: Plane = absorbed.min(axis=2)
    pixels = least[valid]
    if pixels.size == 0:
        return least
    level = max(float(np.quantile(pixels[::7], 1 - _INK_SHARE)), _NOISE)
    inked = least >= level
    ink = absorbed[inked].mean(axis=0, dtype=np.float64)
    near = cv2.dilate((least > 0.4 * level).astype(np.uint8), np.ones((3, 3), np.uint8))
    others = absorbed[(near == 0) & valid][::5].astype(np.float64)
    if len(others) < 100:
        return least
    noise = others.T @ others / len(others) + _NOISE**2 * np.eye(3)
    weights = np.linalg.solve(noise, ink)
    weights /= weights @ ink
    plane: Plane = (absorbed @ weights.astype(np.float32)) * np.float32(ink.mean())
    return plane


def _lines(plane: Plane, px_per_mm: float) -> Plane:
    """What is left of the grid: the middle darkness along lines down and across."""
    down = _along(plane, px_per_mm, _DOWN_MM)
    across = _along(np.ascontiguousarray(plane.T), px_per_mm, _ACROSS_MM).T
    # Curves that run straight ahead look like lines across. No line of the grid is darker there
    # than it is down the page.
    darkest = float(np.quantile(down[::3, ::3], 0.97))
    result: Plane = np.minimum(np.maximum(down, across), darkest)
    return result


def _along(plane: Plane, px_per_mm: float, length_mm: int) -> Plane:
    """Running median over `length_mm` down each column, never below 0."""
    height, width = plane.shape
    blocks = max(1, round(height / px_per_mm))
    means = cv2.resize(plane, (width, blocks), interpolation=cv2.INTER_AREA)
    half = length_mm // 2
    padded = np.pad(means, ((half, half), (0, 0)), mode="reflect" if blocks > half else "edge")
    windows = sliding_window_view(padded, length_mm, axis=0)
    middle = np.partition(windows, half, axis=2)[..., half]
    smooth: Plane = cv2.resize(
        np.maximum(middle, 0), (width, height), interpolation=cv2.INTER_LINEAR
    )
    return smooth
