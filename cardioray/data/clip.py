"""The one way from the bytes of an echo cine to the clip a model sees.

Video files and multi-frame DICOM go the same way: frames are read in pieces, the sector is found
in the first of them, and every frame is masked, cropped to a square and resized.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cardioray.config import config
from cardioray.data.decoding import DecodedSample, Inspection, inspection
from cardioray.data.dicom import iter_dicom, read_dicom_info
from cardioray.data.frames import (
    ACCEPTED_CLIPS,
    ALL_FRAMES,
    MAX_FRAMES,
    MAX_PIXELS,
    VIDEO_KINDS,
    FrameSelection,
    UInt8Image,
    UnreadableImage,
    frames_at_once,
    sniff,
    to_uint8,
)
from cardioray.data.sector import Box, Sector, find_sector, whole_picture
from cardioray.data.video import (
    BackendName,
    Video,
    backends_for,
    checked_frames,
    open_video,
)

CLIP = "clip"
CINE_KINDS = (*VIDEO_KINDS, "dicom")

# Frames in which the sector is looked for: about a beat, and 30 MB at 800 x 600.
_GEOMETRY_FRAMES = 48

_INTERPOLATIONS = {"cubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA}


@config
class ClipPreprocess:
    """What is done to a cine before it is stored or shown to a model.

    Attributes:
        image_size: side of the square frames in pixels.
        channels: 1 (grey) or 3 (RGB; a grey cine is repeated).
        sector: "auto" takes a square video of at most 256 px as cropped and masked already, as
            EchoNet's are, and finds the sector of everything else; "find" always finds it; "none"
            keeps the whole picture.
        interpolation: "cubic", as in EchoNet-Dynamic, or "area", which does not alias.
        fps: frames a second to bring every cine to, by linear interpolation between neighbouring
            frames; None keeps the frames as they are. A cine that does not state its own rate
            is kept as it is.
        max_frames: frames of a cine that are kept, from its beginning.
        backend: reader of video files; "auto" is libjpeg-turbo for Motion JPEG, decord for the
            rest, and PyAV for what these cannot read.
    """

    image_size: int = Field(default=112, ge=16, le=1024)
    channels: Literal[1, 3] = 1
    sector: Literal["auto", "find", "none"] = "auto"
    interpolation: Literal["cubic", "area"] = "cubic"
    fps: float | None = Field(default=None, gt=0)
    max_frames: int = Field(default=1024, ge=1)
    backend: BackendName = "auto"


@dataclass(frozen=True)
class Cine:
    """An opened cine; its frames are read as they are asked for.

    Attributes:
        num_frames: in the file.
        height: of a frame in px.
        width: of a frame in px.
        fps: frames a second, or None where the file does not say.
        cm_per_px: (row, column) size of a pixel, or None where the file does not say.
        region: where the file says that the ultrasound is, or None.
        is_dicom: whether it is a DICOM file.
    """

    num_frames: int
    height: int
    width: int
    fps: float | None
    cm_per_px: tuple[float, float] | None
    region: Box | None
    is_dicom: bool
    _opened: bytes | Video

    @classmethod
    def open(cls, data: bytes, backend: BackendName = "auto") -> Cine:
        """Open a DICOM cine or a video file; the kind is told from the bytes.

        Raises:
            UnreadableImage: when the header cannot be read, or the file is neither.
        """
        if sniff(data, CINE_KINDS, ACCEPTED_CLIPS) == "dicom":
            info = read_dicom_info(data)
            region = info.ultrasound
            return cls(
                num_frames=info.number_of_frames,
                height=info.rows,
                width=info.columns,
                fps=1000.0 / info.frame_time_ms if info.frame_time_ms else None,
                cm_per_px=region.cm_per_px if region else None,
                region=region.box if region else None,
                is_dicom=True,
                _opened=data,
            )
        video = open_video(data, backend)
        count = video.num_frames
        if count is None:  # a container without an index: there is no other way to know
            count = sum(len(piece) for piece in checked_frames(video))
        return cls(
            num_frames=count,
            height=video.height,
            width=video.width,
            fps=video.fps,
            cm_per_px=None,
            region=None,
            is_dicom=False,
            _opened=video,
        )

    def frames(self, first: int, stop: int) -> Iterator[UInt8Image]:
        """Frames first, ..., stop - 1, each (H, W) or (H, W, 3).

        A cine may hold more pixels than are decoded at once: a frame is let go before the next.

        Raises:
            UnreadableImage: when one of them cannot be decoded.
        """
        if isinstance(self._opened, bytes):
            run = max(1, frames_at_once(self.height * self.width, MAX_PIXELS))
            for start in range(first, stop, run):
                last = min(start + run, stop) - 1
                selection = FrameSelection(kind="range", first=start, last=last)
                yield from iter_dicom(self._opened, selection, run, MAX_PIXELS)
        else:
            for piece in checked_frames(self._opened, first, stop):
                yield from piece


@config
class ClipDecoder:
    """A whole cine as one clip of the model's size.

    Attributes:
        preprocess: from the decoded frames to the stored ones.
    """

    preprocess: ClipPreprocess

    @property
    def columns(self) -> tuple[str, ...]:
        """One clip (T, S, S, C)."""
        return (CLIP,)

    @property
    def selection(self) -> FrameSelection:
        """All frames of a file."""
        return ALL_FRAMES

    @property
    def accepted(self) -> str:
        """Videos and DICOM."""
        return ACCEPTED_CLIPS

    @property
    def risky(self) -> bool:
        """Video decoders hang and crash."""
        return True

    def decode(
        self, data: bytes, frames: str | None, max_frames: int = MAX_FRAMES
    ) -> list[DecodedSample]:
        """Read the wanted frames, at most `max_frames` from the first one on.

        The facts of the sample: `fps` of the clip, `source_fps`, `source_frames` in the file,
        `cm_per_px` of the clip's pixels (mean of rows and columns), `sector_found` (1 or 0; 1
        also for a video that is cropped already), `damaged` (1 where one reader refused a frame
        and another one made something of it, else 0).
        """
        selection = FrameSelection.parse(frames) if frames else self.selection
        if selection.kind == "contrast":
            raise UnreadableImage("Contrast medium is looked for in angiograms, not in echo cines.")
        is_dicom = sniff(data, CINE_KINDS, ACCEPTED_CLIPS) == "dicom"
        backends: tuple[BackendName, ...] = (self.preprocess.backend,)
        if backends == ("auto",) and not is_dicom:
            backends = backends_for(data)
        failures = []
        damaged = False
        for backend in backends:
            try:
                cine = Cine.open(data, backend)
            except UnreadableImage as error:  # an unusual container, as like as not
                failures.append(error)
                continue
            try:
                return [self._read(cine, selection, max_frames, damaged=damaged)]
            except UnreadableImage as error:
                failures.append(error)
                damaged = True
        raise failures[0]

    def inspect(self, data: bytes, frames: str | None) -> Inspection:
        """The wanted frames as one clip of the model's size."""
        (sample,) = self.decode(data, frames)
        height, width = sample.source_shape
        fps = sample.facts["source_fps"]
        kind = sniff(data, CINE_KINDS, ACCEPTED_CLIPS)
        if kind == "dicom":
            info = read_dicom_info(data)
            kind = f"dicom {info.modality} {info.photometric}"
        rate = "fps not stated" if math.isnan(fps) else f"{fps:.0f} fps"
        return inspection(f"{kind.upper()}, {rate}", [f"{width} x {height}"], [sample.arrays[CLIP]])

    def from_array(self, array: NDArray[Any]) -> DecodedSample:
        """A clip (T, H, W), (T, H, W, 1) or (T, H, W, 3) of any type that `to_uint8` can scale."""
        if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)):
            raise UnreadableImage(
                "An array of shape (T, H, W), (T, H, W, 1) or (T, H, W, 3) is needed, not "
                f"{array.shape}."
            )
        frames = to_uint8(array)
        if frames.ndim == 4 and frames.shape[3] == 1:
            frames = frames[..., 0]
        return self._sample(iter(frames), len(frames), len(frames), None, None, None, dicom=False)

    def _read(
        self, cine: Cine, selection: FrameSelection, max_frames: int, *, damaged: bool
    ) -> DecodedSample:
        wanted = selection.indices(cine.num_frames)
        count = min(len(wanted), max_frames, self.preprocess.max_frames)
        return self._sample(
            cine.frames(wanted.start, wanted.start + count),
            count,
            cine.num_frames,
            cine.fps,
            cine.cm_per_px,
            cine.region,
            dicom=cine.is_dicom,
            damaged=damaged,
        )

    def _sample(
        self,
        frames: Iterator[UInt8Image],
        count: int,
        source_frames: int,
        fps: float | None,
        cm_per_px: tuple[float, float] | None,
        region: Box | None,
        *,
        dicom: bool,
        damaged: bool = False,
    ) -> DecodedSample:
        settings = self.preprocess
        first: list[UInt8Image] = []
        for frame in frames:
            first.append(self._coloured(frame))
            if len(first) == min(_GEOMETRY_FRAMES, count):
                break
        sector = self._sector(first, region, dicom=dicom)
        size, channels = settings.image_size, settings.channels
        clip = np.empty((count, size, size, channels), np.uint8)
        for number, frame in enumerate(first):
            clip[number] = self._fitted(frame, sector)
        picture = first[len(first) // 2]
        del first
        for number, frame in enumerate(frames, start=min(_GEOMETRY_FRAMES, count)):
            clip[number] = self._fitted(self._coloured(frame), sector)
        scale = sector.box.width / size
        facts = {
            "fps": fps or math.nan,
            "source_fps": fps or math.nan,
            "source_frames": float(source_frames),
            "cm_per_px": scale * sum(cm_per_px) / 2 if cm_per_px else math.nan,
            "sector_found": float(sector.found),
            "damaged": float(damaged),
        }
        if settings.fps is not None and fps is not None:
            clip = resample(clip, fps, settings.fps)
            facts["fps"] = settings.fps
        return DecodedSample(frame="0", arrays={CLIP: clip}, picture=picture, facts=facts)

    def _coloured(self, frame: UInt8Image) -> UInt8Image:
        """A frame in the clip's own number of channels: (H, W) or (H, W, 3)."""
        if self.preprocess.channels == 1:
            return frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        return frame if frame.ndim == 3 else np.repeat(frame[..., None], 3, axis=2)

    def _sector(self, frames: list[UInt8Image], region: Box | None, *, dicom: bool) -> Sector:
        height, width = frames[0].shape[:2]
        cropped = height == width <= 256 and not dicom
        if self.preprocess.sector == "auto" and cropped:
            whole = whole_picture(height, width)
            return Sector(whole.mask, whole.box, found=True)
        if self.preprocess.sector == "none":
            return whole_picture(height, width)
        grey = [f if f.ndim == 2 else cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames]
        return find_sector(grey, region)

    def _fitted(self, frame: UInt8Image, sector: Sector) -> UInt8Image:
        size = self.preprocess.image_size
        if frame.shape[:2] != (size, size) or not sector.mask.all():
            square = sector.crop(frame)
            method = _INTERPOLATIONS[self.preprocess.interpolation]
            frame = cv2.resize(square, (size, size), interpolation=method)
        return frame if frame.ndim == 3 else frame[..., None]


def resample(clip: NDArray[np.uint8], fps: float, wanted_fps: float) -> NDArray[np.uint8]:
    """A clip at another frame rate, by linear interpolation between neighbouring frames.

    Args:
        clip: (T, ...).
        fps: its frames a second.
        wanted_fps: those of the result, which lasts as long to half a frame.
    """
    count = max(1, int((len(clip) - 1) * wanted_fps / fps) + 1)
    position = np.arange(count) * (fps / wanted_fps)
    before = np.minimum(position.astype(int), len(clip) - 1)
    after = np.minimum(before + 1, len(clip) - 1)
    share = (position - before).reshape(-1, *[1] * (clip.ndim - 1)).astype(np.float32)
    mixed = clip[before] * (1 - share) + clip[after] * share
    resampled: NDArray[np.uint8] = np.rint(mixed).astype(np.uint8)
    return resampled
