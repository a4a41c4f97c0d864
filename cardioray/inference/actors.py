"""A pool of actors on the cluster, each with a bundle's network, that files are spread over."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import ray
import torch

from cardioray.bundle import open_bundle
from cardioray.data import cluster
from cardioray.data.decoding import DecodedSample, Decoder
from cardioray.data.frames import LOST_FILES
from cardioray.data.isolation import IsolatedDecoder, IsolationConfig
from cardioray.data.nifti import read_source
from cardioray.studies import open_predictor

RuntimeName = Literal["auto", "openvino", "torch"]
Precision = Literal["auto", "bf16", "fp32"]

# Wider actors on larger nodes: fewer copies of the network, and no more threads a forward pass
# than it uses well.
THREADS_PER_ACTOR = 4
# Files that are decoded and go through the network together.
FILES_PER_BATCH = 32
# Actors stay below the CPUs of their node, so that whatever else a cluster runs is never starved.
CPU_SHARE = 0.8


@dataclass(frozen=True)
class Loading:
    """How every actor of a pool loads its network.

    Attributes:
        bundle: local directory or s3:// prefix that every node can read.
        runtime: as in `Predictor`.
        precision: as in `Predictor`.
    """

    bundle: str
    runtime: RuntimeName
    precision: Precision


@dataclass(frozen=True)
class SourceFile:
    """A file to decode.

    Attributes:
        path: local path or s3:// address.
        frames: which of its frames, as a manifest says it; "" for the task's default.
        view: the view it shows, where a manifest says it; "" elsewhere.
        split: its split, as a manifest says it; "" elsewhere.
    """

    path: str
    frames: str = ""
    view: str = ""
    split: str = ""


class PredictorActor:
    """Base of the actors: a network that is loaded once, and threads that decode for it."""

    def __init__(self, loading: Loading, threads: int) -> None:
        torch.set_num_threads(threads)
        # The copy of a bundle from a bucket; goes when the actor goes.
        self._scratch = tempfile.TemporaryDirectory(prefix="cardioray-actor-")
        bundle = open_bundle(loading.bundle, Path(self._scratch.name))
        self.predictor = open_predictor(
            bundle, runtime=loading.runtime, precision=loading.precision, num_threads=threads
        )
        self._pool = ThreadPoolExecutor(max_workers=threads)
        decoder = self.predictor.task.decoder
        self._decoder: Decoder | IsolatedDecoder = decoder
        if decoder.risky:
            # Its processes end when they lose their owner.
            self._decoder = IsolatedDecoder(decoder, IsolationConfig(), processes=threads)

    def decode(self, files: Sequence[SourceFile]) -> list[list[DecodedSample] | str]:
        """For each file its samples, or the reason why it cannot be read."""
        return list(self._pool.map(self._decode_file, files))

    def _decode_file(self, file: SourceFile) -> list[DecodedSample] | str:
        try:
            data = read_source(file.path)
            samples = self._decoder.decode(data, file.frames or None)
        except LOST_FILES as error:
            return str(error)
        return [replace(sample.without_picture(), view=file.view) for sample in samples]


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


def pool_size() -> PoolSize:
    """The pool that fits the connected cluster: one actor a GPU, else actors on all CPUs."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    grows = cluster.capacity().grows
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus:
        threads = min(max(1, sum(cpus) // gpus), 2 * THREADS_PER_ACTOR)
        return PoolSize(gpus, grows, threads, resources={"num_gpus": 1})
    # Nodes that are started on demand are no small ones.
    smallest = min(cpus, default=THREADS_PER_ACTOR if grows else 1)
    threads = THREADS_PER_ACTOR if smallest >= THREADS_PER_ACTOR else 1
    actors = sum(count // threads for count in cpus)
    return PoolSize(max(1, actors), grows, threads, resources={"num_cpus": CPU_SHARE * threads})


def run_on_actors(
    actor: type[PredictorActor], loading: Loading, chunks: Sequence[str], *args: Any
) -> Iterator[str]:
    """Hand texts to a pool of actors and yield what they return, in the order they finish.

    Args:
        actor: its `__call__` takes {"chunk": text} and returns {"result": text}.
        loading: how each loads its network.
        chunks: one call each.
        args: further arguments of the actor's constructor.
    """
    size = pool_size()
    items = [{"chunk": chunk} for chunk in chunks]
    now = min(size.actors, len(items))
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
        actor,
        fn_constructor_args=(loading, size.threads, *args),
        compute=ray.data.ActorPoolStrategy(
            min_size=1 if size.grows else now,
            initial_size=now,
            max_size=len(items) if size.grows else now,
            max_tasks_in_flight_per_actor=2,
        ),
        **size.resources,
    )
    dataset.context.enable_progress_bars = False
    for row in dataset.iter_rows():
        yield str(row["result"])
