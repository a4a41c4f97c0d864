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
    return {name: np.concatenate([piece[name] for piece in pieces])[order] for name in columns}


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


def _stack(values: list[NDArray[np.uint8]]) -> NDArray[Any]:
    """(N, ...) where the shapes agree, else an object array of ragged ones."""
    if len({value.shape for value in values}) == 1:
        return np.stack(values)
    ragged = np.empty(len(values), dtype=object)
    ragged[:] = values
    return ragged
