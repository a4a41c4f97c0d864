"""Runs on an MLflow server, where the extra is installed and a server is named."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from cardioray import storage

log = logging.getLogger(__name__)

RUN_ID = "mlflow_run_id.txt"
TRACKING_URI = "MLFLOW_TRACKING_URI"
EXPERIMENT = "MLFLOW_EXPERIMENT_NAME"


@dataclass(frozen=True)
class Tracking:
    """Where runs are logged; named by the driver's environment, which workers may not have.

    Attributes:
        uri: of the server.
        experiment: name; made where it is absent.
    """

    uri: str
    experiment: str

    @classmethod
    def from_environment(cls) -> Tracking | None:
        """What the driver was told, or None."""
        uri = os.environ.get(TRACKING_URI)
        return cls(uri, os.environ.get(EXPERIMENT, "cardioray")) if uri else None


@dataclass(frozen=True)
class TrackedRun:
    """One run on the server.

    Attributes:
        client: MLflow's.
        run_id: the server's name for the run.
        logged: the last epoch it has; a resumed run repeats none.
    """

    client: Any
    run_id: str
    logged: int

    @classmethod
    def open(
        cls, tracking: Tracking, folder: str, label: str, settings: Mapping[str, Any]
    ) -> TrackedRun:
        """Begin a run, or go on with that of the folder.

        Raises:
            ValueError: when MLflow is not installed.
        """
        client = _client(tracking)
        place = storage.join(folder, RUN_ID)
        if storage.exists(place):
            run_id = storage.read_bytes(place).decode()
            client.update_run(run_id, status="RUNNING")
            steps = [metric.step for metric in client.get_metric_history(run_id, "train_loss")]
            return cls(client, run_id, max(steps, default=0))
        experiment = client.get_experiment_by_name(tracking.experiment)
        number = (
            experiment.experiment_id
            if experiment
            else client.create_experiment(tracking.experiment)
        )
        run_id = client.create_run(number, run_name=label).info.run_id
        client.log_text(run_id, yaml.safe_dump(dict(settings), sort_keys=False), "config.yaml")
        storage.write_bytes(place, run_id.encode())
        return cls(client, run_id, 0)

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Log the figures of an epoch."""
        if epoch > self.logged:
            for key, value in figures.items():
                self.client.log_metric(self.run_id, key, value, step=epoch)

    def end(self) -> None:
        """Say that the run is finished."""
        self.client.set_terminated(self.run_id, "FINISHED")


def end_tracked(folder: str, status: str) -> None:
    """Say of a run that did not come to its end how it ended; called by the driver.

    What ended the run is on its way to the user: that the server cannot be told is a warning, and
    must not take its place.

    Args:
        folder: the run's folder.
        status: "KILLED" or "FAILED".
    """
    tracking = Tracking.from_environment()
    place = storage.join(folder, RUN_ID)
    try:
        if tracking is not None and storage.exists(place):
            _client(tracking).set_terminated(storage.read_bytes(place).decode(), status)
    except Exception as error:  # whatever a server and the way to it may raise
        log.warning("MLflow was not told that %s was %s: %s", folder, status.lower(), error)


def _client(tracking: Tracking) -> Any:
    try:
        mlflow = importlib.import_module("mlflow")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{TRACKING_URI} is set, but MLflow is not installed: pip install cardioray[tracking], "
            f"or unset {TRACKING_URI}."
        ) from error
    return mlflow.MlflowClient(tracking_uri=tracking.uri)
