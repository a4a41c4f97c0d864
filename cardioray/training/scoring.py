"""Scoring rows of shards with weights that were not kept by a finished run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cardioray.data.reading import read_rows
from cardioray.data.sampling import mean_by_owner, middle_by_owner, windows_of
from cardioray.models.runtime import FEATURES, TorchRuntime, use_bf16
from cardioray.training.plan import SCORED_SPLITS, TrainPlan, predictions_table
from cardioray.training.settings import RunConfig


def score_plan(plan: TrainPlan, weights: Mapping[str, Tensor]) -> pd.DataFrame:
    """The predictions table that a finished run with these weights would have left."""
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
        rows, pieces = [], []
        dataset = read_rows(plan.shards, plan.rows[split], task.decoder.columns)
        stored = (
            (batch.pop("row"), batch)
            for batch in dataset.iter_batches(batch_size=task.max_batch, batch_format="numpy")
        )
        for owners, arrays in windows_of(stored, task.sampler, task.max_batch, thorough=True):
            raw = runtime.run(tuple(arrays[name] for name in task.columns))
            heads = {k: torch.from_numpy(v) for k, v in raw.items() if k != FEATURES}
            scores = task.scores(heads, plan.statistics)
            rows.append(owners)
            pieces.append({name: value.numpy() for name, value in scores.items()})
        every = {n: np.concatenate([piece[n] for piece in pieces]) for n in pieces[0]}
        owners = np.concatenate(rows)
        scored, means = mean_by_owner(owners, every)
        middle = middle_by_owner(owners, every)
        tables.append(predictions_table(plan, task, split, scored, means, middle))
    return pd.concat(tables, ignore_index=True)
