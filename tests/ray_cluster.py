"""Real Ray clusters for tests: private folders, their own processes, ended by their number."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from cardioray.data import cluster
from cardioray.machine import environment
from cardioray.serve.proxy import VARIABLES


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder with a short name: Ray's socket paths must fit into about 100 characters."""
    with tempfile.TemporaryDirectory(prefix="cr-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextlib.contextmanager
def local_cluster(
    num_cpus: int = 4, num_gpus: int | None = None, *, dashboard: bool = True
) -> Iterator[None]:
    """One node that this process joins and ends; serves if asked to."""
    with private_folder() as folder, environment({**VARIABLES, "RAY_TMPDIR": str(folder)}):
        cluster.start_local(num_cpus, num_gpus, dashboard=dashboard)
        try:
            yield
        finally:
            ray.shutdown()


# The cluster that files of tests find up one after another: its start takes 25 s of a core.
_kept = contextlib.ExitStack()


def keep_cluster(num_cpus: int, num_gpus: int | None = None, *, dashboard: bool = True) -> None:
    """Start a cluster that stays up until `end_kept_cluster`, unless it is up."""
    if not ray.is_initialized():
        _kept.enter_context(local_cluster(num_cpus, num_gpus, dashboard=dashboard))


def end_kept_cluster() -> None:
    """End what `keep_cluster` started; does nothing when nothing was."""
    _kept.close()


@contextlib.contextmanager
def several_nodes(nodes: list[dict[str, Any]]) -> Iterator[Cluster]:
    """A cluster of several nodes on this machine; the first one is the head with the driver."""
    with private_folder() as folder, environment({"RAY_TMPDIR": str(folder)}):
        head, *others = nodes
        (folder / "ray").mkdir()
        started = Cluster(
            initialize_head=True,
            head_node_args={
                "include_dashboard": True,
                "dashboard_port": 0,
                "temp_dir": str(folder / "ray"),
                **head,
            },
        )
        try:
            for node in others:
                started.add_node(**node)
            started.wait_for_nodes()
            cluster.hasten_training()
            # Other tests may run a cluster on this machine: Ray's processes must know their own.
            ray.init(
                address=started.address,
                runtime_env={"env_vars": {"RAY_ADDRESS": started.address}},
                log_to_driver=False,
                logging_level="WARNING",
            )
            yield started
        finally:
            ray.shutdown()
            started.shutdown()


def heed_interrupts() -> None:
    """What a shell leaves out for a job in the background, as which these tests may run."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end_tree(pid: int) -> None:
    """SIGKILL a process, then everything it started, by number; like a machine that lost power."""
    for process in (pid, *descendants(pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Numbers of the processes below one."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The name in brackets may hold spaces; the parent is the second field behind it.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = int(fields[1])
    found = [pid]
    for parent in found:
        found += [child for child, its in parents.items() if its == parent]
    return found[1:]
