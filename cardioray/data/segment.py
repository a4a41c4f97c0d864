"""From the bytes of an echo picture or cine, and of its label map, to what a segmentation takes.

The whole frame becomes a square, whatever its sides: how large a pixel of the source is goes along,
so that a network's label map is brought back to the source and measured there.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cardioray.config import config
from cardioray.data.clip import CINE_KINDS, Cine
from cardioray.data.decoding import DecodedSample, Inspection, inspection, picture_of
from cardioray.data.dicom import read_identity
from cardioray.data.frames import (
    ALL_FRAMES,
    MAX_FRAMES,
    RASTER_KINDS,
    FrameSelection,
    UInt8Image,
    UnreadableImage,
    sniff,
    to_uint8,
)
from cardioray.data.image import describe_pixels, read_numbered_frames
from cardioray.data.label_maps import STRUCTURES
from cardioray.data.nifti import read_volume, volume_kind

IMAGE = "image"
MASK = "mask"
REFERENCE = "reference"

ACCEPTED_SEGMENTS = (
    "Accepted are PNG, JPEG, BMP, TIFF, DICOM, NIfTI, MetaImage, AVI, MP4 and MOV files."
)
_MM_PER_CM = 10.0
# A picture of tissue has more grey levels than a label map has labels.
_FEWEST_LEVELS = 8
_HIGHEST_LABEL = max(STRUCTURES.values())


@config
class SegmentPreprocess:
    """What is done to a frame before it is stored or shown to a model.

    Attributes:
        image_size: side of the square result in px, a multiple of 32.
        percentiles: grey levels of the frame that become black and white; what lies beyond is cut
            off, so that gain differs less between machines.
    """

    image_size: int = Field(default=256, ge=32, le=1024, multiple_of=32)
    percentiles: tuple[float, float] = (1.0, 99.0)

    def __post_init__(self) -> None:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError("percentiles are two numbers from 0 to 100, the lower one first.")

    def apply(self, frame: UInt8Image) -> UInt8Image:
        """A grey frame (H, W) as (image_size, image_size, 1)."""
        low, high = np.percentile(frame, self.percentiles)
        levels = np.clip((np.arange(256) - low) * (255.0 / max(high - low, 1.0)), 0, 255)
        stretched = cv2.LUT(frame, np.rint(levels).astype(np.uint8))
        return np.asarray(_resized(stretched, self.image_size))[..., None]

    def apply_to_labels(self, labels: UInt8Image) -> UInt8Image:
        """A label map (H, W) as (image_size, image_size)."""
        side = (self.image_size, self.image_size)
        return np.asarray(cv2.resize(labels, side, interpolation=cv2.INTER_NEAREST_EXACT))


@dataclass(frozen=True, kw_only=True)
class _Frames:
    """Frames as a file stores them.

    Attributes:
        numbered: (H, W) each, and their numbers.
        spacing_mm: height and width of a pixel; None where the file does not say.
        fps: frames a second, likewise.
        is_cine: whether the file has an axis of time.
        in_file: how many frames it holds, NaN where that was not counted.
        patient: made of the Patient ID of a DICOM file, else NaN.
        study: likewise of the Study Instance UID.
    """

    numbered: list[tuple[int, UInt8Image]]
    spacing_mm: tuple[float, float] | None = None
    fps: float | None = None
    is_cine: bool
    in_file: float = math.nan
    patient: float = math.nan
    study: float = math.nan


@config
class SegmentDecoder:
    """Each wanted frame of a file as one picture of the model's size.

    Attributes:
        preprocess: from the decoded frame to the stored one.
    """

    preprocess: SegmentPreprocess

    @property
    def columns(self) -> tuple[str, ...]:
        """One picture (S, S, 1)."""
        return (IMAGE,)

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The label map at the picture's size, (S, S), and at the source's."""
        return (MASK, REFERENCE)

    @property
    def selection(self) -> FrameSelection:
        """All frames of a file."""
        return ALL_FRAMES

    @property
    def accepted(self) -> str:
        """Pictures, volumes and videos."""
        return ACCEPTED_SEGMENTS

    @property
    def risky(self) -> bool:
        """Video decoders hang and crash."""
        return True

    def decode(
        self, data: bytes, frames: str | None, max_frames: int = MAX_FRAMES
    ) -> list[DecodedSample]:
        """Read the wanted frames.

        A cine is cut to `max_frames`. The facts of a sample: `spacing_row_mm` and
        `spacing_column_mm` of a pixel of the source, and `fps`, NaN where the file does not say;
        `is_cine` (1 where the file has an axis of time); `chosen` (1 where `frames` names one);
        `source_frames` in the file, NaN where they were not counted; `wanted_frames`, of which a
        cut leaves fewer; `patient` and `study`, numbers that two files of one patient, and of one
        examination, have in common, NaN where the file names none.
        """
        selection = FrameSelection.parse(frames) if frames else self.selection
        found = _read(data, selection, max_frames)
        return [self._sample(number, frame, found, selection) for number, frame in found.numbered]

    def decode_labelled(
        self, data: bytes, labels: bytes, frames: str | None, max_frames: int = MAX_FRAMES
    ) -> list[DecodedSample]:
        """Read the wanted frames and the label map of each.

        Args:
            data: the file of the frames.
            labels: NIfTI, MetaImage or PNG with labels 0 (none), 1 (cavity), 2 (myocardium) and 3
                (atrium), with as many frames as the other file or with the wanted one alone; or
                JSON `{"cavity": [[x, y], ...]}` with outlines in px.
            frames: which frames.
            max_frames: most frames.

        Raises:
            UnreadableImage: when either cannot be read, or they do not fit.
        """
        samples = self.decode(data, frames, max_frames)
        selection = FrameSelection.parse(frames) if frames else self.selection
        maps = _read_labels(labels, samples[0].source_shape, selection, len(samples))
        labelled = []
        for sample, reference in zip(samples, maps, strict=True):
            if reference.shape != sample.source_shape:
                (height, width), (rows, columns) = sample.source_shape, reference.shape
                raise UnreadableImage(
                    f"The label map is {columns} x {rows} px, and its picture {width} x {height}."
                )
            mask = self.preprocess.apply_to_labels(reference)
            arrays = {**sample.arrays, MASK: mask, REFERENCE: reference}
            labelled.append(replace(sample, arrays=arrays))
        return labelled

    def inspect(self, data: bytes, frames: str | None) -> Inspection:
        """The wanted frames at full resolution."""
        selection = FrameSelection.parse(frames) if frames else self.selection
        found = _read(data, selection, MAX_FRAMES)
        images = [frame for _, frame in found.numbered]
        sizes = [f"{image.shape[1]} x {image.shape[0]}" for image in images]
        size = "pixel size not stated"
        if found.spacing_mm is not None:
            size = " x ".join(f"{side:.2f}" for side in found.spacing_mm[::-1]) + " mm a pixel"
        kind = volume_kind(data) or sniff(data, (*CINE_KINDS, *RASTER_KINDS), ACCEPTED_SEGMENTS)
        if kind in RASTER_KINDS:
            kind = describe_pixels(data)
        return inspection(f"{kind.upper()}, {size}", sizes, images)

    def from_array(self, array: NDArray[Any]) -> DecodedSample:
        """A picture (H, W), (H, W, 1) or (H, W, 3) of any type that `to_uint8` can scale."""
        frame = _grey(picture_of(array))
        found = _Frames(numbered=[(0, frame)], is_cine=False, in_file=1)
        return self._sample(0, frame, found, self.selection)

    def _sample(
        self, number: int, frame: UInt8Image, found: _Frames, selection: FrameSelection
    ) -> DecodedSample:
        height_mm, width_mm = found.spacing_mm or (math.nan, math.nan)
        wanted = found.in_file
        if selection.kind == "range":
            wanted = selection.last - selection.first + 1
        return DecodedSample(
            frame=str(number),
            arrays={IMAGE: self.preprocess.apply(frame)},
            picture=frame,
            facts={
                "spacing_row_mm": height_mm,
                "spacing_column_mm": width_mm,
                "fps": math.nan if found.fps is None else found.fps,
                "is_cine": float(found.is_cine),
                "chosen": float(selection.kind == "range" and wanted == 1),
                "source_frames": float(found.in_file),
                "wanted_frames": float(wanted),
                "patient": found.patient,
                "study": found.study,
            },
        )


def _read(data: bytes, selection: FrameSelection, max_frames: int) -> _Frames:
    if selection.kind == "contrast":
        raise UnreadableImage("Contrast medium is looked for in angiograms, not in echo pictures.")
    if volume_kind(data) is not None:
        found = _read_volume(data, selection, max_frames)
    else:
        kind = sniff(data, (*CINE_KINDS, *RASTER_KINDS), ACCEPTED_SEGMENTS)
        if kind in RASTER_KINDS:
            images = read_numbered_frames(data, frames=selection, max_frames=max_frames)
            numbered = [(number, _grey(image)) for number, image in images]
            counted = len(numbered) if selection.kind == "all" else math.nan
            found = _Frames(numbered=numbered, is_cine=len(numbered) > 1, in_file=counted)
        else:
            found = _read_cine(data, selection, max_frames)
    if not found.numbered:
        raise UnreadableImage("The file holds no frame.")
    if _are_label_maps([frame for _, frame in found.numbered]):
        raise UnreadableImage(
            "The file holds a label map, not a picture: its pixels are the numbers of structures. "
            "Send the echo picture itself."
        )
    return found


def _read_volume(data: bytes, selection: FrameSelection, max_frames: int) -> _Frames:
    volume = read_volume(data)
    count = len(volume.frames)
    if count == 1 and selection.kind == "range":
        # A still of a cine that has a file of its own: its number says where it was.
        numbered = [(selection.first, to_uint8(volume.frames[0]))]
    else:
        wanted = selection.indices(count)[:max_frames]
        pictures = to_uint8(volume.frames[wanted.start : wanted.stop])
        numbered = list(zip(wanted, pictures, strict=True))
    return _Frames(
        numbered=numbered,
        spacing_mm=volume.spacing_mm,
        fps=volume.fps,
        is_cine=count > 1,
        in_file=count,
    )


def _read_cine(data: bytes, selection: FrameSelection, max_frames: int) -> _Frames:
    cine = Cine.open(data)
    wanted = selection.indices(cine.num_frames)[:max_frames]
    frames = [_grey(frame) for frame in cine.frames(wanted.start, wanted.stop)]
    spacing = None
    if cine.cm_per_px is not None:
        spacing = (cine.cm_per_px[0] * _MM_PER_CM, cine.cm_per_px[1] * _MM_PER_CM)
    identity = read_identity(io.BytesIO(data)) if cine.is_dicom else None
    return _Frames(
        numbered=list(zip(wanted, frames, strict=True)),
        spacing_mm=spacing,
        fps=cine.fps,
        is_cine=cine.num_frames > 1 or not cine.is_dicom,
        in_file=cine.num_frames,
        patient=math.nan if identity is None else _number_of(identity.patient_id),
        study=math.nan if identity is None else _number_of(identity.study_uid),
    )


def _number_of(name: str) -> float:
    """A number made of a name that goes no further; NaN of an empty one."""
    if not name:
        return math.nan
    return float(int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big"))


def _read_labels(
    data: bytes, shape: tuple[int, int], selection: FrameSelection, count: int
) -> list[UInt8Image]:
    """As many label maps as pictures, each (H, W)."""
    if data[:1] == b"{":
        if count != 1:
            raise UnreadableImage(f"One outline was given for {count} frames.")
        return [_drawn(data, shape)]
    if volume_kind(data) is not None:
        maps = read_volume(data).frames
    else:
        sniff(data, ("png",), "Label maps are NIfTI, MetaImage or PNG files.")
        maps = np.stack([image for _, image in read_numbered_frames(data)])
    if maps.ndim != 3 or not np.isin(maps, range(_HIGHEST_LABEL + 1)).all():
        raise UnreadableImage(
            "The label map holds other numbers than 0 and those of structures: "
            + ", ".join(f"{number} {name}" for name, number in STRUCTURES.items())
            + "."
        )
    if len(maps) != count:
        wanted = selection.indices(len(maps))
        maps = maps[wanted.start : wanted.stop]
    if len(maps) != count:
        raise UnreadableImage(f"The label map has {len(maps)} frame(s) for {count} picture(s).")
    return [np.ascontiguousarray(each, dtype=np.uint8) for each in maps]


def _drawn(data: bytes, shape: tuple[int, int]) -> UInt8Image:
    """A label map from outlines in px, counted from the middle of the upper left pixel."""
    labels = np.zeros(shape, np.uint8)
    for name, outline in json.loads(data).items():
        labels[_inside(np.asarray(outline, float), shape)] = STRUCTURES[name]
    return labels


def _inside(outline: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels whose middle lies inside a polygon (N, 2), x before y.

    `cv2.fillPoly` paints half a pixel more all round, which is a tenth of a small cavity.
    """
    height, width = shape
    crossings = np.zeros((height, width + 1), np.int64)
    for (x, y), (other_x, other_y) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        top, bottom = sorted((y, other_y))
        rows = np.arange(max(0, math.ceil(top)), min(height, math.ceil(bottom)))
        if len(rows):
            at = x + (rows - y) * ((other_x - x) / (other_y - y))
            crossings[rows, np.clip(np.ceil(at), 0, width).astype(int)] += 1
    inside: NDArray[np.bool_] = np.cumsum(crossings, axis=1)[:, :width] % 2 == 1
    return inside


def _grey(frame: UInt8Image) -> UInt8Image:
    if frame.ndim == 3 and frame.shape[2] == 1:
        return frame[..., 0]
    return frame if frame.ndim == 2 else np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))


def _are_label_maps(frames: Sequence[UInt8Image]) -> bool:
    """Whether frames have as few levels as there are labels; one without a structure has one."""
    few = all(_levels(frame) < _FEWEST_LEVELS for frame in frames)
    return few and any(_levels(frame) > 1 for frame in frames)


def _levels(frame: UInt8Image) -> int:
    return len(np.unique(frame))


def _resized(frame: UInt8Image, side: int) -> UInt8Image:
    """Averaged by area along a side that shrinks, interpolated linearly along one that grows."""
    height, width = frame.shape
    shrunk = (min(width, side), min(height, side))
    if shrunk != (width, height):
        frame = cv2.resize(frame, shrunk, interpolation=cv2.INTER_AREA)
    if shrunk != (side, side):
        frame = cv2.resize(frame, (side, side), interpolation=cv2.INTER_LINEAR)
    return frame
