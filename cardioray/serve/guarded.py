"""How every application begins: its documents are its own, and every request passes the gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from cardioray import __version__
from cardioray.serve.auth import KeyRing
from cardioray.serve.metrics import ServeMetrics
from cardioray.serve.middleware import HEADERS, Gatekeeper, http_problem, validation_problem


def guarded_app(
    *,
    title: str,
    description: str,
    below: str,
    assets: str,
    keys: KeyRing,
    open_paths: tuple[str, ...],
    metrics: ServeMetrics,
    access_log: bool,
    headers: Callable[[str], Mapping[str, str]] = lambda path: HEADERS,
) -> FastAPI:
    """An application without routes but those of its documentation.

    Args:
        title: of its documentation.
        description: of it.
        below: path that the documentation stands below, "" for the application's own.
        assets: path of what the documentation is shown with, from this server alone.
        keys: as of `Gatekeeper`.
        open_paths: likewise.
        metrics: likewise.
        access_log: likewise.
        headers: likewise.
    """
    app = FastAPIOffline(
        title=title,
        description=description,
        version=__version__,
        docs_url=f"{below}/docs",
        openapi_url=f"{below}/openapi.json",
        redoc_url=None,
        static_url=assets,
        redirect_slashes=False,
        root_path_in_servers=False,
        # Without this, Swagger UI sends the document to its maker's validator.
        swagger_ui_parameters={"validatorUrl": None},
    )
    app.add_middleware(
        Gatekeeper,
        keys=keys,
        open_paths=open_paths,
        metrics=metrics,
        access_log=access_log,
        headers=headers,
    )
    app.add_exception_handler(HTTPException, http_problem)
    app.add_exception_handler(RequestValidationError, validation_problem)
    return app
