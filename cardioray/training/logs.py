"""What a run leaves while it goes on: CSV logs, TensorBoard events, and MLflow where it is used.

log.csv and losses.csv hold what the seed decides and are equal in every run with the same settings;
timing.csv and TensorBoard also hold what the machine decides.
"""

from __future__ import annotations

import importlib
import io
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import yaml
from tensorboardX import SummaryWriter

from cardioray import storage
from cardioray.training.outcome import write_log
from cardioray.training.state import Progress

TIMING = "timing.csv"
TENSORBOARD = "tensorboard"
MLFLOW_RUN = "mlflow_run_id.txt"
TRACKING_URI = "MLFLOW_TRACKING_URI"


@dataclass
class RunLogs:
    """The logs of one run, kept by rank 0.

    Attributes:
        folder: the run's folder or prefix.
        timing: rows of timing.csv.
        writer: of TensorBoard events.
        events: local folder the events are written to.
        mlflow: client and run id, or None where no tracking server is named.
    """

    folder: str
    timing: list[dict[str, Any]]
    writer: SummaryWriter
    events: str
    mlflow: tuple[Any, str] | None

    @classmethod
    def open(
        cls, folder: str, label: str, settings: Mapping[str, Any], progress: Progress
    ) -> RunLogs:
        """Begin logs, or go on with those of a stopped run, cut back to its checkpoint.

        Args:
            folder: the run's folder or prefix.
            label: name of the run.
            settings: written form of the run's settings.
            progress: where the run stands.

        Raises:
            ValueError: when MLFLOW_TRACKING_URI is set but MLflow is not installed.
        """
        place = storage.join(folder, TENSORBOARD)
        events = (
            tempfile.mkdtemp(prefix="cardioray-events-") if storage.is_remote(folder) else place
        )
        logs = cls(
            folder=folder,
            timing=_read_timing(folder, progress.epoch),
            writer=SummaryWriter(events, purge_step=progress.epoch + 1),
            events=events,
            mlflow=_open_mlflow(folder, label, settings),
        )
        if progress.log:
            write_log(folder, progress)
        return logs

    def write_epoch(self, progress: Progress, speed: Mapping[str, float]) -> None:
        """Note the epoch that just ended.

        Args:
            progress: with the epoch's row as the last of its log.
            speed: images_per_second, data_wait_share and epoch_seconds.
        """
        write_log(self.folder, progress)
        self.timing.append({"epoch": progress.epoch, **speed})
        table = pd.DataFrame(self.timing).to_csv(index=False)
        storage.write_bytes(storage.join(self.folder, TIMING), table.encode())
        row = {**progress.log[-1], **speed}
        figures = {
            key: float(value)
            for key, value in row.items()
            if key != "epoch" and isinstance(value, int | float)
        }
        for key, value in figures.items():
            self.writer.add_scalar(key, value, progress.epoch)
        self.writer.flush()
        if self.events != storage.join(self.folder, TENSORBOARD):
            storage.copy_folder(self.events, storage.join(self.folder, TENSORBOARD))
        if self.mlflow is not None:
            client, run_id = self.mlflow
            for key, value in figures.items():
                client.log_metric(run_id, key, value, step=progress.epoch)

    def close(self) -> None:
        """End the logs of a finished run."""
        self.writer.close()
        if self.mlflow is not None:
            client, run_id = self.mlflow
            client.set_terminated(run_id)


def _read_timing(folder: str, last_epoch: int) -> list[dict[str, Any]]:
    path = storage.join(folder, TIMING)
    if not storage.exists(path):
        return []
    table = pd.read_csv(io.BytesIO(storage.read_bytes(path)))
    rows = table[table["epoch"] <= last_epoch].to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]


def _open_mlflow(folder: str, label: str, settings: Mapping[str, Any]) -> tuple[Any, str] | None:
    if not os.environ.get(TRACKING_URI):
        return None
    try:
        tracking = importlib.import_module("mlflow")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{TRACKING_URI} is set, but MLflow is not installed: pip install cardioray[tracking], "
            f"or unset {TRACKING_URI}."
        ) from error
    client = tracking.MlflowClient()
    path = storage.join(folder, MLFLOW_RUN)
    if storage.exists(path):
        return client, storage.read_bytes(path).decode()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "cardioray")
    experiment = client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment else client.create_experiment(name)
    run_id = client.create_run(number, run_name=label).info.run_id
    client.log_text(run_id, yaml.safe_dump(dict(settings), sort_keys=False), "config.yaml")
    storage.write_bytes(path, run_id.encode())
    return client, run_id
