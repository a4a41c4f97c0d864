"""From a file's bytes to the arrays a model takes, apart from the model.

A decoder is the typed settings of that way. Processes that only read files load this module and no
network: on a cluster there is one of them for every core.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cardioray.config import config
from cardioray.data.frames import (
    ACCEPTED,
    MAX_FRAMES,
    FrameSelection,
    UInt8Image,
    UnreadableImage,
    to_uint8,
)
from cardioray.data.image import (
    ImagePreprocess,
    describe_pixels,
    read_frames,
    read_numbered_frames,
)


@dataclass(frozen=True, kw_only=True)
class DecodedSample:
    """One sample as shards hold it and models take it.

    Attributes:
        frame: which frame of its source it is ("0" where the source has one).
        arrays: uint8 arrays by column name, each of the task's fixed or ragged shape.
        picture: the frame before any resize, (H, W) or (H, W, 3); what overlays are drawn on.
        facts: what the file says of itself beside its pixels, in numbers ("fps"); NaN where it
            does not say. They stand beside the sample in the table of the shards.
        view: the view it shows, where whoever handed it in has said so; "" elsewhere.
        notes: what was assumed when the file was read, or is doubtful about it, as sentences.
    """

    frame: str
    arrays: Mapping[str, NDArray[np.uint8]]
    picture: NDArray[np.uint8]
    facts: Mapping[str, float] = field(default_factory=dict)
    view: str = ""
    notes: tuple[str, ...] = ()

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
            digest.update(np.ascontiguousarray(self.arrays[name]).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Inspection:
    """What a check wants to know of a file that can be read.

    Attributes:
        kind: how it stores pixels: "PNG uint8 grey", "AVI 50 fps".
        sizes: "width x height" of every picture, or of every clip.
        hashes: of what is seen in them, so that a copy in another file or format is found; blank
            pictures have none.
        blank: pictures or clips of one grey level.
    """

    kind: str
    sizes: tuple[str, ...]
    hashes: frozenset[str]
    blank: int


def inspection(kind: str, sizes: Sequence[str], seen: Sequence[NDArray[np.uint8]]) -> Inspection:
    """The findings about a file from its pictures or clips."""
    filled = [pixels for pixels in seen if pixels.min() < pixels.max()]
    return Inspection(
        kind, tuple(sizes), frozenset(map(_pixel_hash, filled)), len(seen) - len(filled)
    )


def _pixel_hash(pixels: NDArray[np.uint8]) -> str:
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.tobytes())
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

    @property
    def accepted(self) -> str:
        """A sentence that says which files it reads."""

    @property
    def risky(self) -> bool:
        """Whether it calls libraries that hang or crash on some files (`data.isolation`)."""

    def decode(
        self, data: bytes, frames: str | None, max_frames: int = MAX_FRAMES
    ) -> list[DecodedSample]:
        """Decode one file.

        Args:
            data: the whole file.
            frames: the manifest's frame selection, or None for `selection`.
            max_frames: of a file with more wanted frames, pictures are refused before they are
                decoded, and clips are cut.

        Raises:
            UnreadableImage: when the file cannot be read; says why and what is accepted.
        """

    def inspect(self, data: bytes, frames: str | None) -> Inspection:
        """What is in a file; arguments and errors of `decode`."""

    def from_array(self, array: NDArray[Any]) -> DecodedSample:
        """A decoded picture or clip as a sample; what `predict` does with a NumPy array.

        Raises:
            UnreadableImage: for a shape or type that is none.
        """


@runtime_checkable
class LabelledDecoder(Decoder, Protocol):
    """A decoder of files that have a label map each, which only training and evaluation need."""

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Names of the arrays that a label map adds to a sample."""

    def decode_labelled(
        self, data: bytes, labels: bytes, frames: str | None, max_frames: int = MAX_FRAMES
    ) -> list[DecodedSample]:
        """Decode one file and its label map.

        Args:
            data: the whole file.
            labels: the label map, a file of its own.
            frames: as for `decode`.
            max_frames: as for `decode`.

        Raises:
            UnreadableImage: when either cannot be read, or they do not fit.
        """


def stored_columns(decoder: Decoder) -> tuple[str, ...]:
    """Names of the arrays of a sample in shards: what a file gives, then its label map."""
    labels = decoder.label_columns if isinstance(decoder, LabelledDecoder) else ()
    return (*decoder.columns, *labels)


def picture_of(array: NDArray[Any]) -> UInt8Image:
    """An array (H, W), (H, W, 1) or (H, W, 3) of any type that `to_uint8` can scale, as a picture.

    Raises:
        UnreadableImage: for another shape or type.
    """
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        raise UnreadableImage(
            f"An array of shape (H, W) or (H, W, 3) is needed, not {array.shape}."
        )
    return to_uint8(array)


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

    @property
    def accepted(self) -> str:
        """Pictures and DICOM."""
        return ACCEPTED

    @property
    def risky(self) -> bool:
        """Pillow and pydicom read pictures; neither is known to hang."""
        return False

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

    def inspect(self, data: bytes, frames: str | None) -> Inspection:
        """The wanted frames at full resolution."""
        selection = FrameSelection.parse(frames) if frames else self.selection
        kind, images = describe_pixels(data), read_frames(data, frames=selection)
        sizes = [f"{image.shape[1]} x {image.shape[0]}" for image in images]
        return inspection(kind, sizes, images)

    def from_array(self, array: NDArray[Any]) -> DecodedSample:
        """A picture (H, W) or (H, W, 3) of any type that `to_uint8` can scale."""
        return self._sample("0", picture_of(array))

    def _sample(self, frame: str, picture: NDArray[np.uint8]) -> DecodedSample:
        arrays = {"image": self.preprocess.apply(picture)}
        return DecodedSample(frame=frame, arrays=arrays, picture=picture)
