"""The contrast-filled frames of an angiographic run, found from the frames themselves."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from cardioray.data.frames import UInt8Image, UnreadableImage

# Vessels are looked for at this width. The structuring element is wider there than the largest
# coronary artery (5 mm of a field of view of 100 to 200 mm) and narrower than diaphragm and spine;
# the margin forgives what is there all the time, catheter and ribs, a movement of 2 to 3 mm.
_WIDTH_PX = 256
_ELEMENT_PX = 13
_MARGIN_PX = 9
_VESSEL_SHARE = 0.03

# Filled and empty frames of a run differ about tenfold; the beating heart alone changes the
# measure of a run that is filled throughout about twofold.
_LEAST_RATIO = 3.0
_LEAST_RISE = 4.0


def contrast_frames(images: Sequence[UInt8Image]) -> range:
    """Which frames are filled with contrast medium: from half of the rise on, to half of the fall.

    Of several such stretches the longest is kept. A single frame counts as filled: a still was
    chosen by somebody.

    Args:
        images: all frames of the run in order.

    Raises:
        UnreadableImage: when no rise stands out, because contrast fills all frames or none, or
            when the frames differ in size.
    """
    if len(images) == 1:
        return range(1)
    if len({image.shape[:2] for image in images}) > 1:
        raise UnreadableImage("The frames differ in size, so they are not one run.")
    curve = vessel_darkness(images)
    padded = np.pad(curve, 1, mode="edge")
    smooth = np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0)
    low, high = smooth.min(), smooth.max()
    if high - low < _LEAST_RISE or high < _LEAST_RATIO * low:
        raise UnreadableImage(
            f"No arrival of contrast medium stands out in the {len(images)} frames: it fills all "
            "of them or none. Ask for all frames (all) or for a range (such as 10-20)."
        )
    filled = np.concatenate([[0], smooth >= (low + high) / 2, [0]]).astype(int)
    starts = np.flatnonzero(np.diff(filled) == 1)
    ends = np.flatnonzero(np.diff(filled) == -1)
    longest = int(np.argmax(ends - starts))
    return range(int(starts[longest]), int(ends[longest]))


def vessel_darkness(images: Sequence[UInt8Image]) -> NDArray[np.float64]:
    """How dark the thin structures are that come and go, in grey levels; shape (frames,).

    The black top-hat (closing minus image) of a frame keeps what is darker and thinner than its
    structuring element. What every frame shows in about the same place is taken off, and the
    strongest 3 % of the pixels are averaged.
    """
    maps = [_black_top_hat(image) for image in images]
    kernel = np.ones((_MARGIN_PX, _MARGIN_PX), np.uint8)
    standing = cv2.dilate(maps[0], kernel)
    for thin in maps[1:]:
        standing = np.minimum(standing, cv2.dilate(thin, kernel))
    kept = max(1, int(standing.size * _VESSEL_SHARE))
    passing = (cv2.subtract(thin, standing).ravel() for thin in maps)
    return np.array([np.partition(values, -kept)[-kept:].mean() for values in passing])


def _black_top_hat(image: UInt8Image) -> UInt8Image:
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height = round(grey.shape[0] * _WIDTH_PX / grey.shape[1])
    height = min(max(1, height), 4 * _WIDTH_PX)
    small = cv2.resize(grey, (_WIDTH_PX, height), interpolation=cv2.INTER_AREA)
    smooth = cv2.GaussianBlur(small, (0, 0), 1.0)
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_ELEMENT_PX, _ELEMENT_PX))
    top_hat: UInt8Image = cv2.morphologyEx(smooth, cv2.MORPH_BLACKHAT, element)
    return top_hat
