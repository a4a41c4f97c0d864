"""Task `echo-view`: which view of the heart an echo cine shows.

A study names its views seldom, and a network that has learned from one view says nothing about
another. This small classifier sorts the cines of a study to the networks of their views, and how
sure it is tells whether a cine shows any of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from cardioray.config import config
from cardioray.data.manifest import Manifest
from cardioray.data.sampling import ClipSampling
from cardioray.models.video import VideoModelConfig
from cardioray.targets import BinaryTarget, RegressionTarget, choice
from cardioray.tasks.base import TASKS
from cardioray.tasks.video import VideoSettings, VideoTask

VIEW = "view"


@config
class EchoViewSettings(VideoSettings):
    """Settings of `echo-view`; see `VideoSettings`.

    Attributes:
        classes: the views that are told apart, as the manifest spells them.
    """

    classes: tuple[str, ...] = Field(default=("A4C", "A2C", "PLAX"), min_length=2)
    # A view is told from a few frames: half a beat, one window a cine.
    sampling: ClipSampling = ClipSampling(frames=8, stride=3, max_windows=1)
    model: VideoModelConfig = VideoModelConfig(backbone="r2plus1d_10_slim", pretrained="none")

    def __post_init__(self) -> None:
        if self.views and {v.lower() for v in self.views} != {c.lower() for c in self.classes}:
            raise ValueError("views: of echo-view it is `classes` that says which take part.")


@TASKS.register("echo-view")
class EchoViewTask(VideoTask):
    """Which view of the heart a cine shows."""

    name: ClassVar[str] = "echo-view"
    title: ClassVar[str] = "Which view of the heart an echo cine shows"
    intended_use: ClassVar[str] = (
        "Research: sorting the cines of an echo study by view. Not for clinical use."
    )
    settings_type: ClassVar[type] = EchoViewSettings
    settings: EchoViewSettings

    @property
    def targets(self) -> tuple[BinaryTarget | RegressionTarget, ...]:
        """One for each view; their probabilities add up to 1."""
        return choice(VIEW, VIEW, self.settings.classes)

    def read_manifest(self, data: str, patient_from: str | None) -> Manifest:
        """As of every task about clips; each cine is answered by itself."""
        manifest = super().read_manifest(data, patient_from)
        table = manifest.table.assign(study_id=self.studies(manifest.table))
        return replace(manifest, table=table)

    def takes_part(self, samples: pd.DataFrame) -> NDArray[np.bool_]:
        """Cines of the views that are told apart."""
        known = {view.lower() for view in self.settings.classes}
        return samples[VIEW].str.lower().isin(known).to_numpy(bool)

    def studies(self, samples: pd.DataFrame) -> pd.Series[str]:
        """Every cine: the views of a study differ."""
        return samples["sample_id"]
