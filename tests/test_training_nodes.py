"""Training on a cluster of three nodes: where the work is done, and a node that is lost."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
import tiny_training as tiny
import torch
from plain_ddp import losses_by_hand
from ray.cluster_utils import Cluster
from ray.util.state import list_tasks
from ray_cluster import several_nodes

from cardioray.data.pipeline import PrepareConfig, prepare
from cardioray.data.shards import ShardSet
from cardioray.training.outcome import Outcome
from cardioray.training.run import train

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Two nodes for training, whose CPUs the workers fill; only the head has a CPU left to decode.
TRAINING_NODE = {"num_cpus": 1, "num_gpus": 1}
SPREAD = (
    "scale.workers=2",
    "scale.cpus_per_worker=1",
    "scale.gpus_per_worker=1",
    "scale.backend=gloo",
    "scale.spread=true",
    "scale.shared_storage=true",
)


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[Cluster]:
    with several_nodes([{"num_cpus": 1}, TRAINING_NODE, TRAINING_NODE]) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shards(three_nodes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return tiny.tiny_shards(tmp_path_factory.mktemp("tiny"), shared_storage=True)


@dataclass(frozen=True)
class Lost:
    """A run whose second epoch lost one of the two nodes it was on, and got another one."""

    node: str
    told_after: list[float]
    outcome: Outcome


@pytest.fixture(scope="module")
def lost(three_nodes: Cluster, shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Lost:
    out = tmp_path_factory.mktemp("runs")
    interruption = tiny.Interruption(out / "run", 1, kill=False)
    node = three_nodes.list_all_nodes()[1]
    arguments = (tiny.tiny_run(*SPREAD), shards, tiny.tiny_split(shards), str(out))
    # Nodes are started from the main thread: Ray sets signal handlers there.
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(train, *arguments, name="run", progress=interruption)  # type: ignore[arg-type]
        tiny.wait_for(interruption.happened.exists)
        three_nodes.remove_node(node, allow_graceful=False)
        three_nodes.add_node(**TRAINING_NODE)
        outcome = future.result()
    return Lost(node.node_id, interruption.epochs_told_after(), outcome)


def worker_nodes() -> list[list[str]]:
    """Nodes of the workers of every group that was placed."""
    groups = ray.util.placement_group_table().values()
    return [list(g["bundles_to_node_id"].values()) for g in groups if "GPU" in g["bundles"][0]]


def test_a_folder_of_one_machine_is_refused(three_nodes: Cluster, tmp_path: Path) -> None:
    task = tiny.tiny_run().task
    manifest = task.read_manifest(str(tiny.write_pictures(tmp_path / "pictures", 2)), None)
    why = "folder of one machine, but this cluster has 3 nodes.*--shared-storage"
    with pytest.raises(ValueError, match=why):
        prepare(task, manifest, str(tmp_path / "shards"), PrepareConfig())


def test_workers_on_two_nodes_reading_on_the_third(three_nodes: Cluster, lost: Lost) -> None:
    head = three_nodes.head_node.node_id
    before, after = sorted(worker_nodes(), key=lambda nodes: lost.node not in nodes)
    assert lost.node in before
    assert lost.node not in after
    for nodes in (before, after):
        assert len(set(nodes)) == 2
        assert head not in nodes
    tasks = list_tasks(detail=True, limit=1000, raise_on_missing_output=False)
    reading = {t["node_id"] for t in tasks if "_ReadPart" in t["name"] and t["node_id"]}
    assert reading == {head}


def test_nothing_is_lost_with_a_node(lost: Lost, shards: ShardSet, tmp_path: Path) -> None:
    assert min(lost.told_after) > 1
    log = lost.outcome.log()
    np.testing.assert_array_equal(log["epoch"], [1, 2, 3])
    losses = pd.read_csv(Path(lost.outcome.folder) / "losses.csv")["train_loss"]
    np.testing.assert_allclose(losses, losses_by_hand(shards, tmp_path), atol=1e-5, rtol=0)
    np.testing.assert_allclose(log["train_loss"], losses.to_numpy().reshape(3, -1).mean(axis=1))
    assert len(lost.outcome.predictions()) == 24
    # The nodes' GPUs are made up, and no run says it was trained on what it was not.
    on_cpu = [note for note in lost.outcome.notes if "PyTorch found none there" in note]
    assert len(on_cpu) == (not torch.cuda.is_available())
