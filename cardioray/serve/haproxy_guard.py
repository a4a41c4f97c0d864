"""Runs in place of HAProxy, and becomes it: keeps it on loopback and ends it with its parent.

Serve writes HAProxy's configuration with its status page and its metrics on every interface, and
leaves HAProxy behind when the process that started it is killed. Serve starts this script where
it would start HAProxy (`RAY_SERVE_HAPROXY_BINARY_PATH`); it is run without the site packages.

    python -I -S haproxy_guard.py HAPROXY PORT,PORT [arguments of HAProxy]
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from pathlib import Path

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


def keep_on_loopback(config: str, ports: list[str]) -> str:
    """HAProxy's configuration with the bind lines of these ports moved to 127.0.0.1."""
    wide = re.compile(rf"^(\s*bind )(?:\*|0\.0\.0\.0)?:({'|'.join(ports)})$", re.MULTILINE)
    return wide.sub(r"\g<1>127.0.0.1:\g<2>", config)


def wide_binds(config: str, ports: list[str]) -> list[str]:
    """The bind lines of these ports that are on another address than 127.0.0.1."""
    lines = re.findall(rf"^\s*bind\s.*:(?:{'|'.join(ports)})\b.*$", config, re.MULTILINE)
    return [line.strip() for line in lines if "127.0.0.1:" not in line]


def _end_with_parent() -> None:
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the call
        sys.exit(1)


def main(arguments: list[str]) -> None:
    """Prepare this process and replace it with HAProxy."""
    haproxy, ports, *rest = arguments
    config = Path(rest[rest.index("-f") + 1])
    text = keep_on_loopback(config.read_text(), ports.split(","))
    if wide := wide_binds(text, ports.split(",")):
        sys.exit(f"HAProxy is not started: it would listen beyond this machine ({wide[0]}).")
    config.write_text(text)
    if sys.platform == "linux":
        _end_with_parent()
    os.execv(haproxy, [haproxy, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
