"""The ejection fraction beat by beat, with the systoles of a cine found in its outlines.

A network for clips says one number a window; which windows belong to which beat is told from the
area of the cavity, which a network of `lv-seg` outlines in the same frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cardioray.answers import ModelOutputs
from cardioray.bundle import Bundle
from cardioray.clinical.beats import phases_of
from cardioray.data.clip import CLIP
from cardioray.data.decoding import DecodedSample
from cardioray.data.outlined_clip import FRAMES, OutlinedClipDecoder
from cardioray.data.segment import IMAGE
from cardioray.models.segmentation import MASKS
from cardioray.outlines import cavity_pixels, tidied_map
from cardioray.predictor import Predictor
from cardioray.tasks.echo_ef import EchoEfTask, Systole
from cardioray.tasks.lv_seg import LvSegTask

_NO_PICTURE = np.zeros((1, 1), np.uint8)


@dataclass(frozen=True)
class BeatOutputs(ModelOutputs):
    """What a network says of some cines, with their systoles.

    Attributes:
        systoles: per cine, the systole of each beat in frames of the clip; () for a cine that the
            networks were not asked about.
    """

    systoles: Sequence[Sequence[Systole]]

    def __getitem__(self, part: slice) -> BeatOutputs:
        return self.take(np.arange(len(self))[part])

    def take(self, chosen: NDArray[np.int64]) -> BeatOutputs:
        """The outputs for some of the cines."""
        own = super().take(chosen)
        systoles = [self.systoles[i] for i in chosen]
        return BeatOutputs(own.scores, own.features, own.windows, systoles)


class OutlinedBeatsPredictor(Predictor):
    """As every predictor; see there. Its beats are those of the outlines of another network.

    Attributes:
        outliner: outlines the frames.
    """

    task: EchoEfTask

    def __init__(self, bundle: Bundle, outliner: Predictor, **options: Any) -> None:
        """Read a bundle.

        Args:
            bundle: of task `echo-ef`.
            outliner: of a bundle of task `lv-seg`.
            **options: of `Predictor`.

        Raises:
            ValueError: when a bundle is of another task.
        """
        if bundle.task != EchoEfTask.name:
            raise ValueError(
                f"systoles_from: systoles are looked for by {EchoEfTask.name}, and {bundle.path} "
                f"is a bundle of {bundle.task}. Leave it out."
            )
        if outliner.bundle.task != LvSegTask.name:
            raise ValueError(
                f"systoles_from: {outliner.bundle.path} is a bundle of {outliner.bundle.task}; "
                f"systoles are found in the outlines of a bundle of {LvSegTask.name}."
            )
        super().__init__(bundle, **options)
        self.outliner = outliner

    @property
    def decoder(self) -> OutlinedClipDecoder:
        """From a file to a clip and the frames to outline."""
        assert isinstance(self.outliner.task, LvSegTask)
        return OutlinedClipDecoder(clip=self.task.decoder, segments=self.outliner.task.decoder)

    def infer(self, samples: Sequence[DecodedSample]) -> BeatOutputs:
        """Run both networks over cines of one or of many studies.

        Raises:
            UnreadableImage: when there are none.
        """
        outputs = super().infer(samples)
        systoles = [
            self._systoles(sample) if mine else ()
            for sample, mine in zip(samples, outputs.asked, strict=True)
        ]
        return BeatOutputs(outputs.scores, outputs.features, outputs.windows, systoles)

    def passes(self, samples: Sequence[DecodedSample]) -> int:
        """How many forward passes `infer` takes for some samples, at least 1."""
        most = self.outliner.task.max_batch
        mine = compress(samples, self._of_own_views(samples))
        outlining = sum(-(-len(sample.arrays[FRAMES]) // most) for sample in mine)
        return super().passes(samples) + outlining

    def answer(self, samples: Sequence[DecodedSample], outputs: ModelOutputs) -> dict[str, Any]:
        """The answer for one study from what the networks said of its cines.

        Raises:
            UnreadableImage: when every cine is of another view than the network was trained on.
        """
        assert isinstance(outputs, BeatOutputs)
        answer = super().answer(samples, outputs)
        answer |= self.task.outlined_beats(samples, outputs.windows, outputs.systoles)
        answer["systoles_from"] = {
            "source": "outlines",
            "model": self.outliner.bundle.name,
            "bundle": self.outliner.bundle.identity,
        }
        answer["warnings"] += [
            f"{f'Cine {number}: ' if len(samples) > 1 else ''}No cavity was outlined in two frames "
            "or more; beats are not told apart."
            for number in np.flatnonzero(outputs.asked).tolist()
            if not outputs.systoles[number]
        ]
        return answer

    def blank(self) -> DecodedSample:
        """A cine of which every pixel is black."""
        blank = super().blank()
        frames = np.zeros((len(blank.arrays[CLIP]), *self.outliner.blank().arrays[IMAGE].shape))
        facts = {"height_px": 64.0, "width_px": 64.0}
        arrays = {**blank.arrays, FRAMES: frames.astype(np.uint8)}
        return replace(blank, arrays=arrays, facts=facts)

    def _headline(self, sample: DecodedSample) -> dict[str, Any]:
        # A heat map needs no beats.
        outputs = Predictor.infer(self, [sample])
        headline: dict[str, Any] = Predictor.answer(self, [sample], outputs)[
            self.task.targets[0].name
        ]
        return headline

    def _systoles(self, sample: DecodedSample) -> list[Systole]:
        """The systole of each beat of a cine, in frames of its clip."""
        facts = sample.facts
        rate, source_rate = (facts.get(name, math.nan) for name in ("fps", "source_fps"))
        known = not math.isnan(source_rate)
        pairs = phases_of(self._areas(sample), source_rate if known else None)
        share = rate / source_rate if known else 1.0
        last = len(sample.arrays[CLIP]) - 1
        return [
            Systole(min(round(ed * share), last), min(round(es * share), last)) for ed, es in pairs
        ]

    def _areas(self, sample: DecodedSample) -> NDArray[np.float64]:
        """Pixels of the cavity in each frame of the file, NaN where there is none; (T,)."""
        task = self.outliner.task
        assert isinstance(task, LvSegTask)
        height, width = (int(sample.facts[f"{side}_px"]) for side in ("height", "width"))
        frames, areas = sample.arrays[FRAMES], []
        # A cine at a time would hold the probabilities of all its pixels.
        for start in range(0, len(frames), task.max_batch):
            part = [_frame(frame) for frame in frames[start : start + task.max_batch]]
            found = self.outliner.infer(part).scores[MASKS]
            areas.append(cavity_pixels([tidied_map(task, own, height, width) for own in found]))
        return np.concatenate(areas)


def _frame(picture: NDArray[np.uint8]) -> DecodedSample:
    arrays: Mapping[str, NDArray[np.uint8]] = {IMAGE: picture}
    return DecodedSample(frame="0", arrays=arrays, picture=_NO_PICTURE)
