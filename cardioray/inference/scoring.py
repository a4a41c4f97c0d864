"""From a labelled data set to a predictions table, by a bundle's network on the cluster."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console

from cardioray.answers import ModelOutputs
from cardioray.data.decoding import DecodedSample
from cardioray.data.layouts import as_text, shown
from cardioray.data.manifest import Manifest, check_studies, study_ids
from cardioray.data.shards import read_index
from cardioray.evaluation.predictions import ONE_WINDOW
from cardioray.evaluation.segment_panels import Lookup
from cardioray.inference.actors import (
    FILES_PER_BATCH,
    Loading,
    PredictorActor,
    SourceFile,
    run_on_actors,
)
from cardioray.predictor import Predictor
from cardioray.studies import StudyOutputs, StudyPredictor
from cardioray.tasks.base import Task, encode_labels
from cardioray.terminal import progress_bar

PREDICTIONS = "predictions.parquet"

Labels = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Scored:
    """A predictions table made from files.

    Attributes:
        table: see `check_predictions`.
        notes: what a reader of its figures has to know.
        computed_with: runtime and precision.
        differences: per target, largest difference from the scores the bundle holds; None where
            these are other data, or a split that it holds no scores of.
        unread: source and reason of each file that could not be read.
        parts: where answers are made of several samples, what is known of each (`Tables`).
        lookup: finds the pictures of `parts`, where they are to be looked at.
    """

    table: pd.DataFrame
    notes: tuple[str, ...]
    computed_with: str
    differences: dict[str, float] | None
    unread: list[tuple[str, str]]
    parts: pd.DataFrame | None = None
    lookup: Lookup | None = None


def score_files(
    predictor: Predictor,
    loading: Loading,
    data: str,
    split: str,
    patient_from: str | None,
    console: Console,
    noise: float = 0.0,
) -> Scored:
    """Decode and score the rows of one split of a data set, of which each sample has a label.

    Args:
        predictor: of the bundle; its network is not used.
        loading: how actors load the bundle.
        data: a data set as `prepare` takes it, with labels.
        split: which rows; the bundle's own division counts on its own data, else the column
            `split`, and where there is none all rows are scored.
        patient_from: regular expression that finds the patient in a file name.
        console: where progress is shown.
        noise: share of the pixels of every picture and clip that are made black beforehand.

    Raises:
        ValueError: when the data are at fault (two labels of one study among it), nothing can be
            read, the split has no rows, or all of them took part in making the bundle.
    """
    refuse_shards(data)
    task = predictor.task
    manifest = taking_part(task, task.read_manifest(data, patient_from))
    labels = encode_labels(task, manifest.table)
    own = held_rows(pd.read_parquet(predictor.bundle.path / PREDICTIONS), manifest)
    is_own = holds_all(own, manifest, labels)
    chosen = rows_of_split(manifest, own if is_own else None, split)
    check_studies(manifest.table.iloc[chosen], {n: v[chosen] for n, v in labels.items()})
    views = manifest.table.get("view")
    said = ["" if views is None else as_text(views.iloc[i]) for i in chosen]
    paths, frames = manifest.paths, manifest.table["frame"]
    told = [task.facts_of_row(manifest.table.iloc[i].to_dict()) for i in chosen]
    facts = [list(each.items()) for each in told]
    files = [[int(i), paths[i], frames.iloc[i], said[n], facts[n]] for n, i in enumerate(chosen)]
    # Full batches of one-frame files.
    results = score_on_actors(_ScoreFiles, loading, files, FILES_PER_BATCH, console, noise)
    unread = unread_of(results, len(chosen))
    computed_with = computed_with_of(results)
    table = _predictions_table(task, manifest, labels, results).assign(split=split)
    notes = list(manifest.warnings)
    if must_be_new(is_own, split):
        table, seen_notes = _without_seen(table)
        notes += seen_notes
    table = table.drop(columns="seen")
    if isinstance(predictor, StudyPredictor):
        table, study_notes = _fused(predictor, table)
        notes += study_notes
    notes += unread_notes(unread, len(chosen))
    differences = differences_of(table, own, split) if is_own else None
    notes += own_notes(own, differences, is_own, f"{split} samples", computed_with)
    return Scored(table, tuple(notes), computed_with, differences, unread)


def must_be_new(is_own: bool, split: str) -> bool:
    """Whether samples that the bundle was made of are not to be scored.

    Those of its own test split are none, unless every patient was one, and its figures come from
    the networks of folds.
    """
    return not is_own or split == "test"


def unread_of(results: Sequence[Mapping[str, Any]], count: int) -> list[tuple[str, str]]:
    """Files that could not be read, with reasons, from what actors gave.

    Raises:
        ValueError: when none of the `count` files could be.
    """
    unread = [(path, reason) for result in results for path, reason in result["unread"]]
    if len(unread) == count:
        reasons = shown([f"{path}: {reason}" for path, reason in unread])
        raise ValueError(f"None of the {len(unread)} files can be read: {reasons}")
    return unread


def computed_with_of(results: Sequence[Mapping[str, Any]]) -> str:
    """The runtimes and precisions of the actors."""
    return ", ".join(sorted({result["computed_with"] for result in results}))


def unread_notes(unread: Sequence[object], count: int) -> list[str]:
    """What to say of files that could not be read."""
    if not unread:
        return []
    return [f"{len(unread)} of {count} files cannot be read and are not scored."]


def own_notes(
    held: pd.DataFrame,
    differences: Mapping[str, float] | None,
    is_own: bool,
    what: str,
    computed_with: str,
) -> list[str]:
    """What to say of data that are a bundle's own, or look like them.

    Args:
        held: the bundle's samples with their `row` in the data, NaN where it is not there.
        differences: of the scores from those that the bundle holds, by target; None where it
            holds none.
        is_own: whether the data are the bundle's own.
        what: what was scored, such as "test samples".
        computed_with: see `computed_with_of`.
    """
    if differences is not None:
        return [
            f"These are the bundle's own {what}; scores differ from those it holds by at most "
            f"{max(differences.values()):.1e} (now {computed_with})."
        ]
    shared = int(held["row"].notna().sum())
    if is_own or not shared:
        return []
    return [
        f"{shared} samples have the names of samples the bundle was made with, though these data "
        "are not the same; if the patients are, the figures are too good."
    ]


def _without_seen(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Leave out samples that took part in making the model; gives what to say of it.

    Raises:
        ValueError: when nothing is left.
    """
    seen = table["seen"].to_numpy(bool)
    if not seen.any():
        return table, []
    samples = table["sample_id"].nunique()
    known = table.loc[seen, "sample_id"].nunique()
    if seen.all():
        raise ValueError(
            f"all {samples} samples took part in making the bundle, as its training, validation or "
            "calibration samples: their figures would say nothing about other patients."
        )
    patients = table.loc[seen, "patient_id"].unique()
    text = (
        f"{known} of {samples} samples took part in making the bundle, as its training, validation "
        "or calibration samples, and are not scored."
    )
    if table.loc[~seen, "patient_id"].isin(patients).any():
        text += " Others of the same patients are: the figures are too good."
    return table[~seen], [text]


def unseen_patients(
    patients: pd.Series[str], seen: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], list[str]]:
    """Which samples are of patients of whom nothing took part in making the model.

    Args:
        patients: of each sample, (N,).
        seen: whether a sample took part, (N,).

    Returns:
        A mask (N,), and what to say of it.

    Raises:
        ValueError: when nobody is left.
    """
    if not seen.any():
        return ~seen, []
    own = ~patients.isin(patients[seen].unique()).to_numpy()
    everyone, left = patients.nunique(), patients[own].nunique()
    if not left:
        raise ValueError(
            f"all {everyone} patients have frames that took part in making the bundle, as its "
            "training, validation or calibration samples: their figures would say nothing about "
            "other patients."
        )
    note = (
        f"{everyone - left} of {everyone} patients have frames that took part in making the "
        "bundle, as its training, validation or calibration samples, and are not scored."
    )
    return own, [note]


def _fused(predictor: StudyPredictor, table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Predictions of studies from those of their cines, and what to say of cines left out.

    Raises:
        ValueError: when no cine takes part.
    """
    split = table["split"].iloc[0]
    without = table["view"] == ""
    if without.all():
        raise ValueError(
            f"None of the {len(table)} cines shows one of {', '.join(predictor.fusion.views)}."
        )
    fused = predictor.fused_table(table.drop(columns="split")).assign(split=split)
    notes = []
    if without.any():
        cines = table.loc[without, "sample_id"].nunique()
        lost = table["study_id"].nunique() - fused["study_id"].nunique()
        notes.append(
            f"{cines} of {table['sample_id'].nunique()} cines show none of the views and are left "
            f"out, and with them {lost} studies."
        )
    return fused, notes


def taking_part(task: Task, manifest: Manifest) -> Manifest:
    """The rows of a manifest that the model is for, where a data set holds others beside them.

    Raises:
        ValueError: when there is none.
    """
    mine = task.takes_part(manifest.table)
    if mine.all():
        return manifest
    if not mine.any():
        raise ValueError(
            f"none of the {len(manifest)} rows is of a view and a frame that the bundle is for."
        )
    left_out = f"{(~mine).sum()} of {len(manifest)} rows are of other views or frames; left out."
    return replace(
        manifest,
        table=manifest.table[mine].reset_index(drop=True),
        warnings=(*manifest.warnings, left_out),
    )


def refuse_shards(data: str) -> None:
    """Refuse shards as data to score: what a bundle answers for are files.

    Raises:
        ValueError: when `data` holds some.
    """
    if read_index(data) is not None:
        raise ValueError(f"{data} holds shards; give the data set that they were made from.")


def held_rows(table: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
    """A bundle's table of samples, each with the manifest row of its name, NaN for none.

    Where a row of the manifest yielded several samples, `prepare` named them `<row>#<frame>`.
    """
    rows = pd.Series(range(len(manifest)), index=manifest.table["sample_id"], dtype=float)
    exact = table["sample_id"].map(rows)
    of_row = table["sample_id"].str.rsplit("#", n=1).str[0].map(rows)
    return table.assign(row=exact.fillna(of_row))


def holds_all(own: pd.DataFrame, manifest: Manifest, labels: Labels) -> bool:
    """Whether every sample that the bundle scored is here, with its patient and label."""
    if own["row"].isna().any():
        return False
    rows = own["row"].to_numpy(int)
    patients = manifest.table["patient_id"].to_numpy()[rows]
    if (own["patient_id"].to_numpy() != patients).any():
        return False
    return all(
        np.array_equal(
            labels[name][rows[(own["head"] == name).to_numpy()]],
            own["label"][own["head"] == name].to_numpy(np.float32),
            equal_nan=True,
        )
        for name in labels
    )


def rows_of_split(manifest: Manifest, own: pd.DataFrame | None, split: str) -> NDArray[np.int64]:
    """Positions of the manifest rows to score.

    Args:
        manifest: the data.
        own: what the bundle holds of them, with columns `row` and `split`; None for other data.
        split: which rows.

    Raises:
        ValueError: when there are none.
    """
    if own is not None:
        # What the bundle holds no prediction of was trained on.
        named = np.full(len(manifest), "train", dtype=object)
        named[own["row"].to_numpy(int)] = own["split"].to_numpy()
        splits = pd.Series(named)
    elif "split" in manifest.table:
        splits = manifest.table["split"]
    else:
        return np.arange(len(manifest))
    chosen = np.flatnonzero((splits == split).to_numpy())
    if not len(chosen):
        counts = ", ".join(f"{name} ({n})" for name, n in splits.value_counts().items())
        raise ValueError(f"the data set has no rows of split {split!r}; it has {counts}.")
    return chosen


def score_on_actors(
    actor: type[ScoringActor],
    loading: Loading,
    files: Sequence[Sequence[Any]],
    per_chunk: int,
    console: Console,
    noise: float,
) -> list[dict[str, Any]]:
    """What actors return of some files, in the order of the files.

    Args:
        actor: gets chunks of them.
        loading: how each loads its network.
        files: of each the row of the manifest, its path, and what else the actor wants.
        per_chunk: files that go together, the same ones in every run.
        console: where progress is shown.
        noise: as of `score_files`.
    """
    starts = range(0, len(files), per_chunk)
    chunks = [json.dumps(list(files[start : start + per_chunk])) for start in starts]
    results, done = [], 0
    with progress_bar(console, "scoring", len(files)) as advance:
        for text in run_on_actors(actor, loading, chunks, noise):
            results.append(json.loads(text))
            done += results[-1]["files"]
            advance(done, len(files))
    return sorted(results, key=lambda result: int(result["first"]))


@dataclass(frozen=True)
class DecodedChunk:
    """The samples of some files.

    Attributes:
        samples: of all files that could be read.
        origins: of each the row of the manifest, the end of its name ("" of a file's only sample,
            else "#frame"), and its frame.
        unread: paths that could not be read, and why.
    """

    samples: list[DecodedSample]
    origins: list[tuple[int, str, str]]
    unread: list[tuple[str, str]]


class ScoringActor(PredictorActor):
    """Base of the actors that score: with noise where that is wanted."""

    def __init__(self, loading: Loading, threads: int, noise: float) -> None:
        super().__init__(loading, threads)
        self._noise = noise

    def with_noise(self, samples: Sequence[DecodedSample], seed: int) -> list[DecodedSample]:
        """The samples with a share of their pixels black, in all channels."""
        if not self._noise:
            return list(samples)
        rng = np.random.default_rng(seed)
        columns = self.predictor.task.decoder.columns
        return [_blackened(sample, columns, self._noise, rng) for sample in samples]

    def decode_chunk(self, rows: Sequence[int], files: Sequence[SourceFile]) -> DecodedChunk:
        """Decode files, each of a row of the manifest."""
        found = DecodedChunk([], [], [])
        for row, file, result in zip(rows, files, self.decode(files), strict=True):
            if isinstance(result, str):
                found.unread.append((file.path, result))
                continue
            several = len(result) > 1
            found.origins.extend((row, f"#{s.frame}" if several else "", s.frame) for s in result)
            found.samples.extend(result)
        return found

    @property
    def computed_with(self) -> str:
        """Runtime and precision."""
        return f"{self.predictor.runtime} {'bf16' if self.predictor.bf16 else 'fp32'}"


class _ScoreFiles(ScoringActor):
    """Scores the samples of some files."""

    def __call__(self, row: Mapping[str, str]) -> dict[str, str]:
        chunk = json.loads(row["chunk"])
        files = [
            SourceFile(path, frames, view, facts=facts) for _, path, frames, view, facts in chunk
        ]
        decoded = self.decode_chunk([position for position, *_ in chunk], files)
        seen = self.predictor.seen(decoded.samples).tolist()
        found = self.with_noise(decoded.samples, chunk[0][0])
        outputs = self.predictor.infer(found) if found else None
        scores = outputs.scores if outputs is not None else {}
        views: list[str] = []
        if isinstance(self.predictor, StudyPredictor) and isinstance(outputs, StudyOutputs):
            views = self.predictor.views_used(outputs)
        scored = {
            "first": chunk[0][0],
            "files": len(chunk),
            "unread": decoded.unread,
            "samples": decoded.origins,
            "seen": seen,
            "views": views,
            "scores": {name: values.tolist() for name, values in scores.items()},
            "one_window": self._one_window(outputs),
            "computed_with": self.computed_with,
        }
        return {"result": json.dumps(scored)}

    def _one_window(self, outputs: ModelOutputs | StudyOutputs | None) -> dict[str, list[float]]:
        """What the middle window of each cine says; nothing of pictures, and of studies' cines."""
        cuts = self.predictor.task.sampler.cuts
        if not cuts or outputs is None or isinstance(outputs, StudyOutputs):
            return {}
        return {
            name: [float(windows[len(windows) // 2]) for windows in own]
            for name, own in outputs.windows.items()
        }


def _blackened(
    sample: DecodedSample, columns: Sequence[str], share: float, rng: np.random.Generator
) -> DecodedSample:
    arrays = dict(sample.arrays)
    for name in columns:
        kept = rng.random(arrays[name].shape[:-1]) >= share
        arrays[name] = arrays[name] * kept[..., None].astype(np.uint8)
    return replace(sample, arrays=arrays)


def _predictions_table(
    task: Task, manifest: Manifest, labels: Labels, results: list[dict[str, Any]]
) -> pd.DataFrame:
    """One row a sample and target that has a label."""
    samples = [sample for result in results for sample in result["samples"]]
    rows = np.array([position for position, _, _ in samples])
    suffixes = [suffix for _, suffix, _ in samples]
    seen = [value for result in results for value in result["seen"]]
    known = manifest.table.iloc[rows]
    views = [view for result in results for view in result["views"]] or None
    pieces = []
    for target in task.targets:
        scores = [s for result in results for s in result["scores"].get(target.name, [])]
        piece = pd.DataFrame(
            {
                "sample_id": known["sample_id"].to_numpy() + np.array(suffixes, dtype=object),
                "patient_id": known["patient_id"].to_numpy(),
                "study_id": study_ids(known).to_numpy(),
                "source": known["source"].to_numpy(),
                "head": target.name,
                "label": labels[target.name][rows],
                "score": np.array(scores, dtype=np.float32),
                "seen": seen,
            }
        )
        middle = [s for result in results for s in result["one_window"].get(target.name, [])]
        if middle:
            piece[ONE_WINDOW] = np.array(middle, dtype=np.float32)
        if views is not None:
            piece["view"] = views
        pieces.append(piece[piece["label"].notna()])
    return pd.concat(pieces, ignore_index=True)


def differences_of(table: pd.DataFrame, own: pd.DataFrame, split: str) -> dict[str, float] | None:
    """Per target the largest difference from the bundle's own scores of a split."""
    keys = ["head", "sample_id"]
    held = own[own["split"] == split]
    both = table.merge(held[[*keys, "score"]], on=keys, suffixes=("", "_held"))
    if both.empty:
        return None
    largest = (both["score"] - both["score_held"]).abs().groupby(both["head"]).max()
    return {str(name): float(value) for name, value in largest.items()}
