"""Task `ffr`: is the fractional flow reserve of a coronary artery 0.80 or less?

Input: frames of an angiogram (XA). Ten backbones are compared, as in the FFR-Estimation system
(Arefinia et al., Scientific Reports 2024, doi:10.1038/s41598-024-52360-5), whose folder names
FFRH (FFR > 0.80) and FFRL (FFR <= 0.80) are read as they are.
"""

from __future__ import annotations

from typing import ClassVar

from cardioray.config import config
from cardioray.targets import BinaryTarget, RegressionTarget
from cardioray.tasks.base import TASKS
from cardioray.tasks.image import ImageSettings, ImageTask

FFR_TARGET = BinaryTarget(
    name="ffr",
    positive="FFR<=0.80",
    negative="FFR>0.80",
    value_column="ffr",
    cutoff=0.80,
    operator="<=",
    positive_aliases=("FFRL",),
    negative_aliases=("FFRH",),
    low=0.0,
    high=1.1,  # a pressure wire that drifts reads a little above 1
)

# Second head on request: `--set value_target="{...}"`, or this constant from Python.
FFR_VALUE = RegressionTarget(name="ffr_value", value_column="ffr", low=0.0, high=1.1)


@config
class FfrSettings(ImageSettings):
    """Settings of `ffr`; see `ImageSettings`."""

    target: BinaryTarget = FFR_TARGET
    frames: str = "contrast"


@TASKS.register("ffr")
class FfrTask(ImageTask):
    """FFR at or below 0.80 from frames of a coronary angiogram."""

    name: ClassVar[str] = "ffr"
    title: ClassVar[str] = "FFR at or below 0.80 from coronary angiogram frames"
    intended_use: ClassVar[str] = (
        "Research: ranking angiograms by the chance that an intermediate LAD stenosis limits flow. "
        "Not for clinical use."
    )
    settings_type: ClassVar[type] = FfrSettings

    @property
    def modality(self) -> str:
        """X-ray angiography."""
        return "XA"
