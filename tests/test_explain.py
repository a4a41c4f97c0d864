"""Heat maps: where they lie, what they leave behind, and the pictures that show them."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cardioray.data.image import ImagePreprocess
from cardioray.explain.cam import (
    METHODS,
    Explainer,
    Explanation,
    class_activation,
    explain_grid,
    overlay,
    to_source,
)
from cardioray.models.backbones import BACKBONES
from cardioray.models.classifier import ImageClassifier, ImageModelConfig

SIZE = 64


class CornerMaps(nn.Module):
    """Two feature maps: brightness in the upper left, brightness in the lower right corner."""

    feature_info = ({"module": "last", "num_chs": 2},)

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.ReLU()
        corners = torch.zeros(1, 2, 8, 8)
        corners[:, 0, :3, :3] = corners[:, 1, -3:, -3:] = 1.0
        self.register_buffer("corners", corners)

    def forward_features(self, images: Tensor) -> Tensor:
        bright = nn.functional.avg_pool2d(images, SIZE // 8)
        return self.last(bright * self.corners)


class CornerHead(nn.Module):
    """A logit that the first map raises and the second lowers, and a number from the second."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([[50.0, -50.0], [0.0, 50.0]]))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        logit, number = (features @ self.weights.T).unbind(1)
        return {"corner": logit, "number": number}


def model_of(backbone: str, channels: int = 1) -> ImageClassifier:
    torch.manual_seed(0)
    settings = ImageModelConfig(backbone=backbone, pretrained="none")
    return ImageClassifier(settings, channels=channels, outputs=("ffr",)).eval()


@pytest.fixture(scope="module")
def planted() -> ImageClassifier:
    model = model_of("mobilenetv3large")
    model.backbone.net = CornerMaps()
    model.head = CornerHead()
    return model.eval()


@pytest.fixture
def small() -> ImageClassifier:
    return model_of("mobilenetv3large")


def picture(size: int = SIZE, channels: int = 1) -> np.ndarray:
    """Grey noise with bright fields in the upper left and the lower right corner."""
    pixels = np.random.default_rng(0).integers(100, 140, (size, size, channels))
    third = size // 3
    pixels[:third, :third] += 100
    pixels[-third:, -third:] += 100
    return pixels.astype(np.uint8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("target", "prediction", "corner"),
    [("corner", 1, "upper left"), ("corner", 0, "lower right"), ("number", None, "lower right")],
)
def test_heat_lies_where_the_evidence_is(
    planted: ImageClassifier, method: str, target: str, prediction: int | None, corner: str
) -> None:
    heat = class_activation(planted, picture(), target, method, prediction=prediction)
    half = SIZE // 2
    quarters = {
        "upper left": heat[:half, :half],
        "upper right": heat[:half, half:],
        "lower left": heat[half:, :half],
        "lower right": heat[half:, half:],
    }
    assert heat.max() == pytest.approx(1)
    assert quarters[corner].sum() > 0.9 * heat.sum()


def test_no_evidence_gives_no_heat(planted: ImageClassifier) -> None:
    dark = np.zeros((SIZE, SIZE, 1), np.uint8)
    heat = class_activation(planted, dark, "corner", "gradcam", prediction=1)
    np.testing.assert_array_equal(heat, 0)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_has_a_map(backbone: str) -> None:
    explainer = Explainer(model_of(backbone))
    for method in METHODS:
        heat = explainer.class_activation(picture(96), "ffr", method, prediction=1)
        assert heat.shape == (96, 96)
        assert heat.dtype == np.float32
        assert np.isfinite(heat).all()
        assert heat.min() >= 0
        assert heat.max() <= 1
    # Inception's last map is a single position at this size: an earlier one has to be taken.
    assert heat.std() > 0.01


def test_colour_pictures_and_other_sizes() -> None:
    explainer = Explainer(model_of("mobilenetv3large", channels=3))
    for size in (64, 96, 64):
        heat = explainer.class_activation(picture(size, 3), "ffr", "gradcam++", prediction=0)
        assert heat.shape == (size, size)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_stays_as_it_was(small: ImageClassifier, method: str) -> None:
    small.train()
    small.backbone.eval()
    small.backbone.requires_grad_(False)
    for parameter in small.head.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {key: value.clone() for key, value in small.state_dict().items()}
    modes = [module.training for module in small.modules()]
    class_activation(small, picture(), "ffr", method, prediction=1)
    assert [module.training for module in small.modules()] == modes
    assert not any(p.requires_grad for p in small.backbone.parameters())
    assert all(p.requires_grad and bool((p.grad == 1).all()) for p in small.head.parameters())
    assert all(p.grad is None for p in small.backbone.parameters())
    assert not any(module._forward_hooks for module in small.modules())
    for key, value in small.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_maps_are_the_same_in_every_mode_and_every_time(small: ImageClassifier) -> None:
    def heat() -> np.ndarray:
        return class_activation(small, picture(), "ffr", "gradcam", prediction=1)

    first = heat()
    np.testing.assert_array_equal(first, heat())
    small.train()
    np.testing.assert_array_equal(first, heat())
    small.requires_grad_(False)
    with torch.inference_mode():
        np.testing.assert_array_equal(first, heat())


def test_an_explainer_sees_new_weights(planted: ImageClassifier) -> None:
    explainer = Explainer(planted)
    first = explainer.class_activation(picture(), "corner", "gradcam", prediction=1)
    with torch.no_grad():
        planted.head.weights.neg_()
    second = explainer.class_activation(picture(), "corner", "gradcam", prediction=1)
    with torch.no_grad():
        planted.head.weights.neg_()
    np.testing.assert_allclose(second, first[::-1, ::-1], atol=0.05)


def test_errors_say_what_is_known(small: ImageClassifier) -> None:
    with pytest.raises(ValueError, match=r"'gradcam\+'.*Known: gradcam, gradcam\+\+, scorecam"):
        class_activation(small, picture(), "ffr", "gradcam+", prediction=1)
    with pytest.raises(ValueError, match="target 'ff'.*Known: ffr"):
        class_activation(small, picture(), "ff", "gradcam", prediction=1)
    with pytest.raises(ValueError, match=r"\(H, W, C\) is needed, not float32"):
        class_activation(small, picture().astype(np.float32), "ffr", "gradcam", prediction=1)


def test_a_transformer_is_refused() -> None:
    model = model_of("vit_tiny_patch16_224")
    with pytest.raises(ValueError, match="vit_tiny_patch16_224 has no convolutional feature map"):
        class_activation(model, picture(224), "ffr", "gradcam", prediction=1)


@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
@pytest.mark.parametrize("shape", [(200, 120), (90, 310), (64, 64)])
def test_heat_goes_back_to_where_it_came_from(fit: str, shape: tuple[int, int]) -> None:
    source = np.zeros(shape, np.uint8)
    row, column = int(0.55 * shape[0]), int(0.45 * shape[1])
    source[row - 8 : row + 8, column - 8 : column + 8] = 255
    seen = ImagePreprocess(image_size=96, fit=fit).apply(source)[..., 0]
    heat = to_source((seen / 255).astype(np.float32), shape, fit)
    assert heat.shape == shape
    grid = np.indices(shape)
    centre = (grid * heat).sum((1, 2)) / heat.sum()
    np.testing.assert_allclose(centre, [row - 0.5, column - 0.5], atol=1.5)


@pytest.mark.parametrize("shape", [(50, 70), (50, 70, 1), (50, 70, 3)])
def test_an_overlay_has_the_size_of_the_picture(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    rgb = np.broadcast_to(image.reshape(50, 70, -1), (50, 70, 3))
    heat = np.zeros((8, 8), np.float32)
    np.testing.assert_array_equal(overlay(image, heat), rgb)
    heat[:4] = 1
    laid = overlay(image, heat, alpha=1.0)
    assert laid.shape == (50, 70, 3)
    assert laid.dtype == np.uint8
    np.testing.assert_array_equal(laid[:15], np.broadcast_to([252, 255, 164], (15, 70, 3)))
    np.testing.assert_array_equal(laid[-15:], rgb[-15:])
    np.testing.assert_array_equal(overlay(image, heat, alpha=0.0), rgb)


def test_colours_grow_lighter_with_the_heat() -> None:
    heat = np.linspace(0, 1, 256, dtype=np.float32)[None]
    colours = overlay(np.zeros((1, 256), np.uint8), heat, alpha=1.0)[0].astype(float)
    luminance = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) >= -1).all()
    assert luminance[-1] > 230


def test_alpha_is_checked() -> None:
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\], not 2"):
        overlay(picture(), np.zeros((8, 8), np.float32), alpha=2)


def test_a_grid_is_a_png_with_a_row_a_picture() -> None:
    heat = np.eye(16, dtype=np.float32)
    shown = Explanation(picture(), heat, "FFR<=0.80, probability 0.83")
    one, two = (explain_grid([shown] * rows) for rows in (1, 2))
    assert one == explain_grid([shown])
    single, double = (Image.open(io.BytesIO(png)) for png in (one, two))
    assert single.format == "PNG"
    assert double.width == single.width
    assert double.height == 2 * single.height
    assert np.ptp(np.asarray(single.convert("RGB")), axis=2).max() > 100  # the map has colours
