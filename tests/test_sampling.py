"""Windows of clips: where they begin, what they hold, and how their scores come together."""

from __future__ import annotations

import numpy as np
import pytest

from cardioray.data.clip import CLIP
from cardioray.data.sampling import (
    VALID,
    ClipSampling,
    Whole,
    mean_by_owner,
    middle_by_owner,
    split,
    stacked,
    windows_of,
)


def ramp(frames: int) -> dict[str, np.ndarray]:
    clip = np.arange(frames, dtype=np.uint8)[:, None, None, None]
    return {CLIP: np.broadcast_to(clip, (frames, 2, 2, 1))}


@pytest.mark.parametrize(("frames", "stride"), [(32, 2), (16, 2), (4, 1), (1, 1)])
def test_all_windows_are_those_of_echonet(frames: int, stride: int) -> None:
    every = ClipSampling(frames=frames, stride=stride, step=1, max_windows=1000)
    for length in (100, every.span, every.span + 1):
        assert every.starts(length, thorough=True) == list(range(length - every.span + 1))
    window = every.windows(ramp(100), thorough=True)[7]
    assert window[CLIP][:, 0, 0, 0].tolist() == list(range(7, 7 + every.span, stride))
    assert window[VALID] == frames


def test_a_short_clip_has_one_window_that_says_how_much_of_it_counts() -> None:
    sampling = ClipSampling(frames=32, stride=2)
    (window,) = sampling.windows(ramp(21), thorough=True)
    assert window[CLIP].shape == (32, 2, 2, 1)
    assert window[VALID] == 11
    assert window[CLIP][:11, 0, 0, 0].tolist() == list(range(0, 21, 2))
    assert not window[CLIP][11:].any()
    drawn = sampling.draw(ramp(21), np.random.default_rng(0))
    assert np.array_equal(drawn[CLIP], window[CLIP])


def test_random_windows_begin_anywhere_and_are_drawn_from_the_seed() -> None:
    sampling = ClipSampling(frames=8, stride=2)
    starts = {
        int(sampling.draw(ramp(30), np.random.default_rng(seed))[CLIP][0, 0, 0, 0])
        for seed in range(300)
    }
    assert starts == set(range(30 - sampling.span + 1))


def test_windows_are_bounded_and_evenly_spread() -> None:
    sampling = ClipSampling(frames=8, stride=1, step=1, max_windows=5, validation_windows=1)
    starts = sampling.starts(108, thorough=True)
    assert starts == [0, 25, 50, 75, 100]
    assert sampling.starts(108, thorough=False) == [50]
    assert sampling.count(ramp(108)) == 5
    assert sampling.possible(108) == 101


def test_scores_of_windows_come_together_by_clip() -> None:
    sampling = ClipSampling(frames=4, stride=1, step=2)
    clips = [ramp(length)[CLIP] for length in (4, 9, 3)]
    ragged = np.empty(3, dtype=object)
    ragged[:] = clips
    batches = [(np.array([5, 7, 9]), {CLIP: ragged})]
    owners, firsts = [], []
    for numbers, arrays in windows_of(iter(batches), sampling, 3, thorough=True):
        assert arrays[CLIP].shape[1:] == (4, 2, 2, 1)
        owners.append(numbers)
        firsts.append(arrays[CLIP][:, 0, 0, 0, 0].astype(np.float32))
    joined = np.concatenate(owners)
    assert joined.tolist() == [5, 7, 7, 7, 9]
    rows, means = mean_by_owner(joined, {"ef": np.concatenate(firsts)})
    assert rows.tolist() == [5, 7, 9]
    assert means["ef"].tolist() == [0.0, 2.0, 0.0]
    middle = middle_by_owner(joined, {"ef": np.array([5.0, 1.0, 9.0, 3.0, 7.0], np.float32)})
    assert middle["ef"].tolist() == [5.0, 9.0, 7.0]


def test_a_sample_that_is_seen_whole_stays_as_it_is() -> None:
    whole = Whole(("image",))
    sample = {"image": np.arange(4, dtype=np.uint8)}
    assert whole.windows(sample, thorough=True) == [sample]
    assert not whole.cuts
    assert np.array_equal(stacked(split({"image": np.eye(3)}))["image"], np.eye(3))
