"""Answers of segmentation networks: outlines, volumes and the ejection fraction of a study."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from cardioray.answers import ModelOutputs, number_answer
from cardioray.clinical.beats import phases_of
from cardioray.clinical.volumes import Volumes, volumes_of
from cardioray.data.decoding import DecodedSample
from cardioray.data.frames import UnreadableImage
from cardioray.data.nifti import read_source
from cardioray.data.video_writing import encode_video
from cardioray.dicom_results.objects import (
    NOT_CLINICAL,
    DicomKind,
    DicomResult,
    Model,
    read_sources,
    require_highdicom,
)
from cardioray.dicom_results.report import report
from cardioray.dicom_results.segmentation import segmentations
from cardioray.evaluation.operating_point import RegressionOperatingPoint
from cardioray.explain.area_curve import AreaCurve, curve_frames
from cardioray.models.backbones import NoFeatureMap
from cardioray.models.segmentation import MASKS
from cardioray.outlines import (
    HOW,
    MaskFormat,
    Segmented,
    StudyOutlines,
    cavity_pixels,
    cut_doubts,
    described,
    outlined,
    parse_view,
    refuse_contradictions,
    refuse_incomplete,
    said_of,
    shown_as,
    spacing_of,
    study_outlines,
    tidied_map,
    used_of_cines,
    with_spacing,
)
from cardioray.predictor import PLAYED_FPS, Item, Overlay, Predictor
from cardioray.tasks.lv_seg import LvSegTask
from cardioray.tasks.outline_tables import CALIBRATION_VIEWS, cavity_of, pixel_doubts, view_doubts

OUTLINES, VIDEO = "outlines", "video"


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
        videos: bool = False,
        dicom: Sequence[DicomKind] = (),
    ) -> dict[str, Any]:
        """Answer for one study of frames or cines.

        Args:
            items: file contents, paths (local or s3://), or uint8 arrays (H, W).
            views: of each item "A4C-ED", "A4C-ES", "A2C-ED", "A2C-ES" for a frame, "A4C", "A2C"
                for a cine.
            spacing_mm: height and width of a pixel, where the files do not state it.
            masks: as of `answer`.
            contours: as of `answer`.
            videos: as of `answer`.
            dicom: as of `answer`; of DICOM files alone.

        Returns:
            `ef` and perhaps volumes with their intervals, `volumes`, `beats`, `outlines`, the
            model's name, and warnings; see docs/segmentation.md.

        Raises:
            UnreadableImage: when an item cannot be read, or no volume can be made of them.
            FileNotFoundError: when a path does not exist.
            DicomResultsUnavailable: when the library that makes DICOM results is missing.
            ValueError: when there are not as many views as items.
        """
        if dicom:
            require_highdicom()
        listed = [items] if isinstance(items, bytes | str | Path | np.ndarray) else list(items)
        contents = [read_source(str(i)) if isinstance(i, str | Path) else i for i in listed]
        samples = self.read(contents, views)
        sources = None
        if dicom:
            files = {
                shown_as(*parse_view(view)): content if isinstance(content, bytes) else None
                for content, view in zip(contents, views or [""] * len(contents), strict=True)
            }
            sources = read_sources(files)
        if spacing_mm is not None:
            samples = [with_spacing(sample, spacing_mm) for sample in samples]
        self.check(samples)
        return self.answer(
            samples,
            self.infer(samples),
            masks=masks,
            contours=contours,
            videos=videos,
            dicom=dicom,
            sources=sources,
        )

    def check(self, samples: Sequence[DecodedSample]) -> None:
        """Refuse, before the network runs, frames that no answer can be given for.

        Raises:
            UnreadableImage: when views and phases are missing or contradict each other, the size
                of a pixel is not known or differs within a view, the files are of several patients
                or examinations, or no view has both phases.
        """
        if not samples:
            return  # which `infer` refuses
        said, _ = self._said(samples)
        refuse_incomplete(said)

    def _said(
        self, samples: Sequence[DecodedSample]
    ) -> tuple[list[tuple[str, str]], list[tuple[float, float]]]:
        """View and phase, and the size of a pixel, of every frame of a study that fits together."""
        said = [said_of(sample) for sample in samples]
        refuse_contradictions(samples, said)
        return said, spacing_of(samples)

    def overlay(self, sample: DecodedSample, method: str | None = None) -> Overlay:
        """A frame with its outlines, as PNG; there is no heat map of a segmentation.

        Raises:
            NoFeatureMap: when a heat map is asked for by its name.
        """
        if method not in (None, OUTLINES):
            raise NoFeatureMap(f"There is no {method} of a segmentation; its outlines are drawn.")
        labels = self._label_maps([sample], self.infer([sample]))[0]
        stream = io.BytesIO()
        Image.fromarray(outlined(sample.picture, labels)).save(stream, format="PNG")
        return Overlay(stream.getvalue(), "image/png")

    def explanation(self, sample: DecodedSample, method: str | None = None) -> Overlay:
        """What `overlay` gives."""
        return self.overlay(sample, method)

    def explain(
        self,
        data: bytes,
        method: str | None = None,
        *,
        spacing_mm: tuple[float, float] | None = None,
    ) -> Overlay:
        """The outlines of a file: of a frame as PNG, of a cine as a video with its area curve.

        Args:
            data: the file.
            method: "outlines" for the first frame, "video" for a cine; by default what the file
                is.
            spacing_mm: height and width of a pixel, where the file does not state it; without
                either, areas are in px.

        Raises:
            NoFeatureMap: when a heat map is asked for, or the video of a single frame.
            UnreadableImage: when the file cannot be read.
        """
        samples = self.decode(data)
        cine = samples[0].facts.get("is_cine") == 1
        if method == VIDEO and not cine:
            raise NoFeatureMap("There is a video of a cine; the file is a single frame.")
        if method != VIDEO and (method is not None or not cine):
            return self.overlay(samples[0], method)
        if spacing_mm is not None:
            samples = [with_spacing(sample, spacing_mm) for sample in samples]
        labels = self._label_maps(samples, self.infer(samples))
        facts = samples[0].facts
        height, width = (facts.get(f"spacing_{side}_mm", math.nan) for side in ("row", "column"))
        pixel_cm2 = height * width / 100
        known = pixel_cm2 > 0
        pixels = cavity_pixels(labels)
        fps = facts.get("fps", math.nan)
        pairs = phases_of(pixels, None if math.isnan(fps) else fps)
        areas = pixels * (pixel_cm2 if known else 1.0)
        return _video(samples, labels, areas, pairs, "cm2" if known else "px")

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
        videos: bool = False,
        dicom: Sequence[DicomKind] = (),
        sources: Mapping[str, Dataset] | None = None,
    ) -> dict[str, Any]:
        """The answer for one study from what the network said of its frames.

        Args:
            samples: its frames.
            outputs: of the network.
            masks: give the label map of every frame, as PNG or as lengths of runs.
            contours: give the outline of every structure, in px and in mm.
            videos: give of each cine a video with outlines and area curve; the samples then hold
                their pictures.
            dicom: give the outlines ("seg"), the measurements ("sr") as DICOM objects.
            sources: for these, the headers of the files by what they show; see `read_sources`.

        Raises:
            UnreadableImage: as of `check`; when no volume can be made, or there is no cine for a
                video.
        """
        assert len(samples) == len(outputs)
        study = self.outline(samples, outputs)
        volumes = volumes_of(study.cavities, self.task.settings.method)
        if volumes is None:
            raise UnreadableImage(
                "No view has an outline of the cavity at end diastole and at end systole, so that "
                f"there is no ejection fraction. {HOW}"
            )
        answer = {
            **self._numbers(volumes),
            "beats": [
                {
                    "view": beat.view,
                    "ed_frame": study.frames[beat.ed].frame,
                    "es_frame": study.frames[beat.es].frame,
                    "ef_percent": beat.ef_percent,
                }
                for beat in study.beats
            ],
            "cines": used_of_cines(samples, study.frames),
            "outlines": [
                described(frame, masks, self.task.settings.structures, contours=contours)
                for frame in study.frames
            ],
            "model": self.bundle.name,
            "bundle": self.bundle.identity,
            "frames": len(samples),
            "warnings": [
                *self.bundle.metadata["warnings"],
                *volumes.doubts,
                *view_doubts(self.bundle.metadata.get(CALIBRATION_VIEWS, {}), volumes.views),
                *pixel_doubts([f.view for f in study.frames], [f.spacing_mm for f in study.frames]),
                *cut_doubts(samples, study.frames),
                *study.doubts,
                *self.gate_warnings(samples, outputs),
            ],
        }
        if videos:
            answer["overlays"] = _videos(samples, study)
        if dicom:
            assert sources is not None
            found = self._dicom_results(study, answer, dicom, sources)
            answer["dicom"] = [_shown(result) for result in found]
        return answer

    def outline(self, samples: Sequence[DecodedSample], outputs: ModelOutputs) -> StudyOutlines:
        """The label map of every frame, and what is measured of them.

        Raises:
            UnreadableImage: as of `check`, but for phases that are missing.
        """
        shown, spacing = self._said(samples)
        frames = [
            Segmented(
                view=view,
                phase=phase,
                frame=int(sample.frame),
                labels=labels,
                cavity=cavity_of(labels, pixel),
                spacing_mm=pixel,
                fps=sample.facts.get("fps", math.nan),
            )
            for sample, (view, phase), labels, pixel in zip(
                samples, shown, self._label_maps(samples, outputs), spacing, strict=True
            )
        ]
        return study_outlines(frames, self.task.settings.method)

    def _label_maps(
        self, samples: Sequence[DecodedSample], outputs: ModelOutputs
    ) -> list[NDArray[np.uint8]]:
        """The tidied label map of each frame at the size of its source, (H, W)."""
        return [
            tidied_map(self.task, probabilities, *sample.source_shape)
            for sample, probabilities in zip(samples, outputs.scores[MASKS], strict=True)
        ]

    def _numbers(self, volumes: Volumes) -> dict[str, Any]:
        """The targets with their intervals, and what they are made of."""
        raw = {"ef": volumes.ef_percent, "edv": volumes.edv_ml, "esv": volumes.esv_ml}
        answers: dict[str, Any] = {}
        for target in self.task.targets:
            point = self.operating_points[target.name]
            assert isinstance(point, RegressionOperatingPoint)
            found = number_answer(point, target.unit, np.array([raw[target.name]]))
            answers[target.name] = {**found, "uncalibrated": raw[target.name]}
        answers["volumes"] = {
            "edv_ml": volumes.edv_ml,
            "esv_ml": volumes.esv_ml,
            "ef_percent": volumes.ef_percent,
            "method": self.task.settings.method,
            "views": list(volumes.views),
        }
        return answers

    def _dicom_results(
        self,
        study: StudyOutlines,
        answer: Mapping[str, Any],
        kinds: Sequence[DicomKind],
        sources: Mapping[str, Dataset],
    ) -> list[DicomResult]:
        model = Model(self.bundle.name, self.bundle.identity, self.task.settings.structures)
        found: list[DicomResult] = []
        if "seg" in kinds:
            found += segmentations(study.frames, sources, model)
        if "sr" in kinds:
            found.append(report(study, answer, sources, model))
        return found


def _videos(samples: Sequence[DecodedSample], study: StudyOutlines) -> list[dict[str, Any]]:
    """The video of each cine, as answers hold overlays.

    Raises:
        UnreadableImage: when there is no cine.
    """
    if not study.cines:
        raise UnreadableImage(
            "A video is made of a cine, and these are frames: ask for overlay=outlines."
        )
    found = []
    for view, places in study.cines.items():
        labels = [study.frames[place].labels for place in places]
        height, width = study.frames[places[0]].spacing_mm
        pairs = [
            (places.index(beat.ed), places.index(beat.es))
            for beat in study.beats
            if beat.view == view
        ]
        own = [samples[place] for place in places]
        areas = cavity_pixels(labels) * (height * width / 100)
        video = _video(own, labels, areas, pairs, "cm2")
        found.append(
            {
                "frame": places[0],
                "view": view,
                "method": VIDEO,
                "video": _data_uri(video.media_type, video.content),
            }
        )
    return found


def _video(
    samples: Sequence[DecodedSample],
    labels: Sequence[NDArray[np.uint8]],
    areas: NDArray[np.float64],
    phases: Sequence[tuple[int, int]],
    unit: str,
) -> Overlay:
    """The frames of a cine with their outlines, and the curve of the cavity below, as MP4."""
    rate = samples[0].facts.get("fps", math.nan)
    fps = None if math.isnan(rate) else rate
    curve = AreaCurve(
        areas=areas,
        unit=unit,
        fps=fps,
        first_frame=int(samples[0].frame),
        end_diastoles=[ed for ed, _ in phases],
        end_systoles=[es for _, es in phases],
    )
    pictures = (outlined(s.picture, own) for s, own in zip(samples, labels, strict=True))
    frames = curve_frames(pictures, samples[0].source_shape, curve, NOT_CLINICAL)
    video = encode_video(frames, fps or PLAYED_FPS, "mp4")
    return Overlay(video, "video/mp4", areas=tuple(areas.tolist()), unit=unit)


def _shown(result: DicomResult) -> dict[str, Any]:
    """A DICOM object in an answer."""
    return {
        "kind": result.kind,
        "name": result.file_name,
        "sop_instance_uid": result.sop_instance_uid,
        "dicom": _data_uri("application/dicom", result.content),
    }


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
