"""What an application tells the page: what it answers and takes, and whether it knows an input."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cardioray.answers import ModelOutputs
from cardioray.data.clip import CLIP
from cardioray.data.decoding import DecodedSample
from cardioray.data.video_writing import encode_video
from cardioray.keyframes import KeyframePredictor
from cardioray.predictor import Predictor
from cardioray.segments import OUTLINES, VIDEO, SegmentPredictor
from cardioray.serve.hosting import Catalogue, describe
from cardioray.serve.settings import ServeSettings
from cardioray.serve.upload import form_fields
from cardioray.studies import StudyOutputs, StudyPredictor
from cardioray.targets import BinaryTarget, RegressionTarget
from cardioray.tasks.video import VideoTask

# A mean that comes with less than this deviation was made of no training labels.
_LEAST_DEVIATION = 1e-5
# Of a look at a file: its longer side, its frames, and how fast it is played where that is unknown.
_LOOK_PX = 512
LOOK_FRAMES = 96
_LOOK_FPS = 15.0


class Look(NamedTuple):
    """A picture or video of what a file shows.

    Attributes:
        content: a PNG, or an MP4 for a browser.
        media_type: of it.
    """

    content: bytes
    media_type: str


def about(catalogue: Catalogue, settings: ServeSettings) -> dict[str, Any]:
    """What a client needs to know in order to ask, ready for JSON."""
    predictor = catalogue.default.predictor
    task = predictor.task
    views = [view for view in form_fields(task).items() if view[1]]
    return {
        "task": task.name,
        "title": task.title,
        "intended_use": task.intended_use,
        "modality": task.modality,
        "accepted": task.decoder.accepted,
        "fields": [{"name": name, "shows": shown} for name, shown in views],
        # Elsewhere every file has to stand in a field that says what it shows.
        "takes_plain_files": not isinstance(predictor, SegmentPredictor | KeyframePredictor),
        "takes_cines": _takes_cines(predictor),
        "takes_key_frames": isinstance(predictor, KeyframePredictor),
        "takes_spacing": isinstance(predictor, SegmentPredictor),
        "overlays": _overlays(predictor),
        "targets": [_target(target) for target in task.targets],
        "interval": 1 - task.operating.alpha,
        "models": [
            {**describe(model, model is catalogue.default), "averages": averages(model.predictor)}
            for model in catalogue.models
        ],
        "limits": {
            "max_bytes": settings.limits.max_bytes,
            "max_files": settings.limits.max_files,
        },
    }


def averages(predictor: Predictor) -> dict[str, float]:
    """Per target what the training data had: the share of class 1, or the mean number.

    A target that no training label tells of is left out.
    """
    statistics: Mapping[str, Any] = predictor.bundle.metadata.get("label_statistics", {})
    weights = statistics.get("class_weights", {})
    deviations = statistics.get("deviations", {})
    # The weight of class 1 is total / (2 N_1).
    shares = {name: 1 / (2 * float(own[1])) for name, own in weights.items()}
    means = {
        name: float(mean)
        for name, mean in statistics.get("means", {}).items()
        if deviations.get(name, 0.0) > _LEAST_DEVIATION
    }
    return shares | means


def unlike_training(
    predictor: Predictor, samples: Sequence[DecodedSample], outputs: ModelOutputs
) -> list[str]:
    """What of a study is unlike what a model was trained on, as sentences; none for a known one."""
    if not isinstance(predictor, StudyPredictor):
        return predictor.gate_warnings(samples, outputs)
    assert isinstance(outputs, StudyOutputs)
    used = np.array(predictor.views_used(outputs))
    found = []
    if not used.all():
        found.append(
            f"{int((used == '').sum())} of {len(samples)} cines show none of the views "
            f"{', '.join(predictor.members)} clearly."
        )
    for view, member in predictor.members.items():
        places = np.flatnonzero(used == view)
        if len(places):
            own = member.gate_warnings([samples[i] for i in places.tolist()], outputs.take(places))
            found += [f"{view}: {text}" for text in own]
    return found


def look_of(samples: Sequence[DecodedSample]) -> Look:
    """What a file shows as it was read: its picture, or its frames as a video.

    Args:
        samples: of one file; those after `LOOK_FRAMES` need no picture.
    """
    first = samples[0]
    if CLIP in first.arrays:
        frames = list(first.arrays[CLIP][:LOOK_FRAMES])
        if frames[0].shape[-1] == 1:
            frames = [frame[..., 0] for frame in frames]
    else:
        shape = first.picture.shape
        frames = [s.picture for s in samples[:LOOK_FRAMES] if s.picture.shape == shape]
    images = [_shrunk(Image.fromarray(np.ascontiguousarray(frame))) for frame in frames]
    if len(images) == 1:
        stream = io.BytesIO()
        images[0].save(stream, format="PNG")
        return Look(stream.getvalue(), "image/png")
    fps = first.facts.get("fps", math.nan)
    rate = fps if math.isfinite(fps) and fps > 0 else _LOOK_FPS
    return Look(encode_video(np.stack([np.asarray(i) for i in images]), rate, "mp4"), "video/mp4")


def _shrunk(image: Image.Image) -> Image.Image:
    """A picture whose longer side is at most `_LOOK_PX`, with even sides as H.264 needs them."""
    scale = min(1.0, _LOOK_PX / max(image.size))
    width, height = (max(2, round(side * scale / 2) * 2) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


def _takes_cines(predictor: Predictor) -> bool:
    return isinstance(predictor.task, VideoTask) or isinstance(
        predictor, SegmentPredictor | KeyframePredictor
    )


def _overlays(predictor: Predictor) -> list[dict[str, str]]:
    """The overlays that can be asked for, the best one first."""
    if isinstance(predictor, SegmentPredictor):
        return [{"method": OUTLINES, "of": "frames"}, {"method": VIDEO, "of": "cines"}]
    if isinstance(predictor.task, VideoTask):
        return [{"method": "gradcam", "of": "cines"}]
    methods = ["gradcam++", "gradcam"]
    if not isinstance(predictor, KeyframePredictor):
        methods.append("scorecam")
    return [{"method": method, "of": "frames"} for method in methods]


def _target(target: BinaryTarget | RegressionTarget) -> dict[str, Any]:
    if target.kind == "regression":
        return {
            "name": target.name,
            "kind": "number",
            "unit": target.unit,
            "low": target.low,
            "high": target.high,
            "cutoffs": list(target.cutoffs),
        }
    return {
        "name": target.name,
        "kind": "question",
        "positive": target.positive,
        "negative": target.negative,
        "one_of": list(target.one_of),
    }
