"""Answers of segmentation networks: outlines, volumes and the ejection fraction of a study."""

from __future__ import annotations

import base64
import io
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cardioray.answers import ModelOutputs, number_answer
from cardioray.clinical.beats import phases_of
from cardioray.clinical.simpson import Cavity
from cardioray.clinical.volumes import ED, ES, FOUR, TWO, volumes_of
from cardioray.data.decoding import DecodedSample
from cardioray.data.frames import UnreadableImage
from cardioray.data.label_maps import STRUCTURES
from cardioray.evaluation.operating_point import RegressionOperatingPoint
from cardioray.models.backbones import NoFeatureMap
from cardioray.models.segmentation import MASKS
from cardioray.predictor import Item, Overlay, Predictor
from cardioray.tasks.lv_seg import LvSegTask, cavity_of

MaskFormat = Literal["png", "rle"]
OUTLINES = "outlines"

_SAID = re.compile(r"(?P<view>A4C|A2C|4CH|2CH)(?:[-_ ](?P<phase>ED|ES))?", re.IGNORECASE)
_VIEWS = {"4CH": FOUR, "2CH": TWO, FOUR: FOUR, TWO: TWO}
_HOW = (
    "Say what each file shows: A4C-ED, A4C-ES, A2C-ED or A2C-ES of a frame, A4C or A2C of a cine."
)
# Pixel sizes of one study that differ by more are of two machines, or of two studies.
_SPACING_DIFFERS = 0.05
# RGB; told apart by whoever does not see red and green.
_COLOURS = {"atrium": (86, 180, 233), "myocardium": (230, 159, 0), "cavity": (0, 158, 115)}


@dataclass(frozen=True, eq=False)
class Segmented:
    """One frame, outlined.

    Attributes:
        view: "A4C" or "A2C".
        phase: "ED", "ES", or "" for a frame of a cine whose phase is to be found.
        frame: its number in its file.
        labels: label map at the size of the source, tidied, (H, W).
        cavity: what volumes need of it; None where no cavity was found.
        spacing_mm: height and width of a pixel.
    """

    view: str
    phase: str
    frame: int
    labels: NDArray[np.uint8]
    cavity: Cavity | None
    spacing_mm: tuple[float, float]


class SegmentPredictor(Predictor):
    """As every predictor; see there. `views` says of each item its view and, of a frame, its phase.

    `predict([ed, es], views=["A4C-ED", "A4C-ES"])` answers for two frames, `predict(cine,
    views=["A4C"])` for a cine, in which both phases are found.
    """

    task: LvSegTask

    def predict(
        self,
        items: Item | Sequence[Item],
        views: Sequence[str] | None = None,
        *,
        spacing_mm: tuple[float, float] | None = None,
        masks: MaskFormat | None = None,
        contours: bool = False,
    ) -> dict[str, Any]:
        """Answer for one study of frames or cines.

        Args:
            items: file contents, paths (local or s3://), or uint8 arrays (H, W).
            views: of each item "A4C-ED", "A4C-ES", "A2C-ED", "A2C-ES" for a frame, "A4C", "A2C"
                for a cine.
            spacing_mm: height and width of a pixel, where the files do not state it.
            masks: as of `answer`.
            contours: as of `answer`.

        Returns:
            `ef` and perhaps volumes with their intervals, `volumes`, `beats`, `outlines`, the
            model's name, and warnings; see docs/segmentation.md.

        Raises:
            UnreadableImage: when an item cannot be read, or no volume can be made of them.
            FileNotFoundError: when a path does not exist.
            ValueError: when there are not as many views as items.
        """
        samples = self.read(items, views)
        if spacing_mm is not None:
            samples = [with_spacing(sample, spacing_mm) for sample in samples]
        return self.answer(samples, self.infer(samples), masks=masks, contours=contours)

    def overlay(self, sample: DecodedSample, method: str | None = None) -> Overlay:
        """A frame with its outlines, as PNG; there is no heat map of a segmentation.

        Raises:
            NoFeatureMap: when a heat map is asked for by its name.
        """
        if method not in (None, OUTLINES):
            raise NoFeatureMap(f"There is no {method} of a segmentation; its outlines are drawn.")
        probabilities = torch.from_numpy(self.infer([sample]).scores[MASKS][0])
        labels = self.task.settings.clean_up.apply(
            self.task.label_map(probabilities, *sample.source_shape)
        )
        stream = io.BytesIO()
        Image.fromarray(outlined(sample.picture, labels)).save(stream, format="PNG")
        return Overlay(stream.getvalue(), "image/png")

    def explanation(self, sample: DecodedSample, method: str | None = None) -> Overlay:
        """What `overlay` gives."""
        return self.overlay(sample, method)

    def warm_up(self, batch_sizes: Iterable[int]) -> None:
        """Outline blank frames, so that the first request is not the slow one."""
        for size in batch_sizes:
            self.infer([self.blank()] * size)

    def answer(
        self,
        samples: Sequence[DecodedSample],
        outputs: ModelOutputs,
        *,
        masks: MaskFormat | None = None,
        contours: bool = False,
    ) -> dict[str, Any]:
        """The answer for one study from what the network said of its frames.

        Args:
            samples: its frames.
            outputs: of the network.
            masks: give the label map of every frame, as PNG or as lengths of runs.
            contours: give the outline of every structure, in px and in mm.

        Raises:
            UnreadableImage: when views and phases are missing or contradict each other, the size
                of a pixel is not known, or no volume can be made.
        """
        assert len(samples) == len(outputs)
        frames = self.outline(samples, outputs)
        cavities, beats, doubts = _phases(frames, samples)
        volumes = volumes_of(cavities, self.task.settings.method)
        if volumes is None:
            raise UnreadableImage(
                "No view has an outline of the cavity at end diastole and at end systole, so that "
                f"there is no ejection fraction. {_HOW}"
            )
        answers: dict[str, Any] = {}
        for target in self.task.targets:
            point = self.operating_points[target.name]
            assert isinstance(point, RegressionOperatingPoint)
            raw = {"ef": volumes.ef_percent, "edv": volumes.edv_ml, "esv": volumes.esv_ml}
            found = number_answer(point, target.unit, np.array([raw[target.name]]))
            answers[target.name] = {**found, "uncalibrated": raw[target.name]}
        return {
            **answers,
            "volumes": {
                "edv_ml": volumes.edv_ml,
                "esv_ml": volumes.esv_ml,
                "ef_percent": volumes.ef_percent,
                "method": self.task.settings.method,
                "views": list(volumes.views),
            },
            "beats": beats,
            "outlines": [_described(frame, masks, contours=contours) for frame in frames],
            "model": self.bundle.name,
            "bundle": self.bundle.identity,
            "frames": len(samples),
            "warnings": [
                *self.bundle.metadata["warnings"],
                *volumes.doubts,
                *doubts,
                *self.gate_warnings(samples, outputs),
            ],
        }

    def outline(self, samples: Sequence[DecodedSample], outputs: ModelOutputs) -> list[Segmented]:
        """The label map of every frame, and what is measured of it.

        Raises:
            UnreadableImage: when views and phases are missing or contradict each other, pixel
                sizes differ, or a pixel has no size.
        """
        said = [_parsed(sample) for sample in samples]
        _refuse_contradictions(samples, said)
        spacing = _spacing_of(samples)
        frames = []
        for i, (sample, (view, phase)) in enumerate(zip(samples, said, strict=True)):
            height, width = sample.source_shape
            logits = torch.from_numpy(np.log(np.maximum(outputs.scores[MASKS][i], 1e-12)))
            labels = self.task.settings.clean_up.apply(self.task.label_map(logits, height, width))
            frames.append(
                Segmented(
                    view=view,
                    phase=phase,
                    frame=int(sample.frame),
                    labels=labels,
                    cavity=cavity_of(labels, spacing[i]),
                    spacing_mm=spacing[i],
                )
            )
        return frames


def with_spacing(sample: DecodedSample, spacing_mm: tuple[float, float]) -> DecodedSample:
    """The sample with the size of a pixel that somebody says, where its file does not."""
    row, column = spacing_mm
    facts = dict(sample.facts)
    if not facts.get("spacing_row_mm", math.nan) > 0:
        facts |= {"spacing_row_mm": row, "spacing_column_mm": column}
    return replace(sample, facts=facts)


def outlined(picture: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A grey picture (H, W) with the outline of each structure, (H, W, 3)."""
    drawn = np.repeat(picture[..., None], 3, axis=2).copy()
    width = max(1, round(max(picture.shape) / 300))
    for name, colour in _COLOURS.items():
        mask = (labels == STRUCTURES[name]).astype(np.uint8)
        found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, found, -1, colour, width)
    return drawn


def _parsed(sample: DecodedSample) -> tuple[str, str]:
    """View and phase that were said of a frame."""
    match = _SAID.fullmatch(sample.view.strip())
    if match is None:
        what = f"{sample.view!r} is none of these. " if sample.view else ""
        raise UnreadableImage(f"{what}{_HOW}")
    view, phase = _VIEWS[match["view"].upper()], (match["phase"] or "").upper()
    if phase and sample.facts.get("is_cine") == 1:
        raise UnreadableImage(
            f"The file that was sent as the frame {view}-{phase} is a cine: it has an axis of "
            f"time. Send it as {view}, and both phases are found in it, or choose one frame."
        )
    if not phase and sample.facts.get("is_cine") == 0:
        raise UnreadableImage(
            f"The file that was sent as the cine {view} is a single frame. Send it as {view}-ED or "
            f"{view}-ES."
        )
    return view, phase


def _refuse_contradictions(
    samples: Sequence[DecodedSample], said: Sequence[tuple[str, str]]
) -> None:
    """Refuse a view that is there twice, and files of several patients."""
    places: dict[tuple[str, str, str], int] = defaultdict(int)
    for sample, (view, phase) in zip(samples, said, strict=True):
        places[view, phase, "" if phase else sample.frame] += 1
    twice = sorted({f"{v}-{p}" if p else v for (v, p, _), n in places.items() if n > 1})
    if twice:
        raise UnreadableImage(f"Several files were sent as {', '.join(twice)}; send one of each.")
    both = sorted(
        view for view in (FOUR, TWO) if (view, "") in said and {(view, ED), (view, ES)} & set(said)
    )
    if both:
        raise UnreadableImage(f"Of {both[0]}, send frames or a cine, not both.")
    patients = {sample.facts.get("patient", math.nan) for sample in samples}
    if len({patient for patient in patients if not math.isnan(patient)}) > 1:
        raise UnreadableImage(
            "The files are of several patients, by their DICOM tags. Send the study of one."
        )


def _spacing_of(samples: Sequence[DecodedSample]) -> list[tuple[float, float]]:
    """Size of a pixel of every frame; views may differ, frames of one view may not."""
    found: list[tuple[float, float]] = []
    by_view: dict[str, tuple[float, float]] = {}
    for sample in samples:
        row, column = (
            sample.facts.get(f"spacing_{side}_mm", math.nan) for side in ("row", "column")
        )
        if not (row > 0 and column > 0 and math.isfinite(row) and math.isfinite(column)):
            raise UnreadableImage(
                "The file does not state the size of a pixel, or states 0, so that there are no "
                "volumes. Say it with spacing_mm, height and width of a pixel, such as 0.31,0.31."
            )
        view = sample.view[:3].upper()
        first = by_view.setdefault(view, (row, column))
        if any(
            abs(one - other) > _SPACING_DIFFERS * one
            for one, other in zip(first, (row, column), strict=True)
        ):
            raise UnreadableImage(
                f"Pixels of the frames of {view} have different sizes ({first[0]:.3g} x "
                f"{first[1]:.3g} and {row:.3g} x {column:.3g} mm): they are not of one cine."
            )
        found.append((row, column))
    return found


def _phases(
    frames: Sequence[Segmented], samples: Sequence[DecodedSample]
) -> tuple[dict[tuple[str, str], Cavity], list[dict[str, Any]], list[str]]:
    """The cavity in each view and phase, what each beat of a cine gives, and doubts."""
    cavities: dict[tuple[str, str], Cavity] = {}
    beats: list[dict[str, Any]] = []
    doubts: list[str] = []
    for frame in frames:
        if frame.phase and frame.cavity is not None:
            cavities[frame.view, frame.phase] = frame.cavity
        elif frame.cavity is None and frame.phase:
            doubts.append(f"No cavity was found in {frame.view}-{frame.phase}.")
    for view in (FOUR, TWO):
        cine = [i for i, frame in enumerate(frames) if frame.view == view and not frame.phase]
        if not cine:
            continue
        measured = [frames[i].cavity for i in cine]
        areas = np.array([np.nan if c is None else c.area_mm2 for c in measured])
        fps = samples[cine[0]].facts.get("fps", math.nan)
        pairs = phases_of(areas, None if math.isnan(fps) else fps)
        for number, key in enumerate((ED, ES)):
            chosen = [measured[pair[number]] for pair in pairs]
            known = [cavity for cavity in chosen if cavity is not None]
            if known:
                cavities[view, key] = _mean(known)
        for ed, es in pairs:
            single = {(view, ED): measured[ed], (view, ES): measured[es]}
            own = volumes_of({key: c for key, c in single.items() if c is not None})
            beats.append(
                {
                    "view": view,
                    "ed_frame": frames[cine[ed]].frame,
                    "es_frame": frames[cine[es]].frame,
                    "ef_percent": None if own is None else own.ef_percent,
                }
            )
        lost = int(np.isnan(areas).sum())
        if lost:
            doubts.append(f"{view}: no cavity was found in {lost} of {len(cine)} frames.")
        if math.isnan(fps):
            doubts.append(
                f"{view}: the file does not say how many frames a second it has; beats are not "
                "told apart."
            )
    return cavities, beats, doubts


def _mean(cavities: Sequence[Cavity]) -> Cavity:
    """The mean of one view and phase over several beats."""
    return Cavity(
        widths_mm=np.mean([cavity.widths_mm for cavity in cavities], axis=0),
        length_mm=float(np.mean([cavity.length_mm for cavity in cavities])),
        area_mm2=float(np.mean([cavity.area_mm2 for cavity in cavities])),
        base=cavities[0].base,
        apex=cavities[0].apex,
        annulus=cavities[0].annulus,
    )


def _described(frame: Segmented, masks: MaskFormat | None, *, contours: bool) -> dict[str, Any]:
    """One frame in an answer."""
    cavity = frame.cavity
    pixel_cm2 = frame.spacing_mm[0] * frame.spacing_mm[1] / 100
    found: dict[str, Any] = {
        "view": frame.view,
        "phase": frame.phase or None,
        "frame": frame.frame,
        "area_cm2": {
            name: float((frame.labels == number).sum()) * pixel_cm2
            for name, number in STRUCTURES.items()
        },
        "length_mm": None if cavity is None else cavity.length_mm,
    }
    if masks == "png":
        stream = io.BytesIO()
        Image.fromarray(frame.labels).save(stream, format="PNG")
        coded = base64.b64encode(stream.getvalue()).decode()
        found["mask"] = {"png": f"data:image/png;base64,{coded}"}
    elif masks == "rle":
        found["mask"] = {
            "size": list(frame.labels.shape),
            "runs": {name: _runs(frame.labels == number) for name, number in STRUCTURES.items()},
        }
    if contours:
        found["contours"] = {
            name: _contour(frame.labels == number, frame.spacing_mm)
            for name, number in STRUCTURES.items()
        }
    return found


def _runs(mask: NDArray[np.bool_]) -> list[int]:
    """Lengths of runs, row after row, of pixels outside and inside in turn, outside first."""
    flat = mask.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    bounds = np.concatenate([[0], edges, [len(flat)]])
    lengths: list[int] = np.diff(bounds).tolist()
    return [0, *lengths] if flat[0] else lengths


def _contour(
    mask: NDArray[np.bool_], spacing_mm: tuple[float, float]
) -> dict[str, list[list[float]]]:
    """The longest outline as points, x before y, in px and in mm from the upper left corner."""
    found, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not found:
        return {"px": [], "mm": []}
    points = max(found, key=len)[:, 0].astype(float)
    in_mm = (points + 0.5) * np.array(spacing_mm[::-1])
    return {"px": points.tolist(), "mm": in_mm.round(3).tolist()}
