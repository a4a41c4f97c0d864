"""The training loop: one for every task, on one worker or many."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cardioray.data.ranks import RankedRows
from cardioray.machine import usable_cores
from cardioray.models.runtime import fast_layout, use_bf16
from cardioray.scratch import process_folder
from cardioray.tasks.base import STANDING, Batch, Monitor, Tables
from cardioray.training.feed import RowFeed, epoch_order
from cardioray.training.logs import RunLogs
from cardioray.training.outcome import write_outcome
from cardioray.training.plan import SCORED_SPLITS, TrainPlan
from cardioray.training.progress import DONE, RUNNING
from cardioray.training.schedule import note_plateau, scheduled_rate
from cardioray.training.scoring import Measured, references_of, tables_of
from cardioray.training.settings import RunConfig, StageConfig
from cardioray.training.state import Progress, TrainState, read_progress

_NO_GPU = (
    "Ray gave the workers GPUs, and PyTorch found none there: trained on CPUs. Install a PyTorch "
    "with CUDA on those machines, or start Ray on them with the GPUs they have."
)


def train_worker(plan: TrainPlan) -> None:
    """What each Ray Train worker runs.

    Rank 0 leaves the best weights, the log and the predictions of every scored split in the run's
    folder.
    """
    context = ray.train.get_context()
    _Trainer(plan, context.get_world_rank(), context.get_world_size()).run()


class _Trainer:
    """The state of one rank."""

    def __init__(self, plan: TrainPlan, rank: int, world_size: int) -> None:
        self.plan = plan
        self.rank = rank
        self.world_size = world_size
        written = dict(plan.run)
        self.config = RunConfig.build(written.pop("task"), written)
        self.task = self.config.task
        self.settings = self.config.train
        self.device = _device()
        torch.set_num_threads(min(plan.threads, usable_cores()))
        self.feeds = self._make_feeds()
        self.bf16 = use_bf16(self.settings.precision, self.device)
        torch.manual_seed(self.settings.seed)
        self.model = self._new_model()
        self.state: TrainState | None = None
        self.logs: RunLogs | None = None
        self._told_at = 0.0

    def _make_feeds(self) -> dict[str, RowFeed]:
        """A feed for each split; the smallest ones are kept in memory, as far as it goes."""
        plan, settings = self.plan, self.settings
        columns = self.task.stored
        split = RankedRows(plan.shards, plan.rows, columns, settings.seed)
        rows = {name: split.rows(name, self.rank, self.world_size) for name in plan.rows}
        num_samples = plan.shards.index.num_samples
        free = settings.cache_gb * 1e9
        feeds = {}
        for name in sorted(rows, key=lambda name: len(rows[name])):
            size = plan.shards.index.array_bytes * len(rows[name]) / num_samples
            cached = size <= free
            free -= size if cached else 0
            feeds[name] = RowFeed(
                shards=plan.shards,
                columns=columns,
                iterator=ray.train.get_dataset_shard(name),
                rows=rows[name],
                labels=plan.labels_of(rows[name]),
                cached=cached,
                device=self.device,
                sampler=self.task.sampler,
            )
        return feeds

    def _new_model(self) -> nn.Module:
        model = self.task.build_model()
        self.task.initialise(model, self.plan.statistics)
        if self.plan.weights is not None:
            self.task.load_starting_weights(model, self.plan.weights)
        if self.settings.channels_last:
            model = fast_layout(model)
        return model.to(self.device)

    def run(self) -> None:
        progress = Progress()
        checkpoint = ray.train.get_checkpoint()
        with checkpoint.as_directory() if checkpoint else contextlib.nullcontext() as folder:
            if folder:
                progress = read_progress(Path(folder))
            if self.rank == 0:
                plan = self.plan
                if ray.train.torch.get_device().type == "cuda" and self.device.type == "cpu":
                    # The driver says it: what a worker logs stays on its node.
                    progress.notes = [*dict.fromkeys([*progress.notes, _NO_GPU])]
                self.logs = RunLogs.open(plan.folder, plan.label, plan.run, progress, plan.tracking)
            while progress.stage < len(self.plan.stages):
                self._run_stage(progress, Path(folder) if folder else None)
                folder = None
                progress.stage += 1
                progress.stage_epoch = 0
                progress.stage_best, progress.waited, progress.plateau = None, 0, {}
        assert self.state is not None
        scored = [self.score(self.model, name) for name in SCORED_SPLITS if name in self.feeds]
        if self.logs is not None:
            self.logs.close()
            self._tell({"status": DONE})
            tables = Tables.joined(scored)
            write_outcome(self.plan.folder, self.state.best_weights, progress, tables)

    def _run_stage(self, progress: Progress, folder: Path | None) -> None:
        stage = self.plan.stages[progress.stage]
        self.task.freeze(self.model, stage.frozen)
        averaged = self._averaged()
        optimizer = self._optimizer(stage)
        best = self.state.best_weights if self.state else _copied(self.model)
        state = TrainState(progress, self.model, averaged, best, optimizer)
        if folder is not None:
            state.load_tensors(folder)
        self.state = state
        network = self._distributed()
        while not self._ended(stage, progress):
            self._run_epoch(stage, network)
        # The next stage, and the final scores, start from the best weights, not from the last ones.
        self.model.load_state_dict(state.best_weights)

    def _ended(self, stage: StageConfig, progress: Progress) -> bool:
        """Whether a stage is over: by its epochs, its patience, or a loss that is no number."""
        if not progress.stage_epoch:
            return False
        if not math.isfinite(progress.log[-1]["train_loss"]):
            self._note_diverged(stage, progress)
            return True
        if stage.patience is not None and progress.waited >= stage.patience:
            return True
        return progress.stage_epoch >= stage.epochs

    def _note_diverged(self, stage: StageConfig, progress: Progress) -> None:
        advice = "Lower the learning rate, or train with train.precision=fp32."
        if progress.best is None:
            raise ValueError(
                f"{self.plan.label}: the training loss was no number in the first epoch. {advice}"
            )
        progress.notes.append(
            f"The training loss was no number any more in epoch {progress.epoch} of stage "
            f"{stage.name}, which ended with the weights of epoch {progress.best_epoch}. {advice}"
        )

    def _averaged(self) -> AveragedModel | None:
        decay = self.settings.optimizer.ema_decay
        if decay is None:
            return None
        average = get_ema_multi_avg_fn(decay)
        return AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)

    def _optimizer(self, stage: StageConfig) -> torch.optim.Optimizer:
        settings = self.settings.optimizer
        learning = [p for p in self.model.parameters() if p.requires_grad]
        # Norms and biases are not decayed: shrinking them changes the function, not its complexity.
        groups = [
            {"params": [p for p in learning if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
        ]
        if settings.kind == "sgd":
            return torch.optim.SGD(groups, lr=stage.learning_rate, momentum=0.9)
        return torch.optim.AdamW(groups, lr=stage.learning_rate, fused=True)

    def _distributed(self) -> nn.Module:
        model: nn.Module = self.model
        if self.settings.compile:
            model = torch.compile(model)  # type: ignore[assignment]
        if self.world_size == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        # Batch norm's statistics steer nothing while it trains: they meet after each epoch.
        return DistributedDataParallel(
            model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    # One epoch

    def _run_epoch(self, stage: StageConfig, network: nn.Module) -> None:
        assert self.state is not None
        progress = self.state.progress
        started = time.perf_counter()
        self._train_mode(network, stage)
        losses, rate, waited = self._steps(stage, network)
        trained = time.perf_counter() - started
        self._share_buffers()
        if not _finite(self._kept_model()):
            # The last step may spoil the weights while every loss before it was a number.
            losses[-1] = math.nan
        diverged = not math.isfinite(np.mean(losses))
        figures = {"val_loss": math.nan, self.task.monitor.name: math.nan}
        if not diverged:
            tables = self.score(self._kept_model(), "validation", thorough=False)
            figures = self.task.validation_figures(tables)
        progress.epoch += 1
        progress.stage_epoch += 1
        progress.losses.extend(losses)
        row = {
            "epoch": progress.epoch,
            "stage": stage.name,
            "step": progress.step,
            "learning_rate": rate,
            "train_loss": float(np.mean(losses)),
            **figures,
        }
        progress.log.append(row)
        if not diverged:
            self._note_best(stage, figures)
        seen = len(losses) * self.settings.optimizer.accumulate
        images = seen * self.settings.batch_size * self.world_size
        speed = {
            "images_per_second": images / trained,
            "data_wait_share": waited / trained,
            "epoch_seconds": time.perf_counter() - started,
        }
        self._tell(
            {
                "images_per_second": speed["images_per_second"],
                "best": progress.best,
                "figure": self.task.monitor.name,
            }
        )
        if self.logs is not None:
            self.logs.write_epoch(progress, speed)
        standing = self.task.monitor.standing(figures)
        self._report(row | speed | {STANDING: standing})

    def _steps(self, stage: StageConfig, network: nn.Module) -> tuple[list[float], float, float]:
        """Train on every row once; gives the step losses, the last rate, and seconds waited."""
        assert self.state is not None
        progress, optimizer = self.state.progress, self.state.optimizer
        accumulate = self.settings.optimizer.accumulate
        num_batches = len(self.feeds["train"]) // self.settings.batch_size
        num_steps = num_batches // accumulate
        assert num_steps > 0, "the driver checks that every worker fills a step"
        batches = self._train_batches(progress.epoch)
        losses: list[Tensor] = []
        rate, waited = 0.0, 0.0
        for step in range(num_steps):
            rate = self._set_rate(stage, progress, num_steps, step)
            total = torch.zeros((), device=self.device)
            for part in range(accumulate):
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                seed = (self.settings.seed, progress.epoch, self.rank, step, part)
                last = part == accumulate - 1
                total += self._backward(network, batch, seed, last) / accumulate
            self._step_optimizer(optimizer)
            progress.step += 1
            losses.append(total)
            self._tell_progress(stage, progress, step + 1, num_steps)
        stacked = torch.stack(losses)
        if self.world_size > 1:
            dist.all_reduce(stacked)
            stacked /= self.world_size
        return stacked.tolist(), rate, waited

    def _train_batches(self, epoch: int) -> Iterator[Batch]:
        feed, settings = self.feeds["train"], self.settings
        order = epoch_order(len(feed), seed=settings.seed, epoch=epoch, rank=self.rank)
        shuffle_seed = int(np.random.SeedSequence((settings.seed, epoch)).generate_state(1)[0])
        batches = feed.batches(
            settings.batch_size, order=order, buffer=settings.shuffle_buffer, seed=shuffle_seed
        )
        return (batch for _, batch in batches)

    def _backward(
        self, network: nn.Module, batch: Batch, seed: tuple[int, ...], last: bool
    ) -> Tensor:
        # Dropout draws from the global generator: set per step, a resumed run draws the same.
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        batch = self.task.augment(batch, seed)
        quiet: AbstractContextManager[None] = contextlib.nullcontext()
        if isinstance(network, DistributedDataParallel) and not last:
            quiet = network.no_sync()
        with quiet:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                outputs = network(*self.task.inputs(batch))
            outputs = {name: value.float() for name, value in outputs.items()}
            loss = self.task.loss(outputs, batch, self.plan.statistics)
            (loss / self.settings.optimizer.accumulate).backward()
        return loss.detach()

    def _step_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        assert self.state is not None
        clip = self.settings.optimizer.gradient_clip
        if clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if isinstance(self.state.averaged, AveragedModel):
            self.state.averaged.update_parameters(self.model)

    def _share_buffers(self) -> None:
        """Give every rank the mean of all ranks' batch norm statistics.

        Each rank has seen its own share of the pictures. Without it, each would validate another
        network, and none but rank 0 the one that is kept.
        """
        assert self.state is not None
        if self.world_size == 1:
            return
        modules = [m for m in (self.model, self.state.averaged) if m is not None]
        buffers = [b for m in modules for b in m.buffers() if b.is_floating_point()]
        if not buffers:
            return
        flat = torch.cat([buffer.flatten() for buffer in buffers])
        dist.all_reduce(flat)
        flat /= self.world_size
        for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))

    def _train_mode(self, network: nn.Module, stage: StageConfig) -> None:
        network.train()
        for module in self.model.modules():
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):
                continue
            parameters = list(module.parameters(recurse=False))
            frozen = bool(parameters) and not any(p.requires_grad for p in parameters)
            if frozen:
                module.eval()
        if stage.freeze_batch_norm:
            for module in self.task.pretrained_part(self.model).modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _set_rate(self, stage: StageConfig, progress: Progress, num_steps: int, step: int) -> float:
        assert self.state is not None
        total = stage.epochs * num_steps
        done = progress.stage_epoch * num_steps + step
        rate = scheduled_rate(stage, done / total, progress.plateau)
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate
        return rate

    # Validation, early stopping, checkpoints

    def _kept_model(self) -> nn.Module:
        """The weights that are validated and kept: the running average where there is one."""
        assert self.state is not None
        if isinstance(self.state.averaged, AveragedModel):
            return self.state.averaged.module
        return self.model

    @torch.inference_mode()
    def score(self, model: nn.Module, name: str, *, thorough: bool = True) -> Tables:
        """The tables of a split; every row once, complete on every rank.

        Args:
            model: the weights to score.
            name: of the split.
            thorough: by every window of a sample that is scored, not by few, and against the
                task's references.
        """
        feed = self.feeds[name]
        model.eval()
        measured = Measured(self.task.sampler.cuts)
        batches = feed.batches(self.settings.batch_size, order=None, thorough=thorough)
        for rows, batch in batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                outputs = model(*self.task.inputs(batch))
            outputs = {key: value.float() for key, value in outputs.items()}
            references = references_of(self.plan.shards, self.task, rows) if thorough else None
            measures = self.task.measures(outputs, batch, self.plan.statistics, references)
            measured.add(rows, measures)
        return tables_of(self.plan, self.task, name, self._gathered(measured.share()))

    def _gathered(self, share: Any) -> list[Any]:
        if self.world_size == 1:
            return [share]
        shares: list[Any] = [None] * self.world_size
        dist.all_gather_object(shares, share)
        return shares

    def _note_best(self, stage: StageConfig, figures: dict[str, float]) -> None:
        assert self.state is not None
        progress, monitor = self.state.progress, self.task.monitor
        value, standing = figures[monitor.name], monitor.standing(figures)
        best = progress.standing
        if best is None or math.isnan(best) or standing > best:
            progress.best, progress.best_epoch = value, progress.epoch
            progress.standing = standing
            self.state.best_weights = _copied(self._kept_model())
        if _beats(monitor, value, progress.stage_best, stage.min_delta):
            progress.stage_best, progress.waited = value, 0
        else:
            progress.waited += 1
        note_plateau(stage, progress.plateau, figures["val_loss"])

    def _report(self, figures: dict[str, Any]) -> None:
        assert self.state is not None
        progress = self.state.progress
        due = progress.epoch % self.settings.checkpoint_every == 0
        if not due:
            ray.train.report(figures)
            return
        checkpoint = None
        if self.rank == 0:
            folder = tempfile.mkdtemp(dir=process_folder())
            self.state.save(Path(folder))
            checkpoint = Checkpoint.from_directory(folder)
        ray.train.report(
            figures,
            checkpoint=checkpoint,
            checkpoint_dir_name=f"checkpoint_{progress.epoch:05d}",
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        )

    def _tell_progress(
        self, stage: StageConfig, progress: Progress, step: int, num_steps: int
    ) -> None:
        now = time.monotonic()
        if now - self._told_at < 1.0 and step < num_steps:
            return
        self._told_at = now
        self._tell(
            {
                "status": RUNNING,
                "epoch": progress.epoch + step / num_steps,
                "epochs": sum(s.epochs for s in self.plan.stages),
                "stage": stage.name,
                "best": progress.best,
            }
        )

    def _tell(self, state: dict[str, Any]) -> None:
        if self.plan.progress is not None and self.rank == 0:
            self.plan.progress.update.remote(self.plan.label, state)


def _device() -> torch.device:
    device: torch.device = ray.train.torch.get_device()
    # Ray believes whoever says a node has GPUs; nccl has failed by now where there is none.
    if device.type == "cuda" and not torch.cuda.is_available():
        return torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _beats(monitor: Monitor, value: float, best: float | None, min_delta: float = 0.0) -> bool:
    """Whether a figure is a new best; anything beats NaN (one class only, a diverged epoch)."""
    return best is None or math.isnan(best) or monitor.better(value, best, min_delta)


def _finite(model: nn.Module) -> bool:
    """Whether every weight and statistic of a network is a number."""
    # Tables that a network carries beside them may hold NaN for what is not set.
    learned = [value.detach() for value in model.parameters()]
    statistics = [
        value
        for name, value in model.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    ]
    return bool(torch.stack([torch.isfinite(v).all() for v in (*learned, *statistics)]).all())


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}
