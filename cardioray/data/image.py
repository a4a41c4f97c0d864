"""The one way from the bytes of a picture to the pixels a model sees.

Training, batch inference and serving all go through `read_frames` and `ImagePreprocess`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Literal

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field

from cardioray.config import config
from cardioray.data.contrast import contrast_frames
from cardioray.data.dicom import decode_dicom, read_dicom_info
from cardioray.data.frames import (
    ACCEPTED,
    ALL_FRAMES,
    MAX_FRAMES,
    MAX_PIXELS,
    FrameSelection,
    UInt8Image,
    UnreadableImage,
    check_size,
    damage_explained,
    drop_equal_channels,
    plan_frames,
    sniff,
    to_uint8,
)

__all__ = [
    "FrameSelection",
    "ImagePreprocess",
    "UnreadableImage",
    "describe_pixels",
    "read_frames",
    "read_numbered_frames",
]

_INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_MODES = {
    **{"1": "1-bit", "L": "uint8 grey", "RGB": "uint8 RGB", "P": "uint8 palette"},
    **{"RGBA": "uint8 RGBA", "LA": "uint8 grey with alpha", "CMYK": "uint8 CMYK"},
    **{"I": "int32 grey", "F": "float32 grey", "I;16": "uint16 grey", "I;16B": "uint16 grey"},
}
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def read_frames(
    data: bytes,
    *,
    frames: FrameSelection = ALL_FRAMES,
    max_frames: int = MAX_FRAMES,
    max_pixels: int = MAX_PIXELS,
) -> list[UInt8Image]:
    """Decode the wanted frames of a file; `read_numbered_frames` without the numbers."""
    numbered = read_numbered_frames(
        data, frames=frames, max_frames=max_frames, max_pixels=max_pixels
    )
    return [image for _, image in numbered]


def read_numbered_frames(
    data: bytes,
    *,
    frames: FrameSelection = ALL_FRAMES,
    max_frames: int = MAX_FRAMES,
    max_pixels: int = MAX_PIXELS,
) -> list[tuple[int, UInt8Image]]:
    """Decode the wanted frames of a raster or DICOM file; the kind is told from the bytes.

    The pages of a TIFF and the frames of an animated PNG are frames like those of a cine. A raster
    file of one picture is that frame, whatever number its row gives it. Frames that were not asked
    for are not decoded, except where "contrast" has to look at all of them.

    Of raster files the EXIF orientation is applied, transparency is laid over white, palettes and
    CMYK become RGB, and pictures whose channels are all equal become grey. More than 8 bits a pixel
    are scaled by the rule of `cardioray.data.frames.to_uint8`; 16-bit colour keeps its high byte.

    Args:
        data: the whole file.
        frames: which frames.
        max_frames: most frames that one call decodes.
        max_pixels: most pixels a frame may have; all frames together may have ten times as many.

    Returns:
        The number of each frame, counted from 0, and its (H, W) or (H, W, 3) uint8 image.

    Raises:
        UnreadableImage: when the file cannot be read, says why and what is accepted.
    """
    kind = sniff(data)
    decode = decode_dicom if kind == "dicom" else _decode_pages
    images = decode(data, frames, max_frames, max_pixels)
    if frames.kind == "contrast":
        return [(number, images[number]) for number in contrast_frames(images)]
    return list(enumerate(images, start=frames.first))


def describe_pixels(data: bytes) -> str:
    """How a file stores its pixels: "PNG uint8 grey", "DICOM XA 10-bit MONOCHROME2".

    Raises:
        UnreadableImage: when the header cannot be read.
    """
    if sniff(data) == "dicom":
        info = read_dicom_info(data)
        return f"DICOM {info.modality} {info.bits_stored}-bit {info.photometric}"
    with _damage_explained():
        image = _open(data, MAX_PIXELS)
        return f"{image.format} {_MODES.get(image.mode, image.mode)}"


def _decode_pages(
    data: bytes, frames: FrameSelection, max_frames: int, max_pixels: int
) -> list[UInt8Image]:
    with _damage_explained():
        image = _open(data, max_pixels)
        size = image.height * image.width
        count = _page_count(image, limit=max_frames + 1)
    if count > max_frames:
        raise UnreadableImage(f"The file has more than {max_frames:,} pages.")
    if count == 1 and frames.kind == "range":
        frames = ALL_FRAMES  # a still exported from a run: its number says where it was
    chosen = plan_frames(frames, count, size, max_frames, max_pixels)
    images = []
    with _damage_explained():
        for index in chosen:
            if count > 1:
                image.seek(index)
                check_size(image.height, image.width, max_pixels)
            images.append(_pixels(image))
    return images


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header only; Pillow decodes on access."""
    image = Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "BMP", "TIFF"])
    check_size(image.height, image.width, max_pixels)
    return image


def _page_count(image: Image.Image, limit: int) -> int:
    """Number of pages, counted no further than `limit`.

    A hostile TIFF may chain millions, and Pillow's time for a page grows with its number.
    """
    if image.format != "TIFF":
        # The further pictures of a camera's JPEG are previews and depth maps.
        return int(getattr(image, "n_frames", 1)) if image.format == "PNG" else 1
    count = 1
    while count < limit:
        try:
            image.seek(count)
        except EOFError:
            break
        count += 1
    image.seek(0)
    return count


@contextlib.contextmanager
def _damage_explained() -> Iterator[None]:
    """`damage_explained` with the words for what Pillow says itself."""
    with damage_explained("The picture is damaged or truncated"):
        try:
            yield
        except UnidentifiedImageError:
            raise UnreadableImage(f"The header of the picture is damaged. {ACCEPTED}") from None
        except Image.DecompressionBombError as error:
            raise UnreadableImage(f"The picture is too large: {error}") from None


def _pixels(page: Image.Image) -> UInt8Image:
    image = ImageOps.exif_transpose(page)
    if image.mode in _DEEP_MODES:
        return to_uint8(np.asarray(image))
    if image.has_transparency_data:
        overlaid = Image.new("RGBA", image.size, "white")
        overlaid.alpha_composite(image.convert("RGBA"))
        image = overlaid
    grey = image.mode in ("1", "L")
    array: UInt8Image = np.asarray(image.convert("L" if grey else "RGB"))
    return drop_equal_channels(array)


@config
class ImagePreprocess:
    """What is done to a decoded picture before it is stored or shown to a model.

    Attributes:
        image_size: side of the square result in pixels.
        channels: 1 (grey) or 3 (RGB; a grey picture is repeated).
        equalise: histogram equalisation at full resolution: "global" for each channel by itself
            (as in the FFR-Estimation system), "clahe" for contrast-limited adaptive equalisation
            (tiles of an eighth of each side, clip limit 2), or "none".
        fit: how a picture that is not square becomes square: "squash" changes its aspect, "pad"
            adds black borders, "crop" keeps the central square.
        interpolation: used where a side is enlarged; a side that shrinks is averaged by area.
    """

    image_size: int = Field(default=224, ge=16, le=4096)
    channels: Literal[1, 3] = 1
    equalise: Literal["none", "global", "clahe"] = "none"
    fit: Literal["squash", "pad", "crop"] = "squash"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def apply(self, image: UInt8Image) -> UInt8Image:
        """Equalise, fit and resize one picture.

        Without equalisation the function is idempotent: its result comes back unchanged.

        Args:
            image: uint8, (H, W) or (H, W, 3).

        Returns:
            uint8 of shape (image_size, image_size, channels).

        Raises:
            ValueError: for any other shape or type.
        """
        shaped = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
        if image.dtype != np.uint8 or not (shaped.ndim == 2 or shaped.shape[2:] == (3,)):
            raise ValueError(
                f"A uint8 picture of shape (H, W) or (H, W, 3) is needed, not {image.dtype} "
                f"of shape {image.shape}."
            )
        if shaped.ndim == 3 and self.channels == 1:
            shaped = cv2.cvtColor(shaped, cv2.COLOR_RGB2GRAY)
        fitted = self._fit(self._equalise(np.ascontiguousarray(shaped)))
        if fitted.ndim == 2:
            fitted = np.repeat(fitted[..., None], self.channels, axis=2)
        return np.ascontiguousarray(fitted)

    def _equalise(self, image: UInt8Image) -> UInt8Image:
        if self.equalise == "none":
            return image
        if self.equalise == "global":
            method = cv2.equalizeHist
        else:
            method = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply
        channels = [method(channel) for channel in cv2.split(image)]
        equalised: UInt8Image = cv2.merge(channels)
        return equalised

    def _fit(self, image: UInt8Image) -> UInt8Image:
        size = self.image_size
        height, width = image.shape[:2]
        if self.fit == "crop":
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            image = image[top : top + side, left : left + side]
        if self.fit != "pad":
            return self._resize(image, size, size)
        scale = size / max(height, width)
        inner = self._resize(image, max(1, round(height * scale)), max(1, round(width * scale)))
        top, left = (size - inner.shape[0]) // 2, (size - inner.shape[1]) // 2
        padded = np.zeros((size, size, *inner.shape[2:]), np.uint8)
        padded[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
        return padded

    def _resize(self, image: UInt8Image, height: int, width: int) -> UInt8Image:
        shrunk = (min(height, image.shape[0]), min(width, image.shape[1]))
        if shrunk != image.shape[:2]:
            image = cv2.resize(image, shrunk[::-1], interpolation=cv2.INTER_AREA)
        if (height, width) != shrunk:
            method = _INTERPOLATIONS[self.interpolation]
            image = cv2.resize(image, (width, height), interpolation=method)
        return image
