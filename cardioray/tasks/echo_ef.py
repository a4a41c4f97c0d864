"""Task `echo-ef`: the left ventricle's ejection fraction from an apical four-chamber cine.

EchoNet-Dynamic's question and method (Ouyang et al., Nature 2020, doi:10.1038/s41586-020-2145-8):
R(2+1)D over windows of 32 frames, every other one, all windows of a cine averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cardioray.config import config
from cardioray.data.decoding import DecodedSample
from cardioray.targets import BinaryTarget, RegressionTarget
from cardioray.tasks.base import TASKS
from cardioray.tasks.clip_answers import clip_details
from cardioray.tasks.video import VideoSettings, VideoTask

EF_TARGET = RegressionTarget(
    name="ef", value_column="EF", unit="%", low=0.0, high=100.0, cutoffs=(35.0, 40.0, 45.0, 50.0)
)
# Further heads on request, in the columns that EchoNet has them in.
EDV_TARGET = RegressionTarget(name="edv", value_column="EDV", unit="ml", low=0.0, high=1000.0)
ESV_TARGET = RegressionTarget(name="esv", value_column="ESV", unit="ml", low=0.0, high=1000.0)


@config
class EchoEfSettings(VideoSettings):
    """Settings of `echo-ef`; see `VideoSettings`.

    Attributes:
        volumes: predict end-diastolic and end-systolic volume, too.
    """

    views: tuple[str, ...] = ("A4C",)
    volumes: bool = False


@TASKS.register("echo-ef")
class EchoEfTask(VideoTask):
    """Ejection fraction from an apical four-chamber cine."""

    name: ClassVar[str] = "echo-ef"
    title: ClassVar[str] = "Left-ventricular ejection fraction from an apical four-chamber cine"
    intended_use: ClassVar[str] = (
        "Research: estimating the ejection fraction of adults from apical four-chamber "
        "echocardiograms. Not for clinical use."
    )
    settings_type: ClassVar[type] = EchoEfSettings
    settings: EchoEfSettings

    @property
    def targets(self) -> tuple[BinaryTarget | RegressionTarget, ...]:
        """EF, and the volumes where they are wanted."""
        return (EF_TARGET, EDV_TARGET, ESV_TARGET) if self.settings.volumes else (EF_TARGET,)

    def details(
        self, samples: Sequence[DecodedSample], windows: Mapping[str, Sequence[NDArray[np.float32]]]
    ) -> dict[str, Any]:
        """EF beat by beat, and what of each cine was used, with what speaks against it.

        Returns:
            `beats`: per beat of each cine that takes part its EF and the frames where its windows
            begin;
            `beat_range`: lowest and highest of them, or None where no beat was told apart;
            `cines`: per cine frames in the file, frames used, fps and windows.
        """
        return clip_details(self.sampler, samples, windows[EF_TARGET.name])
