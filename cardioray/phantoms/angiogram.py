"""Phantom coronary angiograms: patients with a known lesion and FFR, rendered and written."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from cardioray import storage
from cardioray.phantoms import dataset
from cardioray.phantoms.angiogram_config import PRESETS, AngiogramPhantomConfig
from cardioray.phantoms.angiogram_patient import (
    FFR_CUTOFF,
    AngiogramPatient,
    draw_patient,
    draw_truth,
)
from cardioray.phantoms.coronary_tree import STEP_MM
from cardioray.phantoms.drawing import Stream, draw, stream
from cardioray.phantoms.fluoroscopy import add_lumen, collimation, expose, thorax_absorbance

__all__ = [
    "PRESETS",
    "AngiogramPatient",
    "AngiogramPhantomConfig",
    "draw_patient",
    "render_frames",
    "write_angiograms",
]

Floats = NDArray[np.float64]

TEST_SHARE = 0.2

CATHETER_RADIUS_MM = 1.0
"""A catheter of 6 French."""

# Changes whenever the same request would give other pixels or another truth.
_GENERATOR = 3


def render_frames(patient: AngiogramPatient, config: AngiogramPhantomConfig) -> NDArray[np.uint8]:
    """Render the run of a patient.

    Args:
        patient: what `draw_patient` gave for the same config.
        config: how the patient is seen.

    Returns:
        Grey frames, vessels dark, shape (frames, image_size_px, image_size_px).
    """
    scene = stream(patient.seed, patient.index, Stream.SCENE)
    view = patient.view
    thorax = draw(scene, config.background) * thorax_absorbance(
        scene, view, heart_mm=1.4 * patient.tree.heart_axes_mm[0]
    )
    blades = collimation(scene, view, config.collimator_mm) if config.collimator_mm > 0 else None
    iodine = draw(scene, config.iodine_per_mm)
    scatter, blur_mm = draw(scene, config.scatter_ratio), draw(scene, config.blur_mm)
    # The exposure control keeps the dose on an area; a pixel gets its share of it.
    photons = draw(scene, config.photons) * (view.spacing_mm / 0.4) ** 2
    black, white = draw(scene, config.black_level), draw(scene, config.white_level)
    catheter_mm = _draw_catheter(scene)

    frames = []
    for frame in range(len(patient.fill_mm)):
        moved = ndimage.shift(thorax, patient.shift_px[frame][::-1], order=1, mode="nearest")
        lumen_mm = _lumen_mm(patient, frame, catheter_mm)
        signal = expose(
            stream(patient.seed, patient.index, Stream.NOISE, frame),
            moved + iodine * lumen_mm,
            photons=photons,
            scatter_ratio=scatter,
            blur_px=blur_mm / view.spacing_mm,
        )
        # Consoles window each run to its own range; what is left varies by taste.
        low, high = np.percentile(signal, (0.5, 99.5))
        grey = np.clip(black + (white - black) * (signal - low) / (high - low), 0, 1)
        if blades is not None:
            grey *= blades
        frames.append(np.round(255 * grey).astype(np.uint8))
    return np.stack(frames)


def write_angiograms(
    out: str,
    num_patients: int,
    *,
    seed: int,
    config: AngiogramPhantomConfig,
    folder_per_class: bool = False,
    num_workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Write the PNG frames and the manifest.csv of a phantom data set.

    Running it again with the same request does nothing; after a killed run it starts over.

    Args:
        out: folder or s3:// prefix, empty or absent.
        num_patients: number of patients.
        seed: seed of the data set; another seed gives other patients.
        config: a preset of `PRESETS` or a config of your own.
        folder_per_class: lay the frames out as {train,test}/{FFRH,FFRL}/<patient>_<frame>.png,
            each patient whole in one of the two, instead of frames/<patient>_<frame>.png.
        num_workers: number of processes; 1 renders in this process, None uses all CPUs.
        on_progress: called with the number of finished patients and of all patients.

    Returns:
        The manifest, one row a frame; `source` is relative to the manifest.

    Raises:
        ValueError: when `out` holds anything else, or a number is out of range.
    """

    def write(place: str) -> pd.DataFrame:
        splits = _draw_splits(num_patients, seed, config) if folder_per_class else None
        work = functools.partial(_write_patient, out=place, seed=seed, config=config, splits=splits)
        rows = dataset.run_parallel(
            work, num_patients, num_workers=num_workers, on_progress=on_progress
        )
        return pd.DataFrame([row for patient_rows in rows for row in patient_rows])

    return dataset.write_once(
        out,
        "angiogram",
        write,
        generator=_GENERATOR,
        num_patients=num_patients,
        seed=seed,
        config=config,
        folder_per_class=folder_per_class,
    )


def _lumen_mm(patient: AngiogramPatient, frame: int, catheter_mm: Floats) -> Floats:
    """Way of each ray through contrast in vessels and catheter, shape (size, size)."""
    spacing, size = patient.view.spacing_mm, patient.view.size_px
    # A branch shares its parent's lumen where it leaves it, and crosses other vessels in front of
    # or behind them: chords of one layer unite, those of the two layers add up.
    joined, crossing = np.zeros((size, size)), np.zeros((size, size))
    for vessel in patient.tree.vessels:
        points = patient.to_pixels(vessel.points_mm, frame)
        density = 1 / (1 + np.exp((vessel.travel_mm - patient.fill_mm[frame]) / 6))
        lateral = vessel.name.startswith(("LCx", "OM"))
        origin = int(6 / STEP_MM) if vessel.name == "LCx" else 0
        for layer, part in (
            (joined, slice(origin) if lateral else slice(None)),
            (crossing, slice(origin, None) if lateral else slice(0)),
        ):
            add_lumen(layer, points[part], vessel.radius_mm[part], density[part], spacing)
    ostium = patient.to_pixels(patient.tree.vessels[0].points_mm[:1], frame)[0, :2]
    tube = np.zeros((len(catheter_mm), 3))
    tube[:, :2] = ostium + catheter_mm * np.array([1, -1]) / spacing
    filled = np.ones(len(tube))
    add_lumen(joined, tube, CATHETER_RADIUS_MM * filled, filled, spacing)
    return joined + crossing


def _draw_catheter(rng: np.random.Generator) -> Floats:
    """Centre line of a left coronary catheter, in mm right and up of the ostium."""
    knots = np.array(
        [
            [0.0, 0.0],
            [rng.uniform(-16, -10), rng.uniform(-6, 0)],
            [rng.uniform(-30, -18), rng.uniform(5, 25)],
            [rng.uniform(-20, 10), 130.0],
        ]
    )
    way = np.linspace(0, 1, 200)[:, None]
    weights = np.hstack([(1 - way) ** 3, 3 * way * (1 - way) ** 2, 3 * way**2 * (1 - way), way**3])
    return np.asarray(weights @ knots)


def _draw_splits(num_patients: int, seed: int, config: AngiogramPhantomConfig) -> list[str]:
    """train or test for each patient, a fifth of each class in test."""
    labels = np.array(
        [draw_truth(index, seed, config)[2] <= FFR_CUTOFF for index in range(num_patients)]
    )
    splits = np.full(num_patients, "train", dtype=object)
    for value in (False, True):
        members = stream(seed, int(value), Stream.SPLIT).permutation(
            np.flatnonzero(labels == value)
        )
        splits[members[: round(TEST_SHARE * len(members))]] = "test"
    return [str(split) for split in splits]


def _write_patient(
    index: int,
    *,
    out: str,
    seed: int,
    config: AngiogramPhantomConfig,
    splits: list[str] | None,
) -> list[dict[str, object]]:
    """Render and write one patient; returns its rows of the manifest."""
    patient = draw_patient(index, seed, config)
    rows = []
    for frame, pixels in enumerate(render_frames(patient, config)):
        name = f"{patient.patient_id}_{frame:03d}"
        folder = f"{splits[index]}/{patient.label}" if splits else "frames"
        source = f"{folder}/{name}.png"
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "PNG")
        storage.write_bytes(storage.join(out, source), encoded.getvalue())
        rows.append(
            {
                "sample_id": name,
                "patient_id": patient.patient_id,
                "study_id": f"{patient.patient_id}-XA",
                "source": source,
                "frame": frame,
                "ffr": patient.ffr,
                "label": patient.label,
                "percent_diameter_stenosis": round(patient.percent_diameter_stenosis, 2),
                "lesion_length_mm": round(patient.lesion_length_mm, 2),
                "reference_diameter_mm": round(patient.reference_diameter_mm, 3),
                "centerline_px": json.dumps(patient.centerline_px(frame).round(1).tolist()),
                "phantom": True,
                "preset": config.preset,
                "seed": seed,
                **({"split": splits[index]} if splits else {}),
            }
        )
    return rows
