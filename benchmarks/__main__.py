"""`python -m benchmarks NAME`: run one benchmark, print it, save it, and write the page anew."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from benchmarks import asha as asha_benchmark
from benchmarks import autoscaling as autoscaling_benchmark
from benchmarks import features as features_benchmark
from benchmarks import gate as gate_benchmark
from benchmarks import segment_discs as discs_benchmark
from benchmarks import segment_serving as segment_serving_benchmark
from benchmarks import segment_training as segment_training_benchmark
from benchmarks import serving as serving_benchmark
from benchmarks import shards as shards_benchmark
from benchmarks import training as training_benchmark
from benchmarks import video_decoding as decoding_benchmark
from benchmarks import video_memory as video_memory_benchmark
from benchmarks import video_serving as video_serving_benchmark
from benchmarks import video_training as video_training_benchmark
from benchmarks.report import PAGE, Report, write_page
from cardioray import config

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
console = Console()

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, as in --set epochs=2."),
]


@app.command()
def training(overrides: Overrides = None) -> None:
    """Images a second of Ray Train beside a hand-written DDP script."""
    settings = config.parse(training_benchmark.TrainingSettings, {}, overrides or ())
    finish(training_benchmark.run(settings))


@app.command()
def shards(overrides: Overrides = None) -> None:
    """Passes over shards beside decoding every picture in every pass."""
    settings = config.parse(shards_benchmark.ShardSettings, {}, overrides or ())
    finish(shards_benchmark.run(settings))


@app.command()
def asha(overrides: Overrides = None) -> None:
    """Ten backbones with early stopping beside ten full trainings."""
    settings = config.parse(asha_benchmark.AshaSettings, {}, overrides or ())
    finish(asha_benchmark.run(settings))


@app.command()
def gate(overrides: Overrides = None) -> None:
    """Which pictures the input gate flags, of its own kind and of others."""
    settings = config.parse(gate_benchmark.GateSettings, {}, overrides or ())
    finish(gate_benchmark.run(settings))


@app.command()
def serving(overrides: Overrides = None) -> None:
    """Requests a second and latency beside FastAPI with PyTorch or OpenVINO, and LitServe."""
    settings = config.parse(serving_benchmark.ServingSettings, {}, overrides or ())
    finish(serving_benchmark.run(settings))


@app.command()
def autoscaling(overrides: Overrides = None) -> None:
    """Replicas that come and go with the load, and what a killed one costs."""
    settings = config.parse(autoscaling_benchmark.AutoscalingSettings, {}, overrides or ())
    finish(autoscaling_benchmark.run(settings))


@app.command()
def video_decoding(overrides: Overrides = None) -> None:
    """Echo clips a second beside OpenCV, bare decord and torchcodec."""
    settings = config.parse(decoding_benchmark.DecodingSettings, {}, overrides or ())
    finish(decoding_benchmark.run(settings))


@app.command()
def video_step(overrides: Overrides = None) -> None:
    """A training step of R(2+1)D-18 beside EchoNet-Dynamic's loop."""
    settings = config.parse(video_training_benchmark.StepSettings, {}, overrides or ())
    finish(video_training_benchmark.run_steps(settings))


@app.command()
def video_feed(overrides: Overrides = None) -> None:
    """Clips a second that reach a training, beside a DataLoader."""
    settings = config.parse(video_training_benchmark.FeedSettings, {}, overrides or ())
    finish(video_training_benchmark.run_feeds(settings))


@app.command()
def video_memory(overrides: Overrides = None) -> None:
    """Memory while shards are written and read, at ten times the data."""
    settings = config.parse(video_memory_benchmark.MemorySettings, {}, overrides or ())
    finish(video_memory_benchmark.run(settings))


@app.command()
def video_serving(overrides: Overrides = None) -> None:
    """One clip answered by OpenVINO beside eager PyTorch."""
    settings = config.parse(video_serving_benchmark.ClipSettings, {}, overrides or ())
    finish(video_serving_benchmark.run_clips(settings))


@app.command()
def video_studies(overrides: Overrides = None) -> None:
    """Answers for a folder of clips beside a bare loop over the network."""
    settings = config.parse(video_serving_benchmark.StudySettings, {}, overrides or ())
    finish(video_serving_benchmark.run_studies(settings))


@app.command()
def segment_discs(overrides: Overrides = None) -> None:
    """Volumes of many label maps beside plain loops over discs."""
    settings = config.parse(discs_benchmark.DiscSettings, {}, overrides or ())
    finish(discs_benchmark.run(settings))


@app.command()
def segment_serving(overrides: Overrides = None) -> None:
    """One frame outlined by OpenVINO beside eager PyTorch."""
    settings = config.parse(segment_serving_benchmark.FrameSettings, {}, overrides or ())
    finish(segment_serving_benchmark.run(settings))


@app.command()
def segment_step(overrides: Overrides = None) -> None:
    """A training step of a U-Net beside a plain loop with albumentations."""
    settings = config.parse(segment_training_benchmark.StepSettings, {}, overrides or ())
    finish(segment_training_benchmark.run(settings))


@app.command()
def features(overrides: Overrides = None) -> None:
    """Features of key frames by a pool of actors beside a bare loop."""
    settings = config.parse(features_benchmark.FeatureSettings, {}, overrides or ())
    finish(features_benchmark.run(settings))


@app.command()
def page() -> None:
    """Write docs/benchmarks.md from the saved reports."""
    write_page()
    console.print(f"wrote {PAGE}")


def finish(report: Report) -> None:
    """Print and save a report, and bring the page up to date."""
    report.show(console)
    console.print(f"saved {report.save()}")
    write_page()


if __name__ == "__main__":
    app()
