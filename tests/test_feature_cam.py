"""Heat maps of functions of averaged features, beside the grad-cam package's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus
from torch import Tensor, nn

from cardioray.explain.feature_cam import feature_cam, heat_shares, slopes
from cardioray.models.backbones import NoFeatureMap


class Averaged(nn.Module):
    """A feature map, its averages, and a smooth answer about them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.maps = nn.Sequential(nn.Conv2d(1, 12, 5, stride=4), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        found: Tensor = self.head(self.maps(pictures).mean(dim=(2, 3)))
        return found


@pytest.mark.parametrize(
    ("name", "algorithm"), [("gradcam", GradCAM), ("gradcam++", GradCAMPlusPlus)]
)
def test_it_is_the_packages_map(name: str, algorithm: type) -> None:
    model = Averaged().double().eval()
    picture = torch.rand(1, 1, 33, 33, dtype=torch.float64)
    with torch.no_grad():
        maps = model.maps(picture)[0].numpy()

    def answer(features: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model.head(torch.from_numpy(features))[:, 0].numpy()

    gradient = slopes(answer, maps.mean(axis=(1, 2)))
    own = feature_cam(maps, gradient, name)
    with algorithm(model, [model.maps]) as cam:
        theirs = cam(picture, targets=[lambda output: output[0]])[0]
    assert own.max() == 1
    enlarged = torch.nn.functional.interpolate(
        torch.from_numpy(own)[None, None], size=theirs.shape, mode="bilinear"
    )[0, 0].numpy()
    # The package scales each map to [0, 1] by its least value, too, and enlarges by OpenCV.
    assert np.corrcoef(enlarged.ravel(), theirs.ravel())[0, 1] > 0.98


def test_slopes_are_the_gradient() -> None:
    weights = np.array([1.0, -2.0, 0.5])

    def answer(features: np.ndarray) -> np.ndarray:
        return np.tanh(features @ weights)

    at = np.array([0.1, 0.2, 0.3])
    expected = weights * (1 - np.tanh(at @ weights) ** 2)
    np.testing.assert_allclose(slopes(answer, at), expected, rtol=1e-5)


def test_what_speaks_against_the_answer_is_cold() -> None:
    maps = np.zeros((2, 4, 4))
    maps[0, 0, 0], maps[1, 3, 3] = 1.0, 1.0
    for method in ("gradcam", "gradcam++"):
        heat = feature_cam(maps, np.array([1.0, -1.0]), method)
        assert heat[0, 0] == 1
        assert heat[3, 3] == 0


def test_too_small_a_map_and_another_method_are_refused() -> None:
    with pytest.raises(NoFeatureMap, match="larger pictures"):
        feature_cam(np.ones((3, 2, 2)), np.ones(3), "gradcam")
    with pytest.raises(ValueError, match=r"gradcam\+\+"):
        feature_cam(np.ones((3, 4, 4)), np.ones(3), "scorecam")


def test_shares_of_heat_add_up() -> None:
    labels = np.zeros((40, 40), np.uint8)
    labels[:20] = 1
    labels[20:30] = 2
    heat = np.zeros((8, 8), np.float32)
    heat[:4] = 1
    found = heat_shares(heat, labels, {"cavity": 1, "wall": 2}, np.array([[20, 5], [20, 35]]))
    assert found["cavity"] + found["wall"] + found["elsewhere"] == pytest.approx(1)
    assert found["cavity"] > 0.9
    assert 0 < found["mitral_plane"] < 0.5
    nothing = heat_shares(np.zeros((8, 8), np.float32), labels, {"cavity": 1}, None)
    assert np.isnan(nothing["cavity"])


def test_what_a_label_map_lacks_has_no_share() -> None:
    labels = np.zeros((40, 40), np.uint8)
    labels[:20] = 1  # a cavity that nobody has outlined the wall of
    found = heat_shares(np.ones((8, 8), np.float32), labels, {"cavity": 1, "wall": 2}, None)
    assert found["cavity"] == pytest.approx(0.5, abs=0.05)
    assert np.isnan(found["wall"])
    assert np.isnan(found["elsewhere"])  # the wall is there
