"""A real bundle without a training run: the network's weights are random, all else is as exported.

Speed does not depend on what a network has learned, only on its layers and the size of its input.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import ray
import torch
from numpy.typing import NDArray
from torch import nn

from cardioray.data import cluster
from cardioray.data.pipeline import PrepareConfig, prepare
from cardioray.data.reading import read_rows
from cardioray.data.shards import ShardSet
from cardioray.data.splits import assign_splits
from cardioray.phantoms.angiogram import PRESETS, write_angiograms
from cardioray.tasks.base import encode_labels
from cardioray.training.description import BundleSource
from cardioray.training.export import write_bundle
from cardioray.training.run import make_plan
from cardioray.training.scoring import score_plan
from cardioray.training.settings import RunConfig

SEED = 7


@dataclass(frozen=True)
class Untrained:
    """A bundle that answers, and pictures to ask it about.

    Attributes:
        bundle: folder of the bundle.
        pictures: PNG files of one angiogram frame each.
    """

    bundle: Path
    pictures: list[Path]


def untrained_bundle(
    folder: Path,
    *,
    backbone: str = "densenet169",
    image_size: int = 224,
    picture_px: int = 512,
    patients: int = 40,
) -> Untrained:
    """Draw phantoms, prepare them, and export a network with random weights.

    The Ray cluster that does it has ended on return.

    Batch norm gets its statistics from the training pictures. Without them the activations of a
    deep random network shrink to nothing, and every picture would get the same answer.

    Args:
        folder: where everything is written; needs to exist.
        backbone: of the network.
        image_size: side in px of what the network sees.
        picture_px: side in px of the pictures.
        patients: phantom patients, one picture each.
    """
    look = dataclasses.replace(
        PRESETS.get("standard"), image_size_px=picture_px, frames_per_patient=1
    )
    drawn = write_angiograms(str(folder / "phantoms"), patients, seed=SEED, config=look)
    # Uncalibrated, a probability is what the network says: peers need no part of CardioRay for it.
    run = RunConfig.build(
        "ffr",
        {
            "preprocess": {"image_size": image_size},
            "model": {"backbone": backbone, "pretrained": "none"},
            "operating": {"calibration": "none"},
            "train": {"batch_size": 8},
        },
    )
    manifest = run.task.read_manifest(str(folder / "phantoms"), None)
    cluster.connect()
    try:
        shards = prepare(run.task, manifest, str(folder / "shards"), PrepareConfig())
        labels = encode_labels(run.task, shards.samples)["ffr"]
        split = assign_splits(shards.samples, labels, run.task.split).split
        _export(run, shards, split, folder / backbone)
    finally:
        ray.shutdown()
    return Untrained(folder / backbone, [folder / "phantoms" / name for name in drawn["source"]])


def _export(run: RunConfig, shards: ShardSet, split: pd.Series[str], out: Path) -> None:
    torch.manual_seed(SEED)
    model = run.task.build_model()
    rows = shards.samples["row"].to_numpy(np.int64)
    _settle_batch_norm(model, run, shards, rows[(split == "train").to_numpy()])
    plan = make_plan(run, shards, split, str(out), str(out), None, out.name)
    write_bundle(
        BundleSource(
            run=run,
            shards=shards,
            split=split,
            weights=model.state_dict(),
            statistics=plan.statistics,
            predictions=score_plan(plan, model.state_dict()).predictions,
            calibration_predictions=None,
            log=None,
            name=out.name,
            comparison=None,
            starting_weights="none: random weights, for benchmarks",
        ),
        str(out),
    )


def _settle_batch_norm(
    model: nn.Module,
    run: RunConfig,
    shards: ShardSet,
    rows: NDArray[np.int64],
) -> None:
    """Mean and variance of every batch norm from the given rows; the weights stay as drawn."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # a plain average over the batches
    model.train()
    batches = read_rows(shards, np.sort(rows), run.task.columns).iter_batches(
        batch_size=len(rows), batch_format="numpy"
    )
    with torch.no_grad():
        for batch in batches:
            model(*(torch.tensor(batch[name]) for name in run.task.columns))
    model.eval()
