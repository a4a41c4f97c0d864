"""Where and when in a cine the evidence for an answer lies: Grad-CAM over time."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_grad_cam import GradCAM
from torch import Tensor, nn

from cardioray.models.video import VideoModel

Heat = NDArray[np.float32]

# Side of an overlay's frames, and height of the curve below them, in px.
_SIDE, _STRIP = 224, 48


@dataclass(frozen=True)
class ClipHeat:
    """The evidence in a cine.

    Attributes:
        heat: (T, S, S) in [0, 1], scaled to its largest value.
        importance: per frame, mean heat over the largest frame's, (T,) in [0, 1].
    """

    heat: Heat
    importance: Heat


class ClipExplainer:
    """Makes heat maps of one video network; see `explain.cam.Explainer` for how it is shared."""

    def __init__(self, model: VideoModel) -> None:
        shared: dict[int, Any] = {
            id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()
        }
        shared |= {id(buffer): buffer for buffer in model.buffers()}
        self._output = _OneOutput(copy.deepcopy(model, shared)).eval()
        self._lock = threading.Lock()

    def window(
        self, clip: NDArray[np.uint8], valid: int, target_name: str, *, prediction: int | None
    ) -> Heat:
        """The evidence in what the network sees at a time.

        Args:
            clip: (L, S, S, C).
            valid: frames that count.
            target_name: the head to explain.
            prediction: the class that was answered, 1 or 0; None for a number, where what raises
                it is shown.

        Returns:
            (L, S, S) in [0, 1]; zero in frames that do not count.
        """
        device = next(self._output.parameters()).device
        pixels = torch.from_numpy(clip).to(device).float().permute(3, 0, 1, 2)[None]
        with self._lock, torch.inference_mode(False), torch.enable_grad():
            self._output.target_name = target_name
            self._output.sign = -1.0 if prediction == 0 else 1.0
            self._output.valid = valid
            layer = self._output.model.backbone.net.layer4
            # Gradients start at the layer: nothing before it needs a backward pass.
            cut = layer.register_forward_hook(lambda _m, _i, o: o.detach().requires_grad_().clone())
            cam = GradCAM(self._output, [layer])
            try:
                heat: Heat = cam(pixels, targets=[lambda output: output[0]])[0]
            finally:
                cam.activations_and_grads.release()
                cut.remove()
        heat = np.clip(heat, 0.0, 1.0).astype(np.float32)
        heat[valid:] = 0
        return heat


class _OneOutput(nn.Module):
    """The output to explain, with its sign, as (B, 1); takes (B, C, L, H, W) grey levels."""

    def __init__(self, model: VideoModel) -> None:
        super().__init__()
        self.model = model
        self.target_name = ""
        self.sign = 1.0
        self.valid = 0

    def forward(self, pixels: Tensor) -> Tensor:
        valid = torch.full((len(pixels),), self.valid, dtype=torch.uint8, device=pixels.device)
        value: Tensor = self.model(pixels.permute(0, 2, 3, 4, 1), valid)[self.target_name]
        return (self.sign * value)[:, None]


def assemble(heats: Sequence[Heat], starts: Sequence[int], stride: int, count: int) -> ClipHeat:
    """The evidence in a cine from that in windows of it.

    Args:
        heats: (L, S, S) each.
        starts: first frame of each window.
        stride: frames of the cine from one frame of a window to the next.
        count: frames of the cine.
    """
    total = np.zeros((count, *heats[0].shape[1:]), np.float32)
    seen = np.zeros(count, np.float32)
    for heat, start in zip(heats, starts, strict=True):
        frames = np.arange(start, min(start + (len(heat) - 1) * stride + 1, count))
        total[frames] += _between(heat, (frames - start) / stride)
        seen[frames] += 1
    known = np.flatnonzero(seen)
    total[known] /= seen[known, None, None]
    # Frames that no window was explained of get what the nearest one has.
    nearest = known[np.abs(np.arange(count)[:, None] - known).argmin(axis=1)]
    total = total[nearest]
    total /= max(float(total.max()), 1e-8)
    curve = total.mean(axis=(1, 2))
    return ClipHeat(total, (curve / max(float(curve.max()), 1e-8)).astype(np.float32))


def overlay_frames(clip: NDArray[np.uint8], found: ClipHeat) -> NDArray[np.uint8]:
    """A cine with its heat over it and the curve of importance below.

    Args:
        clip: (T, S, S, C), as stored.
        found: its heat.

    Returns:
        RGB frames (T, 272, 224, 3).
    """
    strips = _strips(found.importance)
    frames = []
    for frame, heat, strip in zip(clip, found.heat, strips, strict=True):
        grey = cv2.resize(frame, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC)
        picture = np.repeat(grey[..., None], 3, axis=2) if grey.ndim == 2 else grey
        warm = cv2.resize(heat, (_SIDE, _SIDE), interpolation=cv2.INTER_LINEAR)
        coloured = cv2.applyColorMap((255 * warm).astype(np.uint8), cv2.COLORMAP_INFERNO)
        # As strong as the evidence: where there is none, the picture stays as it is.
        share = 0.6 * warm[..., None]
        mixed = picture * (1 - share) + coloured[..., ::-1] * share
        frames.append(np.concatenate([mixed.astype(np.uint8), strip]))
    return np.stack(frames)


def _strips(importance: Heat) -> Sequence[NDArray[np.uint8]]:
    """The curve of importance over the frames, once for each with its place marked."""
    blank = np.zeros((_STRIP, _SIDE, 3), np.uint8)
    count = len(importance)
    x = np.linspace(4, _SIDE - 5, count).round().astype(int)
    y = (_STRIP - 6 - importance * (_STRIP - 12)).round().astype(int)
    points = np.stack([x, y], axis=1)
    cv2.polylines(blank, [points.reshape(-1, 1, 2)], False, (220, 220, 220), 1, cv2.LINE_AA)
    strips = []
    for point in points:
        strip = blank.copy()
        cv2.line(strip, (int(point[0]), 2), (int(point[0]), _STRIP - 3), (255, 140, 0), 1)
        strips.append(strip)
    return strips


def _between(heat: Heat, positions: NDArray[np.float64]) -> Heat:
    """Frames of a window's heat at fractional positions."""
    before = np.clip(np.floor(positions).astype(int), 0, len(heat) - 1)
    after = np.minimum(before + 1, len(heat) - 1)
    share = np.clip(positions - before, 0, 1).astype(np.float32)[:, None, None]
    mixed: Heat = heat[before] * (1 - share) + heat[after] * share
    return mixed
