"""What is in a data set and what is wrong with it, before anything is trained on it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cardioray import storage
from cardioray.data.frames import ALL_FRAMES, READ_ERRORS, FrameSelection, UInt8Image
from cardioray.data.image import describe_pixels, read_frames
from cardioray.data.layouts import SPLITS, shown
from cardioray.data.manifest import Manifest, check_studies
from cardioray.data.splits import SplitConfig, assign_splits
from cardioray.machine import usable_cores
from cardioray.targets import BinaryTarget, Target

_PRINTED_ROWS = 10


@dataclass(frozen=True)
class ClassCount:
    """How many rows and patients of a class (or with a number) a split has."""

    split: str
    class_name: str
    rows: int
    patients: int


@dataclass(frozen=True)
class DataReport:
    """The findings of `check_manifest`.

    Attributes:
        rows: rows of the manifest with a label.
        patients: patients among them.
        frames: pictures that were decoded.
        counts: rows and patients by split and class; a patient with rows of two classes counts
            in both.
        calibration: "held-out", "cross-fitted", or "" where the splits are wrong.
        sizes: number of frames by "width x height".
        pixel_types: number of files by how they store pixels.
        unreadable: source and reason of every file that cannot be read.
        duplicates: sample ids of rows that share a frame, group by group.
        errors: what must be mended before training, as sentences.
        warnings: what should be known.
    """

    rows: int
    patients: int
    frames: int
    counts: tuple[ClassCount, ...]
    calibration: str
    sizes: dict[str, int]
    pixel_types: dict[str, int]
    unreadable: tuple[tuple[str, str], ...]
    duplicates: tuple[tuple[str, ...], ...]
    errors: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass
class _Findings:
    """What one row's file says; `reason` when it could not be read."""

    reason: str = ""
    pixel_type: str = ""
    sizes: list[str] = field(default_factory=list)
    hashes: set[str] = field(default_factory=set)
    blank: int = 0


def check_manifest(
    manifest: Manifest,
    *targets: Target,
    splits: SplitConfig = SplitConfig(),  # noqa: B008 (frozen)
    frames: FrameSelection = ALL_FRAMES,
    on_progress: Callable[[int, int], None] | None = None,
) -> DataReport:
    """Count a data set, read every file, and look for what would spoil a result.

    Errors are: one patient in two splits, a class missing in a split, files that cannot be read,
    one file under two patients, one study with two labels or of two patients, and equal frames in
    two splits or with two labels. Equal frames within a split and blank frames are warnings.

    Args:
        manifest: what `read_manifest` gave.
        targets: the labels; the first one is the headline, by which patients are divided.
        splits: how patients without a split column would be divided.
        frames: frame selection of rows that have none.
        on_progress: called with the rows done and their total.
    """
    table = manifest.table.reset_index(drop=True)
    errors, warnings = _shared_sources(table), list(manifest.warnings)
    labels = _encode(table, targets, errors)
    calibration, split = "", pd.Series("", index=table.index)
    try:
        divided = assign_splits(table, labels[targets[0].name], splits)
    except ValueError as error:
        errors.append(str(error))
    else:
        calibration, split = divided.calibration, divided.split
    known = [target for target in targets if target.name in labels]
    if calibration:
        for target in known:
            errors += _missing_classes(split, labels[target.name], target)
    counts = [c for target in known for c in _count(table, split, labels[target.name], target)]
    if calibration == "cross-fitted":
        warnings.append("Patients are too few for a calibration split: it is cross-fitted.")
    findings = _read_all(manifest, frames, on_progress)
    unreadable = tuple(
        (source, found.reason)
        for source, found in zip(table["source"], findings, strict=True)
        if found.reason
    )
    if unreadable:
        errors.append(f"{len(unreadable)} of {len(table)} files cannot be read.")
    blank = [table["sample_id"][row] for row, found in enumerate(findings) if found.blank]
    if blank:
        warnings.append(f"{len(blank)} row(s) with a blank frame: {shown(blank)}.")
    duplicates = _duplicates(findings)
    _judge_duplicates(duplicates, table, split, labels, errors, warnings)
    return DataReport(
        rows=len(table),
        patients=table["patient_id"].nunique(),
        frames=sum(len(found.sizes) for found in findings),
        counts=tuple(counts),
        calibration=calibration,
        sizes=_histogram(size for found in findings for size in found.sizes),
        pixel_types=_histogram(found.pixel_type for found in findings if found.pixel_type),
        unreadable=unreadable,
        duplicates=tuple(tuple(table["sample_id"][list(group)]) for group in duplicates),
        errors=tuple(errors),
        warnings=tuple(warnings),
    )


def _encode(
    table: pd.DataFrame, targets: Sequence[Target], errors: list[str]
) -> dict[str, NDArray[np.float32]]:
    """The labels of every target that the table has, and what is wrong with them."""
    # A manifest is read by its headline target, so that this one is there.
    labels = {targets[0].name: targets[0].encode(table)}
    for target in targets[1:]:
        try:
            labels[target.name] = target.encode(table)
        except ValueError as error:
            errors.append(str(error))
    try:
        check_studies(table, labels)
    except ValueError as error:
        errors.append(str(error))
    return labels


def _class_names(labels: NDArray[np.float32], target: Target) -> list[str]:
    if isinstance(target, BinaryTarget):
        return [target.classes[int(label)] for label in labels]
    return [target.name] * len(labels)


def _count(
    table: pd.DataFrame, split: pd.Series, labels: NDArray[np.float32], target: Target
) -> tuple[ClassCount, ...]:
    known = np.isfinite(labels)
    keyed = table.loc[known, ["patient_id"]].assign(
        split=split[known], name=_class_names(labels[known], target)
    )
    groups = keyed.groupby(["split", "name"])["patient_id"].agg(["size", "nunique"])
    order = {name: position for position, name in enumerate(SPLITS)}
    counts = [
        ClassCount(split=name[0], class_name=name[1], rows=int(size), patients=int(patients))
        for name, size, patients in groups.itertuples()
    ]
    return tuple(sorted(counts, key=lambda count: (order.get(count.split, 0), count.class_name)))


def _missing_classes(split: pd.Series, labels: NDArray[np.float32], target: Target) -> list[str]:
    if not isinstance(target, BinaryTarget):
        bare = [n for n in SPLITS if (split == n).any() and np.isnan(labels[split == n]).all()]
        return [f"The {name} split has no value of {target.name!r}." for name in bare]
    errors = []
    for name in SPLITS:
        present = set(labels[(split == name).to_numpy()])
        if not present and name == "calibration":
            continue  # cross-fitted
        missing = [target.classes[code] for code in (0, 1) if code not in present]
        if missing:
            absent = " and none with ".join(missing)
            errors.append(f"The {name} split has no patient with {absent}.")
    return errors


def _shared_sources(table: pd.DataFrame) -> list[str]:
    patients = table.groupby("source")["patient_id"].nunique()
    shared = patients.index[patients > 1].tolist()
    return [f"{len(shared)} file(s) stand under two patients: {shown(shared)}."] if shared else []


def _read_all(
    manifest: Manifest,
    frames: FrameSelection,
    on_progress: Callable[[int, int], None] | None,
) -> list[_Findings]:
    wanted = [FrameSelection.parse(text) if text else frames for text in manifest.table["frame"]]
    findings = []
    with ThreadPoolExecutor(max_workers=2 * usable_cores()) as pool:
        for found in pool.map(_read_one, manifest.paths, wanted):
            findings.append(found)
            if on_progress is not None:
                on_progress(len(findings), len(wanted))
    return findings


def _read_one(path: str, frames: FrameSelection) -> _Findings:
    try:
        data = storage.read_bytes(path)
        pixel_type, images = describe_pixels(data), read_frames(data, frames=frames)
    except FileNotFoundError:
        return _Findings(reason="does not exist")
    except READ_ERRORS as error:
        return _Findings(reason=str(error))
    filled = [image for image in images if image.min() < image.max()]
    return _Findings(
        pixel_type=pixel_type,
        sizes=[f"{image.shape[1]} x {image.shape[0]}" for image in images],
        hashes={_hash(image) for image in filled},
        blank=len(images) - len(filled),
    )


def _hash(image: UInt8Image) -> str:
    """Hash of the pixels, so that a picture saved in another format is found too."""
    digest = hashlib.blake2b(str(image.shape).encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.hexdigest()


def _duplicates(findings: list[_Findings]) -> list[tuple[int, ...]]:
    """Groups of rows that share a frame."""
    rows_of = defaultdict(list)
    for row, found in enumerate(findings):
        for digest in found.hashes:
            rows_of[digest].append(row)
    return sorted({tuple(rows) for rows in rows_of.values() if len(rows) > 1})


def _judge_duplicates(
    groups: list[tuple[int, ...]],
    table: pd.DataFrame,
    split: pd.Series,
    labels: Mapping[str, NDArray[np.float32]],
    errors: list[str],
    warnings: list[str],
) -> None:
    """Say how bad equal frames are: a leak, a contradiction, or only a repetition."""
    kinds: dict[str, list[str]] = {"leak": [], "label": [], "patient": [], "same": []}
    for group in groups:
        rows = list(group)
        if split[rows].nunique() > 1:
            kind = "leak"
        elif any(np.unique(v[rows][np.isfinite(v[rows])]).size > 1 for v in labels.values()):
            kind = "label"
        elif table["patient_id"][rows].nunique() > 1:
            kind = "patient"
        else:
            kind = "same"
        kinds[kind].append(" = ".join(table["sample_id"][rows]))
    for kind, text, heard in (
        ("leak", "group(s) of equal frames lie in several splits", errors),
        ("label", "group(s) of equal frames have contradictory labels", errors),
        ("patient", "group(s) of equal frames belong to several patients of one split", warnings),
        ("same", "group(s) of equal frames within one patient", warnings),
    ):
        if kinds[kind]:
            heard.append(f"{len(kinds[kind])} {text}: {shown(kinds[kind])}.")


def _histogram(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def print_report(report: DataReport, console: Console | None = None) -> None:
    """Show a report on the screen; long lists end with how much was left out."""
    console = console or Console()
    console.print(f"{report.rows} rows, {report.patients} patients, {report.frames} frames read")
    counts = Table("split", "class", title="Labels", title_justify="left")
    for heading in ("patients", "rows"):
        counts.add_column(heading, justify="right")
    for count in report.counts:
        cells = (count.split or "-", count.class_name, str(count.patients), str(count.rows))
        counts.add_row(*map(escape, cells))
    console.print(counts)
    for title, histogram in (("Frame sizes", report.sizes), ("Stored pixels", report.pixel_types)):
        if histogram:
            _print_rows(console, title, ("", "count"), list(histogram.items()))
    if report.unreadable:
        _print_rows(console, "Cannot be read", ("source", "reason"), report.unreadable)
    for text in report.warnings:
        console.print(f"[yellow]warning[/yellow]  {escape(text)}")
    for text in report.errors:
        console.print(f"[red]error[/red]  {escape(text)}")
    if not report.errors:
        console.print("[green]no errors[/green]")


def _print_rows(
    console: Console, title: str, headings: tuple[str, str], rows: Iterable[tuple[str, object]]
) -> None:
    listed = list(rows)
    table = Table(title=title, title_justify="left", show_header=bool(headings[0]))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for first, second in listed[:_PRINTED_ROWS]:
        table.add_row(escape(first), escape(str(second)))
    console.print(table)
    if len(listed) > _PRINTED_ROWS:
        console.print(f"and {len(listed) - _PRINTED_ROWS} more")
