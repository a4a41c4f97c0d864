"""Answers about key frames: the ejection fraction by heads on features, and how sure it is."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load as load_arrays
from scipy.stats import norm

from cardioray.answers import ModelOutputs, binary_answer, number_answer
from cardioray.bundle import Bundle, BundleError
from cardioray.data.decoding import DecodedSample
from cardioray.data.frames import UnreadableImage
from cardioray.data.keyframe_layouts import ED, ES, FRAMES, MID, half_way
from cardioray.data.segment import IMAGE
from cardioray.evaluation.operating_point import BinaryOperatingPoint, RegressionOperatingPoint
from cardioray.models.keyframes import KeyframeModel
from cardioray.predictor import Item, Overlay, Predictor
from cardioray.tasks.keyframe_ef import EF_TARGET, KeyframeEfTask
from cardioray.tasks.keyframe_heads import Answers, FittedHeads

HEADS = "heads.safetensors"
HEADS_RECORD = "heads.json"
REVIEW = "review.json"

_SAID = re.compile(r"(?:(?P<view>A4C|A2C|4CH|2CH)[-_ ])?(?P<frame>ED|ES|MID)", re.IGNORECASE)
_HOW = f"Say which frame each file shows: {', '.join(FRAMES)}, or A4C-ED and so on."
# Central intervals that an answer gives.
_CENTRAL = (50, 80, 95)


class KeyframePredictor(Predictor):
    """As every predictor; see there. `views` says of each item which key frame it is.

    `predict([ed, es], views=["ED", "ES"])` answers for two frames, `predict(cine,
    key_frames=(12, 30))` for a cine whose frames at end diastole and end systole are known.
    """

    task: KeyframeEfTask

    def __init__(self, bundle: Bundle, **options: Any) -> None:
        """Read a bundle; see `Predictor`.

        Raises:
            BundleError: when its heads do not belong together.
        """
        super().__init__(bundle, **options)
        try:
            self.heads = FittedHeads.read(
                bundle.json(HEADS_RECORD), load_arrays((bundle.path / HEADS).read_bytes())
            )
        except ValueError as error:
            raise BundleError(f"{bundle.path}: {HEADS} and {HEADS_RECORD}: {error}") from None
        self.review_sd = float(bundle.json(REVIEW)["sd"])

    def predict(
        self,
        items: Item | Sequence[Item],
        views: Sequence[str] | None = None,
        *,
        key_frames: tuple[int, int] | None = None,
    ) -> dict[str, Any]:
        """Answer for one study.

        Args:
            items: frames, or one cine: file contents, paths (local or s3://), or uint8 arrays.
            views: of each item "ED", "ES" or "MID", perhaps with the view ("A4C-ED").
            key_frames: of a cine, its frames at end diastole and end systole, counted from 0.

        Returns:
            `ef` with `sd` and intervals, the class, `heads`, `review`, and warnings; see
            docs/keyframes.md.

        Raises:
            UnreadableImage: when an item cannot be read, or it is not known which frame it is.
            FileNotFoundError: when a path does not exist.
            ValueError: when there are not as many views as items.
        """
        samples = self.read(items, views)
        if key_frames is not None:
            samples = chosen_frames(samples, key_frames)
        return self.answer(samples, self.infer(samples))

    def answer(self, samples: Sequence[DecodedSample], outputs: ModelOutputs) -> dict[str, Any]:
        """The answer for one study from the features of its frames.

        Raises:
            UnreadableImage: when it is not known which frame is which, one is there twice, or none
                is of those that heads were fitted to.
        """
        assert len(samples) == len(outputs)
        frames = self._frames(samples)
        width = outputs.features.shape[1]
        features = {name: np.full((1, width), np.nan) for name in self.heads.record.frames}
        for place, frame in enumerate(frames):
            if frame in features:
                features[frame][0] = outputs.features[place]
        if all(np.isnan(values).all() for values in features.values()):
            raise UnreadableImage(
                f"None of the frames {', '.join(frames)} is one that heads were fitted to: "
                f"{', '.join(features)}."
            )
        said = self.heads.answer(features)
        number, question = EF_TARGET, self.task.settings.target
        point, decision = self.operating_points[number.name], self.operating_points[question.name]
        assert isinstance(point, RegressionOperatingPoint)
        assert isinstance(decision, BinaryOperatingPoint)
        value, sd = float(said.value[0]), float(said.sd[0])
        ef = number_answer(point, EF_TARGET.unit, np.array([value]))
        ef |= {"sd": sd, "intervals": _intervals(ef["value"], sd)}
        question_said = binary_answer(decision, question.classes, said.probability)
        del question_said["probability_per_frame"]
        missing = [name for name in self.heads.record.frames if name not in frames]
        return {
            number.name: ef,
            question.name: question_said,
            "heads": _by_member(said),
            "review": self._review(ef["value"], sd),
            "model": self.bundle.name,
            "bundle": self.bundle.identity,
            "frames": len(samples),
            "warnings": [
                *self.bundle.metadata["warnings"],
                *(f"No frame {name} was given; heads on it are left out." for name in missing),
                *_left_out(frames, self.heads.record.frames),
                *self.gate_warnings(samples, outputs),
            ],
        }

    def overlay(self, sample: DecodedSample, method: str | None = None) -> Overlay:
        """A frame with the heat of what its heads say, for the side of the cut-off they are on.

        Args:
            sample: one frame, whose view says which ("ED").
            method: "gradcam++" (default) or "gradcam".

        Raises:
            NoFeatureMap: for a backbone whose features are no averages of a feature map.
            UnreadableImage: when it is not known which frame it is.
            ValueError: for another method.
        """
        from cardioray.explain.cam import overlay  # with all it loads; answers need none of it

        heat = self.heat(sample, method or "gradcam++")
        stream = io.BytesIO()
        Image.fromarray(overlay(sample.picture, heat)).save(stream, format="PNG")
        return Overlay(stream.getvalue(), "image/png")

    def explanation(self, sample: DecodedSample, method: str | None = None) -> Overlay:
        """The frame, its heat map and the overlay side by side, as PNG."""
        from cardioray.explain.cam import Explanation, explain_grid

        heat = self.heat(sample, method or "gradcam++")
        [frame] = self._frames([sample])
        grid = explain_grid([Explanation(sample.picture, heat, f"heads on {frame}")])
        return Overlay(grid, "image/png")

    def heat(self, sample: DecodedSample, method: str) -> NDArray[np.float32]:
        """Where in a frame the evidence lies; arguments and errors of `overlay`.

        Returns:
            float32 (h, w) in [0, 1], of the whole frame.
        """
        from cardioray.tasks.keyframe_heat import frame_heat

        [frame] = self._frames([sample])
        if frame not in self.heads.record.frames:
            raise UnreadableImage(f"No head was fitted to a frame {frame}.")
        model = self.model
        assert isinstance(model, KeyframeModel)
        return frame_heat(model, self.heads, frame, sample.arrays[IMAGE], method)

    def warm_up(self, batch_sizes: Iterable[int]) -> None:
        """Make features of blank frames, so that the first request is not the slow one."""
        for size in batch_sizes:
            self.infer([self.blank()] * size)

    def _frames(self, samples: Sequence[DecodedSample]) -> list[str]:
        found = []
        for sample in samples:
            match = _SAID.fullmatch(sample.view.strip())
            if match is None:
                what = f"{sample.view!r} is none of these. " if sample.view else ""
                raise UnreadableImage(f"{what}{_HOW}")
            if sample.facts.get("is_cine") == 1 and sample.view and not sample.facts.get("chosen"):
                raise UnreadableImage(
                    f"The file that was sent as the frame {match['frame'].upper()} is a cine: it "
                    "has an axis of time. Send one frame, or the cine with the numbers of its "
                    "frames at end diastole and end systole."
                )
            found.append(match["frame"].upper())
        twice = sorted({name for name in found if found.count(name) > 1})
        if twice:
            raise UnreadableImage(f"Several frames were sent as {', '.join(twice)}; send one each.")
        return found

    def _review(self, value: float, sd: float) -> dict[str, Any]:
        """Whether somebody should look: an SD above most of the calibration studies', or doubt."""
        cutoff = self.heads.record.cutoff
        wrong = float(norm.cdf(-abs(value - cutoff) / sd))
        reasons = []
        if sd > self.review_sd:
            reasons.append(
                f"SD {sd:.1f} is above {self.review_sd:.1f}, that of four fifths of the "
                "calibration studies."
            )
        if wrong > 0.25:
            reasons.append(f"{value:.0f} is near the cut-off {cutoff:g} for an SD of {sd:.1f}.")
        return {"flagged": bool(reasons), "probability_wrong_side": wrong, "reasons": reasons}


def chosen_frames(
    samples: Sequence[DecodedSample], key_frames: tuple[int, int]
) -> list[DecodedSample]:
    """The frames of a cine at end diastole, at end systole and half-way between them.

    Raises:
        UnreadableImage: when the cine has no such frames, or they are the same.
    """
    ed, es = key_frames
    numbered = {int(sample.frame): sample for sample in samples}
    if ed == es:
        raise UnreadableImage(f"End diastole and end systole are both frame {ed}.")
    chosen = []
    for name, number in ((ED, ed), (ES, es), (MID, half_way(ed, es))):
        if number not in numbered:
            raise UnreadableImage(
                f"The file has no frame {number}; frames are counted from 0 to "
                f"{max(numbered, default=0)}."
            )
        sample = numbered[number]
        chosen.append(replace(sample, view=name, facts={**sample.facts, "chosen": 1.0}))
    return chosen


def _intervals(value: float, sd: float) -> dict[str, list[float]]:
    """Central intervals of a normal distribution, within the range of an ejection fraction."""
    found = {}
    for percent in _CENTRAL:
        reach = float(norm.ppf(0.5 + percent / 200)) * sd
        low, high = EF_TARGET.low or 0.0, EF_TARGET.high or math.inf
        found[str(percent)] = [max(low, value - reach), min(high, value + reach)]
    return found


def _by_member(said: Answers) -> dict[str, Mapping[str, float | None]]:
    def number(values: NDArray[np.float64], place: int) -> float | None:
        found = float(values[0, place])
        return None if math.isnan(found) else found

    return {
        name: {
            "value": number(said.values, place),
            "sd": number(said.sds, place),
            "probability": number(said.probabilities, place),
        }
        for place, name in enumerate(said.members)
    }


def _left_out(frames: Sequence[str], known: Sequence[str]) -> list[str]:
    others = sorted(set(frames) - set(known))
    return [f"{', '.join(others)}: no head was fitted to it; left out."] if others else []
