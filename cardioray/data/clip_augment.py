"""Random changes to batches of clips, on their device, drawn from a seed alone."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field
from torch import Tensor

from cardioray.config import config


@config
class ClipAugmentConfig:
    """Random changes during training, the same for all frames of a clip.

    Attributes:
        pad_px: the clip is moved by up to this many pixels along both axes, black coming in, as
            EchoNet-Dynamic pads by 12 px and crops; at 112 px.
        gain: largest relative change of brightness.
        noise: share of pixels that are set to black, drawn up to this for each clip.
    """

    pad_px: int = Field(default=12, ge=0)
    gain: float = Field(default=0.0, ge=0, lt=1)
    noise: float = Field(default=0.0, ge=0, lt=1)


def augment_clips(clips: Tensor, settings: ClipAugmentConfig, seed: tuple[int, ...]) -> Tensor:
    """Change every clip of a batch by itself.

    Args:
        clips: (B, T, H, W, C), uint8.
        settings: which changes.
        seed: what they are drawn from; the same on every device.

    Returns:
        As `clips`.
    """
    state = int(np.random.SeedSequence(seed).generate_state(1)[0])
    generator = torch.Generator().manual_seed(state)
    batch, _, height, width, _ = clips.shape
    if settings.pad_px:
        pad = max(1, round(settings.pad_px * height / 112))
        shifts = torch.randint(0, 2 * pad + 1, (batch, 2), generator=generator)
        padded = F.pad(clips, (0, 0, pad, pad, pad, pad))
        clips = torch.stack(
            [
                clip[:, top : top + height, left : left + width]
                for clip, (top, left) in zip(padded, shifts.tolist(), strict=True)
            ]
        )
    if settings.gain:
        factor = 1 + settings.gain * (2 * torch.rand(batch, generator=generator) - 1)
        factor = factor.to(clips.device)[:, None, None, None, None]
        clips = (clips.float() * factor).clamp(0, 255).to(torch.uint8)
    if settings.noise:
        share = settings.noise * torch.rand(batch, generator=generator)
        # One mask a clip, drawn on the CPU: other devices have other generators.
        mask = torch.rand(batch, 1, height, width, 1, generator=generator)
        kept = mask >= share[:, None, None, None, None]
        clips = clips * kept.to(clips.device)
    return clips
