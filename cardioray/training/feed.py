"""From a rank's rows to batches: in which order, and how they reach the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from ray.data import DataIterator

from cardioray.data.ranks import Rows
from cardioray.data.reading import draw_windows, joined
from cardioray.data.sampling import Sampler, draw, split, stacked, windows_of
from cardioray.data.shards import ShardSet
from cardioray.tasks.base import Batch

Item = TypeVar("Item")


def epoch_order(num_rows: int, *, seed: int, epoch: int, rank: int) -> Rows:
    """The order in which a rank goes through its rows in an epoch; depends on nothing else."""
    return np.random.default_rng((seed, epoch, rank)).permutation(num_rows)


def mix(items: Iterable[Item], buffer: int, rng: np.random.Generator) -> Iterator[Item]:
    """The items in random order, of which `buffer` are held to draw from."""
    held: list[Item] = []
    for item in items:
        held.append(item)
        if len(held) >= buffer:
            place = int(rng.integers(len(held)))
            held[place], held[-1] = held[-1], held[place]
            yield held.pop()
    for place in rng.permutation(len(held)):
        yield held[place]


@dataclass
class RowFeed:
    """The rows of one split on one rank.

    Small sets are read once through Ray Data and kept as uint8 in memory; larger ones are streamed
    anew every epoch, mixed in a buffer. Training streams windows, which are cut where the shards
    are read; scoring streams samples as they are stored, of which it may want every window.

    Attributes:
        shards: opened shards.
        columns: arrays to read.
        iterator: Ray Data's iterator over this rank's rows, ascending, with `columns`.
        rows: the rows, ascending.
        labels: per target the labels of these rows.
        cached: keep the arrays in memory.
        device: where batches go.
        sampler: what of a sample the network sees.
    """

    shards: ShardSet
    columns: tuple[str, ...]
    iterator: DataIterator
    rows: Rows
    labels: Mapping[str, NDArray[np.float32]]
    cached: bool
    device: torch.device
    sampler: Sampler

    def __post_init__(self) -> None:
        self._cache: dict[str, NDArray[Any]] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def batches(
        self,
        batch_size: int,
        *,
        order: Rows | None,
        buffer: int = 1,
        seed: int = 0,
        thorough: bool = True,
    ) -> Iterator[tuple[Rows, Batch]]:
        """Batches with the row numbers they hold.

        In training a row is there once, by a random window where the sampler cuts. Without an
        order, it is there once for every window that is scored, one after the other.

        Args:
            batch_size: samples, or windows, of a batch.
            order: training order over positions in `rows`, incomplete last batch dropped; None
                goes through all rows ascending and keeps the last batch.
            buffer: samples mixed while streaming in training.
            seed: of that mixing, and of the windows.
            thorough: without an order, every window that `Sampler.windows` has.
        """
        if not len(self.rows):
            return
        if order is None:
            yield from self._scored(batch_size, thorough)
        elif self.cached:
            yield from self._drawn_from_memory(batch_size, order, seed)
        else:
            yield from self._drawn_from_stream(batch_size, buffer, seed)

    def _scored(self, batch_size: int, thorough: bool) -> Iterator[tuple[Rows, Batch]]:
        """Every row, by the windows that are scored."""
        pieces = self._in_memory(batch_size) if self.cached else self._stream(batch_size)
        if self.sampler.cuts:
            pieces = windows_of(pieces, self.sampler, batch_size, thorough)
        for positions, arrays in pieces:
            yield self.rows[positions], self._to_device(arrays, positions)

    def _drawn_from_memory(
        self, batch_size: int, order: Rows, seed: int
    ) -> Iterator[tuple[Rows, Batch]]:
        for start in range(0, len(order) - batch_size + 1, batch_size):
            chosen = order[start : start + batch_size]
            arrays = {name: values[chosen] for name, values in self._all().items()}
            if self.sampler.cuts:
                samples = zip(self.rows[chosen], split(arrays), strict=True)
                arrays = stacked([draw(self.sampler, sample, row, seed) for row, sample in samples])
            yield self.rows[chosen], self._to_device(arrays, chosen)

    def _drawn_from_stream(
        self, batch_size: int, buffer: int, seed: int
    ) -> Iterator[tuple[Rows, Batch]]:
        dataset = draw_windows(self.shards, self.rows, self.columns, self.sampler, seed)
        blocks = dataset.iter_batches(batch_size=None, batch_format="numpy")
        drawn = (
            (row, {name: value.copy() for name, value in window.items()})  # outlives its block
            for block in blocks
            for row, window in zip(block.pop("row"), split(block), strict=True)
        )
        mixed = mix(drawn, buffer, np.random.default_rng(seed))
        for batch in iter(lambda: list(islice(mixed, batch_size)), []):
            if len(batch) == batch_size:
                rows = np.array([row for row, _ in batch])
                windows = stacked([window for _, window in batch])
                yield rows, self._to_device(windows, np.searchsorted(self.rows, rows))

    def _in_memory(self, batch_size: int) -> Iterator[tuple[Rows, dict[str, NDArray[Any]]]]:
        for positions in np.split(np.arange(len(self)), range(batch_size, len(self), batch_size)):
            yield positions, {name: values[positions] for name, values in self._all().items()}

    def _stream(self, batch_size: int) -> Iterator[tuple[Rows, dict[str, NDArray[Any]]]]:
        for batch in self.iterator.iter_batches(batch_size=batch_size, batch_format="numpy"):
            rows = batch.pop("row")
            yield np.searchsorted(self.rows, rows), batch

    def _all(self) -> dict[str, NDArray[Any]]:
        """The arrays of all rows, read when they are first asked for."""
        if self._cache is None:
            pieces = list(self.iterator.iter_batches(batch_size=None, batch_format="numpy"))
            rows = np.concatenate([piece.pop("row") for piece in pieces])
            order = np.argsort(rows)
            assert np.array_equal(rows[order], self.rows), "the shards changed while they were read"
            self._cache = {
                name: joined([piece[name] for piece in pieces])[order] for name in pieces[0]
            }
        return self._cache

    def _to_device(self, arrays: Mapping[str, NDArray[Any]], positions: Rows) -> Batch:
        # Arrays straight from Ray's object store are read-only; PyTorch wants its own.
        batch = {
            name: torch.from_numpy(np.require(v, requirements=["C", "W"]))
            for name, v in arrays.items()
        }
        for name, values in self.labels.items():
            batch[name] = torch.from_numpy(values[positions])
        if self.device.type == "cuda":
            return {k: v.pin_memory().to(self.device, non_blocking=True) for k, v in batch.items()}
        return batch
