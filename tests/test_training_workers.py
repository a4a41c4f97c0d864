"""Training workers of their own: parity with plain DDP, and runs that go on after a kill."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
import tiny_training as tiny
from drivers import driver
from plain_ddp import losses_by_hand

from cardioray import storage
from cardioray.data.shards import ShardSet
from cardioray.training.run import train

pytestmark = [pytest.mark.ray, pytest.mark.slow]
# On machines without a GPU Ray's bookkeeping of GPUs is tested with gloo.
TWO_ON_ONE_GPU = ("scale.workers=2", "scale.gpus_per_worker=0.5", "scale.backend=gloo")
NO_GPU = "scale.gpus_per_worker=0"


@pytest.fixture(scope="module")
def shards(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return tiny.tiny_shards(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def split(shards: ShardSet) -> pd.Series:
    """With one calibration sample: fewer than ranks."""
    split = tiny.tiny_split(shards)
    calibration = split == "calibration"
    return split.where(~calibration | (calibration.cumsum() == 1), "")


def placed() -> list[list[dict[str, float]]]:
    """Resources of the workers of every group that was placed on GPUs."""
    groups = [group["bundles"] for group in ray.util.placement_group_table().values()]
    return [list(bundles.values()) for bundles in groups if "GPU" in bundles[0]]


def test_two_workers_in_a_bucket_learn_as_plain_ddp_does_though_one_is_killed(
    shards: ShardSet, split: pd.Series, tmp_path: Path, s3: str
) -> None:
    storage.copy_folder(shards.path, f"{s3}/shards")
    folder = f"{s3}/runs/killed"
    interruption = tiny.Interruption(tmp_path / "killed", 1, kill=True, run=folder)
    found = train(
        tiny.tiny_run(*TWO_ON_ONE_GPU),
        ShardSet.open(f"{s3}/shards"),
        split,
        f"{s3}/runs",
        name="killed",
        progress=interruption,  # type: ignore[arg-type]
    )
    assert [{"CPU": 1.0, "GPU": 0.5}] * 2 in placed()
    assert min(interruption.epochs_told_after()) > 1
    by_hand = losses_by_hand(shards, tmp_path)
    assert len(by_hand) == 6
    losses = pd.read_csv(io.BytesIO(storage.read_bytes(f"{folder}/losses.csv")))["train_loss"]
    np.testing.assert_allclose(losses, by_hand, atol=1e-5, rtol=0)
    table = found.predictions()
    for name, count in (("validation", 8), ("calibration", 1), ("test", 8)):
        rows = table.loc[table["split"] == name, "row"]
        assert sorted(rows) == sorted(shards.samples.loc[split == name, "row"])
        assert len(rows) == count
    assert set(found.weights()) == set(tiny.tiny_run().task.build_model().state_dict())
    names = {file.removeprefix(f"{folder}/") for file in storage.list_files(folder)}
    assert {"config.yaml", "timing.csv", "outcome.json", "predictions.parquet"} <= names
    assert any(name.startswith("tensorboard/events") for name in names)
    assert any(name.startswith("checkpoint_00003/state.") for name in names)


STAGES = {
    "train": {
        "stages": [
            {"name": "first", "epochs": 2, "frozen": "first_blocks", "freeze_batch_norm": True},
            {"name": "second", "epochs": 3, "schedule": "plateau", "plateau_patience": 0},
        ]
    }
}
TWO_STAGES = (NO_GPU, "train.epochs=3", "train.optimizer.ema_decay=0.8")

DRIVER = """
import sys
from pathlib import Path
import tiny_training as tiny
from test_training_workers import STAGES, TWO_STAGES
from cardioray.data.shards import ShardSet
from cardioray.training.run import train

shards, folder = ShardSet.open(sys.argv[1]), Path(sys.argv[2])
run = tiny.tiny_run(*TWO_STAGES, values=STAGES)
stop = tiny.Interruption(folder, 3, kill=False)
train(run, shards, tiny.tiny_split(shards), str(folder.parent), name=folder.name, progress=stop)
"""


def test_a_killed_driver_is_taken_up_in_its_second_stage(shards: ShardSet, tmp_path: Path) -> None:
    run = tiny.tiny_run(*TWO_STAGES, values=STAGES)
    folder = tmp_path / "killed"
    interruption = tiny.Interruption(folder, 3, kill=False)
    killed = driver(DRIVER, shards.path, folder)
    try:
        tiny.wait_for(interruption.happened.exists)
    finally:
        killed.kill()
        killed.wait()
    assert not (folder / "outcome.json").exists()
    assert len(pd.read_csv(folder / "log.csv")) == 3

    found = train(
        run,
        shards,
        tiny.tiny_split(shards),
        str(tmp_path),
        name="killed",
        progress=interruption,  # type: ignore[arg-type]
    )
    assert min(interruption.epochs_told_after()) > 3
    uninterrupted = tiny.train_here(run, shards, tmp_path / "whole")
    assert list(uninterrupted.log()["stage"]) == ["first"] * 2 + ["second"] * 3
    assert tiny.texts(found) == tiny.texts(uninterrupted)
    pd.testing.assert_frame_equal(found.predictions(), uninterrupted.predictions())
    timing = pd.read_csv(folder / "timing.csv")
    assert list(timing["epoch"]) == [1, 2, 3, 4, 5]
