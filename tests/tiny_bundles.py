"""Real bundles of a small untrained network, for the tests that serve them."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import ray
import torch

from cardioray.bundle import Bundle, dump_json, seal
from cardioray.config import to_dict
from cardioray.data.shards import ShardIndex, ShardSet, encode_part, write_index, write_table
from cardioray.tasks.base import encode_labels
from cardioray.training.export import BundleSource, write_bundle
from cardioray.training.settings import RunConfig

SIZE = 64
_SPLITS = ("train",) * 24 + ("validation",) * 8 + ("calibration",) * 8 + ("test",) * 8


@functools.cache
def tiny_bundle() -> Path:
    """A bundle of task `ffr` with random weights, made once a session; needs a Ray cluster."""
    folder = Path(tempfile.mkdtemp(prefix="cardioray-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_bundle(tiny_source(folder), str(folder / "tiny"))
    return folder / "tiny"


def tiny_source(folder: Path) -> BundleSource:
    """What that bundle is made of, its shards in a folder; needs a Ray cluster."""
    assert ray.is_initialized(), "start a cluster first: shards are read through Ray Data"
    run = RunConfig.build(
        "ffr",
        {},
        [f"preprocess.image_size={SIZE}", "model.backbone=test_resnet", "frames=all"],
    )
    shards, split = _write_shards(folder / "shards", run)
    torch.manual_seed(0)
    return BundleSource(
        run=run,
        shards=shards,
        split=split,
        weights=run.task.build_model().eval().state_dict(),
        statistics=run.task.label_statistics(encode_labels(run.task, shards.samples)),
        predictions=_predictions(shards, split),
        calibration_predictions=None,
        log=None,
        name="tiny",
        comparison=None,
        starting_weights="none: random weights, for tests",
    )


def renamed(bundle: Path, out: Path, name: str) -> Bundle:
    """A copy of a bundle under another name, which gives it another identity too."""
    shutil.copytree(bundle, out)
    metadata = json.loads((out / "metadata.json").read_text())
    (out / "metadata.json").write_bytes(dump_json({**metadata, "name": name}))
    return seal(out)


def _write_shards(folder: Path, run: RunConfig) -> tuple[ShardSet, pd.Series[str]]:
    count = len(_SPLITS)
    rng = np.random.default_rng(7)
    pictures = rng.integers(0, 255, (count, SIZE, SIZE, 1), dtype=np.uint8)
    rows = np.arange(count)
    part = "data/part-0.parquet"
    (folder / "data").mkdir(parents=True)
    (folder / part).write_bytes(encode_part({run.task.columns[0]: list(pictures)}, rows))
    samples = pd.DataFrame(
        {
            "row": rows,
            "sample_id": [f"s{i}" for i in rows],
            "patient_id": [f"p{i // 2}" for i in rows],
            "study_id": [f"p{i // 2}" for i in rows],
            "source": "",
            "frame": "0",
            "ffr": np.where(rows // 2 % 2 == 0, 0.7, 0.9),
            "height_px": 512,
            "width_px": 512,
            "array_sha256": [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures],
        }
    )
    write_table(str(folder / "samples.parquet"), samples)
    index = ShardIndex(
        format_version=1,
        task=run.task.name,
        request_hash="0",
        dataset_hash="0",
        decode_settings=to_dict(run.task.decoder),
        columns={run.task.columns[0]: [SIZE, SIZE, 1]},
        parts=[part],
        num_samples=count,
        num_bad=0,
        array_bytes=pictures.nbytes,
        patients_known=False,
        warnings=[],
    )
    write_index(str(folder), index)
    return ShardSet.open(str(folder)), pd.Series(list(_SPLITS), index=samples.index)


def _predictions(shards: ShardSet, split: pd.Series[str]) -> pd.DataFrame:
    samples = shards.samples
    label = (samples["ffr"] <= 0.8).astype(float)
    noise = np.random.default_rng(3).normal(0, 0.2, len(samples))
    table = samples[["sample_id", "patient_id", "study_id"]].assign(
        target="ffr",
        split=split,
        label=label,
        score=np.clip(0.3 + 0.4 * label + noise, 0.01, 0.99),
    )
    return table[split != "train"]
