"""Joining a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path

import ray

from cardioray import storage
from cardioray.machine import environment, free_port

log = logging.getLogger(__name__)

_PORT = "RAY_GCS_SERVER_PORT"
# Set in the processes of a local cluster.
_LOCAL = "CARDIORAY_LOCAL_CLUSTER"
# A resource that Ray gives to the head, and to no other node.
_HEAD = "node:__internal_head__"
# Whether this process is connected to a local cluster that it started without a dashboard.
_bare = False


# Wider actors on larger nodes: fewer copies of the network, and no more threads a forward pass
# than it uses well.
THREADS_PER_ACTOR = 4
# Actors stay below the CPUs of their node, so that whatever else a cluster runs is never starved.
CPU_SHARE = 0.8


def connect(num_cpus: int | None = None, *, dashboard: bool = False) -> None:
    """Join the cluster named by RAY_ADDRESS, or start a local one; does nothing when connected.

    A local cluster has no dashboard unless it is asked for: its dozen processes take as much as
    all others of Ray together, of which two cores lose 3 % of a training. A local cluster that was
    started without one and is asked for one is started again.

    Args:
        num_cpus: logical CPUs of a local cluster; the machine's cores by default.
        dashboard: have the dashboard, on loopback. Tune needs it: without its state API the CPUs
            of a training trial that was stopped are never given back.
    """
    global _bare
    if ray.is_initialized():
        if not (dashboard and _bare):
            return
        ray.shutdown()
    # A local cluster must not join another user's by way of Ray's "current cluster" file.
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        start_local(num_cpus, dashboard=dashboard)
    else:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        _quiet_data()
    _bare = address == "local" and not dashboard
    _tighten_token()


def start_local(
    num_cpus: int | None = None, num_gpus: int | None = None, *, dashboard: bool = True
) -> None:
    """Start a cluster whose own processes know its address.

    Where several clusters run on one machine, a process of Ray that asks for "the" cluster fails.
    The cleaner that gives back the CPUs of a stopped trial is one: without the address, every
    later trial would wait for ever.

    Args:
        num_cpus: logical CPUs; the machine's cores by default.
        num_gpus: logical GPUs; the machine's by default.
        dashboard: have the dashboard; see `connect`.
    """
    hasten_training()
    # That Ray wants a token of whoever joins is no news to act on: this process has it.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel("ERROR")
    port = free_port()
    # Inherited, not in a runtime_env: for one, Ray would start Python twice in every worker.
    known = {
        _PORT: str(port),
        "RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}",
        # Workers' lines are not brought to the driver; Ray looks for new ones all the same.
        "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
        "LOG_NAME_UPDATE_INTERVAL_S": "30",
        # Ray Train's own choice for its controllers.
        "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
        _LOCAL: "1",
    }
    with environment(known):
        ray.init(
            address="local",
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            include_dashboard=dashboard,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    _quiet_data()


def has_state_api() -> bool:
    """Whether the connected cluster can be asked what runs on it, which its dashboard answers."""
    return not _bare


def inherits_environment() -> bool:
    """Whether this is a process of a local cluster.

    All of them have the environment of the command that started the cluster.
    """
    return _LOCAL in os.environ


def hasten_training() -> None:
    """Take off the waits of Ray that one machine has no use for, unless the user set them.

    The controller looks after its few workers more often, so that an epoch's checkpoint counts and
    a lost worker is noticed earlier; nobody watches for a cloud that takes nodes back. Processes
    that read files wait a minute for the next read instead of a second: starting one takes two or
    three seconds of a core. What every process takes is looked up for the dashboard twice a minute
    instead of every five seconds.
    """
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
    os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "30000")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


@dataclass(frozen=True)
class Capacity:
    """What the connected cluster offers to work.

    Attributes:
        cpus: of all nodes that are up.
        gpus: of all nodes that are up.
        grows: its head takes no work, so that nodes are started for what is asked; more may come
            than is up, and nothing is up before the first task.
        nodes: CPUs and GPUs of each node that is up.
    """

    cpus: float
    gpus: float
    grows: bool
    nodes: tuple[tuple[float, float], ...]

    def places(self, cpus: float, gpus: float) -> int:
        """How many workers of this size the empty nodes would hold; none is on two nodes."""
        asked = [(0, cpus), (1, gpus)]
        held = (
            min((node[kind] / amount for kind, amount in asked if amount > 0), default=math.inf)
            for node in self.nodes
        )
        return sum(int(number + 1e-9) for number in held)


def capacity() -> Capacity:
    """What the connected cluster offers.

    Ray has no call that says whether an autoscaler runs. A head without CPUs says it: without
    nodes to come, such a cluster would do nothing.
    """
    total = ray.cluster_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    grows = not any(node.get("CPU") for node in nodes if _HEAD in node)
    return Capacity(
        cpus=total.get("CPU", 0.0),
        gpus=total.get("GPU", 0.0),
        grows=grows,
        nodes=tuple((node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes),
    )


@dataclass(frozen=True)
class PoolSize:
    """What a pool takes of a cluster.

    Attributes:
        actors: actors that the nodes which are up hold.
        grows: the cluster starts nodes for more actors.
        threads: of each actor.
        resources: what Ray sets aside for each.
    """

    actors: int
    grows: bool
    threads: int
    resources: dict[str, float]


def pool_size(*, whole_nodes: bool = False) -> PoolSize:
    """The pool that fits the connected cluster: one actor a GPU, else actors on all CPUs.

    Args:
        whole_nodes: on nodes of few CPUs one actor with all of them, which starts in half the
            time, instead of an actor for each; for actors that do nothing but run a network.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    grows = capacity().grows
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus:
        threads = min(max(1, sum(cpus) // gpus), 2 * THREADS_PER_ACTOR)
        return PoolSize(gpus, grows, threads, resources={"num_gpus": 1})
    # Nodes that are started on demand are no small ones.
    smallest = min(cpus, default=THREADS_PER_ACTOR if grows else 1)
    threads = THREADS_PER_ACTOR if smallest >= THREADS_PER_ACTOR else 1
    if whole_nodes:
        threads = min(smallest, THREADS_PER_ACTOR)
    actors = sum(count // threads for count in cpus)
    return PoolSize(max(1, actors), grows, threads, resources={"num_cpus": CPU_SHARE * threads})


def num_nodes() -> int:
    """Nodes that are alive."""
    return sum(bool(node["Alive"]) for node in ray.nodes())


def require_shared(path: str, shared: bool) -> None:
    """Refuse a local output folder on a cluster of several nodes.

    Args:
        path: where something is to be written.
        shared: the user's word that every node sees this folder (NFS, EFS, one machine).

    Raises:
        ValueError: when the nodes could not all see it.
    """
    if storage.is_remote(path) or shared:
        return
    nodes, grows = num_nodes(), capacity().grows
    if nodes > 1 or grows:
        has = "starts nodes on demand" if grows else f"has {nodes} nodes"
        raise ValueError(
            f"{path} is a folder of one machine, but this cluster {has}: what one of them writes "
            "the others would not see. Give an s3:// path, or pass --shared-storage when every "
            "node mounts this folder."
        )


def _quiet_data() -> None:
    """Leave out Ray Data's plans and progress; its warnings and errors still come."""
    from ray.data import DataContext

    DataContext.get_current().enable_progress_bars = False
    # Otherwise it says how to turn them on again.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        # The other handler writes Ray Data's log file, which keeps everything.
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.WARNING)


def _tighten_token() -> None:
    # Ray writes its token readable by every user of the machine.
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    if token.is_file() and token.stat().st_uid == os.getuid():
        token.chmod(0o600)
