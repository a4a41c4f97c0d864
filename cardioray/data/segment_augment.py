"""Random changes to pictures and their label maps: batched, on their device, from a seed alone.

All that moves pixels is one resampling, of the picture linearly and of the label map to the nearest
pixel, so that neither is blurred twice and both stay on one another.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field
from torch import Tensor

from cardioray.config import config

_NODES = 6  # along each side, of the grid that bends a picture
_BLURRED = 5  # side of the kernel in px


@config
class SegmentAugmentConfig:
    """How pictures are changed; strengths are EchoEF-Net's. Each picture draws for itself.

    Attributes:
        affine: share of pictures that are turned, sheared, zoomed and shifted.
        rotation_degrees: largest turn either way.
        shear_degrees: largest shear along the rows.
        zoom: largest magnification or reduction, as a share.
        translate: largest shift along each axis, as a share of the side.
        bend: share of pictures that are bent.
        bend_strength: largest shift of a node of the bent grid, as a share of the side.
        crop: share of pictures of which a part fills the square.
        crop_least: smallest side of that part, as a share.
        flip: share of pictures that are mirrored; half of them in EchoEF-Net. None by default,
            since a mirrored heart is another one.
        tone: share of pictures whose brightness, contrast and gamma are changed.
        brightness: largest relative change.
        contrast: largest relative change of the distance from the picture's mean.
        gamma: largest relative change of the exponent.
        noise: share of pictures with noise, half of it in proportion to the grey level.
        noise_strength: largest standard deviation, as a share of the full scale.
        blur: share of pictures that are blurred.
        coarsen: share of pictures that are shrunk to `coarsen_least` or more and enlarged again.
        coarsen_least: smallest side, as a share.
    """

    affine: float = Field(default=0.7, ge=0, le=1)
    rotation_degrees: float = Field(default=12.0, ge=0, le=180)
    shear_degrees: float = Field(default=8.0, ge=0, le=45)
    zoom: float = Field(default=0.1, ge=0, lt=1)
    translate: float = Field(default=0.03, ge=0, lt=1)
    bend: float = Field(default=0.3, ge=0, le=1)
    bend_strength: float = Field(default=0.03, ge=0, le=0.1)
    crop: float = Field(default=0.35, ge=0, le=1)
    crop_least: float = Field(default=0.95, gt=0, le=1)
    flip: float = Field(default=0.0, ge=0, le=1)
    tone: float = Field(default=0.6, ge=0, le=1)
    brightness: float = Field(default=0.25, ge=0, lt=1)
    contrast: float = Field(default=0.2, ge=0, lt=1)
    gamma: float = Field(default=0.2, ge=0, lt=1)
    noise: float = Field(default=0.5, ge=0, le=1)
    noise_strength: float = Field(default=0.06, ge=0, lt=1)
    blur: float = Field(default=0.3, ge=0, le=1)
    coarsen: float = Field(default=0.15, ge=0, le=1)
    coarsen_least: float = Field(default=0.7, gt=0, le=1)


NO_AUGMENTATION = SegmentAugmentConfig(
    affine=0, bend=0, crop=0, flip=0, tone=0, noise=0, blur=0, coarsen=0
)


class _Draws:
    """Random numbers of one batch, drawn on the CPU: other devices have other generators."""

    def __init__(self, seed: tuple[int, ...], count: int, device: torch.device) -> None:
        state = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._generator = torch.Generator().manual_seed(state)
        self._count, self._device = count, device

    def chosen(self, share: float) -> Tensor:
        """Which pictures are changed, (B,) of 0 and 1."""
        return (self.uniform(0, 1) < share).float()

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Numbers between two bounds, (B, ...)."""
        drawn = torch.rand(self._count, *shape, generator=self._generator)
        return (low + (high - low) * drawn).to(self._device)

    def normal(self, *shape: int) -> Tensor:
        """Normal numbers, (B, ...)."""
        return torch.randn(self._count, *shape, generator=self._generator).to(self._device)


def augment_segments(
    pictures: Tensor, masks: Tensor, settings: SegmentAugmentConfig, seed: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Change every picture of a batch by itself, its label map with it.

    Args:
        pictures: (B, S, S, C), uint8.
        masks: (B, S, S), uint8.
        settings: which changes.
        seed: what they are drawn from; the same on every device.

    Returns:
        The pictures as floats in grey levels of 0 to 255, and the label maps. What comes in from
        outside is black and has no label.
    """
    draws = _Draws(seed, len(pictures), pictures.device)
    images = pictures.permute(0, 3, 1, 2).float() / 255
    labels = masks[:, None].float()
    if settings.affine or settings.bend or settings.crop or settings.flip:
        grid = _grid(images.shape[-1], settings, draws)
        images = F.grid_sample(images, grid, mode="bilinear", align_corners=False)
        labels = F.grid_sample(labels, grid, mode="nearest", align_corners=False)
    if settings.tone:
        images = _toned(images, settings, draws)
    if settings.blur:
        images = _mixed(images, _blurred(images, draws), draws.chosen(settings.blur))
    if settings.coarsen:
        images = _coarsened(images, settings, draws)
    if settings.noise:
        images = _noisy(images, settings, draws)
    changed = (images.clamp(0, 1) * 255).permute(0, 2, 3, 1)
    return changed, labels[:, 0].round().to(torch.uint8)


def draw_windows(
    pictures: Tensor, masks: Tensor, side: int, seed: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """A square part of every picture, anywhere in it, and the same part of its label map.

    Args:
        pictures: (B, S, S, C).
        masks: (B, S, S).
        side: of the parts in px, at most S.
        seed: what their places are drawn from.

    Returns:
        (B, side, side, C) and (B, side, side).
    """
    draws = _Draws(seed, len(pictures), torch.device("cpu"))
    places = (draws.uniform(0, 1, 2) * (pictures.shape[1] - side + 1)).int().tolist()
    parts = [
        (number, slice(top, top + side), slice(left, left + side))
        for number, (top, left) in enumerate(places)
    ]
    return torch.stack([pictures[p] for p in parts]), torch.stack([masks[p] for p in parts])


def _grid(side: int, settings: SegmentAugmentConfig, draws: _Draws) -> Tensor:
    """Where each pixel of the result comes from, (B, S, S, 2) in [-1, 1], x before y."""
    affine, crop = draws.chosen(settings.affine), draws.chosen(settings.crop)
    bound = math.radians(settings.rotation_degrees)
    turn = affine * draws.uniform(-bound, bound)
    bound = math.tan(math.radians(settings.shear_degrees))
    shear = affine * draws.uniform(-bound, bound)
    scale = 1 / (1 + affine * draws.uniform(-settings.zoom, settings.zoom))
    shift = affine[:, None] * draws.uniform(-2 * settings.translate, 2 * settings.translate, 2)
    part = 1 - crop * draws.uniform(0, 1 - settings.crop_least)
    # The part lies anywhere in the square.
    shift = shift + (1 - part)[:, None] * draws.uniform(-1, 1, 2)
    mirror = 1 - 2 * draws.chosen(settings.flip)
    cos, sin = scale * part * turn.cos(), scale * part * turn.sin()
    rows = [
        torch.stack([cos * mirror, cos * shear - sin, shift[:, 0]], dim=1),
        torch.stack([sin * mirror, sin * shear + cos, shift[:, 1]], dim=1),
    ]
    size = [len(turn), 1, side, side]
    grid = F.affine_grid(torch.stack(rows, dim=1), size, align_corners=False)
    if not settings.bend:
        return grid
    strength = 2 * settings.bend_strength * draws.chosen(settings.bend)
    nodes = draws.uniform(-1, 1, 2, _NODES, _NODES) * strength[:, None, None, None]
    bent = F.interpolate(nodes, size=(side, side), mode="bicubic", align_corners=True)
    return grid + bent.permute(0, 2, 3, 1)


def _toned(images: Tensor, settings: SegmentAugmentConfig, draws: _Draws) -> Tensor:
    chosen = draws.chosen(settings.tone)

    def factor(bound: float) -> Tensor:
        return (1 + chosen * draws.uniform(-bound, bound))[:, None, None, None]

    bright = images * factor(settings.brightness)
    mean = bright.mean(dim=(1, 2, 3), keepdim=True)
    contrasted = (bright - mean) * factor(settings.contrast) + mean
    toned: Tensor = contrasted.clamp(0, 1) ** factor(settings.gamma)
    return toned


def _blurred(images: Tensor, draws: _Draws) -> Tensor:
    """Each picture under a Gaussian of its own."""
    sigma = draws.uniform(0.4, 1.4)[:, None]
    places = torch.arange(_BLURRED, device=images.device) - _BLURRED // 2
    kernel = torch.exp(-((places / sigma) ** 2) / 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    batch, channels, height, width = images.shape
    # Pictures side by side as channels, each with its own kernel.
    flat = images.reshape(1, batch * channels, height, width)
    own = kernel.repeat_interleave(channels, dim=0)[:, None]
    pad = _BLURRED // 2
    flat = F.pad(flat, (pad, pad, pad, pad), mode="replicate")
    flat = F.conv2d(flat, own[:, :, :, None], groups=batch * channels)
    flat = F.conv2d(flat, own[:, :, None, :], groups=batch * channels)
    return flat.reshape(images.shape)


def _coarsened(images: Tensor, settings: SegmentAugmentConfig, draws: _Draws) -> Tensor:
    chosen = draws.chosen(settings.coarsen)
    shares = draws.uniform(settings.coarsen_least, 1)
    side = images.shape[-1]
    coarsened = images.clone()
    for number in chosen.nonzero().flatten().tolist():
        small = max(1, round(side * float(shares[number])))
        one = F.interpolate(images[number : number + 1], size=(small, small), mode="area")
        coarsened[number] = F.interpolate(one, size=(side, side), mode="bilinear")[0]
    return coarsened


def _noisy(images: Tensor, settings: SegmentAugmentConfig, draws: _Draws) -> Tensor:
    strength = draws.chosen(settings.noise) * draws.uniform(0, settings.noise_strength)
    noise = draws.normal(*images.shape[1:]) * strength[:, None, None, None]
    in_proportion = draws.chosen(0.5)[:, None, None, None]
    # Twice the grey level has the same mean strength as none where pictures are half bright.
    return images + noise * (in_proportion * 2 * images + (1 - in_proportion))


def _mixed(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """The second one for the chosen pictures, the first one for the others."""
    return torch.where(share[:, None, None, None] > 0, second, first)
