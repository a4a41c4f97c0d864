"""From a labelled data set to what heads on key frames say of its studies, on the cluster."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console

from cardioray.data.manifest import Manifest, check_studies
from cardioray.inference.actors import FILES_PER_BATCH, Loading, SourceFile
from cardioray.inference.scoring import (
    PREDICTIONS,
    Labels,
    Scored,
    ScoringActor,
    computed_with_of,
    differences_of,
    held_rows,
    holds_all,
    must_be_new,
    own_notes,
    refuse_shards,
    rows_of_split,
    score_on_actors,
    taking_part,
    unread_notes,
    unread_of,
    unseen_patients,
)
from cardioray.keyframes import HeadsPredictor
from cardioray.predictor import Predictor
from cardioray.tasks.base import Task, encode_labels
from cardioray.tasks.keyframe_ef import EF_TARGET
from cardioray.tasks.keyframe_tables import answers_table


def score_heads(
    predictor: Predictor,
    loading: Loading,
    data: str,
    split: str,
    patient_from: str | None,
    console: Console,
    noise: float = 0.0,
) -> Scored:
    """Decode the key frames of one split, make features of them, and ask the heads.

    A study's answer is made of several frames: where one of them took part in making the bundle,
    all studies of the patient are left out.

    Args:
        predictor: of the bundle; its network is not used.
        loading: how actors load the bundle.
        data: a data set as `prepare` takes it, with labels.
        split: which rows; as of `score_files`.
        patient_from: regular expression that finds the patient in a file name.
        console: where progress is shown.
        noise: share of the pixels of every frame that are made black beforehand.

    Raises:
        ValueError: as `score_files`, and when a study has a key frame twice.
    """
    refuse_shards(data)
    assert isinstance(predictor, HeadsPredictor)
    task = predictor.task
    manifest = taking_part(task, task.read_manifest(data, patient_from))
    labels = encode_labels(task, manifest.table)
    held = held_rows(pd.read_parquet(predictor.bundle.path / PREDICTIONS), manifest)
    is_own = holds_all(held, manifest, labels)
    own = _rows_of_studies(task, held, manifest) if is_own else None
    chosen = rows_of_split(manifest, own, split)
    studies = task.studies(manifest.table)
    check_studies(
        manifest.table.iloc[chosen],
        {name: values[chosen] for name, values in labels.items()},
        studies.iloc[chosen],
    )
    paths, frames = manifest.paths, manifest.table["frame"]
    files = [[int(i), paths[i], frames.iloc[i]] for i in chosen]
    results = score_on_actors(_FeatureFiles, loading, files, FILES_PER_BATCH, console, noise)
    unread = unread_of(results, len(chosen))
    samples, features = _samples(task, manifest, labels, results, predictor.frames)
    notes = list(manifest.warnings)
    if must_be_new(is_own, split):
        unseen, seen_notes = unseen_patients(samples["patient_id"], samples["seen"].to_numpy(bool))
        samples, features = samples[unseen].reset_index(drop=True), features[unseen]
        notes += seen_notes
    firsts = samples.drop_duplicates("study_id").reset_index(drop=True)
    answers = predictor.heads.answer(_by_frame(samples, features, firsts, predictor.frames))
    table = answers_table(task, firsts, answers, split)
    notes += unread_notes(unread, len(chosen))
    computed_with = computed_with_of(results)
    differences = differences_of(table, held, split) if is_own else None
    notes += own_notes(held, differences, is_own, f"{split} studies", computed_with)
    return Scored(table, tuple(notes), computed_with, differences, unread)


def _rows_of_studies(task: Task, held: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
    """Every row of the studies that a bundle scored, where its table has the first one alone."""
    splits = held.drop_duplicates("study_id").set_index("study_id")["split"]
    found = task.studies(manifest.table).map(splits)
    rows = np.flatnonzero(found.notna())
    return pd.DataFrame({"row": rows, "split": found.iloc[rows].to_numpy()})


class _FeatureFiles(ScoringActor):
    """Makes features of the frames of some files."""

    def __call__(self, row: Mapping[str, str]) -> dict[str, str]:
        chunk = json.loads(row["chunk"])
        files = [SourceFile(path, frames) for _, path, frames in chunk]
        decoded = self.decode_chunk([position for position, *_ in chunk], files)
        seen = self.predictor.seen(decoded.samples).tolist()
        found = self.with_noise(decoded.samples, chunk[0][0])
        features = [] if not found else list(self.predictor.infer(found).features)
        scored = {
            "first": chunk[0][0],
            "files": len(chunk),
            "unread": decoded.unread,
            "samples": decoded.origins,
            "seen": seen,
            "features": [
                base64.b64encode(own.astype("<f4").tobytes()).decode() for own in features
            ],
            "computed_with": self.computed_with,
        }
        return {"result": json.dumps(scored)}


def _samples(
    task: Task,
    manifest: Manifest,
    labels: Labels,
    results: Sequence[Mapping[str, Any]],
    frames: Sequence[str],
) -> tuple[pd.DataFrame, NDArray[np.float32]]:
    """Samples of studies with a label on which there is a head, and the features of each.

    Raises:
        ValueError: when there is none, or a study has a frame twice.
    """
    found = [sample for result in results for sample in result["samples"]]
    rows = np.array([position for position, _, _ in found])
    samples = manifest.table.iloc[rows].reset_index(drop=True)
    suffixes = np.array([suffix for _, suffix, _ in found], dtype=object)
    samples["sample_id"] = samples["sample_id"].to_numpy(object) + suffixes
    samples["study_id"] = task.studies(manifest.table).iloc[rows].to_numpy()
    samples["row"] = rows
    samples["label"] = labels[EF_TARGET.name][rows]
    samples["seen"] = [value for result in results for value in result["seen"]]
    coded = [text for result in results for text in result["features"]]
    features = np.stack([np.frombuffer(base64.b64decode(text), "<f4") for text in coded])
    mine = (samples["phase"].isin(frames) & samples["label"].notna()).to_numpy()
    if not mine.any():
        raise ValueError(
            f"no frame of a study with an ejection fraction is one of {', '.join(frames)}, which "
            "heads were fitted to."
        )
    samples = samples[mine].reset_index(drop=True)
    twice = samples.duplicated(["study_id", "phase"], keep=False)
    if twice.any():
        first = samples[twice].iloc[0]
        raise ValueError(
            f"Study {first['study_id']} has several {first['phase']} frames; heads take one. Give "
            "each cine its own study_id, and each row one frame."
        )
    return samples, features[mine]


def _by_frame(
    samples: pd.DataFrame,
    features: NDArray[np.float32],
    studies: pd.DataFrame,
    frames: Sequence[str],
) -> dict[str, NDArray[np.float32]]:
    """By frame the features of each study, NaN where it has no such frame, (S, D)."""
    places = pd.Index(studies["study_id"]).get_indexer(samples["study_id"])
    gathered = {}
    for frame in frames:
        mine = (samples["phase"] == frame).to_numpy()
        values = np.full((len(studies), features.shape[1]), np.nan, np.float32)
        values[places[mine]] = features[mine]
        gathered[frame] = values
    return gathered
