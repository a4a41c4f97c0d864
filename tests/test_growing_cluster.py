"""A cluster whose head takes no work and whose nodes come when they are asked for."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
import tiny_training as tiny
from ray.cluster_utils import Cluster
from ray_cluster import several_nodes

from cardioray.data.cluster import (
    THREADS_PER_ACTOR,
    Capacity,
    capacity,
    pool_size,
    require_shared,
)
from cardioray.inference.actors import Loading, run_on_actors
from cardioray.training.resources import gpus_per_worker, worker_resources
from cardioray.training.settings import RunConfig, ScaleConfig
from cardioray.tuning.compare import fit_cluster
from cardioray.tuning.settings import CompareConfig, select_backbones

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def only_head() -> Iterator[Cluster]:
    with several_nodes([{"num_cpus": 0, "num_gpus": 0}]) as cluster:
        yield cluster


def test_a_head_without_cpus_is_a_cluster_that_grows(only_head: Cluster) -> None:
    assert capacity() == Capacity(cpus=0.0, gpus=0.0, grows=True, nodes=((0.0, 0.0),))


def test_a_local_folder_is_refused_before_the_first_node_is_there(only_head: Cluster) -> None:
    with pytest.raises(ValueError, match="starts nodes on demand.*--shared-storage"):
        require_shared("/runs", False)
    require_shared("/runs", True)
    require_shared("s3://bucket/runs", False)


def test_workers_may_ask_for_what_is_not_up_yet(
    only_head: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    asked = ScaleConfig(workers=4, gpus_per_worker=1, cpus_per_worker=3)
    assert worker_resources(asked) == {"CPU": 3.0, "GPU": 1.0}
    assert "4 workers with 1 GPU each wait for nodes" in caplog.text
    assert worker_resources(ScaleConfig()) == {"CPU": 1.0}
    assert "scale.gpus_per_worker=1 asks for such nodes" in caplog.text


def test_trials_may_ask_for_what_is_not_up_yet(only_head: Cluster) -> None:
    run = tiny.tiny_run("scale.gpus_per_worker=1")
    settings = CompareConfig(backbones=("vgg16", "vgg19"), folds=3)
    fitted, concurrent = fit_cluster(run, settings)
    assert concurrent == 6
    assert (fitted.scale.cpus_per_worker, fitted.scale.gpus_per_worker) == (1.0, 1.0)
    few = CompareConfig(backbones=("vgg16", "vgg19"), folds=3, max_concurrent=2)
    assert fit_cluster(run, few)[1] == 2


def nodes(*each: tuple[float, float]) -> Capacity:
    """A cluster of nodes with so many CPUs and GPUs."""
    cpus, gpus = (float(sum(kind)) for kind in zip(*each, strict=True))
    return Capacity(cpus=cpus, gpus=gpus, grows=False, nodes=each)


@pytest.mark.parametrize(
    ("offered", "scale", "trials"),
    [
        (nodes((2, 0)), (), 2),
        (nodes((4, 0)), ("scale.workers=2",), 2),
        (nodes((2, 0)), ("scale.cpus_per_worker=1",), 1),  # Ray Data has to read beside them
        (nodes((64, 8)), (), 8),
        (nodes((32, 4), (32, 4)), ("scale.workers=2", "scale.gpus_per_worker=1"), 4),
        (nodes((32, 4), (32, 4)), ("scale.workers=3", "scale.gpus_per_worker=1"), 2),
        (nodes((32, 4), (32, 4)), ("scale.gpus_per_worker=0.5",), 16),
        (nodes((32, 1), (32, 1)), ("scale.gpus_per_worker=0.4",), 4),  # 0.2 of each is left
        (nodes((64, 8)), ("scale.gpus_per_worker=0.25",), 20),  # there are no more trials
        (nodes((8, 8)), ("scale.cpus_per_worker=2",), 3),
    ],
)
def test_as_many_trials_run_as_fit(
    offered: Capacity,
    scale: tuple[str, ...],
    trials: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cardioray.data.cluster.capacity", lambda: offered)
    run = RunConfig.build("ffr", {}, scale)
    ten = select_backbones("all", run.task)
    fitted, concurrent = fit_cluster(run, CompareConfig(backbones=ten, folds=2))
    assert concurrent == trials
    cpus, gpus = float(fitted.scale.cpus_per_worker), float(fitted.scale.gpus_per_worker)
    workers = concurrent * fitted.scale.workers
    assert offered.places(cpus, gpus) >= workers
    assert cpus * workers <= 0.9 * offered.cpus


class Echo:
    """In the place of an actor with a network."""

    def __init__(self, loading: Loading, threads: int) -> None:
        self.threads = threads

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        return {"result": f"{row['chunk']} {self.threads}"}


def test_a_pool_of_actors_waits_for_nodes_and_uses_them(only_head: Cluster) -> None:
    assert pool_size().grows
    loading = Loading("bundle", "auto", "auto")
    chunks = [str(number) for number in range(4)]
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(lambda: sorted(run_on_actors(Echo, loading, chunks)))
        node = only_head.add_node(num_cpus=2 * THREADS_PER_ACTOR)
        try:
            assert answers.result(120) == [f"{chunk} {THREADS_PER_ACTOR}" for chunk in chunks]
            found = capacity()
            assert (found.cpus, found.gpus, found.grows) == (
                2.0 * THREADS_PER_ACTOR,
                0.0,
                True,
            )
            assert sorted(found.nodes) == [(0.0, 0.0), (2.0 * THREADS_PER_ACTOR, 0.0)]
            assert pool_size().actors == 2
        finally:
            only_head.remove_node(node)


@pytest.mark.parametrize(
    ("workers", "gpus", "grows", "given", "warning"),
    [
        (1, 0, False, 0.0, ""),
        (2, 2, False, 1.0, ""),
        (1, 4, False, 1.0, ""),
        (4, 2, False, 0.0, "scale.gpus_per_worker=0.5"),
        (4, 2, True, 1.0, ""),
        (4, 0, True, 0.0, "no node with a GPU is up"),
    ],
)
def test_auto_takes_gpus_where_there_is_one_for_every_worker(
    workers: int,
    gpus: float,
    grows: bool,
    given: float,
    warning: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    offered = Capacity(cpus=8.0, gpus=gpus, grows=grows, nodes=((8.0, gpus),))
    with caplog.at_level(logging.WARNING):
        assert gpus_per_worker(ScaleConfig(workers=workers), offered) == given
    assert warning in caplog.text
    assert bool(caplog.records) == bool(warning)


# Workers do not find the tests' folder; what they get from here travels whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
