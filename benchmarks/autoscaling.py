"""Replicas that come and go with the load, and one that is killed."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pydantic import Field
from ray.serve.context import _get_global_client

from benchmarks.load import Client, Exchange, LoadSettings
from benchmarks.report import ROOT, Cell, Ratio, Report
from benchmarks.untrained import Untrained, untrained_bundle
from cardioray.config import config
from cardioray.evaluation.plots import png_bytes
from cardioray.machine import free_port
from cardioray.serve.deploy import application_settings, serve_bundles
from cardioray.serve.settings import ServerSettings

QUESTION = """\
A server with one to two replicas of one core each gets many connections, then a single one, which
goes on asking while the second replica leaves; the picture shows both over time. Then one of two
replicas is killed (SIGKILL) under load, once with a client that gives up at the first error and
once with one that asks again once. Only requests that were under way when the replica was killed
may fail. The client runs on the same machine."""
PLOT = "autoscaling.png"
TASK = "ffr"
_SAMPLE_EVERY_S = 0.25
_PATIENCE_S = 120.0


@config
class AutoscalingSettings:
    """Size of the run.

    Attributes:
        backbone: network.
        image_size: side in px of what it sees.
        connections: while load is high.
        seconds: of high load.
        quiet_s: of low load, with a single connection.
        upscale_delay_s: how long load has to last before a replica is added.
        downscale_delay_s: how long a replica has to be superfluous before it is taken away.
        kill_connections: while a replica is killed.
        kill_after_s: from the first request to the kill.
        kill_seconds: from the first request to the last.
    """

    backbone: str = "densenet169"
    image_size: int = 224
    connections: int = 32
    seconds: float = Field(default=60.0, gt=0)
    quiet_s: float = Field(default=45.0, gt=0)
    upscale_delay_s: float = Field(default=3.0, ge=0)
    downscale_delay_s: float = Field(default=15.0, ge=0)
    kill_connections: int = 8
    kill_after_s: float = Field(default=5.0, gt=0)
    kill_seconds: float = Field(default=30.0, gt=0)


@dataclass
class Watch:
    """How many replicas answer, over time.

    Attributes:
        times: in seconds since 1970.
        running: replicas at each of them.
    """

    times: list[float] = field(default_factory=list)
    running: list[int] = field(default_factory=list)

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        """Look every quarter of a second."""
        stop = threading.Event()
        thread = threading.Thread(target=self._look, args=(stop,))
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join()

    def first(self, count: int, after: float) -> float:
        """Seconds from `after` until there were `count` replicas.

        Raises:
            RuntimeError: when there never were.
        """
        for moment, running in zip(self.times, self.running, strict=True):
            if moment >= after and running == count:
                return moment - after
        raise RuntimeError(f"There never were {count} replicas: {sorted(set(self.running))}.")

    def _look(self, stop: threading.Event) -> None:
        while not stop.wait(_SAMPLE_EVERY_S):
            count = len(_replicas())
            self.times.append(time.time())
            self.running.append(count)


@dataclass(frozen=True)
class Kill:
    """What a killed replica cost.

    Attributes:
        moment: when it was killed, in seconds since 1970.
        exchanges: all questions of the client.
    """

    moment: float
    exchanges: Sequence[Exchange]

    @property
    def under_way(self) -> int:
        """Questions that had been asked and not answered when the replica was killed."""
        return sum(e.begun <= self.moment < e.ended for e in self.exchanges)

    @property
    def failed_under_way(self) -> int:
        """Those of them that were not answered."""
        return sum(e.begun <= self.moment and not e.answered for e in self.exchanges)

    @property
    def failed_later(self) -> int:
        """Questions asked after the kill that were not answered."""
        return sum(e.begun > self.moment and not e.answered for e in self.exchanges)

    @property
    def asked_again(self) -> int:
        """Questions that took a second attempt."""
        return sum(e.attempts > 1 for e in self.exchanges)


def run(settings: AutoscalingSettings) -> Report:
    """Scale up and down, then kill replicas."""
    with tempfile.TemporaryDirectory(prefix="crb-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        scaling = {"min_replicas": 1, "max_replicas": 2}
        delays = {
            "upscale_delay_s": settings.upscale_delay_s,
            "downscale_delay_s": settings.downscale_delay_s,
        }
        model = untrained_bundle(folder, backbone=settings.backbone, image_size=settings.image_size)
        with _serving(model.bundle, {**scaling, **delays}) as url, Watch().watching() as watch:
            busy, quiet = _load_and_rest(url, model, settings)
        with _serving(model.bundle, {"min_replicas": 2, "max_replicas": 2}) as url:
            once = _kill(url, model, settings, retries=0)
            _wait_for_replicas(2)
            twice = _kill(url, model, settings, retries=1)
    figure = _plot(watch, busy, quiet)
    (ROOT / "docs" / "images" / PLOT).write_bytes(png_bytes(figure))
    return _report(settings, watch, busy, quiet, once, twice)


def _report(
    settings: AutoscalingSettings,
    watch: Watch,
    busy: Sequence[Exchange],
    quiet: Sequence[Exchange],
    once: Kill,
    twice: Kill,
) -> Report:
    begun, rested = min(e.begun for e in busy), min(e.begun for e in quiet)
    up, down = watch.first(2, begun), watch.first(1, rested)
    failed = sum(not e.answered for e in [*busy, *quiet])
    rows = [
        _row("high load, one replica", settings.connections, busy, begun, begun + up),
        _row("high load, two replicas", settings.connections, busy, begun + up, rested),
        _row("low load, until one replica is left", 1, quiet, rested, rested + down),
        _row("low load, one replica", 1, quiet, rested + down, max(e.ended for e in quiet)),
        *(
            _row(name, settings.kill_connections, kill.exchanges, *_span(kill.exchanges))
            for name, kill in (
                ("a replica killed, asked once", once),
                ("a replica killed, asked again once", twice),
            )
        ),
    ]
    return Report(
        name="autoscaling",
        title="Autoscaling, and a lost replica",
        question=QUESTION,
        columns={
            "phase": "phase",
            "connections": "connections",
            "seconds": "seconds",
            "requests": "requests",
            "requests_per_s": "requests/s",
            "failed": "failed",
        },
        rows=rows,
        ratios=[
            Ratio(name="From the first request to two replicas", value=up, unit="s"),
            Ratio(name="From the end of the load to one replica", value=down, unit="s"),
            Ratio(
                name="Requests that failed while replicas came and went", value=failed, goal="<= 0"
            ),
            Ratio(
                name=f"A replica killed: failed, of {once.under_way} requests under way",
                value=once.failed_under_way,
                goal=f"<= {once.under_way}",
            ),
            Ratio(
                name="A replica killed: failed, of requests made later",
                value=once.failed_later,
                goal="<= 0",
            ),
            Ratio(
                name=f"A replica killed: failed, where {twice.asked_again} were asked again once",
                value=twice.failed_under_way + twice.failed_later,
                goal="<= 0",
            ),
        ],
        settings=asdict(settings),
        plot=PLOT,
    )


@contextmanager
def _serving(bundle: Path, scaling: Mapping[str, Any]) -> Iterator[str]:
    """A server as `cardioray serve` starts it; gives its URL."""
    overrides = [f"scaling.{name}={value}" for name, value in scaling.items()]
    serving = serve_bundles(
        application_settings([str(bundle)], overrides), ServerSettings(port=free_port())
    )
    try:
        _wait_for_replicas(int(scaling["min_replicas"]))
        yield serving.urls[TASK]
    finally:
        serving.stop()


def _replicas() -> dict[str, int]:
    """Process number of each replica that answers, by its id."""
    details = _get_global_client().get_serve_details()
    return {
        replica["replica_id"]: replica["pid"]
        for deployment in details["applications"][TASK]["deployments"].values()
        for replica in deployment["replicas"]
        if replica["state"] == "RUNNING"
    }


def _wait_for_replicas(count: int) -> None:
    end = time.monotonic() + _PATIENCE_S
    while len(_replicas()) != count:
        if time.monotonic() > end:
            raise RuntimeError(f"{count} replicas were not there after {_PATIENCE_S:.0f} s.")
        time.sleep(_SAMPLE_EVERY_S)


def _load_and_rest(
    url: str, model: Untrained, settings: AutoscalingSettings
) -> tuple[list[Exchange], list[Exchange]]:
    """All questions under high load, then all under low load."""
    both = ((settings.connections, settings.seconds), (1, settings.quiet_s))
    high, low = (
        Client(
            LoadSettings(
                url=url, picture=str(model.pictures[0]), connections=connections, seconds=seconds
            )
        ).wait()
        for connections, seconds in both
    )
    return high, low


def _kill(url: str, model: Untrained, settings: AutoscalingSettings, *, retries: int) -> Kill:
    """Kill one of the replicas while a client asks."""
    client = Client(
        LoadSettings(
            url=url,
            picture=str(model.pictures[0]),
            connections=settings.kill_connections,
            seconds=settings.kill_seconds,
            retries=retries,
        )
    )
    time.sleep(settings.kill_after_s)
    victim = next(iter(_replicas().values()))
    moment = time.time()
    os.kill(victim, signal.SIGKILL)
    return Kill(moment, client.wait())


def _span(exchanges: Sequence[Exchange]) -> tuple[float, float]:
    return min(e.begun for e in exchanges), max(e.ended for e in exchanges)


def _row(
    phase: str, connections: int, exchanges: Sequence[Exchange], begin: float, end: float
) -> dict[str, Cell]:
    inside = [e for e in exchanges if begin <= e.ended <= end]
    return {
        "phase": phase,
        "connections": connections,
        "seconds": end - begin,
        "requests": len(inside),
        "requests_per_s": sum(e.answered for e in inside) / (end - begin),
        "failed": sum(not e.answered for e in inside),
    }


def _plot(watch: Watch, busy: Sequence[Exchange], quiet: Sequence[Exchange]) -> Figure:
    """Replicas, and answers a second, over the same time."""
    start = min(e.begun for e in busy)
    ended = np.array([e.ended for e in [*busy, *quiet] if e.answered]) - start
    seconds = np.arange(0, np.ceil(ended.max()) + 1)
    counts, _ = np.histogram(ended, seconds)
    figure = Figure(figsize=(8.4, 4.6), dpi=100, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    upper.step(np.array(watch.times) - start, watch.running, where="post", color="#1f5fa8")
    upper.set_ylim(0.5, 2.5)
    upper.set_yticks([1, 2])
    upper.set_ylabel("replicas")
    lower.bar(seconds[:-1], counts, width=1.0, align="edge", color="#7aa6d1")
    lower.set_ylabel("answers a second")
    lower.set_xlabel("seconds since the first request")
    lower.set_xlim(-5, seconds[-1])
    rested = min(e.begun for e in quiet) - start
    for axes in (upper, lower):
        axes.axvline(0, color="0.5", linestyle=":")
        axes.axvline(rested, color="0.5", linestyle=":")
        axes.spines[["top", "right"]].set_visible(False)
    top = lower.get_ylim()[1]
    lower.text(rested, top, " one connection", va="top")
    return figure
