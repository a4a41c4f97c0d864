"""Random changes of training pictures: batched, on the device they are on, repeatable."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from cardioray.config import config


@config
class AugmentConfig:
    """How strongly pictures are changed; each picture of a batch draws for itself, uniformly.

    Attributes:
        rotation_degrees: largest rotation either way.
        translate: largest shift along each axis, as a share of the side.
        zoom: largest magnification or reduction, as a share.
        horizontal_flip: mirror half of the pictures. Off, since a mirrored heart is another one.
        contrast: largest change of the distance from the picture's mean, as a share.
        brightness: largest shift of all pixels, as a share of the full scale.
        fill: what comes in from outside the picture: "border" repeats the nearest pixel,
            "reflection" mirrors, "zeros" is black.
    """

    rotation_degrees: float = Field(default=10.0, ge=0, le=180)
    translate: float = Field(default=0.05, ge=0, lt=1)
    zoom: float = Field(default=0.1, ge=0, lt=1)
    horizontal_flip: bool = False
    contrast: float = Field(default=0.15, ge=0, lt=1)
    brightness: float = Field(default=0.1, ge=0, lt=1)
    fill: Literal["border", "reflection", "zeros"] = "border"


SEED_SYSTEM = AugmentConfig(
    rotation_degrees=108, translate=0.15, zoom=0.15, contrast=0.15, brightness=0, fill="reflection"
)
"""The strengths of the FFR-Estimation system: 0.3 of a turn, 15 % of all else. It filled with the
nearest pixel after rotations and mirrored after shifts; one resampling here has one fill."""


class Augment:
    """Changes batches of pictures; the draw depends on the seed given with each batch only.

    Rotation, shift and zoom are one affine resampling. They are a kornia `AugmentationSequential`,
    which moves masks and key points along with the picture by its `data_keys`.
    """

    def __init__(self, config: AugmentConfig) -> None:
        # Here, since servers and planners know the settings but change no picture.
        from kornia.augmentation import (
            AugmentationSequential,
            RandomAffine,
            RandomHorizontalFlip,
        )

        self.config = config
        moves: list[torch.nn.Module] = []
        if config.rotation_degrees or config.translate or config.zoom:
            moves.append(
                RandomAffine(
                    degrees=config.rotation_degrees,
                    translate=(config.translate, config.translate),
                    scale=(1 - config.zoom, 1 + config.zoom),
                    padding_mode=config.fill,
                    p=1.0,
                )
            )
        if config.horizontal_flip:
            moves.append(RandomHorizontalFlip(p=0.5))
        self.geometry = AugmentationSequential(*moves, data_keys=["input"]) if moves else None

    @torch.no_grad()
    def __call__(self, images: Tensor, *, seed: tuple[int, ...]) -> Tensor:
        """Change a batch.

        Args:
            images: floating point in [0, 1], shape (B, C, H, W).
            seed: what the draw is a function of, such as (run, epoch, rank, step).

        Returns:
            Changed pictures in [0, 1], of the same shape, type and device; `images` themselves
            when the config changes nothing.

        Raises:
            ValueError: for integer pixels or another number of dimensions.
        """
        if not images.is_floating_point() or images.ndim != 4:
            raise ValueError(
                "Augmentation needs floating point pictures in [0, 1] of shape (B, C, H, W), not "
                f"{images.dtype} of shape {tuple(images.shape)}."
            )
        intensity = self.config.contrast > 0 or self.config.brightness > 0
        if self.geometry is None and not intensity:
            return images
        # Kornia draws from the global generator of the CPU, whatever the device: lend it a state.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_number(seed))
            moved = images if self.geometry is None else self.geometry(images)
            factor, offset = torch.rand(2, len(images), 1, 1, 1).mul(2).sub(1).to(moved)
        if intensity:
            mean = moved.mean(dim=(1, 2, 3), keepdim=True)
            factor = 1 + self.config.contrast * factor
            moved = (moved - mean) * factor + (mean + self.config.brightness * offset)
        return moved.clamp(0, 1)


def _number(seed: tuple[int, ...]) -> int:
    """A 63-bit number for a tuple; neighbouring tuples give unrelated numbers."""
    digest = hashlib.sha256(",".join(map(str, seed)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
