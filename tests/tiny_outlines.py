"""A bundle of `lv-seg` that has learned the hearts of `tiny_segments`, and cines of them."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import tiny_segments as tiny
from numpy.typing import NDArray
from shared import made_once
from tiny_training import training_here

from cardioray.bundle import Bundle, open_bundle
from cardioray.data.pipeline import prepare
from cardioray.training.settings import RunConfig
from cardioray.training.single import train_bundle

SETTINGS = (
    "preprocess.image_size=64",
    "model.backbone=unet-tu-resnet10t",
    "model.pretrained=none",
    "train.recipe=scratch",
    "train.epochs=12",
    "train.learning_rate=0.003",
    "train.batch_size=8",
    "train.precision=fp32",
    "split.cross_fit_folds=0",
    "scale.gpus_per_worker=0",
    "operating.calibration=none",
)


@functools.cache
def outlining() -> tuple[Path, Bundle]:
    """The bundle, made once a run of the tests, and the folder of its camus and shards."""
    folder, bundle = made_once("outlines", _make)
    return folder, open_bundle(str(bundle))


def _make(folder: Path) -> Path:
    """Needs Ray."""
    run = RunConfig.build("lv-seg", None, SETTINGS)
    manifest = run.task.read_manifest(str(tiny.write_camus(folder / "camus", 24)), None)
    shards = prepare(run.task, manifest, str(folder / "shards"))
    with training_here(draws=True):
        return train_bundle(run, shards, str(folder / "runs")).path


def outlining_bundle() -> Path:
    """The folder of the bundle."""
    return outlining()[1].path


def beating(frames: int = 48, period: int = 16, first: int = 0, seed: int = 3) -> NDArray[np.uint8]:
    """A cine (T, H, W) whose end diastoles are in frame `first` and every `period` ones."""
    rng = np.random.default_rng(seed)
    widths = 37 + 7 * np.cos(2 * np.pi * (np.arange(frames) - first) / period)
    maps = [tiny.heart(76 + 0.4 * (width - 37), width) for width in widths]
    return np.stack([tiny.echo(labels, rng) for labels in maps])
