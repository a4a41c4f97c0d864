"""Real servers for tests: a private cluster, a free port, a bundle of an untrained network."""

from __future__ import annotations

import contextlib
import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import ray
from numpy.typing import NDArray
from PIL import Image
from ray import serve
from ray_cluster import keep_cluster


@contextlib.contextmanager
def serving_cluster() -> Iterator[None]:
    """A kept cluster of 8 CPUs, on which nothing is served before and after."""
    keep_cluster(num_cpus=8, dashboard=False)
    try:
        yield
    finally:
        serve.shutdown()


def picture(seed: int = 0, size: int = 96) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (size, size), dtype=np.uint8)


def encoded(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(stream, kind, **options)
    return stream.getvalue()


def png(seed: int = 0, size: int = 96) -> bytes:
    return encoded(picture(seed, size))


def answer_to_half_an_upload(url: str, *headers: str) -> bytes:
    """What a server says to a client that stops sending."""
    target = httpx.URL(url)
    head = [f"POST {target.path} HTTP/1.1", "Host: x", "Content-Type: image/png"]
    head += ["Content-Length: 1000", *headers]
    with socket.create_connection((target.host, target.port or 80), timeout=20) as connection:
        connection.sendall(("\r\n".join(head) + "\r\n\r\nabc").encode())
        return connection.recv(4096)


def replica_pids(app: str) -> dict[str, int]:
    """Process number of each running replica, by its id."""
    details = serve.context._get_global_client().get_serve_details()
    deployments = details["applications"][app]["deployments"].values()
    return {
        replica["replica_id"]: replica["pid"]
        for deployment in deployments
        for replica in deployment["replicas"]
        if replica["state"] == "RUNNING"
    }


def logged(part: str = "") -> str:
    """Everything in the log files of the cluster, or in those with `part` in their names."""
    session = Path(ray.get_runtime_context().get_session_name())
    files = sorted((Path(os.environ["RAY_TMPDIR"]) / "ray" / session / "logs").glob("**/*"))
    return "\n".join(f.read_text(errors="replace") for f in files if part in f.name and f.is_file())
