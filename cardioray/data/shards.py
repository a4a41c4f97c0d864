"""Prepared shards: decoded, resized uint8 arrays in Parquet, and the table that describes them.

A shard set is a folder or prefix:

    shards.json        written last; names the files that belong to it, and no other is trusted
    data/samples-*.parquet  one row a sample: ids, source, split, targets, covariates, and `row`
    data/part-*.parquet  the arrays: `row` and one tensor column an array
    quarantine.csv     source and reason of what the last `prepare` could not read

`row` is `part * ROWS_PER_PART + position`, so that a sample's file is known from its number. A part
whose arrays would not fit in memory at once lies in several files, one after another.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cardioray import storage

FORMAT_VERSION = 1
ROWS_PER_PART = 1 << 20
INDEX = "shards.json"
SAMPLES = "samples.parquet"
QUARANTINE = "quarantine.csv"


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The content of shards.json.

    Attributes:
        format_version: layout of the folder.
        task: task that decoded the files.
        request_hash: over sources, their sizes and times, and every setting decoding depends on.
        dataset_hash: over the decoded arrays and the samples' ids.
        decode_settings: the settings themselves, in their written form.
        columns: array columns and the shape of one sample; null where it varies.
        parts: files of arrays below the folder, in the order of their rows.
        samples: file of the table of samples below the folder.
        first_rows: first row of each file; empty where each is a part of its own.
        num_samples: rows in all.
        num_bad: sources in quarantine.
        num_unfetched: those among them that could not be fetched; another run tries them again.
        array_bytes: size of all arrays in memory.
        patients_known: False when studies or files had to be taken for patients.
        warnings: what the manifest reader wants every later step to know.
    """

    format_version: int
    task: str
    request_hash: str
    dataset_hash: str
    decode_settings: dict[str, Any]
    columns: dict[str, list[int] | None]
    parts: list[str]
    num_samples: int
    num_bad: int
    array_bytes: int
    patients_known: bool
    warnings: list[str]
    samples: str = SAMPLES
    first_rows: list[int] = field(default_factory=list)
    num_unfetched: int = 0


@dataclass(frozen=True)
class ShardSet:
    """Prepared shards, opened.

    Attributes:
        path: folder or prefix.
        index: what shards.json says.
        samples: the table of samples, sorted by `row`.
    """

    path: str
    index: ShardIndex
    samples: pd.DataFrame

    @classmethod
    def open(cls, path: str) -> ShardSet:
        """Open a finished shard set.

        Raises:
            ValueError: when `path` holds none, or one of another format.
        """
        # Workers have working folders of their own.
        path = storage.absolute(path)
        index = read_index(path)
        if index is None:
            raise ValueError(
                f"{path} holds no finished shards ({INDEX} is missing). Make them with: "
                f"cardioray data prepare TASK DATA --out {path}"
            )
        table = pd.read_parquet(io.BytesIO(storage.read_bytes(storage.join(path, index.samples))))
        return cls(path=path, index=index, samples=table)

    def files_of(self, rows: NDArray[np.int64]) -> list[str]:
        """The part files that hold these rows, in order, as full paths."""
        numbers = np.unique(self.file_numbers(rows))
        return [storage.join(self.path, self.index.parts[number]) for number in numbers]

    def file_numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each row the position of its file in `index.parts`."""
        if not self.index.first_rows:
            return rows // ROWS_PER_PART
        return np.searchsorted(self.index.first_rows, rows, side="right") - 1


def read_index(path: str) -> ShardIndex | None:
    """What shards.json says, or None when there is none.

    Raises:
        ValueError: when another version of CardioRay wrote it.
    """
    file = storage.join(path, INDEX)
    if not storage.exists(file):
        return None
    values = json.loads(storage.read_bytes(file))
    if values["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path} has shard format {values['format_version']}, this version reads "
            f"{FORMAT_VERSION}; prepare the data again into an empty folder."
        )
    return ShardIndex(**values)


def write_index(path: str, index: ShardIndex) -> None:
    """Write shards.json: from here on the shards are trusted."""
    text = json.dumps(asdict(index), indent=2)
    storage.write_bytes(storage.join(path, INDEX), text.encode())


def write_quarantine(path: str, bad: Sequence[Sequence[str]]) -> None:
    """Write the files that could not be read as CSV with the columns source and reason."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["source", "reason"])
    writer.writerows(bad)
    storage.write_bytes(path, buffer.getvalue().encode())


def write_table(path: str, table: pd.DataFrame) -> None:
    """Write a table as one Parquet file."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    storage.write_bytes(path, buffer.getvalue())


def encode_part(
    arrays: Mapping[str, Sequence[NDArray[np.uint8]]], rows: NDArray[np.int64]
) -> memoryview:
    """One part file: `row` and a tensor column an array, of one shape or ragged in the first axis.

    Each column holds the flattened bytes of a sample; its shape stands beside it, so that any
    Parquet reader can open a part and ragged clips cost no padding.
    """
    columns: dict[str, pa.Array | pa.ChunkedArray] = {"row": pa.array(rows)}
    for name, values in arrays.items():
        # A chunk a sample, so that its bytes stay where they are until they are compressed.
        columns[name] = pa.chunked_array([_binary(value) for value in values], pa.large_binary())
        shapes = [list(value.shape) for value in values]
        columns[f"{name}_shape"] = pa.array(shapes, type=pa.list_(pa.int32()))
    sink = pa.BufferOutputStream()
    # Medical grey levels barely compress; the fastest codec keeps reading near memory speed.
    pq.write_table(
        pa.table(columns), sink, compression="lz4", use_dictionary=False, write_statistics=False
    )
    return memoryview(sink.getvalue())


def _binary(value: NDArray[np.uint8]) -> pa.Array:
    """The bytes of an array as a column of one value, without a copy."""
    ends = np.array([0, value.nbytes], np.int64)
    data = np.ascontiguousarray(value).reshape(-1)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), 1, buffers)


def decode_part(
    table: pa.Table, names: Sequence[str], positions: NDArray[np.int64] | None = None
) -> dict[str, list[NDArray[np.uint8]]]:
    """The arrays of a part file, or of some of its positions, without a copy of their bytes."""
    wanted = range(len(table)) if positions is None else positions.tolist()
    arrays: dict[str, list[NDArray[np.uint8]]] = {}
    for name in names:
        stored, shapes = table.column(name), table.column(f"{name}_shape")
        arrays[name] = [
            np.frombuffer(stored[i].as_buffer(), dtype=np.uint8).reshape(shapes[i].as_py())
            for i in wanted
        ]
    return arrays
