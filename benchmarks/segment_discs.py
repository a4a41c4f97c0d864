"""Volumes of many label maps by the method of discs, beside plain loops over discs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.plain_discs import (
    turned_by_opencv,
    turned_by_scipy,
    upright_volume_ml,
    walked_volume_ml,
)
from benchmarks.report import Cell, Ratio, Report
from benchmarks.segments import Frames, phantom_frames
from cardioray.clinical.simpson import measure_cavities, single_plane_discs_ml
from cardioray.config import config
from cardioray.data.label_maps import CAVITY, MYOCARDIUM

QUESTION = """\
Microseconds for the volume of one label map of 256 px by the method of discs, in one thread, from
the label map to millilitres. The maps are those of phantom systoles, each turned and shifted anew.
CardioRay measures them many at a time, with the mitral plane from the wall, or along the principal
axis where no wall is given. The plain loops take one mask at a time, find its outline and principal
axis, and loop over 20 discs in Python: over the rows of each in the mask turned upright, by SciPy
or by OpenCV, or by walking from the axis to the edge in steps of half a pixel, as the script that
goes with CAMUS does. They are timed on fewer maps. The ways take turns; medians over the rounds.
The difference is that of the volume from CardioRay's along the principal axis, median over maps."""


@config
class DiscSettings:
    """Size of the run.

    Attributes:
        maps: label maps that CardioRay measures.
        plain_maps: of these, the ones that a plain loop measures.
        patients: phantom patients whose systoles the maps are made of.
        rounds: times that each way measures them.
    """

    maps: int = 10_000
    plain_maps: int = 1000
    patients: int = 12
    rounds: int = 5


Way = Callable[[NDArray[np.uint8], NDArray[np.float64]], list[float]]


def run(settings: DiscSettings) -> Report:
    """Time every way in turns."""
    cv2.setNumThreads(1)
    frames = phantom_frames(settings.patients, seed=12, whole_systole=True)
    labels, spacing = moved(frames, settings.maps, np.random.default_rng(0))
    few = settings.plain_maps
    upright = partial(_plain, upright_volume_ml)
    ways: dict[str, tuple[Way, int]] = {
        "CardioRay, mitral plane from the wall": (partial(_volumes, walled=True), len(labels)),
        "CardioRay, principal axis": (partial(_volumes, walled=False), len(labels)),
        "loop, mask turned by SciPy": (partial(upright, turned=turned_by_scipy), few),
        "loop, mask turned by OpenCV": (partial(upright, turned=turned_by_opencv), few),
        "loop, walking to the edge": (partial(_plain, walked_volume_ml), few),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    volumes: dict[str, list[float]] = {}
    for _ in range(settings.rounds):
        for name, (way, count) in ways.items():
            begun = time.perf_counter()
            volumes[name] = way(labels[:count], spacing[:count])
            seconds[name].append((time.perf_counter() - begun) / count)
    each = {name: float(np.median(values)) for name, values in seconds.items()}
    walled, principal, scipy, opencv, walking = ways
    rows: list[dict[str, Cell]] = []
    for name, found in volumes.items():
        reference = np.array(volumes[principal][: len(found)])
        rows.append(
            {
                "way": name,
                "microseconds": 1e6 * each[name],
                "difference": 100 * float(np.median(np.abs(np.array(found) / reference - 1))),
            }
        )
    return Report(
        name="segment_discs",
        title="Outlines: discs of many label maps",
        question=QUESTION,
        columns={"way": "way", "microseconds": "µs a map", "difference": "difference, %"},
        rows=rows,
        ratios=[
            Ratio(
                name="CardioRay, principal axis / loop, mask turned by SciPy",
                value=each[scipy] / each[principal],
                goal=">= 20",
            ),
            Ratio(
                name="CardioRay, mitral plane from the wall / loop, mask turned by SciPy",
                value=each[scipy] / each[walled],
                goal=">= 20",
            ),
            Ratio(
                name="CardioRay, principal axis / loop, mask turned by OpenCV",
                value=each[opencv] / each[principal],
            ),
            Ratio(
                name="CardioRay, principal axis / loop, walking to the edge",
                value=each[walking] / each[principal],
            ),
        ],
        settings=asdict(settings),
    )


def moved(
    frames: Frames, count: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """So many label maps of frames, turned by up to 30 degrees and shifted, and their spacings."""
    chosen = rng.integers(len(frames), size=count)
    side = frames.labels.shape[1]
    maps = np.empty((count, side, side), np.uint8)
    for place, number in enumerate(chosen):
        matrix = cv2.getRotationMatrix2D((side / 2, side / 2), rng.uniform(-30, 30), 1.0)
        matrix[:, 2] += rng.uniform(-6, 6, 2)
        size = (side, side)
        cv2.warpAffine(frames.labels[number], matrix, size, maps[place], cv2.INTER_NEAREST)
    return maps, frames.spacing_mm[chosen]


def _volumes(
    labels: NDArray[np.uint8], spacing: NDArray[np.float64], *, walled: bool
) -> list[float]:
    cavities = (one == CAVITY for one in labels)
    walls = (one == MYOCARDIUM for one in labels) if walled else None
    return [single_plane_discs_ml(one) for one in measure_cavities(cavities, spacing, walls)]


def _plain(
    volume_ml: Callable[..., float],
    labels: NDArray[np.uint8],
    spacing: NDArray[np.float64],
    **others: object,
) -> list[float]:
    return [
        volume_ml((one == CAVITY).view(np.uint8), float(side), **others)
        for one, (side, _) in zip(labels, spacing, strict=True)
    ]
