"""Features of stored frames by frozen backbones, computed once and kept."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from cardioray import config, storage
from cardioray.data import cluster
from cardioray.data.reading import read_rows
from cardioray.data.shards import ShardSet
from cardioray.models.runtime import FEATURES, TorchRuntime, use_bf16
from cardioray.tasks.base import Task, make_task

log = logging.getLogger(__name__)

FOLDER = "features"
# Samples that go through a network at a time; on CPUs larger batches are no faster, and the last
# ones of actors that take turns end further apart.
_BATCH_CPU, _BATCH_GPU = 16, 64
# Networks that an actor holds.
_NETWORKS = 8


@dataclass(frozen=True, eq=False)
class Features:
    """Pooled features of some rows of a shard set.

    Attributes:
        rows: their numbers, ascending, (N,).
        values: (N, D) float32.
    """

    rows: NDArray[np.int64]
    values: NDArray[np.float32]

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Features of some of the rows, in the order asked for.

        Raises:
            KeyError: for a row that has none.
        """
        places = np.searchsorted(self.rows, rows)
        inside = np.minimum(places, len(self.rows) - 1)
        if not (self.rows[inside] == rows).all():
            missing = rows[self.rows[inside] != rows]
            raise KeyError(f"no features of row {missing[0]}")
        return self.values[inside]


def compute_features(
    task: Task,
    networks: Sequence[Mapping[str, Tensor]],
    shards: ShardSet,
    rows: NDArray[np.int64],
    out: str,
    *,
    precision: str = "auto",
) -> list[Features]:
    """Run networks over stored samples and keep the pooled features.

    They are computed by a pool of actors over the cluster, which reads each sample once for all
    networks, and written to `<out>/features/` under names that are made of the weights, the
    settings of network and preprocessing, the data and the rows: the same call reads them, and
    another one never takes them for its own.

    Args:
        task: builds the network; samples are whole (`Task.sampler`).
        networks: weights of each.
        shards: prepared data.
        rows: row numbers, ascending.
        out: folder or prefix that every node sees.
        precision: "auto", "bf16" or "fp32".

    Returns:
        The features by each network, in their order.
    """
    assert not task.sampler.cuts
    described = [
        config.to_dict(task.settings.model),
        config.to_dict(task.decoder),
        shards.index.dataset_hash,
        hashlib.sha256(rows.tobytes()).hexdigest(),
        precision,
    ]
    contents = [save_tensors({k: v.cpu().contiguous() for k, v in w.items()}) for w in networks]
    hashes = [hashlib.sha256(content).hexdigest() for content in contents]
    places = [
        storage.join(out, FOLDER, f"{config.digest([own, *described])}.safetensors")
        for own in hashes
    ]
    missing: dict[str, str] = {}
    for place, own, content in zip(places, hashes, contents, strict=True):
        if place in missing:
            continue
        if storage.exists(place):
            log.info("%s has the features of %d samples.", place, len(rows))
            continue
        missing[place] = storage.join(out, FOLDER, f"weights-{own[:16]}.safetensors")
        if not storage.exists(missing[place]):
            storage.write_bytes(missing[place], content)
    wanted = list(missing)
    for first in range(0, len(wanted), _NETWORKS):
        some = wanted[first : first + _NETWORKS]
        found = _run(task, [missing[place] for place in some], shards, rows, precision)
        for place, values in zip(some, found, strict=True):
            storage.write_bytes(place, save_arrays({"rows": rows, "features": values}))
    return [_read(place) for place in places]


def _read(place: str) -> Features:
    arrays = load_arrays(storage.read_bytes(place))
    return Features(arrays["rows"], arrays["features"])


def _run(
    task: Task, weights: Sequence[str], shards: ShardSet, rows: NDArray[np.int64], precision: str
) -> list[NDArray[np.float32]]:
    """Features of the rows by each of the networks, (N, D) each."""
    size = cluster.pool_size(whole_nodes=True)
    batch_size = _BATCH_GPU if "num_gpus" in size.resources else _BATCH_CPU
    most = max(1, min(size.actors, -(-len(rows) // batch_size)))
    dataset = read_rows(shards, rows, task.columns).map_batches(
        _Extract,
        fn_constructor_args=(task.name, config.to_dict(task.settings), list(weights), precision),
        fn_constructor_kwargs={"threads": size.threads},
        batch_size=batch_size,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(
            min_size=1 if size.grows else most,
            initial_size=most,
            max_size=most,
            max_tasks_in_flight_per_actor=2,
        ),
        **size.resources,
    )
    pieces = list(dataset.iter_batches(batch_size=None, batch_format="numpy"))
    numbers = np.concatenate([piece["row"] for piece in pieces])
    order = np.argsort(numbers)
    assert np.array_equal(numbers[order], rows)
    values = np.concatenate([np.stack(list(piece[FEATURES])) for piece in pieces])[order]
    return [np.ascontiguousarray(own, np.float32) for own in values.swapaxes(0, 1)]


class _Extract:
    """Networks that are loaded once and turn batches of samples into features."""

    def __init__(
        self,
        task: str,
        settings: Mapping[str, Any],
        weights: Sequence[str],
        precision: str,
        threads: int,
    ) -> None:
        torch.set_num_threads(threads)
        built = make_task(task, settings)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._columns = built.columns
        self._runtimes = []
        for place in weights:
            model = built.build_model()
            model.load_state_dict(load_tensors(storage.read_bytes(place)))
            bf16 = use_bf16(precision, device)
            self._runtimes.append(TorchRuntime(model, device=device, bf16=bf16))

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        samples = tuple(batch[name] for name in self._columns)
        found = [runtime.run(samples)[FEATURES] for runtime in self._runtimes]
        return {"row": batch["row"], FEATURES: np.stack(found, axis=1)}
