"""AVI files of which every frame is a JPEG of its own, as EchoNet's and most anonymisers' are.

Where the frames lie is read from the container, so that a frame costs what its own JPEG costs,
whichever frames are wanted. What is unusual about a file is left to FFmpeg.

Layout: Microsoft, "AVI RIFF File Reference".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cardioray.data.frames import UInt8Image, UnreadableImage

_LIST = b"LIST"


@dataclass(frozen=True)
class JpegFrames:
    """Where the frames of a Motion JPEG AVI are.

    Attributes:
        spans: (first byte, one past the last) of every frame.
        height: of a frame in px.
        width: of a frame in px.
        fps: frames a second, or None where the file does not say.
    """

    spans: tuple[tuple[int, int], ...]
    height: int
    width: int
    fps: float | None

    @classmethod
    def find(cls, data: bytes) -> JpegFrames:
        """Walk through the container.

        Raises:
            UnreadableImage: when it is another container, holds another codec, or is damaged.
        """
        if not is_motion_jpeg(data):
            raise UnreadableImage("The file is no AVI with Motion JPEG.")
        if any(name == b"RIFF" for name, _, _ in _chunks(data, 12, len(data))):
            # The header counts the frames of the first part alone, so that no check would tell.
            raise UnreadableImage("The AVI goes on in a second part.")
        lists = {_name(data, at): (at + 4, end) for at, end in _lists(data, 12, len(data))}
        if b"hdrl" not in lists or b"movi" not in lists:
            raise UnreadableImage("The AVI has no header or no frames.")
        inner = _lists(data, *lists[b"hdrl"])
        streams = [(at, end) for at, end in inner if _name(data, at) == b"strl"]
        for number, (at, end) in enumerate(streams):
            parts = {name: body for name, *body in _chunks(data, at + 4, end)}
            if b"strh" not in parts or b"strf" not in parts:
                raise UnreadableImage("A stream of the AVI has no header.")
            header, form = (data[slice(*parts[name])] for name in (b"strh", b"strf"))
            if header[:4] == b"vids":
                scale, rate = struct.unpack_from("<II", header, 20)
                width, height = struct.unpack_from("<ii", form, 4)
                wanted = (b"%02ddc" % number, b"%02ddb" % number)
                spans = tuple(_frames(data, *lists[b"movi"], wanted))
                return cls(spans, abs(height), width, rate / scale if scale and rate else None)
        raise UnreadableImage("The AVI holds no video stream.")

    def decode(self, data: bytes, numbers: range) -> UInt8Image:
        """Some frames in RGB, (n, H, W, 3).

        Args:
            data: the file.
            numbers: which of them.

        Raises:
            ValueError: when one is damaged, were it ever so little.
            UnreadableImage: when one has another size than the file says.
        """
        import simplejpeg

        frames = np.empty((len(numbers), self.height, self.width, 3), np.uint8)
        view = memoryview(data)
        for place, number in enumerate(numbers):
            jpeg = view[slice(*self.spans[number])]
            shape = simplejpeg.decode_jpeg_header(jpeg, strict=True)[:2]
            if shape != (self.height, self.width):
                raise UnreadableImage(
                    f"Frame {number} has {shape[1]} x {shape[0]} px, and the file says "
                    f"{self.width} x {self.height}."
                )
            simplejpeg.decode_jpeg(jpeg, colorspace="RGB", buffer=frames[place], strict=True)
        return frames


def is_motion_jpeg(data: bytes) -> bool:
    """Whether the header says that this is an AVI with Motion JPEG in it."""
    if data[:4] != b"RIFF" or data[8:12] != b"AVI ":
        return False
    at = data.find(b"strf", 12, 4096)
    return at >= 0 and data[at + 24 : at + 28] in (b"MJPG", b"mjpg")


def _chunks(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and end of the content of the chunks between two places."""
    while at + 8 <= end:
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + size > end:
            raise UnreadableImage("A part of the AVI is longer than what it is in.")
        yield data[at : at + 4], at + 8, at + 8 + size
        at += 8 + size + size % 2


def _lists(data: bytes, at: int, end: int) -> Iterator[tuple[int, int]]:
    return ((start, stop) for name, start, stop in _chunks(data, at, end) if name == _LIST)


def _name(data: bytes, at: int) -> bytes:
    """What the list whose content begins at a place is called."""
    return data[at : at + 4]


def _frames(
    data: bytes, at: int, end: int, wanted: tuple[bytes, bytes]
) -> Iterator[tuple[int, int]]:
    """Where the frames of a stream are; some writers group them in lists."""
    for name, start, stop in _chunks(data, at, end):
        if name == _LIST:
            yield from _frames(data, start + 4, stop, wanted)
        elif name in wanted:
            if start == stop:
                raise UnreadableImage("The AVI leaves out a frame.")
            yield start, stop
