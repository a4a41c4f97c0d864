"""Answers for studies of several views: a network for each view, and the fusion of what they say.

A bundle of this kind holds other bundles: one for each view, and a classifier that sorts the cines
of a study to them. How sure it is tells whether a cine shows any of the views at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cardioray.answers import ModelOutputs, binary_answer, number_answer
from cardioray.bundle import Bundle, open_bundle
from cardioray.clinical.fusion import StudyFusion
from cardioray.config import parse
from cardioray.data.decoding import DecodedSample
from cardioray.data.image import UnreadableImage
from cardioray.ecgs import EcgPredictor
from cardioray.evaluation.operating_point import BinaryOperatingPoint, RegressionOperatingPoint
from cardioray.evaluation.predictions import views_side_by_side
from cardioray.keyframes import HEADS, HeadsPredictor, KeyframePredictor
from cardioray.model_store import bundle_place
from cardioray.predictor import Overlay, Predictor, read_operating_points, task_of
from cardioray.segments import SegmentPredictor
from cardioray.systoles import OutlinedBeatsPredictor
from cardioray.tasks.ecg import EcgTask
from cardioray.tasks.keyframe_ef import KeyframeEfTask
from cardioray.tasks.lv_seg import LvSegTask

FUSION = "fusion.json"
# The member that tells views apart.
SORTER = "view-classifier"


@dataclass(frozen=True)
class StudyOutputs(ModelOutputs):
    """What the networks say of some cines, each asked about those of its view.

    Attributes:
        scores: as of one network; NaN for a cine that no network was asked about.
        windows: as of one network; empty for such a cine.
        views: the likeliest view of each cine, or the one that was said.
        view_probabilities: its probability (N,); 1 where it was said.
    """

    views: NDArray[np.object_]
    view_probabilities: NDArray[np.float32]

    def __getitem__(self, part: slice) -> StudyOutputs:
        return self.take(np.arange(len(self))[part])

    def take(self, chosen: NDArray[np.int64]) -> StudyOutputs:
        """The outputs for some of the cines."""
        return StudyOutputs(
            {name: values[chosen] for name, values in self.scores.items()},
            self.features[chosen],
            {name: [values[i] for i in chosen] for name, values in self.windows.items()},
            self.views[chosen],
            self.view_probabilities[chosen],
        )


class StudyPredictor(Predictor):
    """As a predictor of one network; see there. Views that nobody says are told by a classifier.

    Attributes:
        fusion: how the cines of a study become one answer.
        members: by view, the predictor that is asked about its cines.
        sorter: tells views apart; None where whoever asks has to say them.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        runtime: Literal["auto", "openvino", "torch"] = "auto",
        precision: Literal["auto", "bf16", "fp32"] = "auto",
        num_threads: int | None = None,
        max_windows: int | None = None,
        network: bool = True,
    ) -> None:
        """Read a bundle and its members; arguments as of `Predictor`."""

        def member(name: str) -> Predictor:
            return Predictor(
                bundle.member(name),
                runtime=runtime,
                precision=precision,
                num_threads=num_threads,
                max_windows=max_windows,
                network=network,
            )

        self.bundle = bundle
        self.fusion = parse(StudyFusion, bundle.json(FUSION))
        self.operating_points = read_operating_points(bundle)
        self.task = task_of(bundle, max_windows)
        self.members = {view: member(view) for view in self.fusion.views}
        self.sorter = member(SORTER) if SORTER in bundle.members else None
        first = self.members[self.fusion.views[0]]
        self.runtime, self.bf16 = first.runtime, first.bf16

    def infer(self, samples: Sequence[DecodedSample]) -> StudyOutputs:
        """Sort cines of one or of many studies, and run the network of its view over each.

        Raises:
            UnreadableImage: when there are none, or nothing tells the view of one.
        """
        if not samples:
            raise UnreadableImage("No file was given; at least one cine is needed.")
        views, probabilities = self._sort(samples)
        used = self._used(views, probabilities)
        names = tuple(target.name for target in self.task.targets)
        scores = {name: np.full(len(samples), np.nan, np.float32) for name in names}
        nothing = np.zeros(0, np.float32)
        windows = {name: [nothing] * len(samples) for name in names}
        features = np.zeros((len(samples), 0), np.float32)
        for view, member in self.members.items():
            chosen = np.flatnonzero(used & (views == view)).tolist()
            if not chosen:
                continue
            own = member.infer([samples[i] for i in chosen])
            if not features.shape[1]:
                features = np.zeros((len(samples), own.features.shape[1]), np.float32)
            features[chosen] = own.features
            for name in names:
                scores[name][chosen] = own.scores[name]
                for place, values in zip(chosen, own.windows[name], strict=True):
                    windows[name][place] = values
        return StudyOutputs(scores, features, windows, views, probabilities)

    def passes(self, samples: Sequence[DecodedSample]) -> int:
        """How many forward passes `infer` takes for some samples, at most one more a view."""
        sorting = 0 if self.sorter is None else self.sorter.passes(samples)
        return sorting + super().passes(samples)

    def answer(self, samples: Sequence[DecodedSample], outputs: ModelOutputs) -> dict[str, Any]:
        """The answer for one study from what the networks said of its cines.

        Raises:
            UnreadableImage: when none of them shows a view that has a network.
        """
        assert isinstance(outputs, StudyOutputs)
        assert len(samples) == len(outputs)
        used = self._used(outputs.views, outputs.view_probabilities)
        if not used.any():
            raise UnreadableImage(
                f"None of the {len(samples)} cines shows one of the views "
                f"{', '.join(self.fusion.views)}, as far as the classifier of views can tell."
            )
        places = {view: np.flatnonzero(used & (outputs.views == view)) for view in self.members}
        there = {view: chosen for view, chosen in places.items() if len(chosen)}
        details = self.task.details(samples, outputs.windows)
        cines = [
            {
                **cine,
                "view": str(outputs.views[number]),
                "view_probability": float(outputs.view_probabilities[number]),
                "used": bool(used[number]),
            }
            for number, cine in enumerate(details.pop("cines"))
        ]
        return {
            **self._fused(outputs, there),
            **details,
            "cines": cines,
            "views": list(there),
            "model": self.bundle.name,
            "bundle": self.bundle.identity,
            "frames": len(samples),
            "warnings": [
                *self.bundle.metadata["warnings"],
                *self._doubts(samples, outputs, used, there),
            ],
        }

    def _fused(
        self, outputs: StudyOutputs, there: Mapping[str, NDArray[np.int64]]
    ) -> dict[str, Any]:
        answers: dict[str, Any] = {}
        for target in self.task.targets:
            name = target.name
            means = {view: outputs.scores[name][there[view]].mean(dtype=float) for view in there}
            row = np.array([[means.get(view, np.nan) for view in self.fusion.views]])
            fused = self.fusion.targets[name].apply(row)
            point = self.operating_points[name]
            if target.kind == "binary":
                assert isinstance(point, BinaryOperatingPoint)
                own = binary_answer(point, target.classes, fused)
                del own["probability_per_frame"]
                own["probability_per_view"] = {
                    view: self._member_probability(view, name, mean) for view, mean in means.items()
                }
            else:
                assert isinstance(point, RegressionOperatingPoint)
                own = number_answer(point, target.unit, fused)
                own["value_per_view"] = {view: float(mean) for view, mean in means.items()}
            answers[name] = own
        return answers

    def _member_probability(self, view: str, target: str, score: float) -> float:
        point = self.members[view].operating_points[target]
        assert isinstance(point, BinaryOperatingPoint)
        return float(point.calibration.apply(np.array([score]))[0])

    def _doubts(
        self,
        samples: Sequence[DecodedSample],
        outputs: StudyOutputs,
        used: NDArray[np.bool_],
        there: Mapping[str, NDArray[np.int64]],
    ) -> list[str]:
        doubts = list(self.task.doubts(samples))
        if missing := [view for view in self.fusion.views if view not in there]:
            doubts.append(
                f"The study has no cine of {', '.join(missing)}: the answer rests on "
                f"{', '.join(there)}."
            )
        for number in np.flatnonzero(~used):
            view, share = outputs.views[number], outputs.view_probabilities[number]
            why = (
                f"it shows {view}, and there are networks for {', '.join(self.fusion.views)}"
                if share >= self.fusion.least_probability
                else f"it shows none of the views clearly (likeliest {view}, {share:.2f})"
            )
            doubts.append(f"Cine {number} was left out: {why}.")
        for view, chosen in there.items():
            own = self.members[view].gate_warnings(
                [samples[i] for i in chosen], outputs.take(chosen)
            )
            doubts += [f"{view}: {warning}" for warning in own]
        return doubts

    def overlay(self, sample: DecodedSample, method: str | None = None) -> Overlay:
        """A cine with the heat of the network of its view.

        Raises:
            UnreadableImage: when it shows no view that has a network.
        """
        return self._member_for(sample).overlay(sample, method)

    def explanation(self, sample: DecodedSample, method: str | None = None) -> Overlay:
        """What `overlay` gives."""
        return self.overlay(sample, method)

    def _member_for(self, sample: DecodedSample) -> Predictor:
        views, probabilities = self._sort([sample])
        if not self._used(views, probabilities)[0]:
            raise UnreadableImage(
                f"The cine shows none of the views {', '.join(self.fusion.views)} clearly."
            )
        return self.members[views[0]]

    def warm_up(self, batch_sizes: Iterable[int]) -> None:
        """Answer for blank samples, so that the first request is not the slow one."""
        sizes = list(batch_sizes)
        for member in [*self.members.values(), *([self.sorter] if self.sorter else [])]:
            member.warm_up(sizes)

    def blank(self) -> DecodedSample:
        """A black cine that is said to show the first view."""
        return replace(super().blank(), view=self.fusion.views[0])

    def seen(self, samples: Sequence[DecodedSample]) -> NDArray[np.bool_]:
        """Whether the very same cines took part in making any of the networks; shape (N,)."""
        seen = [member.seen(samples) for member in self.members.values()]
        return np.asarray(np.any(seen, axis=0))

    def _spelled(self, view: str) -> str:
        """A view as the networks spell it; one that they do not know as it was said."""
        return {name.lower(): name for name in self.fusion.views}.get(view.lower(), view)

    def views_used(self, outputs: StudyOutputs) -> list[str]:
        """The view by which each cine takes part in an answer; "" where it is left out."""
        used = self._used(outputs.views, outputs.view_probabilities)
        return [str(view) if own else "" for view, own in zip(outputs.views, used, strict=True)]

    def fused_table(self, table: pd.DataFrame) -> pd.DataFrame:
        """Predictions of studies from those of their cines.

        Args:
            table: predictions of cines with a column `view`; rows with "" are left out.

        Returns:
            One row a study and target.
        """
        pieces = []
        for target in self.task.targets:
            own = table[(table["head"] == target.name) & (table["view"] != "")]
            studies, scores = views_side_by_side(own, self.fusion.views)
            fused = self.fusion.targets[target.name].apply(scores)
            pieces.append(studies.assign(head=target.name, score=fused))
        return pd.concat(pieces, ignore_index=True)

    def _sort(
        self, samples: Sequence[DecodedSample]
    ) -> tuple[NDArray[np.object_], NDArray[np.float32]]:
        """View and its probability for each cine: as it was said, else as the classifier tells."""
        views = np.array([sample.view for sample in samples], dtype=object)
        probabilities = np.ones(len(samples), np.float32)
        for number, view in enumerate(views):
            views[number] = self._spelled(view)
        untold = np.flatnonzero(views == "").tolist()
        if not untold:
            return views, probabilities
        if self.sorter is None:
            raise UnreadableImage(
                f"Say which view each cine shows, of {', '.join(self.fusion.views)}: this model "
                "has no classifier of views."
            )
        found = self.sorter.infer([samples[i] for i in untold]).scores
        targets = [target for target in self.sorter.task.targets if target.kind == "binary"]
        shares = np.stack([found[target.name] for target in targets], axis=1)
        best = shares.argmax(axis=1)
        views[untold] = [targets[index].positive for index in best]
        probabilities[untold] = shares[np.arange(len(untold)), best]
        return views, probabilities

    def _used(
        self, views: NDArray[np.object_], probabilities: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        mine = np.isin(views.astype(str), self.fusion.views)
        return np.asarray(mine & (probabilities >= self.fusion.least_probability))


def open_predictor(
    bundle: Bundle, *, systoles_from: Bundle | None = None, **options: Any
) -> Predictor:
    """The predictor of a bundle, of one network or of several.

    Args:
        bundle: the verified files.
        systoles_from: of a bundle of `echo-ef`, a bundle of `lv-seg` in whose outlines its beats
            are found; by default they are told by what the network says of successive windows.
        **options: of `Predictor`.

    Raises:
        ValueError: when systoles are asked for of another task, or from one.
    """
    if systoles_from is not None:
        if bundle.members:
            raise ValueError(
                f"systoles_from: {bundle.path} answers for studies of several views, and systoles "
                "are looked for in cines of one. Leave it out."
            )
        outliner = open_predictor(systoles_from, **options)
        return OutlinedBeatsPredictor(bundle, outliner, **options)
    if bundle.members:
        return StudyPredictor(bundle, **options)
    if (bundle.path / HEADS).is_file():
        return HeadsPredictor(bundle, **options)
    kinds = {
        LvSegTask.name: SegmentPredictor,
        KeyframeEfTask.name: KeyframePredictor,
        EcgTask.name: EcgPredictor,
    }
    return kinds.get(bundle.task, Predictor)(bundle, **options)


def load(path: str | Path, *, systoles_from: str | Path | None = None, **options: Any) -> Predictor:
    """Open a bundle and make it ready to answer.

    Args:
        path: local directory or s3:// prefix of a bundle, or of a comparison for its winner.
        systoles_from: likewise, of the bundle of `lv-seg` in whose outlines a bundle of `echo-ef`
            finds its beats.
        **options: of `Predictor`: runtime, precision, num_threads.

    Raises:
        BundleError: when the bundle is damaged or of another version.
        ValueError: when a comparison holds no bundle, or systoles are asked for of another task, or
            from one.
    """
    outlines = None
    if systoles_from is not None:
        outlines = open_bundle(bundle_place(str(systoles_from)))
    return open_predictor(open_bundle(bundle_place(str(path))), systoles_from=outlines, **options)
