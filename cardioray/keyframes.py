"""Answers about key frames: the ejection fraction, by heads on features with how sure it is."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from scipy.stats import norm

from cardioray.answers import ModelOutputs, binary_answer, number_answer
from cardioray.bundle import Bundle, BundleError
from cardioray.data.decoding import DecodedSample
from cardioray.data.frames import MAX_FRAMES, FrameSelection, UnreadableImage
from cardioray.data.keyframe_layouts import ED, ES, FRAMES, MID, half_way
from cardioray.data.nifti import read_source
from cardioray.data.segment import IMAGE
from cardioray.data.segment_layouts import VIEW_WORDS
from cardioray.evaluation.operating_point import BinaryOperatingPoint, RegressionOperatingPoint
from cardioray.evaluation.uncertainty import (
    REVIEW_SHARE,
    REVIEW_WRONG_SIDE,
    wrong_side_probability,
)
from cardioray.models.backbones import NoFeatureMap
from cardioray.models.keyframes import KeyframeModel
from cardioray.outlines import refuse_contradictions
from cardioray.predictor import Item, Overlay, Predictor
from cardioray.tasks.keyframe_ef import EF_TARGET, KeyframeEfTask
from cardioray.tasks.keyframe_heads import Answers, FittedHeads

HEADS = "heads.safetensors"
HEADS_RECORD = "heads.json"
REVIEW = "review.json"

_SAID = re.compile(r"(?:(?P<view>[A-Z0-9]+)[-_ ])?(?P<frame>ED|ES|MID)", re.IGNORECASE)
_HOW = f"Say which frame each file shows: {', '.join(FRAMES)}, or A4C-ED and so on."
_HOW_CINE = (
    "Send one frame, or the cine alone with the numbers of its frames at end diastole and end "
    "systole, counted from 0: ?key_frames=12,30, in Python key_frames=(12, 30)."
)
# Central intervals that an answer gives.
_CENTRAL = (50, 80, 95)


class KeyframePredictor(Predictor):
    """As every predictor; see there. `views` says of each item which key frame it is.

    `predict([ed, es], views=["ED", "ES"])` answers for two frames, `predict(cine,
    key_frames=(12, 30))` for a cine whose frames at end diastole and end systole are known. A
    network that was trained end to end answers with the mean over the frames.
    """

    task: KeyframeEfTask

    @property
    def frames(self) -> tuple[str, ...]:
        """The key frames that the model has learned from."""
        return self.task.settings.frames

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
            views: of each item "ED", "ES" or "MID", perhaps with the view ("A4C-ED"); of a cine
                the view alone, where it is known.
            key_frames: of a cine, its frames at end diastole and end systole, counted from 0.

        Returns:
            `ef`, the class, and warnings; of heads on features `ef` has `sd` and intervals, and
            there are `heads` and `review`. See docs/keyframes.md.

        Raises:
            UnreadableImage: when an item cannot be read, it is not known which frame it is, or
                items contradict each other; see `check`.
            FileNotFoundError: when a path does not exist.
            ValueError: when there are not as many views as items, or key frames of several items.
        """
        if key_frames is None:
            samples = self.read(items, views)
        else:
            samples = self._read_cine(items, views, key_frames)
        self.check(samples)
        return self.answer(samples, self.infer(samples))

    def _read_cine(
        self,
        items: Item | Sequence[Item],
        views: Sequence[str] | None,
        key_frames: tuple[int, int],
    ) -> list[DecodedSample]:
        listed = [items] if isinstance(items, bytes | str | Path | np.ndarray) else list(items)
        if len(listed) != 1 or (views is not None and len(views) != 1):
            raise ValueError(
                f"key_frames are of one cine, and there are {len(listed)} items with "
                f"{len(views or [])} views."
            )
        span, [item] = frame_span(key_frames), listed
        if isinstance(item, np.ndarray):
            samples = [self.decoder.from_array(item)]
        else:
            data = item if isinstance(item, bytes) else read_source(str(item))
            samples = self.decoder.decode(data, span)
        view = views[0] if views else ""
        return chosen_frames(
            [replace(sample, view=view) for sample in samples], key_frames, self.frames
        )

    def check(self, samples: Sequence[DecodedSample]) -> None:
        """Refuse, before the network runs, frames that no answer can be given for.

        Raises:
            UnreadableImage: when it is not known which frame is which, one is there twice, they are
                of another view than the model has learned from, of several views, patients or
                examinations, or none is of those that the model has learned from.
        """
        shown = [self._shown(sample) for sample in samples]
        frames = [frame for _, frame in shown]
        twice = sorted({name for name in frames if frames.count(name) > 1})
        if twice:
            raise UnreadableImage(f"Several frames were sent as {', '.join(twice)}; send one each.")
        views = sorted({view for view, _ in shown if view})
        if len(views) > 1:
            raise UnreadableImage(
                f"The frames are of several views, {', '.join(views)}; send those of one."
            )
        refuse_contradictions(samples, shown)
        if samples and not set(frames) & set(self.frames):
            raise UnreadableImage(
                f"None of the frames {', '.join(frames)} is one that the model has learned from: "
                f"{', '.join(self.frames)}."
            )

    def uses(self, sample: DecodedSample) -> bool:
        """Whether a frame takes part in an answer; errors of `check`."""
        return self._shown(sample)[1] in self.frames

    def answer(self, samples: Sequence[DecodedSample], outputs: ModelOutputs) -> dict[str, Any]:
        """The answer for one study from what the network says of its frames.

        Raises:
            UnreadableImage: as `check`.
        """
        assert len(samples) == len(outputs)
        self.check(samples)
        used = np.array([self.uses(sample) for sample in samples], bool)
        own = outputs.take(np.flatnonzero(used))
        answer = super().answer(list(compress(samples, used)), own)
        answer["frames"] = len(samples)
        answer["warnings"] += self._left_out_frames(samples)
        return answer

    def explain(
        self,
        data: bytes,
        method: str | None = None,
        *,
        spacing_mm: tuple[float, float] | None = None,
        view: str = "",
        frame: int | None = None,
    ) -> Overlay:
        """Where in a file an answer about it comes from: the picture, its heat and both.

        Args:
            data: the file.
            method: "gradcam++" (default) or "gradcam".
            spacing_mm: refused; nothing is measured.
            view: which key frame it is, perhaps with the view ("A4C-ED").
            frame: of a cine, the number of the frame, counted from 0.

        Raises:
            NoFeatureMap: as of `overlay`.
            UnreadableImage: when the file cannot be read, or it is not known which frame it is.
            ValueError: for the size of a pixel.
        """
        self._refuse_spacing(spacing_mm)
        sample = self.decoder.decode(data, None if frame is None else str(frame))[0]
        return self.explanation(replace(sample, view=view), method)

    def _heat_map(
        self, sample: DecodedSample, method: str, answer: Mapping[str, Any]
    ) -> NDArray[np.float32]:
        """Where in a frame the evidence lies for the side of the cut-off that its answer is on."""
        from cardioray.explain.feature_cam import METHODS  # with all it loads; answers need none

        if method not in METHODS:
            raise NoFeatureMap(
                f"There is no {method} of a key frame; there are {' and '.join(METHODS)}."
            )
        _, frame = self._shown(sample)
        model = self.model
        assert isinstance(model, KeyframeModel)
        return self._heat(model, frame, sample.arrays[IMAGE], method)

    def _heat(
        self, model: KeyframeModel, frame: str, picture: NDArray[np.uint8], method: str
    ) -> NDArray[np.float32]:
        from cardioray.tasks.keyframe_heat import trained_heat

        cutoff = self.task.settings.cut_off.value
        return trained_heat(model, self._statistics, cutoff, picture, method)

    def warm_up(self, batch_sizes: Iterable[int]) -> None:
        """Look at blank frames, so that the first request is not the slow one."""
        for size in batch_sizes:
            self.infer([self.blank()] * size)

    def _shown(self, sample: DecodedSample) -> tuple[str, str]:
        """View ("" where it is not said) and key frame that a sample shows."""
        said = sample.view.strip()
        match = _SAID.fullmatch(said)
        if sample.facts.get("is_cine") == 1 and not sample.facts.get("chosen"):
            sent = f" that was sent as {said}" if said else ""
            raise UnreadableImage(f"The file{sent} is a cine: it has an axis of time. {_HOW_CINE}")
        if match is None:
            what = f"{sample.view!r} is none of these. " if said else ""
            raise UnreadableImage(f"{what}{_HOW}")
        view, learned = _spelled(match["view"] or ""), _spelled(self.task.settings.view)
        if view and learned and view != learned:
            raise UnreadableImage(
                f"A frame was sent as one of {view}, and the model has learned from {learned} "
                f"alone. Send frames of {learned}."
            )
        return view, match["frame"].upper()

    def _left_out_frames(self, samples: Sequence[DecodedSample]) -> list[str]:
        others = sorted({self._shown(sample)[1] for sample in samples} - set(self.frames))
        if not others:
            return []
        return [f"{', '.join(others)}: the model has not learned from such a frame; left out."]


class HeadsPredictor(KeyframePredictor):
    """A frozen backbone with heads on its features, which say how sure they are."""

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

    @property
    def frames(self) -> tuple[str, ...]:
        """The key frames that heads were fitted to."""
        return self.heads.record.frames

    def answer(self, samples: Sequence[DecodedSample], outputs: ModelOutputs) -> dict[str, Any]:
        """The answer for one study from the features of its frames.

        Raises:
            UnreadableImage: as `check`.
        """
        assert len(samples) == len(outputs)
        self.check(samples)
        frames = [self._shown(sample)[1] for sample in samples]
        width = outputs.features.shape[1]
        features = {name: np.full((1, width), np.nan) for name in self.frames}
        for place, frame in enumerate(frames):
            if frame in features:
                features[frame][0] = outputs.features[place]
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
        missing = [name for name in self.frames if name not in frames]
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
                *self._left_out_frames(samples),
                *self.gate_warnings(samples, outputs),
            ],
        }

    def _heat(
        self, model: KeyframeModel, frame: str, picture: NDArray[np.uint8], method: str
    ) -> NDArray[np.float32]:
        from cardioray.tasks.keyframe_heat import frame_heat

        return frame_heat(model, self.heads, frame, picture, method)

    def _review(self, value: float, sd: float) -> dict[str, Any]:
        """Whether somebody should look: an SD above most of the calibration studies', or doubt."""
        cutoff = self.heads.record.cutoff
        [wrong] = wrong_side_probability([value], [sd], cutoff).tolist()
        reasons = []
        if sd > self.review_sd:
            reasons.append(
                f"SD {sd:.1f} is above {self.review_sd:.1f}, that of {100 * REVIEW_SHARE:.0f} % "
                "of the calibration studies."
            )
        if wrong > REVIEW_WRONG_SIDE:
            reasons.append(f"{value:.0f} is near the cut-off {cutoff:g} for an SD of {sd:.1f}.")
        return {"flagged": bool(reasons), "probability_wrong_side": wrong, "reasons": reasons}


def frame_span(key_frames: tuple[int, int], most: int = MAX_FRAMES) -> str:
    """The frames of a cine from one key frame to the other, as `FrameSelection` reads them.

    Args:
        key_frames: at end diastole and at end systole, counted from 0.
        most: frames that are decoded at once.

    Raises:
        UnreadableImage: when they are the same, none of a cine, or too far apart.
    """
    first, last = sorted(key_frames)
    if first == last:
        raise UnreadableImage(f"End diastole and end systole are both frame {first}.")
    if first < 0:
        raise UnreadableImage(f"There is no frame {first}; frames are counted from 0.")
    if last - first >= most:
        raise UnreadableImage(
            f"Key frames {first} and {last} are {last - first} frames apart; at most {most} frames "
            "are read at once. Take those of one beat."
        )
    return str(FrameSelection(kind="range", first=first, last=last))


def chosen_frames(
    samples: Sequence[DecodedSample], key_frames: tuple[int, int], frames: Sequence[str] = FRAMES
) -> list[DecodedSample]:
    """The frames of a cine at end diastole, at end systole and half-way between them.

    Args:
        samples: frames of the cine, those of `frame_span` among them; its view, where it was said.
        key_frames: at end diastole and at end systole, counted from 0.
        frames: which of the three are wanted.

    Raises:
        UnreadableImage: when these are no frames of a cine, or it was sent as one frame.
    """
    ed, es = key_frames
    said = samples[0].view.strip()
    if _SAID.fullmatch(said):
        raise UnreadableImage(
            f"Key frames are those of a cine, and the file was sent as the frame {said}."
        )
    numbered = {int(sample.frame): sample for sample in samples}
    wanted = {ED: ed, ES: es, MID: half_way(ed, es)}
    if samples[0].facts.get("is_cine") != 1 or not set(wanted.values()) <= set(numbered):
        raise UnreadableImage("Key frames are those of a cine, and the file is a single frame.")
    chosen = []
    for name, number in wanted.items():
        if name in frames:
            sample = numbered[number]
            view = f"{said}-{name}" if said else name
            chosen.append(replace(sample, view=view, facts={**sample.facts, "chosen": 1.0}))
    return chosen


def _spelled(view: str) -> str:
    """A view as models name it: "4ch" is "A4C"."""
    return VIEW_WORDS.get(view.lower(), view.upper())


def _intervals(value: float, sd: float) -> dict[str, list[float]]:
    """Central intervals of a normal distribution, within the range of an ejection fraction."""
    low, high = EF_TARGET.low or 0.0, EF_TARGET.high or math.inf
    found = {}
    for percent in _CENTRAL:
        reach = float(norm.ppf(0.5 + percent / 200)) * sd
        found[str(percent)] = np.clip([value - reach, value + reach], low, high).tolist()
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
