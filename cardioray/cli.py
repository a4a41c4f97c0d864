"""The command line: each command parses, builds a config and calls one function."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from cardioray.cli_data import data_app, phantom_app
from cardioray.cli_options import (
    ConfigFile,
    MaxBad,
    PatientFrom,
    Precision,
    RuntimeName,
    Settings,
    Shared,
    TaskName,
    console,
    refuse_given,
    run_config,
    shards_of,
    shown_as,
)
from cardioray.cli_serving import commands as serving_commands
from cardioray.config import Failed, parse

app = typer.Typer(
    name="cardioray",
    help="Cardiac-imaging models on Ray: prepare, train, compare, evaluate, serve. "
    "Not for clinical use.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)
app.add_typer(data_app, name="data")
app.add_typer(phantom_app, name="phantom")
app.add_typer(serving_commands)


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
    run = run_config(task, config_file, settings, shared_storage)
    shards = shards_of(context, run, data, out, patient_from, max_bad)
    shown = shown_as(run, "Training")
    if run.task.fits_heads:
        from cardioray.tuning.keyframe_bundle import train_keyframes

        refuse_given(context, ["views"], "heads are on frames of one view, which `view` names")
        bundle = train_keyframes(run, shards, out, name=name, shown=shown)
    elif views is None:
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
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PLACE",
            help="Of keyframe-ef: other models of the same patients to set beside the heads, by "
            "their bundle, comparison or predictions table.",
        ),
    ] = None,
    variants: Annotated[
        str | None,
        typer.Option(
            help="Of ecg: variants to compare, as in --variants scar,lvef,multi, or `all`; a "
            "leaderboard for each question, with the chart alone beside them.",
        ),
    ] = None,
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
        select_variants,
    )

    run = run_config(task, config_file, settings, shared_storage)
    if run.task.fits_heads:
        refuse_given(
            context,
            ["backbones", "grid", "refits", "search", "search_ranges", "asha", "grace_epochs"],
            "heads are compared, on the backbone that model.backbone names; heads.search says how "
            "many kernels are tried",
        )
        shards = shards_of(context, run, data, out, patient_from, max_bad)
        _compare_heads(run, shards, folds, out, beside or ())
        return
    refuse_given(context, ["beside"], "only heads on key frames are set beside other models")
    compared = CompareConfig(
        backbones=select_backbones(backbones, run.task),
        grid=read_grid(grid or ()),
        variants=select_variants(variants, run.task),
        folds=folds,
        asha=AshaConfig(enabled=asha, grace_epochs=grace_epochs, reduction_factor=reduction_factor),
        search=parse(SearchConfig, {"num_samples": search}, search_ranges or ()),
        refits=refits,
        max_concurrent=max_concurrent or "auto",
        seed=run.train.seed,
    )
    shards = shards_of(context, run, data, out, patient_from, max_bad)
    if compared.variants:
        _compare_variants(run, shards, compared, out)
        return
    result = run_comparison(run, shards, compared, out, shown=shown_as(run, "Comparing"))
    print_leaderboard(result.leaderboard, console)
    for bundle in result.bundles:
        _show_metrics(bundle)
        console.print(f"Bundle: {bundle.place}")
    console.print(f"Leaderboard: {out}/leaderboard.html")


def _compare_variants(run: Any, shards: Any, compared: Any, out: str) -> None:
    """Variants that answer different questions, each question with its leaderboard."""
    from cardioray.tuning.variants import compare_variants, print_variants

    result = compare_variants(run, shards, compared, out, shown=shown_as(run, "Comparing"))
    print_variants(result, console)
    for bundle in result.bundles:
        console.print(f"Bundle: {bundle.place}")
    for head in result.leaderboards:
        console.print(f"Leaderboard: {out}/{head}/leaderboard.html")


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
    prevalence: Annotated[
        str | None,
        typer.Option(help="Figures of test sets with these shares of positives, too, as 0.079."),
    ] = None,
    subgroup: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Figures of a subgroup and of everybody else, as --subgroup 'qrs_ms > 120' or "
            "'sex = F'; may be repeated.",
        ),
    ] = None,
    facts: Annotated[
        str | None,
        typer.Option(help="Table with study_id and what subgroups ask about; else the data's."),
    ] = None,
    readers: Annotated[
        str | None,
        typer.Option(help="Table with study_id and a column of 0 or 1 for each reader."),
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
    from cardioray.inference.further import Further

    further = Further.read(prevalence, subgroup, facts, readers)
    if (bundle is None) == (predictions is None):
        raise ValueError("Give either a bundle (and --data) or --predictions (and --task).")
    if predictions is not None:
        refuse_given(
            context,
            ["data", "patient_from", "shared_storage", "runtime", "precision", "noise"],
            "with --predictions no file is read and no network run",
        )
        if task is None:
            raise ValueError("--predictions needs --task, which says what the labels mean.")
        built = run_config(task, None, settings).task
        evaluate_table(predictions, built, split=split, out=out, console=console, further=further)
        return
    refuse_given(context, ["task", "settings"], "a bundle holds its task and its settings")
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
        further=further,
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
    dicom: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="Of outlined DICOM files: write outlines (seg) or measurements (sr) as DICOM "
            "objects below OUT.dicom/; may be repeated.",
        ),
    ] = None,
    systoles_from: Annotated[
        str | None,
        typer.Option(
            help="Of echo-ef: a bundle of lv-seg in whose outlines the beats are found, instead of "
            "in the predictions."
        ),
    ] = None,
    spacing_mm: Annotated[
        str | None,
        typer.Option(
            help="Of segmentations: height and width of a pixel in mm, such as 0.31,0.31, of files "
            "that do not state it; a column spacing_mm says it file by file."
        ),
    ] = None,
    runtime: RuntimeName = "auto",
    precision: Precision = "auto",
) -> None:
    """Answer for many files with Ray Data; the same command resumes.

    Examples: `cardioray predict runs/ffr/bundles/densenet121 frames/ --out answers.parquet`,
    `cardioray predict runs/ef/bundle Videos/ --out test_predictions.csv --columns echonet`,
    `cardioray predict runs/ef/bundle Videos/ --out answers.csv --systoles-from runs/lv-seg/bundle`,
    `cardioray predict runs/lv-seg/bundle studies.csv --out answers.csv --dicom seg --dicom sr`,
    `cardioray predict runs/lv-seg/bundle pictures.csv --out answers.csv --spacing-mm 0.31,0.31`
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
        dicom=dicom or (),
        systoles_from=systoles_from,
        spacing_mm=spacing_mm,
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


def _compare_heads(run: Any, shards: Any, folds: int, out: str, beside: Sequence[str]) -> None:
    from cardioray.evaluation.keyframe_report import print_keyframes
    from cardioray.tuning.keyframe_compare import compare_keyframes
    from cardioray.tuning.settings import CompareConfig

    settings = CompareConfig(
        backbones=(run.task.settings.model.backbone,), folds=folds, seed=run.train.seed
    )
    shown = shown_as(run, "Comparing heads")
    found = compare_keyframes(run, shards, settings, out, beside=beside, shown=shown)
    print_keyframes(found.report, console)
    console.print(f"Tables and plots: {found.out}")


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
