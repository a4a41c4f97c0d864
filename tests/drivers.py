"""Drivers in processes of their own, for tests to interrupt and kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import ray
import tiny_training as tiny
from ray_cluster import heed_interrupts

TESTS = str(Path(__file__).parent)


def driver(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    """A process that runs `code` on the cluster of this one, and finds the modules of the tests."""
    paths = [TESTS, *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "PYTHONPATH": os.pathsep.join(paths),
    }
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | env,
        preexec_fn=heed_interrupts,
    )


def interrupted(code: str, *arguments: object, log: Path, when: str) -> tuple[int, str]:
    """Exit status and log of a driver that gets SIGINT as soon as its log says `when`."""
    process = driver(code, *arguments, log)
    try:
        tiny.wait_for(lambda: log.exists() and when in log.read_text())
        process.send_signal(signal.SIGINT)
        status = process.wait(timeout=120)
    finally:
        process.kill()
        process.wait()
    return status, log.read_text()
