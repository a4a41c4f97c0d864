"""The fast mode as a process of its own: HAProxy on loopback only, and gone when its parent is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image
from ray_cluster import end_tree, private_folder
from served import answer_to_half_an_upload, encoded, picture, png, serving_cluster
from tiny_bundles import tiny_bundle

from cardioray.machine import free_port
from cardioray.serve.auth import new_key
from cardioray.serve.fast import environment
from cardioray.serve.settings import ServerSettings

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SMALL = (
    *("max_batch_size=1", "max_ongoing_requests=2", "max_queued_requests=3", "retry_after_s=7"),
    *("limits.max_bytes=1000000", "limits.max_files=2", "limits.max_frames=2", "limits.upload_s=2"),
)
SERVER = """
import sys
from cardioray.serve.deploy import application_settings, serve_bundles
from cardioray.serve.settings import ServerSettings

bundle, port, stats, metrics, *settings = sys.argv[1:]
server = ServerSettings(port=port, mode="fast", stats_port=stats, metrics_port=metrics)
applications = application_settings([bundle], ["scaling.max_replicas=1", *settings])
serving = serve_bundles(applications, server)
print(serving.urls["ffr"], flush=True)
serving.wait()
serving.stop()
"""


@pytest.fixture(scope="module")
def bundle() -> Path:
    with serving_cluster():
        return tiny_bundle()


class FastServer:
    """A server in the fast mode, in a process of its own."""

    def __init__(self, bundle: Path, folder: Path, *settings: str, **variables: str) -> None:
        self.ports = [free_port() for _ in range(3)]
        own = {"RAY_TMPDIR": str(folder), "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port())}
        arguments = [str(bundle), *map(str, self.ports), *settings]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER, *arguments],
            env={**os.environ, **own, **variables},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://"), f"the server did not start: {self.url}"

    def haproxies(self) -> list[psutil.Process]:
        """The HAProxy processes that are this server's."""
        assert self.process.poll() is None, "the server ended"
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # some of Ray's live for a moment
                if process.name() == "haproxy":
                    found.append(process)
        return found


def gone(processes: list[psutil.Process]) -> Callable[[], bool]:
    return lambda: not any(p.is_running() and p.status() != "zombie" for p in processes)


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_fast_mode_from_start_to_stop(bundle: Path) -> None:
    key, hashed = new_key()
    with private_folder() as folder:
        server = FastServer(bundle, folder, *SMALL, CARDIORAY_API_KEYS_SHA256=hashed)
        try:
            stranger, _ = new_key()
            for headers in ({}, {"X-API-Key": stranger}):
                is_refused(httpx.post(server.url, content=png(), headers=headers), 401)
            with httpx.Client(headers={"X-API-Key": key}, timeout=60) as client:
                answer = client.post(server.url, content=png(), headers={"X-Request-ID": "fast-1"})
                assert answer.status_code == 200
                assert answer.json()["request_id"] == "fast-1"
                assert answer.headers.get_list("X-Request-ID") == ["fast-1"]
                are_limits_kept(client, server.url, key)
                is_overload_told(client, server.url)
            # Where HAProxy has just read its file again, the process before it ends its requests.
            wait_for(lambda: len(server.haproxies()) == 1)
            found = server.haproxies()
            listening = {c.laddr for c in found[0].net_connections() if c.status == "LISTEN"}
            assert listening == {("127.0.0.1", port) for port in server.ports}
            socket_mode = (Path(found[0].cmdline()[-1]).parents[1].stat().st_mode) & 0o777
            assert socket_mode == 0o700
            server.process.terminate()
            assert server.process.wait(60) == 0
            assert gone(found)()
        finally:
            end_tree(server.process.pid)


def is_refused(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]


def are_limits_kept(client: httpx.Client, url: str, key: str) -> None:
    """An upload beyond a limit is refused, whatever HAProxy has kept of it until then."""
    is_refused(client.post(url, content=b""), 422)
    is_refused(client.post(url, content=bytes(2_000_000)), 413)
    # Without a length in its head.
    is_refused(client.post(url, content=(bytes(100_000) for _ in range(20))), 413)
    is_refused(client.post(url, files=[("files", png())] * 3), 400)
    pages = [Image.fromarray(picture(seed)) for seed in range(3)]
    run = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    is_refused(client.post(url, content=run), 422)
    assert b" 408 " in answer_to_half_an_upload(url, f"X-API-Key: {key}").split(b"\r\n")[0]


def is_overload_told(client: httpx.Client, url: str) -> None:
    """What a server does not take at once it refuses, and says when to come back."""
    with ThreadPoolExecutor(40) as pool:
        tasks = [pool.submit(client.post, url, content=png()) for _ in range(200)]
    answers = [task.result() for task in tasks]
    assert {answer.status_code for answer in answers} == {200, 503}
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.headers["Retry-After"] == "7"
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert client.post(url, content=png()).status_code == 200


def test_a_killed_server_leaves_no_proxy_behind(bundle: Path) -> None:
    with private_folder() as folder:
        server = FastServer(bundle, folder)
        try:
            wait_for(lambda: len(server.haproxies()) == 1)
            found = server.haproxies()
            scratch = Path(found[0].cmdline()[-1]).parents[1]
            server.process.kill()
            wait_for(gone(found), seconds=30)
            shutil.rmtree(scratch)
        finally:
            end_tree(server.process.pid)


def test_a_folder_too_deep_for_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too long a path for HAProxy's sockets.*TMPDIR"):
        environment(ServerSettings(), tmp_path / ("x" * 40))
