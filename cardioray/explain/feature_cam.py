"""Heat maps of any function of averaged features, a Gaussian process among them.

Where features are the averages of the last feature map, the gradient of an answer by that map is
the same at all its positions, so that Grad-CAM and Grad-CAM++ need no backward pass: the slope of
the answer along each feature says all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cardioray.explain.cam import MIN_POSITIONS, Heat
from cardioray.models.backbones import NoFeatureMap
from cardioray.registry import unknown_name

Floats = NDArray[np.float64]

METHODS = ("gradcam++", "gradcam")
# Of a feature's size, or of 1 where it is smaller.
_STEP = 1e-3
# Half the width of the band around the mitral plane that counts as it, as a share of the plane.
_PLANE = 0.15


def slopes(answer: Callable[[Floats], Floats], features: Floats) -> Floats:
    """How an answer changes along each feature, by central differences.

    Args:
        answer: takes features (N, D) and gives one number each, (N,).
        features: where, (D,).

    Returns:
        (D,).
    """
    steps = _STEP * np.maximum(np.abs(features), 1.0)
    moved = np.eye(len(features)) * steps
    above, below = answer(features + moved), answer(features - moved)
    return np.asarray((above - below) / (2 * steps))


def feature_cam(maps: Floats, gradient: Floats, method: str) -> Heat:
    """The heat of an answer about averaged features.

    Grad-CAM weighs the maps A_k by the gradient g_k (R. R. Selvaraju et al., ICCV 2017,
    doi:10.1109/ICCV.2017.74). Grad-CAM++ weighs them by relu(g_k) / (2 + g_k S_k), with S_k the sum
    over A_k: equation 19 of A. Chattopadhay et al., WACV 2018, doi:10.1109/WACV.2018.00097, where
    the gradient is the same everywhere.

    Args:
        maps: the last feature map, (D, h, w).
        gradient: of the answer by the average of each map, (D,).
        method: one of `METHODS`.

    Returns:
        float32 (h, w) in [0, 1], scaled to its own largest value; all zero where nothing speaks
        for the answer.

    Raises:
        ValueError: for another method.
        NoFeatureMap: for a map of fewer than three positions a side.
    """
    if method not in METHODS:
        raise unknown_name("heat-map method for averaged features", method, METHODS)
    if min(maps.shape[1:]) < MIN_POSITIONS:
        raise NoFeatureMap(
            f"The last feature map has {maps.shape[2]} x {maps.shape[1]} positions; heat maps need "
            f"{MIN_POSITIONS} x {MIN_POSITIONS}: larger pictures."
        )
    local = gradient / (maps.shape[1] * maps.shape[2])
    weights = local
    if method == "gradcam++":
        below = 2 + local * maps.sum(axis=(1, 2))
        below = np.where(np.abs(below) < 1e-7, 1.0, below)
        weights = np.maximum(local, 0) / below
    heat = np.maximum(np.tensordot(weights, maps, axes=1), 0)
    top = heat.max()
    return np.asarray(heat / top if top > 0 else heat, np.float32)


def heat_shares(
    heat: Heat, labels: NDArray[np.uint8], structures: Mapping[str, int], plane: Any | None
) -> dict[str, float]:
    """How much of the heat lies in each structure.

    Args:
        heat: of the picture, (h, w); laid over the label map.
        labels: (H, W).
        structures: their labels by name.
        plane: both ends of the mitral plane, (2, 2), row before column in px; None where it is not
            known.

    Returns:
        By structure, for "mitral_plane" and for "elsewhere", shares that add up to 1 but for the
        mitral plane, which lies across the others. NaN where there is no heat, of a structure that
        the label map lacks, and of "elsewhere" beside such a one, which lies there.
    """
    height, width = labels.shape
    laid = cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR).astype(float)
    total = laid.sum()
    found = dict.fromkeys([*structures, "mitral_plane", "elsewhere"], float("nan"))
    if not total > 0:
        return found
    inside = {name: labels == number for name, number in structures.items()}
    for name, mask in inside.items():
        if mask.any():
            found[name] = float(laid[mask].sum() / total)
    if plane is not None:
        ends = np.rint(np.asarray(plane)[:, ::-1]).astype(int)
        reach = max(1, round(_PLANE * float(np.hypot(*(ends[1] - ends[0])))))
        band = np.zeros((height, width), np.uint8)
        cv2.line(band, ends[0].tolist(), ends[1].tolist(), 1, 2 * reach)
        found["mitral_plane"] = float(laid[band > 0].sum() / total)
    if all(mask.any() for mask in inside.values()):
        outside = ~np.any(list(inside.values()), axis=0)
        found["elsewhere"] = float(laid[outside].sum() / total)
    return found
