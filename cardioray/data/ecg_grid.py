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

from cardioray.data.ecg_flat import Bend, Floats, bend_slopes, jacobian, transform
from cardioray.data.frames import UInt8Image

# The grid is looked for in a picture whose longer side has at most so many px: a page of 280 mm
# then has 5.7 px per mm.
_WORKING_SIDE = 1600
# Px that 5 mm may take in it. A page of twelve leads is more than 130 mm wide.
_PERIODS = np.geomspace(6.0, 60.0, 400)
_HARMONICS = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
_ANGLES = np.arange(-30.0, 30.5, 0.5)
_TILT_COST = 0.01
# Least score that is a grid. Real pages have 1.2 or more, pictures of other things 0.7 or less.
_LEAST_SCORE = 0.9
_LEAST_OF_ONE = 0.2  # in either direction
# Share of the tiles that the fitted homography has to explain within 3 % of the period.
_LEAST_EXPLAINED = 0.38
# Paper is bent when that moves something by so many mm, and more of the tiles then agree within a
# change of .01 mm per mm: so many more, and so many in all. Folded paper is left as it is.
_LEAST_BEND_MM, _BETTER, _LEAST_SHARE, _CLOSE = 0.3, 0.05, 0.63, 0.01


@dataclass(frozen=True, eq=False)
class EcgGrid:
    """Where the millimetres of the paper lie in a picture.

    Attributes:
        homography: from px of the picture (x, y, 1) to mm on the paper, (3, 3), as if it were flat.
            Its origin is any point of the paper; its axes are those of the grid that are the
            nearest to the picture's.
        bend: how the paper differs from a flat one; None where it does not.
        px_per_mm: px of the picture that a millimetre takes in its middle.
        score: how far the comb stands out of the spectrum, in nats.
        explained: share of the tiles whose own grid agrees with the homography.
        tilt_deg: angle between the paper's and the picture's rows.
    """

    homography: Floats
    bend: Bend | None
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
        _find_bend(waves, np.diag([5.0, 5.0, 1.0]) @ fitted),
        float(1 / np.sqrt(abs(np.linalg.det(local)))),
        score,
        explained,
        float(np.degrees(np.arctan2(local[1, 0], local[1, 1]))),
    )


def _find_bend(waves: _Waves, homography: Floats) -> Bend | None:
    """The bend that explains what waves of tiles the homography leaves over.

    Args:
        waves: of tiles.
        homography: from px of the picture of the tiles to mm.
    """
    places = transform(homography, waves.places)
    low, high = places.min(axis=0), places.max(axis=0)
    middle, reach = (low + high) / 2, np.maximum((high - low) / 2, 1.0)
    slopes = bend_slopes((places - middle) / reach) / reach[:, None]
    # Gradients of the paper's coordinates by px, and what they should be.
    local = np.array([jacobian(homography, place) for place in waves.places])
    coefficients, left_over, before = [], [], []
    for number, mine in enumerate((waves.across, ~waves.across)):
        wanted = 5 * waves.vectors[mine] - local[mine][:, number]
        # By mm instead of px: the rows of the inverse.
        turned = np.einsum("nji,nj->ni", np.linalg.inv(local[mine]), wanted)
        table, values = slopes[mine].reshape(-1, 9), turned.ravel()
        quality = np.repeat(np.clip(waves.quality[mine] / 4 - 0.5, 0.05, 2.0), 2)
        weights = quality.copy()
        solution = np.zeros(9)
        for _ in range(12):  # reweighted: tiles of text and curves say something else
            scaled = table * weights[:, None]
            ridge = 0.02 * float((scaled**2).sum()) / 9 * np.eye(9)
            solution = np.linalg.solve(scaled.T @ table + ridge * 0.02, scaled.T @ values)
            misses = np.abs(values - table @ solution)
            weights = quality / np.maximum(1, (misses / _CLOSE) ** 2)
        coefficients.append(solution)
        left_over.append(misses < _CLOSE)
        before.append(np.abs(values) < _CLOSE)
    bend = Bend(np.array(coefficients), middle, reach)
    sides = np.stack(np.meshgrid(*np.linspace(low, high, 5).T), axis=-1)
    largest = float(np.abs(bend.offsets(sides) - bend.offsets(sides).mean(axis=(0, 1))).max())
    share = float(np.concatenate(left_over).mean())
    better = share - float(np.concatenate(before).mean())
    told = largest > _LEAST_BEND_MM and better > _BETTER and share > _LEAST_SHARE
    return bend if told else None


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
        # Where lines run in one direction only, the other has nothing above this.
        floor = 0.003 * float(spectrum.max()) + 1e-6
        profiles.append(np.log((rays + floor) / (around + floor)))
    best = (-np.inf, 0.0, 0.0)
    for period in _PERIODS:
        on = size / period * _HARMONICS
        if on[0] < 2 or on[1] > half - 3:
            continue
        on = on[on < half - 3]
        rises = [_rise(profile, on, size / period) for profile in profiles]
        # A lattice is periodic along its diagonals as well: the smaller tilt is likelier.
        score = (rises[0] + rises[1]) * (1 - _TILT_COST * np.abs(_ANGLES))
        # Lines in one direction alone are no grid.
        score[np.minimum(*rises) < _LEAST_OF_ONE] = 0
        number = int(np.argmax(score))
        if score[number] > best[0]:
            best = (float(score[number]), float(period), float(_ANGLES[number]))
    return best


def _rise(profiles: Floats, on: Floats, step: float) -> Floats:
    """How far harmonics rise over what lies between them, for each angle, in nats."""
    between = _at(profiles, on - step / 2).mean(axis=1)
    rise: Floats = _at(profiles, on).sum(axis=1) / len(_HARMONICS) - between
    if len(on) == len(_HARMONICS):  # the lines of 1 mm
        rise += 0.5 * _at(profiles, on[4:])[:, 0]
    return rise


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
