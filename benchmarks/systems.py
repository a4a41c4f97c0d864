"""Servers of one bundle that a benchmark starts one after the other, each as users start it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.peers.common import BUNDLE_VARIABLE
from benchmarks.report import ROOT
from cardioray.machine import free_port

_START_S = 180.0
_STOP_S = 90.0


@dataclass(frozen=True)
class System:
    """A way to serve a bundle.

    Attributes:
        name: in the table.
        command: makes the command from the bundle and a free port.
        path: where pictures are sent.
        probability: finds the probability in an answer.
        variables: additions to the environment.
    """

    name: str
    command: Callable[[Path, int], list[str]]
    path: str = "/predict"
    probability: Callable[[Mapping[str, Any]], float] = lambda answer: answer["probability"]
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    """A system that answers.

    Attributes:
        system: what it is.
        url: where pictures are sent.
    """

    system: System
    url: str

    def ask(self, picture: Path) -> float:
        """The probability for a picture."""
        with picture.open("rb") as stream:
            answer = httpx.post(self.url, files={"file": stream}, timeout=60)
        answer.raise_for_status()
        return self.system.probability(answer.json())


def uvicorn(module: str) -> Callable[[Path, int], list[str]]:
    """The command of a FastAPI application in `benchmarks.peers`."""
    return lambda bundle, port: [
        *(sys.executable, "-m", "uvicorn", f"benchmarks.peers.{module}:app"),
        *("--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"),
    ]


def cardioray(*options: str) -> Callable[[Path, int], list[str]]:
    """The command of `cardioray serve`."""
    tool = str(Path(sys.executable).with_name("cardioray"))
    return lambda bundle, port: [tool, "serve", str(bundle), "--port", str(port), *options]


@contextlib.contextmanager
def running(system: System, bundle: Path, picture: Path, scratch: Path) -> Iterator[Server]:
    """Start a system and wait for its first answer; it is stopped in the end.

    Args:
        system: what is started.
        bundle: what it serves.
        picture: for the first question.
        scratch: for its log and for Ray, whose sockets need a short path.
    """
    port = free_port()
    own = {BUNDLE_VARIABLE: str(bundle), "RAY_TMPDIR": str(scratch), **system.variables}
    log = scratch / f"{port}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            system.command(bundle, port),
            cwd=ROOT,
            env={**os.environ, **own},
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        server = Server(system, f"http://127.0.0.1:{port}{system.path}")
        _wait_until_ready(server, process, picture, log)
        yield server
    finally:
        _stop(process)


def _wait_until_ready(
    server: Server, process: subprocess.Popen[bytes], picture: Path, log: Path
) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.TransportError, httpx.HTTPStatusError):
            server.ask(picture)
            return
        time.sleep(0.2)
    tail = log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"{server.system.name} did not answer within {_START_S:.0f} s:\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a server to stop, then end what it left in its process group."""
    process.terminate()
    try:
        process.wait(_STOP_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
