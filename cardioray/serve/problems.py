"""Errors as a client sees them: problem details of RFC 9457."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

PROBLEM_JSON = "application/problem+json"


class Problem(Exception):  # noqa: N818 (an answer rather than a failure)
    """A request that is answered with an error.

    Attributes:
        kind: short name of the problem, the last part of its type URI and a label of the metrics.
        status: HTTP status.
        title: the kind in words, the same for every occurrence.
        detail: what is wrong with this request and what would be accepted.
        headers: further headers of the answer.
        accepted: what may be sent instead; beside the RFC's members in answers to uploads.
        fields: names of the answers of a form that are missing or wrong, likewise.
    """

    def __init__(
        self,
        kind: str,
        status: int,
        title: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.status = status
        self.title = title
        self.detail = detail
        self.headers = dict(headers or {})
        self.accepted: str | None = None
        self.fields: tuple[str, ...] = ()

    def body(self, request_id: str) -> dict[str, Any]:
        """The problem details."""
        body: dict[str, Any] = {
            "type": f"urn:cardioray:problem:{self.kind}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "request_id": request_id,
        }
        if self.accepted:
            body["accepted"] = self.accepted
        if self.fields:
            body["fields"] = list(self.fields)
        return body

    def response(self, request_id: str) -> JSONResponse:
        """The answer to a request."""
        body = self.body(request_id)
        return JSONResponse(body, self.status, self.headers, media_type=PROBLEM_JSON)


def size_text(size: int) -> str:
    """A number of bytes for a reader."""
    return f"{size / 2**20:.3g} MiB" if size >= 2**20 else f"{size:,} bytes"


def too_large(limit: int) -> Problem:
    """The body is beyond the limit of bytes."""
    return Problem(
        "too-large",
        413,
        "The upload is too large",
        f"All files of a request together may have at most {size_text(limit)}.",
    )


def unsupported_type(given: str, accepted: str) -> Problem:
    """The body is of a kind nobody reads here."""
    return Problem(
        "unsupported-type",
        415,
        "The content type is not accepted",
        f"Content-Type {given} is not accepted. {accepted}",
    )


def unreadable(detail: str) -> Problem:
    """The body was read, but it is no picture or no study."""
    return Problem("unreadable", 422, "The upload cannot be read", detail)


def no_heat_map(detail: str) -> Problem:
    """A heat map was asked of a network that has none."""
    return Problem("no-heat-map", 422, "There is no heat map for this model", detail)


def no_dicom_results(detail: str) -> Problem:
    """The server lacks the library that makes DICOM objects."""
    return Problem("no-dicom-results", 501, "This server makes no DICOM results", detail)


def malformed(detail: str) -> Problem:
    """The request itself is broken."""
    return Problem("malformed", 400, "The request is malformed", detail)


def not_found() -> Problem:
    """No application or route has this path."""
    return Problem(
        "not-found",
        404,
        "There is no such path",
        "Studies are sent to /v1/TASK; /v1/TASK/docs lists the other paths of a task.",
    )


def overloaded(retry_after_s: int) -> Problem:
    """Every queue is full."""
    return Problem(
        "overloaded",
        503,
        "The server is overloaded",
        f"Every replica is busy and the queue is full. Try again in {retry_after_s} s.",
        {"Retry-After": str(retry_after_s)},
    )


def internal_error() -> Problem:
    """A fault of the server, of which the client learns nothing but the request's id."""
    return Problem(
        "internal-error",
        500,
        "The server failed",
        "The request could not be answered because of a fault in the server. Its log has the "
        "reason under this request_id.",
    )
