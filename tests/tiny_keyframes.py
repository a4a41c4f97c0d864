"""Bundles of `keyframe-ef` fitted to the hearts of `tiny_segments`, and frames of these."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import tiny_segments as tiny
import torch
from numpy.typing import NDArray
from rich.console import Console
from tiny_dicom import echo_dicom
from tiny_training import training_here, untrained_bundle

import cardioray
from cardioray.bundle import Bundle
from cardioray.data.pipeline import prepare
from cardioray.data.shards import ShardSet
from cardioray.keyframes import KeyframePredictor
from cardioray.training.run import make_plan
from cardioray.training.settings import RunConfig
from cardioray.training.single import divide
from cardioray.tuning.keyframe_bundle import train_keyframes

SETTINGS = (
    # The deepest map then has 3 x 3 positions, the fewest that heat is made of.
    "preprocess.image_size=96",
    "model.backbone=unet-tu-resnet10t",
    # Where a backbone comes from is the matter of a few tests; random features suit the others.
    "model.pretrained=none",
    "heads.inner_folds=3",
    "heads.search=2",
    "heads.gp.restarts=1",
    "heads.mlp.epochs=20",
    "cut_off.value=45",
    "outlines.epochs=1",
    "outlines.batch_size=8",
    "train.precision=fp32",
    "scale.gpus_per_worker=0",
)
QUIET = Console(quiet=True)


def built(*overrides: str) -> RunConfig:
    return RunConfig.build("keyframe-ef", None, (*SETTINGS, *overrides))


@functools.cache
def prepared() -> tuple[Path, ShardSet]:
    """Shards, and the folder where `camus` lies that they were made of; needs Ray."""
    folder = Path(tempfile.mkdtemp(prefix="cardioray-keyframes-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run = built()
    manifest = run.task.read_manifest(str(tiny.write_camus(folder / "camus", 28)), None)
    return folder, prepare(run.task, manifest, str(folder / "shards"))


@functools.cache
def heads() -> Bundle:
    """A bundle of heads, made once; needs Ray."""
    folder, shards = prepared()
    return train_keyframes(built(), shards, str(folder / "runs"), name="heads")


@functools.cache
def network() -> Bundle:
    """A bundle of a network that says the number itself, untrained; needs Ray."""
    folder, shards = prepared()
    run = built("method=end_to_end", "operating.calibration=none")
    split = divide(run, shards).split
    place = str(folder / "network")
    plan = make_plan(run, shards, split, place, f"{place}-weights", None, "network")
    torch.manual_seed(0)
    model = run.task.build_model()
    run.task.initialise(model, plan.statistics)
    weights = model.eval().state_dict()
    with training_here():  # draws no plots
        return untrained_bundle(run, plan, split, weights, folder / "network-bundle")


def predictor_of(bundle: Bundle, num_threads: int | None = None) -> KeyframePredictor:
    found = cardioray.load(bundle.path, precision="fp32", num_threads=num_threads)
    assert isinstance(found, KeyframePredictor)
    return found


def frames(shrunk: float = 0.7, seed: int = 5) -> list[bytes]:
    """Frames at end diastole and end systole."""
    rng = np.random.default_rng(seed)
    return [tiny.nifti(tiny.echo(tiny.heart(80.0, 44.0 * share), rng)) for share in (1.0, shrunk)]


def dicoms(**tags: str) -> list[bytes]:
    """The same two as DICOM files; the second one with other tags."""
    rng = np.random.default_rng(5)
    maps = [tiny.heart(80.0, 44.0 * share) for share in (1.0, 0.7)]
    own: list[dict[str, str]] = [{}, tags]
    return [echo_dicom(tiny.echo(m, rng), **t) for m, t in zip(maps, own, strict=True)]


def cine(count: int, seed: int = 1) -> NDArray[np.uint8]:
    """A heart that contracts from the first frame to the last, (T, H, W)."""
    rng = np.random.default_rng(seed)
    widths = np.linspace(44.0, 31.0, count)
    return np.stack([tiny.echo(tiny.heart(80.0, width), rng) for width in widths])
