"""Where in a key frame the evidence of its heads lies."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cardioray.explain.cam import Heat
from cardioray.explain.feature_cam import feature_cam, slopes
from cardioray.models.backbones import NoFeatureMap
from cardioray.models.keyframes import KeyframeModel
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
    pictures = torch.tensor(picture[None])
    with torch.inference_mode():
        maps = model.feature_map(pictures)[0].double().numpy()
        pooled = model.features(pictures)[0].double().numpy()
    averages = maps.mean(axis=(1, 2))
    if averages.shape != pooled.shape or not np.allclose(averages, pooled, rtol=1e-2, atol=1e-3):
        raise NoFeatureMap(
            f"The features of {model.settings.backbone} are no averages of a feature map."
        )

    def answer(features: Floats) -> Floats:
        missing = np.full_like(features, np.nan)
        known = dict.fromkeys(heads.record.frames, missing) | {frame: features}
        return heads.answer(known).value

    gradient = slopes(answer, averages)
    below = float(answer(averages[None])[0]) <= heads.record.cutoff
    return feature_cam(maps, -gradient if below else gradient, method)
