"""Changes of pictures with their label maps: both move together, repeatably, within bounds."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from cardioray.data.segment_augment import (
    NO_AUGMENTATION,
    SegmentAugmentConfig,
    augment_segments,
)

MOVES = {
    "affine": {"affine": 1.0},
    "bend": {"bend": 1.0, "bend_strength": 0.05},
    "crop": {"crop": 1.0, "crop_least": 0.6},
    "flip": {"flip": 1.0},
}
TONES = ("tone", "noise", "blur", "coarsen")


def batch(count: int = 6, side: int = 64) -> tuple[Tensor, Tensor]:
    """Label maps of an ellipse beside a bar, and pictures that show just these."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    labels = torch.zeros(side, side, dtype=torch.uint8)
    labels[((y - 28) / 16) ** 2 + ((x - 26) / 9) ** 2 <= 1] = 1
    labels[22:40, 42:48] = 2
    masks = labels.repeat(count, 1, 1)
    return (masks * 100)[..., None], masks


def only(**settings: float) -> SegmentAugmentConfig:
    return dataclasses.replace(NO_AUGMENTATION, **settings)


def test_without_any_change_nothing_changes() -> None:
    pictures, masks = batch()
    changed, labels = augment_segments(pictures, masks, NO_AUGMENTATION, (1, 2))
    assert torch.allclose(changed, pictures.float(), atol=1e-3)
    assert torch.equal(labels, masks)
    assert labels.dtype == torch.uint8


@pytest.mark.parametrize("name", MOVES)
def test_label_maps_move_with_their_pictures(name: str) -> None:
    pictures, masks = batch()
    changed, labels = augment_segments(pictures, masks, only(**MOVES[name]), (3,))
    assert not torch.equal(labels, masks)
    # A picture that shows its labels still does, but at edges, which are interpolated.
    shown = (changed[..., 0] / 100).round()
    assert (shown != labels).float().mean() < 0.03
    assert set(labels.unique().tolist()) <= {0, 1, 2}
    assert (labels == 1).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("name", TONES)
def test_tones_leave_label_maps_alone(name: str) -> None:
    pictures, masks = batch()
    changed, labels = augment_segments(pictures, masks, only(**{name: 1.0}), (3,))
    assert torch.equal(labels, masks)
    difference = (changed - pictures).abs().flatten(1).mean(dim=1)
    assert (difference > 0).all()
    assert difference.max() < 40
    assert changed.min() >= 0
    assert changed.max() <= 255


def test_the_seed_decides_and_each_picture_draws_for_itself() -> None:
    pictures, masks = batch()
    settings = SegmentAugmentConfig(affine=1, noise=1)
    first, again, other = (
        augment_segments(pictures, masks, settings, s) for s in ((1, 2), (1, 2), (1, 3))
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert len({tuple(labels.flatten().tolist()) for labels in first[1]}) == len(masks)


def test_shares_are_those_of_pictures() -> None:
    pictures, masks = batch(400, 16)
    pictures = torch.randint(0, 255, pictures.shape, dtype=torch.uint8)
    _, labels = augment_segments(pictures, masks, only(flip=0.25), (1,))
    changed, _ = augment_segments(pictures, masks, only(flip=0.25), (1,))
    flipped = torch.isclose(changed, pictures.flip(2).float(), atol=1e-2).flatten(1).all(dim=1)
    assert flipped.float().mean() == pytest.approx(0.25, abs=0.07)
    assert torch.equal(labels[~flipped], masks[~flipped])
