"""A client that keeps connections busy, in a process of its own.

Each connection sends its next request when the last one is answered. Connections stay open.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import httpx
import numpy as np

from benchmarks.report import ROOT

# A refused connection is answered at once: without a pause a client would ask thousands of times.
_PAUSE_S = 0.05
_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """What a client does.

    Attributes:
        url: where pictures are sent, one a request, as multipart/form-data.
        picture: file.
        connections: requests that are under way at any time.
        seconds: how long requests are sent; those under way at the end are waited for.
        retries: how often a request is sent again that was not answered with 200.
    """

    url: str
    picture: str
    connections: int
    seconds: float
    retries: int = 0


@dataclass(frozen=True)
class Exchange:
    """One question of a connection, with all its attempts.

    Attributes:
        begun: when it was first sent, in seconds since 1970.
        seconds: until it was answered, or given up.
        attempts: how often it was sent.
        answered: whether the last attempt got 200.
    """

    begun: float
    seconds: float
    attempts: int
    answered: bool

    @property
    def ended(self) -> float:
        """When the answer was there, in seconds since 1970."""
        return self.begun + self.seconds


@dataclass(frozen=True)
class Level:
    """Figures of a stretch of time at one number of connections."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    answered: int
    failed: int


def level(exchanges: Sequence[Exchange], begin: float, end: float) -> Level:
    """What was answered between two times.

    Throughput counts the answers that arrived in the stretch; so do the times they took.

    Raises:
        ValueError: when nothing was answered in it.
    """
    inside = [e for e in exchanges if begin <= e.ended < end]
    milliseconds = [1000 * e.seconds for e in inside if e.answered]
    if not milliseconds:
        raise ValueError(f"None of {len(inside)} requests was answered.")
    return Level(
        requests_per_s=len(milliseconds) / (end - begin),
        p50_ms=float(np.percentile(milliseconds, 50)),
        p99_ms=float(np.percentile(milliseconds, 99)),
        answered=len(milliseconds),
        failed=len(inside) - len(milliseconds),
    )


class Client:
    """A client that was started."""

    def __init__(self, settings: LoadSettings) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load", json.dumps(asdict(settings))],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait(self) -> list[Exchange]:
        """Everything it asked, once it has ended."""
        written, _ = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError("The client of the benchmark failed; its error is above.")
        return [Exchange(*values) for values in json.loads(written)]


def measure(settings: LoadSettings, warm_s: float) -> Level:
    """Figures of a client's run without its first `warm_s` seconds."""
    exchanges = Client(settings).wait()
    begin = min(e.begun for e in exchanges)
    return level(exchanges, begin + warm_s, begin + settings.seconds)


async def ask_for_a_while(settings: LoadSettings) -> list[Exchange]:
    """Keep every connection busy for `settings.seconds`."""
    parts = {"file": ("frame.png", Path(settings.picture).read_bytes(), "image/png")}
    request = httpx.Request("POST", settings.url, files=parts)
    body, headers = request.read(), {"Content-Type": request.headers["Content-Type"]}
    connector = aiohttp.TCPConnector(limit=settings.connections)
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    exchanges: list[Exchange] = []
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def once() -> bool:
            try:
                async with session.post(settings.url, data=body, headers=headers) as response:
                    await response.read()
                    return response.status == 200
            except (aiohttp.ClientError, TimeoutError):
                return False

        async def connection(end: float) -> None:
            while time.monotonic() < end:
                begun, started = time.time(), time.perf_counter()
                attempts, answered = 1, await once()
                while not answered and attempts <= settings.retries:
                    await asyncio.sleep(_PAUSE_S)
                    attempts, answered = attempts + 1, await once()
                exchanges.append(Exchange(begun, time.perf_counter() - started, attempts, answered))
                if not answered:
                    await asyncio.sleep(_PAUSE_S)

        end = time.monotonic() + settings.seconds
        await asyncio.gather(*(connection(end) for _ in range(settings.connections)))
    return exchanges


def main() -> None:
    settings = LoadSettings(**json.loads(sys.argv[1]))
    exchanges = asyncio.run(ask_for_a_while(settings))
    json.dump([[e.begun, e.seconds, e.attempts, e.answered] for e in exchanges], sys.stdout)


if __name__ == "__main__":
    main()
