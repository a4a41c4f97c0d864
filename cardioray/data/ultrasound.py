"""What a DICOM file says of where its ultrasound is, and how large its pixels are."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.dataset import Dataset

from cardioray.data.sector import Box

# DICOM PS3.3 C.8.5.5: codes of the US Region Calibration module.
_TWO_DIMENSIONAL = 1
_TISSUE = 1
_CENTIMETRES = 3
# Share of the picture's side from which an edge of a region is no rounding any more.
_BEYOND = 1.05


@dataclass(frozen=True)
class UltrasoundRegion:
    """The two-dimensional tissue region of an ultrasound picture.

    Attributes:
        box: where it is in the picture.
        cm_per_px: (row, column) size of a pixel in cm, or None where it is not in cm, or where the
            region is of a picture of another size.
    """

    box: Box
    cm_per_px: tuple[float, float] | None


def tissue_region(dataset: Dataset) -> UltrasoundRegion | None:
    """The largest two-dimensional tissue region of a file, or None where it states none."""
    found: UltrasoundRegion | None = None
    for item in dataset.get("SequenceOfUltrasoundRegions") or []:
        if item.get("RegionSpatialFormat") != _TWO_DIMENSIONAL:
            continue
        if item.get("RegionDataType") != _TISSUE:
            continue
        box = _box(item, int(dataset.Rows), int(dataset.Columns))
        if box is None:
            continue
        if found is None or box.height * box.width > found.box.height * found.box.width:
            shrunk = _is_of_other_size(item, int(dataset.Rows), int(dataset.Columns))
            found = UltrasoundRegion(box, None if shrunk else _cm_per_px(item))
    return found


def _box(item: Dataset, rows: int, columns: int) -> Box | None:
    """A region's box within the picture; None where the file's numbers leave nothing of it."""
    edges = [item.get(f"RegionLocation{name}") for name in ("MinX0", "MinY0", "MaxX1", "MaxY1")]
    if any(edge is None for edge in edges):
        return None
    left, top, right, bottom = (int(edge) for edge in edges)
    left, top = max(left, 0), max(top, 0)
    right, bottom = min(right, columns - 1), min(bottom, rows - 1)
    if right - left < 8 or bottom - top < 8:
        return None
    return Box(top, left, bottom - top + 1, right - left + 1)


def _is_of_other_size(item: Dataset, rows: int, columns: int) -> bool:
    """Whether a region reaches well beyond the picture, which was then shrunk or cropped.

    Pixels of a shrunk picture are larger than the file says: scanners state them of the original.
    """
    right, bottom = int(item.RegionLocationMaxX1), int(item.RegionLocationMaxY1)
    return right >= columns * _BEYOND or bottom >= rows * _BEYOND


def _cm_per_px(item: Dataset) -> tuple[float, float] | None:
    units = (item.get("PhysicalUnitsYDirection"), item.get("PhysicalUnitsXDirection"))
    deltas = (item.get("PhysicalDeltaY"), item.get("PhysicalDeltaX"))
    if units != (_CENTIMETRES, _CENTIMETRES) or not all(deltas):
        return None
    return abs(float(deltas[0])), abs(float(deltas[1]))  # negative where an axis points up
