"""Phantom echocardiograms, written in the layouts of EchoNet and of CMR manifests."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pandas as pd

from cardioray import storage
from cardioray.data.spreading import spread
from cardioray.data.video_writing import encode_video
from cardioray.phantoms import dataset
from cardioray.phantoms.drawing import Stream, stream
from cardioray.phantoms.echo_config import EchoPhantomConfig
from cardioray.phantoms.echo_patient import VIEWS, EchoPatient, Rhythm, draw_echo_patient
from cardioray.phantoms.echo_scene import EchoClip, render_view
from cardioray.phantoms.ventricle import ef_percent

VIDEOS = "Videos"
FILE_LIST = "FileList.csv"
TRACINGS = "VolumeTracings.csv"
CMR_MANIFEST = "cmr.csv"

# The view that EchoNet's files list: the others are in the manifests alone.
ECHONET_VIEW = "A4C"

SHARES = {"TRAIN": 0.65, "VAL": 0.15, "TEST": 0.2}

# Changes whenever the same request would give other pixels or another truth.
_GENERATOR = 1


def write_echoes(
    out: str,
    num_patients: int,
    *,
    seed: int,
    config: EchoPhantomConfig,
    on_progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Write a phantom data set: for each patient one study with an A4C, an A2C and a PLAX cine.

    - `Videos/<patient>_<view>.avi`, `FileList.csv` and `VolumeTracings.csv` as EchoNet-Dynamic has
      them, the lists for the A4C cines: without ".avi" in the one and with it in the other.
    - `cmr.csv` with Study_Unique_ID, Video_Unique_ID, view, frames, fps and the findings.
    - `manifest.csv` with all of it in CardioRay's words, and the truth.

    Patients are spread over the cluster by Ray Data. Running it again with the same request does
    nothing; after a killed run it starts over.

    Args:
        out: folder or s3:// prefix, empty or absent; one that every node sees.
        num_patients: number of patients.
        seed: seed of the data set; another seed gives other patients.
        config: a preset of `ECHO_PRESETS` or a config of your own.
        on_progress: called with the number of finished patients and of all patients.

    Returns:
        The manifest, one row a cine; `source` is relative to the manifest.

    Raises:
        ValueError: when `out` holds anything else, or a number is out of range.
    """

    def write(place: str) -> pd.DataFrame:
        work = functools.partial(_write_patient, out=place, seed=seed, config=config)
        results = spread(work, num_patients, on_progress)
        splits = _draw_splits(num_patients, seed)
        rows = [
            {**row, "split": splits[index]}
            for index, result in enumerate(results)
            for row in result["rows"]
        ]
        table = pd.DataFrame(rows)
        tracings = pd.DataFrame([line for result in results for line in result["tracings"]])
        dataset.write_csv(storage.join(place, FILE_LIST), _file_list(table))
        dataset.write_csv(storage.join(place, TRACINGS), tracings)
        dataset.write_csv(storage.join(place, CMR_MANIFEST), _cmr_manifest(table))
        return table

    return dataset.write_once(
        out,
        "echo",
        write,
        generator=_GENERATOR,
        num_patients=num_patients,
        seed=seed,
        config=config,
    )


def _write_patient(
    index: int, *, out: str, seed: int, config: EchoPhantomConfig
) -> dict[str, list[dict[str, Any]]]:
    """Render and write one patient; its rows of the manifest and of the tracings."""
    cv2.setNumThreads(1)  # patients are spread over the cores
    patient = draw_echo_patient(seed, index, config)
    rows, tracings = [], []
    for view in VIEWS:
        clip = render_view(patient, view, config)
        name = f"{patient.patient_id}_{view}"
        source = f"{VIDEOS}/{name}.avi"
        storage.write_bytes(storage.join(out, source), encode_video(clip.frames, clip.fps))
        rows.append(_row(patient, clip, name, source, config))
        if view == ECHONET_VIEW:
            tracings += _tracing_lines(clip, f"{name}.avi")
    return {"rows": rows, "tracings": tracings}


def _row(
    patient: EchoPatient, clip: EchoClip, name: str, source: str, config: EchoPhantomConfig
) -> dict[str, Any]:
    findings = patient.findings
    return {
        "sample_id": name,
        "patient_id": patient.patient_id,
        "study_id": f"{patient.patient_id}-US",
        "view": clip.view,
        "source": source,
        "fps": clip.fps,
        "frames": len(clip.frames),
        "frame_height": clip.frames.shape[1],
        "frame_width": clip.frames.shape[2],
        "ef": round(patient.ef_percent, 4),
        "edv_ml": round(patient.edv_ml, 4),
        "esv_ml": round(patient.esv_ml, 4),
        "wma": int(findings.wall_motion_abnormality),
        "scar": int(findings.scar),
        "t1_ms": round(findings.t1_ms, 1),
        "t2_ms": round(findings.t2_ms, 2),
        "ecv_percent": round(findings.ecv_percent, 2),
        "ed_frame": clip.outlines["ED"][0],
        "es_frame": clip.outlines["ES"][0],
        "beats": json.dumps(_beats(patient, clip.rhythm)),
        "cm_per_px": round(clip.cm_per_px, 6),
        "phantom": True,
        "preset": config.preset,
    }


def _beats(patient: EchoPatient, rhythm: Rhythm) -> list[dict[str, float]]:
    """The beats that lie whole in a clip: frames of end diastole and systole, and EF."""
    seconds = rhythm.num_frames / rhythm.fps
    return [
        {
            "ed_frame": rhythm.frame_of(beat.start_s),
            "es_frame": rhythm.frame_of(beat.end_systole_s),
            "ef_percent": round(ef_percent(patient.ventricle, beat.strength, patient.edv_ml), 3),
        }
        for beat in rhythm.beats
        if beat.start_s >= 0 and beat.start_s + beat.length_s < seconds
    ]


def _tracing_lines(clip: EchoClip, file_name: str) -> list[dict[str, Any]]:
    """EchoNet's lines: the long axis, then the chords from the apex on, for ED and then ES."""
    lines = []
    for phase in ("ED", "ES"):
        frame, axis, chords = clip.outlines[phase]
        for start, end in [axis, *chords]:
            lines.append(
                {
                    "FileName": file_name,
                    "X1": round(float(start[0]), 4),
                    "Y1": round(float(start[1]), 4),
                    "X2": round(float(end[0]), 4),
                    "Y2": round(float(end[1]), 4),
                    "Frame": frame,
                }
            )
    return lines


def _draw_splits(num_patients: int, seed: int) -> list[str]:
    order = stream(seed, 0, Stream.SPLIT).permutation(num_patients)
    edges = np.round(np.cumsum([0.0, *SHARES.values()]) * num_patients).astype(int)
    splits = np.empty(num_patients, dtype=object)
    for name, start, stop in zip(SHARES, edges, edges[1:], strict=False):
        splits[order[start:stop]] = name
    return [str(name) for name in splits]


def _file_list(table: pd.DataFrame) -> pd.DataFrame:
    listed = table[table["view"] == ECHONET_VIEW]
    return pd.DataFrame(
        {
            "FileName": listed["sample_id"],
            "EF": listed["ef"],
            "ESV": listed["esv_ml"],
            "EDV": listed["edv_ml"],
            "FrameHeight": listed["frame_height"],
            "FrameWidth": listed["frame_width"],
            "FPS": listed["fps"],
            "NumberOfFrames": listed["frames"],
            "Split": listed["split"],
        }
    )


def _cmr_manifest(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Study_Unique_ID": table["study_id"],
            "Video_Unique_ID": table["sample_id"] + ".avi",
            "view": table["view"],
            "frames": table["frames"],
            "fps": table["fps"],
            "split": table["split"].str.lower(),
            "Wall_Motion": table["wma"],
            "Scar": table["scar"],
            "T1": table["t1_ms"],
            "T2": table["t2_ms"],
            "ECV": table["ecv_percent"],
        }
    )
