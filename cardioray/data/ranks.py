"""Which rows a training rank has, and its own Ray Data pipeline over them.

Ray Train's controller and its dataset actor load this module and nothing of the networks: their
start-up is paid by every trial of a comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray.train
from numpy.typing import NDArray
from ray.data import DataIterator, Dataset, ExecutionOptions

from cardioray.data.reading import read_rows
from cardioray.data.shards import ShardSet

Rows = NDArray[np.int64]


def rows_of_rank(rows: Rows, rank: int, world_size: int, *, equal: bool, seed: int) -> Rows:
    """The rows one rank reads, ascending.

    In training every rank has equally many rows (`equal`), so that all take the same number of
    steps; which few rows are left over then is drawn from the seed. Elsewhere every row is read by
    exactly one rank.
    """
    if equal:
        mixed = np.random.default_rng(seed).permutation(rows)
        share = len(rows) // world_size
        return np.sort(mixed[rank * share : (rank + 1) * share])
    return np.array_split(np.sort(rows), world_size)[rank]


class RankedRows(ray.train.DataConfig):
    """Gives every rank its own pipeline over its own rows.

    Ray's default splits one stream by the speed of its consumers: which rank gets which row then
    differs from run to run, and a rank that waits holds up the others.
    """

    def __init__(
        self, shards: ShardSet, rows: Mapping[str, Rows], columns: Sequence[str], seed: int
    ):
        super().__init__()
        self._shards = shards
        self._rows = dict(rows)
        self._columns = tuple(columns)
        self._seed = seed

    def configure(
        self,
        datasets: dict[str, Dataset],
        world_size: int,
        worker_handles: Any = None,
        worker_node_ids: Any = None,
        **kwargs: Any,
    ) -> list[dict[str, DataIterator]]:
        """One iterator a rank for each named dataset; empty ranks are left out."""
        shares: list[dict[str, DataIterator]] = [{} for _ in range(world_size)]
        for name in datasets:
            for rank in range(world_size):
                rows = self.rows(name, rank, world_size)
                # A rank without rows of its own never iterates; it still needs an iterator.
                dataset = read_rows(
                    self._shards, rows if len(rows) else self._rows[name][:1], self._columns
                )
                dataset.context.execution_options = ExecutionOptions(preserve_order=True)
                shares[rank][name] = dataset.iterator()
        return shares

    def rows(self, name: str, rank: int, world_size: int) -> Rows:
        """The rows of one rank of one named dataset."""
        return rows_of_rank(
            self._rows[name], rank, world_size, equal=name == "train", seed=self._seed
        )
