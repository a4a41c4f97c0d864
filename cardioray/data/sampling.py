"""From stored arrays to what a network takes: windows of clips; pictures as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cardioray.config import config
from cardioray.data.clip import CLIP

Arrays = Mapping[str, NDArray[Any]]

VALID = "valid"


class Sampler(Protocol):
    """What of a stored sample a network sees.

    In training one random window of it; elsewhere several fixed ones, whose answers are averaged.
    """

    @property
    def columns(self) -> tuple[str, ...]:
        """Arrays that the network takes, in order."""

    @property
    def cuts(self) -> bool:
        """False where a sample is seen whole: stored arrays are then stacked as they are."""

    def draw(self, arrays: Arrays, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """A random window of one sample."""

    def windows(self, arrays: Arrays, *, thorough: bool) -> list[dict[str, NDArray[Any]]]:
        """The windows of one sample that are scored; few of them, or all where `thorough`."""

    def count(self, arrays: Arrays) -> int:
        """How many windows of one sample are scored where `thorough`."""


class Whole:
    """Samples as they are stored."""

    cuts = False

    def __init__(self, columns: tuple[str, ...]) -> None:
        self.columns = columns

    def draw(self, arrays: Arrays, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """The sample."""
        return dict(arrays)

    def windows(self, arrays: Arrays, *, thorough: bool) -> list[dict[str, NDArray[Any]]]:
        """The sample."""
        return [dict(arrays)]

    def count(self, arrays: Arrays) -> int:
        """One."""
        return 1


@config
class ClipSampling:
    """Which frames of a clip a network sees at a time.

    Attributes:
        frames: of a window.
        stride: frames of the clip from one frame of the window to the next.
        step: frames between the beginnings of two windows that are scored; 1 scores every window
            there is, as EchoNet-Dynamic does.
        max_windows: most windows of a clip that are scored, evenly spread; bounds the time for a
            long one.
        validation_windows: windows scored after each epoch.
    """

    frames: int = Field(default=32, ge=1, le=255)
    stride: int = Field(default=2, ge=1)
    step: int = Field(default=8, ge=1)
    max_windows: int = Field(default=64, ge=1)
    validation_windows: int = Field(default=1, ge=1)

    @property
    def columns(self) -> tuple[str, ...]:
        """The frames, and how many of them are the clip's own."""
        return (CLIP, VALID)

    @property
    def cuts(self) -> bool:
        """Clips are of any length."""
        return True

    @property
    def span(self) -> int:
        """Frames of the clip from the first to the last one of a window."""
        return (self.frames - 1) * self.stride + 1

    def starts(self, num_frames: int, *, thorough: bool) -> list[int]:
        """First frames of the windows of a clip that are scored.

        A clip shorter than a window has one, from its first frame.
        """
        last = max(num_frames - self.span, 0)
        wanted = self.max_windows if thorough else self.validation_windows
        every = list(range(0, last + 1, self.step)) if thorough else list(range(last + 1))
        if len(every) <= wanted:
            return every
        if wanted == 1:
            return [every[len(every) // 2]]
        chosen = np.linspace(0, len(every) - 1, wanted).round().astype(int)
        return [every[i] for i in chosen]

    def possible(self, num_frames: int) -> int:
        """Windows of a clip that begin `step` frames apart, of which `max_windows` are scored."""
        return max(num_frames - self.span, 0) // self.step + 1

    def cut(self, clip: NDArray[np.uint8], start: int) -> dict[str, NDArray[Any]]:
        """The window that begins at a frame; what the clip is too short for is black.

        `valid` says how many frames are the clip's own. The network sets the others to zero after
        normalisation, as EchoNet-Dynamic pads.
        """
        picked = clip[start : start + self.span : self.stride]
        valid = np.array(len(picked), np.uint8)
        if len(picked) < self.frames:
            missing = np.zeros((self.frames - len(picked), *clip.shape[1:]), np.uint8)
            picked = np.concatenate([picked, missing])
        return {CLIP: picked, VALID: valid}

    def draw(self, arrays: Arrays, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """A window that begins anywhere."""
        clip = arrays[CLIP]
        return self.cut(clip, int(rng.integers(max(len(clip) - self.span, 0) + 1)))

    def windows(self, arrays: Arrays, *, thorough: bool) -> list[dict[str, NDArray[Any]]]:
        """The windows at `starts`."""
        clip = arrays[CLIP]
        return [self.cut(clip, start) for start in self.starts(len(clip), thorough=thorough)]

    def count(self, arrays: Arrays) -> int:
        """As many as there are `starts`."""
        return len(self.starts(len(arrays[CLIP]), thorough=True))


def draw(sampler: Sampler, arrays: Arrays, row: int, seed: int) -> dict[str, NDArray[Any]]:
    """The random window of a row in an epoch, of which `seed` is; the same wherever it is cut."""
    return sampler.draw(arrays, np.random.default_rng((seed, int(row))))


def stacked(windows: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
    """Windows of several samples as one batch."""
    return {name: np.stack([window[name] for window in windows]) for name in windows[0]}


def one_batch(arrays: Arrays) -> dict[str, NDArray[Any]]:
    """One sample as a batch."""
    return {name: values[None] for name, values in arrays.items()}


def split(arrays: Arrays) -> list[dict[str, NDArray[Any]]]:
    """The samples of a batch, which may be ragged."""
    count = len(next(iter(arrays.values())))
    return [{name: values[i] for name, values in arrays.items()} for i in range(count)]


def windows_of(
    batches: Iterable[tuple[NDArray[np.int64], Arrays]],
    sampler: Sampler,
    batch_size: int,
    thorough: bool,
) -> Iterator[tuple[NDArray[np.int64], dict[str, NDArray[Any]]]]:
    """Batches of windows, each with the number of the sample it belongs to.

    Args:
        batches: numbers of samples, and their stored arrays.
        sampler: cuts the windows.
        batch_size: windows of a batch.
        thorough: every window that is scored, or few.
    """
    owners: list[int] = []
    waiting: list[dict[str, NDArray[Any]]] = []
    for numbers, arrays in batches:
        for number, sample in zip(numbers, split(arrays), strict=True):
            for window in sampler.windows(sample, thorough=thorough):
                owners.append(int(number))
                waiting.append(window)
                if len(waiting) == batch_size:
                    yield np.array(owners), stacked(waiting)
                    owners, waiting = [], []
    if waiting:
        yield np.array(owners), stacked(waiting)


def middle_by_owner(
    owners: NDArray[np.int64], scores: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """The score of the middle window of each sample, samples ascending; windows lie in order."""
    _, first, counts = np.unique(owners, return_index=True, return_counts=True)
    return {name: values[first + counts // 2] for name, values in scores.items()}


def mean_by_owner(
    owners: NDArray[np.int64], scores: Mapping[str, NDArray[np.float32]]
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float32]]]:
    """The mean score of the windows of each sample, samples ascending."""
    numbers, place, counts = np.unique(owners, return_inverse=True, return_counts=True)
    means = {
        name: (np.bincount(place, weights=values, minlength=len(numbers)) / counts).astype(
            np.float32
        )
        for name, values in scores.items()
    }
    return numbers, means
