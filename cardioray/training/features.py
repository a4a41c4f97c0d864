"""Features of stored frames by a frozen backbone, computed once and kept."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
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
# Frames that go through the network at a time.
_BATCH = 32


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
    weights: Mapping[str, Tensor],
    shards: ShardSet,
    rows: NDArray[np.int64],
    out: str,
    *,
    precision: str = "auto",
) -> Features:
    """Run a network over stored samples and keep the pooled features.

    They are computed by a pool of actors over the cluster, and written to `<out>/features/` under
    a name that is made of the weights, the settings of network and preprocessing, the data and the
    rows: the same call reads them, and another one never takes them for its own.

    Args:
        task: builds the network; samples are whole (`Task.sampler`).
        weights: of the network.
        shards: prepared data.
        rows: row numbers, ascending.
        out: folder or prefix that every node sees.
        precision: "auto", "bf16" or "fp32".
    """
    assert not task.sampler.cuts
    content = save_tensors({k: v.cpu().contiguous() for k, v in weights.items()})
    content_hash = hashlib.sha256(content).hexdigest()
    identity = [
        content_hash,
        config.to_dict(task.settings.model),
        config.to_dict(task.decoder),
        shards.index.dataset_hash,
        hashlib.sha256(rows.tobytes()).hexdigest(),
        precision,
    ]
    place = storage.join(out, FOLDER, f"{config.digest(identity)}.safetensors")
    if storage.exists(place):
        log.info("%s has the features of %d samples.", place, len(rows))
        return _read(place)
    kept = storage.join(out, FOLDER, f"weights-{content_hash[:16]}.safetensors")
    if not storage.exists(kept):
        storage.write_bytes(kept, content)
    found = _run(task, kept, shards, rows, precision)
    storage.write_bytes(place, save_arrays({"rows": found.rows, "features": found.values}))
    return _read(place)


def _read(place: str) -> Features:
    arrays = load_arrays(storage.read_bytes(place))
    return Features(arrays["rows"], arrays["features"])


def _run(
    task: Task, weights: str, shards: ShardSet, rows: NDArray[np.int64], precision: str
) -> Features:
    size = cluster.pool_size()
    most = max(1, min(size.actors, -(-len(rows) // _BATCH)))
    dataset = read_rows(shards, rows, task.columns).map_batches(
        _Extract,
        fn_constructor_args=(task.name, config.to_dict(task.settings), weights, precision),
        fn_constructor_kwargs={"threads": size.threads},
        batch_size=_BATCH,
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
    values = np.concatenate([np.stack(list(piece[FEATURES])) for piece in pieces])
    assert np.array_equal(numbers[order], rows)
    return Features(numbers[order], values[order].astype(np.float32))


class _Extract:
    """A network that is loaded once and turns batches of samples into features."""

    def __init__(
        self, task: str, settings: Mapping[str, Any], weights: str, precision: str, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        built = make_task(task, settings)
        model = built.build_model()
        model.load_state_dict(load_tensors(storage.read_bytes(weights)))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._columns = built.columns
        self._runtime = TorchRuntime(model, device=device, bf16=use_bf16(precision, device))

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        found = self._runtime.run(tuple(batch[name] for name in self._columns))
        return {"row": batch["row"], FEATURES: found[FEATURES]}
