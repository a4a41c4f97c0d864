"""What the OpenAPI document says of answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field, create_model

from cardioray.keyframes import HeadsPredictor
from cardioray.predictor import Predictor
from cardioray.segments import SegmentPredictor
from cardioray.serve.upload import ACCEPTED_TYPES, FIELDS
from cardioray.studies import StudyPredictor
from cardioray.targets import questions
from cardioray.tasks.echo_ef import EchoEfTask
from cardioray.tasks.video import VideoTask


class Decision(BaseModel):
    """What is said to a yes/no question."""

    prediction: int = Field(description="0 or 1", ge=0, le=1)
    class_: str = Field(alias="class", description="Name of the predicted class")
    probability: float = Field(description="Calibrated probability of class 1", ge=0, le=1)
    threshold: float = Field(description="Probability from which the prediction is 1")
    uncertain: bool = Field(description="Whether the conformal set is not the predicted class only")


class BinaryAnswer(Decision):
    """The answer to a yes/no question."""

    probability_per_frame: list[float]


class NumberAnswer(BaseModel):
    """A predicted number with its conformal interval."""

    value: float
    low: float | None = Field(description="Null where nothing bounds it")
    high: float | None = Field(description="Null where nothing bounds it")
    unit: str


class FusedBinaryAnswer(Decision):
    """The answer to a yes/no question from the cines of several views."""

    probability_per_view: dict[str, float] = Field(
        description="What the network of each view says by itself"
    )


class FusedNumberAnswer(NumberAnswer):
    """A number from the cines of several views."""

    value_per_view: dict[str, float]


class ChoiceAnswer(BaseModel):
    """The likeliest of several classes."""

    class_: str = Field(alias="class")
    probability: float = Field(ge=0, le=1)


class Overlay(BaseModel):
    """A frame or cine with its heat or its outlines."""

    frame: int = Field(description="Place of the frame or cine in the study, from 0")
    view: str | None = Field(None, description="With ?overlay=video: of the cine")
    method: str
    png: str | None = Field(None, description="Of a frame: PNG as a data: URI")
    video: str | None = Field(None, description="Of a cine: MP4 as a data: URI")
    importance: list[float] | None = Field(
        None, description="Of a cine: share of the evidence in each frame, of the largest"
    )


class DicomAnswer(BaseModel):
    """A DICOM object that an answer comes as; not for clinical use."""

    kind: str = Field(description="`seg`, a segmentation of one file, or `sr`, a report")
    name: str = Field(description="Name for a file")
    sop_instance_uid: str
    dicom: str = Field(description="The object as a data: URI")


class BeatAnswer(BaseModel):
    """A number for one beat."""

    cine: int = Field(description="Place of the cine in the study, from 0")
    first_frame: int
    last_frame: int
    ed_frame: int | None = Field(None, description="End diastole, where outlines tell the beats")
    es_frame: int | None = Field(None, description="End systole, likewise")
    value: float


class SystoleSource(BaseModel):
    """What the beats were told by."""

    source: str = Field(description="`predictions` of successive windows, or `outlines`")
    model: str | None = Field(None, description="Of outlines: name of the model")
    bundle: str | None = Field(None, description="Of outlines: hash of its bundle")


class CineAnswer(BaseModel):
    """What of a cine was used."""

    frames_in_file: int
    frames_used: int
    fps: float | None = Field(description="Null where the file does not say")
    cm_per_px: float | None
    windows: int = Field(description="Windows that the network answered for")
    view: str | None = Field(default=None, description="Where views were said")
    used: bool | None = Field(default=None, description="False where its view kept it out")


class StudyCineAnswer(CineAnswer):
    """What of a cine of a study was used."""

    view: str = Field(description="The likeliest view, or the one that was said")
    view_probability: float = Field(ge=0, le=1)
    used: bool = Field(description="False where the cine took no part in the answer")


class SegmentNumberAnswer(NumberAnswer):
    """A number that is measured on outlines."""

    uncalibrated: float = Field(description="As it was measured")


class KeyframeNumberAnswer(NumberAnswer):
    """A number from key frames, with how sure it is."""

    sd: float = Field(description="Predictive standard deviation, calibrated")
    intervals: dict[str, list[float]] = Field(
        description="Central intervals by their percentage, 50, 80 and 95"
    )


class HeadAnswer(BaseModel):
    """What one head on features says; null where its frame was not given."""

    value: float | None
    sd: float | None
    probability: float | None


class ReviewAnswer(BaseModel):
    """Whether a person should look."""

    flagged: bool
    probability_wrong_side: float = Field(description="Of the cut-off, by the SD")
    reasons: list[str]


class VolumesAnswer(BaseModel):
    """What outlines amount to, not calibrated."""

    edv_ml: float
    esv_ml: float
    ef_percent: float
    method: str
    views: list[str] = Field(description="Views that the volumes rest on")


class SegmentBeatAnswer(BaseModel):
    """One beat of a cine."""

    view: str
    ed_frame: int
    es_frame: int
    ef_percent: float | None = Field(description="By this view alone")


class OutlinedCineAnswer(BaseModel):
    """What of a cine the answer rests on."""

    view: str
    frames_in_file: int | None
    frames_used: int
    fps: float | None = Field(description="Null where the file does not tell it")


class OutlineAnswer(BaseModel):
    """What is measured of one frame."""

    view: str
    phase: str | None = Field(description="Null in a cine")
    frame: int = Field(description="Number in its file, from 0")
    area_cm2: dict[str, float]
    length_mm: float | None = Field(description="From mitral plane to apex; null without a cavity")
    mask: dict[str, Any] | None = Field(
        None,
        description="With ?masks=: `png`, a data: URI of labels 1 cavity, 2 myocardium, 3 atrium; "
        "or `size` and `runs`, by structure lengths of runs outside and inside, row after row",
    )
    contours: dict[str, dict[str, list[list[float]]]] | None = Field(
        None, description="With ?contours=true: by structure points in `px` and `mm`, x before y"
    )


class ProblemDetails(BaseModel):
    """An error by RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    accepted: str | None = Field(None, description="What may be sent instead")


def answer_schema(predictor: Predictor) -> type[BaseModel]:
    """The shape of the answers of a task."""
    fused = isinstance(predictor, StudyPredictor)
    binary: type[Decision] = FusedBinaryAnswer if fused else BinaryAnswer
    number: type[NumberAnswer] = FusedNumberAnswer if fused else NumberAnswer
    outlined = isinstance(predictor, SegmentPredictor)
    if outlined:
        number = SegmentNumberAnswer
    heads = isinstance(predictor, HeadsPredictor)
    if heads:
        binary, number = Decision, KeyframeNumberAnswer
    cine: type[BaseModel] = StudyCineAnswer if fused else CineAnswer
    fields: dict[str, Any] = {
        target.name: (binary if target.kind == "binary" else number, ...)
        for target in predictor.task.targets
    }
    if isinstance(predictor.task, VideoTask):
        fields["cines"] = (list[cine], ...)  # type: ignore[valid-type]
        fields |= dict.fromkeys(questions(predictor.task.targets), (ChoiceAnswer, ...))
    if heads:
        fields["heads"] = (dict[str, HeadAnswer], Field(description="By frame and head"))
        fields["review"] = (ReviewAnswer, ...)
    if outlined:
        fields["volumes"] = (VolumesAnswer, ...)
        fields["beats"] = (list[SegmentBeatAnswer], ...)
        fields["cines"] = (list[OutlinedCineAnswer], ...)
        fields["outlines"] = (list[OutlineAnswer], ...)
        fields["dicom"] = (
            list[DicomAnswer] | None,
            Field(None, description="With ?dicom=: the objects, in the order of the files"),
        )
    if fused:
        fields["views"] = (list[str], Field(description="Views that the answer rests on"))
    if isinstance(predictor.task, EchoEfTask):
        fields["beats"] = (list[BeatAnswer], ...)
        fields["beat_range"] = (
            list[float] | None,
            Field(None, description="Lowest and highest beat; null where no beat was told apart"),
        )
        fields["systoles_from"] = (SystoleSource, ...)
    return create_model(
        "Answer",
        __doc__="The answer for one study.",
        **fields,
        model=(str, Field(description="Name of the model")),
        bundle=(str, Field(description="Hash of the model's bundle")),
        frames=(int, Field(description="Frames, or cines, of the study")),
        warnings=(list[str], Field(description="What to know before believing the answer")),
        overlays=(list[Overlay] | None, None),
        request_id=(str, ...),
    )


def request_body(fields: Iterable[str]) -> dict[str, Any]:
    """The two ways to send a study, for OpenAPI; `fields` are those of the form."""
    file = {"type": "string", "format": "binary"}
    single, several = FIELDS
    properties = {**dict.fromkeys(fields, file), single: file}
    form = {
        "type": "object",
        "properties": {**properties, several: {"type": "array", "items": file}},
    }
    content: dict[str, Any] = {"multipart/form-data": {"schema": form}}
    return {
        "required": True,
        "content": content | {kind: {"schema": file} for kind in ACCEPTED_TYPES},
    }


def document(app: FastAPI, prefix: str, *, with_keys: bool) -> dict[str, Any]:
    """The OpenAPI document of an application that is mounted at `prefix`."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        schema["paths"] = {f"{prefix}{path}": value for path, value in schema["paths"].items()}
        schema["servers"] = [{"url": "/"}]
        if with_keys:
            schema.setdefault("components", {})["securitySchemes"] = {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key"}
            }
            schema["security"] = [{"key": []}]
        app.openapi_schema = schema
    return app.openapi_schema
