"""Heat over time: where it lies follows what the network uses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cardioray.explain.clip_cam import ClipExplainer, ClipHeat, assemble, overlay_frames
from cardioray.models.video import VideoModel, VideoModelConfig


@pytest.fixture(scope="module")
def model() -> VideoModel:
    torch.manual_seed(0)
    settings = VideoModelConfig(backbone="r2plus1d_10_slim", pretrained="none")
    net = VideoModel(settings, channels=1, outputs=("ef",)).eval()
    net.initialise((100.0,), (50.0,), {"ef": 55.0})
    return net


def test_a_window_is_explained_and_the_network_stays_as_it_was(model: VideoModel) -> None:
    clip = np.random.default_rng(0).integers(0, 255, (16, 48, 48, 1)).astype(np.uint8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    explainer = ClipExplainer(model)
    heat = explainer.window(clip, 16, "ef", prediction=None)
    assert heat.shape == (16, 48, 48)
    assert heat.min() >= 0
    assert heat.max() <= 1
    assert np.array_equal(heat, explainer.window(clip, 16, "ef", prediction=None))
    opposite = explainer.window(clip, 16, "ef", prediction=0)
    assert not np.array_equal(heat, opposite)
    short = explainer.window(clip, 9, "ef", prediction=None)
    assert not short[9:].any()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_windows_come_together_at_the_frames_they_are_of() -> None:
    heats = []
    for peak in (2, 5):
        heat = np.zeros((6, 4, 4), np.float32)
        heat[peak] = 1.0
        heats.append(heat)
    found = assemble(heats, [0, 20], 2, 40)
    assert found.heat.shape == (40, 4, 4)
    assert set(np.flatnonzero(found.importance == 1)) >= {4, 30}
    assert found.importance[3] == pytest.approx(0.5)
    assert found.importance[35] == found.importance[30]  # no window reaches it
    assert found.importance[15] == found.importance[10] == 0


def test_an_overlay_shows_the_cine_and_marks_the_moment() -> None:
    clip = np.full((5, 16, 16, 1), 100, np.uint8)
    heat = np.zeros((5, 16, 16), np.float32)
    heat[2, 4:12, 4:12] = 1
    curve = np.array([0, 0, 1, 0, 0], np.float32)
    frames = overlay_frames(clip, ClipHeat(heat, curve))
    assert frames.shape == (5, 272, 224, 3)
    assert (frames[0, :224] == 100).all()
    assert frames[2, 112, 112].max() > 180
    assert not np.array_equal(frames[0, 224:], frames[4, 224:])
