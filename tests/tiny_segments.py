"""CAMUS-like patients of a few pixels, for the tests of segmentation."""

from __future__ import annotations

import gzip
from pathlib import Path

import cv2
import nibabel
import numpy as np
from numpy.typing import NDArray

from cardioray.clinical.simpson import biplane_discs_ml, ef_percent, measure_cavity
from cardioray.data.label_maps import ATRIUM, CAVITY, MYOCARDIUM

SPACING = (1.6, 1.3)  # height and width of a pixel in mm
SHAPE = (80, 72)
VIEWS = {"2CH": 0.9, "4CH": 1.0}  # width beside that of the other view


def heart(length_mm: float, width_mm: float, tilt: float = 0.0) -> NDArray[np.uint8]:
    """A truncated ellipse in a wall of 8 mm, apex up, with an atrium below."""
    down = (np.arange(SHAPE[0]) - 30)[:, None] * SPACING[0]
    right = (np.arange(SHAPE[1]) - SHAPE[1] / 2)[None] * SPACING[1]
    along, across = down - tilt * right, right + tilt * down
    labels = np.zeros(SHAPE, np.uint8)
    base = 0.25 * length_mm

    def inside(more: float) -> NDArray[np.bool_]:
        length, width = length_mm / 2 + more, width_mm / 2 + more
        return (along / length) ** 2 + (across / width) ** 2 <= 1

    labels[((along - base - 16) / 16) ** 2 + (across / (width_mm / 2)) ** 2 <= 1] = ATRIUM
    labels[inside(8) & (along <= base)] = MYOCARDIUM
    labels[inside(0) & (along <= base)] = CAVITY
    return labels


def echo(labels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Speckle: walls bright, blood dark."""
    level = np.choose(labels, [60.0, 20.0, 150.0, 30.0])
    speckle = rng.rayleigh(0.8, labels.shape)
    return np.clip(cv2.GaussianBlur(level * speckle, (3, 3), 0.7), 0, 255).astype(np.uint8)


def nifti(array: NDArray[np.uint8], spacing: tuple[float, float] = SPACING) -> bytes:
    """A picture (H, W), or frames (T, H, W)."""
    image = nibabel.Nifti1Image(array.T, np.eye(4))
    image.header.set_zooms([spacing[1], spacing[0], *[1.0] * (array.ndim - 2)])
    return gzip.compress(image.to_bytes(), mtime=0)


def true_ef(end_diastole: tuple[float, float], end_systole: tuple[float, float]) -> float:
    """EF by discs of the true outlines, of (length, width) in mm at both phases."""
    volumes = []
    for length, width in (end_diastole, end_systole):
        maps = [heart(length, width * share) for share in VIEWS.values()]
        cavities = [measure_cavity(m == CAVITY, SPACING, m == MYOCARDIUM) for m in maps]
        volumes.append(biplane_discs_ml(*cavities))
    return ef_percent(*volumes)


def write_camus(root: Path, patients: int, seed: int = 0) -> Path:
    """Both phases of both views of each patient."""
    rng = np.random.default_rng(seed)
    for number in range(patients):
        name = f"patient{number + 1:04d}"
        folder = root / name
        folder.mkdir(parents=True)
        shrunk = rng.uniform(0.6, 0.95)
        length, width = rng.uniform(70, 88), rng.uniform(36, 50)
        phases = {"ED": (length, width), "ES": (length * (0.5 + 0.5 * shrunk), width * shrunk)}
        for view, share in VIEWS.items():
            for phase, (long, wide) in phases.items():
                labels = heart(long, wide * share, rng.normal(0, 0.08))
                stem = f"{name}_{view}_{phase}"
                (folder / f"{stem}.nii.gz").write_bytes(nifti(echo(labels, rng)))
                (folder / f"{stem}_gt.nii.gz").write_bytes(nifti(labels))
            ef = true_ef(phases["ED"], phases["ES"])
            text = f"ED: 1\nES: 9\nEF: {ef:.1f}\nImageQuality: {'Good' if number % 3 else 'Poor'}\n"
            (folder / f"Info_{view}.cfg").write_text(text)
    return root
