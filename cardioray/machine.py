"""What the machine beneath this process offers: cores, memory, disk, CPU features and GPUs.

Containers are taken into account: a limit set on the process counts, not the machine around it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
# Instruction sets in which bf16 is faster than float32: matrix units of Intel's servers, Arm's,
# and AVX-512's of AMD. Intel's avx512_bf16 without matrix units is slower (docs/install.md).
_BF16_FLAGS = ("amx_bf16", "bf16")
_AVX512_BF16 = "avx512_bf16"
_AMD = "sse4a"  # which every AMD processor has, and no other
_given_ports: set[int] = set()


@dataclass(frozen=True)
class Gpu:
    """A CUDA device.

    Attributes:
        name: as the driver gives it.
        memory_gib: memory of the device in GiB.
        capability: CUDA compute capability, (major, minor).
    """

    name: str
    memory_gib: float
    capability: tuple[int, int]

    @property
    def has_bf16(self) -> bool:
        """Whether the tensor cores multiply bf16 (Ampere, capability 8.0, and later)."""
        return self.capability >= (8, 0)


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables that hold for a while, and that processes started meanwhile inherit."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def collecting_rarely() -> Iterator[None]:
    """Have Python look for garbage after 50,000 new objects instead of 700.

    Loading torch makes objects by the million, all of which stay; looking among them every 700
    takes a fifth of the time.
    """
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def find_gpus() -> list[Gpu]:
    """The CUDA devices that torch sees."""
    import torch  # here, so that the rest of this module costs nothing to import

    found = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        found.append(Gpu(device.name, device.total_memory / GIB, (device.major, device.minor)))
    return found


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Feature flags of the first CPU as Linux lists them; empty on other systems."""
    if not cpuinfo.exists():
        return frozenset()
    for line in cpuinfo.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()


def bf16_flags(flags: frozenset[str]) -> list[str]:
    """Those of a CPU's flags that make bf16 faster than float32; empty when it would be slower."""
    fast = [name for name in _BF16_FLAGS if name in flags]
    return [*fast, *([_AVX512_BF16] if {_AVX512_BF16, _AMD} <= flags else [])]


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: its CPU affinity and the container's quota, at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = cgroup / "cpu.max"
    if quota.exists():
        limit, period = quota.read_text().split()
        if limit != "max":
            cores = min(cores, max(1, int(limit) // int(period)))
    return cores


def usable_memory_gib(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Memory that this process may use in GiB: the machine's, or the container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup 2, cgroup 1
        limit = cgroup / name
        if limit.exists() and (text := limit.read_text().strip()) != "max":
            total = min(total, int(text))
    return total / GIB


def free_gib(folder: Path) -> float | None:
    """Free space on a folder's disk in GiB, None when the folder does not exist."""
    return shutil.disk_usage(folder).free / GIB if folder.exists() else None


def free_port() -> int:
    """A port that nobody listens on, at any address of this machine; another one at every call.

    It is none that the system gives to a connection by itself, nor one of Ray's workers (10002 to
    19999): such a port may be taken again before whoever asked listens on it.
    """
    ports = range(20_000, min(_first_port_of_connections(), 65_536))
    # Not the generator that a training seeds: two processes would be given the same one.
    for port in secrets.SystemRandom().sample(ports, len(ports)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            if port not in _given_ports:
                probe.bind(("", port))
                _given_ports.add(port)
                return port
    raise OSError(f"Every port from {ports.start} to {ports.stop - 1} is in use.")


def _first_port_of_connections() -> int:
    """Where the ports begin that the system gives to connections; IANA's, where it does not say."""
    stated = Path("/proc/sys/net/ipv4/ip_local_port_range")
    return int(stated.read_text().split()[0]) if stated.exists() else 49_152
