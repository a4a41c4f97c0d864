"""How Serve builds the application at `/`: the page in front of every task.

`cardioray.serve.page_app:build_page` is what a Serve config names as `import_path`; its `args` are
`PageSettings`. The process that serves it loads no network: it hands out files, asks the tasks that
run beside it, and computes the scores of the questionnaire.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import BackpressureConfig
from ray.serve.context import _get_global_client

from cardioray import config
from cardioray.serve.auth import read_keys, require_keys
from cardioray.serve.metrics import ServeMetrics
from cardioray.serve.page_files import read_page
from cardioray.serve.page_routes import make_page_routes
from cardioray.serve.running_tasks import RunningTasks
from cardioray.serve.settings import PageSettings, located

RETRY_AFTER_S = 1
# Questions to the tasks are the longest that it holds.
GRACEFUL_SHUTDOWN_S = 10.0


class Page:
    """A replica of the page's application."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = config.parse(PageSettings, settings)
        server = _get_global_client()
        assert server is not None
        self.keys = read_keys(self.settings.api_keys_file)
        require_keys(server.http_config.host, self.keys)
        self.metrics = ServeMetrics()
        self.files = read_page()
        self.tasks = RunningTasks()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The routes; Serve calls this once, in the event loop that will run them."""
        return make_page_routes(self)


def build_page(args: Mapping[str, Any]) -> Application:
    """Make the application that `args` describe.

    Args:
        args: `PageSettings` in their written form; a path as in `cardioray.serve.app.build`.

    Raises:
        ValueError: for an unknown key or a wrong value; names the key.
    """
    settings = config.parse(PageSettings, args)
    written = config.to_dict(settings)
    if settings.api_keys_file:
        written["api_keys_file"] = located(settings.api_keys_file)
    deployment: Any = serve.deployment(serve.ingress()(Page))
    assert isinstance(deployment, Deployment)
    return deployment.options(
        num_replicas=1,
        # It computes next to nothing, and is not to take a core from the networks.
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_S),
        logging_config={"enable_access_log": False},
        graceful_shutdown_timeout_s=GRACEFUL_SHUTDOWN_S,
        graceful_shutdown_wait_loop_s=0.5,
        max_constructor_retry_count=2,
    ).bind(written)
