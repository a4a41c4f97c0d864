"""Options and steps that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from cardioray.config import read_yaml
from cardioray.terminal import progress_bar

console = Console()

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SECTION.KEY=VALUE", help="A setting, as in `--set train.batch_size=64`."
    ),
]
ConfigFile = Annotated[
    str | None,
    typer.Option("--config", help="YAML file with settings, local or s3://; --set wins over it."),
]
PatientFrom = Annotated[
    str | None,
    typer.Option(
        help="Regular expression over file names whose first group is the patient, for data that "
        "does not name patients otherwise."
    ),
]
MaxBad = Annotated[float, typer.Option(help="Largest share of unreadable files.")]
TaskName = Annotated[str, typer.Argument(metavar="TASK", help="Task, such as `ffr` or `image`.")]
Shared = Annotated[
    bool,
    typer.Option("--shared-storage", help="Every node of the cluster mounts the local folders."),
]
RuntimeName = Annotated[
    Literal["auto", "openvino", "torch"],
    typer.Option(help="What runs the network; auto is OpenVINO on a CPU."),
]
Precision = Annotated[
    Literal["auto", "bf16", "fp32"],
    typer.Option(help="auto is bf16 where the hardware is faster so."),
]


def run_config(
    task: str, config_file: str | None, settings: list[str] | None, shared_storage: bool = False
) -> Any:
    """The run of a task from a file of settings and `--set`, which wins."""
    from cardioray import storage
    from cardioray.training.settings import RunConfig

    values: Any = {}
    if config_file is not None:
        values = read_yaml(storage.read_bytes(config_file), config_file) or {}
        if not isinstance(values, dict):
            raise ValueError(f"{config_file} holds no sections of settings, such as `train:`.")
    overrides = list(settings or [])
    if shared_storage:
        overrides.append("scale.shared_storage=true")
    return RunConfig.build(task, values, overrides)


def refuse_given(context: typer.Context, names: Sequence[str], reason: str) -> None:
    """Refuse options that were typed though they would change nothing."""
    options = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ValueError(f"Leave out {options[name]}: {reason}.")


def prepare_shards(run: Any, data: str, out: str, patient_from: str | None, settings: Any) -> Any:
    """Shards made from a data set, with warnings and progress shown."""
    from cardioray.data.pipeline import prepare

    manifest = run.task.read_manifest(data, patient_from)
    for warning in manifest.warnings:
        console.print(f"[yellow]Warning:[/] {warning}", highlight=False)
    with progress_bar(console, "preparing", len(manifest)) as advance:
        return prepare(
            run.task,
            manifest,
            out,
            settings,
            on_progress=advance,
        )


def shards_of(
    context: typer.Context,
    run: Any,
    data: str,
    out: str,
    patient_from: str | None,
    max_bad: float,
) -> Any:
    """Shards as they are, or made from a data set below the output folder."""
    from cardioray import storage
    from cardioray.data.pipeline import PrepareConfig
    from cardioray.data.shards import ShardSet, read_index

    if read_index(data) is not None:
        refuse_given(context, ["max_bad", "patient_from"], f"{data} holds finished shards")
        return ShardSet.open(data)
    prepared = PrepareConfig(max_bad=max_bad, shared_storage=run.scale.shared_storage)
    return prepare_shards(run, data, storage.join(out, "shards"), patient_from, prepared)


def shown_as(run: Any, title: str) -> Any:
    """How progress of a run or of several is shown."""
    from cardioray.training.progress import Shown

    return Shown(f"{title} {run.task.name}", run.task.monitor.name, console)
