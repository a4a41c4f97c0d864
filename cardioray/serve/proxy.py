"""What the HTTP proxies of Serve do to every request of a server that CardioRay started.

Serve answers some requests by itself: when queues are full, when there is no such path, when a
replica dies. Here those answers become problem details as well, and a client's request id is
checked before Serve writes it into its log. Serve takes the middleware from an environment
variable (in `VARIABLES`), which every node of a cluster needs; without it answers of Serve
itself are plain text.
"""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cardioray.serve.problems import Problem, internal_error, not_found, overloaded

REQUEST_ID = "x-request-id"
# What every node of a cluster that serves needs in its environment.
VARIABLES = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "cardioray.serve.proxy.middlewares",
    # A proxy hands a request's body to a replica as the result of a call. Beyond 100 kB, and thus
    # for most pictures, Ray would take the way through its object store, which costs a tenth of
    # the throughput on two cores.
    "RAY_max_direct_call_object_size": str(8 * 2**20),
}

_WELL_FORMED = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def middlewares() -> list[Middleware]:
    """What Serve wraps its proxies in."""
    return [Middleware(ProxyGuard)]


def request_id_from(given: str | None) -> str:
    """The id of a request: the client's, where it is well-formed, or a new one.

    Well-formed is up to 128 letters, digits, dots, colons, dashes and underscores: anything else
    has no place in a log line.
    """
    return given if given and _WELL_FORMED.fullmatch(given) else str(uuid.uuid4())


class ProxyGuard:
    """ASGI middleware outside of Serve."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with a clean id, and put Serve's own errors into our form."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        request_id = request_id_from(headers.get(REQUEST_ID))
        headers[REQUEST_ID] = request_id
        replaced: Problem | None = None

        async def translate(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start":
                replaced = _problem_for(message)
            if replaced is None:
                await send(message)
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                response = replaced.response(request_id)
                response.headers[REQUEST_ID] = request_id
                await response(scope, receive, send)

        await self._app(scope, receive, translate)


def _problem_for(start: Message) -> Problem | None:
    """The problem that an error of Serve itself stands for; None for any other answer."""
    status = start["status"]
    headers = Headers(raw=start["headers"])
    # Our applications write their errors as problem+json, never as text.
    if status < 400 or not headers.get("content-type", "").startswith("text/plain"):
        return None
    if status == 503:
        return overloaded(int(headers.get("retry-after", "1")))
    if status == 404:
        return not_found()
    if status >= 500:
        return internal_error()
    return Problem("refused", status, "The request was refused", "The server gave no reason.")
