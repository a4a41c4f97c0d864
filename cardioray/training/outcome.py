"""The folder a finished run leaves: what later steps read, and nothing else.

config.yaml         the run's settings
model.safetensors   weights of the best epoch
log.csv             one row an epoch; the same for an interrupted run and one that was not
losses.csv          training loss of every step
timing.csv          speed and seconds of every epoch; not the same twice
predictions.parquet predictions of validation, calibration and test
parts.parquet       of answers that are made of several samples, what is known of each
outcome.json        written last; without it the run is not finished
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from safetensors.torch import load, save
from torch import Tensor

from cardioray import storage
from cardioray.data.shards import write_table
from cardioray.tasks.base import Tables
from cardioray.training.state import Progress

CONFIG = "config.yaml"
WEIGHTS = "model.safetensors"
LOG = "log.csv"
LOSSES = "losses.csv"
TIMING = "timing.csv"
PREDICTIONS = "predictions.parquet"
PARTS = "parts.parquet"
OUTCOME = "outcome.json"
# Beside the folders of runs: published weights, fetched once for all of them.
WEIGHTS_CACHE = "weights"


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        folder: the run's folder or prefix.
        best: best monitored validation figure.
        best_epoch: epoch that reached it.
        standing: its standing among runs (`Monitor.standing`); more is better.
        epochs: epochs trained in all stages.
        notes: what went otherwise than it should.
    """

    folder: str
    best: float
    best_epoch: int
    standing: float
    epochs: int
    notes: tuple[str, ...]

    def tables(self) -> Tables:
        """The tables of all scored splits."""
        parts = storage.join(self.folder, PARTS)
        return Tables(self.predictions(), _read(parts) if storage.exists(parts) else None)

    def predictions(self) -> pd.DataFrame:
        """The predictions table of all scored splits."""
        return _read(storage.join(self.folder, PREDICTIONS))

    def log(self) -> pd.DataFrame:
        """The training log, one row an epoch."""
        return pd.read_csv(io.BytesIO(storage.read_bytes(storage.join(self.folder, LOG))))

    @property
    def weights_place(self) -> str:
        """The file with the weights of the best epoch."""
        return storage.join(self.folder, WEIGHTS)

    def weights(self) -> dict[str, Tensor]:
        """The weights of the best epoch."""
        return load(storage.read_bytes(self.weights_place))


def _read(path: str) -> pd.DataFrame:
    return pd.read_parquet(io.BytesIO(storage.read_bytes(path)))


def write_log(folder: str, progress: Progress) -> None:
    """Write the log as it stands; rows past a checkpoint a run went back to disappear."""
    log = pd.DataFrame(progress.log).to_csv(index=False)
    storage.write_bytes(storage.join(folder, LOG), log.encode())
    steps = pd.DataFrame(
        {"step": range(1, len(progress.losses) + 1), "train_loss": progress.losses}
    )
    storage.write_bytes(storage.join(folder, LOSSES), steps.to_csv(index=False).encode())


def write_outcome(
    folder: str, weights: Mapping[str, Tensor], progress: Progress, tables: Tables
) -> None:
    """Leave the result of a run; outcome.json last."""
    write_log(folder, progress)
    cpu = {key: value.cpu().contiguous() for key, value in weights.items()}
    storage.write_bytes(storage.join(folder, WEIGHTS), save(cpu))
    write_table(storage.join(folder, PREDICTIONS), tables.predictions)
    if tables.parts is not None:
        write_table(storage.join(folder, PARTS), tables.parts)
    record = {
        "best": progress.best,
        "best_epoch": progress.best_epoch,
        "standing": progress.standing,
        "epochs": progress.epoch,
        "notes": progress.notes,
    }
    storage.write_bytes(storage.join(folder, OUTCOME), json.dumps(record, indent=2).encode())


def read_outcome(folder: str) -> Outcome | None:
    """The outcome of a finished run, or None."""
    path = storage.join(folder, OUTCOME)
    if not storage.exists(path):
        return None
    record = json.loads(storage.read_bytes(path))
    return Outcome(folder=folder, **record | {"notes": tuple(record["notes"])})
