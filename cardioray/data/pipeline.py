"""Ray Data: files to shards."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd
import ray
from numpy.typing import NDArray

from cardioray import config, storage
from cardioray.data import cluster
from cardioray.data.decoding import DecodedSample, Decoder, LabelledDecoder, stored_columns
from cardioray.data.frames import READ_ERRORS, UnreadableImage
from cardioray.data.isolation import IsolatedDecoder, IsolationConfig, isolated
from cardioray.data.manifest import Manifest
from cardioray.data.nifti import read_labels, read_source
from cardioray.data.shards import (
    FORMAT_VERSION,
    QUARANTINE,
    ROWS_PER_PART,
    ShardIndex,
    ShardSet,
    encode_part,
    read_index,
    write_index,
    write_quarantine,
    write_table,
)

log = logging.getLogger(__name__)

PARTS = "data"

# Sets smaller than a full part are decoded by several cores, too, unless that is soon done.
_FEW_TASKS = 4
_WORTH_A_TASK = 32

# Another call would find the same, or another fingerprint of the file.
_SETTLED = (UnreadableImage, FileNotFoundError, IsADirectoryError, NotADirectoryError)


class DecodedTask(Protocol):
    """The part of a task that `prepare` needs."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def decoder(self) -> Decoder: ...  # noqa: D102


@config.config
class PrepareConfig:
    """How shards are written.

    Attributes:
        sources_per_part: most source files that one task decodes; all tasks get equally many.
        part_mb: decoded MB that a task holds before it writes them to a file; with the copies that
            writing takes, a task needs about four times as much. Files are read whole, too.
        max_bad: largest share of unreadable sources a run accepts.
        shared_storage: every node of the cluster sees the output folder.
        seed: order of the sources, so that a part is a fair sample of the whole.
        isolation: what decoding one file may cost, where its decoder may hang or crash.
    """

    sources_per_part: int = 256
    part_mb: float = 256.0
    max_bad: float = 0.01
    shared_storage: bool = False
    seed: int = 0
    isolation: IsolationConfig = IsolationConfig()

    def __post_init__(self) -> None:
        if self.sources_per_part < 1:
            raise ValueError("sources_per_part must be at least 1.")
        if self.part_mb <= 0:
            raise ValueError("part_mb must be above 0.")
        if not 0 <= self.max_bad <= 1:
            raise ValueError("max_bad is a share between 0 and 1.")


def prepare(
    task: DecodedTask,
    manifest: Manifest,
    out: str,
    settings: PrepareConfig = PrepareConfig(),  # noqa: B008 (frozen)
    on_progress: Callable[[int, int], None] | None = None,
) -> ShardSet:
    """Decode, crop and resize every source of a manifest once, into shards.

    With the same sources and settings a second call does nothing. Files are written whole or not
    at all and named by a hash of what went into them, so a killed call goes on where it was;
    shards.json is written last, so nothing half-written is ever trusted. A source that could not be
    fetched goes into quarantine as one that is damaged does, but the next call tries it again.

    A folder is written by one call at a time, but what an earlier call with other settings wrote
    stays valid until the new shards.json takes its place. As a training may still read it then, its
    files stay until the next replacement; all older ones are removed.

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
        "sources": storage.fingerprints(_files(manifest, task.decoder)),
        "decode": config.to_dict(task.decoder),
        "parts": [num_parts(len(manifest), settings.sources_per_part), settings.seed],
    }
    request_hash = config.digest(request)
    replaced = read_index(out)
    if replaced and replaced.request_hash == request_hash and not replaced.num_unfetched:
        _refuse_too_many(replaced.num_bad, len(manifest), settings.max_bad, out)
        log.info("%s is up to date: %d samples.", out, replaced.num_samples)
        return ShardSet.open(out)
    plans = _plan_parts(manifest, task.decoder, request_hash, settings)
    writer = _WritePart(task.decoder, out, int(settings.part_mb * 1e6), settings.isolation)
    results = _run_parts(writer, plans, len(manifest), on_progress)
    bad = [row for result in results for row in result.bad]
    write_quarantine(storage.join(out, QUARANTINE), bad)
    _refuse_too_many(len(bad), len(manifest), settings.max_bad, out, bad)
    samples = _assemble(manifest, results)
    index = _index(task, manifest, request_hash, results, samples)
    write_table(storage.join(out, index.samples), samples)
    write_index(out, index)
    _remove_others(out, [request_hash, *([replaced.request_hash] if replaced else [])])
    return ShardSet.open(out)


@dataclass(frozen=True)
class _PartPlan:
    """Which sources become one part, and the beginning of the names of its files.

    `masks` has the label map of each source, where the decoder wants one.
    """

    number: int
    name: str
    positions: list[int]
    paths: list[str]
    frames: list[str | None]
    masks: list[str] | None = None


@dataclass
class _PartResult:
    """What became of them: its files and the first row of each, and lists with a place a sample.

    `position` is the row of the manifest; `num_unfetched` counts what may be fetched another time.
    """

    number: int
    files: list[str] = field(default_factory=list)
    first_rows: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    frame: list[str] = field(default_factory=list)
    height: list[int] = field(default_factory=list)
    width: list[int] = field(default_factory=list)
    array_sha256: list[str] = field(default_factory=list)
    label_sha256: list[str] = field(default_factory=list)
    facts: dict[str, list[float]] = field(default_factory=dict)
    shapes: dict[str, list[list[int]]] = field(default_factory=dict)
    array_bytes: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)
    num_unfetched: int = 0


def num_parts(num_sources: int, most: int) -> int:
    """How many tasks decode so many sources, `most` of them each; a few share a small set."""
    return max(-(-num_sources // most), min(_FEW_TASKS, -(-num_sources // _WORTH_A_TASK)))


def _files(manifest: Manifest, decoder: Decoder) -> list[str]:
    """Every file that is decoded."""
    masks = manifest.masks if isinstance(decoder, LabelledDecoder) else []
    return [*manifest.paths, *(mask for mask in masks if not mask.startswith("{"))]


def _plan_parts(
    manifest: Manifest, decoder: Decoder, request_hash: str, settings: PrepareConfig
) -> list[_PartPlan]:
    order = np.random.default_rng(settings.seed).permutation(len(manifest))
    parts = num_parts(len(manifest), settings.sources_per_part)
    paths = manifest.paths
    masks = manifest.masks if isinstance(decoder, LabelledDecoder) else None
    frames = [str(value) if value else None for value in manifest.table["frame"].fillna("")]
    return [
        _PartPlan(
            number=number,
            name=f"{PARTS}/part-{number:05d}-{request_hash}",
            positions=positions.tolist(),
            paths=[paths[i] for i in positions],
            frames=[frames[i] for i in positions],
            masks=None if masks is None else [masks[i] for i in positions],
        )
        for number, positions in enumerate(np.array_split(order, parts))
    ]


def _run_parts(
    writer: _WritePart,
    plans: list[_PartPlan],
    total: int,
    on_progress: Callable[[int, int], None] | None,
) -> list[_PartResult]:
    items = [{"plan": json.dumps(vars(plan))} for plan in plans]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(writer, num_cpus=1)
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
    """Decodes the sources of one part and writes its files, unless finished ones are there."""

    decoder: Decoder
    out: str
    max_bytes: int
    isolation: IsolationConfig = IsolationConfig()

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        plan = _PartPlan(**json.loads(row["plan"]))
        # The result stands beside the files and is written after them: all or nothing counts.
        record = storage.join(self.out, f"{plan.name}.json")
        if storage.exists(record):
            text = storage.read_bytes(record).decode()
            if not json.loads(text)["num_unfetched"]:
                return {"result": text}
        with isolated(self.decoder, self.isolation) as decoder:
            text = json.dumps(vars(self._write(plan, decoder)))
        storage.write_bytes(record, text.encode())
        return {"result": text}

    def _write(self, plan: _PartPlan, decoder: Decoder | IsolatedDecoder) -> _PartResult:
        columns = stored_columns(self.decoder)
        result = _PartResult(plan.number, shapes={name: [] for name in columns})
        waiting: list[Any] = []
        size = 0
        masks: Sequence[str | None] = plan.masks or [None] * len(plan.paths)
        rows = zip(plan.positions, plan.paths, plan.frames, masks, strict=True)
        for position, path, frames, mask in rows:
            try:
                samples = _decoded(decoder, path, frames, mask)
            except READ_ERRORS as error:
                result.bad.append((path, str(error)))
                result.num_unfetched += not isinstance(error, _SETTLED)
                continue
            for sample in samples:
                # What is drawn on has the size of the source, and is not stored.
                waiting.append({name: sample.arrays[name] for name in columns})
                size += self._note(result, position, sample)
                if size >= self.max_bytes:
                    self._flush(plan, result, waiting)
                    size = 0
        if waiting:
            self._flush(plan, result, waiting)
        return result

    def _note(self, result: _PartResult, position: int, sample: DecodedSample) -> int:
        """Write down what a sample is; the bytes of its arrays."""
        size = 0
        for name in stored_columns(self.decoder):
            array = sample.arrays[name]
            result.shapes[name].append(list(array.shape))
            size += array.nbytes
        result.position.append(position)
        result.frame.append(sample.frame)
        result.height.append(sample.source_shape[0])
        result.width.append(sample.source_shape[1])
        for name, value in sample.facts.items():
            result.facts.setdefault(name, []).append(value)
        result.array_sha256.append(sample.digest(self.decoder.columns))
        if isinstance(self.decoder, LabelledDecoder):
            result.label_sha256.append(sample.digest(self.decoder.label_columns))
        result.array_bytes += size
        return size

    def _flush(
        self, plan: _PartPlan, result: _PartResult, waiting: list[dict[str, NDArray[np.uint8]]]
    ) -> None:
        """Write the samples that wait into a file of their own, and let go of them."""
        count = len(result.position)
        if count > ROWS_PER_PART:
            raise ValueError(f"{count} samples in one part; lower sources_per_part.")
        first = plan.number * ROWS_PER_PART + count - len(waiting)
        suffix = f"-{len(result.files)}" if result.files else ""
        result.files.append(f"{plan.name}{suffix}.parquet")
        result.first_rows.append(first)
        columns = stored_columns(self.decoder)
        arrays = {name: [sample[name] for sample in waiting] for name in columns}
        rows = first + np.arange(len(waiting), dtype=np.int64)
        storage.write_bytes(storage.join(self.out, result.files[-1]), encode_part(arrays, rows))
        waiting.clear()


def _decoded(
    decoder: Decoder | IsolatedDecoder, path: str, frames: str | None, mask: str | None
) -> list[DecodedSample]:
    """The samples of one source, with those of its label map where there is one."""
    data = read_source(path)
    if mask is None:
        return decoder.decode(data, frames)
    assert isinstance(decoder, LabelledDecoder | IsolatedDecoder)
    return decoder.decode_labelled(data, read_labels(mask), frames)


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
        if result.label_sha256:
            piece["label_sha256"] = result.label_sha256
        for name, values in result.facts.items():
            piece[name] = values
        pieces.append(piece)
    table = pd.concat(pieces, ignore_index=True)
    several = table["sample_id"].duplicated(keep=False)
    table["sample_id"] = table["sample_id"].where(
        ~several, table["sample_id"] + "#" + table["frame"]
    )
    return table


def _remove_others(out: str, kept: Sequence[str]) -> None:
    """Remove the files of all requests but some."""
    for file in storage.list_files(storage.join(out, PARTS)):
        if not any(request_hash in file.rsplit("/", 1)[-1] for request_hash in kept):
            storage.remove(file)


def _refuse_too_many(
    num_bad: int, total: int, max_bad: float, out: str, bad: Sequence[tuple[str, str]] = ()
) -> None:
    """Raise when more sources are bad than may be, or all; shows the first of those in `bad`."""
    if num_bad <= max_bad * total and num_bad < total:
        return
    lines = [f"{num_bad} of {total} sources cannot be read, more than max_bad = {max_bad:.1%}:"]
    lines += [f"  {source}: {reason}" for source, reason in bad[:20]]
    if len(bad) > 20:
        lines.append(f"  ... and {len(bad) - 20} more")
    lines.append(
        f"The whole list is {storage.join(out, QUARANTINE)}. Mend or remove these files, or raise "
        "--max-bad."
    )
    raise ValueError("\n".join(lines))


def _index(
    task: DecodedTask,
    manifest: Manifest,
    request_hash: str,
    results: list[_PartResult],
    samples: pd.DataFrame,
) -> ShardIndex:
    contents = [name for name in ("array_sha256", "label_sha256") if name in samples]
    identity = samples[["sample_id", "patient_id", *contents]].sort_values("sample_id")
    columns: dict[str, list[int] | None] = {}
    for name in stored_columns(task.decoder):
        shapes = {tuple(shape) for result in results for shape in result.shapes[name]}
        columns[name] = list(shapes.pop()) if len(shapes) == 1 else None
    return ShardIndex(
        format_version=FORMAT_VERSION,
        task=task.name,
        request_hash=request_hash,
        dataset_hash=hashlib.sha256(identity.to_csv(index=False).encode()).hexdigest()[:16],
        decode_settings=config.to_dict(task.decoder),
        columns=columns,
        parts=[file for result in results for file in result.files],
        num_samples=len(samples),
        num_bad=sum(len(result.bad) for result in results),
        num_unfetched=sum(result.num_unfetched for result in results),
        array_bytes=sum(result.array_bytes for result in results),
        patients_known=manifest.patients_known,
        warnings=list(manifest.warnings),
        samples=f"{PARTS}/samples-{request_hash}.parquet",
        first_rows=[row for result in results for row in result.first_rows],
    )
