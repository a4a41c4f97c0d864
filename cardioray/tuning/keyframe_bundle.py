"""`cardioray train keyframe-ef`: heads fitted to features, and a bundle of backbone and heads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from safetensors.numpy import save as save_arrays

from cardioray import storage
from cardioray.bundle import SUMS, Bundle, dump_json, open_bundle
from cardioray.data import cluster
from cardioray.data.shards import ShardSet
from cardioray.evaluation.keyframe_report import KeyframeReport, keyframe_report
from cardioray.keyframes import HEADS, HEADS_RECORD, REVIEW
from cardioray.tasks.base import encode_labels
from cardioray.tasks.keyframe_ef import EF_TARGET, KeyframeEfTask
from cardioray.tasks.keyframe_tables import answers_table
from cardioray.training.description import BundleSource
from cardioray.training.export import write_bundle
from cardioray.training.progress import Shown, shown_progress
from cardioray.training.run import run_name
from cardioray.training.settings import RunConfig
from cardioray.training.single import BUNDLE, divide, require_patients
from cardioray.tuning.keyframe_plots import write_feature_plots
from cardioray.tuning.keyframe_predictions import predictions_of, review_limit, write_predictions
from cardioray.tuning.keyframes import (
    Fitted,
    Studies,
    find_studies,
    fit_divisions,
)


def train_keyframes(
    run: RunConfig,
    shards: ShardSet,
    out: str,
    *,
    name: str | None = None,
    shown: Shown | None = None,
) -> Bundle:
    """Divide the patients, fit heads, and make a bundle of them at `<out>/<name>/bundle`.

    Heads are weighed and calibrated by what heads of other development patients say; threshold,
    calibration of probabilities and conformal interval come from the same predictions. The same
    call goes on where it was killed, and returns the bundle of a finished run.

    Args:
        run: settings, with `method` "features".
        shards: prepared data.
        out: folder or prefix that holds runs.
        name: the run's folder; by default a name that depends on all settings and data.
        shown: how progress is shown; None for not at all.

    Raises:
        ValueError: for settings or data that cannot work.
    """
    task = run.task
    assert isinstance(task, KeyframeEfTask)
    cluster.connect(dashboard=True)
    out = storage.absolute(out)
    cluster.require_shared(out, run.scale.shared_storage)
    split = divide(run, shards).split
    require_patients(task, shards.samples, split, None)
    name = name or run_name(run, shards, split)
    folder = storage.join(out, name)
    place = storage.join(folder, BUNDLE)
    if storage.exists(storage.join(place, SUMS)):
        return open_bundle(place)
    studies = find_studies(task, shards)
    with shown_progress(shown) as board:
        [fitted] = fit_divisions(run, shards, studies, {"final": split}, folder, board).values()
    own = predictions_of(task, studies, {"final": fitted})
    write_predictions(own, folder)
    report = keyframe_report(own, EF_TARGET, task.settings.target, seed=run.train.seed)
    report.write(folder)
    write_feature_plots(studies, fitted, folder)
    return write_bundle(_source(run, shards, studies, split, fitted, report, name), place)


def _source(
    run: RunConfig,
    shards: ShardSet,
    studies: Studies,
    split: pd.Series[str],
    fitted: Fitted,
    report: KeyframeReport,
    name: str,
) -> BundleSource:
    task = run.task
    assert isinstance(task, KeyframeEfTask)
    labels = encode_labels(task, shards.samples)
    training = (split == "train").to_numpy() & task.takes_part(shards.samples)
    statistics = task.label_statistics(
        {key: values[training] for key, values in labels.items()}, {}
    )
    heads = fitted.fit.heads
    development = studies.table[fitted.development]
    return BundleSource(
        run=run,
        shards=shards,
        split=split,
        weights=fitted.weights,
        statistics=replace(statistics, pixel_mean=(), pixel_std=()),
        predictions=answers_table(task, studies.table[fitted.test], fitted.answers, "test"),
        calibration_predictions=answers_table(
            task, development, fitted.fit.out_of_fold, "calibration"
        ),
        log=None,
        name=name,
        comparison=None,
        starting_weights=_starting_weights(task),
        files={
            HEADS: save_arrays({k: np.ascontiguousarray(v) for k, v in heads.to_arrays().items()}),
            HEADS_RECORD: heads.to_json().encode(),
            REVIEW: dump_json({"sd": review_limit(fitted.fit.out_of_fold)}),
        },
        more_metrics={"keyframes": report.to_dict()},
    )


def _starting_weights(task: KeyframeEfTask) -> str:
    model = task.settings.model
    if model.weights is not None:
        return f"given weights of {model.backbone}"
    return {
        "hub": f"published ImageNet weights of {model.backbone}",
        "outlines": f"{model.backbone} trained on outlines of the training patients",
        "none": f"random weights of {model.backbone}, which its features say little of",
    }[model.pretrained]
