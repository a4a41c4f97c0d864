"""Epochs over shards beside decoding every picture in every epoch."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.report import Cell, Ratio, Report
from cardioray.config import config
from cardioray.data import cluster
from cardioray.data.pipeline import PrepareConfig, prepare
from cardioray.data.reading import read_rows
from cardioray.phantoms.angiogram import PRESETS, write_angiograms
from cardioray.tasks.base import Task, encode_labels, make_task
from cardioray.training.feed import RowFeed, epoch_order

QUESTION = """\
How long one pass over the pictures takes until each batch is there as a tensor, without a network:
from shards (kept in memory after the first pass, and streamed from Parquet in every pass, as sets
larger than memory are), beside decoding and resizing the PNG files in every pass, by a torch
`DataLoader` with one process a core and by Ray Data. All use the same decoder and give the same
pictures. Writing the shards is paid once and shown apart."""
CACHED, STREAMED = "shards, in memory", "shards, streamed"
LOADER, RAY_DATA = "DataLoader decoding PNG", "Ray Data decoding PNG"


@config
class ShardSettings:
    """Size of the run.

    Attributes:
        patients: phantom patients, four frames each.
        preset: of the phantoms.
        image_size: side in px the networks see.
        batch_size: pictures a batch.
        passes: timed passes, after one that is not counted.
    """

    patients: int = 250
    preset: str = "standard"
    image_size: int = 224
    batch_size: int = 32
    passes: int = 3


class _Pictures(Dataset[torch.Tensor]):
    def __init__(self, task: Task, files: list[str]) -> None:
        self.task, self.files = task, files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(_decode(self.task, self.files[index]))


def run(settings: ShardSettings) -> Report:
    """Time passes over the same pictures by each way."""
    with tempfile.TemporaryDirectory(prefix="cr-bench-") as name:
        folder = Path(name)
        task = make_task("ffr", {"preprocess": {"image_size": settings.image_size}})
        phantoms = folder / "phantoms"
        write_angiograms(
            str(phantoms), settings.patients, seed=1, config=PRESETS.get(settings.preset)
        )
        cluster.connect()
        ray.data.DataContext.get_current().enable_progress_bars = False
        begun = time.perf_counter()
        manifest = task.read_manifest(str(phantoms), None)
        shards = prepare(task, manifest, str(folder / "shards"), PrepareConfig())
        preparing = time.perf_counter() - begun
        rows = np.sort(shards.samples["row"].to_numpy(np.int64))
        files = [str(phantoms / source) for source in shards.samples["source"]]
        feeds = {
            kind: RowFeed(
                shards=shards,
                columns=task.columns,
                iterator=read_rows(shards, rows, task.columns).iterator(),
                rows=rows,
                labels=encode_labels(task, shards.samples),
                cached=kind == CACHED,
                device=torch.device("cpu"),
                sampler=task.sampler,
            )
            for kind in (CACHED, STREAMED)
        }
        loader = DataLoader(
            _Pictures(task, files),
            batch_size=settings.batch_size,
            shuffle=True,
            num_workers=2,
            persistent_workers=True,
        )
        decoded = ray.data.from_items([{"file": file} for file in files]).map(
            lambda row: {"image": _decode(task, row["file"])}
        )
        order = epoch_order(len(rows), seed=1, epoch=0, rank=0)
        size = settings.batch_size
        ways: dict[str, Callable[[], Iterable[Any]]] = {
            CACHED: lambda: feeds[CACHED].batches(size, order=order),
            STREAMED: lambda: feeds[STREAMED].batches(size, order=order, buffer=1024),
            LOADER: lambda: loader,
            RAY_DATA: lambda: decoded.iter_torch_batches(batch_size=size),
        }
        seconds = {kind: _passes(way, settings.passes) for kind, way in ways.items()}
    return _report(
        settings, {k: float(np.median(v)) for k, v in seconds.items()}, len(rows), preparing
    )


def _passes(way: Callable[[], Iterable[Any]], count: int) -> list[float]:
    seconds = []
    for _ in range(count + 1):
        begun = time.perf_counter()
        for _batch in way():
            pass
        seconds.append(time.perf_counter() - begun)
    return seconds[1:]


def _decode(task: Task, file: str) -> np.ndarray[Any, Any]:
    [sample] = task.decoder.decode(Path(file).read_bytes(), None)
    return sample.arrays["image"]


def _report(
    settings: ShardSettings, seconds: dict[str, float], pictures: int, preparing: float
) -> Report:
    rows: list[dict[str, Cell]] = [
        {
            "way": kind,
            "seconds": value,
            "speed": pictures / value,
            "once": preparing if kind in (CACHED, STREAMED) else None,
        }
        for kind, value in seconds.items()
    ]
    saved = seconds[LOADER] - seconds[STREAMED]
    return Report(
        name="shards",
        title="Data: shards beside decoding in every epoch",
        question=QUESTION,
        columns={
            "way": "way",
            "seconds": "s a pass",
            "speed": "images/s",
            "once": "writing shards, s",
        },
        rows=rows,
        ratios=[
            Ratio(name=f"{STREAMED} / {LOADER}", value=seconds[LOADER] / seconds[STREAMED]),
            Ratio(name=f"{CACHED} / {LOADER}", value=seconds[LOADER] / seconds[CACHED]),
            Ratio(name=f"{STREAMED} / {RAY_DATA}", value=seconds[RAY_DATA] / seconds[STREAMED]),
            Ratio(
                name="passes after which writing shards has paid for itself",
                value=preparing / saved,
            ),
        ],
        settings=asdict(settings) | {"pictures": pictures},
    )
