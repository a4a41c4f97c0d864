"""CardioRay's server beside three others of the same network, from one connection to 32."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median
from typing import Any

from pydantic import Field

from benchmarks.load import Level, LoadSettings, measure
from benchmarks.peers.common import BUNDLE_VARIABLE
from benchmarks.report import ROOT, Cell, Ratio, Report
from benchmarks.systems import System, cardioray, running, uvicorn
from benchmarks.untrained import Untrained, untrained_bundle
from cardioray.config import config
from cardioray.machine import usable_cores

QUESTION = """\
One 512 px PNG a request as multipart, one answer, from the same network with random weights.
FastAPI with eager PyTorch is how published notebooks serve: the model is loaded at import, and the
endpoint decodes and runs one picture at a time. FastAPI with OpenVINO runs the bundle's own export
in a pool of threads; LitServe runs eager PyTorch in batches of up to eight. Every server is started
for real and alone, has all cores, and is asked by a client in a process of its own on the same
machine; the first seconds of each level are left out, and figures are means over the turns. Before
that, each has to answer eight pictures as PyTorch does in fp32, within the tolerance below. Eager
PyTorch computes in fp32, which is its default; CardioRay and OpenVINO compute in bf16 where the CPU
is faster so, which is theirs: part of the gain is that choice. CardioRay alone also checks the
request and compares every picture with the training pictures."""
EAGER, OPENVINO, LITSERVE = "FastAPI + eager PyTorch", "FastAPI + OpenVINO", "LitServe, batch 8"
DEFAULT, FAST, IN_PROCESS = "CardioRay", "CardioRay --fast", "cardioray.load(...).predict"
# A network with random weights is steep: on its training pictures bf16 moves probabilities by up
# to 0.04. The pictures compared differ by several times that, or the comparison would be empty.
TOLERANCE = 0.06
_COMPARED = 8


@config
class ServingSettings:
    """Size of the run.

    Attributes:
        backbone: network.
        image_size: side in px of what it sees.
        connections: levels of load.
        seconds: of each level, after the warm-up.
        warm_s: warm-up of each level in seconds.
        calls: of `predict` in one process.
        turns: how often every system is measured.
        systems: which ones, by a part of their name; empty for all.
    """

    backbone: str = "densenet169"
    image_size: int = 224
    connections: tuple[int, ...] = (1, 8, 32)
    seconds: float = Field(default=10.0, gt=0)
    warm_s: float = Field(default=3.0, ge=0)
    calls: int = Field(default=200, ge=1)
    turns: int = Field(default=2, ge=1)
    systems: tuple[str, ...] = ()


def systems() -> list[System]:
    """All systems, the peers first."""
    # One replica with every core: what one request finds in a single process, too.
    options = ("--set", f"cpus={usable_cores()}", "--set", "scaling.max_replicas=1")
    ours: dict[str, Any] = {
        "path": "/v1/ffr",
        "probability": lambda answer: answer["ffr"]["probability"],
    }
    return [
        System(EAGER, uvicorn("eager")),
        System(OPENVINO, uvicorn("openvino_threads")),
        System(
            LITSERVE,
            lambda bundle, port: [
                *(sys.executable, "-m", "benchmarks.peers.litserve_batches", str(port))
            ],
        ),
        System(DEFAULT, cardioray(*options), **ours),
        System(FAST, cardioray("--fast", *options), **ours),
    ]


def run(settings: ServingSettings) -> Report:
    """Measure every system."""
    chosen = [
        system
        for system in systems()
        if not settings.systems or any(part in system.name for part in settings.systems)
    ]
    levels: dict[tuple[str, int], list[Level]] = {}
    alone: list[float] = []
    with tempfile.TemporaryDirectory(prefix="crb-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        model = untrained_bundle(folder, backbone=settings.backbone, image_size=settings.image_size)
        for _ in range(settings.turns):
            median_ms, expected = _in_process(model, settings.calls)
            alone.append(median_ms)
            for system in chosen:
                found = _measure(system, model, expected, settings, folder)
                for connections, figures in found.items():
                    levels.setdefault((system.name, connections), []).append(figures)
    rows = [_row(system, connections, turns) for (system, connections), turns in levels.items()]
    rows.append({"system": IN_PROCESS, "connections": 1, "p50_ms": median(alone)})
    return Report(
        name="serving",
        title=f"Serving {settings.backbone} at {settings.image_size} px",
        question=QUESTION,
        columns={
            "system": "system",
            "connections": "connections",
            "requests_per_s": "requests/s",
            "p50_ms": "p50 ms",
            "p99_ms": "p99 ms",
            "failed": "failed",
        },
        rows=rows,
        ratios=ratios(rows),
        settings=asdict(settings) | {"tolerance": TOLERANCE},
    )


def ratios(rows: Sequence[Mapping[str, Cell]]) -> list[Ratio]:
    """The verdicts that rows of some or all systems allow."""
    figures = {(row["system"], row["connections"]): row for row in rows}
    most = max(int(row["connections"] or 0) for row in rows)

    def value(system: str, connections: int, key: str) -> float | None:
        found = figures.get((system, connections), {}).get(key)
        return None if found is None else float(found)

    result = []
    goals = {(FAST, EAGER): ">= 5", (DEFAULT, EAGER): ">= 3"}
    for ours in (FAST, DEFAULT):
        for peer in (EAGER, OPENVINO, LITSERVE):
            speed, its = (value(s, most, "requests_per_s") for s in (ours, peer))
            if speed is not None and its is not None:
                name = f"{ours} / {peer}, requests/s at {most} connections"
                result.append(Ratio(name=name, value=speed / its, goal=goals.get((ours, peer))))
    for ours, goal in ((DEFAULT, "<= 8"), (FAST, "<= 3")):
        over, base = value(ours, 1, "p50_ms"), value(IN_PROCESS, 1, "p50_ms")
        if over is not None and base is not None:
            name = f"{ours} at 1 connection over {IN_PROCESS}, p50"
            result.append(Ratio(name=name, value=over - base, goal=goal, unit="ms"))
    return result


def _in_process(model: Untrained, calls: int) -> tuple[float, list[float]]:
    """Median milliseconds of `predict`, and the probabilities of the first pictures in fp32.

    Raises:
        RuntimeError: when the pictures have nearly the same: a peer that never looks at its
            picture would then agree as well.
    """
    pictures = [str(picture) for picture in model.pictures[:_COMPARED]]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.in_process", str(calls), *pictures],
        cwd=ROOT,
        env={**os.environ, BUNDLE_VARIABLE: str(model.bundle)},
        stdout=subprocess.PIPE,
        check=True,
    )
    found = json.loads(done.stdout)
    probabilities = found["probabilities"]
    if max(probabilities) - min(probabilities) < 4 * TOLERANCE:
        raise RuntimeError(f"The network tells no picture from another: {probabilities}.")
    return 1000 * median(found["seconds"]), probabilities


def _measure(
    system: System,
    model: Untrained,
    expected: Sequence[float],
    settings: ServingSettings,
    folder: Path,
) -> dict[int, Level]:
    """Figures by connections of a system that was found to answer as fp32 PyTorch does."""
    found = {}
    with running(system, model.bundle, model.pictures[0], folder) as server:
        for picture, wanted in zip(model.pictures, expected, strict=False):
            given = server.ask(picture)
            if abs(given - wanted) > TOLERANCE:
                raise RuntimeError(f"{system.name} answers {given}, PyTorch in fp32 {wanted}.")
        for connections in settings.connections:
            load = LoadSettings(
                url=server.url,
                picture=str(model.pictures[0]),
                connections=connections,
                seconds=settings.warm_s + settings.seconds,
            )
            found[connections] = measure(load, settings.warm_s)
    return found


def _row(system: str, connections: int, turns: Sequence[Level]) -> dict[str, Cell]:
    return {
        "system": system,
        "connections": connections,
        "requests_per_s": mean(level.requests_per_s for level in turns),
        "p50_ms": mean(level.p50_ms for level in turns),
        "p99_ms": mean(level.p99_ms for level in turns),
        "failed": sum(level.failed for level in turns),
    }
