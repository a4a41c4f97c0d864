"""A tiny data set and tiny runs on it, for the tests of training."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray
import torch
from PIL import Image
from ray.train import RunConfig as RayRunConfig
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from cardioray import storage
from cardioray.bundle import Bundle
from cardioray.data.pipeline import PrepareConfig, prepare
from cardioray.data.reading import read_rows
from cardioray.data.shards import ShardSet
from cardioray.training.description import BundleSource
from cardioray.training.export import write_bundle
from cardioray.training.loop import train_worker
from cardioray.training.outcome import Outcome, read_outcome
from cardioray.training.plan import TrainPlan
from cardioray.training.run import make_plan
from cardioray.training.scoring import score_plan
from cardioray.training.settings import RunConfig

SIZE = 32
PATIENTS = 32
FRAMES = 2
SPLITS = ("train",) * 20 + ("validation",) * 4 + ("calibration",) * 4 + ("test",) * 4
TINY = (
    f"preprocess.image_size={SIZE}",
    "model.backbone=test_resnet",
    "model.pretrained=none",
    "train.batch_size=8",
    "train.precision=fp32",
    "scale.threads_per_worker=1",
    "train.recipe=scratch",
    "train.epochs=3",
)


def write_pictures(folder: Path, patients: int = PATIENTS, seed: int = 0) -> Path:
    """Noise with a disc that is darker in patients with a low FFR, and manifest.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[:SIZE, :SIZE]
    rows = []
    for patient in range(patients):
        ffr = 0.70 if patient % 2 else 0.90
        for frame in range(FRAMES):
            picture = rng.normal(120, 25, (SIZE, SIZE))
            y, x = rng.uniform(10, 22, 2)
            picture[(down - y) ** 2 + (across - x) ** 2 < 36] -= 70 if patient % 2 else 20
            name = f"p{patient:02d}_{frame}.png"
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / name)
            rows.append((f"p{patient:02d}-{frame}", f"p{patient:02d}", name, ffr))
    table = pd.DataFrame(rows, columns=["sample_id", "patient_id", "source", "ffr"])
    table.to_csv(folder / "manifest.csv", index=False)
    return folder


def tiny_run(*overrides: str, values: Mapping[str, Any] | None = None) -> RunConfig:
    """A run of seconds."""
    return RunConfig.build("ffr", values, (*TINY, *overrides))


def tiny_shards(folder: Path, run: RunConfig | None = None, **settings: Any) -> ShardSet:
    """Shards of several parts for a run, from pictures written for them."""
    task = (run or tiny_run()).task
    manifest = task.read_manifest(str(write_pictures(folder / "pictures")), None)
    settings = {"sources_per_part": 16, **settings}
    return prepare(task, manifest, str(folder / "shards"), PrepareConfig(**settings))


def tiny_split(shards: ShardSet) -> pd.Series:
    """The split of every sample: patients by their number."""
    number = shards.samples["patient_id"].str.removeprefix("p").astype(int)
    return number.map(dict(enumerate(SPLITS)))


def plan_of(run: RunConfig, shards: ShardSet, folder: Path) -> TrainPlan:
    """What the driver would hand to the workers."""
    return make_plan(
        run, shards, tiny_split(shards), str(folder), str(folder / "weights"), None, folder.name
    )


def train_here(run: RunConfig, shards: ShardSet, folder: Path) -> Outcome:
    """The loop in this process, by Ray Train's local mode; one thread, as workers have."""
    return train_plan_here(plan_of(run, shards, folder))


def train_plan_here(plan: TrainPlan) -> Outcome:
    """As `train_here`, for a plan."""
    written = dict(plan.run)
    columns = RunConfig.build(written.pop("task"), written).task.stored
    threads, temporary = torch.get_num_threads(), tempfile.tempdir
    torch.set_num_threads(1)
    # Local mode leaves checkpoints where they were written.
    tempfile.tempdir = str(Path(plan.folder).parent)
    try:
        TorchTrainer(
            lambda settings: train_worker(settings["plan"]),
            train_loop_config={"plan": plan},
            scaling_config=ScalingConfig(num_workers=0),
            run_config=RayRunConfig(name="here"),
            datasets={n: read_rows(plan.shards, r, columns) for n, r in plan.rows.items()},
        ).fit()
    finally:
        torch.set_num_threads(threads)
        tempfile.tempdir = temporary
    outcome = read_outcome(plan.folder)
    assert outcome is not None
    return outcome


@contextlib.contextmanager
def training_here(*, draws: bool = False) -> Iterator[None]:
    """What makes bundles trains in this process: starting Ray Train's own takes 15 s of a core.

    Args:
        draws: draw the plots of bundles, too, a quarter of what making one takes.
    """

    def train(
        run: RunConfig,
        shards: ShardSet,
        split: pd.Series[str],
        out: str,
        *,
        name: str,
        progress: None,
        called_off: None = None,
    ) -> Outcome:
        place, cache = Path(out) / name, str(Path(out) / "weights")
        finished = read_outcome(str(place))
        plan = make_plan(run, shards, split, str(place), cache, progress, name)
        return finished or train_plan_here(plan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cardioray.training.single.train", train)
        patch.setattr("cardioray.tuning.compare.train", train)
        patch.setattr("cardioray.training.run.train", train)  # of what a network starts from
        if not draws:
            patch.setattr("cardioray.training.export._write_plots", lambda *_: None)
        yield


class Interruption:
    """Stands in the place of the progress board and ends, or stops, rank 0 in mid-epoch, once.

    Args:
        folder: the run's folder, or where it would be if it were not in a bucket.
        after: epochs that are finished and in a committed checkpoint when it happens.
        kill: end the process, or only wait for someone else to do so.
        run: where the run is, when it is in a bucket.
    """

    def __init__(self, folder: Path, after: int, *, kill: bool, run: str | None = None) -> None:
        self.folder, self.after, self.kill = folder, after, kill
        self.run = run or str(folder)
        self.update = self

    @property
    def happened(self) -> Path:
        return self.folder.parent / f"{self.folder.name}.interrupted"

    def epochs_told_after(self) -> list[float]:
        """How far the run was each time it said so, once it had been taken up again."""
        return [float(line) for line in self.happened.read_text().split()]

    def remote(self, label: str, state: Mapping[str, Any]) -> None:
        if "epoch" not in state:
            return
        if self.happened.exists():
            with self.happened.open("a") as stream:
                stream.write(f"{state['epoch']}\n")
            return
        # An epoch says how far it is while it trains; its checkpoint comes later.
        if state["epoch"] <= self.after:
            return
        wait_for(lambda: registered(self.run, self.after))
        self.happened.touch()
        if self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            time.sleep(1)


def registered(run: str, checkpoint: int) -> bool:
    """Whether Ray Train knows of a checkpoint, which its folder being there does not say."""
    snapshot = storage.join(run, "checkpoint_manager_snapshot.json")
    wanted = f"checkpoint_{checkpoint:05d}".encode()
    return storage.exists(snapshot) and wanted in storage.read_bytes(snapshot)


def wait_for(condition: Callable[[], bool], seconds: float = 240.0) -> None:
    """Wait until something holds; fails when it never does."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def texts(outcome: Outcome, names: Sequence[str] = ("log.csv", "losses.csv")) -> dict[str, bytes]:
    """Files of a run, byte by byte."""
    return {name: storage.read_bytes(storage.join(outcome.folder, name)) for name in names}


# Workers do not find the tests' folder; what they get from here travels whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def untrained_bundle(
    run: RunConfig, plan: TrainPlan, split: pd.Series[str], weights: Mapping[str, Any], place: Path
) -> Bundle:
    """A bundle of weights as they are, scored as a finished run scores."""
    source = BundleSource(
        run=run,
        shards=plan.shards,
        split=split,
        weights=weights,
        statistics=plan.statistics,
        predictions=score_plan(plan, weights).predictions,
        calibration_predictions=None,
        log=None,
        name=plan.label,
        comparison=None,
        starting_weights="none: random weights, for tests",
    )
    return write_bundle(source, str(place))
