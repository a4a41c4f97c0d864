"""From a finished run to a bundle: operating point, figures, exports, gate, plots, model card."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray
from safetensors.numpy import save as save_arrays
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

import cardioray
from cardioray import bundle as bundles
from cardioray import config
from cardioray.bundle import Bundle, dump_json
from cardioray.data.reading import take_rows
from cardioray.data.sampling import split, stacked
from cardioray.data.shards import ShardSet
from cardioray.evaluation import plots
from cardioray.evaluation.figures import decide
from cardioray.evaluation.operating_point import (
    BinaryOperatingPoint,
    RegressionOperatingPoint,
    fit_operating_point,
)
from cardioray.evaluation.predictions import check_predictions, select_split
from cardioray.evaluation.report import Evaluation, evaluate, title_of, write_plots
from cardioray.models.gate import InputGate
from cardioray.models.runtime import (
    FEATURES,
    OpenVinoRuntime,
    Runtime,
    TorchRuntime,
    export_openvino,
)
from cardioray.predictor import (
    CALIBRATION,
    GATE,
    OPENVINO,
    OPERATING_POINTS,
    SEEN,
    TOLERANCE,
    digest_numbers,
)
from cardioray.targets import BinaryTarget, RegressionTarget
from cardioray.tasks.base import LabelStatistics
from cardioray.training.outcome import PREDICTIONS
from cardioray.training.pictures import prediction_picture
from cardioray.training.settings import RunConfig

log = logging.getLogger(__name__)

# Training rows that the input gate is fitted on; fewer where samples are large.
GATE_ROWS = 1024
GATE_BYTES = 2**29
GATE_LEAST_ROWS = 64
# Largest difference in fp32 that rounding explains, of a probability or in SDs of a number.
FP32_TOLERANCE = 1e-3
LIBRARIES = ("ray", "torch", "torchvision", "timm", "numpy", "pandas", "openvino", "pydicom")

PHANTOM_WARNING = "Trained on phantoms: figures say nothing about patients."
UNKNOWN_PATIENTS_WARNING = (
    "Patients were not known: the same patient may be in training and test, so figures may be "
    "better than they would be on new patients."
)
SMALL_CALIBRATION_WARNING = (
    "Too few calibration patients: threshold, probability calibration and conformal set were "
    "fitted on validation patients, which early stopping has seen."
)


@dataclass(frozen=True, kw_only=True)
class BundleSource:
    """What a bundle is made of.

    Attributes:
        run: settings of the run.
        shards: its data.
        split: split of every sample of the shards.
        weights: weights of the network.
        statistics: of the training labels.
        predictions: of validation, calibration and test samples.
        calibration_predictions: fits the operating point where there is no calibration split;
            out-of-fold predictions of patients that are not in the test split.
        log: training log, one row an epoch.
        name: the model's name.
        comparison: figures of the comparison this model won, for metrics.json.
        starting_weights: where training started from, in words.
        notes: what went otherwise than it should in training.
    """

    run: RunConfig
    shards: ShardSet
    split: pd.Series[str]
    weights: Mapping[str, Tensor]
    statistics: LabelStatistics
    predictions: pd.DataFrame
    calibration_predictions: pd.DataFrame | None
    log: pd.DataFrame | None
    name: str
    comparison: Mapping[str, Any] | None
    starting_weights: str
    notes: tuple[str, ...] = ()

    @property
    def fitted_on(self) -> str:
        """Whose predictions set threshold, calibration and conformal set, in words."""
        if (self.predictions["split"] == "calibration").any():
            return "calibration patients, which training has not seen"
        if self.calibration_predictions is not None:
            return (
                "patients scored out of fold, by networks trained like this one on other patients; "
                "the promise of conformal sets is for those networks, and holds for this one as "
                "far as it is like them"
            )
        return "validation patients, which early stopping has seen"


def write_bundle(source: BundleSource, out: str) -> Bundle:
    """Make a bundle and put it at `out`, local or s3://; an older one there is replaced.

    Raises:
        ValueError: when a split that is needed has no predictions.
    """
    with tempfile.TemporaryDirectory(prefix="cardioray-bundle-") as scratch:
        folder = Path(scratch) / "bundle"
        folder.mkdir()
        _write_files(source, folder)
        bundles.seal(folder)
        bundles.copy_bundle(str(folder), out)
    return bundles.open_bundle(out)


def _write_files(source: BundleSource, folder: Path) -> None:
    run, task = source.run, source.run.task
    model = task.build_model()
    model.load_state_dict(dict(source.weights))
    model.eval()
    points = {t.name: _operating_point(source, t) for t in task.targets}
    evaluations = {
        t.name: evaluate(source.predictions, t, points[t.name], seed=run.train.seed)
        for t in task.targets
    }
    cpu = {key: value.cpu().contiguous() for key, value in source.weights.items()}
    (folder / bundles.MODEL).write_bytes(save_tensors(cpu))
    written = {key: value for key, value in run.to_dict().items() if key != "scale"}
    if written.get("model", {}).get("weights"):  # a path of this machine; metadata.json names it
        written["model"] = {**written["model"], "weights": None}
    (folder / bundles.CONFIG).write_text(yaml.safe_dump(written, sort_keys=False))
    write_operating_points(points, folder)
    images, shapes, patients = _training_pictures(source)
    features = _features(model, images, task.max_batch)
    gate = InputGate.fit(task.pictures(images), shapes, features, patients)
    (folder / GATE).write_bytes(save_arrays(gate.to_tensors()))
    (folder / SEEN).write_bytes(save_arrays({"digests": _seen(source)}))
    tolerance = _export(source, model, images, folder)
    (folder / TOLERANCE).write_bytes(dump_json(tolerance))
    (folder / "preprocess.json").write_bytes(dump_json(_preprocess(source)))
    metrics = {
        "targets": {name: value.to_dict() for name, value in evaluations.items()},
        "comparison": source.comparison,
    }
    (folder / "metrics.json").write_bytes(dump_json(metrics))
    source.predictions.to_parquet(folder / PREDICTIONS, index=False)
    _write_plots(source, points, folder)
    metadata = _metadata(source, points)
    (folder / bundles.METADATA).write_bytes(dump_json(metadata))
    (folder / bundles.CARD).write_text(
        _card(source, metadata, evaluations, tolerance, gate, folder)
    )


def _operating_point(
    source: BundleSource, target: BinaryTarget | RegressionTarget
) -> BinaryOperatingPoint | RegressionOperatingPoint:
    settings = source.run.task.operating
    table = source.predictions
    if not (table["split"] == "calibration").any():
        if source.calibration_predictions is not None:
            table = source.calibration_predictions
        else:
            table = table[table["split"] == "validation"]
        table = table.assign(split="calibration")
    return fit_operating_point(
        table,
        target,
        rule=settings.rule,
        calibration=settings.calibration,
        alpha=settings.alpha,
        seed=source.run.train.seed,
    )


def write_operating_points(
    points: Mapping[str, BinaryOperatingPoint | RegressionOperatingPoint], folder: Path
) -> None:
    """Write thresholds.json and calibration.json; `read_operating_points` reads them."""
    thresholds: dict[str, Any] = {}
    calibrations: dict[str, Any] = {}
    for name, point in points.items():
        values = point.to_dict()
        calibrations[name] = {k: values.pop(k) for k in ("calibration", "conformal") if k in values}
        thresholds[name] = values
    (folder / OPERATING_POINTS).write_bytes(dump_json(thresholds))
    (folder / CALIBRATION).write_bytes(dump_json(calibrations))


def _training_pictures(
    source: BundleSource,
) -> tuple[dict[str, NDArray[np.uint8]], NDArray[np.int64], NDArray[Any]]:
    """What the network sees of a seeded sample of training rows, source shapes and patients."""
    task, index = source.run.task, source.shards.index
    training = source.shards.samples[(source.split == "train").to_numpy()]
    affordable = int(GATE_BYTES * index.num_samples / index.array_bytes)
    count = min(max(GATE_LEAST_ROWS, min(GATE_ROWS, affordable)), len(training))
    chosen = training.sample(count, random_state=source.run.train.seed).sort_values("row")
    rows = chosen["row"].to_numpy(np.int64)
    arrays = take_rows(source.shards, rows, task.decoder.columns)
    if task.sampler.cuts:
        windows = [task.sampler.windows(sample, thorough=False)[0] for sample in split(arrays)]
        arrays = stacked(windows)
    shapes = chosen[["height_px", "width_px"]].to_numpy(np.int64)
    return arrays, shapes, chosen["patient_id"].to_numpy()


def _seen(source: BundleSource) -> NDArray[np.uint64]:
    """The samples that took part in making the model, by their content."""
    used = source.split.isin(["train", "validation", "calibration"])
    if source.calibration_predictions is not None:
        used |= source.shards.samples["sample_id"].isin(source.calibration_predictions["sample_id"])
    return np.unique(
        digest_numbers(source.shards.samples["array_sha256"][used.to_numpy()].tolist())
    )


def _features(
    model: nn.Module, arrays: Mapping[str, NDArray[np.uint8]], batch: int
) -> NDArray[np.float32]:
    runtime = TorchRuntime(model, device=torch.device("cpu"), bf16=False)
    count = len(next(iter(arrays.values())))
    pieces = [
        runtime.run(tuple(values[i : i + batch] for values in arrays.values()))[FEATURES]
        for i in range(0, count, batch)
    ]
    return np.concatenate(pieces)


def _export(
    source: BundleSource,
    model: nn.Module,
    arrays: Mapping[str, NDArray[np.uint8]],
    folder: Path,
) -> dict[str, Any]:
    """Export to OpenVINO and measure how far its scores are from PyTorch's in fp32.

    An export that computes something else is left out of the bundle; CPUs then run PyTorch.
    """
    task = source.run.task
    batch = task.max_batch
    sample = tuple(values[: 2 * batch] for values in arrays.values())
    names = tuple(target.name for target in task.targets)
    export_openvino(model, names, tuple(values[:2] for values in sample), folder / OPENVINO)

    def scores(raw: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        tensors = {name: torch.from_numpy(raw[name]) for name in names}
        return {k: v.numpy() for k, v in task.scores(tensors, source.statistics).items()}

    def run(runtime: Runtime) -> dict[str, NDArray[np.float32]]:
        starts = range(0, len(sample[0]), batch)
        parts = [runtime.run(tuple(v[i : i + batch] for v in sample)) for i in starts]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    reference = scores(run(TorchRuntime(model, device=torch.device("cpu"), bf16=False)))
    differences: dict[str, Any] = {}
    for precision in ("fp32", "bf16"):
        runtime = OpenVinoRuntime(folder / OPENVINO, bf16=precision == "bf16")
        found = scores(run(runtime))
        differences[f"openvino_{precision}"] = {
            name: float(np.abs(found[name] - reference[name]).max()) for name in names
        }
    # A probability goes from 0 to 1; a number is measured by the spread of its training labels.
    scale = {**dict.fromkeys(names, 1.0), **source.statistics.deviations}
    worst = max(differences["openvino_fp32"][name] / scale[name] for name in names)
    kept = worst <= FP32_TOLERANCE
    if not kept:
        log.warning(
            "The OpenVINO export differs from PyTorch by %.2g in a score, more than %g: it is left "
            "out of the bundle, and CPUs run PyTorch.",
            worst,
            FP32_TOLERANCE,
        )
        shutil.rmtree(folder / OPENVINO)
    return {
        "openvino_kept": kept,
        "reference": "PyTorch fp32, eager, CPU",
        "samples": len(sample[0]),
        "largest_absolute_difference_of_scores": differences,
    }


def _preprocess(source: BundleSource) -> dict[str, Any]:
    task = source.run.task
    return {
        "decode": config.to_dict(task.decoder),
        "columns": _shapes(source),
        "dtype": "uint8",
        "layout": "channels last",
        "note": "Normalisation is part of the network.",
    }


def _shapes(source: BundleSource) -> dict[str, list[int]]:
    """Shape of each array that the network takes, without the batch."""
    shapes = source.run.task.input_shapes(source.shards.index.columns)
    return {name: list(shape) for name, shape in shapes.items()}


def _write_plots(
    source: BundleSource,
    points: Mapping[str, BinaryOperatingPoint | RegressionOperatingPoint],
    folder: Path,
) -> None:
    for target in source.run.task.targets:
        place = folder / "plots" / target.name
        point = points[target.name]
        write_plots(source.predictions, target, point, str(place))
        if isinstance(target, BinaryTarget):
            test = select_split(check_predictions(source.predictions, target), "test")
            figure = prediction_picture(
                decide(test, point),
                source.shards,
                source.run.task,
                target,
                seed=source.run.train.seed,
            )
            (place / "predictions.png").write_bytes(plots.png_bytes(figure))
    if source.log is not None:
        figure = plots.learning_curves(source.log)
        (folder / "plots" / "learning_curves.png").write_bytes(plots.png_bytes(figure))


def _metadata(source: BundleSource, points: Mapping[str, Any]) -> dict[str, Any]:
    task, shards = source.run.task, source.shards
    targets = {t.name: config.to_dict(t) for t in task.targets}
    return {
        "version": "1.0.0",
        "name": source.name,
        "task": task.name,
        "description": task.title,
        "authors": os.environ.get("CARDIORAY_AUTHORS", "not stated"),
        "copyright": os.environ.get("CARDIORAY_COPYRIGHT", "not stated"),
        "intended_use": task.intended_use,
        "not_for_clinical_use": True,
        "created": bundles.now(),
        "cardioray_version": cardioray.__version__,
        "cardioray_bundle_format": bundles.FORMAT_VERSION,
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "optional_packages_version": {"openvino": version("openvino")},
        "library_versions": {name: version(name) for name in LIBRARIES},
        "python_version": platform.python_version(),
        "git_revision": _git_revision(),
        "dataset_hash": shards.index.dataset_hash,
        "data": _data_summary(source),
        "targets": targets,
        "label_statistics": asdict(source.statistics),
        "backbone": source.run.to_dict().get("model", {}).get("backbone"),
        "starting_weights": source.starting_weights,
        "operating_point_fitted_on": source.fitted_on,
        "network_data_format": _network_data_format(source),
        "warnings": _warnings(source),
    }


def _warnings(source: BundleSource) -> list[str]:
    samples = source.shards.samples
    warnings = []
    if "phantom" in samples and samples["phantom"].astype(str).str.lower().eq("true").any():
        warnings.append(PHANTOM_WARNING)
    if not source.shards.index.patients_known:
        warnings.append(UNKNOWN_PATIENTS_WARNING)
    held_out = bool((source.predictions["split"] == "calibration").any())
    if not held_out and source.calibration_predictions is None:
        warnings.append(SMALL_CALIBRATION_WARNING)
    return [*warnings, *source.notes]


def _data_summary(source: BundleSource) -> dict[str, Any]:
    samples, predictions = source.shards.samples, source.predictions
    scored = {
        str(split): {
            "patients": int(rows["patient_id"].nunique()),
            "samples": int(rows["sample_id"].nunique()),
        }
        for split, rows in predictions.groupby("split")
    }
    return {
        "samples": len(samples),
        "patients": int(samples["patient_id"].nunique()),
        "patients_known": source.shards.index.patients_known,
        "scored": scored,
        "quarantined_sources": source.shards.index.num_bad,
    }


def _network_data_format(source: BundleSource) -> dict[str, Any]:
    """Inputs and outputs with the key names of MONAI's bundle specification."""
    inputs = {}
    for name, shape in _shapes(source).items():
        if not shape:
            continue  # a number that goes with a sample
        channels = shape[-1] if shape else 1
        inputs[name] = {
            "type": "image",
            "format": "magnitude",
            "modality": source.run.task.modality,
            "num_channels": channels,
            "spatial_shape": shape[:-1],
            "dtype": "uint8",
            "value_range": [0, 255],
            "is_patch_data": False,
            "channel_def": {"0": "grey"} if channels == 1 else {"0": "R", "1": "G", "2": "B"},
        }
    outputs = {
        target.name: {
            "type": "probabilities" if target.kind == "binary" else "values",
            "num_channels": 1,
            "spatial_shape": [],
            "dtype": "float32",
            "value_range": [0, 1] if target.kind == "binary" else [target.low, target.high],
        }
        for target in source.run.task.targets
    }
    return {"inputs": inputs, "outputs": outputs}


def _git_revision() -> str:
    """The commit of the code, marked where files differ from it."""
    root = Path(cardioray.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return "not a git checkout"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    command += ["--exclude=*"]
    # A trained model is not to be lost for want of git, or for whom the checkout belongs to.
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("The git revision is not recorded: %s", error)
        return "unknown"


def _card(
    source: BundleSource,
    metadata: Mapping[str, Any],
    evaluations: Mapping[str, Evaluation],
    tolerance: Mapping[str, Any],
    gate: InputGate,
    folder: Path,
) -> str:
    return render_card(
        "model_card.md.jinja",
        folder,
        meta=metadata,
        evaluations=evaluations,
        tolerance=tolerance,
        inputs=gate.summary(),
        example_file=source.run.task.example_file,
    )


def render_card(template: str, folder: Path, **values: Any) -> str:
    """A model card.

    Args:
        template: file beside this module.
        folder: the bundle, whose plots are shown.
        **values: what the template names beside `pictures` and `title_of`.
    """
    text = (Path(__file__).parent / template).read_text()
    pictures = sorted(str(p.relative_to(folder)) for p in (folder / "plots").rglob("*.png"))
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    card = environment.from_string(text)
    return card.render(pictures=pictures, title_of=title_of, **values)
