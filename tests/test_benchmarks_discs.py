"""The plain loops of the benchmark of discs measure what the product measures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from test_simpson import ventricle

from benchmarks.peers.plain_discs import (
    turned_by_opencv,
    turned_by_scipy,
    upright_volume_ml,
    walked_volume_ml,
)
from benchmarks.segment_discs import moved
from benchmarks.segments import Frames, mean_dice
from cardioray.clinical.simpson import measure_cavity, single_plane_discs_ml


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.9, 4.0])
@pytest.mark.parametrize(
    ("volume_ml", "tolerance"),
    [
        (partial(upright_volume_ml, turned=turned_by_scipy), 0.02),
        (partial(upright_volume_ml, turned=turned_by_opencv), 0.02),
        (walked_volume_ml, 0.05),  # it walks on to the first pixel outside
    ],
)
def test_plain_loops_give_the_volume(
    volume_ml: Callable[[NDArray[np.uint8], float], float], tolerance: float, angle: float
) -> None:
    mask, _ = ventricle(85, 38, (0.55, 0.55), angle)
    expected = single_plane_discs_ml(measure_cavity(mask, (0.55, 0.55)))
    assert volume_ml(mask.view(np.uint8), 0.55) == pytest.approx(expected, rel=tolerance)


def test_label_maps_are_moved_with_their_spacing() -> None:
    labels = np.zeros((2, 64, 64), np.uint8)
    labels[0, 20:40, 25:35], labels[1, 20:40, 25:35] = 1, 2
    frames = Frames(labels[..., None], labels, np.array([[1.0, 1.0], [2.0, 2.0]]))
    maps, spacing = moved(frames, 20, np.random.default_rng(0))
    assert maps.shape == (20, 64, 64)
    for one, (side, _) in zip(maps, spacing, strict=True):
        assert one.max() == side
        assert (one > 0).sum() == pytest.approx(200, rel=0.05)
    assert len({one.tobytes() for one in maps}) == 20


def test_mean_dice_is_over_frames_and_structures() -> None:
    wanted = np.zeros((2, 4, 4), np.uint8)
    wanted[0, :2], wanted[1, 0] = 1, 2
    found = wanted.copy()
    found[1, 0, :2] = 0  # half of it: 2 * 2 / (2 + 4)
    assert mean_dice(found, wanted) == pytest.approx((1 + 2 / 3) / 2)
    assert mean_dice(wanted, wanted) == 1
