"""Beats from a curve over frames."""

from __future__ import annotations

import numpy as np
import pytest

from cardioray.clinical.beats import beat_period, values_by_beat


@pytest.mark.parametrize("rate", [45, 60, 75, 110, 150])
@pytest.mark.parametrize("fps", [30.0, 50.0])
def test_the_period_is_that_of_the_curve(rate: int, fps: float) -> None:
    frames = np.arange(int(3.5 * fps))
    phase = 2 * np.pi * frames * rate / 60 / fps
    curve = 55 + 2 * np.cos(phase) + 0.8 * np.sin(2 * phase) + 0.02 * frames
    noisy = curve + np.random.default_rng(0).normal(0, 0.2, len(frames))
    found = beat_period(noisy, fps)
    assert found is not None
    assert found == pytest.approx(fps * 60 / rate, rel=0.08)


def test_noise_and_a_constant_have_no_period() -> None:
    assert beat_period(np.full(100, 55.0), 50.0) is None
    assert beat_period(np.linspace(50, 60, 100), 50.0) is None
    assert beat_period(np.array([55.0, 56.0]), 50.0) is None


def test_every_beat_has_its_own_value() -> None:
    fps, period, first = 50.0, 40, 10
    starts = np.arange(0, 175, 2)
    # Windows reach over the change from one beat's EF to the next one's.
    level = np.interp(starts, [70, 110], [50, 52])
    values = level + 2 * np.cos(2 * np.pi * (starts - first) / period)
    beats = values_by_beat(starts, values, fps)
    assert [beat.first_frame for beat in beats] == [10, 50, 90, 130]
    assert [beat.windows for beat in beats] == [20] * 4
    assert beats[0].value == pytest.approx(50, abs=0.2)
    assert beats[-1].value == pytest.approx(52, abs=0.2)
    assert beats[0].last_frame < beats[1].first_frame


def test_without_beats_all_windows_are_one_value() -> None:
    (only,) = values_by_beat(np.array([0]), np.array([48.0]), 30.0)
    assert (only.value, only.windows) == (48.0, 1)
    (flat,) = values_by_beat(np.arange(50), np.full(50, 48.0), 30.0)
    assert (flat.value, flat.windows) == (48.0, 50)
