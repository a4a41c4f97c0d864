"""Augmentation: seeded, per picture, in range."""

from __future__ import annotations

import pytest
import torch

from cardioray.data.augment import SEED_SYSTEM, Augment, AugmentConfig

NOTHING = AugmentConfig(rotation_degrees=0, translate=0, zoom=0, contrast=0, brightness=0)


def only(**values: object) -> AugmentConfig:
    return AugmentConfig(
        **{"rotation_degrees": 0, "translate": 0, "zoom": 0, "contrast": 0, "brightness": 0}
        | values
    )


def pictures(batch: int = 4, channels: int = 1, side: int = 32) -> torch.Tensor:
    """A bright disc off the centre on a dark ground, the same in every picture."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    disc = (((x - 12) ** 2 + (y - 18) ** 2) < 40).float() * 0.6 + 0.2
    return disc.expand(batch, channels, side, side).clone()


@pytest.mark.parametrize("config", [AugmentConfig(), SEED_SYSTEM])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_seed_decides(config: AugmentConfig, channels: int) -> None:
    images = pictures(channels=channels)
    before = images.clone()
    first = Augment(config)(images, seed=(1, 2, 3))
    torch.manual_seed(99)
    again = Augment(config)(images, seed=(1, 2, 3))
    assert torch.equal(first, again)
    assert torch.equal(images, before)
    assert first.shape == images.shape
    assert first.dtype == images.dtype
    assert first.min() >= 0
    assert first.max() <= 1
    for other in ((1, 2, 4), (2, 1, 3), (1, 2), (1, 23)):
        assert not torch.equal(Augment(config)(images, seed=other), first)


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    Augment(AugmentConfig(horizontal_flip=True))(pictures(), seed=(0,))
    assert torch.equal(torch.rand(3), expected)


def test_pictures_of_a_batch_differ() -> None:
    changed = Augment(AugmentConfig())(pictures(6), seed=(0,))
    for one in range(6):
        for other in range(one):
            assert not torch.equal(changed[one], changed[other])


def test_nothing_changes_nothing() -> None:
    images = torch.rand(2, 3, 9, 7)
    assert Augment(NOTHING)(images, seed=(0,)) is images


def test_flip_mirrors_about_half() -> None:
    images = pictures(200)
    changed = Augment(only(horizontal_flip=True))(images, seed=(0,))
    same = (changed == images).flatten(1).all(1)
    mirrored = (changed == images.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 70 < int(mirrored.sum()) < 130


@pytest.mark.parametrize(("share", "bound"), [(0.1, 3.2), (0.25, 8.0)])
def test_shift_is_bounded(share: float, bound: float) -> None:
    images = pictures(100)
    changed = Augment(only(translate=share, fill="zeros"))(images, seed=(0,))
    rows = torch.arange(32.0)

    def centre(batch: torch.Tensor, dim: int) -> torch.Tensor:
        bright = (batch > 0.5).float().sum(dim=dim).squeeze(1)
        return (bright * rows).sum(1) / bright.sum(1)

    shifts = torch.stack([centre(changed, dim) - centre(images, dim) for dim in (2, 3)])
    assert shifts.abs().max() <= bound + 0.5
    assert shifts.abs().max() > 0.7 * bound


def test_zoom_is_bounded_on_both_sides() -> None:
    changed = Augment(only(zoom=0.2))(pictures(200), seed=(0,))
    area = (changed > 0.5).float().sum((1, 2, 3)) / (pictures(1) > 0.5).float().sum()
    assert 0.55 < area.min() < 0.75
    assert 1.25 < area.max() < 1.6


def test_rotation_keeps_the_centre() -> None:
    y, x = torch.meshgrid(torch.arange(33) - 16, torch.arange(33) - 16, indexing="ij")
    rings = torch.exp(-(x**2 + y**2) / 50.0).expand(8, 1, 33, 33)
    changed = Augment(only(rotation_degrees=180))(rings.clone(), seed=(0,))
    assert (changed - rings).abs()[..., 8:25, 8:25].max() < 0.02


def test_contrast_is_about_the_mean_and_brightness_shifts() -> None:
    images = pictures(100) * 0.5 + 0.25
    mean, deviation = images.mean((1, 2, 3)), images.std((1, 2, 3))
    contrast = Augment(only(contrast=0.3))(images, seed=(0,))
    assert torch.allclose(contrast.mean((1, 2, 3)), mean, atol=1e-6)
    factors = contrast.std((1, 2, 3)) / deviation
    assert 0.7 - 1e-4 <= factors.min() < 0.75
    assert 1.25 < factors.max() <= 1.3 + 1e-4
    brightness = Augment(only(brightness=0.1))(images, seed=(0,))
    shifts = brightness.mean((1, 2, 3)) - mean
    assert torch.allclose(brightness.std((1, 2, 3)), deviation, atol=1e-6)
    assert -0.1 - 1e-5 <= shifts.min() < -0.08
    assert 0.08 < shifts.max() <= 0.1 + 1e-5


def test_half_precision_and_no_graph() -> None:
    images = pictures().to(torch.bfloat16).requires_grad_()
    changed = Augment(AugmentConfig())(images, seed=(0,))
    assert changed.dtype == torch.bfloat16
    assert not changed.requires_grad


def test_masks_move_with_the_picture() -> None:
    """Later tasks hand a mask to the same geometry."""
    images = pictures(3)
    geometry = Augment(AugmentConfig(rotation_degrees=45, horizontal_flip=True)).geometry
    assert geometry is not None
    moved, mask = geometry(images, (images > 0.5).float(), data_keys=["input", "mask"])
    agreement = ((moved > 0.5) == (mask > 0.5)).float().mean()
    assert agreement > 0.98


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 8, 8),
        torch.zeros(2, 1, 3, 8, 8),
    ],
)
def test_other_tensors_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"floating point pictures in \[0, 1\]"):
        Augment(AugmentConfig())(images, seed=(0,))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_keeps_its_generator() -> None:
    images = pictures().cuda()
    state = torch.cuda.get_rng_state()
    changed = Augment(AugmentConfig())(images, seed=(5,))
    assert changed.is_cuda
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert torch.allclose(changed.cpu(), Augment(AugmentConfig())(pictures(), seed=(5,)), atol=1e-3)
