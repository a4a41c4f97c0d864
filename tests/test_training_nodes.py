"""Training on a cluster of three nodes: where the work is done, and a node that is lost."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
import tiny_training as tiny
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


@pytest.fixture(scope="module")
def uninterrupted(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("whole")
    return train(tiny.tiny_run(*SPREAD), shards, tiny.tiny_split(shards), str(folder), name="run")


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


def test_workers_on_two_nodes_reading_on_the_third(
    three_nodes: Cluster, uninterrupted: Outcome
) -> None:
    [nodes] = worker_nodes()
    head = three_nodes.head_node.node_id
    assert len(set(nodes)) == 2
    assert head not in nodes
    tasks = list_tasks(detail=True, limit=1000, raise_on_missing_output=False)
    reading = {t["node_id"] for t in tasks if "_ReadPart" in t["name"] and t["node_id"]}
    assert reading == {head}
    assert len(uninterrupted.predictions()) == 24


def test_a_lost_node_is_replaced_and_the_run_goes_on(
    three_nodes: Cluster, shards: ShardSet, uninterrupted: Outcome, tmp_path: Path
) -> None:
    interruption = tiny.Interruption(tmp_path / "run", 1, kill=False)
    lost = three_nodes.list_all_nodes()[1]
    arguments = (tiny.tiny_run(*SPREAD), shards, tiny.tiny_split(shards), str(tmp_path))
    # Nodes are started from the main thread: Ray sets signal handlers there.
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(train, *arguments, name="run", progress=interruption)  # type: ignore[arg-type]
        tiny.wait_for(interruption.happened.exists)
        three_nodes.remove_node(lost, allow_graceful=False)
        three_nodes.add_node(**TRAINING_NODE)
        found = future.result()
    assert any(lost.node_id in nodes for nodes in worker_nodes())
    assert any(lost.node_id not in nodes for nodes in worker_nodes())
    assert min(interruption.epochs_told_after()) > 1
    same = {"rtol": 0, "atol": 1e-6}
    pd.testing.assert_frame_equal(found.log(), uninterrupted.log(), **same)
    pd.testing.assert_frame_equal(found.predictions(), uninterrupted.predictions(), **same)
    np.testing.assert_array_equal(found.log()["epoch"], [1, 2, 3])
