"""NIfTI and MetaImage files of echo pictures and cines, and of their label maps.

Both store the lateral axis first, then the depth, then the frames. A picture has its rows along
the depth, so that axes are turned round. What the header says of the position in space is left
out: an echo plane has none.
"""

from __future__ import annotations

import io
import logging
import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cardioray import storage
from cardioray.data.frames import MAX_PIXELS, UnreadableImage, check_size, damage_explained

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mhd", ".mha")

_GZIP = b"\x1f\x8b"
_NIFTI_DAMAGED = "The NIfTI file cannot be decoded"
_META_DAMAGED = "The MetaImage file cannot be decoded"
_HEADER_BYTES = 540  # of NIfTI-2, the longer one
_MM = {"mm": 1.0, "unknown": 1.0, "meter": 1e3, "micron": 1e-3}
_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
# Of an echo cine. Writers that know no time leave one second, or one of another unit, in its place.
_SLOWEST_FPS, _FASTEST_FPS = 4.0, 500.0

_ELEMENTS = {
    **{"MET_UCHAR": "u1", "MET_CHAR": "i1", "MET_USHORT": "u2", "MET_SHORT": "i2"},
    **{"MET_UINT": "u4", "MET_INT": "i4", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
_META_HEADER_BYTES = 1 << 16

# Pixels with the lateral axis first, width and height of one, and frames a second.
_Read = tuple[NDArray[Any], tuple[float, float], float | None]


@dataclass(frozen=True, eq=False)
class EchoVolume:
    """The pictures of a file.

    Attributes:
        frames: of the file's own type, (T, H, W).
        spacing_mm: height and width of a pixel; None where the file does not say.
        fps: frames a second; None where it does not say.
    """

    frames: NDArray[Any]
    spacing_mm: tuple[float, float] | None
    fps: float | None


def volume_kind(data: bytes) -> str | None:
    """ "nifti", "metaimage", or None for anything else, told from the first bytes."""
    head = data[:_HEADER_BYTES]
    if head[:2] == _GZIP:
        head = _beginning(data, _HEADER_BYTES)
    if head[344:348] in (b"n+1\x00", b"ni1\x00") or head[4:8] in (b"n+2\x00", b"ni2\x00"):
        return "nifti"
    text = head[:256].lstrip()
    return "metaimage" if text.startswith((b"ObjectType", b"NDims", b"Comment")) else None


def read_volume(data: bytes, max_pixels: int = MAX_PIXELS) -> EchoVolume:
    """Read a NIfTI file, packed or not, or a MetaImage file that holds its own pixels.

    Args:
        data: the whole file; of a MetaImage in two files, what `read_source` makes of them.
        max_pixels: most pixels a picture may have; all together may have ten times as many.

    Raises:
        UnreadableImage: when it is neither, is damaged, or holds no grey pictures.
    """
    kind = volume_kind(data)
    if kind is None:
        raise UnreadableImage("The file is neither NIfTI nor MetaImage.")
    read = _read_nifti if kind == "nifti" else _read_metaimage
    array, spacing, fps = read(data, max_pixels)
    frames = array.T if array.ndim == 3 else array.T[None]
    known = all(math.isfinite(side) and side > 0 for side in spacing)
    return EchoVolume(
        frames=np.ascontiguousarray(frames),
        spacing_mm=(spacing[1], spacing[0]) if known else None,
        fps=fps if len(frames) > 1 else None,
    )


def read_source(path: str) -> bytes:
    """The bytes of a file; a MetaImage header brings the pixels beside it along.

    Raises:
        UnreadableImage: when the header names no file, or one in another folder.
        FileNotFoundError: when a file does not exist.
    """
    data = storage.read_bytes(path)
    if not path.lower().endswith(".mhd"):
        return data
    fields, _ = _meta_header(data)
    name = fields.get("ElementDataFile", "")
    if name == "LOCAL":
        return data
    if not name or "/" in name or "\\" in name or name == "LIST" or "%" in name:
        raise UnreadableImage(
            f"The header names {name or 'no file'!r} for its pixels; one file beside it is read."
        )
    folder = path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")
    pixels = storage.read_bytes(storage.join(folder, name))
    kept = [f"{key} = {value}" for key, value in fields.items() if key != "ElementDataFile"]
    return "\n".join([*kept, "ElementDataFile = LOCAL\n"]).encode() + pixels


def read_labels(mask: str) -> bytes:
    """The bytes of a label map: of its file, or the outlines themselves; see `Manifest.masks`.

    Raises:
        UnreadableImage: as `read_source`.
        FileNotFoundError: when the file does not exist.
    """
    return mask.encode() if mask.startswith("{") else read_source(mask)


def _read_nifti(data: bytes, max_pixels: int) -> _Read:
    import nibabel  # half a second that files of other kinds need not wait for

    # What it says of a header, and mends, is for whoever writes such files.
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    packed = data[:2] == _GZIP
    head = _beginning(data, _HEADER_BYTES) if packed else data[:_HEADER_BYTES]
    image_type = nibabel.Nifti2Image if head[4:7] in (b"n+2", b"ni2") else nibabel.Nifti1Image
    with damage_explained(_NIFTI_DAMAGED):
        header = image_type.header_class.from_fileobj(io.BytesIO(head), check=False)
        shape = _checked_shape(header.get_data_shape(), max_pixels)
        size = int(header["vox_offset"]) + math.prod(shape) * header.get_data_dtype().itemsize
        if header.get_data_dtype().kind not in "uif":
            raise UnreadableImage("The NIfTI file holds no grey pictures.")
        # A packed file is unpacked no further than its header says that it goes.
        whole = _beginning(data, size) if packed else data
        if len(whole) < size:
            raise UnreadableImage(
                f"The NIfTI file is cut off: {size:,} bytes are announced, {len(whole):,} there."
            )
        image = image_type.from_bytes(whole)
        zooms = [float(zoom) for zoom in header.get_zooms()[:2]]
        scale = _MM.get(header.get_xyzt_units()[0], math.nan)
        spacing = (zooms[0] * scale, zooms[1] * scale)
        return np.asarray(image.dataobj).reshape(shape), spacing, _nifti_fps(header)


def _nifti_fps(header: Any) -> float | None:
    """Frames a second by the step of the fourth axis, where it is a time and one of an echo."""
    step = float(header["pixdim"][4]) * _SECONDS.get(header.get_xyzt_units()[1], math.nan)
    return 1 / step if 1 / _FASTEST_FPS <= step <= 1 / _SLOWEST_FPS else None


def _read_metaimage(data: bytes, max_pixels: int) -> _Read:
    with damage_explained(_META_DAMAGED):
        fields, start = _meta_header(data)
        if fields.get("ElementDataFile") != "LOCAL":
            raise UnreadableImage(
                "The MetaImage header has its pixels in a file of their own; send one .mha file."
            )
        if int(fields.get("ElementNumberOfChannels", "1")) != 1:
            raise UnreadableImage("The MetaImage file holds no grey pictures.")
        if fields.get("ElementType") not in _ELEMENTS:
            raise UnreadableImage(
                f"The MetaImage file has elements of type {fields.get('ElementType')}; read are "
                f"{', '.join(_ELEMENTS)}."
            )
        shape = _checked_shape([int(n) for n in fields["DimSize"].split()], max_pixels)
        big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False"))
        order = ">" if big.lower() == "true" else "<"
        kind = np.dtype(order + _ELEMENTS[fields["ElementType"]])
        size = math.prod(shape) * kind.itemsize
        body = data[start:]
        if fields.get("CompressedData", "False").lower() == "true":
            body = zlib.decompressobj().decompress(body, size)
        if len(body) < size:
            raise UnreadableImage(
                f"The MetaImage file is cut off: {size:,} bytes of pixels are announced, "
                f"{len(body):,} there."
            )
        array = np.frombuffer(body[:size], kind).reshape(shape[::-1]).T
        stated = fields.get("ElementSpacing", fields.get("ElementSize", "nan nan")).split()
        return array, (float(stated[0]), float(stated[1])), None  # it has no unit of time


def _meta_header(data: bytes) -> tuple[dict[str, str], int]:
    """Fields of a MetaImage header, and where the pixels begin."""
    fields: dict[str, str] = {}
    at = 0
    while at < min(len(data), _META_HEADER_BYTES):
        end = data.find(b"\n", at)
        end = len(data) if end < 0 else end
        key, equals, value = data[at:end].decode("latin-1").partition("=")
        if not equals:
            break
        fields[key.strip()] = value.strip()
        at = end + 1
        if key.strip() == "ElementDataFile":
            return fields, at
    raise UnreadableImage("The MetaImage header does not say where its pixels are.")


def _checked_shape(stated: Any, max_pixels: int) -> tuple[int, ...]:
    """The axes without those of one element behind the second; a third one stays."""
    shape = [int(side) for side in stated]
    while len(shape) > 3 and 1 in shape[2:]:
        shape.pop(2 + shape[2:].index(1))
    if not 2 <= len(shape) <= 3:
        raise UnreadableImage(
            f"The file has {' x '.join(map(str, stated))} elements; pictures have two axes, and "
            "cines three."
        )
    check_size(shape[1], shape[0], max_pixels)
    if math.prod(shape) > 10 * max_pixels:
        raise UnreadableImage(
            f"The file holds {math.prod(shape):,} pixels; at most {10 * max_pixels:,} are read."
        )
    return tuple(shape)


def _beginning(data: bytes, size: int) -> bytes:
    """The first bytes of what is packed in a gzip file; fewer where it ends."""
    try:
        return zlib.decompressobj(wbits=31).decompress(data, size)
    except zlib.error as error:
        raise UnreadableImage(f"The packed file is damaged ({error}).") from None
