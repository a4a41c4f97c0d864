"""Bundles of `ecg` that have learned from a few printed phantoms, and pages of these."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tiny_training import training_here

from cardioray.bundle import Bundle
from cardioray.data.pipeline import prepare
from cardioray.data.shards import ShardSet
from cardioray.phantoms.ecg import draw_ecg, write_ecgs
from cardioray.phantoms.ecg_config import EcgPhantomConfig
from cardioray.phantoms.ecg_patient import draw_ecg_patient
from cardioray.training.settings import RunConfig
from cardioray.training.single import train_bundle

PHANTOMS = EcgPhantomConfig(
    px_per_mm=5.0,
    effect=1.5,
    scanned_share=0.0,
    photographed_share=0.0,
    scar_share=0.5,
    cardiomyopathy_share=0.3,
    new_share=1.0,
    noise_mv=(0.002, 0.006),
    wander_mv=(0.0, 0.02),
)
PATIENTS = 32
# Of both classes of either question there are two patients or more in every split.
SEED = 4
SETTINGS = (
    "preprocess.image_size=96",
    "preprocess.page.px_per_mm=6",
    "model.backbone=resnet10t",
    "model.pretrained=none",
    "model.latent=32",
    "model.recurrent=16",
    "train.recipe=scratch",
    "train.epochs=2",
    "train.batch_size=8",
    "train.precision=fp32",
    "split.cross_fit_folds=0",
    "scale.gpus_per_worker=0",
    "operating.calibration=none",
)


def built(*overrides: str) -> RunConfig:
    return RunConfig.build("ecg", None, (*SETTINGS, *overrides))


@functools.cache
def prepared() -> tuple[Path, ShardSet]:
    """Shards, and the folder where `ecgs` lies that they were made of; needs Ray."""
    folder = Path(tempfile.mkdtemp(prefix="cardioray-ecgs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_ecgs(str(folder / "ecgs"), PATIENTS, seed=SEED, config=PHANTOMS)
    run = built()
    manifest = run.task.read_manifest(str(folder / "ecgs"), None)
    return folder, prepare(run.task, manifest, str(folder / "shards"))


@functools.cache
def trained(*overrides: str) -> Bundle:
    """A bundle, made once for the settings; needs Ray."""
    folder, shards = prepared()
    run = built(*overrides)
    with training_here():
        return train_bundle(run, shards, str(folder / "runs"))


def page(index: int = 0, *, new: bool = True) -> NDArray[np.uint8]:
    """The picture of a patient's ECG, (H, W, 3)."""
    patient = draw_ecg_patient(SEED, index, PHANTOMS)
    return draw_ecg(patient, SEED, PHANTOMS, new=new)[0].picture


def png(picture: NDArray[np.uint8]) -> bytes:
    done, coded = cv2.imencode(".png", picture[..., ::-1])
    assert done
    return coded.tobytes()
