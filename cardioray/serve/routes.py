"""The routes of an application, below `/v1/<task>`."""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from cardioray.bundle import CARD
from cardioray.data.decoding import DecodedSample
from cardioray.data.frames import FrameSelection
from cardioray.dicom_results.objects import DicomKind, DicomResultsUnavailable, require_highdicom
from cardioray.keyframes import KeyframePredictor
from cardioray.outlines import MaskFormat, parse_spacing, with_spacing
from cardioray.segments import OUTLINES, VIDEO, SegmentPredictor
from cardioray.serve.guarded import guarded_app
from cardioray.serve.hosting import Model, check_ready, describe
from cardioray.serve.middleware import (
    record_of,
)
from cardioray.serve.problems import (
    PROBLEM_JSON,
    Problem,
    malformed,
    no_dicom_results,
    size_text,
)
from cardioray.serve.schemas import ProblemDetails, answer_schema, document, request_body
from cardioray.serve.upload import SentFile, form_fields, read_upload

if TYPE_CHECKING:
    from cardioray.serve.replica import Answerer

ASSETS = "/docs-assets"
# Probes have no key, and the documentation holds no secret; a browser could not send a key for it.
OPEN_PATHS = ("/live", "/ready", "/docs", "/openapi.json", ASSETS)
_PARAMETERS = {"frame", "model", "overlay", "view"}
_OF_OUTLINES = {"spacing_mm", "masks", "contours", "dicom"}
_FRAME = (
    "chooses among the frames of a file: all, contrast, one such as 12, or a range such as 10-20, "
    "counted from 0"
)

Frame = Annotated[
    str | None,
    Query(max_length=20, description=f"{_FRAME.capitalize()}; the model's own choice by default"),
]
ModelName = Annotated[str | None, Query(description="Name of the model; the first by default")]
Views = Annotated[
    list[str] | None,
    Query(description="View of each file in order, empty where unknown; of models of cines"),
]
OverlayMethod = Annotated[
    Literal["gradcam", "gradcam++", "scorecam", "outlines", "video"] | None,
    Query(
        description="Heat map to add to the frames; of a segmentation outlines of frames, or of a "
        "cine a video with outlines and area curve"
    ),
]
Spacing = Annotated[
    str | None,
    Query(
        max_length=40,
        description="Height and width of a pixel in mm, such as 0.31,0.31, where files do not say",
    ),
]
Masks = Annotated[
    MaskFormat | None, Query(description="Label map of every frame, of a segmentation")
]
Contours = Annotated[
    bool, Query(description="Outline of every structure in px and mm, of a segmentation")
]

Dicom = Annotated[
    list[DicomKind] | None,
    Query(
        description="Of DICOM files, the answer of a segmentation as DICOM objects, too: `seg` the "
        "outlines, `sr` the measurements; may be repeated"
    ),
]


KeyFrames = Annotated[
    str | None,
    Query(
        max_length=20,
        description="Of a cine for a model of key frames: its frames at end diastole and end "
        "systole, counted from 0, such as 12,30",
    ),
]


def make_routes(replica: Answerer) -> FastAPI:
    """The FastAPI application of a replica."""
    predictor = replica.catalogue.default.predictor
    app = guarded_app(
        title=f"CardioRay: {predictor.task.name}",
        description=f"{predictor.task.title}. {predictor.task.intended_use}",
        below="",
        assets=ASSETS,
        keys=replica.keys,
        open_paths=OPEN_PATHS,
        metrics=replica.metrics,
        access_log=replica.settings.access_log,
    )
    _add_answers(app, replica)
    _add_models(app, replica)
    _add_probes(app, replica)
    app.openapi = functools.partial(  # type: ignore[method-assign]
        document, app, f"/v1/{predictor.task.name}", with_keys=bool(replica.keys)
    )
    return app


def _add_answers(app: FastAPI, replica: Answerer) -> None:
    problem = {"model": ProblemDetails, "content": {PROBLEM_JSON: {}}}
    schema = answer_schema(replica.catalogue.default.predictor)
    outlines = isinstance(replica.catalogue.default.predictor, SegmentPredictor)
    statuses = (400, 401, 404, 408, 413, 415, 422, 500, *((501,) if outlines else ()), 503)
    documented: dict[int | str, dict[str, Any]] = dict.fromkeys(statuses, problem)
    documented[200] = {"model": schema}
    fields = form_fields(replica.catalogue.default.predictor.task)
    known = _PARAMETERS | (_OF_OUTLINES if outlines else set())
    if isinstance(replica.catalogue.default.predictor, KeyframePredictor):
        known = known | {"key_frames"}

    async def predict(
        request: Request,
        model: ModelName = None,
        frame: Frame = None,
        overlay: OverlayMethod = None,
        view: Views = None,
        spacing_mm: Spacing = None,
        masks: Masks = None,
        contours: Contours = False,
        dicom: Dicom = None,
        key_frames: KeyFrames = None,
    ) -> Response:
        """Answer for one study: one or several files, each with one or several frames."""
        record = record_of(request)
        _refuse_unknown_parameters(request, known)
        _refuse_unknown_frame(frame)
        chosen = replica.catalogue.get(model)
        record.model = chosen.name
        options: dict[str, Any] = {}
        spacing = _spacing(spacing_mm)
        wanted = _key_frames(key_frames, frame)
        if isinstance(chosen.predictor, SegmentPredictor):
            options = {"masks": masks, "contours": contours, "videos": overlay == VIDEO}
        elif overlay in (OUTLINES, VIDEO):
            raise malformed(f"Ask for a heat map: {chosen.predictor.task.name} draws no outlines.")
        if dicom:
            _require_dicom_results()
        limits = replica.settings.limits
        drawn = limits.max_overlays if overlay else 0
        kept = limits.max_frames if overlay == VIDEO else drawn
        study = await _read_study(request, replica, chosen, frame, kept, view or (), wanted)
        samples = study.samples
        if dicom:
            options |= {"dicom": dicom, "sources": await replica.sources(study.files)}
        if spacing is not None:
            samples = [with_spacing(sample, spacing) for sample in samples]
        answer = await replica.answer(chosen, samples, options)
        if overlay and overlay != VIDEO:
            answer["overlays"] = await _overlays(replica, chosen, samples[:drawn], overlay)
            if len(samples) > drawn:
                answer["warnings"] = [
                    *answer["warnings"],
                    f"Overlays are of the first {drawn} of {len(samples)} alone "
                    "(limits.max_overlays).",
                ]
        return JSONResponse({**answer, "request_id": record.request_id})

    app.add_api_route(
        "",
        predict,
        methods=["POST"],
        name="predict",
        responses=documented,
        openapi_extra={"requestBody": request_body(fields)},
    )


class _Study(NamedTuple):
    """What a request holds.

    Attributes:
        samples: the frames of its files.
        files: the files in order.
    """

    samples: list[DecodedSample]
    files: list[SentFile]


async def _read_study(
    request: Request,
    replica: Answerer,
    model: Model,
    frame: str | None,
    pictures: int,
    views: Sequence[str],
    key_frames: tuple[int, int] | None,
) -> _Study:
    """The frames of the request's files; a problem with them says what is accepted."""
    record, limits = record_of(request), replica.settings.limits
    try:
        files = await read_upload(request, limits, form_fields(model.predictor.task))
        record.received = sum(len(file.content) for file in files)
        said = _said_views(files, views)
        contents = [file.content for file in files]
        samples = await replica.decode(model, contents, frame, pictures, said, key_frames)
    except Problem as problem:
        accepted = model.predictor.task.decoder.accepted
        problem.accepted = (
            f"{accepted} A request may hold {size_text(limits.max_bytes)}, {limits.max_files} "
            f"files and {limits.max_frames} frames; ?frame= {_FRAME}."
        )
        raise
    record.frames = len(samples)
    if said:
        files = [file._replace(view=view) for file, view in zip(files, said, strict=True)]
    return _Study(samples, files)


def _said_views(files: Sequence[SentFile], views: Sequence[str]) -> list[str]:
    """The view of each file, from its field or from the query; () where neither says any."""
    by_field = [file.view for file in files]
    if not any(by_field):
        return list(views)
    if views:
        raise malformed("Say views by the fields of the files, or by ?view=, not by both.")
    return by_field


async def _overlays(
    replica: Answerer, model: Model, samples: list[DecodedSample], method: str
) -> list[dict[str, Any]]:
    overlays = []
    predictor = model.predictor
    for index, sample in enumerate(samples):
        if isinstance(predictor, KeyframePredictor) and not predictor.uses(sample):
            continue  # it took no part in the answer
        found = await replica.overlay(model, sample, method)
        coded = base64.b64encode(found.content).decode()
        key = "png" if found.media_type == "image/png" else "video"
        overlay: dict[str, Any] = {"frame": index, "method": method}
        overlay[key] = f"data:{found.media_type};base64,{coded}"
        if found.importance:
            overlay["importance"] = list(found.importance)
        overlays.append(overlay)
    return overlays


def _refuse_unknown_parameters(request: Request, known: set[str]) -> None:
    if unknown := set(request.query_params) - known:
        raise malformed(
            f"{len(unknown)} unknown query parameter(s). Known: {', '.join(sorted(known))}."
        )


def _spacing(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        return parse_spacing(text)
    except ValueError as error:
        raise malformed(str(error)) from None


def _key_frames(text: str | None, frame: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if frame is not None:
        raise malformed("Choose frames by ?frame= or by ?key_frames=, not by both.")
    try:
        ed, es = (int(part) for part in text.split(","))
    except ValueError:
        raise malformed("key_frames are two frames, end diastole first, such as 12,30.") from None
    return ed, es


def _require_dicom_results() -> None:
    try:
        require_highdicom()
    except DicomResultsUnavailable as error:
        raise no_dicom_results(str(error)) from None


def _refuse_unknown_frame(frame: str | None) -> None:
    try:
        FrameSelection.parse(frame or "all")
    except ValueError as error:
        raise malformed(str(error)) from None


def _add_models(app: FastAPI, replica: Answerer) -> None:
    @app.get("/models")
    async def models() -> list[dict[str, Any]]:
        """The models that can be asked, the default one first."""
        return [describe(m, m is replica.catalogue.default) for m in replica.catalogue.models]

    @app.get("/card")
    async def card(request: Request, model: ModelName = None) -> Response:
        """A model's card: Markdown where only that is accepted, else JSON with its metadata."""
        chosen = replica.catalogue.get(model)
        record_of(request).model = chosen.name
        text = (chosen.bundle.path / CARD).read_text()
        if request.headers.get("accept", "").startswith("text/markdown"):
            return PlainTextResponse(text, media_type="text/markdown")
        return JSONResponse(
            {"name": chosen.name, "card": text, "metadata": dict(chosen.bundle.metadata)}
        )


def _add_probes(app: FastAPI, replica: Answerer) -> None:
    @app.get("/live")
    async def live() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "live"}

    @app.get("/ready")
    async def ready() -> dict[str, Any]:
        """Whether every model is loaded, warm and not stuck."""
        try:
            await check_ready(replica.catalogue.models)
        except RuntimeError as error:
            raise Problem("not-ready", 503, "The replica is not ready", str(error)) from None
        return {"status": "ready", "models": [model.name for model in replica.catalogue.models]}
