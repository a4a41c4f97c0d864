"""What is in a data set and what is wrong with it, before anything is trained on it."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cardioray.data.decoding import Decoder, ImageDecoder, Inspection, LabelledDecoder
from cardioray.data.frames import READ_ERRORS
from cardioray.data.image import ImagePreprocess
from cardioray.data.isolation import IsolatedDecoder, IsolationConfig, isolated
from cardioray.data.layouts import SPLITS, as_text, shown
from cardioray.data.manifest import Manifest, check_studies
from cardioray.data.nifti import read_labels, read_source
from cardioray.data.splits import SplitConfig, assign_splits
from cardioray.machine import usable_cores
from cardioray.targets import BinaryTarget, Target

_PRINTED_ROWS = 10
# Columns of a manifest whose values are counted, where it has them.
_GROUPS = ("view", "phase", "image_quality")


@dataclass(frozen=True)
class ClassCount:
    """How many rows and patients of a class (or with a number) a split has."""

    split: str
    class_name: str
    rows: int
    patients: int


@dataclass(frozen=True)
class Numbers:
    """How the values of a number are distributed in a split.

    Attributes:
        split: the split.
        target: name of the number.
        unit: its unit.
        mean: mean value.
        deviation: standard deviation.
        low: lowest value.
        high: highest value.
        below: rows below each of the target's cut-offs.
    """

    split: str
    target: str
    unit: str
    mean: float
    deviation: float
    low: float
    high: float
    below: dict[float, int]


@dataclass(frozen=True)
class DataReport:
    """The findings of `check_manifest`.

    Attributes:
        rows: rows of the manifest with a label.
        patients: patients among them.
        frames: pictures that were decoded.
        counts: rows and patients by split and class; a patient with rows of two classes counts
            in both.
        numbers: distribution of values by split.
        calibration: "held-out", "cross-fitted", or "" where the splits are wrong.
        sizes: number of frames by "width x height"; where there are several views, of each.
        pixel_types: number of files by how they store pixels, likewise.
        groups: of the columns that divide the rows ("view", "phase", "image_quality"), rows by
            value.
        label_maps: rows whose label map was read and fits.
        unreadable: source and reason of every file that cannot be read.
        duplicates: sample ids of rows that share a frame, group by group.
        errors: what must be mended before training, as sentences.
        warnings: what should be known.
    """

    rows: int
    patients: int
    frames: int
    counts: tuple[ClassCount, ...]
    numbers: tuple[Numbers, ...]
    calibration: str
    sizes: dict[str, int]
    pixel_types: dict[str, int]
    groups: dict[str, dict[str, int]]
    label_maps: int
    unreadable: tuple[tuple[str, str], ...]
    duplicates: tuple[tuple[str, ...], ...]
    errors: tuple[str, ...]
    warnings: tuple[str, ...]


def check_manifest(
    manifest: Manifest,
    *targets: Target,
    splits: SplitConfig = SplitConfig(),  # noqa: B008 (frozen)
    decoder: Decoder = ImageDecoder(preprocess=ImagePreprocess(), frames="all"),  # noqa: B008
    needs_labels: bool = True,
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
        decoder: reads the files.
        needs_labels: whether a split without any label is an error.
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
    if calibration and needs_labels:
        for target in known:
            errors += _missing_classes(split, labels[target.name], target)
    counts = [c for target in known for c in _count(table, split, labels[target.name], target)]
    if calibration == "cross-fitted":
        warnings.append("Patients are too few for a calibration split: it is cross-fitted.")
    findings = _read_all(manifest, decoder, on_progress)
    unreadable = tuple(
        (source, found)
        for source, found in zip(table["source"], findings, strict=True)
        if isinstance(found, str)
    )
    if unreadable:
        errors.append(f"{len(unreadable)} of {len(table)} files cannot be read.")
    read = {row: found for row, found in enumerate(findings) if not isinstance(found, str)}
    views = _view_prefixes(table)
    blank = [table["sample_id"][row] for row, found in read.items() if found.blank]
    if blank:
        warnings.append(f"{len(blank)} row(s) with a blank frame: {shown(blank)}.")
    duplicates = _duplicates(read)
    _judge_duplicates(duplicates, table, split, labels, errors, warnings)
    return DataReport(
        rows=len(table),
        patients=table["patient_id"].nunique(),
        frames=sum(len(found.sizes) for found in read.values()),
        counts=tuple(counts),
        numbers=tuple(n for target in known for n in _numbers(split, labels[target.name], target)),
        calibration=calibration,
        sizes=_histogram(views[row] + size for row, found in read.items() for size in found.sizes),
        pixel_types=_histogram(views[row] + found.kind for row, found in read.items()),
        groups={
            name: _histogram(as_text(value) or "not said" for value in table[name])
            for name in _GROUPS
            if name in table
        },
        label_maps=len(read) if isinstance(decoder, LabelledDecoder) else 0,
        unreadable=unreadable,
        duplicates=tuple(tuple(table["sample_id"][list(group)]) for group in duplicates),
        errors=tuple(errors),
        warnings=tuple(warnings),
    )


def _view_prefixes(table: pd.DataFrame) -> list[str]:
    """Beginnings that tell rows of several views apart; "" everywhere where there is one view."""
    views = [as_text(value) for value in table["view"]] if "view" in table else []
    if len(set(views)) < 2:
        return [""] * len(table)
    return [f"{view or 'view not said'}, " for view in views]


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


def _numbers(split: pd.Series, labels: NDArray[np.float32], target: Target) -> list[Numbers]:
    """How the values of a target are distributed in each split."""
    if isinstance(target, BinaryTarget):
        return []
    found = []
    for name in [s for s in SPLITS if (split == s).any()]:
        values = labels[(split == name).to_numpy() & np.isfinite(labels)].astype(float)
        if len(values):
            found.append(
                Numbers(
                    split=name,
                    target=target.name,
                    unit=target.unit,
                    mean=float(values.mean()),
                    deviation=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
                    low=float(values.min()),
                    high=float(values.max()),
                    below={cut: int((values < cut).sum()) for cut in target.cutoffs},
                )
            )
    return found


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
    decoder: Decoder,
    on_progress: Callable[[int, int], None] | None,
) -> list[Inspection | str]:
    """What is in every file, or why it cannot be read."""
    frames = [text or None for text in manifest.table["frame"]]
    findings: list[Inspection | str] = []
    workers = usable_cores() if decoder.risky else 2 * usable_cores()
    with (
        isolated(decoder, IsolationConfig(), processes=workers) as reader,
        ThreadPoolExecutor(max_workers=workers) as pool,
    ):
        masks = manifest.masks if isinstance(decoder, LabelledDecoder) else [None] * len(frames)
        for found in pool.map(functools.partial(_read_one, reader), manifest.paths, frames, masks):
            findings.append(found)
            if on_progress is not None:
                on_progress(len(findings), len(frames))
    return findings


def _read_one(
    reader: Decoder | IsolatedDecoder, path: str, frames: str | None, mask: str | None
) -> Inspection | str:
    try:
        data = read_source(path)
        found = reader.inspect(data, frames)
    except FileNotFoundError:
        return "does not exist"
    except READ_ERRORS as error:
        return str(error)
    if mask is None:
        return found
    assert isinstance(reader, LabelledDecoder | IsolatedDecoder)
    try:
        reader.decode_labelled(data, read_labels(mask), frames)
    except FileNotFoundError:
        return f"its label map {mask} does not exist"
    except READ_ERRORS as error:
        return f"its label map: {error}"
    return found


def _duplicates(findings: Mapping[int, Inspection]) -> list[tuple[int, ...]]:
    """Groups of rows that share a frame."""
    rows_of = defaultdict(list)
    for row, found in findings.items():
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
    maps = f", {report.label_maps} of them with label maps" * bool(report.label_maps)
    console.print(
        f"{report.rows} rows, {report.patients} patients, {report.frames} frames read{maps}"
    )
    for name, values in report.groups.items():
        listed = ", ".join(f"{value} {count}" for value, count in values.items())
        console.print(f"rows by {name}: {listed}", highlight=False, markup=False)
    counts = Table("split", "class or number", title="Labels", title_justify="left")
    for heading in ("patients", "rows"):
        counts.add_column(heading, justify="right")
    for count in report.counts:
        cells = (count.split or "-", count.class_name, str(count.patients), str(count.rows))
        counts.add_row(*map(escape, cells))
    console.print(counts)
    for number in report.numbers:
        below = ", ".join(f"{count} below {cut:g}" for cut, count in number.below.items())
        below = f"; of rows, {below}" * bool(below)
        console.print(
            f"{number.target} ({number.split}): {number.mean:.2f} ± {number.deviation:.2f} "
            f"{number.unit}, {number.low:.2f} to {number.high:.2f}{below}",
            highlight=False,
        )
    for title, histogram in (("Frame sizes", report.sizes), ("Stored pixels", report.pixel_types)):
        if histogram:
            _print_rows(console, title, ("", "count"), list(histogram.items()))
    if report.unreadable:
        _print_rows(console, "Cannot be read", ("source", "reason"), report.unreadable, most=None)
    for text in report.warnings:
        console.print(f"[yellow]warning[/yellow]  {escape(text)}")
    for text in report.errors:
        console.print(f"[red]error[/red]  {escape(text)}")
    if not report.errors:
        console.print("[green]no errors[/green]")


def _print_rows(
    console: Console,
    title: str,
    headings: tuple[str, str],
    rows: Iterable[tuple[str, object]],
    most: int | None = _PRINTED_ROWS,
) -> None:
    listed = list(rows)
    table = Table(title=title, title_justify="left", show_header=bool(headings[0]))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for first, second in listed[:most]:
        table.add_row(escape(first), escape(str(second)))
    console.print(table)
    if most is not None and len(listed) > most:
        console.print(f"and {len(listed) - most} more")
