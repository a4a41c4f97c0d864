"""Where in a key frame the evidence for its ejection fraction lies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from cardioray.explain.cam import Heat
from cardioray.explain.feature_cam import feature_cam, slopes
from cardioray.models.backbones import NoFeatureMap
from cardioray.models.keyframes import KeyframeModel
from cardioray.tasks.base import LabelStatistics
from cardioray.tasks.keyframe_ef import EF_TARGET
from cardioray.tasks.keyframe_heads import FittedHeads

Floats = NDArray[np.float64]


def frame_heat(
    model: KeyframeModel,
    heads: FittedHeads,
    frame: str,
    picture: NDArray[np.uint8],
    method: str = "gradcam++",
) -> Heat:
    """The heat of what the heads on one frame say, for the side of the cut-off that they are on.

    Args:
        model: the backbone, in eval mode.
        heads: fitted to its features.
        frame: which key frame it is; one that heads were fitted to.
        picture: as the network takes it, (S, S, 1).
        method: "gradcam++" or "gradcam".

    Returns:
        float32 (h, w) in [0, 1], of the whole picture.

    Raises:
        NoFeatureMap: for a backbone whose features are no averages of a feature map.
        ValueError: for another method.
    """
    assert frame in heads.record.frames

    def answer(features: Floats) -> Floats:
        missing = np.full_like(features, np.nan)
        known = dict.fromkeys(heads.record.frames, missing) | {frame: features}
        return heads.answer(known).value

    return _heat(model, picture, answer, heads.record.cutoff, method)


def trained_heat(
    model: KeyframeModel,
    statistics: LabelStatistics,
    cutoff: float,
    picture: NDArray[np.uint8],
    method: str = "gradcam++",
) -> Heat:
    """The heat of the number that a trained network says, for the side of the cut-off it is on.

    Args:
        model: the network, with its output for the ejection fraction, in eval mode.
        statistics: of the training labels, by which the output is scaled.
        cutoff: of the class, in percent.
        picture: as of `frame_heat`.
        method: as of `frame_heat`.

    Returns:
        As `frame_heat`.

    Raises:
        NoFeatureMap: as `frame_heat`.
        ValueError: as `frame_heat`.
    """
    assert model.head is not None
    place = model.outputs.index(EF_TARGET.name)
    weights = model.head.weight[place].detach().double().cpu().numpy()
    offset = float(model.head.bias[place])
    deviation, mean = statistics.deviations[EF_TARGET.name], statistics.means[EF_TARGET.name]

    def answer(features: Floats) -> Floats:
        return np.asarray((features @ weights + offset) * deviation + mean)

    return _heat(model, picture, answer, cutoff, method)


def _heat(
    model: KeyframeModel,
    picture: NDArray[np.uint8],
    answer: Callable[[Floats], Floats],
    cutoff: float,
    method: str,
) -> Heat:
    """The heat of an answer in percent about the averaged features of a picture."""
    pictures = torch.tensor(picture[None], device=next(model.parameters()).device)
    with torch.inference_mode():
        maps = model.feature_map(pictures)[0].double().cpu().numpy()
        pooled = model.features(pictures)[0].double().cpu().numpy()
    averages = maps.mean(axis=(1, 2))
    if averages.shape != pooled.shape or not np.allclose(averages, pooled, rtol=1e-2, atol=1e-3):
        raise NoFeatureMap(
            f"The features of {model.settings.backbone} are no averages of a feature map."
        )
    gradient = slopes(answer, averages)
    below = float(answer(averages[None])[0]) <= cutoff
    return feature_cam(maps, -gradient if below else gradient, method)
