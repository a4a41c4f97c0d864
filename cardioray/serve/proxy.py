"""What the HTTP proxies of Serve do to every request of a server that CardioRay started.

Serve answers some requests by itself: when queues are full, when there is no such path, when a
replica dies. Here those answers become problem details as well, and a client's request id is
checked before Serve writes it into its log. Serve takes the middleware from an environment
variable (in `VARIABLES`), which every node of a cluster needs; without it answers of Serve
itself are plain text.
"""

from __future__ import annotations

import os
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cardioray.serve.problems import Problem, internal_error, not_found, overloaded, too_large

REQUEST_ID = "x-request-id"
# Most bytes of a body that a proxy takes in. Requests wait in a proxy for a free replica, which
# alone knows keys and limits; without a bound, whoever reaches the port could fill its memory.
MAX_BODY = "CARDIORAY_PROXY_MAX_BYTES"
DEFAULT_MAX_BODY = 256 * 2**20
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
        self._max_body = int(os.environ.get(MAX_BODY, DEFAULT_MAX_BODY))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with a clean id, and put Serve's own errors into our form."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        request_id = request_id_from(headers.get(REQUEST_ID))
        headers[REQUEST_ID] = request_id
        stated = headers.get("content-length", "0")
        if stated.isdigit() and int(stated) > self._max_body:
            await self._answer(too_large(self._max_body), request_id, scope, receive, send)
            return
        replaced: Problem | None = None
        received, answered = 0, False

        async def bounded() -> Message:
            # A body that does not state its length is cut off: to the server the client is gone.
            nonlocal received, replaced
            message = await receive()
            received += len(message.get("body", b""))
            if received <= self._max_body:
                return message
            replaced = too_large(self._max_body)
            return {"type": "http.disconnect"}

        async def translate(message: Message) -> None:
            nonlocal replaced, answered
            if message["type"] == "http.response.start" and replaced is None:
                replaced = _problem_for(message)
            if replaced is None:
                answered = True
                await send(message)
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                answered = True
                await self._answer(replaced, request_id, scope, receive, send)

        await self._app(scope, bounded, translate)
        if replaced is not None and not answered:
            await self._answer(replaced, request_id, scope, receive, send)

    @staticmethod
    async def _answer(
        problem: Problem, request_id: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        response = problem.response(request_id)
        response.headers[REQUEST_ID] = request_id
        await response(scope, receive, send)


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
