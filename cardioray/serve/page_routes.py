"""The routes of the page's application: its files, the tasks that run, and the questionnaire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import Response

from cardioray import __version__
from cardioray.clinical.ecg_scores import HIGH_FROM, MEDIUM_FROM
from cardioray.serve.assessment import (
    AssessmentRequest,
    Language,
    ScoreCard,
    assess,
    questions,
)
from cardioray.serve.guarded import guarded_app
from cardioray.serve.middleware import (
    HEADERS,
    record_of,
)
from cardioray.serve.page_files import INDEX, PAGE_HEADERS
from cardioray.serve.problems import not_found, unreadable
from cardioray.serve.settings import Limits
from cardioray.serve.upload import FIELDS, read_upload

if TYPE_CHECKING:
    from cardioray.serve.page_app import Page

API = "/api"
DOCS, OPENAPI, ASSETS = f"{API}/docs", f"{API}/openapi.json", f"{API}/docs-assets"
# The page itself holds no secret, and what it asks for first is whether there are keys.
OPEN_PATHS = ("/", "/page", "/api/page", DOCS, OPENAPI, ASSETS, "/live", "/ready")
_GATE_FILES = 16

Words = Annotated[Language, Query(description="Language of the words in the answer")]


def make_page_routes(page: Page) -> FastAPI:
    """The FastAPI application of a replica of the page."""
    app = guarded_app(
        title="CardioRay",
        description="The page in front of every task, and the ECG questionnaire. Tasks have "
        "documents of their own, at /v1/TASK/docs.",
        below=API,
        assets=ASSETS,
        keys=page.keys,
        open_paths=OPEN_PATHS,
        metrics=page.metrics,
        access_log=page.settings.access_log,
        headers=_headers,
    )
    _add_files(app, page)
    _add_tasks(app, page)
    _add_assessment(app)
    _add_probes(app)
    return app


def _headers(path: str) -> Mapping[str, str]:
    """Swagger UI sets itself up in an inline script, the page does not."""
    return HEADERS if path.startswith(DOCS) else PAGE_HEADERS


def _add_files(app: FastAPI, page: Page) -> None:
    async def file(request: Request, path: str = INDEX) -> Response:
        if path not in page.files:
            raise not_found()
        return page.files[path].response(request)

    async def index(request: Request) -> Response:
        return await file(request)

    methods = ["GET", "HEAD"]
    app.add_api_route("/", index, methods=methods, name="page", include_in_schema=False)
    app.add_api_route(
        "/page/{path:path}", file, methods=methods, name="page-file", include_in_schema=False
    )


def _add_tasks(app: FastAPI, page: Page) -> None:
    @app.get("/api/page")
    async def about() -> dict[str, Any]:
        """What the page asks first; needs no key."""
        return {
            "version": __version__,
            "needs_key": bool(page.keys),
            "levels": {"medium_from": MEDIUM_FROM, "high_from": HIGH_FROM},
        }

    @app.get("/api/tasks")
    async def tasks() -> list[dict[str, Any]]:
        """The tasks that run: what each answers, takes and can show, and its models."""
        return await page.tasks.about()

    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    form = {"schema": {"type": "object", "properties": {"files": files}}}

    @app.post(
        "/api/gates",
        openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": form}}},
    )
    async def gates(request: Request) -> list[dict[str, Any]]:
        """What the input gate of every task says of some files; no answer is computed.

        Per task: whether it can read them, whether they are like what its model has learned from,
        what is unlike it, and where it cannot read them why.
        """
        return await page.tasks.gates(await _sent(request, page, _GATE_FILES))

    @app.post(
        "/api/look",
        openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": form}}},
        response_class=Response,
        responses={200: {"content": {"image/png": {}, "video/mp4": {}}}},
    )
    async def look(request: Request) -> Response:
        """What a file shows, as PNG or MP4, for a browser that cannot show it itself."""
        (file,) = await _sent(request, page, 1)
        seen = await page.tasks.look(file)
        if seen is None:
            raise unreadable("No task that runs here can read this file.")
        content, media_type = seen
        return Response(content, media_type=media_type)


async def _sent(request: Request, page: Page, most: int) -> list[bytes]:
    """The files of a request, in memory."""
    limits = Limits(
        max_bytes=page.settings.max_bytes, max_files=most, upload_s=page.settings.upload_s
    )
    sent = await read_upload(request, limits, dict.fromkeys(FIELDS, ""))
    record_of(request).received = sum(len(file.content) for file in sent)
    return [file.content for file in sent]


def _add_assessment(app: FastAPI) -> None:
    @app.get("/api/assessment")
    async def scores() -> list[dict[str, Any]]:
        """The four scores, and the answers that each needs."""
        return questions()

    @app.post("/api/assessment")
    async def assessment(body: AssessmentRequest, lang: Words = "th") -> list[ScoreCard]:
        """Scores of a questionnaire; an answer that is missing is a 422 that names it."""
        return assess(body, lang)


def _add_probes(app: FastAPI) -> None:
    @app.get("/live")
    async def live() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "live"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """Whether the page can be shown; tasks have probes of their own."""
        return {"status": "ready"}
