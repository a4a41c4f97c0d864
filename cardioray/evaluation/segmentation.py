"""How well a predicted outline fits a reference: overlap, and distances in mm."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
Labels = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class MaskFigures:
    """One structure in one picture. A figure that is not defined is NaN.

    Attributes:
        dice: 2 |A and B| / (|A| + |B|), 0 to 1; not defined where both are empty.
        iou: |A and B| / |A or B|.
        hd95_mm: Hausdorff distance without the farthest twentieth: the larger one of the 95th
            percentiles of the distances from the surface of either to the other. Not defined where
            one is empty, or a pixel has no known size.
        msd_mm: mean surface distance: the mean of the distances in both directions together.
    """

    dice: float
    iou: float
    hd95_mm: float
    msd_mm: float

    def to_dict(self) -> dict[str, float]:
        """The figures by name."""
        return dataclasses.asdict(self)


def mask_figures(
    predicted: Mask, reference: Mask, spacing_mm: tuple[float, float] | None
) -> MaskFigures:
    """Compare two masks of one structure.

    Args:
        predicted: (H, W).
        reference: (H, W).
        spacing_mm: height and width of a pixel; None where they are not known.

    Raises:
        ValueError: when the shapes differ.
    """
    if predicted.shape != reference.shape or predicted.ndim != 2:
        raise ValueError(
            f"Two masks of one shape (H, W) are compared, not {predicted.shape} and "
            f"{reference.shape}."
        )
    both = int((predicted & reference).sum())
    sizes = int(predicted.sum()), int(reference.sum())
    if not any(sizes):
        return MaskFigures(dice=np.nan, iou=np.nan, hd95_mm=np.nan, msd_mm=np.nan)
    dice, iou = 2 * both / sum(sizes), both / (sum(sizes) - both)
    if spacing_mm is None or not all(sizes):
        return MaskFigures(dice=dice, iou=iou, hd95_mm=np.nan, msd_mm=np.nan)
    there, back = surface_distances(predicted, reference, spacing_mm)
    return MaskFigures(
        dice=dice,
        iou=iou,
        hd95_mm=float(max(np.percentile(there, 95), np.percentile(back, 95))),
        msd_mm=float(np.concatenate([there, back]).mean()),
    )


def surface_distances(
    first: Mask, second: Mask, spacing_mm: tuple[float, float]
) -> tuple[Floats, Floats]:
    """Distance in mm of each surface pixel of either mask from the surface of the other.

    The surface of a mask is its pixels with a neighbour outside it, of four neighbours; what is
    beyond the picture counts as outside.

    Returns:
        Of the first mask's surface, and of the second's; neither mask may be empty.
    """
    # Nothing outside the box around both is on either surface.
    rows, columns = (np.flatnonzero((first | second).any(axis=axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    surfaces = [_surface(mask[box]) for mask in (first, second)]
    from_first, from_second = (
        ndimage.distance_transform_edt(~surface, sampling=spacing_mm) for surface in surfaces
    )
    return from_second[surfaces[0]], from_first[surfaces[1]]


def pack_labels(labels: Labels) -> bytes:
    """A label map (H, W) as PNG: some kilobytes, so that a table can hold those of all frames."""
    done, packed = cv2.imencode(".png", labels, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert done
    return packed.tobytes()


def unpack_labels(png: bytes) -> Labels:
    """The label map of `pack_labels`."""
    return np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED))


def _surface(mask: Mask) -> Mask:
    inner = ndimage.binary_erosion(mask)
    surface: Mask = mask & ~inner
    return surface
