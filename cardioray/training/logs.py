"""What a run leaves while it goes on: CSV logs, TensorBoard events, and MLflow where it is used.

log.csv and losses.csv hold what the seed decides and are equal in every run with the same settings;
timing.csv and TensorBoard also hold what the machine decides.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from tensorboardX import SummaryWriter

from cardioray import storage
from cardioray.scratch import process_folder
from cardioray.training.outcome import TIMING, write_log
from cardioray.training.state import Progress
from cardioray.training.tracking import TrackedRun, Tracking

TENSORBOARD = "tensorboard"


@dataclass
class RunLogs:
    """The logs of one run, kept by rank 0.

    Attributes:
        folder: the run's folder or prefix.
        timing: rows of timing.csv.
        writer: of TensorBoard events.
        events: local folder the events are written to.
        tracked: the run on an MLflow server, or None where none is named.
    """

    folder: str
    timing: list[dict[str, Any]]
    writer: SummaryWriter
    events: str
    tracked: TrackedRun | None

    @classmethod
    def open(
        cls,
        folder: str,
        label: str,
        settings: Mapping[str, Any],
        progress: Progress,
        tracking: Tracking | None,
    ) -> RunLogs:
        """Begin logs, or go on with those of a stopped run, cut back to its checkpoint.

        Args:
            folder: the run's folder or prefix.
            label: name of the run.
            settings: written form of the run's settings.
            progress: where the run stands.
            tracking: MLflow server that is told, or None.

        Raises:
            ValueError: when MLFLOW_TRACKING_URI is set but MLflow is not installed.
        """
        place = storage.join(folder, TENSORBOARD)
        events = tempfile.mkdtemp(dir=process_folder()) if storage.is_remote(folder) else place
        logs = cls(
            folder=folder,
            timing=_read_timing(folder, progress.epoch),
            writer=SummaryWriter(events, purge_step=progress.epoch + 1),
            events=events,
            tracked=TrackedRun.open(tracking, folder, label, settings) if tracking else None,
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
        if self.tracked is not None:
            self.tracked.log(progress.epoch, figures)

    def close(self) -> None:
        """End the logs of a finished run."""
        self.writer.close()
        if self.tracked is not None:
            self.tracked.end()


def _read_timing(folder: str, last_epoch: int) -> list[dict[str, Any]]:
    path = storage.join(folder, TIMING)
    if not storage.exists(path):
        return []
    table = pd.read_csv(io.BytesIO(storage.read_bytes(path)))
    rows = table[table["epoch"] <= last_epoch].to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]
