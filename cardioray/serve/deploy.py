"""From bundles to a running server: on this machine, or on a cluster through a config file."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import ray
import yaml

from cardioray import config, storage
from cardioray.bundle import METADATA, BundleError, open_bundle
from cardioray.data import cluster
from cardioray.machine import environment
from cardioray.model_store import bundle_place
from cardioray.serve import fast
from cardioray.serve.auth import read_keys, require_keys
from cardioray.serve.proxy import VARIABLES
from cardioray.serve.serve_file import (
    IMPORT_PATH,
    PAGE,
    PAGE_IMPORT_PATH,
    PAGE_PREFIX,
    check_serve_file,
)
from cardioray.serve.settings import PageSettings, ServerSettings, ServeSettings

log = logging.getLogger(__name__)

_LOGGING = {"enable_access_log": False}
_DEPLOY_TIMEOUT_S = 600.0


def application_settings(
    bundles: Sequence[str], overrides: Iterable[str] = ()
) -> list[ServeSettings]:
    """The applications that serve some bundles, one a task.

    Args:
        bundles: paths of bundles, or of comparisons, which stand for their winner's bundle; the
            first one of a task answers by default.
        overrides: `section.key=value` of `ServeSettings`, for every application.

    Raises:
        BundleError: when a path is no bundle, or a local one is damaged.
        ValueError: for an unknown setting.
    """
    by_task: dict[str, list[str]] = {}
    for path in map(bundle_place, bundles):
        by_task.setdefault(_task_of(path), []).append(storage.absolute(path))
    return [
        config.parse(ServeSettings, {"task": task, "bundles": paths}, overrides)
        for task, paths in by_task.items()
    ]


def page_settings(applications: Sequence[ServeSettings]) -> PageSettings:
    """The page in front of some applications, with the API keys that they have.

    Raises:
        ValueError: when they have different ones: one key is to open the page and the tasks.
    """
    files = {settings.api_keys_file for settings in applications}
    if len(files) > 1:
        raise ValueError(
            "The tasks have different api_keys_file, and the page asks for one key. Give all of "
            "them the same file, or leave the page out."
        )
    return PageSettings(api_keys_file=files.pop() if files else None)


@dataclass(frozen=True)
class Serving:
    """Applications that answer.

    Attributes:
        urls: where studies are sent, by task.
        scratch: folder of the cluster that ends with them; None where the cluster was there.
        page_url: where the page is shown; None without one of ours.
    """

    urls: dict[str, str]
    scratch: Path | None
    page_url: str | None = None

    def wait(self) -> None:
        """Block until SIGINT or SIGTERM."""
        stop = threading.Event()

        def on_signal(number: int, frame: FrameType | None) -> None:
            stop.set()

        before = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            while not stop.wait(1.0):  # a wait without end is not interrupted by signals
                pass
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Finish the requests that are being answered and stop; a cluster that was there stays."""
        from ray import serve

        if self.scratch is None:
            for name in (*([PAGE] if self.page_url else []), *self.urls):
                serve.delete(name)
            return
        try:
            leave()
        finally:
            shutil.rmtree(self.scratch)


def leave() -> None:
    """End Serve and leave the cluster, whatever Serve's controller answers."""
    from ray import serve

    try:
        serve.shutdown()
    finally:
        ray.shutdown()


def serve_bundles(
    applications: Sequence[ServeSettings],
    server: ServerSettings | None = None,
    page: PageSettings | None = None,
) -> Serving:
    """Start a server and return when every model is warm.

    Joins the cluster named by RAY_ADDRESS, or starts one on this machine, which ends with the
    server. A page that a cluster has already stays as it is.

    Args:
        applications: at most one a task; see `application_settings`.
        server: address and mode.
        page: the page in front of them; None for none.

    Raises:
        ValueError: when the address needs API keys and there are none, the port is taken, or the
            cluster that is there serves in another mode or at another address.
        RuntimeError: when an application does not start; says why.
    """
    server = server or ServerSettings()
    tasks = [settings.task for settings in applications]
    if len(set(tasks)) != len(tasks):
        raise ValueError(f"Two applications answer the same task: {', '.join(sorted(tasks))}.")
    for settings in applications:
        require_keys(server.host, read_keys(settings.api_keys_file))
    if page is not None:
        require_keys(server.host, read_keys(page.api_keys_file))
    scratch: Path | None = None
    if ray.is_initialized() or "RAY_ADDRESS" in os.environ:
        cluster.connect()
        _require_same_server(server)
    else:
        _require_free_port(server.host, server.port)
        scratch = Path(tempfile.mkdtemp(prefix="crs-"))
        try:
            with environment(_environment(server, scratch)):
                cluster.connect(dashboard=True)
        except BaseException:
            shutil.rmtree(scratch)
            raise
    if page is not None and scratch is None and _has_page():
        page = None
    serving = Serving(
        {task: f"{server.url}/v1/{task}" for task in tasks},
        scratch,
        page_url=None if page is None else f"{server.url}{PAGE_PREFIX}",
    )
    try:
        _run(applications, server, page)
    except BaseException:
        serving.stop()
        raise
    return serving


def write_serve_config(
    applications: Sequence[ServeSettings],
    out: str,
    server: ServerSettings | None = None,
    page: PageSettings | None = None,
) -> str:
    """Write a config file for `serve deploy`, `serve run` and `deploy_config`.

    Args:
        applications: at most one a task.
        out: path of the YAML file, local or s3://.
        server: address; its mode is a matter of the cluster's environment, not of this file.
        page: the page in front of them; None for none.

    Returns:
        The path.
    """
    server = server or ServerSettings()
    document: dict[str, Any] = {
        "proxy_location": "EveryNode",
        "http_options": {"host": server.host, "port": server.port},
        "logging_config": dict(_LOGGING),
        "applications": [
            {
                "name": settings.task,
                "route_prefix": f"/v1/{settings.task}",
                "import_path": IMPORT_PATH,
                "args": _changed(settings),
            }
            for settings in applications
        ],
    }
    if page is not None:
        written = {"name": PAGE, "route_prefix": PAGE_PREFIX, "import_path": PAGE_IMPORT_PATH}
        document["applications"].append({**written, "args": _page_changed(page)})
    storage.write_bytes(out, yaml.safe_dump(document, sort_keys=False).encode())
    return out


def deploy_config(path: str, dashboard: str | None = None) -> dict[str, str]:
    """Deploy a config file on a running cluster, as `serve deploy` does, and wait for it.

    The applications of the file take the place of those that an earlier file deployed.

    Args:
        path: YAML file; checked first.
        dashboard: address of the cluster's dashboard; RAY_DASHBOARD_ADDRESS or
            http://127.0.0.1:8265 by default.

    Returns:
        Where studies are sent, by application.

    Raises:
        ValueError: when the file has a fault.
        ConnectionError: when there is no cluster.
        RuntimeError: when an application does not start; says why.
    """
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    schema = check_serve_file(path)
    address = dashboard or os.environ.get("RAY_DASHBOARD_ADDRESS", "http://127.0.0.1:8265")
    try:
        client = ServeSubmissionClient(address)
        client.deploy_applications(schema.model_dump(exclude_unset=True))
    except ConnectionError as error:
        raise ConnectionError(
            f"No Ray cluster answers at {address}: start one with `ray start --head`, or name its "
            "dashboard in RAY_DASHBOARD_ADDRESS. `cardioray serve` needs none."
        ) from error
    names = [application.name for application in schema.applications]
    end = time.monotonic() + _DEPLOY_TIMEOUT_S
    while time.monotonic() < end:
        found = client.get_serve_details()["applications"]
        states = {name: found.get(name, {}) for name in names}
        for name, state in states.items():
            messages = [d["message"] for d in state.get("deployments", {}).values()]
            _raise_if_failed(name, state.get("status", ""), [*messages, state.get("message", "")])
        if all(state.get("status") == "RUNNING" for state in states.values()):
            options = schema.http_options
            server = ServerSettings(host=options.host, port=options.port)
            return {a.name: f"{server.url}{a.route_prefix}" for a in schema.applications}
        time.sleep(0.5)
    raise config.Failed(f"{', '.join(names)}: not running after {_DEPLOY_TIMEOUT_S:.0f} s.")


def _run(
    applications: Sequence[ServeSettings], server: ServerSettings, page: PageSettings | None
) -> None:
    from ray import serve
    from ray.serve.config import HTTPOptions

    from cardioray.serve.app import build
    from cardioray.serve.page_app import build_page

    options = HTTPOptions(host=server.host, port=server.port)
    serve.start(http_options=options, logging_config=dict(_LOGGING))
    targets = [
        serve.RunTarget(
            build(config.to_dict(settings)),
            name=settings.task,
            route_prefix=f"/v1/{settings.task}",
        )
        for settings in applications
    ]
    if page is not None:
        shown = build_page(config.to_dict(page))
        targets.append(serve.RunTarget(shown, name=PAGE, route_prefix=PAGE_PREFIX))
    try:
        serve.run_many(targets)
    except RuntimeError as error:
        for name, app in serve.status().applications.items():
            messages = [deployment.message for deployment in app.deployments.values()]
            _raise_if_failed(name, app.status, [*messages, app.message])
        raise error


def _has_page() -> bool:
    """Whether the cluster that we joined shows the page, which another server of ours started."""
    from ray import serve

    return PAGE in serve.status().applications


def _raise_if_failed(name: str, status: str, messages: Sequence[str]) -> None:
    """Say why an application did not start: what its replicas raised, without their stacks."""
    if "FAILED" not in status:
        return
    last_lines = [m.strip().splitlines()[-1].strip() for m in messages if m.strip()]
    why = next(iter(last_lines), "Serve gives no reason; the logs of its replicas may.")
    raise config.Failed(f"Application {name} did not start: {why}")


def _environment(server: ServerSettings, scratch: Path) -> dict[str, str]:
    return VARIABLES | (fast.environment(server, scratch) if server.mode == "fast" else {})


def _require_same_server(server: ServerSettings) -> None:
    """Refuse what a cluster that we joined would silently not do."""
    from ray.serve import context

    read = ray.remote(num_cpus=0)(lambda: dict(os.environ))
    there = "fast" if fast.is_switched_on(ray.get(read.remote())) else "default"
    if there != server.mode:
        raise ValueError(
            f"The cluster serves in mode {there!r}, and {server.mode!r} was asked for. The mode is "
            "set by the environment of `ray start` on every node; see docs/serving.md."
        )
    # Ray tells clusters apart by the number of the job, which is 1 on every new one: the client of
    # a cluster that this process has left would be taken for this one's.
    context._set_global_client(None)
    running = context._get_global_client(raise_if_no_controller_running=False)
    if running is None:
        return
    options = running.http_config
    if (options.host, options.port) != (server.host, server.port):
        raise ValueError(
            f"Serve runs on this cluster already and listens on {options.host}:{options.port}; "
            f"it does not move to {server.host}:{server.port}. Ask for the same address, or stop "
            "it with `serve shutdown`."
        )


def _require_free_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"Port {port} of {host} cannot be listened on ({error.strerror}).{_orphans()} "
                "Choose another one with --port."
            ) from None


def _orphans() -> str:
    """Which HAProxy of an earlier server may hold the port."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().split(b"\0")
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if command[0].endswith(b"haproxy") and parent == "1":
                found.append(folder.name)
    if not found:
        return ""
    return (
        f" HAProxy of a server that was killed is still running: end it with "
        f"`kill {' '.join(found)}`."
    )


def _task_of(path: str) -> str:
    """The task of a bundle; a local one is verified here, before anything is started for it."""
    if not storage.is_remote(path):
        return open_bundle(path).task
    try:
        metadata: dict[str, Any] = json.loads(storage.read_bytes(storage.join(path, METADATA)))
    except FileNotFoundError:
        raise BundleError(f"{path} is no bundle: it has no {METADATA}.") from None
    return str(metadata["task"])


def _changed(settings: ServeSettings) -> dict[str, Any]:
    """The settings that are not the default ones, in their written form."""
    written = config.to_dict(settings)
    plain = config.to_dict(ServeSettings(task=settings.task, bundles=settings.bundles or ("-",)))
    return {k: v for k, v in written.items() if k in ("task", "bundles") or v != plain[k]}


def _page_changed(page: PageSettings) -> dict[str, Any]:
    plain = config.to_dict(PageSettings())
    return {key: value for key, value in config.to_dict(page).items() if value != plain[key]}
