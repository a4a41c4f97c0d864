"""A picture in parts: windows and mirror images of it, and what a network says of them as one.

Windows lie evenly over the picture, the outermost ones at its edges, and count most in their
middle: a network knows less of what lies beside the edge of a window. The weights are those of
nnU-Net, a Gaussian with an eighth of the window's side as its standard deviation (F. Isensee et
al., Nat. Methods 18:203-211, 2021, doi:10.1038/s41592-020-01008-z), which MONAI's
`sliding_window_inference` takes, too. MONAI raises small ones to a thousandth; then all are equal
beside the edges of a picture, and windows leave seams there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_SIGMA = 0.125  # of the side of a window
_LEAST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class Passes:
    """How a square picture goes through a network.

    Attributes:
        side: of the picture in px.
        window: of a window in px; the picture's side where it is seen whole.
        starts: where windows begin, along either axis.
        mirrored: whether each window is also seen mirrored left-right.
    """

    side: int
    window: int
    starts: tuple[int, ...]
    mirrored: bool

    @classmethod
    def over(cls, side: int, window: int, overlap: float, *, mirrored: bool) -> Passes:
        """Windows over a picture, as few as overlap by at least this share of their side.

        Args:
            side: of the picture in px.
            window: side of a window in px, or 0 for the whole picture.
            overlap: share of a window, in [0, 1).
            mirrored: see the attribute.
        """
        window = min(window or side, side)
        steps = math.ceil((side - window) / (window * (1 - overlap)))
        starts = tuple(round(i * (side - window) / max(steps, 1)) for i in range(steps + 1))
        return cls(side, window, starts, mirrored)

    @property
    def count(self) -> int:
        """Forward passes of a picture."""
        return len(self.starts) ** 2 * (1 + self.mirrored)

    def split(self, pictures: Tensor) -> Tensor:
        """Pictures (B, S, S, C) as windows, pass after pass, (count * B, W, W, C)."""
        windows = [
            pictures[:, top : top + self.window, left : left + self.window]
            for top, left in self._corners
        ]
        if self.mirrored:
            windows += [window.flip(2) for window in windows]
        return torch.cat(windows)

    def joined(self, logits: Tensor) -> Tensor:
        """Scores of windows as scores of pictures.

        Args:
            logits: of every class at every pixel, in the order of `split`, (count * B, K, W, W).

        Returns:
            The logarithm of the mean probabilities, (B, K, S, S).
        """
        found = logits.float().softmax(dim=1).unflatten(0, (self.count, -1))
        if self.mirrored:
            half = self.count // 2
            found = (found[:half] + found[half:].flip(-1)) / 2
        weights = self._weights(logits.device)
        nothing = torch.zeros((), device=logits.device)
        each = zip(found.unbind(), self._corners, strict=True)
        total = sum((self._placed(weights * own, *at) for own, at in each), nothing)
        norm = sum((self._placed(weights, *at) for at in self._corners), nothing)
        mean: Tensor = total / norm
        return mean.clamp(min=_LEAST_PROBABILITY).log()

    @property
    def _corners(self) -> list[tuple[int, int]]:
        return [(top, left) for top in self.starts for left in self.starts]

    def _weights(self, device: torch.device) -> Tensor:
        """How much each pixel of a window counts, (W, W)."""
        places = torch.arange(self.window, device=device) - (self.window - 1) / 2
        along = torch.exp(-((places / (_SIGMA * self.window)) ** 2) / 2)
        return along[:, None] * along[None]

    def _placed(self, window: Tensor, top: int, left: int) -> Tensor:
        """A window (..., W, W) where it lies in the picture, (..., S, S), among zeros."""
        rest = self.side - self.window
        return F.pad(window, (left, rest - left, top, rest - top))
