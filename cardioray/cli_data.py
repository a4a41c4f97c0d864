"""The commands that look at data, prepare it, and make synthetic studies."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from cardioray.cli_options import (
    ConfigFile,
    MaxBad,
    PatientFrom,
    Settings,
    Shared,
    TaskName,
    console,
    prepare_shards,
    run_config,
)
from cardioray.terminal import progress_bar

data_app = typer.Typer(help="Look at data and prepare it.", no_args_is_help=True)
phantom_app = typer.Typer(help="Make synthetic studies whose truth is known.", no_args_is_help=True)


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


@phantom_app.command("camus")
def phantom_camus(
    out: Annotated[str, typer.Argument(help="Empty folder or s3:// prefix.")],
    patients: Annotated[int, typer.Option(min=1)] = 60,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    preset: Annotated[str, typer.Option(help="Difficulty: clear, standard or hard.")] = "standard",
) -> None:
    """Draw apical frames with label maps whose volumes are known, in CAMUS's layout.

    Example: `cardioray phantom camus frames --patients 60 --seed 1`
    """
    from cardioray.phantoms.camus import write_camus
    from cardioray.phantoms.echo_config import ECHO_PRESETS

    config = ECHO_PRESETS.get(preset)
    with progress_bar(console, "drawing patients", patients) as advance:
        manifest = write_camus(out, patients, seed=seed, config=config, on_progress=advance)
    console.print(f"{len(manifest)} frames of {patients} patients in {out}.")


@phantom_app.command("ecg")
def phantom_ecg(
    out: Annotated[str, typer.Argument(help="Empty folder or s3:// prefix.")],
    patients: Annotated[int, typer.Option(min=1, help="Patients to draw.")] = 200,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    preset: Annotated[str, typer.Option(help="Difficulty: clear, standard or hard.")] = "standard",
) -> None:
    """Print ECGs of patients whose scar, LVEF and chart are known, scanned and photographed.

    Writes two printers' formats and the hospital's table ecg.csv.

    Example: `cardioray phantom ecg ecgs --patients 500 --seed 1`
    """
    from cardioray.phantoms.ecg import write_ecgs
    from cardioray.phantoms.ecg_config import ECG_PRESETS

    config = ECG_PRESETS.get(preset)
    with progress_bar(console, "drawing patients", patients) as advance:
        manifest = write_ecgs(out, patients, seed=seed, config=config, on_progress=advance)
    low = int(manifest["lvef"].le(50).sum())
    console.print(
        f"{len(manifest)} ECGs in {out}; scar in {int(manifest['scar'].sum())}, "
        f"LVEF of 50 % or less in {low} patients."
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

    built = run_config(task, config_file, settings).task
    manifest = built.read_manifest(data, patient_from)
    with progress_bar(console, "reading", len(manifest)) as advance:
        report = check_manifest(
            manifest,
            *built.targets,
            splits=built.split,
            decoder=built.decoder,
            needs_labels=built.learns_from_labels,
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

    run = run_config(task, config_file, settings)
    prepared = PrepareConfig(
        sources_per_part=sources_per_part,
        part_mb=part_mb,
        max_bad=max_bad,
        shared_storage=shared_storage,
    )
    shards = prepare_shards(run, data, out, patient_from, prepared)
    console.print(
        f"{shards.index.num_samples} samples in {out}; {shards.index.num_bad} files in quarantine."
    )


@data_app.command("keyframes")
def data_keyframes(
    data: Annotated[str, typer.Argument(help="Videos, as echo-ef reads them; local or s3://.")],
    out: Annotated[str, typer.Argument(help="Table to write, .csv; keyframe-ef reads it.")],
    bundle: Annotated[
        str | None, typer.Option(help="Bundle of lv-seg, whose outlines show the beats.")
    ] = None,
    positional: Annotated[
        bool,
        typer.Option(
            "--positional",
            help="Take frames at a third, a half and two thirds of each cine, whatever they show.",
        ),
    ] = False,
) -> None:
    """Find the frames at end diastole and end systole of cines whose tracings do not name them.

    Example: `cardioray data keyframes videos keyframes.csv --bundle runs/lv-seg/bundle`
    """
    from cardioray.inference.keyframes import write_keyframes

    table = write_keyframes(data, out, bundle=bundle, positional=positional, console=console)
    console.print(f"{len(table)} cines in {out}")


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
