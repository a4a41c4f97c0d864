"""The command line: each command parses, builds a config and calls one function."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from cardioray.cli_serving import commands as serving_commands
from cardioray.config import Failed, parse, read_yaml
from cardioray.terminal import progress_bar

app = typer.Typer(
    name="cardioray",
    help="Cardiac-imaging models on Ray: prepare, train, compare, evaluate, serve. "
    "Not for clinical use.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)
data_app = typer.Typer(help="Look at data and prepare it.", no_args_is_help=True)
phantom_app = typer.Typer(help="Make synthetic studies whose truth is known.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(phantom_app, name="phantom")
app.add_typer(serving_commands)

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
    typer.Option(help="auto is bf16 where the hardware computes it."),
]


def main() -> None:
    """Entry point: what users can do something about is one message, anything else a trace.

    CONTRIBUTING.md says which errors are which. Typer ends with 130 on Ctrl-C.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("cardioray").setLevel(logging.INFO)
    # Actors without a CPU of their own are many here, by design; Ray reads this when imported.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started on node")
    try:
        app()
    except (ValueError, OSError, Failed) as error:
        # Unwrapped, so that a path can be copied.
        text = f"[bold red]Error:[/] {escape(str(error))}"
        Console(stderr=True).print(text, highlight=False, soft_wrap=True)
        sys.exit(1)


@app.command()
def doctor(
    connect: Annotated[bool, typer.Option("--connect", help="Ask a running cluster too.")] = False,
) -> None:
    """Check this machine: versions, devices, Ray, and what is missing.

    Exits with 1 when the main job could not run.

    Example: `cardioray doctor`
    """
    from cardioray.doctor import diagnose, print_diagnosis

    diagnosis = diagnose(connect=connect)
    print_diagnosis(diagnosis)
    if not diagnosis.ok:
        raise typer.Exit(1)


@phantom_app.command("angiogram")
def phantom_angiogram(
    out: Annotated[str, typer.Argument(help="Empty folder or s3:// prefix.")],
    patients: Annotated[int, typer.Option(min=1, help="Patients to draw.")] = 60,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    preset: Annotated[str, typer.Option(help="Difficulty: clear, standard or hard.")] = "standard",
    folder_per_class: Annotated[
        bool, typer.Option(help="Write {train,test}/{FFRH,FFRL}/ folders.")
    ] = False,
) -> None:
    """Draw coronary angiograms whose FFR is known.

    Example: `cardioray phantom angiogram phantoms --patients 60 --seed 1 --preset clear`
    """
    from cardioray.phantoms.angiogram import PRESETS, write_angiograms

    with progress_bar(console, "drawing patients", patients) as advance:
        manifest = write_angiograms(
            out,
            patients,
            seed=seed,
            config=PRESETS.get(preset),
            folder_per_class=folder_per_class,
            on_progress=advance,
        )
    counts = manifest.groupby("label")["patient_id"].nunique().to_dict()
    console.print(f"{len(manifest)} frames of {patients} patients in {out}: {counts}")


@phantom_app.command("echo")
def phantom_echo(
    out: Annotated[str, typer.Argument(help="Empty folder or s3:// prefix.")],
    patients: Annotated[int, typer.Option(min=1, help="Patients to draw.")] = 60,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    preset: Annotated[str, typer.Option(help="Difficulty: clear, standard or hard.")] = "standard",
) -> None:
    """Draw echo studies (A4C, A2C, PLAX) whose EF and CMR findings are known.

    Writes EchoNet's FileList.csv, VolumeTracings.csv and Videos/, and manifests with all views.

    Example: `cardioray phantom echo echoes --patients 60 --seed 1`
    """
    from cardioray.phantoms.echo import write_echoes
    from cardioray.phantoms.echo_config import ECHO_PRESETS

    config = ECHO_PRESETS.get(preset)
    with progress_bar(console, "drawing patients", patients) as advance:
        manifest = write_echoes(out, patients, seed=seed, config=config, on_progress=advance)
    low = manifest.drop_duplicates("patient_id")["ef"].lt(50).sum()
    console.print(
        f"{len(manifest)} cines of {patients} patients in {out}; EF below 50 % in {low} patients."
    )


@data_app.command("check")
def data_check(
    task: TaskName,
    data: Annotated[str, typer.Argument(help="Manifest file or folder; local or s3://.")],
    patient_from: PatientFrom = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Count, read and cross-check a data set; exits with 1 on an error.

    Example: `cardioray data check ffr phantoms`
    """
    from cardioray.data.check import check_manifest, print_report

    built = _run_config(task, config_file, settings).task
    manifest = built.read_manifest(data, patient_from)
    with progress_bar(console, "reading", len(manifest)) as advance:
        report = check_manifest(
            manifest,
            *built.targets,
            splits=built.split,
            decoder=built.decoder,
            on_progress=advance,
        )
    print_report(report, console)
    if report.errors:
        raise typer.Exit(1)


@data_app.command("prepare")
def data_prepare(
    task: TaskName,
    data: Annotated[str, typer.Argument(help="Manifest file or folder; local or s3://.")],
    out: Annotated[str, typer.Option(help="Where shards go; local or s3://.")],
    max_bad: MaxBad = 0.01,
    sources_per_part: Annotated[int, typer.Option(min=1, help="Files that a task decodes.")] = 256,
    part_mb: Annotated[
        float, typer.Option(help="Decoded MB a task holds before it writes them to a file.")
    ] = 256.0,
    patient_from: PatientFrom = None,
    shared_storage: Shared = False,
    config_file: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Decode, crop and resize a data set once, into shards that every training reads.

    Example: `cardioray data prepare ffr phantoms --out shards --set preprocess.image_size=224`
    """
    from cardioray.data.pipeline import PrepareConfig

    run = _run_config(task, config_file, settings)
    prepared = PrepareConfig(
        sources_per_part=sources_per_part,
        part_mb=part_mb,
        max_bad=max_bad,
        shared_storage=shared_storage,
    )
    shards = _prepare(run, data, out, patient_from, prepared)
    console.print(
        f"{shards.index.num_samples} samples in {out}; {shards.index.num_bad} files in quarantine."
    )


@data_app.command("deidentify")
def data_deidentify(
    data: Annotated[str, typer.Argument(help="Folder with DICOM ultrasound; local or s3://.")],
    out: Annotated[str, typer.Argument(help="Empty folder or s3:// prefix.")],
    key: Annotated[
        str, typer.Option(help="File that will say who is who; not below OUT, for you alone.")
    ],
    image_size: Annotated[int, typer.Option(min=16, help="Side of the frames in px.")] = 112,
) -> None:
    """Write ultrasound cines without names: masked to the sector, cropped, as AVI.

    Example: `cardioray data deidentify dicom public --key ~/keys/public.csv`
    """
    from cardioray.data.clip import ClipPreprocess
    from cardioray.data.deidentify import deidentify

    with progress_bar(console, "de-identifying", 0) as advance:
        done = deidentify(
            data,
            out,
            key,
            preprocess=ClipPreprocess(image_size=image_size),
            on_progress=advance,
        )
    patients = done.manifest["patient_id"].nunique()
    console.print(f"{len(done.manifest)} cines of {patients} patients in {out}; key in {key}.")
    for file, reason in done.refused[:10]:
        console.print(f"[yellow]not written[/yellow]  {escape(file)}: {escape(reason)}")
    if len(done.refused) > 10:
        console.print(f"and {len(done.refused) - 10} more, see {out}/quarantine.csv")


@app.command()
def train(
    context: typer.Context,
    task: TaskName,
    data: Annotated[str, typer.Option(help="Data set, or shards made from it.")],
    out: Annotated[str, typer.Option(help="Folder or prefix of runs.")] = "runs",
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Backbone weights to start from (.safetensors), instead of published."),
    ] = None,
    views: Annotated[
        str | None,
        typer.Option(
            help="Of clips: a network for each of these views, such as A4C,PLAX, or for `all`, a "
            "classifier that sorts cines to them, and their fusion by study."
        ),
    ] = None,
    max_bad: MaxBad = 0.01,
    patient_from: PatientFrom = None,
    shared_storage: Shared = False,
    config_file: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Train one model and make a bundle of it; the same command resumes a run that was killed.

    Examples: `cardioray train ffr --data phantoms --out runs --set model.backbone=densenet121`,
    `cardioray train echo-cmr --data echoes --views all --out runs`
    """
    from cardioray.training.single import train_bundle
    from cardioray.training.study import train_study

    if weights is not None:
        settings = [*(settings or ()), f"model.weights={weights}"]
    run = _run_config(task, config_file, settings, shared_storage)
    shards = _shards(context, run, data, out, patient_from, max_bad)
    shown = _shown(run, "Training")
    if views is None:
        bundle = train_bundle(run, shards, out, name=name, shown=shown)
    else:
        chosen = [] if views == "all" else [view.strip() for view in views.split(",")]
        bundle = train_study(run, shards, chosen, out, name=name, shown=shown)
    _show_metrics(bundle)
    console.print(f"Bundle: {bundle.place}")


@app.command()
def compare(
    context: typer.Context,
    task: TaskName,
    data: Annotated[str, typer.Option(help="Data set, or shards made from it.")],
    backbones: Annotated[str, typer.Option(help="`all`, names, or wildcards.")] = "all",
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=[VALUE,...]",
            help="Settings to go through with each backbone, as in --grid "
            "sampling.frames=[16,32], or a named grid: echonet_input, echonet_size.",
        ),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Folds by patient.")] = 3,
    out: Annotated[str, typer.Option(help="Folder or prefix of the comparison.")] = "runs/compare",
    refits: Annotated[int, typer.Option(min=1, help="How many of the best become bundles.")] = 1,
    search: Annotated[int, typer.Option(min=0, help="Optuna draws; 0 searches nothing.")] = 0,
    search_ranges: Annotated[
        list[str] | None,
        typer.Option(
            "--search-set",
            metavar="KEY=VALUE",
            help="What is drawn from, as in --search-set learning_rate=[1e-5,1e-3].",
        ),
    ] = None,
    asha: Annotated[bool, typer.Option(help="Stop weak backbones on the first fold.")] = True,
    grace_epochs: Annotated[int, typer.Option(min=1, help="Epochs every backbone gets.")] = 4,
    reduction_factor: Annotated[float, typer.Option(help="One in this many goes on.")] = 3.0,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    max_bad: MaxBad = 0.01,
    patient_from: PatientFrom = None,
    shared_storage: Shared = False,
    config_file: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Compare backbones by cross-validation and make bundles of the best; resumes when repeated.

    Example: `cardioray compare ffr --data phantoms --backbones all --folds 3 --out runs/ffr`
    """
    from cardioray.evaluation.leaderboard_terminal import print_leaderboard
    from cardioray.tuning.compare import compare as run_comparison
    from cardioray.tuning.settings import (
        AshaConfig,
        CompareConfig,
        SearchConfig,
        read_grid,
        select_backbones,
    )

    run = _run_config(task, config_file, settings, shared_storage)
    compared = CompareConfig(
        backbones=select_backbones(backbones, run.task),
        grid=read_grid(grid or ()),
        folds=folds,
        asha=AshaConfig(enabled=asha, grace_epochs=grace_epochs, reduction_factor=reduction_factor),
        search=parse(SearchConfig, {"num_samples": search}, search_ranges or ()),
        refits=refits,
        max_concurrent=max_concurrent or "auto",
        seed=run.train.seed,
    )
    shards = _shards(context, run, data, out, patient_from, max_bad)
    result = run_comparison(run, shards, compared, out, shown=_shown(run, "Comparing"))
    print_leaderboard(result.leaderboard, console)
    for bundle in result.bundles:
        _show_metrics(bundle)
        console.print(f"Bundle: {bundle.place}")
    console.print(f"Leaderboard: {out}/leaderboard.html")


@app.command()
def evaluate(
    context: typer.Context,
    bundle: Annotated[
        str | None, typer.Argument(help="A bundle or comparison; or give --predictions.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Data set to score the bundle on.")] = None,
    predictions: Annotated[str | None, typer.Option(help="Anyone's predictions table.")] = None,
    task: Annotated[str | None, typer.Option(help="Task of --predictions.")] = None,
    split: Annotated[str, typer.Option(help="Split to score.")] = "test",
    out: Annotated[str | None, typer.Option(help="Folder for figures and plots.")] = None,
    noise: Annotated[
        str | None,
        typer.Option(help="Score with these shares of pixels made black, too, as 0.1,0.3,0.5."),
    ] = None,
    patient_from: PatientFrom = None,
    shared_storage: Shared = False,
    runtime: RuntimeName = "torch",
    precision: Precision = "auto",
    settings: Settings = None,
) -> None:
    """Score a bundle on files, or anyone's predictions table.

    Examples: `cardioray evaluate runs/ffr/bundles/densenet121 --data phantoms`,
    `cardioray evaluate --predictions theirs.csv --task ffr`
    """
    from cardioray.inference.evaluate import evaluate_bundle, evaluate_table

    if (bundle is None) == (predictions is None):
        raise ValueError("Give either a bundle (and --data) or --predictions (and --task).")
    if predictions is not None:
        _refuse_given(
            context,
            ["data", "patient_from", "shared_storage", "runtime", "precision", "noise"],
            "with --predictions no file is read and no network run",
        )
        if task is None:
            raise ValueError("--predictions needs --task, which says what the labels mean.")
        built = _run_config(task, None, settings).task
        evaluate_table(predictions, built, split=split, out=out, console=console)
        return
    _refuse_given(context, ["task", "settings"], "a bundle holds its task and its settings")
    if data is None:
        raise ValueError("Give --data, the files to score the bundle on.")
    assert bundle is not None
    try:
        shares = [float(text) for text in (noise or "").split(",") if text.strip()]
    except ValueError:
        raise ValueError(f"--noise {noise}: shares are written as 0.1,0.3.") from None
    evaluate_bundle(
        bundle,
        data,
        split=split,
        out=out,
        patient_from=patient_from,
        console=console,
        shared_storage=shared_storage,
        runtime=runtime,
        precision=precision,
        noise=shares,
    )


@app.command()
def predict(
    bundle: Annotated[str, typer.Argument(help="A bundle, or a comparison for its winner.")],
    paths: Annotated[list[str], typer.Argument(help="Files, folders or s3:// prefixes.")],
    out: Annotated[str, typer.Option(help="Table to write: .parquet or .csv.")],
    study_from: Annotated[
        str | None,
        typer.Option(help="Regular expression over file names: files with one group are a study."),
    ] = None,
    shared_storage: Shared = False,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Predictions of videos in the columns of another project, `echonet` or "
            "`cardiac_mri`, instead of answers."
        ),
    ] = None,
    runtime: RuntimeName = "auto",
    precision: Precision = "auto",
) -> None:
    """Answer for many files with Ray Data; the same command resumes.

    Examples: `cardioray predict runs/ffr/bundles/densenet121 frames/ --out answers.parquet`,
    `cardioray predict runs/ef/bundle Videos/ --out test_predictions.csv --columns echonet`
    """
    from cardioray.inference.batch import predict_files

    table = predict_files(
        bundle,
        paths,
        out,
        study_from=study_from,
        shared_storage=shared_storage,
        console=console,
        runtime=runtime,
        precision=precision,
        columns=columns,
    )
    console.print(f"{len(table)} rows in {out}")


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="Local folder for everything.")] = "runs/demo",
    settings: Settings = None,
) -> None:
    """Phantoms, ten backbones compared, the winner served, one request answered; then a stop.

    Example: `cardioray demo --out runs/demo`
    """
    from cardioray import config
    from cardioray.demo import DemoConfig, run_demo

    run_demo(out, config.parse(DemoConfig, {}, settings or ()), console)


def _run_config(
    task: str, config_file: str | None, settings: list[str] | None, shared_storage: bool = False
) -> Any:
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


def _refuse_given(context: typer.Context, names: Sequence[str], reason: str) -> None:
    """Refuse options that were typed though they would change nothing."""
    options = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ValueError(f"Leave out {options[name]}: {reason}.")


def _prepare(run: Any, data: str, out: str, patient_from: str | None, settings: Any) -> Any:
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


def _shards(
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
        _refuse_given(context, ["max_bad", "patient_from"], f"{data} holds finished shards")
        return ShardSet.open(data)
    prepared = PrepareConfig(max_bad=max_bad, shared_storage=run.scale.shared_storage)
    return _prepare(run, data, storage.join(out, "shards"), patient_from, prepared)


def _shown(run: Any, title: str) -> Any:
    from cardioray.training.progress import Shown

    return Shown(f"{title} {run.task.name}", run.task.monitor.name, console)


def _show_metrics(bundle: Any) -> None:
    from cardioray.evaluation.intervals import Interval
    from cardioray.evaluation.report import title_of

    for target, values in bundle.json("metrics.json")["targets"].items():
        name = "auc" if "auc" in values["per_study"] else "mae"
        figure = {k: math.nan if v is None else v for k, v in values["per_study"][name].items()}
        console.print(
            f"{bundle.name}, {target}: {title_of(name)} {Interval(**figure)} on "
            f"{values['patients']} test patients",
            highlight=False,
        )
