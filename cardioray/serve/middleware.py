"""What every request passes on its way to a route: its id, its key, its place in the log."""

from __future__ import annotations

import dataclasses
import logging
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.serve import context
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cardioray.serve.auth import KeyRing
from cardioray.serve.metrics import ServeMetrics
from cardioray.serve.problems import Problem, internal_error, malformed, not_found
from cardioray.serve.proxy import REQUEST_ID, request_id_from

log = logging.getLogger("ray.serve.cardioray")

_CLIENT_GONE = 499  # as nginx counts it; nobody receives it
# Answers are for the client alone. The documentation page sets itself up in an inline script and
# needs no other host.
HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
}


@dataclass
class RequestRecord:
    """What the log and the metrics say of a request; nothing of it comes from the upload.

    Attributes:
        request_id: in the answer and in every log line.
        route: name of the route, "none" where there is none.
        model: name of the model that was asked.
        frames: decoded frames.
        received: bytes of all files.
        kind: kind of the problem, "" without one.
    """

    request_id: str
    route: str = "none"
    model: str = ""
    frames: int = 0
    received: int = 0
    kind: str = ""


def record_of(request: Request) -> RequestRecord:
    """The record of the request being answered."""
    record = request.scope["cardioray"]
    assert isinstance(record, RequestRecord)
    return record


class Gatekeeper:
    """ASGI middleware around every route."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: KeyRing,
        open_paths: tuple[str, ...],
        metrics: ServeMetrics,
        access_log: bool,
        headers: Callable[[str], Mapping[str, str]] = lambda path: HEADERS,
    ) -> None:
        """Args:
        app: the routes.
        keys: accepted API keys; none are asked for when it is empty.
        open_paths: paths that need no key, and all below them.
        metrics: told of every request.
        access_log: write a line a request.
        headers: of the answers to requests for a path, where these do not say otherwise.
        """
        self._app = app
        self._keys = keys
        self._open_paths = open_paths
        self._metrics = metrics
        self._access_log = access_log
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = Headers(scope=scope)
        record = RequestRecord(request_id_from(headers.get(REQUEST_ID)))
        scope["cardioray"] = record
        _use_in_log(record.request_id)
        status = _CLIENT_GONE

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = MutableHeaders(scope=message)
                for name, value in self._headers(_path_of(scope)).items():
                    answered.setdefault(name, value)
            await send(message)

        try:
            self._authorise(scope, headers)
            await self._app(scope, receive, note_status)
        except ClientDisconnect:
            record.kind = "client-gone"
        except Exception as error:
            problem = error if isinstance(error, Problem) else _fault(error)
            record.kind = problem.kind
            await problem.response(record.request_id)(scope, receive, note_status)
        finally:
            self._finish(scope, record, status, time.perf_counter() - started)

    def _authorise(self, scope: Scope, headers: Headers) -> None:
        path = _path_of(scope)
        if not self._keys or any(path == p or path.startswith(f"{p}/") for p in self._open_paths):
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not self._keys.accepts(key):
            what = "is not known" if key else "is missing"
            raise Problem(
                "unauthorised",
                401,
                "An API key is needed",
                f"The API key {what}. Send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`.",
                {"WWW-Authenticate": "Bearer"},
            )

    def _finish(self, scope: Scope, record: RequestRecord, status: int, seconds: float) -> None:
        if route := scope.get("route"):
            record.route = getattr(route, "name", record.route)
        if record.kind:
            self._metrics.error(record.kind)
        self._metrics.request(record.route, record.model, status, seconds)
        if self._access_log and record.route not in ("live", "ready"):
            log.info(
                "%s %s %d %.1f ms model=%s frames=%d bytes=%d%s",
                scope["method"],
                record.route,
                status,
                1000 * seconds,
                record.model or "-",
                record.frames,
                record.received,
                f" problem={record.kind}" if record.kind else "",
            )


def _path_of(scope: Scope) -> str:
    """The path below that of the application."""
    return str(scope["path"].removeprefix(scope.get("root_path", "")))


def log_fault(stage: str, error: BaseException) -> None:
    """Log where something failed, without the error's text, which may quote the upload."""
    frames = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))
    log.error("%s failed: %s\n%s", stage, type(error).__name__, frames)


def http_problem(request: Request, error: Exception) -> JSONResponse:
    """Starlette's own errors (no such path, wrong method) as problem details."""
    assert isinstance(error, HTTPException)
    status = error.status_code
    if status == 404:
        problem = not_found()
    elif status == 405:
        allowed = (error.headers or {}).get("Allow", "")
        title, detail = "The method is not allowed", f"Allowed here: {allowed}."
        problem = Problem("method-not-allowed", status, title, detail, error.headers)
    else:
        problem = Problem("refused", status, "The request was refused", str(error.detail))
    record = record_of(request)
    record.kind = problem.kind
    return problem.response(record.request_id)


def validation_problem(request: Request, error: Exception) -> JSONResponse:
    """A query parameter that is none, as problem details."""
    errors = error.errors() if hasattr(error, "errors") else []
    texts = [f"{'.'.join(str(p) for p in item['loc'])}: {item['msg']}." for item in errors]
    problem = malformed(" ".join(texts))
    record = record_of(request)
    record.kind = problem.kind
    return problem.response(record.request_id)


def _fault(error: Exception) -> Problem:
    log_fault("The request", error)
    return internal_error()


def _use_in_log(request_id: str) -> None:
    """Have Serve's log lines of this request carry our id: Serve takes the client's as it is."""
    present = context._get_serve_request_context()
    if present.request_id != request_id:
        ours: Any = dataclasses.replace(present, request_id=request_id)
        context._serve_request_context.set(ours)
