"""Ultrasound cines without a word about the patient: masked, cropped, renamed, as EchoNet's are.

What leaves is made anew from pixels inside the ultrasound sector and from a few listed tags;
nothing of the DICOM file is copied. Who is who stands in a key file, which is written apart.
"""

from __future__ import annotations

import csv
import io
import math
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pydicom

from cardioray import storage
from cardioray.data.clip import CLIP, ClipDecoder, ClipPreprocess
from cardioray.data.dicom import read_dicom_info, read_identity
from cardioray.data.frames import (
    READ_ERRORS,
    UnreadableImage,
    damage_explained,
)
from cardioray.data.isolation import IsolatedDecoder, IsolationConfig
from cardioray.data.layouts import TABLE_SUFFIXES, relative_files
from cardioray.data.shards import QUARANTINE, write_quarantine
from cardioray.data.video_writing import encode_video
from cardioray.machine import usable_cores

# The only tags that are kept. None of them can name a person, a place or a day.
KEPT_TAGS = ("Manufacturer", "ManufacturerModelName", "HeartRate", "PatientSex")
# What EchoNet writes where a file does not say.
UNKNOWN_FPS = 30.0

# Masked frames that are held at a time for one file: 85,000 of 112 px, 1,024 of 1,024 px.
_MOST_BYTES = 1 << 30
# Ten thousand frames may take minutes, and no decoder of DICOM frames is known to hang.
_READING = IsolationConfig(deadline_s=600)

MANIFEST = "manifest.csv"
VIDEOS = "Videos"

_KEY_COLUMNS = ("source", "patient_id", "study_uid", "new_sample", "new_patient", "new_study")


@dataclass(frozen=True)
class Deidentified:
    """What `deidentify` did.

    Attributes:
        manifest: one row a cine that was written.
        refused: source and reason of every file that was not.
    """

    manifest: pd.DataFrame
    refused: list[tuple[str, str]]


def deidentify(
    data: str,
    out: str,
    key: str,
    *,
    preprocess: ClipPreprocess = ClipPreprocess(),  # noqa: B008 (frozen)
    on_progress: Callable[[int, int], None] | None = None,
) -> Deidentified:
    """Write the ultrasound cines and stills of a folder as EchoNet-style AVI files.

    - `Videos/<random>.avi`: MJPG, square, everything outside the sector black, with every frame
      of the file. A file in which no sector is found is refused: what is burned in could not be
      masked. So is one whose masked frames would take more than 1 GiB, or whose reading takes
      more than ten minutes: no file is cut.
    - `manifest.csv`: sample, patient and study by random names, frames, fps, cm a pixel, and the
      tags of `KEPT_TAGS`; `quarantine.csv`: what was refused, and why, by its number in the key.
    - the key file: which file, patient and study became which; readable by its owner alone, also
      where others could read it before. A later call with the same key keeps the names it has
      given.

    Args:
        data: folder with DICOM files; other files are refused.
        out: empty or absent folder or s3:// prefix.
        key: local file, not below `out`.
        preprocess: size of the frames; the sector is looked for, and all frames are kept, in any
            case.
        on_progress: called with the files done and their total.

    Raises:
        ValueError: when `out` holds other files, the key is below it, or there is nothing to read.
        PermissionError: when the key is somebody else's.
    """
    out, key_path = storage.absolute(out), Path(key).expanduser().resolve()
    if not storage.is_remote(out) and key_path.is_relative_to(Path(out)):
        raise ValueError(
            f"The key {key_path} would lie below {out}, with what it must be apart from."
        )
    if storage.exists(out) and storage.list_files(out):
        raise ValueError(f"{out} is not empty; give an empty folder.")
    files = [file for file in relative_files(data) if not file.lower().endswith(TABLE_SUFFIXES)]
    if not files:
        raise ValueError(f"{data} holds no files.")
    names = _Names(key_path)
    rows: list[dict[str, Any]] = []
    refused: list[tuple[str, str]] = []
    most = max(1, _MOST_BYTES // (preprocess.image_size**2 * preprocess.channels))
    decoder = ClipDecoder(preprocess=replace(preprocess, sector="find", max_frames=most))
    workers = usable_cores()
    with (
        IsolatedDecoder(decoder, _READING, processes=workers) as reader,
        ThreadPoolExecutor(max_workers=workers) as pool,
    ):
        paths = [storage.join(data, file) for file in files]
        results = pool.map(lambda path: _read(reader, path, most), paths)
        for number, (file, result) in enumerate(zip(files, results, strict=True), start=1):
            if isinstance(result, str):
                refused.append((file, result))
            else:
                # The name before the video: without it nobody could tell whose it is.
                sample, patient, study = names.of(file, result.patient_id, result.study_uid)
                source = f"{VIDEOS}/{sample}.avi"
                storage.write_bytes(storage.join(out, source), result.video)
                rows.append(
                    {
                        "sample_id": sample,
                        "patient_id": patient,
                        "study_id": study,
                        "source": source,
                        **result.facts,
                    }
                )
            if on_progress is not None:
                on_progress(number, len(files))
    if not rows:
        reasons = "; ".join(f"{file}: {reason}" for file, reason in refused[:5])
        raise ValueError(f"None of the {len(files)} files could be de-identified: {reasons}")
    manifest = pd.DataFrame(rows)
    buffer = io.StringIO()
    manifest.to_csv(buffer, index=False, lineterminator="\n")
    storage.write_bytes(storage.join(out, MANIFEST), buffer.getvalue().encode())
    # File names may name people: beside the videos a refused file is a number.
    numbered = [(f"file {files.index(file) + 1}", reason) for file, reason in refused]
    write_quarantine(storage.join(out, QUARANTINE), numbered)
    return Deidentified(manifest, refused)


@dataclass(frozen=True)
class _Cine:
    """A cine ready to be written, and whose it is."""

    patient_id: str
    study_uid: str
    video: bytes
    facts: dict[str, Any]


def _read(reader: IsolatedDecoder, path: str, most: int) -> _Cine | str:
    """The masked cine of a file of at most so many frames, or why there is none."""
    try:
        data = storage.read_bytes(path)
        identity = read_identity(io.BytesIO(data))
        if identity is None:
            return "It is no DICOM picture."
        tags = _kept_tags(data)
        frames = read_dicom_info(data).number_of_frames
        if frames > most:
            return (
                f"The file states {frames:,} frames; at most {most:,} of this size are written. "
                "Ask for smaller ones (--image-size), or divide the file."
            )
        (sample,) = reader.decode(data, None, max_frames=most)
    except READ_ERRORS as error:
        return str(error)
    if not sample.facts["sector_found"]:
        return "No ultrasound sector was found, so that burned-in text could not be masked."
    clip, fps = sample.arrays[CLIP], sample.facts["fps"]
    known = not math.isnan(fps)
    facts = {
        "frames": len(clip),
        "fps": fps if known else "",
        "cm_per_px": "" if math.isnan(sample.facts["cm_per_px"]) else sample.facts["cm_per_px"],
        **tags,
    }
    video = encode_video(clip, fps if known else UNKNOWN_FPS)
    return _Cine(identity.patient_id, identity.study_uid, video, facts)


def _kept_tags(data: bytes) -> dict[str, str]:
    with damage_explained("The DICOM file cannot be decoded"):
        wanted = ["Modality", *KEPT_TAGS]
        dataset = pydicom.dcmread(
            io.BytesIO(data), stop_before_pixels=True, specific_tags=list(wanted)
        )
        if str(dataset.get("Modality") or "US") != "US":
            raise UnreadableImage(f"It is {dataset.Modality}, not ultrasound (US).")
        return {_column(tag): str(dataset.get(tag) or "") for tag in KEPT_TAGS}


def _column(tag: str) -> str:
    """A DICOM keyword as a column name: "HeartRate" is "heart_rate"."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in tag).lstrip("_")


class _Names:
    """Which random name stands for which file, patient and study, as a key file says."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier call has written.

        Raises:
            ValueError: when the file is something else.
        """
        self._path = path
        self._names: dict[tuple[str, ...], str] = {}
        if not path.exists():
            return
        with path.open(newline="") as stream:
            reader = csv.DictReader(stream)
            if tuple(reader.fieldnames or ()) != _KEY_COLUMNS:
                raise ValueError(f"{path} is no key file; give another --key.")
            # Its owner's alone, however it came here: a copy has the mode of whoever made it.
            os.fchmod(stream.fileno(), 0o600)
            for row in reader:
                self._keep(*(row[column] for column in _KEY_COLUMNS))

    def of(self, source: str, patient_id: str, study_uid: str) -> tuple[str, str, str]:
        """Sample, patient and study of a file by their random names; new ones are written down."""
        # Without a Patient ID a study is a patient of its own, and without a study a file.
        person, visit = patient_id or study_uid or source, study_uid or source
        keys = ((source, person, visit), (person,), (person, visit))
        if keys[0] not in self._names:
            fresh = [self._names.get(key) or secrets.token_hex(8) for key in keys]
            self._append([source, person, visit, *fresh])
            self._keep(source, person, visit, *fresh)
        sample, patient, study = (self._names[key] for key in keys)
        return sample, patient, study

    def _keep(self, *row: str) -> None:
        source, person, visit, sample, patient, study = row
        self._names[source, person, visit] = sample
        self._names[(person,)] = patient
        self._names[person, visit] = study

    def _append(self, row: list[str]) -> None:
        """Add a line to the file, which is its owner's alone from its first byte on."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        with os.fdopen(handle, "a", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            if not stream.tell():
                writer.writerow(_KEY_COLUMNS)
            writer.writerow(row)
