"""A cine as a clip and, beside it, frame by frame as a segmentation takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cardioray.config import config
from cardioray.data.clip import ClipDecoder
from cardioray.data.decoding import DecodedSample, Inspection
from cardioray.data.frames import MAX_FRAMES, FrameSelection
from cardioray.data.segment import IMAGE, SegmentDecoder

FRAMES = "frames_to_outline"


@config
class OutlinedClipDecoder:
    """What `ClipDecoder` makes of a cine, with the same frames for a segmentation.

    Attributes:
        clip: makes the clip.
        segments: makes the frames.
    """

    clip: ClipDecoder
    segments: SegmentDecoder

    @property
    def columns(self) -> tuple[str, ...]:
        """The clip, and the frames (T, S, S, 1) as they are in the file."""
        return (*self.clip.columns, FRAMES)

    @property
    def selection(self) -> FrameSelection:
        """That of the clip."""
        return self.clip.selection

    @property
    def accepted(self) -> str:
        """Those of which clips are made."""
        return self.clip.accepted

    @property
    def risky(self) -> bool:
        """Video decoders hang and crash."""
        return True

    def decode(
        self, data: bytes, frames: str | None, max_frames: int = MAX_FRAMES
    ) -> list[DecodedSample]:
        """The wanted frames both ways.

        The facts of the sample: those of `ClipDecoder.decode`, and `height_px` and `width_px` of
        the file.
        """
        (sample,) = self.clip.decode(data, frames, max_frames)
        most = min(max_frames, self.clip.preprocess.max_frames)
        return [_joined(sample, self.segments.decode(data, frames, most))]

    def inspect(self, data: bytes, frames: str | None) -> Inspection:
        """What `ClipDecoder` says of the file."""
        return self.clip.inspect(data, frames)

    def from_array(self, array: NDArray[Any]) -> DecodedSample:
        """A clip (T, H, W), (T, H, W, 1) or (T, H, W, 3) of any type that `to_uint8` can scale."""
        sample = self.clip.from_array(array)
        return _joined(sample, [self.segments.from_array(frame) for frame in array])


def _joined(clip: DecodedSample, frames: Sequence[DecodedSample]) -> DecodedSample:
    stacked = np.stack([frame.arrays[IMAGE] for frame in frames])
    height, width = frames[0].source_shape
    facts = {**clip.facts, "height_px": float(height), "width_px": float(width)}
    return replace(clip, arrays={**clip.arrays, FRAMES: stacked}, facts=facts)
