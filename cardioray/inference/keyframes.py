"""Which frames of cines are at end diastole and end systole: `cardioray data keyframes`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console

from cardioray import storage
from cardioray.clinical.beats import phases_of
from cardioray.data import cluster
from cardioray.data.echo_layouts import read_echo_manifest
from cardioray.data.frames import LOST_FILES
from cardioray.data.isolation import IsolationConfig, isolated
from cardioray.data.keyframe_layouts import half_way
from cardioray.data.label_maps import CAVITY
from cardioray.data.manifest import Manifest
from cardioray.data.nifti import read_source
from cardioray.data.segment import SegmentDecoder, SegmentPreprocess
from cardioray.data.shards import write_quarantine
from cardioray.data.spreading import spread
from cardioray.inference.actors import (
    Loading,
    PredictorActor,
    SourceFile,
    run_on_actors,
)
from cardioray.model_store import bundle_place
from cardioray.models.segmentation import MASKS
from cardioray.outlines import tidied_map
from cardioray.tasks.keyframe_ef import EF_TARGET
from cardioray.tasks.lv_seg import LvSegTask
from cardioray.terminal import progress_bar

Rule = Literal["outlines", "positional"]

COLUMNS = ("ed_frame", "es_frame", "mid_frame")


def write_keyframes(
    data: str,
    out: str,
    *,
    bundle: str | None = None,
    positional: bool = False,
    console: Console | None = None,
) -> pd.DataFrame:
    """Find the key frames of cines and write a table that `keyframe-ef` reads.

    By outlines, a segmentation outlines every frame; of each beat, end diastole and end systole are
    the frames of the largest and the smallest cavity, and the beat whose cavity shrinks by the
    median share is taken. By position, as in the published system, end systole is the frame at a
    third of the cine and end diastole that at two thirds, whatever they show.

    Args:
        data: videos as `read_echo_manifest` reads them; local or s3://.
        out: the table, .csv; sources are written with their full paths.
        bundle: of `lv-seg`.
        positional: take frames by their position instead.
        console: where progress is shown.

    Returns:
        The table: the manifest with `ed_frame`, `es_frame` and `mid_frame`, counted from 0. Cines
        that cannot be read, or show no beat, stand in `<out>.quarantine.csv` instead.

    Raises:
        ValueError: when neither or both ways are asked for, or no cine has key frames.
    """
    if (bundle is None) != positional:
        raise ValueError(
            "Say how key frames are found: by the outlines of a bundle of lv-seg (--bundle), or by "
            "their position in the cine (--positional), which knows nothing of the heart."
        )
    if not out.endswith(".csv"):
        raise ValueError(f"{out}: the table is a .csv file.")
    cluster.connect()
    data, out = storage.absolute(data), storage.absolute(out)
    manifest = read_echo_manifest(data, [EF_TARGET])
    with progress_bar(console or Console(), "finding key frames", len(manifest)) as advance:
        if bundle is None:
            found = spread(_ByPosition(manifest.paths), len(manifest), advance)
        else:
            found = _by_outlines(manifest, storage.absolute(bundle_place(bundle)), advance)
    table = manifest.table.drop(columns=[c for c in COLUMNS if c in manifest.table])
    table = table.assign(source=manifest.paths)
    lost = [(path, said) for path, said in zip(manifest.paths, found, strict=True) if _lost(said)]
    write_quarantine(f"{out}.quarantine.csv", lost)
    kept = [not _lost(said) for said in found]
    if not any(kept):
        raise ValueError(f"no cine has key frames; {lost[0][0]}: {lost[0][1]}")
    numbers = pd.DataFrame([said for said in found if not _lost(said)], columns=list(COLUMNS))
    table = pd.concat([table[kept].reset_index(drop=True), numbers], axis=1)
    storage.write_bytes(out, table.to_csv(index=False).encode())
    return table


def _lost(said: Any) -> bool:
    return isinstance(said, str)


class _ByPosition:
    """Frames at two thirds (end diastole), a third (end systole) and a half of a cine."""

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths

    def __call__(self, index: int) -> list[int] | str:
        decoder = SegmentDecoder(preprocess=SegmentPreprocess(image_size=32))
        with isolated(decoder, IsolationConfig()) as reading:
            try:
                count = len(reading.inspect(read_source(self._paths[index]), None).sizes)
            except LOST_FILES as error:
                return str(error)
        if count < 3:
            return f"The cine has {count} frame(s); three are needed."
        return positional_frames(count)


def positional_frames(count: int) -> list[int]:
    """End diastole, end systole and middle of a cine of so many frames, by the published rule."""
    return [2 * count // 3, count // 3, count // 2]


def _by_outlines(manifest: Manifest, bundle: str, advance: Any) -> list[Any]:
    """Key frames of every row, or why there are none."""
    views = manifest.table["view"] if "view" in manifest.table else [""] * len(manifest)
    chunks = [
        json.dumps({"index": index, "file": asdict(SourceFile(path, view=str(view or "")))})
        for index, (path, view) in enumerate(zip(manifest.paths, views, strict=True))
    ]
    found: list[Any] = ["not looked at"] * len(chunks)
    loading = Loading(bundle, "auto", "auto")
    for done, text in enumerate(run_on_actors(_ByOutlines, loading, chunks), 1):
        result = json.loads(text)
        found[result["index"]] = result["frames"]
        advance(done, len(chunks))
    return found


class _ByOutlines(PredictorActor):
    """Outlines the frames of a cine and finds its beats."""

    def __call__(self, row: Mapping[str, str]) -> dict[str, str]:
        asked = json.loads(row["chunk"])
        [read] = self.decode([SourceFile(**asked["file"])])
        frames = read if isinstance(read, str) else self._frames(read)
        return {"result": json.dumps({"index": asked["index"], "frames": frames})}

    def _frames(self, samples: list[Any]) -> list[int] | str:
        task = self.predictor.task
        if not isinstance(task, LvSegTask):
            raise ValueError(
                f"{self.predictor.bundle.path} is a bundle of {task.name}, not lv-seg."
            )
        probabilities = self.predictor.infer(samples).scores[MASKS]
        areas = [
            np.count_nonzero(tidied_map(task, own, *sample.source_shape) == CAVITY) or np.nan
            for sample, own in zip(samples, probabilities, strict=True)
        ]
        fps = samples[0].facts.get("fps", np.nan)
        return median_beat(np.array(areas, float), None if np.isnan(fps) else fps)


def median_beat(areas: NDArray[np.float64], fps: float | None) -> list[int] | str:
    """End diastole, end systole and the frame between, of the beat that shrinks by the median.

    Args:
        areas: of the cavity, one a frame (T,), NaN where there is none.
        fps: frames a second; None where it is not known.

    Returns:
        Three frames, or why there are none.
    """
    beats = [(ed, es) for ed, es in phases_of(areas, fps) if ed != es]
    known = np.isfinite(areas)
    shares = [1 - areas[es] / areas[ed] if known[ed] and known[es] else np.nan for ed, es in beats]
    usable = [i for i, share in enumerate(shares) if np.isfinite(share)]
    if not usable:
        return "The outlines show no beat: fewer than two frames have a cavity."
    ordered = sorted(usable, key=lambda i: shares[i])
    ed, es = beats[ordered[(len(ordered) - 1) // 2]]
    return [int(ed), int(es), half_way(int(ed), int(es))]
