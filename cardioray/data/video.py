"""Video files as frames: AVI, MP4, MOV and whatever else FFmpeg reads.

A backend reads frames in order and in pieces, so that a long or large video never lies in memory
whole. Frames of a Motion JPEG AVI are JPEG files, which libjpeg-turbo reads twice as fast as
FFmpeg, and any of them without the ones before it; decord reads everything else, and PyAV what
decord fails on. None is trusted to say that a file is damaged: a video that yields fewer frames
than its header promises is refused.

decord and PyAV are known to crash, hang and leak on damaged files. Call them through
`cardioray.data.isolation`, which bounds what a file may cost.
"""

from __future__ import annotations

import importlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator

from cardioray.data.frames import (
    MAX_PIXELS,
    UInt8Image,
    UnreadableImage,
    check_size,
    damage_explained,
)
from cardioray.data.motion_jpeg import JpegFrames, is_motion_jpeg
from cardioray.registry import Registry

# What a backend imports when it opens a file, where that is not installed everywhere.
_LIBRARIES = {"decord": "decord", "pyav": "av"}


def require_installed(backend: str) -> str:
    """The name of a backend whose library is there.

    Raises:
        ValueError: when it is not installed; says what to install, and which backends are there.
    """
    library = _LIBRARIES.get(backend)
    if library is not None and find_spec(library) is None:
        raise ValueError(_unusable(backend, "is not installed"))
    return backend


# A setting that names what is not installed is refused before any file is opened.
BackendName = Annotated[
    Literal["auto", "motion_jpeg", "decord", "pyav"], AfterValidator(require_installed)
]

# Decoded at a time: enough to amortise a call, and little beside what a process takes anyway.
_PIECE_BYTES = 1 << 25

_DAMAGED = "The video cannot be decoded"


class Video(ABC):
    """An opened video.

    Attributes:
        num_frames: frames that its header promises, or that its index lists; None where neither
            says so.
        height: of a frame in px.
        width: of a frame in px.
        fps: mean frames a second; None where the file does not say.
    """

    num_frames: int | None
    height: int
    width: int
    fps: float | None

    @property
    def piece(self) -> int:
        """Frames of a piece."""
        return max(1, _PIECE_BYTES // (3 * self.height * self.width))

    @abstractmethod
    def read(self, first: int, stop: int, step: int = 1) -> Iterator[UInt8Image]:
        """RGB frames first, first + step, ... before stop, in pieces (n, H, W, 3).

        They are fewer where the file ends.
        """


BACKENDS: Registry[Callable[[bytes], Video]] = Registry("video backend")


@BACKENDS.register("motion_jpeg")
class MotionJpegVideo(Video):
    """libjpeg-turbo, frame by frame."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._frames = JpegFrames.find(data)
        self.num_frames = len(self._frames.spans)
        self.height, self.width = self._frames.height, self._frames.width
        self.fps = self._frames.fps

    def read(self, first: int, stop: int, step: int = 1) -> Iterator[UInt8Image]:
        """See `Video.read`."""
        wanted = range(first, min(stop, len(self._frames.spans)), step)
        for at in range(0, len(wanted), self.piece):
            yield self._frames.decode(self._data, wanted[at : at + self.piece])


@BACKENDS.register("decord")
class DecordVideo(Video):
    """decord; on a stride it seeks for every frame, so that ranges are read whole."""

    def __init__(self, data: bytes) -> None:
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        # One thread: decoders run in processes of their own, one for every core.
        self._reader: Any = decord.VideoReader(io.BytesIO(data), num_threads=1)
        self.num_frames = len(self._reader)
        if not self.num_frames:
            raise UnreadableImage("The video holds no frame.")
        first = self._reader[0]
        self.height, self.width = first.shape[:2]
        fps = float(self._reader.get_avg_fps())
        self.fps = fps if np.isfinite(fps) and fps > 0 else None

    def read(self, first: int, stop: int, step: int = 1) -> Iterator[UInt8Image]:
        """See `Video.read`."""
        end, most = min(stop, len(self._reader)), max(1, self.piece // step) * step
        for start in range(first, end, most):
            wanted = range(start, min(start + most, end))
            yield self._reader.get_batch(wanted).asnumpy()[::step]


@BACKENDS.register("pyav")
class PyAvVideo(Video):
    """PyAV, FFmpeg's own libraries; reads from the beginning."""

    def __init__(self, data: bytes) -> None:
        import av
        import av.logging

        av.logging.set_level(av.logging.PANIC)
        self._container = av.open(io.BytesIO(data), mode="r")
        if not self._container.streams.video:
            raise UnreadableImage("The file holds no video stream.")
        self._stream = self._container.streams.video[0]
        self._stream.codec_context.thread_count = 1
        self.num_frames = self._stream.frames or None
        self.height, self.width = self._stream.height, self._stream.width
        rate = self._stream.average_rate
        self.fps = float(rate) if rate else None

    def read(self, first: int, stop: int, step: int = 1) -> Iterator[UInt8Image]:
        """See `Video.read`."""
        self._container.seek(0)
        piece: list[UInt8Image] = []
        for number, frame in enumerate(self._container.decode(self._stream)):
            if number >= stop:
                break
            if number >= first and (number - first) % step == 0:
                piece.append(frame.to_ndarray(format="rgb24"))
            if len(piece) == self.piece:
                yield np.stack(piece)
                piece = []
        if piece:
            yield np.stack(piece)


def backends_for(data: bytes) -> tuple[BackendName, ...]:
    """The backends that a file may be tried with, the fastest one first."""
    found: list[BackendName] = []
    if is_motion_jpeg(data):
        found.append("motion_jpeg")
    if find_spec("decord") is not None:
        found.append("decord")
    return (*found, "pyav")


def open_video(data: bytes, backend: BackendName = "auto", max_pixels: int = MAX_PIXELS) -> Video:
    """Open a video from its bytes.

    Args:
        data: the whole file.
        backend: "auto" is the first of `backends_for`.
        max_pixels: most pixels of a frame.

    Raises:
        UnreadableImage: when it cannot be opened, is cut off, or its frames are too large.
        ValueError: when the backend's library is not installed, or does not load.
    """
    require_whole(data)
    if backend == "auto":
        backend = backends_for(data)[0]
    opened = BACKENDS.get(backend)
    _load_library(backend)
    with damage_explained(_DAMAGED):
        video = opened(data)
    check_size(video.height, video.width, max_pixels)
    promised = promised_frames(data)
    if video.num_frames is None:
        video.num_frames = promised
    elif promised is not None and video.num_frames < promised:
        # decord stops where an index ends; the header says what was recorded.
        raise _cut_off(video.num_frames, promised)
    return video


def read_video(
    data: bytes,
    *,
    first: int = 0,
    stop: int | None = None,
    step: int = 1,
    backend: BackendName = "auto",
    max_pixels: int = MAX_PIXELS,
) -> tuple[UInt8Image, float | None]:
    """Frames of a video, all in memory; for clips that are known to be small.

    Args:
        data: the whole file.
        first: first frame.
        stop: frame to stop before; None reads to the end.
        step: 1 for every frame, 2 for every other one.
        backend: as in `open_video`.
        max_pixels: most pixels of a frame.

    Returns:
        RGB frames (T, H, W, 3), and frames a second or None.

    Raises:
        UnreadableImage: when the video cannot be read.
        ValueError: when the backend's library is not installed, or does not load.
    """
    video = open_video(data, backend, max_pixels)
    pieces = list(checked_frames(video, first, stop, step))
    return np.concatenate(pieces), video.fps


def checked_frames(
    video: Video, first: int = 0, stop: int | None = None, step: int = 1
) -> Iterator[UInt8Image]:
    """`Video.read` that ends with an error where frames are missing.

    Raises:
        UnreadableImage: when a frame is damaged, there is none, or the file ends early.
    """
    end = video.num_frames if stop is None else stop
    wanted = None if end is None else len(range(first, end, step))
    got = 0
    with damage_explained(_DAMAGED):
        for piece in video.read(first, end if end is not None else 2**31, step):
            got += len(piece)
            yield piece
    if got == 0:
        raise UnreadableImage("The video holds no frame that can be decoded.")
    if wanted is not None and got < wanted:
        raise _cut_off(first + got * step, first + wanted * step)


def require_whole(data: bytes) -> None:
    """Refuse an AVI or MP4 file that ends before it says that it does.

    Raises:
        UnreadableImage: when bytes are missing.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        stated = int.from_bytes(data[4:8], "little") + 8
    elif data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        stated = _end_of_boxes(data)
    else:
        return
    if stated > len(data):
        raise UnreadableImage(
            f"The video is cut off: its container is {stated:,} bytes long, and {len(data):,} are "
            "there."
        )


def promised_frames(data: bytes) -> int | None:
    """How many frames the header of an AVI promises; None for other containers or no promise."""
    if data[:4] != b"RIFF" or data[8:12] != b"AVI ":
        return None
    at = data.find(b"avih", 12, 4096)
    if at < 0 or at + 8 + 20 > len(data):
        return None
    return int.from_bytes(data[at + 8 + 16 : at + 8 + 20], "little") or None


def _end_of_boxes(data: bytes) -> int:
    """Where the last top-level box of an MP4 or MOV file says that it ends."""
    position = 0
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:  # a 64-bit size follows the type
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        elif size == 0:  # to the end of the file
            return len(data)
        if size < 8:
            raise UnreadableImage("The video is damaged: a box of its container has no length.")
        position += size
    return position


def _load_library(backend: str) -> None:
    """Import what a backend needs; where it is missing, no file is to blame for it."""
    library = _LIBRARIES.get(require_installed(backend))
    try:
        if library is not None:
            importlib.import_module(library)
    except (ImportError, OSError, RuntimeError) as error:
        raise ValueError(_unusable(backend, f"does not load ({error})")) from error


def _unusable(backend: str, why: str) -> str:
    library = _LIBRARIES[backend]
    wheels = " (wheels for Linux on x86-64 only)" if library == "decord" else ""
    there = [
        name
        for name in BACKENDS
        if name != backend and (name not in _LIBRARIES or find_spec(_LIBRARIES[name]) is not None)
    ]
    return (
        f"The video backend {backend} needs {library}, which {why} here: pip install {library}"
        f"{wheels}, or set preprocess.backend to one of: {', '.join(['auto', *there])}."
    )


def _cut_off(got: int, promised: int) -> UnreadableImage:
    return UnreadableImage(
        f"The video is damaged or cut off: {got} of {promised} frames can be decoded."
    )
