"""From a finished run to a bundle: operating point, figures, exports, gate, plots."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray
from safetensors.numpy import save as save_arrays
from safetensors.torch import save as save_tensors
from torch import nn

from cardioray import bundle as bundles
from cardioray import config
from cardioray.bundle import Bundle, dump_json
from cardioray.data.reading import take_rows
from cardioray.data.sampling import split, stacked
from cardioray.evaluation import plots
from cardioray.evaluation.figures import decide
from cardioray.evaluation.operating_point import (
    BinaryOperatingPoint,
    RegressionOperatingPoint,
)
from cardioray.evaluation.out_of_fold import FittingSettings
from cardioray.evaluation.predictions import check_predictions, per_study, select_split
from cardioray.evaluation.report import (
    Evaluation,
    evaluate,
    evaluate_out_of_fold,
    write_plots,
)
from cardioray.evaluation.segment_panels import OUTLINES, write_panels
from cardioray.evaluation.segment_report import OutlineFigures, outline_figures
from cardioray.models.gate import InputGate
from cardioray.models.runtime import (
    FEATURES,
    NotExportableError,
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
from cardioray.tasks.lv_seg import LvSegTask, ef_of_references
from cardioray.training.description import (
    BundleSource,
    bundle_metadata,
    input_shapes,
    model_card,
)
from cardioray.training.outcome import PARTS, PREDICTIONS
from cardioray.training.pictures import prediction_picture, stored_outlines

log = logging.getLogger(__name__)

# Training rows that the input gate is fitted on; fewer where samples are large.
GATE_ROWS = 1024
GATE_BYTES = 2**29
GATE_LEAST_ROWS = 64
# Largest difference in fp32 that rounding explains, of a probability or in SDs of a number.
FP32_TOLERANCE = 1e-3


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
    scored = {t.name: _scored(source, t, points[t.name]) for t in task.targets}
    evaluations = {name: found.evaluation for name, found in scored.items()}
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
    metrics: dict[str, Any] = {
        "targets": {name: value.to_dict() for name, value in evaluations.items()},
        "comparison": source.comparison,
    }
    outlines = _outlines(source)
    if outlines:
        metrics["outlines"] = [found.to_dict() for found in outlines]
    metrics |= source.more_metrics
    (folder / "metrics.json").write_bytes(dump_json(metrics))
    for name, content in source.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    source.predictions.to_parquet(folder / PREDICTIONS, index=False)
    if source.parts is not None:
        source.parts.to_parquet(folder / PARTS, index=False)
    _write_plots(source, points, scored, folder)
    metadata = bundle_metadata(source)
    (folder / bundles.METADATA).write_bytes(dump_json(metadata))
    (folder / bundles.CARD).write_text(
        model_card(source, metadata, evaluations, tolerance, gate, folder, outlines)
    )


@dataclass(frozen=True)
class _Scored:
    """The figures of one target, and the test rows behind them with what was decided of each."""

    evaluation: Evaluation
    frames: pd.DataFrame
    studies: pd.DataFrame


def _scored(
    source: BundleSource,
    target: BinaryTarget | RegressionTarget,
    point: BinaryOperatingPoint | RegressionOperatingPoint,
) -> _Scored:
    """Score test patients, or all patients by the networks of their folds."""
    seed = source.run.train.seed
    if source.cross_validated:
        found, decided = evaluate_out_of_fold(
            source.predictions, target, _fitting(source), seed=seed
        )
        return _Scored(found, decided.frames, decided.studies)
    found = evaluate(source.predictions, target, point, seed=seed)
    test = select_split(check_predictions(source.predictions, target), "test")
    return _Scored(found, decide(test, point), decide(per_study(test), point))


def _fitting(source: BundleSource) -> FittingSettings:
    settings, seed = source.run.task.operating, source.run.train.seed
    return FittingSettings(settings.rule, settings.calibration, settings.alpha, seed)


def _outlines(source: BundleSource) -> list[OutlineFigures]:
    """Figures of outlines on test patients, of tasks that draw any."""
    task = source.run.task
    if source.parts is None or not isinstance(task, LvSegTask):
        return []
    return outline_figures(source.parts, task.settings.structures, seed=source.run.train.seed)


def _operating_point(
    source: BundleSource, target: BinaryTarget | RegressionTarget
) -> BinaryOperatingPoint | RegressionOperatingPoint:
    return _fitting(source).fit(source.calibration_rows, target)


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
    samples = source.shards.samples
    training = samples[(source.split == "train").to_numpy() & task.takes_part(samples)]
    affordable = int(GATE_BYTES * index.num_samples / index.array_bytes)
    count = min(max(GATE_LEAST_ROWS, min(GATE_ROWS, affordable)), len(training))
    chosen = training.sample(count, random_state=source.run.train.seed).sort_values("row")
    rows = chosen["row"].to_numpy(np.int64)
    arrays = take_rows(source.shards, rows, task.decoder.columns)
    if task.sampler.cuts:
        windows = [task.sampler.windows(sample, thorough=False)[0] for sample in split(arrays)]
        arrays = stacked(windows)
    carried = {name: chosen[name].to_numpy(np.float32) for name in task.carried}
    arrays = dict(zip(task.columns, task.inputs(arrays | carried), strict=True))
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
    # A network that heads are fitted to is judged by its features.
    names = task.outputs or (FEATURES,)
    about = {"reference": "PyTorch fp32, eager, CPU", "samples": len(sample[0])}
    try:
        export_openvino(model, task.outputs, tuple(v[:2] for v in sample), folder / OPENVINO)
    except NotExportableError as error:
        log.warning("OpenVINO cannot express the network (%s); CPUs run PyTorch.", error)
        return {"openvino_kept": False, **about, "largest_absolute_difference_of_scores": {}}

    def scores(raw: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        if not task.outputs:
            return {FEATURES: raw[FEATURES]}
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
    if not task.outputs:
        scale[FEATURES] = max(float(reference[FEATURES].std()), 1e-6)
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
        **about,
        "largest_absolute_difference_of_scores": differences,
    }


def _preprocess(source: BundleSource) -> dict[str, Any]:
    task = source.run.task
    return {
        "decode": config.to_dict(task.decoder),
        "columns": input_shapes(source),
        "dtype": "uint8",
        "layout": "channels last",
        "note": "Normalisation is part of the network.",
    }


def _write_plots(
    source: BundleSource,
    points: Mapping[str, BinaryOperatingPoint | RegressionOperatingPoint],
    scored: Mapping[str, _Scored],
    folder: Path,
) -> None:
    for target in source.run.task.targets:
        place = folder / "plots" / target.name
        point = points[target.name]
        found = scored[target.name]
        write_plots(source.predictions, target, point, str(place), decided=found.studies)
        if isinstance(target, BinaryTarget):
            figure = prediction_picture(
                found.frames,
                source.shards,
                source.run.task,
                target,
                seed=source.run.train.seed,
            )
            (place / "predictions.png").write_bytes(plots.png_bytes(figure))
    if source.parts is not None and isinstance(source.run.task, LvSegTask):
        write_panels(
            source.parts[source.parts["split"] == "test"],
            scored[source.run.task.targets[0].name].studies,
            ef_of_references(source.predictions),
            stored_outlines(source.shards),
            str(folder / "plots" / OUTLINES),
        )
    if source.log is not None:
        figure = plots.learning_curves(source.log)
        (folder / "plots" / "learning_curves.png").write_bytes(plots.png_bytes(figure))
