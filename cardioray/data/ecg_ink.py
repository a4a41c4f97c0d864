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
# Straight lines of this length are a frame around the curves.
_FRAME_ACROSS_MM, _FRAME_DOWN_MM = 110.0, 60.0
_THICK_MM = 2.5
_BORDER_MM = 6.0  # a table beside the page comes so near to the end of the picture
_DIM = 36  # of 255
_COARSE = 4.0  # px per mm at which they are looked for
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
    ink[_no_strokes(ink, valid, px_per_mm)] = 0
    return ink


def _no_strokes(ink: UInt8Image, valid: NDArray[np.bool_], px_per_mm: float) -> NDArray[np.bool_]:
    """Where straight lines are that are too long for a curve, and surfaces too thick for a pen.

    Those are frames, the paper's edges on a darker table, and pictures.
    """
    scale = _COARSE / px_per_mm
    height, width = ink.shape
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(ink, size, interpolation=cv2.INTER_AREA)
    dark = (small > 80).astype(np.uint8)
    down = _straight(dark, (round(_FRAME_DOWN_MM * _COARSE), 1))
    across = _straight(dark, (1, round(_FRAME_ACROSS_MM * _COARSE)))
    # A lead that is off is a straight line as well; a frame has corners.
    near = cv2.dilate(down, np.ones((17, 17), np.uint8))
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(across)
    of_frame = np.zeros(count, np.uint8)
    for number in range(1, count):
        left, top, wide, high = boxes[number, :4]
        ends = (near[top : top + high, x].any() for x in (left, left + wide - 1))
        of_frame[number] = all(ends)
    found = down | of_frame[labels]
    wider = cv2.dilate(found, np.ones((3, 3), np.uint8))
    thick = np.ones((round(_THICK_MM * _COARSE), round(_THICK_MM * _COARSE)), np.uint8)
    dim = (small > _DIM).astype(np.uint8)
    surfaces = cv2.morphologyEx(dim, cv2.MORPH_OPEN, thick, borderValue=0)
    # A curve with a strong tremor is thick as well, but stands within the page.
    room = 2 * round(_BORDER_MM * _COARSE) + 1
    shown = cv2.resize(valid.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    inner = cv2.erode(shown, np.ones((room, room), np.uint8), borderValue=0)
    _, parts = cv2.connectedComponents(surfaces)
    outer = np.unique(parts[(inner == 0) & (surfaces > 0)])
    table = (np.isin(parts, outer) & (surfaces > 0)).astype(np.uint8)
    wider |= cv2.dilate(table, np.ones((15, 15), np.uint8))
    mask: NDArray[np.bool_] = (
        cv2.resize(wider, (width, height), interpolation=cv2.INTER_NEAREST) > 0
    )
    return mask


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


def _straight(dark: UInt8Image, shape: tuple[int, int]) -> UInt8Image:
    """Lines at least as long as a kernel of 1 px width."""
    if shape[0] >= dark.shape[0] or shape[1] >= dark.shape[1]:
        return np.zeros_like(dark)
    lines: UInt8Image = cv2.morphologyEx(
        dark, cv2.MORPH_OPEN, np.ones(shape, np.uint8), borderValue=0
    )
    return lines


def _stand_out(absorbed: Plane, valid: NDArray[np.bool_]) -> Plane:
    """The weighted sum of channels in which ink is 1 and the rest the smallest, (H, W)."""
    if absorbed.shape[2] == 1:
        return np.ascontiguousarray(absorbed[..., 0])
    # Colours are measured in each third px of each third line.
    some, known = absorbed[::3, ::3], valid[::3, ::3]
    least = some.min(axis=2)
    if not known.any():
        return np.zeros(valid.shape, np.float32)
    level = max(float(np.quantile(least[known], 1 - _INK_SHARE)), _NOISE)
    inked = known & (least >= level)
    others = some[known & (cv2.dilate(least, np.ones((3, 3), np.uint8)) < 0.4 * level)]
    if len(others) < 100 or not inked.any():
        return np.ascontiguousarray(absorbed.min(axis=2))
    ink = some[inked].mean(axis=0, dtype=np.float64)
    spread = others.astype(np.float64)
    noise = spread.T @ spread / len(spread) + _NOISE**2 * np.eye(3)
    weights = np.linalg.solve(noise, ink)
    weights *= ink.mean() / (weights @ ink)
    plane: Plane = cv2.transform(absorbed, weights.astype(np.float32)[None])
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
