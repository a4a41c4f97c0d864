"""Real bundles of a small untrained network, for the tests that serve them."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray
import torch
from numpy.typing import NDArray

from cardioray.bundle import Bundle, dump_json, seal
from cardioray.config import to_dict
from cardioray.data.shards import ShardIndex, ShardSet, encode_part, write_index, write_table
from cardioray.tasks.base import encode_labels
from cardioray.training.description import BundleSource
from cardioray.training.export import write_bundle
from cardioray.training.settings import RunConfig

SIZE = 64
ECHO_SIZE = 32
ECHO = (
    f"preprocess.image_size={ECHO_SIZE}",
    "sampling.frames=6",
    "sampling.stride=2",
    "sampling.step=4",
    "model.backbone=r2plus1d_10_slim",
)
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
    rng = np.random.default_rng(7)
    pictures = list(rng.integers(0, 255, (len(_SPLITS), SIZE, SIZE, 1), dtype=np.uint8))
    shards, split = _write_shards(folder / "shards", run, pictures)
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


@functools.cache
def tiny_echo_bundle() -> Path:
    """A bundle of task `echo-ef` with random weights, made once a session; needs a Ray cluster."""
    folder = Path(tempfile.mkdtemp(prefix="cardioray-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run = RunConfig.build("echo-ef", {}, ECHO)
    shards, split = _write_shards(folder / "shards", run, clips())
    statistics = run.task.label_statistics(encode_labels(run.task, shards.samples))
    statistics = replace(statistics, pixel_mean=(127.0,), pixel_std=(70.0,))
    torch.manual_seed(0)
    model = run.task.build_model()
    run.task.initialise(model, statistics)
    source = BundleSource(
        run=run,
        shards=shards,
        split=split,
        weights=model.eval().state_dict(),
        statistics=statistics,
        predictions=_ef_predictions(shards, split),
        calibration_predictions=None,
        log=None,
        name="tiny-echo",
        comparison=None,
        starting_weights="none: random weights, for tests",
    )
    write_bundle(source, str(folder / "tiny"))
    return folder / "tiny"


def clips() -> list[NDArray[np.uint8]]:
    """Clips of any length."""
    rng = np.random.default_rng(7)
    lengths = rng.integers(10, 40, len(_SPLITS))
    return [rng.integers(0, 255, (n, ECHO_SIZE, ECHO_SIZE, 1), dtype=np.uint8) for n in lengths]


def run_example(bundle: Path, folder: Path) -> dict[str, Any]:
    """The answer that the code of a bundle's card prints, beside the files that it names."""
    card = (bundle / "README.md").read_text()
    code = card.partition("## Use")[2].partition("```python\n")[2].partition("```")[0]
    name = json.loads((bundle / "metadata.json").read_text())["name"]
    (folder / name).symlink_to(bundle)
    printed: list[dict[str, Any]] = []
    with contextlib.chdir(folder):
        exec(compile(code, "README.md", "exec"), {"print": printed.append})
    [answer] = printed
    return answer


def renamed(bundle: Path, out: Path, name: str) -> Bundle:
    """A copy of a bundle under another name, which gives it another identity too."""
    shutil.copytree(bundle, out)
    metadata = json.loads((out / "metadata.json").read_text())
    (out / "metadata.json").write_bytes(dump_json({**metadata, "name": name}))
    return seal(out)


def _write_shards(
    folder: Path, run: RunConfig, arrays: list[NDArray[np.uint8]]
) -> tuple[ShardSet, pd.Series[str]]:
    rows = np.arange(len(arrays))
    (column,) = run.task.decoder.columns
    shapes = {array.shape for array in arrays}
    part = "data/part-0.parquet"
    (folder / "data").mkdir(parents=True)
    (folder / part).write_bytes(encode_part({column: arrays}, rows))
    samples = pd.DataFrame(
        {
            "row": rows,
            "sample_id": [f"s{i}" for i in rows],
            "patient_id": [f"p{i // 2}" for i in rows],
            "study_id": [f"p{i // 2}" for i in rows],
            "source": "",
            "frame": "0",
            "ffr": np.where(rows // 2 % 2 == 0, 0.7, 0.9),
            "EF": np.where(rows // 2 % 2 == 0, 40.0, 60.0),
            "height_px": 512,
            "width_px": 512,
            "array_sha256": [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays],
        }
    )
    write_table(str(folder / "samples.parquet"), samples)
    index = ShardIndex(
        format_version=1,
        task=run.task.name,
        request_hash="0",
        dataset_hash="0",
        decode_settings=to_dict(run.task.decoder),
        columns={column: list(shapes.pop()) if len(shapes) == 1 else None},
        parts=[part],
        num_samples=len(arrays),
        num_bad=0,
        array_bytes=sum(array.nbytes for array in arrays),
        patients_known=False,
        warnings=[],
    )
    write_index(str(folder), index)
    return ShardSet.open(str(folder)), pd.Series(list(_SPLITS), index=samples.index)


def _ef_predictions(shards: ShardSet, split: pd.Series[str]) -> pd.DataFrame:
    samples = shards.samples
    noise = np.random.default_rng(3).normal(0, 5, len(samples))
    table = samples[["sample_id", "patient_id", "study_id"]].assign(
        target="ef", split=split, label=samples["EF"], score=samples["EF"] + noise
    )
    return table[split != "train"]


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
