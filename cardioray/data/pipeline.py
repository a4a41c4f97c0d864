"""Ray Data: files to shards, and shards to the rows a training worker asked for."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from cardioray import config, storage
from cardioray.data import cluster
from cardioray.data.image import UnreadableImage
from cardioray.data.manifest import Manifest
from cardioray.data.shards import (
    FORMAT_VERSION,
    INDEX,
    QUARANTINE,
    ROWS_PER_PART,
    SAMPLES,
    ShardIndex,
    ShardSet,
    decode_part,
    encode_part,
    read_index,
    write_index,
    write_table,
)

if TYPE_CHECKING:
    from ray.data import Dataset

log = logging.getLogger(__name__)

# A read task waits for the disk and copies bytes; a fraction of a core lets it run beside the
# training workers of a small machine.
READ_CPUS = 0.1
PARTS = "data"
REPLACED = "replaced.json"


class Decoder(Protocol):
    """The part of a task that `prepare` needs."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def columns(self) -> tuple[str, ...]: ...  # noqa: D102

    def decode_settings(self) -> Any: ...  # noqa: D102

    def decode(self, data: bytes, frames: str | None) -> Sequence[Any]: ...  # noqa: D102


@config.config
class PrepareConfig:
    """How shards are written.

    Attributes:
        sources_per_part: source files decoded into one part file; bounds a task's memory.
        max_bad: largest share of unreadable sources a run accepts.
        shared_storage: every node of the cluster sees the output folder.
        seed: order of the sources, so that a part is a fair sample of the whole.
    """

    sources_per_part: int = 256
    max_bad: float = 0.01
    shared_storage: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sources_per_part < 1:
            raise ValueError("sources_per_part must be at least 1.")
        if not 0 <= self.max_bad <= 1:
            raise ValueError("max_bad is a share between 0 and 1.")


def prepare(
    task: Decoder,
    manifest: Manifest,
    out: str,
    settings: PrepareConfig = PrepareConfig(),  # noqa: B008 (frozen)
    on_progress: Callable[[int, int], None] | None = None,
) -> ShardSet:
    """Decode, crop and resize every source of a manifest once, into shards.

    With the same sources and settings a second call does nothing. A part file is written whole
    or not at all and named by a hash of what went into it, so a killed call goes on where it was;
    shards.json is written last, so nothing half-written is ever trusted.

    A folder is written by one call at a time, but a training may still read what an earlier call
    with other settings wrote. So the parts of the shard set that this call replaces stay, until
    the next replacement; all older ones are removed once the new shards.json is there.

    Args:
        task: decodes the files.
        manifest: which files.
        out: folder or prefix.
        settings: sizes and limits.
        on_progress: called with the sources done and their total.

    Returns:
        The finished shards.

    Raises:
        ValueError: when more than `max_bad` of the sources cannot be read (with the list), when
            nothing can be, or when `out` is local on a cluster of several nodes.
    """
    cluster.connect()
    out = storage.absolute(out)
    cluster.require_shared(out, settings.shared_storage)
    request = {
        "format": FORMAT_VERSION,
        "task": task.name,
        "manifest": manifest.content_hash,
        "sources": storage.fingerprints(manifest.paths),
        "decode": config.to_dict(task.decode_settings()),
        "parts": [settings.sources_per_part, settings.seed],
    }
    request_hash = config.digest(request)
    index = read_index(out)
    if index is not None and index.request_hash == request_hash:
        log.info("%s is up to date: %d samples.", out, index.num_samples)
        return ShardSet.open(out)
    if index is not None:
        _remember_replaced(out, index)
        storage.remove(storage.join(out, INDEX))
    plans = _plan_parts(manifest, request_hash, settings)
    results = _run_parts(task, plans, out, len(manifest), on_progress)
    bad = [row for result in results for row in result.bad]
    _write_quarantine(out, bad)
    _refuse_too_many(bad, len(manifest), settings.max_bad, out)
    samples = _assemble(manifest, results)
    write_table(storage.join(out, SAMPLES), samples)
    index = _index(task, manifest, request_hash, results, samples)
    write_index(out, index)
    _remove_old_parts(out, index)
    return ShardSet.open(out)


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
    files = shards.files_of(wanted)
    parts = np.unique(wanted // ROWS_PER_PART)
    items = [
        {"file": file, "rows": wanted[wanted // ROWS_PER_PART == part]}
        for file, part in zip(files, parts, strict=True)
    ]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    return dataset.map_batches(
        _ReadPart(tuple(columns)), batch_size=None, num_cpus=READ_CPUS, batch_format="numpy"
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


@dataclass(frozen=True)
class _PartPlan:
    """Which sources become one part file."""

    number: int
    file: str
    positions: list[int]
    paths: list[str]
    frames: list[str | None]


@dataclass(frozen=True)
class _PartResult:
    """What became of them; `position` is the manifest row, `order` the place in the part."""

    number: int
    file: str
    position: list[int]
    frame: list[str]
    height: list[int]
    width: list[int]
    array_sha256: list[str]
    shapes: dict[str, list[list[int]]]
    array_bytes: int
    bad: list[tuple[str, str]]


def _plan_parts(manifest: Manifest, request_hash: str, settings: PrepareConfig) -> list[_PartPlan]:
    order = np.random.default_rng(settings.seed).permutation(len(manifest))
    paths = manifest.paths
    frames = [str(value) if value else None for value in manifest.table["frame"].fillna("")]
    plans: list[_PartPlan] = []
    for start in range(0, len(order), settings.sources_per_part):
        positions = [int(i) for i in order[start : start + settings.sources_per_part]]
        number = len(plans)
        plans.append(
            _PartPlan(
                number=number,
                file=f"{PARTS}/part-{number:05d}-{request_hash}.parquet",
                positions=positions,
                paths=[paths[i] for i in positions],
                frames=[frames[i] for i in positions],
            )
        )
    return plans


def _run_parts(
    task: Decoder,
    plans: list[_PartPlan],
    out: str,
    total: int,
    on_progress: Callable[[int, int], None] | None,
) -> list[_PartResult]:
    items = [{"plan": json.dumps(vars(plan))} for plan in plans]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
        _WritePart(task, out), num_cpus=1
    )
    results = []
    done = 0
    for row in dataset.iter_rows():
        result = _PartResult(**json.loads(row["result"]))
        results.append(result)
        done += len(plans[result.number].positions)
        if on_progress is not None:
            on_progress(done, total)
    return sorted(results, key=lambda result: result.number)


@dataclass(frozen=True)
class _WritePart:
    """Decodes the sources of one part and writes it, unless a finished one is there."""

    task: Decoder
    out: str

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        plan = _PartPlan(**json.loads(row["plan"]))
        # The result stands beside the part and is written after it: both or nothing counts.
        record = storage.join(self.out, plan.file.replace(".parquet", ".json"))
        if storage.exists(record):
            return {"result": storage.read_bytes(record).decode()}
        result, data = self._decode(plan)
        storage.write_bytes(storage.join(self.out, plan.file), data)
        text = json.dumps(vars(result))
        storage.write_bytes(record, text.encode())
        return {"result": text}

    def _decode(self, plan: _PartPlan) -> tuple[_PartResult, bytes]:
        arrays: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in self.task.columns}
        result = _PartResult(
            number=plan.number,
            file=plan.file,
            position=[],
            frame=[],
            height=[],
            width=[],
            array_sha256=[],
            shapes={name: [] for name in self.task.columns},
            array_bytes=0,
            bad=[],
        )
        for position, path, frames in zip(plan.positions, plan.paths, plan.frames, strict=True):
            try:
                samples = self.task.decode(storage.read_bytes(path), frames)
            except (UnreadableImage, FileNotFoundError) as error:
                result.bad.append((path, str(error)))
                continue
            for sample in samples:
                digest = hashlib.sha256()
                for name in self.task.columns:
                    array = sample.arrays[name]
                    arrays[name].append(array)
                    result.shapes[name].append(list(array.shape))
                    digest.update(array.tobytes())
                result.position.append(position)
                result.frame.append(sample.frame)
                result.height.append(sample.source_shape[0])
                result.width.append(sample.source_shape[1])
                result.array_sha256.append(digest.hexdigest())
        count = len(result.position)
        if count > ROWS_PER_PART:
            raise ValueError(f"{count} samples in one part; lower sources_per_part.")
        rows = plan.number * ROWS_PER_PART + np.arange(count, dtype=np.int64)
        size = sum(array.nbytes for values in arrays.values() for array in values)
        counted = {**vars(result), "array_bytes": size}
        return _PartResult(**counted), encode_part(dict(arrays), rows)


def _assemble(manifest: Manifest, results: list[_PartResult]) -> pd.DataFrame:
    """One row a sample: the manifest's row, the frame it came from, and where its array is."""
    pieces = []
    for result in results:
        piece = manifest.table.iloc[result.position].reset_index(drop=True)
        piece["row"] = result.number * ROWS_PER_PART + np.arange(len(piece), dtype=np.int64)
        piece["frame"] = result.frame
        piece["height_px"] = result.height
        piece["width_px"] = result.width
        piece["array_sha256"] = result.array_sha256
        pieces.append(piece)
    table = pd.concat(pieces, ignore_index=True)
    several = table["sample_id"].duplicated(keep=False)
    table["sample_id"] = table["sample_id"].where(
        ~several, table["sample_id"] + "#" + table["frame"]
    )
    return table


def _remember_replaced(out: str, index: ShardIndex) -> None:
    """Note the parts of the shard set that is about to be replaced."""
    text = json.dumps({"parts": index.parts}, indent=2)
    storage.write_bytes(storage.join(out, REPLACED), text.encode())


def _remove_old_parts(out: str, index: ShardIndex) -> None:
    """Remove part files and their records, but those of the index and of the one it replaced."""
    keep = set(index.parts)
    replaced = storage.join(out, REPLACED)
    if storage.exists(replaced):
        keep |= set(json.loads(storage.read_bytes(replaced))["parts"])
    kept = {part.removesuffix(".parquet") for part in keep}
    for file in storage.list_files(storage.join(out, PARTS)):
        name, _, ending = file.rsplit("/", 1)[-1].rpartition(".")
        if ending in ("parquet", "json") and f"{PARTS}/{name}" not in kept:
            storage.remove(file)


def _write_quarantine(out: str, bad: list[tuple[str, str]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["source", "reason"])
    writer.writerows(bad)
    storage.write_bytes(storage.join(out, QUARANTINE), buffer.getvalue().encode())


def _refuse_too_many(bad: list[tuple[str, str]], total: int, max_bad: float, out: str) -> None:
    if len(bad) <= max_bad * total and len(bad) < total:
        return
    shown = "\n".join(f"  {source}: {reason}" for source, reason in bad[:20])
    more = f"\n  ... and {len(bad) - 20} more" if len(bad) > 20 else ""
    raise ValueError(
        f"{len(bad)} of {total} sources cannot be read, more than max_bad = {max_bad:.1%}:\n"
        f"{shown}{more}\nThe whole list is {storage.join(out, QUARANTINE)}. Mend or remove these "
        "files, or raise --max-bad."
    )


def _index(
    task: Decoder,
    manifest: Manifest,
    request_hash: str,
    results: list[_PartResult],
    samples: pd.DataFrame,
) -> ShardIndex:
    identity = samples[["sample_id", "patient_id", "array_sha256"]].sort_values("sample_id")
    columns: dict[str, list[int] | None] = {}
    for name in task.columns:
        shapes = {tuple(shape) for result in results for shape in result.shapes[name]}
        columns[name] = list(shapes.pop()) if len(shapes) == 1 else None
    return ShardIndex(
        format_version=FORMAT_VERSION,
        task=task.name,
        request_hash=request_hash,
        dataset_hash=hashlib.sha256(identity.to_csv(index=False).encode()).hexdigest()[:16],
        decode_settings=config.to_dict(task.decode_settings()),
        columns=columns,
        parts=[result.file for result in results],
        num_samples=len(samples),
        num_bad=sum(len(result.bad) for result in results),
        array_bytes=sum(result.array_bytes for result in results),
        patients_known=manifest.patients_known,
        warnings=list(manifest.warnings),
    )


def _stack(values: list[NDArray[np.uint8]]) -> NDArray[Any]:
    """(N, ...) where the shapes agree, else an object array of ragged ones."""
    if len({value.shape for value in values}) == 1:
        return np.stack(values)
    ragged = np.empty(len(values), dtype=object)
    ragged[:] = values
    return ragged
