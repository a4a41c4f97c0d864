"""Two-process training as one writes it by hand with PyTorch: the peer of `benchmarks.training`.

Started by torchrun. The network, the augmentation and the loss are CardioRay's, the loop and the
loading are DistributedDataParallel, DistributedSampler and DataLoader.

    torchrun --nproc_per_node 2 -m benchmarks.plain_ddp SETTINGS.json
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from cardioray.tasks.base import Batch, LabelStatistics, Task
from cardioray.training.settings import RunConfig


@dataclass(frozen=True, kw_only=True)
class PlainSettings:
    """What the parent hands to the script.

    Attributes:
        run: written form of the run that Ray trains.
        arrays: .npz with `images` (N, H, W, C) uint8 and `labels` (N,), or None.
        files: picture files in the same order, decoded anew every epoch; used without `arrays`.
        loader_workers: DataLoader processes of each rank.
        bf16: autocast.
        statistics: of the labels, for the loss.
        out: where rank 0 writes seconds and images of every epoch, as JSON.
    """

    run: dict[str, Any]
    arrays: str | None
    files: list[str]
    labels: list[float]
    loader_workers: int
    bf16: bool
    statistics: dict[str, Any]
    out: str

    def write(self, file: Path) -> None:
        """Save for the script."""
        file.write_text(json.dumps(asdict(self)))


class _InMemory(Dataset[tuple[Tensor, Tensor]], Sized):
    def __init__(self, file: str, labels: list[float]) -> None:
        self.images = torch.from_numpy(np.load(file)["images"])
        self.labels = torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


class _Files(Dataset[tuple[Tensor, Tensor]], Sized):
    def __init__(self, task: Task, files: list[str], labels: list[float]) -> None:
        self.task, self.files, self.labels = task, files, torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        [sample] = self.task.decoder.decode(Path(self.files[index]).read_bytes(), None)
        return torch.from_numpy(sample.arrays["image"]), self.labels[index]


def main(settings_file: str) -> None:
    started = time.perf_counter()
    settings = PlainSettings(**json.loads(Path(settings_file).read_text()))
    written = dict(settings.run)
    run = RunConfig.build(written.pop("task"), written)
    task, train = run.task, run.train
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", dist.get_rank()) if cuda else torch.device("cpu")
    if not cuda:
        torch.set_num_threads(1)
    torch.manual_seed(train.seed)
    data = (
        _InMemory(settings.arrays, settings.labels)
        if settings.arrays
        else _Files(task, settings.files, settings.labels)
    )
    sampler: DistributedSampler[Any] = DistributedSampler(data, drop_last=True)
    loader = DataLoader(
        data,
        batch_size=train.batch_size,
        sampler=sampler,
        drop_last=True,
        num_workers=settings.loader_workers,
        persistent_workers=settings.loader_workers > 0,
        pin_memory=cuda,
    )
    model = task.build_model().to(device).to(memory_format=torch.channels_last)
    network = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2, fused=True)
    [target] = task.targets
    statistics = LabelStatistics(**settings.statistics)
    epochs = []
    for epoch in range(sum(stage.epochs for stage in train.resolved_stages(False))):
        sampler.set_epoch(epoch)
        network.train()
        begun = time.perf_counter()
        for step, (images, labels) in enumerate(loader):
            batch: Batch = {
                "image": images.to(device, non_blocking=True),
                target.name: labels.to(device, non_blocking=True),
            }
            batch = task.augment(batch, (train.seed, epoch, dist.get_rank(), step))
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16):
                outputs = network(batch["image"])
            loss = task.loss({k: v.float() for k, v in outputs.items()}, batch, statistics)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
        loss.item()  # waits for a GPU
        images_seen = len(loader) * train.batch_size * dist.get_world_size()
        epochs.append({"seconds": time.perf_counter() - begun, "images": images_seen})
    if dist.get_rank() == 0:
        total = time.perf_counter() - started
        Path(settings.out).write_text(json.dumps({"epochs": epochs, "total_seconds": total}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
