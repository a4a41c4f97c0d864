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

from cardioray.data.cluster import hasten_training


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder with a short name: Ray's socket paths must fit into about 100 characters."""
    with tempfile.TemporaryDirectory(prefix="cr-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextlib.contextmanager
def local_cluster(num_cpus: int = 4, **settings: Any) -> Iterator[None]:
    """One node that this process joins and ends."""
    with private_folder() as folder:
        # With the dashboard, as users have it: without it some workers are never given back.
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=True,
            _temp_dir=str(folder),
            log_to_driver=False,
            logging_level="WARNING",
            **settings,
        )
        hasten_training()
        quiet_data()
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def several_nodes(nodes: list[dict[str, Any]]) -> Iterator[Cluster]:
    """A cluster of several nodes on this machine; the first one is the head with the driver."""
    with private_folder() as folder:
        head, *others = nodes
        before = os.environ.get("RAY_TMPDIR")
        os.environ["RAY_TMPDIR"] = str(folder)
        (folder / "ray").mkdir()
        cluster = Cluster(
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
                cluster.add_node(**node)
            cluster.wait_for_nodes()
            ray.init(address=cluster.address, log_to_driver=False, logging_level="WARNING")
            hasten_training()
            quiet_data()
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
            if before is None:
                del os.environ["RAY_TMPDIR"]
            else:
                os.environ["RAY_TMPDIR"] = before


def quiet_data() -> None:
    """No progress bars of Ray Data."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False


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
