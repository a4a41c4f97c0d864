"""Answers for many files: one row a study, spread over the cluster, resumable.

Beside the table stand `<out>.quarantine.csv`, the files that could not be read, and
`<out>.parts/`, what a killed run has finished.
"""

from __future__ import annotations

import io
import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

import cardioray
from cardioray import config, storage
from cardioray.answers import ModelOutputs
from cardioray.data import cluster
from cardioray.data.decoding import DecodedSample
from cardioray.data.frames import FrameSelection
from cardioray.data.image import UnreadableImage
from cardioray.data.keyframe_layouts import phases_of_cines
from cardioray.data.layouts import TABLE_SUFFIXES, as_text, find_table, read_table, shown
from cardioray.data.manifest import resolve
from cardioray.data.shards import write_quarantine, write_table
from cardioray.dicom_results.objects import dicom_kinds
from cardioray.inference.actors import (
    FILES_PER_BATCH,
    Loading,
    Precision,
    PredictorActor,
    RuntimeName,
    SourceFile,
    run_on_actors,
)
from cardioray.inference.columns import as_csv, require_videos, video_rows
from cardioray.inference.dicom_files import DicomFiles
from cardioray.model_store import bundle_place
from cardioray.outlines import parse_spacing
from cardioray.systoles import OutlinedBeatsPredictor
from cardioray.tasks.base import Task
from cardioray.tasks.keyframe_ef import KeyframeEfTask
from cardioray.tasks.lv_seg import LvSegTask
from cardioray.terminal import progress_bar

log = logging.getLogger(__name__)

# A part is what a killed run may have to do again, and what an actor gets at a time.
FILES_PER_PART = 64
RECORD = "complete.json"


@dataclass(frozen=True)
class Study:
    """Files that get one answer.

    Attributes:
        study_id: from the table, the pattern, or the path of the only file.
        files: in a fixed order.
    """

    study_id: str
    files: tuple[SourceFile, ...]


@dataclass(frozen=True)
class _Part:
    """Some studies, and the file that holds their answers once it exists."""

    path: str
    studies: tuple[Study, ...]

    @property
    def num_files(self) -> int:
        return sum(len(study.files) for study in self.studies)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> _Part:
        values = json.loads(text)
        studies = (
            Study(study["study_id"], tuple(SourceFile(**file) for file in study["files"]))
            for study in values["studies"]
        )
        return cls(values["path"], tuple(studies))


def predict_files(
    bundle: str,
    paths: Sequence[str],
    out: str,
    *,
    study_from: str | None = None,
    shared_storage: bool = False,
    console: Console | None = None,
    runtime: RuntimeName = "auto",
    precision: Precision = "auto",
    columns: str | None = None,
    dicom: Sequence[str] = (),
    systoles_from: str | None = None,
    spacing_mm: str | None = None,
) -> pd.DataFrame:
    """Answer for every study of some files as `Predictor.predict` would, and write a table.

    The same call goes on where a killed one was; with unchanged files and bundle it does nothing.
    A study of which some files cannot be read is answered from the others, with a warning.

    Args:
        bundle: local directory or s3:// prefix of a bundle, or of a comparison for its winner.
        paths: files, folders, s3:// prefixes, or tables with a column `source` (and `study_id` or
            `patient_id`, `frame`, `view`, `split`, and for outlines `spacing_mm`). A folder is
            read by the `manifest.*` in it where it has one. For key frames, a table of cines with
            `ed_frame` and `es_frame` stands for the frames that it names.
        out: the table to write, .parquet or .csv.
        study_from: regular expression searched in each file name; files with the same group
            "study", or first group, are one study. By default each file is one.
        shared_storage: every node of the cluster mounts the local folders.
        console: where progress is shown.
        runtime: as in `Predictor`.
        precision: as in `Predictor`.
        columns: a name of `COLUMNS`: the table then holds the headline's uncalibrated predictions
            of each video in the columns of another project, instead of answers. A video of
            another view than the network was trained on goes to the quarantine.
        dicom: outlines ("seg") and measurements ("sr") of studies of DICOM files, written below
            `<out>.dicom/`; a study of other files goes to the quarantine.
        systoles_from: as in `cardioray.load`.
        spacing_mm: of outlines: height and width of a pixel in mm ("0.31,0.31", or one number of
            square ones) of files that do not state it and of which no table says it.

    Returns:
        One row a study that could be answered, by study_id: `study_id`, `sources`, the fields of
        each target as `<target>_<field>`, `frames`, `model`, `bundle`, `warnings`. Lists and what
        is told by view are JSON.

    Raises:
        ValueError: when there is no file, none can be read, a pattern, table or pixel size is at
            fault, or the size of a pixel is said where nothing is measured.
    """
    if not out.endswith((".parquet", ".csv")):
        raise ValueError(f"--out {out}: the table is a .parquet or .csv file.")
    cluster.connect()
    bundle, out = storage.absolute(bundle_place(bundle)), storage.absolute(out)
    if systoles_from is not None:
        systoles_from = storage.absolute(bundle_place(systoles_from))
    inputs = [storage.absolute(path) for path in paths]
    for path in (bundle, out, *inputs, *([systoles_from] if systoles_from else [])):
        cluster.require_shared(path, shared_storage)
    loading = Loading(bundle, runtime, precision, systoles_from)
    written = DicomFiles(dicom_kinds(dicom), f"{out}.dicom")
    with tempfile.TemporaryDirectory(prefix="cardioray-predict-") as scratch:
        predictor = loading.open(Path(scratch), network=False)
        task, identity = predictor.task, predictor.bundle.identity
        if columns is not None:
            require_videos(task, columns)
        written.require(predictor)
        outliner = ""
        if isinstance(predictor, OutlinedBeatsPredictor):
            outliner = predictor.outliner.bundle.identity
    studies = find_studies(inputs, study_from, task, out, spacing_mm)
    settings = [cardioray.__version__, identity, runtime, precision, columns or ""]
    settings += [outliner, *written.kinds]
    parts = _plan(studies, settings, f"{out}.parts")
    _run(parts, loading, f"{out}.parts", console or Console(), columns, written)
    return _collect(parts, out, columns)


def find_studies(
    paths: Sequence[str],
    study_from: str | None,
    task: Task,
    out: str,
    spacing_mm: str | None = None,
) -> list[Study]:
    """The studies of some absolute paths, by study_id; see `predict_files`.

    Raises:
        ValueError: when a path does not exist or holds no file, a pattern, table or pixel size is
            at fault, or the size of a pixel is said where nothing is measured.
    """
    spacing = ""
    if spacing_mm is not None:
        if not isinstance(task, LvSegTask):
            raise ValueError(f"Leave out --spacing-mm: {task.name} measures nothing in the files.")
        spacing = _spacing(spacing_mm)
    grouped: dict[str, dict[SourceFile, None]] = {}
    for path in paths:
        rows = [
            (study, replace(file, spacing_mm=file.spacing_mm or spacing))
            for study, file in _rows_of(path, task, out)
        ]
        if not rows:
            raise ValueError(f"{path} holds no file to answer for.")
        for study, file in rows:
            if study_from is not None and study:
                raise ValueError(f"{path} names its studies; leave out the study pattern.")
            name = study or (_match_study(file, study_from) if study_from else file.path)
            grouped.setdefault(name, {})[file] = None
    return [Study(name, tuple(files)) for name, files in sorted(grouped.items())]


def _spacing(text: str) -> str:
    """The size of a pixel as `parse_spacing` reads it; one number is the side of a square one."""
    text = text if "," in text else f"{text},{text}"
    parse_spacing(text)
    return text


def _rows_of(path: str, task: Task, out: str) -> Iterator[tuple[str, SourceFile]]:
    """Study ("" where nothing names it) and file of everything that a path stands for."""
    table: str | None = path if path.lower().endswith(TABLE_SUFFIXES) else None
    files = [path]
    if table is None:
        if not storage.exists(path):
            raise ValueError(f"{path} does not exist.")
        if storage.is_remote(path):
            files = storage.list_files(path) or files
        elif Path(path).is_dir():
            files = storage.list_files(path)
        if files != [path]:
            table = find_table(path, "manifest")
    if table is not None:
        yield from _table_rows(table, task)
        return
    for file in files:
        # Not what an earlier run left in the folder of its own input.
        if not file.lower().endswith(TABLE_SUFFIXES) and not file.startswith(f"{out}."):
            yield "", SourceFile(file)


def _table_rows(path: str, task: Task) -> Iterator[tuple[str, SourceFile]]:
    table = read_table(path, task.targets)
    if "source" not in table:
        raise ValueError(f"{path} has no column source, only {', '.join(table.columns)}.")
    table = table.assign(number=range(1, len(table) + 1))
    if isinstance(task, KeyframeEfTask) and {"ed_frame", "es_frame"} <= set(table):
        table = _key_frames(table, path)
    study = next((name for name in ("study_id", "patient_id") if name in table), None)
    base = path.rsplit("/", 1)[0] or "/"
    for row in table.to_dict("records"):
        source, frames = as_text(row["source"]), as_text(row.get("frame"))
        if not source:
            raise ValueError(f"{path}, row {row['number']}: no source.")
        # Other tables may have a column of this name, which their tasks have no use for.
        pixel = as_text(row.get("spacing_mm")) if isinstance(task, LvSegTask) else ""
        try:
            selection = str(FrameSelection.parse(frames)) if frames else ""
            pixel = _spacing(pixel) if pixel else ""
        except ValueError as error:
            raise ValueError(f"{path}, row {row['number']}: {error}") from None
        name = as_text(row[study]) if study else ""
        # Of a frame, the phase belongs to what it shows: "A4C-ED".
        shown = (as_text(row.get("view")), as_text(row.get("phase")))
        view, split = "-".join(filter(None, shown)), as_text(row.get("split"))
        told = task.facts_of_row({str(name): value for name, value in row.items()})
        facts = tuple(told.items())
        place = resolve(base, source)
        yield name, SourceFile(place, selection, view, split, pixel, facts=facts)


def _key_frames(table: pd.DataFrame, path: str) -> pd.DataFrame:
    """The key frames of a table of cines, a row each; a table that names phases is one already."""
    if "phase" in table:
        return table
    names = [as_text(name) for name in table.get("sample_id", [""] * len(table))]
    sources = [as_text(source) for source in table["source"]]
    table["sample_id"] = [name or source for name, source in zip(names, sources, strict=True)]
    frames, lost = phases_of_cines(table)
    if lost:
        log.warning("%s: %d cine(s) without key frames are left out.", path, lost)
    return frames


def _match_study(file: SourceFile, pattern: str) -> str:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"Study pattern {pattern!r} is no regular expression: {error}.") from None
    if not expression.groups:
        raise ValueError(
            f"Study pattern {pattern!r} needs a group, such as (?P<study>S[0-9]+)_[0-9]+."
        )
    match = expression.search(PurePosixPath(file.path).name)
    group: int | str = "study" if "study" in expression.groupindex else 1
    if match is None or not match[group]:
        raise ValueError(f"Study pattern {pattern!r} finds no study in {file.path}.")
    return match[group]


def _plan(studies: Sequence[Study], settings: list[str], folder: str) -> list[_Part]:
    """Parts of about FILES_PER_PART files, named by everything that their answers depend on."""
    paths = sorted({file.path for study in studies for file in study.files})
    prints = dict(zip(paths, storage.fingerprints(paths), strict=True))
    parts: list[_Part] = []
    waiting: list[Study] = []
    for number, study in enumerate(studies, start=1):
        waiting.append(study)
        if sum(len(s.files) for s in waiting) < FILES_PER_PART and number < len(studies):
            continue
        files = [
            [s.study_id, f.path, f.frames, f.view, f.split, f.spacing_mm, prints[f.path]]
            for s in waiting
            for f in s.files
        ]
        name = f"part-{len(parts):05d}-{config.digest([settings, files])}.parquet"
        parts.append(_Part(storage.join(folder, name), tuple(waiting)))
        waiting = []
    return parts


def _run(
    parts: Sequence[_Part],
    loading: Loading,
    folder: str,
    console: Console,
    columns: str | None,
    written: DicomFiles,
) -> None:
    present = set(storage.list_files(folder)) if storage.exists(folder) else set()
    pending = [part for part in parts if part.path not in present]
    total = sum(part.num_files for part in parts)
    done = total - sum(part.num_files for part in pending)
    with progress_bar(console, "answering", total) as advance:
        advance(done, total)
        if pending:
            chunks = [part.to_json() for part in pending]
            for finished in run_on_actors(_AnswerPart, loading, chunks, columns, written):
                done += int(finished)
                advance(done, total)


class _AnswerPart(PredictorActor):
    """Answers for the studies of a part and writes its file, whole or not at all."""

    def __init__(
        self, loading: Loading, threads: int, columns: str | None, written: DicomFiles
    ) -> None:
        super().__init__(loading, threads)
        self._columns = columns
        self._written = written

    def __call__(self, row: Mapping[str, str]) -> dict[str, str]:
        part = _Part.from_json(row["chunk"])
        windows = side_by_side([len(study.files) for study in part.studies])
        rows = [row for window in windows for row in self._answer(part.studies[window])]
        write_table(part.path, pd.DataFrame(rows))
        return {"result": str(part.num_files)}

    def _answer(self, studies: Sequence[Study]) -> list[dict[str, Any]]:
        """One row a study: what was read, its answer as JSON or None, and what was not read."""
        decoded = iter(self.decode([file for study in studies for file in study.files]))
        rows: list[dict[str, Any]] = []
        samples: list[list[DecodedSample]] = []
        for study in studies:
            read, unread, found = [], [], []
            for file in study.files:
                result = next(decoded)
                if isinstance(result, str):
                    unread.append((file.path, result))
                else:
                    read.append(file)
                    found.extend(result)
            samples.append(found)
            rows.append({"study_id": study.study_id, "read": read, "unread": unread})
        for mine in side_by_side([len(found) for found in samples]):
            self._infer(rows[mine], samples[mine])
        return rows

    def _infer(
        self, rows: Sequence[dict[str, Any]], samples: Sequence[Sequence[DecodedSample]]
    ) -> None:
        """Complete the rows of some studies by their answers, from one run of the network."""
        everything = [sample for found in samples for sample in found]
        outputs = self.predictor.infer(everything) if everything else None
        start = 0
        for row, found in zip(rows, samples, strict=True):
            answer = None
            if found:
                assert outputs is not None
                own = outputs[start : start + len(found)]
                try:
                    answer = self._answer_study(found, own, row)
                except UnreadableImage as error:  # none of its cines shows what was learned
                    row["unread"] += [(file.path, str(error)) for file in row["read"]]
            start += len(found)
            paths = json.dumps([file.path for file in row["read"]])
            row.update(read=paths, unread=json.dumps(row["unread"]), answer=answer)

    def _answer_study(
        self, samples: Sequence[DecodedSample], outputs: ModelOutputs, row: Mapping[str, Any]
    ) -> str:
        if self._columns is not None:
            return json.dumps(self._video_rows(self._columns, samples, outputs, row))
        answering: Callable[..., dict[str, Any]] = self.predictor.answer
        answer = answering(samples, outputs, **self._written.options(row["read"]))
        answer = self._written.write(row["study_id"], answer)
        if unread := len(row["unread"]):
            answer["warnings"].append(
                f"{unread} of {len(row['read']) + unread} files of the study could not be read."
            )
        return json.dumps(answer)

    def _video_rows(
        self,
        columns: str,
        samples: Sequence[DecodedSample],
        outputs: ModelOutputs,
        row: Mapping[str, Any],
    ) -> list[dict[str, Any]]:
        """The rows of a study's videos; those that the network was not asked about are unread."""
        files: list[SourceFile] = row["read"]
        row["unread"].extend(
            (file.path, "The cine shows no view that the network was trained on.")
            for file, used in zip(files, outputs.asked, strict=True)
            if not used
        )
        places = np.flatnonzero(outputs.asked)
        asked = places.tolist()
        return video_rows(
            columns,
            [PurePosixPath(files[i].path).name for i in asked],
            [samples[i] for i in asked],
            outputs.take(places),
            self.predictor.task.targets[0].name,
            [files[i].split for i in asked],
        )


def side_by_side(counts: Sequence[int]) -> Iterator[slice]:
    """Whole studies that are decoded, or go through the network, together.

    As many as fill a batch, whether of files or of the frames in them: what a network says of
    every pixel of a cine is large, and is answered from before the next cine.

    Args:
        counts: files or samples of each study.
    """
    first = waiting = 0
    for number, count in enumerate(counts, start=1):
        waiting += count
        if waiting >= FILES_PER_BATCH or number == len(counts):
            yield slice(first, number)
            first, waiting = number, 0


def _collect(parts: Sequence[_Part], out: str, columns: str | None) -> pd.DataFrame:
    """The table of all parts; written with the quarantine unless that was done before."""
    pieces = [pd.read_parquet(io.BytesIO(storage.read_bytes(part.path))) for part in parts]
    raw = pd.concat(pieces, ignore_index=True)
    answered = raw[raw["answer"].notna()]
    rows = zip(answered["study_id"], answered["read"], answered["answer"], strict=True)
    if columns is None:
        table = pd.DataFrame([_flat(*row) for row in rows])
    else:
        table = pd.DataFrame([row for _, _, text in rows for row in json.loads(text)])
    unread = [tuple(pair) for text in raw["unread"] for pair in json.loads(text)]
    record = storage.join(f"{out}.parts", RECORD)
    done = config.digest([part.path for part in parts]).encode()
    if not (storage.exists(out) and storage.exists(record) and storage.read_bytes(record) == done):
        write_quarantine(f"{out}.quarantine.csv", unread)
        if not len(table):
            reasons = shown([f"{source}: {reason}" for source, reason in unread])
            raise ValueError(f"None of the {len(unread)} files can be read: {reasons}")
        if out.endswith(".csv"):
            text = table.to_csv(index=False).encode() if columns is None else as_csv(columns, table)
            storage.write_bytes(out, text)
        else:
            write_table(out, table)
        storage.write_bytes(record, done)
    return table


def _flat(study_id: str, read: str, answer: str) -> dict[str, Any]:
    """An answer as one row of a table."""
    row: dict[str, Any] = {"study_id": study_id, "sources": read}
    for name, value in json.loads(answer).items():
        fields = {name: value}
        if isinstance(value, dict):
            fields = {f"{name}_{key}": field for key, field in value.items()}
        row |= {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in fields.items()}
    return row
