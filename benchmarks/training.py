"""Ray Train beside a hand-written DDP script: images a second once both run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import ray
import torch

from benchmarks.plain_ddp import PlainSettings
from benchmarks.report import ROOT, Cell, Ratio, Report
from cardioray.config import config
from cardioray.data import cluster
from cardioray.data.pipeline import PrepareConfig, prepare
from cardioray.data.reading import take_rows
from cardioray.data.shards import ShardSet
from cardioray.models.runtime import use_bf16
from cardioray.phantoms.angiogram import PRESETS, write_angiograms
from cardioray.tasks.base import encode_labels
from cardioray.training.run import train
from cardioray.training.settings import RunConfig

QUESTION = """\
The same network, pictures, augmentation, loss, batch, precision and memory layout on two workers:
once by `cardioray.training` (Ray Train, fed by Ray Data from shards), once by a script of
`DistributedDataParallel`, `DistributedSampler` and `DataLoader` that torchrun starts. The script
is run twice over: as notebooks have it, decoding PNG files of the size angiograms have in loader
processes, and with all decoded pictures already in memory, which is the least it can do. Ray runs
while it trains and at no other time: its own processes take an eighth of a core, which two cores
feel and a larger machine does not. The systems take turns; the first epoch of each is left out;
speeds are medians over epochs. All train with fused AdamW, gradients in their buckets and no
broadcast of buffers before each step."""
OURS, IN_MEMORY = "Ray Train", "DDP, pictures in memory"
FROM_FILES = "DDP + DataLoader, decoding files"


ARRAYS = "images.npz"


@config
class TrainingSettings:
    """Size of the run.

    Attributes:
        backbone: network.
        image_size: side in px of what the network sees.
        picture_px: side in px of the files.
        patients: phantom patients, four frames each.
        batch_size: pictures a worker and step.
        epochs: epochs of each turn.
        turns: how often each system trains.
    """

    backbone: str = "densenet121"
    image_size: int = 128
    picture_px: int = 512
    patients: int = 96
    batch_size: int = 16
    epochs: int = 5
    turns: int = 2


def run(settings: TrainingSettings) -> Report:
    """Train in turns and compare."""
    with tempfile.TemporaryDirectory(prefix="cr-bench-") as name:
        folder = Path(name)
        run_config = _run_config(settings)
        shards, files = _data(folder, settings, run_config)
        speeds: dict[str, list[float]] = {OURS: [], FROM_FILES: [], IN_MEMORY: []}
        starts: dict[str, list[float]] = {OURS: [], FROM_FILES: [], IN_MEMORY: []}
        for turn in range(settings.turns):
            for system, (speed, start) in {
                OURS: _ray_train(run_config, shards, folder / f"ray{turn}"),
                FROM_FILES: _plain(run_config, shards, files, folder),
                IN_MEMORY: _plain(run_config, shards, [], folder),
            }.items():
                speeds[system] += speed
                starts[system].append(start)
    middle = {system: float(np.median(values)) for system, values in speeds.items()}
    rows: list[dict[str, Cell]] = [
        {
            "system": system,
            "speed": middle[system],
            "slowest": min(speeds[system]),
            "fastest": max(speeds[system]),
            "start": float(np.median(starts[system])),
        }
        for system in speeds
    ]
    return Report(
        name="training",
        title="Training: Ray Train beside plain DDP",
        question=QUESTION,
        columns={
            "system": "system",
            "speed": "images/s",
            "slowest": "slowest epoch",
            "fastest": "fastest epoch",
            "start": "outside epochs, s",
        },
        rows=rows,
        ratios=[
            Ratio(
                name=f"{OURS} / {FROM_FILES}", value=middle[OURS] / middle[FROM_FILES], goal=">= 1"
            ),
            Ratio(
                name="the same, and never under",
                value=middle[OURS] / middle[FROM_FILES],
                goal=">= 0.95",
            ),
            Ratio(name=f"{OURS} / {IN_MEMORY}", value=middle[OURS] / middle[IN_MEMORY]),
        ],
        settings=asdict(settings) | {"workers": 2},
    )


@contextlib.contextmanager
def _ray() -> Iterator[None]:
    """A cluster that is gone when a peer has its turn."""
    cluster.connect()
    try:
        yield
    finally:
        ray.shutdown()


def _run_config(settings: TrainingSettings) -> RunConfig:
    values = {
        "preprocess": {"image_size": settings.image_size},
        "model": {"backbone": settings.backbone, "pretrained": "none"},
        "train": {"epochs": settings.epochs, "batch_size": settings.batch_size},
        "scale": {"workers": 2},
    }
    return RunConfig.build("ffr", values)


def _data(
    folder: Path, settings: TrainingSettings, run_config: RunConfig
) -> tuple[ShardSet, list[str]]:
    """Shards of phantom pictures, and the files of their training part in order."""
    look = dataclasses.replace(PRESETS.get("clear"), image_size_px=settings.picture_px)
    write_angiograms(str(folder / "phantoms"), settings.patients, seed=1, config=look)
    manifest = run_config.task.read_manifest(str(folder / "phantoms"), None)
    with _ray():
        shards = prepare(run_config.task, manifest, str(folder / "shards"), PrepareConfig())
        rows = np.sort(shards.samples["row"].to_numpy()[(_split(shards) == "train").to_numpy()])
        np.savez(folder / ARRAYS, images=take_rows(shards, rows, ["image"])["image"])
    sources = shards.samples["source"][_split(shards) == "train"]
    return shards, [str(folder / "phantoms" / source) for source in sources]


def _split(shards: ShardSet) -> pd.Series[str]:
    """Nearly all pictures train; a few validate, since every run must."""
    patients = shards.samples["patient_id"].rank(method="dense")
    return patients.map(lambda rank: "validation" if rank <= 8 else "train")


def _ray_train(run_config: RunConfig, shards: ShardSet, folder: Path) -> tuple[list[float], float]:
    """Images a second of the later epochs, and seconds of everything but epochs."""
    with _ray():
        begun = time.perf_counter()
        outcome = train(run_config, shards, _split(shards), str(folder.parent), name=folder.name)
        total = time.perf_counter() - begun
    timing = pd.read_csv(Path(outcome.folder) / "timing.csv")
    return timing["images_per_second"].tolist()[1:], total - timing["epoch_seconds"].sum()


def _plain(
    run_config: RunConfig, shards: ShardSet, files: list[str], folder: Path
) -> tuple[list[float], float]:
    """As `_ray_train`, for the script; with files it decodes them in one process a rank."""
    training = (_split(shards) == "train").to_numpy()
    labels = encode_labels(run_config.task, shards.samples)
    own = {name: values[training] for name, values in labels.items()}
    out, file = folder / "plain.json", folder / "settings.json"
    PlainSettings(
        run=run_config.to_dict(),
        arrays=None if files else str(folder / ARRAYS),
        files=files,
        labels=own[run_config.task.targets[0].name].tolist(),
        loader_workers=1 if files else 0,
        bf16=use_bf16(run_config.train.precision, torch.device("cpu")),
        statistics=asdict(run_config.task.label_statistics(own)),
        out=str(out),
    ).write(file)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    begun = time.perf_counter()
    subprocess.run([*command, "-m", "benchmarks.plain_ddp", str(file)], cwd=ROOT, check=True)
    total = time.perf_counter() - begun
    epochs = json.loads(out.read_text())["epochs"]
    speeds = [epoch["images"] / epoch["seconds"] for epoch in epochs][1:]
    return speeds, total - sum(epoch["seconds"] for epoch in epochs)
