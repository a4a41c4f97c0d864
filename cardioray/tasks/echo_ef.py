"""Task `echo-ef`: the left ventricle's ejection fraction from an apical four-chamber cine.

EchoNet-Dynamic's question and method (Ouyang et al., Nature 2020, doi:10.1038/s41586-020-2145-8):
R(2+1)D over windows of 32 frames, every other one, all windows of a cine averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cardioray.config import config
from cardioray.data.clip import CLIP
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


class Systole(NamedTuple):
    """The contraction of one beat, in frames of a clip.

    Attributes:
        ed: end diastole.
        es: end systole; before `ed` where no beat was told apart.
    """

    ed: int
    es: int


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
            `systoles_from`: what the beats were told by;
            `cines`: per cine frames in the file, frames used, fps and windows.
        """
        found = clip_details(self.sampler, samples, windows[EF_TARGET.name])
        return {**found, "systoles_from": {"source": "predictions"}}

    def outlined_beats(
        self,
        samples: Sequence[DecodedSample],
        windows: Mapping[str, Sequence[NDArray[np.float32]]],
        systoles: Sequence[Sequence[Systole]],
    ) -> dict[str, Any]:
        """EF beat by beat where the systoles are known.

        The value of a beat is the mean over the windows that hold its whole systole; where none
        does, that of the window whose middle is nearest to it. So a window may count for two
        beats.

        Args:
            samples: the cines of a study.
            windows: per target and cine, what the network says of every window.
            systoles: per cine, the systole of each beat.

        Returns:
            `beats`: per beat of each cine its EF, the frames of its phases, and the first and the
            last frame of its windows;
            `beat_range`: lowest and highest of them, or None where no beat was told apart.
        """
        beats: list[dict[str, Any]] = []
        span = self.sampler.span
        for number, (sample, values, own) in enumerate(
            zip(samples, windows[EF_TARGET.name], systoles, strict=True)
        ):
            count = len(sample.arrays[CLIP])
            starts = np.array(self.sampler.starts(count, thorough=True))
            for systole in own:
                first, last = min(systole), max(systole)
                chosen = (starts <= first) & (starts + span > last)
                if not chosen.any():
                    distance = np.abs(starts + (span - 1) / 2 - (first + last) / 2)
                    chosen = distance == distance.min()
                begun = starts[chosen]
                beats.append(
                    {
                        "cine": number,
                        "first_frame": int(begun[0]),
                        "last_frame": min(int(begun[-1]) + span, count) - 1,
                        "ed_frame": systole.ed,
                        "es_frame": systole.es,
                        "value": float(values[chosen].mean(dtype=np.float64)),
                    }
                )
        every = [beat["value"] for beat in beats]
        told_apart = any(len(own) > 1 for own in systoles)
        return {"beats": beats, "beat_range": [min(every), max(every)] if told_apart else None}
