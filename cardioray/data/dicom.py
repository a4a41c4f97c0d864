"""DICOM pictures and cines as 8-bit frames, and the few tags that are not about the patient.

Only the tags listed here are read from a file: names, dates and identifiers stay in it. The one
exception is `read_identity`, which groups the files of a folder by patient.
"""

from __future__ import annotations

import io
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.processing import (
    apply_color_lut,
    apply_modality_lut,
    apply_voi,
    apply_windowing,
)
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from cardioray.data.frames import (
    MAX_PIXELS,
    FrameSelection,
    UInt8Image,
    UnreadableImage,
    check_size,
    damage_explained,
    drop_equal_channels,
    plan_frames,
    to_uint8,
)
from cardioray.data.ultrasound import UltrasoundRegion, tissue_region

_COLOURS = ("Red", "Green", "Blue")
_INFO_TAGS = [
    *("SOPClassUID", "Modality", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    *("PhotometricInterpretation", "BitsAllocated", "BitsStored", "FrameTime", "FrameTimeVector"),
    *("CineRate", "RecommendedDisplayFrameRate", "PixelSpacing", "ImagerPixelSpacing"),
    *("EstimatedRadiographicMagnificationFactor", "SequenceOfUltrasoundRegions"),
]
_PIXEL_TAGS = [
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable"),
    *("ExtendedOffsetTableLengths", "PlanarConfiguration", "HighBit", "PixelRepresentation"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "SharedFunctionalGroupsSequence"),
    "PerFrameFunctionalGroupsSequence",
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in _COLOURS),
    *(f"{colour}PaletteColorLookupTableData" for colour in _COLOURS),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in _COLOURS),
]
_LARGE_TAGS = {
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable"),
    *("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"),
}
_DAMAGED = "The DICOM file cannot be decoded"
# Detectors that state up to 12 bits use them; 16 "stored" bits are often 12 or 14 in truth.
_TRUSTED_BITS = 12
# Ten times `max_pixels` in all, of 16 bits each, and the tags.
_INFLATED_BYTES_PER_PIXEL = 20


@dataclass(frozen=True)
class DicomInfo:
    """What a DICOM picture is, without a word about the patient.

    Attributes:
        modality: "XA", "US" and the like, "" when absent.
        sop_class: name of the SOP class ("X-Ray Angiographic Image Storage").
        transfer_syntax: name of the transfer syntax.
        photometric: photometric interpretation ("MONOCHROME2").
        bits_stored: bits a pixel.
        frame_time_ms: time between frames, None where the file does not state it.
        pixel_spacing_mm: (row, column) spacing in the patient; a detector's spacing is divided by
            the stated magnification, and left out where none is stated.
    """

    modality: str
    sop_class: str
    transfer_syntax: str
    photometric: str
    rows: int
    columns: int
    bits_stored: int
    number_of_frames: int
    frame_time_ms: float | None
    pixel_spacing_mm: tuple[float, float] | None
    ultrasound: UltrasoundRegion | None = None


def read_dicom_info(data: bytes) -> DicomInfo:
    """Describe a DICOM picture without decoding it.

    Raises:
        UnreadableImage: when it is no DICOM file, is damaged, or holds no picture.
    """
    with damage_explained(_DAMAGED):
        dataset = _read(data, _INFO_TAGS)
        return DicomInfo(
            modality=str(dataset.get("Modality") or ""),
            sop_class=UID(dataset.get("SOPClassUID") or "").name,
            transfer_syntax=dataset.file_meta.TransferSyntaxUID.name,
            photometric=str(dataset.PhotometricInterpretation),
            rows=int(dataset.Rows),
            columns=int(dataset.Columns),
            bits_stored=int(dataset.get("BitsStored") or dataset.BitsAllocated),
            number_of_frames=_frame_count(dataset),
            frame_time_ms=_frame_time_ms(dataset),
            pixel_spacing_mm=_pixel_spacing_mm(dataset),
            ultrasound=tissue_region(dataset),
        )


@dataclass(frozen=True)
class DicomIdentity:
    """Whose picture a file is. For grouping files only; never logged, never stored in a bundle."""

    patient_id: str
    study_uid: str


def read_identity(stream: BinaryIO) -> DicomIdentity | None:
    """Patient ID and Study Instance UID of a picture; None for a file that is no DICOM picture.

    Reads as far as the pixel data, not further.

    Raises:
        UnreadableImage: for a DICOM file that is damaged before its pixels, and may be a picture.
    """
    if stream.read(132)[128:] != b"DICM":
        return None
    stream.seek(0)
    tags = ["SOPClassUID", "PatientID", "StudyInstanceUID", "Rows"]
    with damage_explained(_DAMAGED):
        dataset = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(tags))
    if "Rows" not in dataset:
        # The reader stops without a word where the file ends too early.
        stated = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
        if stated and "Image Storage" not in UID(stated).name:
            return None
        raise UnreadableImage("The DICOM file is cut off before its pixels.")
    return DicomIdentity(
        patient_id=str(dataset.get("PatientID") or "").strip(),
        study_uid=str(dataset.get("StudyInstanceUID") or ""),
    )


def decode_dicom(
    data: bytes, frames: FrameSelection, max_frames: int, max_pixels: int
) -> list[UInt8Image]:
    """All that `iter_dicom` yields."""
    return list(iter_dicom(data, frames, max_frames, max_pixels))


def iter_dicom(
    data: bytes, frames: FrameSelection, max_frames: int, max_pixels: int
) -> Iterator[UInt8Image]:
    """Decode frames of a DICOM picture or cine to 8 bit; other frames are not decoded.

    The modality LUT or rescale, then the first VOI LUT or window are applied, from the frame's own
    functional group where there is one. Without a window the full scale of the stored bits is
    used (above 12 stored bits the rule of `to_uint8`), upside down where the rescale slope is
    negative. MONOCHROME1 is inverted; palette and YBR pictures become RGB.

    Args:
        data: the whole file.
        frames: which frames; "contrast" decodes all and leaves the choice to the caller.
        max_frames: most frames decoded.
        max_pixels: most pixels of a frame.

    Yields:
        One (H, W) or (H, W, 3) uint8 image a frame.

    Raises:
        UnreadableImage: when the file cannot be read; sizes are checked before decoding.
    """
    with damage_explained(_DAMAGED):
        dataset = _read(data, [*_INFO_TAGS, *_PIXEL_TAGS], max_pixels)
        count = _frame_count(dataset)
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        check_size(rows, columns, max_pixels)
    chosen = plan_frames(frames, count, rows * columns, max_frames, max_pixels)
    with damage_explained(_DAMAGED):
        _check_pixel_data(dataset, chosen, count, max_pixels)
    decoded = iter_pixels(dataset, indices=list(chosen))
    for index in chosen:
        with damage_explained(_DAMAGED):
            picture = _to_picture(next(decoded), _frame_attributes(dataset, index))
        yield picture


def _read(data: bytes, tags: list[str], max_pixels: int = MAX_PIXELS) -> pydicom.FileDataset:
    if data[128:132] != b"DICM":
        raise UnreadableImage("The file is no DICOM file (no DICM after the preamble).")
    if DeflatedExplicitVRLittleEndian.encode() in data[132:2048]:
        _check_deflated(data, _INFLATED_BYTES_PER_PIXEL * max_pixels + 2**20)
    dataset = pydicom.dcmread(io.BytesIO(data), specific_tags=list(tags))
    if "Rows" not in dataset or "Columns" not in dataset:
        kind = UID(dataset.get("SOPClassUID") or "").name or "unknown kind"
        raise UnreadableImage(f"The DICOM file holds no picture ({kind}).")
    return dataset


def _check_deflated(data: bytes, max_bytes: int) -> None:
    """A deflated file is inflated whole by the reader: refuse one that would not fit."""
    length_at = data.index(b"\x02\x00\x00\x00UL\x04\x00") + 8
    start = length_at + 4 + int.from_bytes(data[length_at : length_at + 4], "little")
    inflator = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated, rest = 0, data[start:]
    while rest:
        inflated += len(inflator.decompress(rest, 1 << 20))
        rest = inflator.unconsumed_tail
        if inflated > max_bytes:
            raise UnreadableImage(f"The deflated DICOM file inflates to over {max_bytes:,} bytes.")


def _frame_count(dataset: Dataset) -> int:
    count = int(dataset.get("NumberOfFrames") or 1)
    if count < 1:
        raise UnreadableImage(f"The DICOM file states {count} frames.")
    return count


def _frame_time_ms(dataset: Dataset) -> float | None:
    if dataset.get("FrameTime"):
        return float(dataset.FrameTime)
    steps = [float(step) for step in np.atleast_1d(dataset.get("FrameTimeVector") or [])]
    if len(steps) > 1:
        return float(np.mean(steps[1:]))  # the first entry is the offset of the first frame
    rate = dataset.get("CineRate") or dataset.get("RecommendedDisplayFrameRate")
    return 1000.0 / float(rate) if rate else None


def _pixel_spacing_mm(dataset: Dataset) -> tuple[float, float] | None:
    spacing, factor = dataset.get("PixelSpacing"), 1.0
    if not spacing:
        magnification = dataset.get("EstimatedRadiographicMagnificationFactor")
        if not magnification:
            return None
        spacing, factor = dataset.get("ImagerPixelSpacing"), float(magnification)
    if not spacing or len(spacing) != 2:
        return None
    return float(spacing[0]) / factor, float(spacing[1]) / factor


def _check_pixel_data(dataset: Dataset, chosen: range, count: int, max_pixels: int) -> None:
    """Refuse missing and short pixel data, and compressed frames larger than they claim."""
    keyword = next(
        (k for k in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if k in dataset), None
    )
    if keyword is None or not dataset[keyword].value:
        raise UnreadableImage("The DICOM file holds no pixel data.")
    buffer = dataset[keyword].value
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        bits = int(dataset.BitsAllocated) * int(dataset.get("SamplesPerPixel") or 1)
        if str(dataset.PhotometricInterpretation) == "YBR_FULL_422":
            bits = bits * 2 // 3
        needed = int(dataset.Rows) * int(dataset.Columns) * count * bits // 8
        if len(buffer) < needed:
            raise UnreadableImage(
                f"The DICOM pixel data are truncated: {len(buffer):,} of {needed:,} bytes."
            )
        return
    frames = generate_frames(buffer, number_of_frames=count)
    for frame in itertools.islice(frames, chosen.start, chosen.stop):
        size = _codestream_size(frame)
        if size is not None:
            check_size(*size, max_pixels)


def _codestream_size(frame: bytes) -> tuple[int, int] | None:
    """(height, width) that a JPEG, JPEG-LS or JPEG 2000 codestream states; None for RLE."""
    position = frame.find(b"\xff\x4f\xff\x51", 0, 256)  # JPEG 2000: SOC and SIZ markers
    if position >= 0:
        right, bottom, left, top = (
            int.from_bytes(frame[at : at + 4], "big")
            for at in range(position + 8, position + 24, 4)
        )
        return bottom - top, right - left
    if not frame.startswith(b"\xff\xd8"):
        return None
    position = 2
    while position + 9 <= len(frame):
        marker = frame[position + 1]
        is_frame_header = 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
        if is_frame_header or marker == 0xF7:  # 0xF7: JPEG-LS
            height, width = frame[position + 5 : position + 7], frame[position + 7 : position + 9]
            return int.from_bytes(height, "big"), int.from_bytes(width, "big")
        position += 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    return None


def _frame_attributes(dataset: pydicom.FileDataset, index: int) -> Dataset:
    """How the pixels of one frame are to be shown; its functional groups win over the top level."""
    attributes = Dataset()
    attributes.file_meta = dataset.file_meta  # byte order of lookup tables
    attributes.update({e.tag: e for e in dataset if e.keyword not in _LARGE_TAGS})
    groups: list[Dataset] = list(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
    groups += list(dataset.get("PerFrameFunctionalGroupsSequence") or [])[index : index + 1]
    for group in groups:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in list(group.get(name) or [])[:1]:
                attributes.update(item)
    return attributes


def _to_picture(pixels: NDArray[np.generic], attributes: Dataset) -> UInt8Image:
    """8-bit grey or RGB picture from the stored values of one frame."""
    photometric = str(attributes.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        bits = int(attributes.RedPaletteColorLookupTableDescriptor[2])
        return drop_equal_channels(to_uint8(apply_color_lut(pixels, attributes), bits))
    if pixels.ndim == 3:
        return drop_equal_channels(to_uint8(pixels, int(attributes.BitsStored)))
    picture = _to_grey(pixels, attributes)
    return 255 - picture if photometric == "MONOCHROME1" else picture


def _to_grey(pixels: NDArray[np.generic], attributes: Dataset) -> UInt8Image:
    if attributes.get("WindowWidth") is not None and attributes.get("WindowCenter") is not None:
        values = apply_modality_lut(pixels, attributes)
        window = Dataset()
        for keyword in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
            if attributes.get(keyword) is not None:
                setattr(window, keyword, attributes[keyword].value)
        # The reader scales a window to the range of the stored bits: state the range wanted.
        window.PhotometricInterpretation = "MONOCHROME2"
        window.BitsStored, window.PixelRepresentation = 8, 0
        shown: UInt8Image = np.rint(apply_windowing(values, window)).astype(np.uint8)
        return shown
    if attributes.get("VOILUTSequence"):
        values = np.rint(apply_modality_lut(pixels, attributes)).astype(np.int32)
        bits = int(attributes.VOILUTSequence[0].LUTDescriptor[2])
        return to_uint8(apply_voi(values, attributes), bits)
    if attributes.get("ModalityLUTSequence"):
        bits = int(attributes.ModalityLUTSequence[0].LUTDescriptor[2])
        return to_uint8(apply_modality_lut(pixels, attributes), bits)
    # A linear rescale without a window changes nothing once the full scale becomes 0 to 255, but
    # for its sign.
    stored = int(attributes.get("BitsStored") or 16)
    unsigned = not attributes.get("PixelRepresentation")
    picture = to_uint8(pixels, stored if unsigned and stored <= _TRUSTED_BITS else None)
    return 255 - picture if float(attributes.get("RescaleSlope") or 1) < 0 else picture
