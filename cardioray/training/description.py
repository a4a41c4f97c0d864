"""What a bundle says about itself: where it comes from, its metadata, its model card."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from torch import Tensor

import cardioray
from cardioray import bundle as bundles
from cardioray import config
from cardioray.data.shards import ShardSet
from cardioray.evaluation.predictions import MEASURED_VIEWS
from cardioray.evaluation.report import Evaluation, title_of
from cardioray.evaluation.segment_report import OutlineFigures
from cardioray.models.gate import InputGate
from cardioray.tasks.base import LabelStatistics
from cardioray.tasks.outline_tables import CALIBRATION_VIEWS
from cardioray.training.settings import RunConfig

log = logging.getLogger(__name__)

LIBRARIES = ("ray", "torch", "torchvision", "timm", "numpy", "pandas", "openvino", "pydicom")

# Key of the metadata: what its card says of a model's data and training. It is no matter of a study
# that somebody asks about, whose answer repeats what stands under "warnings" alone.
TRAINING_WARNINGS = "training_warnings"

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
        parts: where answers are made of several samples, what is known of each (`Tables`).
        calibration_predictions: fits the operating point where there is no calibration split;
            out-of-fold predictions of patients that are not in the test split.
        log: training log, one row an epoch.
        name: the model's name.
        comparison: figures of the comparison this model won, for metrics.json.
        starting_weights: where training started from, in words.
        notes: what went otherwise than it should in training.
        cross_validated: every patient was learned from, and `predictions` are those of the folds'
            networks; `calibration_predictions` are the same.
        files: further files of the bundle, by their place in it.
        more_metrics: further entries of metrics.json.
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
    parts: pd.DataFrame | None = None
    cross_validated: bool = False
    files: Mapping[str, bytes] = field(default_factory=dict)
    more_metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def calibration_rows(self) -> pd.DataFrame:
        """The predictions that set threshold, calibration and conformal set."""
        held_out = self.predictions[self.predictions["split"] == "calibration"]
        if len(held_out):
            return held_out
        if self.calibration_predictions is not None:
            return self.calibration_predictions
        return self.predictions[self.predictions["split"] == "validation"]

    @property
    def fitted_on(self) -> str:
        """Whose predictions these are, in words."""
        if (self.predictions["split"] == "calibration").any():
            return "calibration patients, which training has not seen"
        if self.calibration_predictions is not None:
            return (
                "patients scored out of fold, by networks trained like this one on other patients; "
                "the promise of conformal sets is for those networks, and holds for this one as "
                "far as it is like them"
            )
        return "validation patients, which early stopping has seen"


def input_shapes(source: BundleSource) -> dict[str, list[int]]:
    """Shape of each array that the network takes, without the batch."""
    shapes = source.run.task.input_shapes(source.shards.index.columns)
    return {name: list(shape) for name, shape in shapes.items()}


def bundle_metadata(source: BundleSource) -> dict[str, Any]:
    """What metadata.json holds."""
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
        "label_statistics": _statistics(source.statistics),
        "backbone": source.run.to_dict().get("model", {}).get("backbone"),
        "starting_weights": source.starting_weights,
        "operating_point_fitted_on": source.fitted_on,
        **_calibration_views(source),
        "network_data_format": _network_data_format(source),
        "warnings": _warnings(source),
        TRAINING_WARNINGS: [*task.warnings(shards.samples), *source.notes],
    }


def _calibration_views(source: BundleSource) -> dict[str, dict[str, int]]:
    """Of outlines: calibration studies by the views that the headline was measured in."""
    rows = source.calibration_rows
    if MEASURED_VIEWS not in rows:
        return {}
    own = rows[rows["head"] == source.run.task.targets[0].name]
    counts = own.groupby(MEASURED_VIEWS)["study_id"].nunique()
    return {CALIBRATION_VIEWS: {str(views): int(count) for views, count in counts.items()}}


def _warnings(source: BundleSource) -> list[str]:
    """What holds for every answer, and is repeated there."""
    samples = source.shards.samples
    warnings = []
    if "phantom" in samples and samples["phantom"].astype(str).str.lower().eq("true").any():
        warnings.append(PHANTOM_WARNING)
    if not source.shards.index.patients_known:
        warnings.append(UNKNOWN_PATIENTS_WARNING)
    held_out = bool((source.predictions["split"] == "calibration").any())
    if not held_out and source.calibration_predictions is None:
        warnings.append(SMALL_CALIBRATION_WARNING)
    return warnings


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
    for name, shape in input_shapes(source).items():
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


def _statistics(statistics: LabelStatistics) -> dict[str, Any]:
    """What the loss knew of the labels; what fills in charts is among the weights."""
    written = asdict(replace(statistics, imputation=None))
    del written["imputation"]
    return written


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


def model_card(
    source: BundleSource,
    metadata: Mapping[str, Any],
    evaluations: Mapping[str, Evaluation],
    tolerance: Mapping[str, Any],
    gate: InputGate,
    folder: Path,
    outlines: Sequence[OutlineFigures] = (),
) -> str:
    """The README of a bundle."""
    return render_card(
        "model_card.md.jinja",
        folder,
        meta=metadata,
        evaluations=evaluations,
        tolerance=tolerance,
        inputs=gate.summary(),
        outlines=outlines,
        example=source.run.task.example,
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
