"""From a rank's rows to batches: in which order, and how they reach the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.data import DataIterator

from cardioray.data.ranks import Rows
from cardioray.data.reading import joined
from cardioray.data.sampling import Sampler, split, stacked, windows_of
from cardioray.tasks.base import Batch


def epoch_order(num_rows: int, *, seed: int, epoch: int, rank: int) -> Rows:
    """The order in which a rank goes through its rows in an epoch; depends on nothing else."""
    return np.random.default_rng((seed, epoch, rank)).permutation(num_rows)


@dataclass
class RowFeed:
    """The rows of one split on one rank.

    Small sets are read once through Ray Data and kept as uint8 in memory; larger ones are streamed
    anew every epoch, mixed in a buffer.

    Attributes:
        iterator: Ray Data's iterator over this rank's rows.
        rows: the rows, ascending.
        labels: per target the labels of these rows.
        cached: keep the arrays in memory.
        device: where batches go.
        sampler: what of a sample the network sees.
    """

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
        if self.cached:
            pieces = self._from_memory(batch_size, order)
        else:
            pieces = self._from_stream(batch_size, order is not None, buffer, seed)
        if not self.sampler.cuts:
            for positions, arrays in pieces:
                yield self.rows[positions], self._to_device(arrays, positions)
        elif order is not None:
            for positions, arrays in pieces:
                drawn = [
                    self.sampler.draw(sample, np.random.default_rng((seed, int(row))))
                    for row, sample in zip(self.rows[positions], split(arrays), strict=True)
                ]
                yield self.rows[positions], self._to_device(stacked(drawn), positions)
        else:
            for positions, arrays in windows_of(pieces, self.sampler, batch_size, thorough):
                yield self.rows[positions], self._to_device(arrays, positions)

    def _from_memory(
        self, batch_size: int, order: Rows | None
    ) -> Iterator[tuple[Rows, dict[str, NDArray[Any]]]]:
        if self._cache is None:
            self._cache = self._read_all()
        positions = np.arange(len(self.rows)) if order is None else order
        stop = len(positions) if order is None else len(positions) // batch_size * batch_size
        for start in range(0, stop, batch_size):
            chosen = positions[start : start + batch_size]
            yield chosen, {name: values[chosen] for name, values in self._cache.items()}

    def _from_stream(
        self, batch_size: int, training: bool, buffer: int, seed: int
    ) -> Iterator[tuple[Rows, dict[str, NDArray[Any]]]]:
        batches = self.iterator.iter_batches(
            batch_size=batch_size,
            batch_format="numpy",
            drop_last=training,
            local_shuffle_buffer_size=max(buffer, batch_size) if training else None,
            local_shuffle_seed=seed if training else None,
        )
        for batch in batches:
            rows = batch.pop("row")
            yield np.searchsorted(self.rows, rows), batch

    def _read_all(self) -> dict[str, NDArray[Any]]:
        pieces = list(self.iterator.iter_batches(batch_size=None, batch_format="numpy"))
        rows = np.concatenate([piece.pop("row") for piece in pieces])
        order = np.argsort(rows)
        assert np.array_equal(rows[order], self.rows), "the shards changed while they were read"
        return {name: joined([piece[name] for piece in pieces])[order] for name in pieces[0]}

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
