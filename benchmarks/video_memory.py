"""Memory while shards of video are written and read, at one and at ten times the data."""

from __future__ import annotations

import shutil
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import ray

from benchmarks.report import Cell, Ratio, Report
from benchmarks.video_training import feed_pass, make_feed
from cardioray.config import config
from cardioray.data import cluster
from cardioray.data.pipeline import PrepareConfig, prepare
from cardioray.phantoms.echo import write_echoes
from cardioray.phantoms.echo_config import ECHO_PRESETS
from cardioray.training.settings import RunConfig

QUESTION = """\
Most memory that all processes of a local cluster take together, pages that they share counted
once, while `prepare` writes shards of echo clips and while an epoch of windows is streamed from
them; before either, they take what the first column says. The larger set is the smaller one ten
times over."""


@config
class MemorySettings:
    """Size of the run.

    Attributes:
        patients: phantom patients of the smaller set, one A4C clip each.
        times: how many times larger the other one is.
        part_mb: decoded MB that a task of `prepare` holds; what memory is bounded by.
        batch_size: windows of a batch.
        buffer: windows that an epoch is mixed in.
    """

    patients: int = 100
    times: int = 10
    part_mb: float = 32.0
    batch_size: int = 10
    buffer: int = 64


def run(settings: MemorySettings) -> Report:
    """Prepare and stream both sets, the smaller one first."""
    with tempfile.TemporaryDirectory(prefix="cr-bench-") as name:
        folder = Path(name)
        look = ECHO_PRESETS.get("standard")
        write_echoes(str(folder / "echoes"), settings.patients, seed=6, config=look)
        rows: list[dict[str, Cell]] = []
        for times in (1, settings.times):
            echoes = _several(folder / "echoes", times, folder / f"echoes-{times}")
            rows.append(_measured(echoes, folder / f"shards-{times}", settings))
    small, large = rows
    return Report(
        name="video_memory",
        title="Video: memory at ten times the data",
        question=QUESTION,
        columns={
            "clips": "clips",
            "decoded": "decoded, MB",
            "before": "before, MB",
            "prepare": "prepare, most MB",
            "stream": "streamed epoch, most MB",
        },
        rows=rows,
        ratios=[
            Ratio(
                name=f"{title}, {settings.times} times the data / once",
                value=float(str(large[key])) / float(str(small[key])),
                goal="<= 1.1",
            )
            for key, title in (("prepare", "prepare"), ("stream", "streamed epoch"))
        ],
        settings=asdict(settings),
    )


def _several(echoes: Path, times: int, out: Path) -> Path:
    """EchoNet's layout with every video several times, under other names."""
    videos = out / "Videos"
    videos.mkdir(parents=True)
    table = pd.read_csv(echoes / "FileList.csv")
    copies = []
    for number in range(times):
        renamed = table["FileName"].str.removesuffix(".avi") + f"_{number}"
        for old, new in zip(table["FileName"], renamed, strict=True):
            source = echoes / "Videos" / f"{old.removesuffix('.avi')}.avi"
            shutil.copyfile(source, videos / f"{new}.avi")
        copies.append(table.assign(FileName=renamed))
    pd.concat(copies).to_csv(out / "FileList.csv", index=False)
    return out


def _measured(echoes: Path, out: Path, settings: MemorySettings) -> dict[str, Cell]:
    run = RunConfig.build("echo-ef", {"model": {"pretrained": "none"}})
    cluster.connect()
    try:
        manifest = run.task.read_manifest(str(echoes), None)
        with _Watch() as before:
            before.sample()
        with _Watch() as preparing:
            shards = prepare(run.task, manifest, str(out), PrepareConfig(part_mb=settings.part_mb))
        with _Watch() as streaming:
            feed = make_feed(run, shards, cached=False)
            feed_pass(feed, settings.batch_size, settings.buffer)
    finally:
        ray.shutdown()
    return {
        "clips": len(manifest),
        "decoded": shards.index.array_bytes / 1e6,
        "before": before.most_mb,
        "prepare": preparing.most_mb,
        "stream": streaming.most_mb,
    }


class _Watch:
    """Samples the memory of this process and all that it started, while it is open."""

    def __init__(self, interval_s: float = 0.25) -> None:
        self.most_mb = 0.0
        self._interval_s = interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()

    def sample(self) -> None:
        """One look at all processes; those that end meanwhile are left out."""
        me = psutil.Process()
        sizes = []
        for process in [me, *me.children(recursive=True)]:
            try:
                sizes.append(process.memory_full_info().pss)
            except psutil.Error:
                continue
        self.most_mb = max(self.most_mb, float(np.sum(sizes)) / 1e6)

    def _run(self) -> None:
        while not self._done.wait(self._interval_s):
            self.sample()
