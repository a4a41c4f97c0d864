"""The input gate: which pictures it flags, of the kind it was fitted on and of others."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import nibabel
import numpy as np
import skimage
import sklearn.datasets
from numpy.typing import NDArray

from benchmarks.report import Cell, Ratio, Report
from cardioray.config import config
from cardioray.data import cluster
from cardioray.data.decoding import DecodedSample
from cardioray.data.frames import UnreadableImage
from cardioray.data.pipeline import PrepareConfig, prepare
from cardioray.models.gate import Findings
from cardioray.phantoms.angiogram import PRESETS, write_angiograms
from cardioray.predictor import Predictor
from cardioray.training.settings import RunConfig
from cardioray.training.single import train_bundle

QUESTION = """\
A network is trained on phantom angiograms of one preset, and the gate of its bundle looks at other
pictures: phantoms of new patients, which it should let pass, and real pictures of several kinds,
which no model for angiograms can judge. Real angiograms are not the training's kind either, but
the nearest to it. Shares flagged, in %, by what the gate looks at: the source's size and shape,
simple measures of the pixels, and the network's features. The real pictures are those of
`CARDIORAY_SAMPLES`, and photographs that scikit-image and scikit-learn bring along."""
PHANTOMS = "phantoms of new patients"


@config
class GateSettings:
    """Size of the run.

    Attributes:
        presets: of the phantoms a gate is fitted on, one model each.
        patients: phantom patients, four frames each.
        new_patients: of the same preset, not trained on.
        backbone: network.
        image_size: side in px.
        epochs: of training.
        samples: folder of real samples.
    """

    presets: tuple[str, ...] = ("standard", "clear")
    patients: int = 90
    new_patients: int = 60
    backbone: str = "mobilenetv3large"
    image_size: int = 128
    epochs: int = 8
    samples: str = os.environ.get("CARDIORAY_SAMPLES", "../shared/data")


def run(settings: GateSettings) -> Report:
    """Train a model of each preset and show its gate everything."""
    rows: list[dict[str, Cell]] = []
    foreign_shares, new_shares = [], []
    for preset in settings.presets:
        with tempfile.TemporaryDirectory(prefix="cr-bench-") as name:
            folder = Path(name)
            predictor = _trained(settings, preset, folder)
            fresh = folder / "fresh"
            write_angiograms(str(fresh), settings.new_patients, seed=2, config=PRESETS.get(preset))
            groups = {PHANTOMS: _files(predictor, sorted((fresh / "frames").glob("*.png")))}
            groups |= _foreign(predictor, Path(settings.samples))
            for kind, samples in groups.items():
                found = _findings(predictor, samples)
                flagged = [bool(one.sentences) for one in found]
                rows.append(
                    {
                        "preset": preset,
                        "kind": kind,
                        "pictures": len(found),
                        "source": 100 * float(np.mean([bool(one.source) for one in found])),
                        "pixels": 100 * float(np.mean([bool(one.pixels) for one in found])),
                        "features": 100 * float(np.mean([bool(one.features) for one in found])),
                        "any": 100 * float(np.mean(flagged)),
                    }
                )
                if kind == PHANTOMS:
                    new_shares.append(float(np.mean(flagged)))
                elif "angiogram" not in kind:
                    foreign_shares += flagged
    return Report(
        name="gate",
        title="The input gate: what is flagged",
        question=QUESTION,
        columns={
            "preset": "fitted on",
            "kind": "pictures",
            "pictures": "number",
            "source": "source, %",
            "pixels": "pixels, %",
            "features": "features, %",
            "any": "any, %",
        },
        rows=rows,
        ratios=[
            Ratio(
                name="of pictures that are no angiograms, flagged",
                value=100 * float(np.mean(foreign_shares)),
                unit="%",
            ),
            Ratio(
                name="of phantoms of new patients, flagged",
                value=100 * float(np.mean(new_shares)),
                unit="%",
            ),
        ],
        settings={k: v for k, v in asdict(settings).items() if k != "samples"},
    )


def _trained(settings: GateSettings, preset: str, folder: Path) -> Predictor:
    run_config = RunConfig.build(
        "ffr",
        {
            "preprocess": {"image_size": settings.image_size},
            "model": {"backbone": settings.backbone, "pretrained": "none"},
            "train": {"epochs": settings.epochs, "batch_size": 16, "learning_rate": 1e-3},
            "split": {"cross_fit_folds": 0},
        },
    )
    phantoms = str(folder / "phantoms")
    write_angiograms(phantoms, settings.patients, seed=1, config=PRESETS.get(preset))
    cluster.connect()
    manifest = run_config.task.read_manifest(phantoms, None)
    shards = prepare(run_config.task, manifest, str(folder / "shards"), PrepareConfig())
    return Predictor(train_bundle(run_config, shards, str(folder / "runs")))


def _foreign(predictor: Predictor, samples: Path) -> dict[str, list[DecodedSample]]:
    """Real pictures by kind."""
    if not samples.is_dir():
        raise ValueError(f"{samples} is no folder of real samples; set CARDIORAY_SAMPLES.")
    photographs = [
        file
        for folder in (
            Path(skimage.__file__).parent / "data",
            Path(sklearn.datasets.__file__).parent / "images",
        )
        for file in sorted(folder.iterdir())
        if file.suffix in (".png", ".jpg")
    ]
    return {
        "real angiograms": _files(predictor, sorted(samples.glob("angio_*/**/*.[pb][nm][gp]"))),
        "ECG scans, screenshots, phone photos": _files(
            predictor, sorted((samples / "ecg_images").glob("*.[pj][np]g"))
        ),
        "echo stills and cines (DICOM)": _files(
            predictor, sorted((samples / "echo_dicom").glob("*")), every=10
        ),
        "echo frames (CAMUS)": [
            predictor.task.decoder.from_array(_nifti_picture(file))
            for file in sorted((samples / "camus").rglob("*_E[DS].nii.gz"))
        ],
        "photographs and microscopy": _files(predictor, photographs),
    }


def _files(predictor: Predictor, files: Sequence[Path], every: int = 1) -> list[DecodedSample]:
    """Pictures of files, of a cine every tenth or so; what is no picture is passed over."""
    return [sample for file in files for sample in _decoded(predictor, file, every)]


def _decoded(predictor: Predictor, file: Path, every: int) -> Iterator[DecodedSample]:
    try:
        samples = predictor.task.decoder.decode(file.read_bytes(), "all")
    except UnreadableImage:
        return
    yield from samples[::every]


def _nifti_picture(file: Path) -> NDArray[np.uint8]:
    picture = np.asarray(nibabel.load(file).dataobj).T
    return np.ascontiguousarray(picture).astype(np.uint8)


def _findings(predictor: Predictor, samples: Sequence[DecodedSample]) -> list[Findings]:
    outputs = predictor.infer(samples)
    [column] = predictor.task.columns
    images = np.stack([sample.arrays[column] for sample in samples])
    shapes = np.array([sample.source_shape for sample in samples])
    return predictor.gate.check(images, shapes, outputs.features)
