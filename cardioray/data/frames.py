"""What a picture file may be, which of its frames are wanted, and how pixels become 8 bit.

Shared by the raster and the DICOM decoder, so that both follow the same rules.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

UInt8Image = NDArray[np.uint8]

MAX_PIXELS = 50_000_000
MAX_FRAMES = 2_000
ACCEPTED = "Accepted are PNG, JPEG, BMP, TIFF and DICOM files."
ACCEPTED_CLIPS = "Accepted are AVI, MP4, MOV and DICOM files."

# Full scales that detectors and scanners use; a value range is read as the smallest that holds it.
_BIT_DEPTHS = (8, 10, 12, 14, 16)

_SIGNATURES: tuple[tuple[bytes, int, str], ...] = (
    (b"DICM", 128, "dicom"),  # first: the preamble before it may be a TIFF header
    (b"\x89PNG\r\n\x1a\n", 0, "png"),
    (b"\xff\xd8\xff", 0, "jpeg"),
    (b"BM", 0, "bmp"),
    (b"II*\x00", 0, "tiff"),
    (b"MM\x00*", 0, "tiff"),
    (b"II+\x00", 0, "tiff"),
    (b"MM\x00+", 0, "tiff"),
    (b"%PDF", 0, "pdf"),
    (b"GIF8", 0, "gif"),
    (b"WEBP", 8, "webp"),
    (b"AVI ", 8, "avi"),
    (b"ftyphei", 4, "heic"),
    (b"ftypmif1", 4, "heic"),
    (b"ftypavif", 4, "heic"),
    (b"ftyp", 4, "mp4"),
    (b"moov", 4, "mp4"),  # QuickTime files of old have no ftyp
    (b"mdat", 4, "mp4"),
    (b"wide", 4, "mp4"),
    (b"\x1a\x45\xdf\xa3", 0, "matroska"),
    (b"\x00\x00\x01\xba", 0, "mpeg"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", 0, "wmv"),
    (b"PK\x03\x04", 0, "zip"),
    (b"\x1f\x8b", 0, "gzip"),
)
_KIND_NAMES = {
    **{"png": "a PNG picture", "jpeg": "a JPEG picture", "bmp": "a BMP picture"},
    **{"tiff": "a TIFF picture", "pdf": "a PDF document", "gif": "a GIF picture"},
    **{"webp": "a WebP picture", "avi": "an AVI video", "heic": "a HEIC or AVIF picture"},
    **{"mp4": "an MP4 or MOV video", "matroska": "a Matroska or WebM video"},
    **{"mpeg": "an MPEG video", "wmv": "a Windows Media video", "gzip": "a gzip file"},
    **{"zip": "a ZIP archive or an Office document", "dicom": "a DICOM file"},
}
RASTER_KINDS = ("png", "jpeg", "bmp", "tiff")
VIDEO_KINDS = ("avi", "mp4", "matroska", "mpeg", "wmv")
VIDEO_SUFFIXES = (".avi", ".mp4", ".mov", ".m4v", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
RASTER_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


class UnreadableImage(ValueError):  # noqa: N818 (says what the file is)
    """A file that cannot be read as a picture; the message says why and what is accepted."""


# What fetching and decoding one file may raise for the file's sake. It costs that file, which goes
# into quarantine, and not the run.
READ_ERRORS = (UnreadableImage, OSError)
# The same without what may pass: a store that does not answer says nothing about a file.
LOST_FILES = (
    UnreadableImage,
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)


def sniff(
    data: bytes, kinds: tuple[str, ...] = (*RASTER_KINDS, "dicom"), accepted: str = ACCEPTED
) -> str:
    """Tell the kind of a file from its first bytes, whatever its name says.

    Args:
        data: the file, or its beginning.
        kinds: what is wanted, of `RASTER_KINDS`, `VIDEO_KINDS` and "dicom".
        accepted: the sentence that says so.

    Raises:
        UnreadableImage: for an empty file or any other kind, named where it is known.
    """
    if not data:
        raise UnreadableImage(f"The file is empty. {accepted}")
    for signature, offset, kind in _SIGNATURES:
        if data[offset : offset + len(signature)] == signature:
            if kind in kinds:
                return kind
            raise UnreadableImage(f"The file is {_KIND_NAMES[kind]}. {accepted}")
    head = data[:512]
    printable = sum(32 <= byte < 127 or byte in b"\t\n\r" for byte in head)
    what = "text" if printable > 0.95 * len(head) else "of an unknown kind"
    raise UnreadableImage(f"The file is {what}, whatever its name says. {accepted}")


@contextlib.contextmanager
def damage_explained(what: str) -> Iterator[None]:
    """Turn whatever a decoder raises on damaged bytes into UnreadableImage with its reason.

    Stands around what reads the bytes and around nothing else: an error of ours is no damage.

    Args:
        what: beginning of the sentence ("The DICOM file cannot be decoded").
    """
    try:
        yield
    except UnreadableImage:
        raise
    except MemoryError:
        raise  # the machine's trouble, not the file's
    except Exception as error:  # decoders and their plugins raise nearly every type
        reason = " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
        raise UnreadableImage(f"{what} ({reason}).") from error


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Refuse a picture by its size, before any pixel is decoded.

    Raises:
        UnreadableImage: when a side is zero or height times width exceeds `max_pixels`.
    """
    if height < 1 or width < 1:
        raise UnreadableImage(f"The picture has no pixels ({width} x {height}).")
    if height * width > max_pixels:
        raise UnreadableImage(
            f"The picture is {width} x {height} = {height * width:,} pixels; "
            f"at most {max_pixels:,} are accepted."
        )


def to_uint8(values: NDArray[np.generic], bits: int | None = None) -> UInt8Image:
    """Scale pixels of any kind to 8 bit.

    - Unsigned integers are divided by the full scale of `bits`, or else of the smallest of 8, 10,
      12, 14, 16 bits that holds the largest value: a 12-bit image in a 16-bit file is not dark.
    - Floats within [0, 1] are multiplied by 255.
    - Anything else (negative values, floats beyond 1, integers beyond 16 bits) has no known scale:
      its own minimum and maximum become 0 and 255.

    Args:
        values: pixels of any shape.
        bits: bit depth, where the file states it.

    Raises:
        UnreadableImage: when a float is NaN or infinite.
    """
    if values.dtype == np.uint8 and bits in (None, 8):
        return values.astype(np.uint8, copy=False)
    is_float = np.issubdtype(values.dtype, np.floating)
    if is_float and not np.isfinite(values).all():
        raise UnreadableImage("The picture holds NaN or infinite pixels.")
    low, high = float(values.min()), float(values.max())
    if is_float and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif not is_float and low >= 0 and (bits or high < 2 ** _BIT_DEPTHS[-1]):
        low, high = 0.0, 2.0 ** (bits or next(b for b in _BIT_DEPTHS if high < 2**b)) - 1
    scaled = (values.astype(np.float32) - low) * (255.0 / max(high - low, 1e-12))
    picture: UInt8Image = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return picture


def drop_equal_channels(image: UInt8Image) -> UInt8Image:
    """An RGB picture whose channels are all equal as (H, W); any other picture as it is."""
    if image.ndim == 3:
        red, green, blue = (image[..., channel] for channel in range(3))
        if np.array_equal(red, green) and np.array_equal(red, blue):
            return np.ascontiguousarray(red)
    return image


@dataclass(frozen=True)
class FrameSelection:
    """Which frames of a file are samples. Frames are counted from 0, ranges include both ends.

    Attributes:
        kind: "all", "range", or "contrast" (the frames filled with contrast medium).
        first: first frame of a range.
        last: last frame of a range.
    """

    kind: Literal["all", "range", "contrast"] = "all"
    first: int = 0
    last: int = 0

    @classmethod
    def parse(cls, text: str) -> FrameSelection:
        """Read "all", "contrast", one frame such as "12", or a range such as "10-20".

        Raises:
            ValueError: for any other text.
        """
        wanted = text.strip().lower()
        if wanted == "all":
            return cls()
        if wanted == "contrast":
            return cls(kind="contrast")
        match = re.fullmatch(r"(\d{1,5})(?:\s*-\s*(\d{1,5}))?", wanted)
        if match is None:
            raise ValueError(
                f"frame {text!r} is none of 'all', 'contrast', a frame number counted from 0 "
                "such as '12', or a range such as '10-20'."
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"frame range {text!r} ends before it begins.")
        return cls(kind="range", first=first, last=last)

    def __str__(self) -> str:
        if self.kind != "range":
            return self.kind
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    def indices(self, count: int) -> range:
        """Frames to decode from a file of `count` frames: all of them, or the range.

        Raises:
            UnreadableImage: when the range goes beyond the file.
        """
        if self.kind != "range":
            return range(count)
        if self.last >= count:
            raise UnreadableImage(
                f"Frame {self} was asked for, but the file has {count} frame(s), counted from 0."
            )
        return range(self.first, self.last + 1)


ALL_FRAMES = FrameSelection()


def frames_at_once(pixels: int, max_pixels: int = MAX_PIXELS) -> int:
    """Most frames of `pixels` pixels each that `plan_frames` lets be decoded at once.

    A reader that lets go of every frame before the next one may go through a larger file in runs
    of so many.
    """
    return 10 * max_pixels // max(1, pixels)


def plan_frames(
    frames: FrameSelection, count: int, pixels: int, max_frames: int, max_pixels: int
) -> range:
    """Frames to decode from a file of `count` frames of `pixels` pixels each, within the limits.

    Raises:
        UnreadableImage: when more than `max_frames` frames, or more than ten times `max_pixels`
            pixels in all, would have to be decoded.
    """
    indices = frames.indices(count)
    if len(indices) > max_frames:
        raise UnreadableImage(
            f"Frames {frames} are {len(indices):,} frames; at most {max_frames:,} are decoded "
            "at once. Ask for a shorter range."
        )
    if len(indices) > frames_at_once(pixels, max_pixels):
        raise UnreadableImage(
            f"Frames {frames} hold {len(indices) * pixels:,} pixels; at most {10 * max_pixels:,} "
            "are decoded at once. Ask for a shorter range."
        )
    return indices
