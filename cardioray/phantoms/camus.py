"""Phantom echo frames with label maps, in the layout of CAMUS."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import io
from collections.abc import Callable
from typing import Any

import cv2
import nibabel
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cardioray import storage
from cardioray.data.spreading import spread
from cardioray.phantoms import dataset
from cardioray.phantoms.echo_config import EchoPhantomConfig
from cardioray.phantoms.echo_patient import EchoPatient, ViewName, draw_echo_patient
from cardioray.phantoms.echo_scene import Systole, render_systole

# What CAMUS calls the views.
VIEWS: dict[ViewName, str] = {"A2C": "2CH", "A4C": "4CH"}
SIZE_PX = 256

# Changes whenever the same request would give other pixels or another truth.
_GENERATOR = 1


def write_camus(
    out: str,
    num_patients: int,
    *,
    seed: int,
    config: EchoPhantomConfig,
    on_progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Write a phantom data set in CAMUS's layout.

    For each patient `patient0001/patient0001_4CH_ED.nii.gz` and so on, `..._gt.nii.gz` with labels
    1 cavity, 2 myocardium, 3 atrium, `..._half_sequence.nii.gz` from end diastole to end systole,
    and `Info_2CH.cfg`, `Info_4CH.cfg` with the true volumes. The patients are those of
    `write_echoes` with the same seed and config. `manifest.csv` lists the frames with the truth.

    Args:
        out: folder or s3:// prefix, empty or absent; one that every node sees.
        num_patients: number of patients.
        seed: seed of the data set; another seed gives other patients.
        config: a preset of `ECHO_PRESETS` or a config of your own; frames are at least 256 px.
        on_progress: called with the number of finished patients and of all patients.

    Returns:
        The manifest, one row a frame at end diastole or end systole.

    Raises:
        ValueError: when `out` holds anything else, or a number is out of range.
    """
    config = dataclasses.replace(config, image_size_px=max(config.image_size_px, SIZE_PX))

    def write(place: str) -> pd.DataFrame:
        work = functools.partial(_write_patient, out=place, seed=seed, config=config)
        return pd.DataFrame(
            [row for patient in spread(work, num_patients, on_progress) for row in patient]
        )

    return dataset.write_once(
        out,
        "camus",
        write,
        generator=_GENERATOR,
        num_patients=num_patients,
        seed=seed,
        config=config,
    )


def _write_patient(
    index: int, *, out: str, seed: int, config: EchoPhantomConfig
) -> list[dict[str, Any]]:
    """Render and write one patient; its rows of the manifest."""
    cv2.setNumThreads(1)  # patients are spread over the cores
    patient = draw_echo_patient(seed, index, config)
    name = f"patient{index + 1:04d}"
    folder = storage.join(out, name)
    rows = []
    for view, theirs in VIEWS.items():
        systole = render_systole(patient, view, config)
        stem = f"{name}_{theirs}"
        for phase, frame in (("ED", 0), ("ES", -1)):
            for suffix, pixels in (("", systole.frames), ("_gt", systole.labels)):
                file = storage.join(folder, f"{stem}_{phase}{suffix}.nii.gz")
                storage.write_bytes(file, _nifti(pixels[frame], systole.spacing_mm))
            rows.append(
                {
                    "sample_id": f"{name}_{view}_{phase}",
                    "patient_id": name,
                    "study_id": name,
                    "view": view,
                    "phase": phase,
                    "source": f"{name}/{stem}_{phase}.nii.gz",
                    "mask": f"{name}/{stem}_{phase}_gt.nii.gz",
                    "ef": round(patient.ef_percent, 4),
                    "edv_ml": round(patient.edv_ml, 4),
                    "esv_ml": round(patient.esv_ml, 4),
                    "spacing_mm": round(systole.spacing_mm, 6),
                    "phantom": True,
                    "preset": config.preset,
                }
            )
        for suffix, pixels in (("", systole.frames), ("_gt", systole.labels)):
            file = storage.join(folder, f"{stem}_half_sequence{suffix}.nii.gz")
            storage.write_bytes(file, _nifti(pixels, systole.spacing_mm))
        text = _info(patient, systole)
        storage.write_bytes(storage.join(folder, f"Info_{theirs}.cfg"), text.encode())
    return rows


def _info(patient: EchoPatient, systole: Systole) -> str:
    """The text file of a view, with the words of both releases."""
    fields = {
        "ED": 1,
        "ES": len(systole.frames),
        "NbFrame": len(systole.frames),
        "ImageQuality": "Good",
        "EF": round(patient.ef_percent, 4),
        "LVedv": round(patient.edv_ml, 4),
        "LVesv": round(patient.esv_ml, 4),
        "FrameRate": round(systole.fps, 2),
    }
    return "".join(f"{key}: {value}\n" for key, value in fields.items())


def _nifti(pixels: NDArray[np.uint8], spacing_mm: float) -> bytes:
    """A picture (H, W) or frames (T, H, W) as NIfTI: lateral axis first, then depth, then time."""
    image = nibabel.Nifti1Image(pixels.T, np.eye(4))
    image.header.set_zooms([spacing_mm] * 2 + [1.0] * (pixels.ndim - 2))
    image.header.set_xyzt_units("mm")
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as stream:
        stream.write(image.to_bytes())
    return packed.getvalue()
