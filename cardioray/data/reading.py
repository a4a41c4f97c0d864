"""Ray Data: from shards to the rows that someone asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from cardioray import storage
from cardioray.data import cluster
from cardioray.data.shards import ShardSet, decode_part

if TYPE_CHECKING:
    from ray.data import Dataset

# A read task waits for the disk and copies bytes; a fraction of a core lets it run beside the
# training workers of a small machine.
READ_CPUS = 0.1
_MEASURED_ROWS = 128


def read_rows(shards: ShardSet, rows: NDArray[np.int64], columns: Sequence[str]) -> Dataset:
    """A Ray dataset of some rows of a shard set, in the order of `rows` within each part.

    Args:
        shards: opened shards.
        rows: row numbers, ascending.
        columns: array columns to read.

    Returns:
        A dataset with `row` and the array columns; ragged columns stay ragged.
    """
    wanted = np.asarray(rows, dtype=np.int64)
    assert len(wanted) > 0
    assert (np.diff(wanted) > 0).all()
    files, numbers = shards.files_of(wanted), shards.file_numbers(wanted)
    items = [
        {"file": file, "rows": wanted[numbers == number]}
        for file, number in zip(files, np.unique(numbers), strict=True)
    ]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    # Ray would start a process for every part at once, each of them seconds of a core; those that
    # come too late for their part would start up beside the training.
    readers = max(2, int(cluster.capacity().cpus // 4))
    return dataset.map_batches(
        _ReadPart(tuple(columns)),
        batch_size=None,
        num_cpus=READ_CPUS,
        batch_format="numpy",
        compute=ray.data.TaskPoolStrategy(size=min(readers, len(items))),
    )


def take_rows(
    shards: ShardSet, rows: NDArray[np.int64], columns: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """The arrays of some rows of a shard set, all in memory, in the order of `rows`.

    Args:
        shards: opened shards.
        rows: row numbers, ascending.
        columns: array columns to read.
    """
    batches = read_rows(shards, rows, columns).iter_batches(batch_size=None, batch_format="numpy")
    pieces = list(batches)
    order = np.argsort(np.concatenate([piece["row"] for piece in pieces]))
    return {name: joined([piece[name] for piece in pieces])[order] for name in columns}


def pixel_statistics(
    shards: ShardSet, rows: NDArray[np.int64], column: str, seed: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in grey levels, of a sample of rows.

    As EchoNet-Dynamic measures them: over every pixel of `_MEASURED_ROWS` training clips.
    """
    count = min(_MEASURED_ROWS, len(rows))
    chosen = np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))
    totals: list[NDArray[np.float64]] = []
    for batch in read_rows(shards, chosen, [column]).iter_batches(
        batch_size=16, batch_format="numpy"
    ):
        for array in batch[column]:
            flat = array.reshape(-1, array.shape[-1])
            counts = [np.bincount(channel, minlength=256) for channel in flat.T]
            totals.append(np.array(counts, np.float64))
    histogram = np.sum(totals, axis=0)
    levels = np.arange(256)
    mean = histogram @ levels / histogram.sum(axis=1)
    variance = histogram @ levels**2 / histogram.sum(axis=1) - mean**2
    std = np.sqrt(np.maximum(variance, 1.0))
    return tuple(map(float, mean)), tuple(map(float, std))


@dataclass(frozen=True)
class _ReadPart:
    """Reads the wanted rows of one part file; a block of the dataset names one file."""

    columns: tuple[str, ...]

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, Any]:
        rows: list[NDArray[np.int64]] = []
        arrays: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in self.columns}
        for file, wanted in zip(batch["file"], batch["rows"], strict=True):
            names = ["row", *(n for c in self.columns for n in (c, f"{c}_shape"))]
            filesystem, path = storage.filesystem(str(file))
            table = pq.read_table(path, columns=names, filesystem=filesystem)
            keep = np.flatnonzero(np.isin(table.column("row").to_numpy(), wanted))
            table = table.take(keep)
            rows.append(table.column("row").to_numpy())
            for name, values in decode_part(table, self.columns).items():
                arrays[name].extend(values)
        return {"row": np.concatenate(rows)} | {n: _stack(v) for n, v in arrays.items()}


def joined(pieces: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Arrays of several batches as one, (N, ...), or an object array where samples are ragged."""
    if len({piece.shape[1:] for piece in pieces}) == 1 and pieces[0].dtype != object:
        return np.concatenate(pieces)
    return _stack([sample for piece in pieces for sample in piece])


def _stack(values: list[NDArray[np.uint8]]) -> NDArray[Any]:
    """(N, ...) where the shapes agree, else an object array of ragged ones."""
    if len({value.shape for value in values}) == 1:
        return np.stack(values)
    ragged = np.empty(len(values), dtype=object)
    ragged[:] = values
    return ragged
