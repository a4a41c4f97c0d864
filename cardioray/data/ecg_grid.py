"""The grid of ECG paper in a picture: where a millimetre lies, and the picture laid flat by it.

ECG paper has lines at every millimetre and bolder ones at every fifth. Such a grid is a comb in
the spectrum of a picture, which stands out of any colour, of noise and of compression. The comb of
the whole picture gives the period and the tilt; the comb of each tile gives how both change over a
picture that was taken at an angle. A homography is fitted to that.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates, maximum_filter1d, uniform_filter1d
from scipy.optimize import least_squares

from cardioray.data.frames import UInt8Image

Floats = NDArray[np.float64]

# The grid is looked for in a picture whose longer side has at most so many px: a page of 280 mm
# then has 5.7 px per mm.
_WORKING_SIDE = 1600
# Px that 5 mm may take in it. A page of twelve leads is more than 130 mm wide.
_PERIODS = np.geomspace(6.0, 60.0, 400)
_HARMONICS = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
_ANGLES = np.arange(-45.0, 45.0, 0.5)
# Least score that is a grid. Real pages have 1.2 or more, pictures of other things 0.7 or less.
_LEAST_SCORE = 0.9
# Share of the tiles that the fitted homography has to explain within 3 % of the period.
_LEAST_EXPLAINED = 0.3


@dataclass(frozen=True, eq=False)
class EcgGrid:
    """Where the millimetres of the paper lie in a picture.

    Attributes:
        homography: from px of the picture (x, y, 1) to mm on the paper, (3, 3). Its origin is any
            point of the paper; its axes are those of the grid that are the nearest to the
            picture's.
        px_per_mm: px of the picture that a millimetre takes in its middle.
        score: how far the comb stands out of the spectrum, in nats.
        explained: share of the tiles whose own grid agrees with the homography.
        tilt_deg: angle between the paper's and the picture's rows.
    """

    homography: Floats
    px_per_mm: float
    score: float
    explained: float
    tilt_deg: float


def find_grid(picture: UInt8Image) -> EcgGrid | None:
    """Find the grid of 1 and 5 mm.

    Args:
        picture: (H, W) or (H, W, 3), RGB.

    Returns:
        The grid, or None where the picture has none. A page that lies on its side has one as
        well: the grid does not know which way is up.
    """
    height, width = picture.shape[:2]
    shrink = min(1.0, _WORKING_SIDE / max(height, width))
    small = picture
    if shrink < 1:
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    if min(small.shape[:2]) < 96:
        return None
    darkness = _darkness(small)
    score, period, angle = _comb(_spectrum(darkness))
    if score < _LEAST_SCORE:
        return None
    waves = _waves(darkness, period, angle)
    fitted, explained = _fit(waves, period, angle, max(small.shape[:2]))
    if explained < _LEAST_EXPLAINED:
        return None
    to_small = np.diag([small.shape[1] / width, small.shape[0] / height, 1.0])
    homography = np.diag([5.0, 5.0, 1.0]) @ fitted @ to_small
    middle = np.array([width / 2, height / 2])
    local = jacobian(homography, middle)
    return EcgGrid(
        homography,
        float(1 / np.sqrt(abs(np.linalg.det(local)))),
        score,
        explained,
        float(np.degrees(np.arctan2(local[1, 0], local[1, 1]))),
    )


def rectify(picture: UInt8Image, homography: Floats, px_per_mm: float) -> tuple[UInt8Image, Floats]:
    """Lay the paper flat.

    Args:
        picture: (H, W) or (H, W, 3).
        homography: from its px to mm.
        px_per_mm: resolution of the result.

    Returns:
        The paper, everything outside the picture white, and the homography from px of the picture
        to px of it.

    Raises:
        ValueError: when the homography sends a corner of the picture to infinity.
    """
    height, width = picture.shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
    depth = corners @ homography[2, :2] + homography[2, 2]
    if depth.min() <= 0.1 * depth.max():
        raise ValueError("The page is seen at too flat an angle to be laid flat.")
    flat = transform(homography, corners)
    low, high = flat.min(axis=0), flat.max(axis=0)
    size = np.ceil((high - low) * px_per_mm).astype(int)
    shift = np.array(
        [[px_per_mm, 0, -low[0] * px_per_mm], [0, px_per_mm, -low[1] * px_per_mm], [0, 0, 1]]
    )
    to_page = shift @ homography
    scale = px_per_mm * float(np.sqrt(abs(np.linalg.det(jacobian(homography, corners.mean(0))))))
    source, to_source = picture, np.eye(3)
    if scale < 0.7:  # averaged before, or thin lines would fall between samples
        smaller = (max(1, round(width * scale)), max(1, round(height * scale)))
        source = cv2.resize(picture, smaller, interpolation=cv2.INTER_AREA)
        # Centres of pixels lie at integers: (x + 0.5) * s - 0.5.
        across, down = smaller[0] / width, smaller[1] / height
        to_source = np.array([[across, 0, across / 2 - 0.5], [0, down, down / 2 - 0.5], [0, 0, 1]])
    page = cv2.warpPerspective(
        source,
        to_page @ np.linalg.inv(to_source),
        (int(size[0]), int(size[1])),
        flags=cv2.INTER_LINEAR if scale < 2 else cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(255, 255, 255),
    )
    return page, to_page


def transform(homography: Floats, points: NDArray[np.floating]) -> Floats:
    """Points (..., 2) moved by a homography."""
    moved = np.asarray(points, float) @ homography[:, :2].T + homography[:, 2]
    result: Floats = moved[..., :2] / moved[..., 2:]
    return result


def jacobian(homography: Floats, point: Floats) -> Floats:
    """How far the image of a point moves for a step of 1 px, (2, 2): rows are x and y of it."""
    x, y = point
    u, v, w = homography @ np.array([x, y, 1.0])
    rows = [
        (homography[0, :2] * w - u * homography[2, :2]) / w**2,
        (homography[1, :2] * w - v * homography[2, :2]) / w**2,
    ]
    return np.array(rows)


def _darkness(picture: UInt8Image) -> NDArray[np.float32]:
    """How much darker than its surroundings, cut so that ink counts little more than lines."""
    darkest = (picture if picture.ndim == 2 else picture.min(axis=2)).astype(np.float32)
    darkness = cv2.GaussianBlur(darkest, (0, 0), 15) - darkest
    limit = float(np.median(np.abs(darkness))) * 1.4826 * 2.5 + 1e-3
    clipped: NDArray[np.float32] = np.clip(darkness, -limit, limit)
    return clipped


def _tiles(size: int, shape: tuple[int, ...], most: tuple[int, int]) -> list[tuple[int, int]]:
    """Upper left corners of overlapping squares, at most (rows, columns) of them."""
    counts = [
        max(2, min(limit, int(2 * side // size))) for side, limit in zip(shape, most, strict=True)
    ]
    tops, lefts = (
        np.linspace(0, side - size, count).astype(int)
        for side, count in zip(shape, counts, strict=True)
    )
    return [(int(top), int(left)) for top in tops for left in lefts]


def _spectrum(darkness: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum of the amplitude spectra of tiles, its middle at frequency 0, (size, size)."""
    size = int(2 ** np.round(np.log2(min(darkness.shape) / 3)))
    size = min(max(size, 128), 512, int(2 ** np.floor(np.log2(min(darkness.shape)))))
    window = np.outer(np.hanning(size), np.hanning(size)).astype(np.float32)
    total = np.zeros((size, size // 2 + 1), np.float32)
    for top, left in _tiles(size, darkness.shape, (8, 12)):
        tile = darkness[top : top + size, left : left + size]
        total += np.abs(np.fft.rfft2((tile - tile.mean()) * window)).astype(np.float32)
    upper = np.fft.fftshift(total, axes=0)
    whole = np.zeros((size, size), np.float32)
    half = size // 2
    whole[:, half:] = upper[:, :half]
    whole[1:, 1 : half + 1] = upper[:0:-1, half:0:-1]
    return whole


def _comb(spectrum: NDArray[np.float32]) -> tuple[float, float, float]:
    """Score, period in px of 5 mm, and tilt in degrees of the best comb in both directions."""
    size = len(spectrum)
    half = size // 2
    radii = np.arange(half - 1, dtype=float)
    profiles = []
    for turn in (0.0, 90.0):
        angles = np.radians(_ANGLES + turn)
        places = half + np.stack([np.sin(angles)[:, None] * radii, np.cos(angles)[:, None] * radii])
        rays = map_coordinates(spectrum, places, order=1, mode="nearest")
        # Perspective spreads the peaks over a few degrees.
        rays = maximum_filter1d(rays, 7, axis=0)
        around = uniform_filter1d(rays, 31, axis=1, mode="reflect")
        profiles.append(np.log(np.maximum(rays / np.maximum(around, 1e-6), 1e-2)))
    both = profiles[0] + profiles[1]
    best = (-np.inf, 0.0, 0.0)
    for period in _PERIODS:
        on = size / period * _HARMONICS
        if on[0] < 2 or on[1] > half - 3:
            continue
        on = on[on < half - 3]
        between = on - size / period / 2
        rise = _at(both, on).sum(axis=1) / len(_HARMONICS) - _at(both, between).mean(axis=1)
        if len(on) == len(_HARMONICS):  # the lines of 1 mm
            rise = rise + 0.5 * _at(both, on[4:]).mean(axis=1)
        rise = rise - 0.002 * np.abs(_ANGLES)  # between equals the smaller tilt
        number = int(np.argmax(rise))
        if rise[number] > best[0]:
            best = (float(rise[number]), float(period), float(_ANGLES[number]))
    return best


def _at(profiles: Floats, places: Floats) -> Floats:
    """Profiles (A, R) at fractional places (K,), (A, K)."""
    low = np.floor(places).astype(int)
    part = places - low
    result: Floats = profiles[:, low] * (1 - part) + profiles[:, low + 1] * part
    return result


@dataclass(frozen=True, eq=False)
class _Waves:
    """Wave vectors of the 5 mm grid: one for each tile and direction.

    Attributes:
        across: True where lines are counted from left to right, (N,).
        places: middle of the tile in px, (N, 2).
        vectors: periods per px in x and y, (N, 2).
        quality: peak of the spectrum over its median, (N,).
    """

    across: NDArray[np.bool_]
    places: Floats
    vectors: Floats
    quality: Floats


def _waves(darkness: NDArray[np.float32], period: float, angle: float) -> _Waves:
    size = int(min(max(6 * period, 96), min(darkness.shape)))
    padded = 512
    window = np.outer(np.hanning(size), np.hanning(size)).astype(np.float32)
    turn = np.radians(angle)
    directions = (
        np.array([np.cos(turn), np.sin(turn)]),
        np.array([-np.sin(turn), np.cos(turn)]),
    )
    candidates = [_candidates(direction * padded / period) for direction in directions]
    found: list[tuple[bool, float, float, float, float, float]] = []
    for top, left in _tiles(size, darkness.shape, (6, 10)):
        tile = darkness[top : top + size, left : left + size]
        spectrum = np.fft.fftshift(
            np.abs(np.fft.fft2((tile - tile.mean()) * window, (padded, padded)))
        ).astype(np.float32)
        logs = np.log(spectrum + 1e-6)
        for number in range(2):
            vector = _best_comb(logs, candidates[number])
            peaks = []
            for harmonic in (5, 1, 2):
                expected = vector * harmonic
                if np.abs(expected).max() < padded * 0.45:
                    peak, quality = _peak(spectrum, expected)
                    peaks.append((quality, peak / padded / harmonic))
            quality, wave = max(peaks, key=lambda peak: peak[0])
            found.append((number == 0, left + size / 2, top + size / 2, *wave, quality))
    table = np.array(found, float)
    return _Waves(table[:, 0] > 0, table[:, 1:3], table[:, 3:5], table[:, 5])


def _candidates(expected: Floats) -> Floats:
    """Frequencies of the 5 mm lines that a tile may have, (N, 2): 24 % off, or 13 degrees."""
    step = max(0.2, float(np.hypot(*expected)) * 0.01)
    along = np.arange(-0.24, 0.24, step / np.hypot(*expected))
    beside = np.arange(-0.24, 0.24, step / np.hypot(*expected))
    normal = np.array([-expected[1], expected[0]])
    grid = along[:, None, None] * expected + beside[None, :, None] * normal
    result: Floats = expected + grid.reshape(-1, 2)
    return result


def _best_comb(logs: NDArray[np.float32], candidates: Floats) -> Floats:
    """The candidate whose first five harmonics are the strongest.

    One harmonic alone would be mistaken for its neighbour where lines are thin, since all are
    equally strong then.
    """
    middle = len(logs) // 2
    total = np.zeros(len(candidates))
    for harmonic in range(1, 6):
        places = np.round(candidates * harmonic).astype(int) + middle
        if places.min() >= 0 and places.max() < len(logs):
            total += logs[places[:, 1], places[:, 0]]
    best: Floats = candidates[int(total.argmax())]
    return best


def _peak(spectrum: NDArray[np.float32], expected: Floats) -> tuple[Floats, float]:
    """The peak near an expected frequency, between samples, and how far it stands out."""
    middle = len(spectrum) // 2
    x, y = np.clip(np.round(expected).astype(int) + middle, 3, len(spectrum) - 4)
    near = spectrum[y - 2 : y + 3, x - 2 : x + 3]
    row, column = np.unravel_index(int(near.argmax()), near.shape)
    y, x = y + int(row) - 2, x + int(column) - 2
    # A parabola through the peak and its neighbours.
    offsets = []
    for before, after in (
        (spectrum[y, x - 1], spectrum[y, x + 1]),
        (spectrum[y - 1, x], spectrum[y + 1, x]),
    ):
        bend = before - 2 * spectrum[y, x] + after
        offsets.append(0.5 * (before - after) / bend if bend < 0 else 0.0)
    place = np.array([x, y], float) + np.clip(offsets, -0.5, 0.5) - middle
    reach = max(4, round(float(np.hypot(*expected)) * 0.2))
    around = spectrum[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
    return place, float(spectrum[y, x] / max(float(np.median(around)), 1e-6))


def _fit(waves: _Waves, period: float, angle: float, side: int) -> tuple[Floats, float]:
    """The homography from px to units of 5 mm whose gradients are the waves, and what it explains.

    u = (a x + b y) / (1 + g x + h y), v = (c x + d y) / (1 + g x + h y), in picture sides.
    """
    x, y = (waves.places / side).T
    frequency = side / period
    wanted = waves.vectors * side / frequency
    weights = np.clip(waves.quality / 4 - 0.5, 0.05, 2.0)

    def misses(values: Floats) -> Floats:
        a, b, c, d, g, h = values
        depth = 1 + g * x + h * y
        first, second = np.where(waves.across, a, c), np.where(waves.across, b, d)
        top = first * x + second * y
        slopes = np.stack([first * depth - top * g, second * depth - top * h], axis=1)
        result: Floats = slopes / depth[:, None] ** 2 - wanted
        return result

    def weighted(values: Floats) -> Floats:
        result: Floats = (misses(values) * weights[:, None]).ravel()
        return result

    turn = np.radians(angle)
    begin = [np.cos(turn), np.sin(turn), -np.sin(turn), np.cos(turn), 0.0, 0.0]
    fitted = least_squares(weighted, begin, loss="soft_l1", f_scale=0.01)
    a, b, c, d, g, h = fitted.x
    explained = float((np.hypot(*misses(fitted.x).T) < 0.03).mean())
    scaled = np.array([[a * frequency, b * frequency, 0], [c * frequency, d * frequency, 0]])
    homography = np.vstack([scaled, [g, h, 1.0]]) @ np.diag([1 / side, 1 / side, 1.0])
    return homography, explained
