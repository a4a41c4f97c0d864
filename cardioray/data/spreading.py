"""Ray Data: a function of an index, spread over the cluster."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from cardioray.data import cluster

# Items a task works through: starting one costs some milliseconds.
_ITEMS_PER_TASK = 4


def spread(
    work: Callable[[int], Any],
    count: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Any]:
    """Results of work(0), ..., work(count - 1), in that order.

    Args:
        work: a picklable function whose result JSON can hold.
        count: number of items.
        on_progress: called with the number of finished items and `count`.
    """
    cluster.connect()
    items = [{"index": index} for index in range(count)]
    blocks = max(1, -(-count // _ITEMS_PER_TASK))
    dataset = ray.data.from_items(items, override_num_blocks=blocks).map(_Call(work), num_cpus=1)
    dataset.context.enable_progress_bars = False
    results: dict[int, Any] = {}
    for row in dataset.iter_rows():
        results[int(row["index"])] = json.loads(row["result"])
        if on_progress is not None:
            on_progress(len(results), count)
    return [results[index] for index in range(count)]


@dataclass(frozen=True)
class _Call:
    """Calls the function for one item."""

    work: Callable[[int], Any]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        index = int(row["index"])
        return {"index": index, "result": json.dumps(self.work(index))}
