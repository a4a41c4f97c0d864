"""What trainings take of a cluster: the CPUs and GPUs of their workers."""

from __future__ import annotations

import logging

from cardioray.data import cluster
from cardioray.data.cluster import Capacity
from cardioray.training.settings import ScaleConfig

log = logging.getLogger(__name__)


def worker_resources(scale: ScaleConfig) -> dict[str, float]:
    """CPUs and GPUs of one worker on the connected cluster.

    Raises:
        ValueError: when the cluster can never place the workers; Ray would wait for ever.
    """
    offered = cluster.capacity()
    wanted = {
        "CPU": cpus_per_worker(scale, offered, runs=1),
        "GPU": gpus_per_worker(scale, offered),
    }
    for kind, there in (("CPU", offered.cpus), ("GPU", offered.gpus)):
        if wanted[kind] * scale.workers <= there:
            continue
        text = f"{scale.workers} workers with {wanted[kind]:g} {kind} each"
        if not offered.grows:
            raise ValueError(
                f"{text} do not fit this cluster, which has {there:g} {kind}; lower scale.workers "
                f"or scale.{kind.lower()}s_per_worker."
            )
        log.warning("%s wait for nodes; the cluster has %g %s at present.", text, there, kind)
    if not offered.grows and offered.places(wanted["CPU"], wanted["GPU"]) < scale.workers:
        largest = max(offered.nodes, key=lambda node: (node[1], node[0]))
        raise ValueError(
            f"{scale.workers} workers with {wanted['CPU']:g} CPU and {wanted['GPU']:g} GPU each do "
            f"not fit the nodes of this cluster, the largest of which has {largest[0]:g} CPU and "
            f"{largest[1]:g} GPU: a worker is on one node. Lower scale.cpus_per_worker or "
            "scale.gpus_per_worker."
        )
    return {kind: amount for kind, amount in wanted.items() if amount > 0}


def cpus_per_worker(scale: ScaleConfig, offered: Capacity, runs: int) -> float:
    """CPUs of each worker where some runs go on at a time.

    "auto" is one, or less where the workers would take more than four fifths of all CPUs: Ray Data
    reads beside them and needs a share that it can never be denied.
    """
    if scale.cpus_per_worker != "auto":
        return float(scale.cpus_per_worker)
    if offered.grows:
        return 1.0
    return min(1.0, 0.8 * offered.cpus / (scale.workers * runs))


def gpus_per_worker(scale: ScaleConfig, offered: Capacity) -> float:
    """GPUs of each worker.

    "auto" is one where there is one for every worker; where nodes are started on demand, one where
    any is up. Else the workers run on CPUs, and a warning says which setting asks for GPUs.
    """
    if scale.gpus_per_worker != "auto":
        return float(scale.gpus_per_worker)
    if offered.gpus >= (1 if offered.grows else scale.workers):
        return 1.0
    if offered.gpus:
        log.warning(
            "The workers run on CPUs: the cluster has %g GPUs for %d workers. Lower scale.workers, "
            "or let workers share with scale.gpus_per_worker=%.2g.",
            offered.gpus,
            scale.workers,
            offered.gpus / scale.workers,
        )
    elif offered.grows:
        log.warning(
            "The workers run on CPUs: no node with a GPU is up. scale.gpus_per_worker=1 asks for "
            "such nodes."
        )
    return 0.0


def threads_per_worker(scale: ScaleConfig, offered: Capacity, runs: int) -> int:
    """CPU threads of each worker where some runs go on at a time; at most its machine's cores.

    A worker on a GPU, or on a node that is yet to be started, is counted the same: what it then
    finds is settled where it runs.
    """
    if scale.threads_per_worker != "auto":
        return scale.threads_per_worker
    return max(1, int(offered.cpus / (scale.workers * runs)))
