"""Ray Data: from shards to the rows that someone asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray
from ray.data import ExecutionOptions

from cardioray import storage
from cardioray.data import cluster
from cardioray.data.sampling import Sampler, draw, stacked
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
    return _read(_parts(shards, rows), _ReadPart(tuple(columns)))


def draw_windows(
    shards: ShardSet,
    rows: NDArray[np.int64],
    columns: Sequence[str],
    sampler: Sampler,
    seed: int,
) -> Dataset:
    """What a network sees of some rows in one epoch of training: one random window of each.

    Windows are cut where parts are read, so that whole clips, several times their size, travel no
    further. Parts come in random order, and so do the rows of a part; the same seed gives the same
    windows in the same order.

    Args:
        shards: opened shards.
        rows: row numbers, ascending.
        columns: array columns to read.
        sampler: cuts the windows.
        seed: of the windows and their order.

    Returns:
        A dataset with `row` and the columns of the sampler.
    """
    items = _parts(shards, rows)
    mixed = [items[i] for i in np.random.default_rng(seed).permutation(len(items))]
    dataset = _read(mixed, _DrawWindows(_ReadPart(tuple(columns)), sampler, seed))
    dataset.context.execution_options = ExecutionOptions(preserve_order=True)
    dataset.context.enable_progress_bars = False
    return dataset


def _parts(shards: ShardSet, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    """The files that hold these rows, each with its share of them."""
    wanted = np.asarray(rows, dtype=np.int64)
    assert len(wanted) > 0
    assert (np.diff(wanted) > 0).all()
    files, numbers = shards.files_of(wanted), shards.file_numbers(wanted)
    return [
        {"file": file, "rows": wanted[numbers == number]}
        for file, number in zip(files, np.unique(numbers), strict=True)
    ]


def _read(
    items: Sequence[dict[str, Any]], reader: Callable[[dict[str, NDArray[Any]]], dict[str, Any]]
) -> Dataset:
    dataset = ray.data.from_items(list(items), override_num_blocks=len(items))
    # Ray would start a process for every part at once, each of them seconds of a core; those that
    # come too late for their part would start up beside the training.
    readers = max(2, int(cluster.capacity().cpus // 4))
    return dataset.map_batches(
        reader,
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
        rows, arrays = self.read(batch)
        return {"row": rows} | {name: _stack(values) for name, values in arrays.items()}

    def read(
        self, batch: dict[str, NDArray[Any]]
    ) -> tuple[NDArray[np.int64], dict[str, list[NDArray[np.uint8]]]]:
        """The rows, and a list of their arrays for each column."""
        rows: list[NDArray[np.int64]] = []
        arrays: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in self.columns}
        for file, wanted in zip(batch["file"], batch["rows"], strict=True):
            names = ["row", *(n for c in self.columns for n in (c, f"{c}_shape"))]
            filesystem, path = storage.filesystem(str(file))
            table = pq.read_table(path, columns=names, filesystem=filesystem)
            stored = table.column("row").to_numpy()
            keep = np.flatnonzero(np.isin(stored, wanted))
            rows.append(stored[keep])
            for name, values in decode_part(table, self.columns, keep).items():
                arrays[name].extend(values)
        return np.concatenate(rows), arrays


@dataclass(frozen=True)
class _DrawWindows:
    """Reads a part as `reader` does, and gives one window of each row, the rows mixed."""

    reader: _ReadPart
    sampler: Sampler
    seed: int

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, Any]:
        rows, arrays = self.reader.read(batch)
        order = np.random.default_rng((self.seed, int(rows[0]))).permutation(len(rows))
        drawn = []
        for i in order:
            sample = {name: values[i] for name, values in arrays.items()}
            drawn.append(draw(self.sampler, sample, rows[i], self.seed))
        return {"row": rows[order]} | stacked(drawn)


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
