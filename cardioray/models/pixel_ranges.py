"""Simple measures of pictures, and the ranges that a set of pictures spans.

They are measures a person can check by eye, so that a warning which names one can be understood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Fold = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows to fit to, and rows of other patients to judge the fit by."""

# Of pictures of new patients of the same kind, this share passes each of the gate's two fitted
# measures (pixels, features), so that about 99 % pass both.
PASS_RATE = 0.995

_DARK, _BRIGHT = 8, 247


@dataclass(frozen=True)
class Measure:
    """A measure of the pixels, in words for a reader of a warning.

    Attributes:
        title: what is measured.
        unit: written behind the number.
        low: smallest value it can take.
        high: largest value it can take.
        spread: smallest difference that means anything; a range reaches at least this far to each
            side of the median of the training pictures.
    """

    title: str
    unit: str
    low: float
    high: float
    spread: float


MEASURES: dict[str, Measure] = {
    "brightness": Measure("mean brightness", "", 0, 255, 4),
    "contrast": Measure("contrast (standard deviation of the grey levels)", "", 0, 128, 2),
    "dark_percent": Measure("share of black pixels", " %", 0, 100, 2),
    "bright_percent": Measure("share of white pixels", " %", 0, 100, 2),
    "entropy_bits": Measure("entropy of the grey levels", " bit", 0, 8, 0.1),
    "detail": Measure("mean difference between neighbouring pixels", "", 0, 255, 0.5),
    "lower_upper": Measure("brightness of the lower minus the upper half", "", -255, 255, 4),
    "right_left": Measure("brightness of the right minus the left half", "", -255, 255, 4),
    "centre_border": Measure("brightness of the centre minus the border", "", -255, 255, 4),
    "colour": Measure("mean difference between colour channels", "", 0, 255, 2),
}


def image_measures(images: NDArray[np.uint8]) -> Floats:
    """Simple measures of pictures, in the order of `MEASURES`.

    Args:
        images: (N, H, W, C) with one or three channels.

    Returns:
        (N, measures); brightness, contrast, detail, layout and colour in grey levels of 255.
    """
    assert images.dtype == np.uint8, images.dtype
    assert images.ndim == 4, images.shape
    assert images.shape[3] in (1, 3), images.shape
    return np.array([_measure(image) for image in images], np.float64).reshape(-1, len(MEASURES))


def _measure(image: NDArray[np.uint8]) -> tuple[float, ...]:
    colour = 0.0
    if image.shape[2] == 3:
        colour = float((image.max(axis=2) - image.min(axis=2)).mean())
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    else:
        grey = np.ascontiguousarray(image[..., 0])
    levels = np.arange(256)
    share = np.bincount(grey.ravel(), minlength=256) / grey.size
    mean = float(share @ levels)
    seen = share[share > 0]
    # Averages over a grid of 4 by 4 fields: halves, centre and border are sums of fields.
    fields = cv2.resize(grey.astype(np.float32), (4, 4), interpolation=cv2.INTER_AREA)
    centre = float(fields[1:3, 1:3].mean())
    signed = grey.astype(np.int16)
    steps = np.abs(np.diff(signed, axis=0)).mean() + np.abs(np.diff(signed, axis=1)).mean()
    return (
        mean,
        float(np.sqrt(max(share @ (levels - mean) ** 2, 0.0))),
        100 * float(share[:_DARK].sum()),
        100 * float(share[_BRIGHT + 1 :].sum()),
        float(-(seen * np.log2(seen)).sum()),
        float(steps) / 2,
        float(fields[2:].mean() - fields[:2].mean()),
        float(fields[:, 2:].mean() - fields[:, :2].mean()),
        centre - (16 * float(fields.mean()) - 4 * centre) / 12,
        colour,
    )


@dataclass(frozen=True, eq=False)
class PixelRanges:
    """For each of `MEASURES` the range that the training pictures span.

    A measure's excess is its distance from the training median in units of the distance to the
    training 1 % or 99 % quantile. One limit for the largest excess of a picture, taken from
    patients that the quantiles have not seen, makes all ranges hold together.

    Attributes:
        low: lowest accepted value of each measure.
        high: highest accepted value of each measure.
    """

    low: Floats
    high: Floats

    @classmethod
    def fit(cls, values: Floats, folds: Sequence[Fold]) -> PixelRanges:
        """Fit to measures (N, measures) of training pictures."""
        held_out = np.empty(len(values))
        for fitted, held in folds:
            below, centre, above = _sides(values[fitted])
            offset = values[held] - centre
            held_out[held] = np.maximum(offset / above, -offset / below).max(axis=1)
        limit = held_out_limit(held_out)
        below, centre, above = _sides(values)
        bounds = np.array([(m.low, m.high) for m in MEASURES.values()])
        low, high = centre - limit * below, centre + limit * above
        return cls(np.maximum(low, bounds[:, 0]), np.minimum(high, bounds[:, 1]))

    def findings(self, values: Floats) -> list[str]:
        """A sentence for each measure (measures,) of one picture that is out of its range."""
        found = []
        for value, low, high, measure in zip(
            values, self.low, self.high, MEASURES.values(), strict=True
        ):
            if not low <= value <= high:
                found.append(
                    f"{measure.title} {value:.1f}{measure.unit} is outside {low:.1f} to "
                    f"{high:.1f}{measure.unit} of the training pictures"
                )
        return found


def held_out_limit(values: Floats) -> float:
    """The limit that `PASS_RATE` of held-out values (N,) do not exceed."""
    return float(np.quantile(values, PASS_RATE, method="higher"))


def _sides(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Way from the median down to the 1 % quantile, the median, and way up to the 99 % quantile."""
    low, centre, high = np.quantile(values, (0.01, 0.5, 0.99), axis=0)
    spread = np.array([measure.spread for measure in MEASURES.values()])
    return np.maximum(centre - low, spread), centre, np.maximum(high - centre, spread)
