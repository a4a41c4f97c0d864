"""From a file's bytes to the arrays a model takes, apart from the model.

A decoder is the typed settings of that way. Processes that only read files load this module and no
network: on a cluster there is one of them for every core.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cardioray.config import config
from cardioray.data.frames import MAX_FRAMES, FrameSelection, UnreadableImage, to_uint8
from cardioray.data.image import ImagePreprocess, read_numbered_frames


@dataclass(frozen=True, kw_only=True)
class DecodedSample:
    """One sample as shards hold it and models take it.

    Attributes:
        frame: which frame of its source it is ("0" where the source has one).
        arrays: uint8 arrays by column name, each of the task's fixed or ragged shape.
        picture: the frame before any resize, (H, W) or (H, W, 3); what overlays are drawn on.
    """

    frame: str
    arrays: Mapping[str, NDArray[np.uint8]]
    picture: NDArray[np.uint8]

    @property
    def source_shape(self) -> tuple[int, int]:
        """Height and width in px before any resize."""
        return (self.picture.shape[0], self.picture.shape[1])

    def without_picture(self) -> DecodedSample:
        """The sample with a picture of the same shape that holds no memory; nothing is drawn."""
        return replace(self, picture=np.broadcast_to(np.uint8(0), self.picture.shape))

    def digest(self, columns: Sequence[str]) -> str:
        """SHA-256 of some of its arrays: two samples with the same one are the same to a model."""
        digest = hashlib.sha256()
        for name in columns:
            digest.update(self.arrays[name].tobytes())
        return digest.hexdigest()


class Decoder(Protocol):
    """The only way from bytes to arrays, in training and serving alike.

    A decoder is a `config` class: what shards hold depends on its fields and on nothing else, so
    two runs with equal decoders share their shards.
    """

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the arrays of a sample, in the order in which the model takes them."""

    @property
    def selection(self) -> FrameSelection:
        """Which frames of a file are samples where its row does not say."""

    def decode(
        self, data: bytes, frames: str | None, max_frames: int = MAX_FRAMES
    ) -> list[DecodedSample]:
        """Decode one file.

        Args:
            data: the whole file.
            frames: the manifest's frame selection, or None for `selection`.
            max_frames: a file with more wanted frames is refused before they are decoded.

        Raises:
            UnreadableImage: when the file cannot be read; says why and what is accepted.
        """

    def from_array(self, array: NDArray[Any]) -> DecodedSample:
        """A decoded picture or clip as a sample; what `predict` does with a NumPy array.

        Raises:
            UnreadableImage: for a shape or type that is none.
        """


@config
class ImageDecoder:
    """Each wanted frame of a file as one picture of the model's size.

    Attributes:
        preprocess: from the decoded picture to the stored one.
        frames: which frames of a multi-frame file are samples, where its row does not say.
    """

    preprocess: ImagePreprocess
    frames: str

    @property
    def columns(self) -> tuple[str, ...]:
        """One picture (H, W, C)."""
        return ("image",)

    @property
    def selection(self) -> FrameSelection:
        """The setting `frames`."""
        return FrameSelection.parse(self.frames)

    def decode(
        self, data: bytes, frames: str | None, max_frames: int = MAX_FRAMES
    ) -> list[DecodedSample]:
        """Read the wanted frames and bring each to the model's size."""
        selection = FrameSelection.parse(frames) if frames else self.selection
        return [
            self._sample(str(number), picture)
            for number, picture in read_numbered_frames(
                data, frames=selection, max_frames=max_frames
            )
        ]

    def from_array(self, array: NDArray[Any]) -> DecodedSample:
        """A picture (H, W) or (H, W, 3) of any type that `to_uint8` can scale."""
        if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
            raise UnreadableImage(
                f"An array of shape (H, W) or (H, W, 3) is needed, not {array.shape}."
            )
        return self._sample("0", to_uint8(array))

    def _sample(self, frame: str, picture: NDArray[np.uint8]) -> DecodedSample:
        arrays = {"image": self.preprocess.apply(picture)}
        return DecodedSample(frame=frame, arrays=arrays, picture=picture)
