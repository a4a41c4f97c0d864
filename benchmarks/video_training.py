"""Training of R(2+1)D-18 beside EchoNet-Dynamic's loop, and what feeds it beside a DataLoader."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.video import r2plus1d_18

from benchmarks.report import ROOT, Cell, Ratio, Report
from cardioray.config import config, read_yaml
from cardioray.data import cluster
from cardioray.data.clip import CLIP, ClipDecoder
from cardioray.data.manifest import Manifest
from cardioray.data.pipeline import PrepareConfig, prepare
from cardioray.data.reading import read_rows
from cardioray.data.sampling import VALID, ClipSampling
from cardioray.data.shards import ShardSet
from cardioray.machine import bf16_flags, cpu_flags
from cardioray.models.runtime import fast_layout, use_bf16
from cardioray.phantoms.echo import write_echoes
from cardioray.phantoms.echo_config import ECHO_PRESETS
from cardioray.tasks.base import LabelStatistics
from cardioray.training.feed import RowFeed, epoch_order
from cardioray.training.outcome import TIMING
from cardioray.training.run import train
from cardioray.training.settings import RunConfig
from cardioray.training.single import divide

STEPS = """\
Clips a second of a training step of R(2+1)D-18, windows of 32 frames of 112 px, from uint8 clips
in memory to the changed weights: EchoNet-Dynamic's loop as it is published (float32 clips of three
channels normalised by the loader, `DataParallel`'s plain path, SGD with momentum, mean squared
error) and CardioRay's (uint8 to the device, normalisation in the network, channels last, bf16
where the processor computes it, clipped gradients). The two take turns; the fastest of each
counts.

Tried on a processor with avx512_bf16 and without AMX, in clips a second of a plain step: fp32
0.360; channels last 0.369; channels last in bf16 0.291, so that `auto` does not choose it there;
torch.compile 0.355. Nothing but a faster precision is left to gain."""
FEEDS = """\
Clips a second that reach a training loop which does nothing with them: windows of 32 x 2 from
clips of 112 px, in random order. A DataLoader with two workers decodes each AVI with CardioRay's
decoder and cuts the window, as EchoNet-Dynamic's does, in every epoch. CardioRay decodes once:
`prepare` from AVI to shards is its first pass; every epoch is a pass over the shards, streamed
anew through Ray Data (as of data that do not fit into memory) or from a worker's memory. Below,
the share of a real training's time that its steps wait for clips, in the last epoch, with the
network that waits least willingly: the smallest (`configs/echo_ef_cpu.yaml`)."""


@config
class StepSettings:
    """Size of the run.

    Attributes:
        batch_size: clips a step.
        rounds: steps of each loop.
    """

    batch_size: int = 4
    rounds: int = 4


@config
class FeedSettings:
    """Size of the run.

    Attributes:
        patients: phantom patients, one A4C clip each.
        batch_size: clips of a batch.
        rounds: passes of each way; the fastest counts.
        epochs: of the training whose waits are measured.
    """

    patients: int = 400
    batch_size: int = 10
    rounds: int = 3
    epochs: int = 3


def run_steps(settings: StepSettings) -> Report:
    """Time a step of both loops in turns."""
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 255, (settings.batch_size, 32, 112, 112, 1)).astype(np.uint8)
    labels = torch.full((settings.batch_size,), 55.0)
    echonet, ours = _echonet_step(clips, labels), _our_step(clips, labels)
    fastest = {"EchoNet-Dynamic's loop, fp32": np.inf, "CardioRay": np.inf}
    for number in range(settings.rounds + 1):
        for name, step in zip(fastest, (echonet, ours), strict=True):
            begun = time.perf_counter()
            step()
            if number:  # the first one builds kernels
                fastest[name] = min(fastest[name], time.perf_counter() - begun)
    speeds = {name: settings.batch_size / seconds for name, seconds in fastest.items()}
    flags = bf16_flags(cpu_flags())
    rows: list[dict[str, Cell]] = [{"loop": k, "speed": v} for k, v in speeds.items()]
    first, second = speeds.values()
    return Report(
        name="video_step",
        title="Video: a training step",
        question=STEPS,
        columns={"loop": "loop", "speed": "clips/s"},
        rows=rows,
        ratios=[
            Ratio(
                name="CardioRay / EchoNet-Dynamic's loop",
                value=second / first,
                goal=">= 2" if flags else None,
            )
        ],
        settings=asdict(settings) | {"bf16 flags of the processor": ", ".join(flags) or "none"},
    )


def _echonet_step(clips: NDArray[np.uint8], labels: Tensor) -> Any:
    model = r2plus1d_18()
    model.fc = nn.Linear(model.fc.in_features, 1)
    model.fc.bias.data[0] = 55.6
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
    grey = np.repeat(clips, 3, axis=4).transpose(0, 4, 1, 2, 3).astype(np.float32)
    inputs = torch.from_numpy((grey - 32.0) / 50.0)

    def step() -> None:
        outputs = model(inputs)
        loss = nn.functional.mse_loss(outputs.view(-1), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def _our_step(clips: NDArray[np.uint8], labels: Tensor) -> Any:
    run = RunConfig.build("echo-ef", {"model": {"pretrained": "none"}})
    task, device = run.task, torch.device("cpu")
    statistics = LabelStatistics(
        class_weights={},
        means={"ef": 55.6},
        deviations={"ef": 12.0},
        pixel_mean=(32.0,),
        pixel_std=(50.0,),
    )
    model = task.build_model()
    task.initialise(model, statistics)
    model = fast_layout(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    bf16 = use_bf16(run.train.precision, device)
    batch = {
        CLIP: torch.from_numpy(clips),
        VALID: torch.full((len(clips),), clips.shape[1], dtype=torch.uint8),
        "ef": labels,
    }

    def step() -> None:
        seen = task.augment(batch, (0, 0, 0, 0))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = model(seen[CLIP], seen[VALID])
        loss = task.loss({k: v.float() for k, v in outputs.items()}, seen, statistics)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        loss.item()

    return step


def run_feeds(settings: FeedSettings) -> Report:
    """Time passes over the same clips, from files and from shards."""
    with tempfile.TemporaryDirectory(prefix="cr-bench-") as name:
        folder = Path(name)
        run = RunConfig.build("echo-ef", {"model": {"pretrained": "none"}})
        look = ECHO_PRESETS.get("standard")
        write_echoes(str(folder / "echoes"), settings.patients, seed=5, config=look)
        manifest = run.task.read_manifest(str(folder / "echoes"), None)
        loader = _fastest(
            lambda: _loader_pass(manifest.paths, settings.batch_size), settings.rounds
        )
        cluster.connect()
        try:
            # The processes that read files are there from the first time on, as in a DataLoader.
            prepared = [
                _timed(lambda n=n: prepare(run.task, manifest, f"{folder}/{n}", PrepareConfig()))
                for n in range(settings.rounds)
            ]
            shards = ShardSet.open(f"{folder}/0")
            feeds = {cached: make_feed(run, shards, cached=cached) for cached in (False, True)}
            passes = {
                cached: _fastest(
                    lambda feed=feed: feed_pass(feed, settings.batch_size), settings.rounds
                )
                for cached, feed in feeds.items()
            }
            waits = _waits(manifest, folder, settings.epochs)
        finally:
            ray.shutdown()
    count = len(manifest)
    speeds = {
        "DataLoader, decoding AVI": count / loader,
        "CardioRay, AVI to shards": count / min(prepared),
        "CardioRay, shards streamed": count / passes[False],
        "CardioRay, shards in memory": count / passes[True],
    }
    rows: list[dict[str, Cell]] = [{"way": k, "speed": v} for k, v in speeds.items()]
    peer, from_avi, streamed, in_memory = speeds.values()
    # Preparing and so many streamed epochs take as long as so many epochs of the DataLoader.
    even = (1 / from_avi) / (1 / peer - 1 / streamed) if streamed > peer else float("inf")
    return Report(
        name="video_feed",
        title="Video: what feeds a training",
        question=FEEDS,
        columns={"way": "way", "speed": "clips/s"},
        rows=rows,
        ratios=[
            Ratio(name="shards streamed / DataLoader", value=streamed / peer, goal=">= 1.2"),
            Ratio(name="AVI to shards / DataLoader", value=from_avi / peer, goal=">= 1"),
            Ratio(name="shards in memory / DataLoader", value=in_memory / peer),
            Ratio(name="epochs after which preparing has paid", value=even),
            Ratio(name="waiting for streamed clips", value=100 * waits[False], unit="% of a step"),
            Ratio(name="waiting for clips in memory", value=100 * waits[True], unit="% of a step"),
        ],
        settings=asdict(settings) | {"workers": 2},
    )


def _waits(manifest: Manifest, folder: Path, epochs: int) -> dict[bool, float]:
    """The share of a training's time in which its steps wait, streamed and from memory."""
    file = ROOT / "configs" / "echo_ef_cpu.yaml"
    values = read_yaml(file.read_bytes(), str(file))
    shares = {}
    for cached in (False, True):
        changes = [f"train.epochs={epochs}", *([] if cached else ["train.cache_gb=0"])]
        run = RunConfig.build("echo-ef", values, changes)
        shards = prepare(run.task, manifest, str(folder / "small"), PrepareConfig())
        split = divide(run, shards).split
        outcome = train(run, shards, split, str(folder / "runs"), name=f"cached-{cached}")
        timing = pd.read_csv(Path(outcome.folder) / TIMING)
        shares[cached] = float(timing["data_wait_share"].iloc[-1])
    return shares


class _Videos(Dataset[dict[str, Tensor]]):
    """One random window of each file, decoded anew."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths
        self.sampling = ClipSampling()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        decoder = ClipDecoder(preprocess=RunConfig.build("echo-ef").task.settings.preprocess)
        [sample] = decoder.decode(Path(self.paths[index]).read_bytes(), None)
        window = self.sampling.draw(sample.arrays, np.random.default_rng())
        return {name: torch.from_numpy(np.asarray(value)) for name, value in window.items()}


def _loader_pass(paths: list[str], batch_size: int) -> None:
    loader = DataLoader(
        _Videos(paths), batch_size=batch_size, shuffle=True, num_workers=2, drop_last=True
    )
    for batch in loader:
        assert batch[CLIP].shape[0] == batch_size


def make_feed(run: RunConfig, shards: ShardSet, *, cached: bool) -> RowFeed:
    """The feed of all clips of a shard set, with their EF, as a training of one worker has it."""
    rows = np.sort(shards.samples["row"].to_numpy(np.int64))
    columns = run.task.decoder.columns
    labels = {"ef": pd.to_numeric(shards.samples["EF"]).to_numpy(np.float32)}
    return RowFeed(
        shards=shards,
        columns=columns,
        iterator=read_rows(shards, rows, columns).iterator(),
        rows=rows,
        labels=labels,
        cached=cached,
        device=torch.device("cpu"),
        sampler=run.task.sampler,
    )


def feed_pass(feed: RowFeed, batch_size: int, buffer: int = 32) -> None:
    """One training epoch of a feed, whose batches nothing is done with."""
    order = epoch_order(len(feed), seed=0, epoch=0, rank=0)
    batches: Iterator[Any] = feed.batches(batch_size, order=order, buffer=buffer)
    for _, batch in batches:
        assert batch[CLIP].shape[0] == batch_size


def _timed(work: Any) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _fastest(work: Any, rounds: int) -> float:
    return min(_timed(work) for _ in range(rounds))
