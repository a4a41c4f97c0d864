"""What a network says of rows of shards, gathered from batches into tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cardioray.data.ranks import Rows
from cardioray.data.reading import read_rows, take_rows
from cardioray.data.sampling import mean_by_owner, middle_by_owner, windows_of
from cardioray.data.shards import ShardSet
from cardioray.models.runtime import FEATURES, TorchRuntime, use_bf16
from cardioray.tasks.base import Batch, Tables, Task
from cardioray.training.plan import SCORED_SPLITS, TrainPlan
from cardioray.training.settings import RunConfig

# Rows that were scored, by name what was measured of them, and of their middle windows.
Share = tuple[Rows, dict[str, NDArray[Any]], dict[str, NDArray[Any]]]


@dataclass
class Measured:
    """What was measured of windows, batch after batch.

    Attributes:
        cuts: whether a row is seen by several windows, which lie in order.
    """

    cuts: bool
    _rows: list[Rows] = field(default_factory=list)
    _measures: list[Mapping[str, NDArray[Any]]] = field(default_factory=list)

    def add(self, rows: Rows, measures: Mapping[str, Tensor | NDArray[Any]]) -> None:
        """Take the windows of one batch; `rows` says whose each is."""
        self._rows.append(rows)
        arrays = {
            name: value.cpu().numpy() if isinstance(value, Tensor) else value
            for name, value in measures.items()
        }
        self._measures.append(arrays)

    def share(self) -> Share:
        """Each row once, ascending."""
        if not self._rows:
            return np.empty(0, np.int64), {}, {}
        rows = np.concatenate(self._rows)
        every = {
            name: np.concatenate([each[name] for each in self._measures])
            for name in self._measures[0]
        }
        if self.cuts:
            return (*mean_by_owner(rows, every), middle_by_owner(rows, every))
        order = np.argsort(rows)
        return rows[order], {name: values[order] for name, values in every.items()}, {}


def tables_of(plan: TrainPlan, task: Task, split: str, shares: list[Share]) -> Tables:
    """The tables of one split from what each rank has scored of it."""
    filled = [share for share in shares if len(share[0])]  # a rank may have no row of a small split
    rows = np.concatenate([share[0] for share in filled])
    order = np.argsort(rows)

    def joined(parts: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        return {name: np.concatenate([p[name] for p in parts])[order] for name in parts[0]}

    measures = joined([share[1] for share in filled])
    one_window = joined([share[2] for share in filled])
    return task.tables(plan.scored(split, rows[order], measures, one_window))


def references_of(shards: ShardSet, task: Task, rows: Rows) -> dict[str, NDArray[Any]] | None:
    """The arrays that rows of a finished training are measured against, if the task has any."""
    if not task.references:
        return None
    order = np.argsort(rows)
    found = take_rows(shards, rows[order], task.references)
    back = np.argsort(order)
    return {name: values[back] for name, values in found.items()}


def score_plan(plan: TrainPlan, weights: Mapping[str, Tensor]) -> Tables:
    """The tables that a finished run with these weights would have left."""
    written = dict(plan.run)
    run = RunConfig.build(written.pop("task"), written)
    task = run.task
    model = task.build_model()
    model.load_state_dict(dict(weights))
    device = torch.device("cpu")
    runtime = TorchRuntime(model, device=device, bf16=use_bf16(run.train.precision, device))
    tables = []
    for split in SCORED_SPLITS:
        if split not in plan.rows:
            continue
        measured = Measured(task.sampler.cuts)
        dataset = read_rows(plan.shards, plan.rows[split], task.stored)
        stored = (
            (batch.pop("row"), batch)
            for batch in dataset.iter_batches(batch_size=task.max_batch, batch_format="numpy")
        )
        for owners, arrays in windows_of(stored, task.sampler, task.max_batch, thorough=True):
            known = arrays | plan.labels_of(owners)
            raw = runtime.run(task.inputs(known))
            outputs = {k: torch.from_numpy(v) for k, v in raw.items() if k != FEATURES}
            batch: Batch = {name: torch.tensor(values) for name, values in known.items()}
            references = references_of(plan.shards, task, owners)
            measured.add(owners, task.measures(outputs, batch, plan.statistics, references))
        tables.append(tables_of(plan, task, split, [measured.share()]))
    return Tables.joined(tables)
