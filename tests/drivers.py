"""Drivers in processes of their own, for tests to interrupt and kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
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


def interrupted(process: subprocess.Popen[bytes], when: Callable[[], bool]) -> int:
    """Exit status of a driver that gets SIGINT as soon as `when` holds."""
    try:
        tiny.wait_for(lambda: when() or process.poll() is not None)
        assert process.poll() is None, "it ended before it could be interrupted"
        process.send_signal(signal.SIGINT)
        return process.wait(timeout=120)
    finally:
        process.kill()
        process.wait()
