"""From a data set with label maps to what a segmentation bundle is scored by, on the cluster."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console

from cardioray.bundle import Bundle
from cardioray.data.decoding import DecodedSample
from cardioray.data.isolation import IsolatedDecoder, IsolationConfig
from cardioray.data.manifest import Manifest, check_studies
from cardioray.data.nifti import read_labels, read_source
from cardioray.data.segment import IMAGE, REFERENCE
from cardioray.evaluation.segment_panels import Picture
from cardioray.evaluation.segment_report import PREDICTED_MAP
from cardioray.inference.actors import Loading, SourceFile
from cardioray.inference.scoring import (
    PREDICTIONS,
    Labels,
    Scored,
    ScoringActor,
    computed_with_of,
    differences_of,
    held_rows,
    must_be_new,
    own_notes,
    refuse_shards,
    rows_of_split,
    score_on_actors,
    unread_notes,
    unread_of,
    unseen_patients,
)
from cardioray.models.segmentation import MASKS
from cardioray.predictor import Predictor
from cardioray.tasks.base import ScoredRows, encode_labels
from cardioray.tasks.lv_seg import LvSegTask
from cardioray.tasks.outline_tables import GEOMETRY

PARTS = "parts.parquet"
# Label maps and probabilities of so many frames are in memory together.
_FILES_PER_CHUNK = 16


def score_outlines(
    predictor: Predictor,
    loading: Loading,
    data: str,
    split: str,
    patient_from: str | None,
    console: Console,
    noise: float = 0.0,
) -> Scored:
    """Decode the frames of one split with their label maps, outline and measure them.

    A study's number is made of several frames: where one of them took part in making the bundle,
    all frames of the patient are left out.

    Args:
        predictor: of the bundle; its network is not used.
        loading: how actors load the bundle.
        data: a data set as `prepare` takes it, with label maps.
        split: which rows; as of `score_files`.
        patient_from: regular expression that finds the patient in a file name.
        console: where progress is shown.
        noise: share of the pixels of every picture that are made black beforehand.

    Raises:
        ValueError: as `score_files`.
    """
    refuse_shards(data)
    task = predictor.task
    assert isinstance(task, LvSegTask)
    manifest = task.read_manifest(data, patient_from)
    labels = encode_labels(task, manifest.table)
    held = held_rows(pd.read_parquet(predictor.bundle.path / PARTS), manifest)
    is_own = _is_own(predictor.bundle, held, manifest, labels)
    chosen = rows_of_split(manifest, held if is_own else None, split)
    check_studies(manifest.table.iloc[chosen], {n: v[chosen] for n, v in labels.items()})
    paths, masks, frames = manifest.paths, manifest.masks, manifest.table["frame"]
    files = [[int(i), paths[i], frames.iloc[i], masks[i]] for i in chosen]
    results = score_on_actors(_MeasureFiles, loading, files, _FILES_PER_CHUNK, console, noise)
    unread = unread_of(results, len(chosen))
    rows, notes = _scored_rows(manifest, labels, results, split), list(manifest.warnings)
    if must_be_new(is_own, split):
        seen = np.concatenate([np.array(result["seen"], bool) for result in results])
        rows, seen_notes = _without_seen(rows, seen)
        notes += seen_notes
    tables = task.tables(rows)
    notes += task.warnings(rows.samples)
    notes += unread_notes(unread, len(chosen))
    computed_with = computed_with_of(results)
    differences = None
    if is_own and len(tables.predictions):
        own = pd.read_parquet(predictor.bundle.path / PREDICTIONS)
        differences = differences_of(tables.predictions, own, split)
    notes += own_notes(held, differences, is_own, f"{split} studies", computed_with)
    return Scored(
        tables.predictions,
        tuple(notes),
        computed_with,
        differences,
        unread,
        parts=tables.parts,
        lookup=_Files(task, manifest),
    )


def _is_own(bundle: Bundle, held: pd.DataFrame, manifest: Manifest, labels: Labels) -> bool:
    """Whether every frame that the bundle scored is here, with its patient and its numbers."""
    if held["row"].isna().any():
        return False
    rows = held["row"].to_numpy(int)
    if (held["patient_id"].to_numpy() != manifest.table["patient_id"].to_numpy()[rows]).any():
        return False
    predictions = pd.read_parquet(bundle.path / PREDICTIONS)
    row_of = dict(zip(held["study_id"].astype(str), rows, strict=True))
    places = predictions["study_id"].astype(str).map(row_of)
    for name, values in labels.items():
        mine = ((predictions["head"] == name) & places.notna()).to_numpy()
        here = values[places[mine].to_numpy(int)]
        known = np.isfinite(here)  # elsewhere, the label is what the reference outlines give
        if not np.array_equal(here[known], predictions["label"][mine].to_numpy(np.float32)[known]):
            return False
    return True


class _MeasureFiles(ScoringActor):
    """Outlines the frames of some files, and measures them against their label maps."""

    def __call__(self, row: Mapping[str, str]) -> dict[str, str]:
        chunk = json.loads(row["chunk"])
        files = [SourceFile(path, frames, mask=mask) for _, path, frames, mask in chunk]
        decoded = self.decode_chunk([position for position, *_ in chunk], files)
        seen = self.predictor.seen(decoded.samples).tolist()
        found = self.with_noise(decoded.samples, chunk[0][0])
        most = self.predictor.task.max_batch
        starts = range(0, len(found), most)
        scored = {
            "first": chunk[0][0],
            "files": len(chunk),
            "unread": decoded.unread,
            "samples": decoded.origins,
            "seen": seen,
            "geometry": [_geometry(sample) for sample in found],
            "measures": [row for i in starts for row in self._measured(found[i : i + most])],
            "computed_with": self.computed_with,
        }
        return {"result": json.dumps(scored)}

    def _measured(self, samples: Sequence[DecodedSample]) -> list[dict[str, Any]]:
        """What is measured of each frame, ready for JSON."""
        task = self.predictor.task
        assert isinstance(task, LvSegTask)
        shown = [
            replace(s, arrays={name: s.arrays[name] for name in task.columns}) for s in samples
        ]
        probabilities = torch.from_numpy(self.predictor.infer(shown).scores[MASKS])
        logits = probabilities.clamp(min=1e-12).log()
        rows = [
            task.measure(own, _geometry(sample), sample.arrays[REFERENCE])
            for own, sample in zip(logits, samples, strict=True)
        ]
        return [{name: _as_json(value) for name, value in row.items()} for row in rows]


def _geometry(sample: DecodedSample) -> list[float]:
    """What `GEOMETRY` names, as the table of shards has it."""
    height, width = sample.source_shape
    known = {**sample.facts, "height_px": float(height), "width_px": float(width)}
    return [known[name] for name in GEOMETRY]


def _as_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.tolist() if isinstance(value, np.ndarray) else float(value)


def _scored_rows(
    manifest: Manifest,
    labels: Labels,
    results: Sequence[Mapping[str, Any]],
    split: str,
) -> ScoredRows:
    """What the actors found, as a finished training would hand it to the task."""
    found = [sample for result in results for sample in result["samples"]]
    rows = np.array([position for position, _, _ in found])
    samples = manifest.table.iloc[rows].reset_index(drop=True)
    suffixes = np.array([suffix for _, suffix, _ in found], dtype=object)
    samples["sample_id"] = samples["sample_id"].to_numpy(object) + suffixes
    samples["frame"] = [frame for _, _, frame in found]
    samples["row"] = rows
    sides = np.array([numbers for result in results for numbers in result["geometry"]])
    for name, values in zip(GEOMETRY, sides.T, strict=True):
        samples[name] = values
    measured = [row for result in results for row in result["measures"]]
    measures: dict[str, NDArray[Any]] = {}
    for name in measured[0]:
        column = [row[name] for row in measured]
        if name == PREDICTED_MAP:
            measures[name] = np.array([base64.b64decode(text) for text in column], dtype=object)
        else:
            measures[name] = np.array(column, float)
    own = {name: values[rows] for name, values in labels.items()}
    return ScoredRows(samples=samples, split=split, labels=own, measures=measures, one_window={})


def _without_seen(scored: ScoredRows, seen: NDArray[np.bool_]) -> tuple[ScoredRows, list[str]]:
    """Leave out patients of whom a frame took part in making the model; gives what to say of it.

    Raises:
        ValueError: when nobody is left.
    """
    if not seen.any():
        return scored, []
    own, notes = unseen_patients(scored.samples["patient_id"], seen)
    kept = replace(
        scored,
        samples=scored.samples[own].reset_index(drop=True),
        labels={name: values[own] for name, values in scored.labels.items()},
        measures={name: values[own] for name, values in scored.measures.items()},
    )
    return kept, notes


class _Files:
    """Finds the pictures of a data set with their reference label maps, by the rows of `parts`."""

    def __init__(self, task: LvSegTask, manifest: Manifest) -> None:
        self._task = task
        self._manifest = manifest

    def __call__(self, frames: pd.DataFrame) -> list[tuple[Picture, Picture]]:
        paths, masks = self._manifest.paths, self._manifest.masks
        selections = self._manifest.table["frame"]
        found = []
        with IsolatedDecoder(self._task.decoder, IsolationConfig()) as decoder:
            for row, frame in zip(frames["row"], frames["frame"], strict=True):
                samples = decoder.decode_labelled(
                    read_source(paths[row]), read_labels(masks[row]), selections.iloc[row] or None
                )
                [own] = [sample for sample in samples if sample.frame == frame]
                found.append((own.arrays[IMAGE], own.arrays[REFERENCE]))
        return found
