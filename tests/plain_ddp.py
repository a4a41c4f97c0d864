"""Two-process training as one writes it by hand: the yardstick for the losses of two workers.

Called with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; rank 0 writes the losses as JSON.
It takes the rows, their order and the task's own formulas from CardioRay; the loop is its own.
"""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import tiny_training as tiny
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from cardioray.data.ranks import rows_of_rank
from cardioray.data.shards import ShardSet, decode_part
from cardioray.machine import free_port
from cardioray.tasks.base import encode_labels
from cardioray.training.feed import epoch_order

BATCH, EPOCHS, SEED, PEAK = 8, 3, 42, 2e-3


def read_training_rows(
    shards: ShardSet, rank: int, world: int
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    samples = shards.samples
    mine = samples["row"][(tiny.tiny_split(shards) == "train").to_numpy()].to_numpy()
    wanted = rows_of_rank(mine, rank, world, equal=True, seed=SEED)
    pictures = {}
    for file in shards.files_of(wanted):
        table = pq.read_table(io.BytesIO(Path(file).read_bytes()))
        images = decode_part(table, ["image"])["image"]
        pictures |= dict(zip(table.column("row").to_pylist(), images, strict=True))
    labels = encode_labels(tiny.tiny_run().task, samples)
    positions = np.searchsorted(samples["row"].to_numpy(), wanted)
    training = {k: v[np.isin(samples["row"], mine)] for k, v in labels.items()}
    return np.stack([pictures[row] for row in wanted]), labels["ffr"][positions], training


def rate_at(share: float) -> float:
    low = PEAK / 100
    if share < 0.1:
        return low + (PEAK - low) * share / 0.1
    return low + (PEAK - low) * (1 + math.cos(math.pi * (share - 0.1) / 0.9)) / 2


def number(*seed: int) -> int:
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def losses_by_hand(shards: ShardSet, folder: Path) -> list[float]:
    """Train in two processes, as this file is called; gives the losses of all steps."""
    out = folder / "losses.json"
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, shards.path, str(out)],
            env={**os.environ, **common, "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [rank.wait() for rank in ranks] == [0, 0]
    losses: list[float] = json.loads(out.read_text())
    return losses


def main(shards_path: str, out: str) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    task = tiny.tiny_run().task
    images, labels, training = read_training_rows(ShardSet.open(shards_path), rank, world)
    statistics = task.label_statistics(training)
    torch.manual_seed(SEED)
    model = task.build_model().to(memory_format=torch.channels_last)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 1e-2},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    )
    network = DistributedDataParallel(model)
    steps, losses = len(images) // BATCH, []
    for epoch in range(EPOCHS):
        network.train()
        order = epoch_order(len(images), seed=SEED, epoch=epoch, rank=rank)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate_at((epoch * steps + step) / (EPOCHS * steps))
            chosen = order[step * BATCH : (step + 1) * BATCH]
            seed = (SEED, epoch, rank, step, 0)
            torch.manual_seed(number(*seed))
            batch = {"image": torch.from_numpy(images[chosen])}
            batch = task.augment(batch | {"ffr": torch.from_numpy(labels[chosen])}, seed)
            loss = task.loss(network(batch["image"]), batch, statistics)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            mean = loss.detach().clone()
            dist.all_reduce(mean)
            losses.append(float(mean) / world)
    if rank == 0:
        Path(out).write_text(json.dumps(losses))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
