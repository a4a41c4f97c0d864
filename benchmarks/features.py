"""Features of many frames by a pool of actors beside a bare loop over the network."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import ray
import torch

from benchmarks.report import Cell, Ratio, Report
from benchmarks.segments import phantom_frames
from cardioray.config import config
from cardioray.data import cluster
from cardioray.data.pipeline import PrepareConfig, prepare
from cardioray.data.reading import read_rows
from cardioray.data.segment import IMAGE
from cardioray.machine import usable_cores
from cardioray.models.keyframes import KeyframeModel
from cardioray.training.features import compute_features
from cardioray.training.settings import RunConfig

QUESTION = """\
Frames a second from shards to the file of features that heads are fitted to, as `keyframe-ef`
computes them once: reading the shards, starting the actors and writing the file included. Beside
it, a loop over the same frames that lie decoded in memory, through the same network in eager
PyTorch and fp32, in one process with all cores, which does nothing else. ResNet-50 with random
weights. A second call with the same weights reads the file."""


@config
class FeatureSettings:
    """Size of the run.

    Attributes:
        patients: phantom patients, whose frames from diastole to systole of two views are taken.
        image_size: side in px of what the network sees.
        backbone: name of the network.
        batch_size: frames that the bare loop takes at a time.
        rounds: times that each is run; the best counts.
    """

    patients: int = 50
    image_size: int = 224
    backbone: str = "resnet50"
    batch_size: int = 32
    rounds: int = 2


def run(settings: FeatureSettings) -> Report:
    """Compute the features both ways, in turns."""
    task = RunConfig.build(
        "keyframe-ef",
        {
            "preprocess": {"image_size": settings.image_size},
            "model": {"backbone": settings.backbone, "pretrained": "none"},
        },
    ).task
    torch.manual_seed(0)
    model = task.build_model()
    assert isinstance(model, KeyframeModel)
    weights = model.state_dict()
    seconds: dict[str, list[float]] = {"ours": [], "again": [], "bare": []}
    with tempfile.TemporaryDirectory(prefix="cr-bench-") as name:
        folder = Path(name)
        _write(folder / "frames", settings)
        cluster.connect()
        try:
            manifest = task.read_manifest(str(folder / "frames"), None)
            shards = prepare(task, manifest, str(folder / "shards"), PrepareConfig())
            rows = np.sort(shards.samples["row"].to_numpy(np.int64))
            stored = read_rows(shards, rows, task.columns).take_all()
            stored.sort(key=lambda row: row["row"])
            pictures = torch.from_numpy(np.stack([row[IMAGE] for row in stored]))
            for number in range(settings.rounds):
                out = str(folder / f"run-{number}")
                begun = time.perf_counter()
                [found] = compute_features(task, [weights], shards, rows, out, precision="fp32")
                seconds["ours"].append(time.perf_counter() - begun)
                begun = time.perf_counter()
                compute_features(task, [weights], shards, rows, out, precision="fp32")
                seconds["again"].append(time.perf_counter() - begun)
                begun = time.perf_counter()
                wanted = _loop(model, pictures, settings.batch_size)
                seconds["bare"].append(time.perf_counter() - begun)
        finally:
            ray.shutdown()
    frames = len(pictures)
    best = {way: min(values) for way, values in seconds.items()}
    titles = {
        "ours": "CardioRay, from shards to the file",
        "again": "the same again, from the file",
        "bare": "bare loop, frames in memory",
    }
    table: list[dict[str, Cell]] = [
        {"way": titles[way], "speed": frames / best[way], "seconds": best[way]} for way in best
    ]
    difference = float(np.abs(found.values - wanted.numpy()).max() / np.abs(wanted.numpy()).max())
    return Report(
        name="features",
        title="Key frames: features of a backbone",
        question=QUESTION,
        columns={"way": "way", "speed": "frames/s", "seconds": "s"},
        rows=table,
        ratios=[
            Ratio(name="CardioRay / bare loop", value=best["bare"] / best["ours"], goal=">= 0.9"),
            Ratio(name="largest difference, relative", value=difference, goal="<= 0.0001"),
        ],
        settings=asdict(settings) | {"frames": frames},
    )


@torch.inference_mode()
def _loop(model: KeyframeModel, pictures: torch.Tensor, size: int) -> torch.Tensor:
    torch.set_num_threads(usable_cores())
    model.eval()
    return torch.cat([model.features(some) for some in pictures.split(size)])


def _write(folder: Path, settings: FeatureSettings) -> None:
    """Frames as PNG files with the table of `keyframe-ef`, two frames a study."""
    folder.mkdir()
    pictures = phantom_frames(settings.patients, seed=23, whole_systole=True).pictures
    rows = []
    for number, picture in enumerate(pictures):
        source = f"{number:05d}.png"
        assert cv2.imwrite(str(folder / source), picture[..., 0])
        study = f"{number // 2:05d}"
        rows.append((source, ("ED", "ES")[number % 2], study, study, 55.0))
    columns = ["source", "phase", "study_id", "patient_id", "ef"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "manifest.csv", index=False)
