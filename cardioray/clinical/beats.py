"""Beats of the heart from a curve over the frames of a cine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

Floats = NDArray[np.float64]

# Rates between which a period is looked for, in beats a minute.
SLOWEST, FASTEST = 35.0, 180.0
# Autocorrelation at one period that a curve needs to count as periodic.
_LEAST_CORRELATION = 0.2
# Share of the highest correlation that a shorter period needs to win: a curve repeats after two
# beats as well as after one, and better where the EF changes from beat to beat.
_AS_GOOD = 0.75
# Weights of a frame and its neighbours in what smooths a curve of areas.
_SMOOTHING = (0.25, 0.5, 0.25)
# How far a frame may lie beyond both its neighbours, in typical bends of the curve: at the top of a
# smooth curve it is half a bend.
_BENDS = 2.0
# Part of a beat by which its end diastole may lie before the first frame, whose area is as large.
_A_MOMENT = 16


@dataclass(frozen=True)
class BeatValue:
    """A number for one beat.

    Attributes:
        first_frame: of the windows that were averaged, the first one's first frame.
        last_frame: the last one's first frame.
        value: their mean.
        windows: how many they are.
    """

    first_frame: int
    last_frame: int
    value: float
    windows: int


def beat_period(curve: Floats, fps: float) -> float | None:
    """Length of a beat in frames, by the autocorrelation of a curve; None where there is none.

    Args:
        curve: one value a frame (T,): cavity area, or what a network says of the window that begins
            there.
        fps: frames a second.
    """
    count = len(curve)
    lags = np.arange(max(2, int(fps * 60 / FASTEST)), int(fps * 60 / SLOWEST) + 1)
    lags = lags[lags <= count - 2]
    centred = curve - curve.mean()
    # A trend over the cine is no beat.
    slope = np.polyfit(np.arange(count), centred, 1) if count > 2 else (0.0, 0.0)
    centred = centred - np.polyval(slope, np.arange(count))
    # What rounding leaves of a straight line is no curve.
    flat = centred.std() <= 1e-9 * max(1.0, float(np.abs(curve).max()))
    if len(lags) < 3 or flat:
        return None
    correlation = np.array([_correlation(centred[:-lag], centred[lag:]) for lag in lags])
    inner = np.arange(1, len(lags) - 1)
    peaks = inner[
        (correlation[inner] >= correlation[inner - 1])
        & (correlation[inner] >= correlation[inner + 1])
        & (correlation[inner] > _LEAST_CORRELATION)
    ]
    if not len(peaks):
        return None
    best = correlation[peaks].max()
    first = peaks[correlation[peaks] >= _AS_GOOD * best][0]
    return float(lags[first])


def phases_of(areas: Floats, fps: float | None) -> list[tuple[int, int]]:
    """End diastole and end systole of each beat from the area of the cavity.

    Where in the beat both phases lie is told from all beats together; each beat then has its own
    largest area near the one, and its own smallest area between that and the next one. A frame
    without an area, and one whose area is far from those before and after it, is neither.

    Args:
        areas: one a frame (T,), NaN where there is none.
        fps: frames a second; None where it is not known, and the cine counts as one beat.

    Returns:
        Frames of the largest and of the smallest area, beat by beat, end diastole first: of the
        beats of which the cine has both, or of the whole cine, in any order, where no beat is told
        apart; empty where fewer than two frames have an area.
    """
    known = np.flatnonzero(np.isfinite(areas))
    if len(known) < 2:
        return []
    # A frame that a network has drawn wrong is no end of a beat.
    known = _plausible(areas, known)
    curve = np.interp(np.arange(len(areas)), known, areas[known])
    smooth = correlate1d(curve, _SMOOTHING, mode="mirror")
    # Of noise, the largest and the smallest would be chosen: a frame that leaves the smooth curve
    # counts for less by as much.
    doubt = np.abs(curve - smooth)
    largest, smallest = (np.full(len(areas), value) for value in (-np.inf, np.inf))
    largest[known], smallest[known] = (smooth - doubt)[known], (smooth + doubt)[known]
    period = None if fps is None else beat_period(smooth, fps)
    pairs = [] if period is None else _systoles(smooth, largest, smallest, round(period))
    return pairs or [(int(np.argmax(largest)), int(np.argmin(smallest)))]


def _plausible(areas: Floats, known: NDArray[np.int64]) -> NDArray[np.int64]:
    """Frames with an area that is not far beyond those before and after it; at either end, a line.

    Args:
        areas: one a frame (T,).
        known: frames that have one, ascending.
    """
    if len(known) < 3:
        return known
    bend = float(np.median(np.abs(np.diff(areas[known], 2))))
    most = _BENDS * bend + 1e-9 * float(np.abs(areas[known]).max())  # what rounding leaves is none
    # One after the other: beside a frame that is wrong, those that are right stand out as well.
    while len(known) > 3:
        own = areas[known]
        before, after = 2 * own[1] - own[2], 2 * own[-2] - own[-3]
        triples = sliding_window_view(np.concatenate([[before], own, [after]]), 3)
        beyond = np.abs(own - np.median(triples, axis=1))
        worst = int(np.argmax(beyond))
        if beyond[worst] <= most:
            break
        known = np.delete(known, worst)
    return known


def _systoles(curve: Floats, largest: Floats, smallest: Floats, step: int) -> list[tuple[int, int]]:
    """Frames of both phases of each beat of a curve that repeats after `step` frames.

    Args:
        curve: one area a frame (T,).
        largest: the highest value is the best end diastole; -inf where it is none (T,).
        smallest: the lowest value is the best end systole; inf where it is none (T,).
        step: frames of a beat.
    """
    folded = np.array([curve[offset::step].mean() for offset in range(step)])
    diastole = int(np.argmax(folded))
    contraction = (int(np.argmin(folded)) - diastole) % step
    around = max(1, step // 4)
    pairs: list[tuple[int, int]] = []
    # From the beat before the first whole one: it may have begun a moment before the cine.
    for expected in range(diastole - step, len(curve) - contraction, step):
        before = pairs[-1][1] + 1 if pairs else 0
        first, stop = max(expected - around, before), expected + min(around, contraction - 1) + 1
        if stop <= first or expected < -max(1, step // _A_MOMENT):
            continue
        ed = first + int(np.argmax(largest[first:stop]))
        last = max(expected + step - around, expected + contraction + 1)
        es = ed + 1 + int(np.argmin(smallest[ed + 1 : last]))
        if np.isfinite(largest[ed]) and np.isfinite(smallest[es]):
            pairs.append((ed, es))
    return pairs


def values_by_beat(starts: NDArray[np.int64], values: Floats, fps: float) -> list[BeatValue]:
    """A value for each beat from what a network says of windows of a cine.

    The answers rise and fall with where in the beat a window begins. Windows that begin within one
    beat are averaged, so that every phase counts once; the beats begin at the highest answers,
    which come from windows that begin shortly before a systole.

    Args:
        starts: first frames of the windows, ascending.
        values: what the network says of them.
        fps: frames a second.

    Returns:
        Whole beats in order; one entry with all windows where no beat is found.
    """
    everything = [BeatValue(int(starts[0]), int(starts[-1]), float(values.mean()), len(values))]
    frames = np.arange(starts[0], starts[-1] + 1)
    curve = np.interp(frames, starts, values)
    period = beat_period(curve, fps)
    if period is None:
        return everything
    step = round(period)
    offsets = np.arange(min(step, len(curve)))
    heights = [curve[offset::step].mean() for offset in offsets]
    first = int(frames[0]) + int(offsets[int(np.argmax(heights))])
    beats = []
    for begin in range(first, int(frames[-1]) - step + 2, step):
        inside = (starts >= begin) & (starts < begin + step)
        if inside.any():
            own = starts[inside]
            beats.append(
                BeatValue(
                    int(own[0]), int(own[-1]), float(values[inside].mean()), int(inside.sum())
                )
            )
    return beats or everything


def _correlation(first: Floats, second: Floats) -> float:
    """Pearson's, 0 where one of them does not vary."""
    a, b = first - first.mean(), second - second.mean()
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 0 else 0.0
