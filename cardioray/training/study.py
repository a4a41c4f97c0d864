"""Several views, one model: a network for each view, a classifier of views, and their fusion.

Weights of the views are fitted to calibration patients, and so are threshold, calibration and
conformal set, on fused scores that were made without the patient at hand.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml

from cardioray import bundle as bundles
from cardioray import config, storage
from cardioray.bundle import MEMBERS, Bundle, dump_json
from cardioray.clinical.fusion import StudyFusion, ViewFusion, fit_fusion, fuse_out_of_fold
from cardioray.data import cluster
from cardioray.data.shards import ShardSet
from cardioray.evaluation import plots
from cardioray.evaluation.intervals import (
    Interval,
    PairedTest,
    paired_patient_bootstrap,
    patient_bootstrap,
)
from cardioray.evaluation.metrics import auc_statistic, regression_statistics
from cardioray.evaluation.operating_point import (
    BinaryOperatingPoint,
    RegressionOperatingPoint,
    fit_operating_point,
)
from cardioray.evaluation.predictions import check_predictions, views_side_by_side
from cardioray.evaluation.report import Evaluation, evaluate, write_plots
from cardioray.registry import unknown_name
from cardioray.studies import FUSION, SORTER
from cardioray.targets import BinaryTarget, RegressionTarget
from cardioray.tasks.echo_view import VIEW, EchoViewSettings
from cardioray.tasks.video import VideoTask
from cardioray.training.description import TRAINING_WARNINGS, render_card
from cardioray.training.export import write_operating_points
from cardioray.training.outcome import PREDICTIONS
from cardioray.training.progress import Shown, shown_progress
from cardioray.training.settings import RunConfig
from cardioray.training.single import BUNDLE, Trained, divide, train_run

# Share of calibration cines of the known views that the quality gate may turn away.
TURNED_AWAY = 0.05
# A view that is less likely than all others together is not told.
LEAST_PROBABILITY = 0.5
# Views that are told apart without an error would have it next to 1, where chance decides.
_HIGHEST_BAR = 0.9
# Patients that a fit of the fusion needs of each class.
_LEAST_PATIENTS = 4


@dataclass(frozen=True)
class Fused:
    """One target over studies.

    Attributes:
        fusion: the weights of the views.
        point: threshold, calibration and conformal set of the fused score.
        table: predictions table of the fused score, one row a study.
        evaluation: of its test studies.
        views: by view, the headline figure (AUC or MAE) of its network alone on test studies.
        best: the view that does best on calibration studies.
        against_best: the fused score against that view's network, on test studies that have it;
            positive is better; None where there are none.
    """

    fusion: ViewFusion
    point: BinaryOperatingPoint | RegressionOperatingPoint
    table: pd.DataFrame
    evaluation: Evaluation
    views: Mapping[str, Interval]
    best: str
    against_best: PairedTest | None

    def to_dict(self) -> dict[str, Any]:
        """For metrics.json."""
        return {
            "headline_by_view": {name: value.to_dict() for name, value in self.views.items()},
            "best_view_on_calibration": self.best,
            "fused_minus_best_view": self.against_best and self.against_best.to_dict(),
        }


def train_study(
    run: RunConfig,
    shards: ShardSet,
    views: Sequence[str],
    out: str,
    *,
    name: str | None = None,
    shown: Shown | None = None,
) -> Bundle:
    """Train a network for each view and one that tells views apart, and fuse them into a bundle.

    The division of the patients is the same for all of them. The same call resumes a run that was
    killed, and returns the bundle of a finished one.

    Args:
        run: settings; `views` among them is set for each network.
        shards: prepared data, with a column `view`.
        views: those that get a network; () for all that the shards have.
        out: folder or prefix that holds runs.
        name: the folder there; by default one that depends on task and views.
        shown: how progress is shown; None for not at all.

    Raises:
        ValueError: for a task that is not about clips, shards that name no views, an unknown view,
            and what `train_bundle` raises.
    """
    if not isinstance(run.task, VideoTask):
        raise ValueError(f"{run.task.name} has no views; only tasks about clips are fused.")
    known = _known_views(shards)
    named = {_named(view, known) for view in views} or set(known)
    chosen = tuple(view for view in known if view in named)
    if len(chosen) < 2:
        raise ValueError(f"fusion needs at least two views, not {', '.join(chosen) or 'none'}.")
    cluster.connect()
    out = storage.absolute(out)
    name = name or f"{run.task.name}-{'-'.join(chosen)}-{_digest(run, shards, chosen)}"
    place = storage.join(out, name, BUNDLE)
    folder = storage.join(out, name)
    division = divide(run, shards)
    with shown_progress(shown) as board:
        trained = {
            view: train_run(
                _for_view(run, view), shards, folder, name=view, board=board, division=division
            )
            for view in chosen
        }
        sorter = train_run(
            _sorter_run(run, known), shards, folder, name=SORTER, board=board, division=division
        )
    if storage.exists(storage.join(place, bundles.SUMS)):
        # Each run has seen to it that settings and data are those of the finished one.
        bundle = bundles.open_bundle(place)
        if bundle.members != (*chosen, SORTER):
            raise ValueError(
                f"{folder} holds a study of other views; give another --name or --out."
            )
        return bundle
    fused = {target.name: _fuse(run, target, trained) for target in run.task.targets}
    return _write(run, shards, chosen, trained, sorter, fused, place, name)


def _known_views(shards: ShardSet) -> tuple[str, ...]:
    if VIEW not in shards.samples:
        raise ValueError(f"{shards.path} names no views: the manifest needs a column {VIEW}.")
    names = sorted(view for view in shards.samples[VIEW].dropna().unique() if view)
    for view in names:
        if not re.fullmatch(r"[\w.+-]+", view):
            raise ValueError(f"view {view!r}: letters, digits, _, -, + and . make a name.")
    return tuple(names)


def _named(view: str, known: Sequence[str]) -> str:
    found = {name.lower(): name for name in known}.get(view.lower())
    if found is None:
        raise unknown_name("view", view, known)
    return found


def _digest(run: RunConfig, shards: ShardSet, views: Sequence[str]) -> str:
    return config.digest([run.decisive(), shards.index.dataset_hash, list(views)], length=8)


def _for_view(run: RunConfig, view: str) -> RunConfig:
    written = run.to_dict() | {"views": [view]}
    return RunConfig.build(written.pop("task"), written)


def _sorter_run(run: RunConfig, views: Sequence[str]) -> RunConfig:
    """A run of the classifier of views, on the shards and with the patients of the others."""
    assert isinstance(run.task, VideoTask)
    settings = EchoViewSettings(
        classes=tuple(views),
        preprocess=run.task.settings.preprocess,
        split=run.task.settings.split,
    )
    # Views differ more than what is asked about them: a third of the epochs tells them apart.
    epochs = None if run.train.epochs is None else max(5, run.train.epochs // 3)
    train = replace(run.train, recipe="auto", stages=None, learning_rate=None, epochs=epochs)
    written = config.to_dict(settings) | {
        "train": config.to_dict(train),
        "scale": config.to_dict(run.scale),
    }
    return RunConfig.build("echo-view", written)


def _fuse(
    run: RunConfig, target: BinaryTarget | RegressionTarget, trained: Mapping[str, Trained]
) -> Fused:
    """Fit the weights of the views on calibration studies, and score the test studies."""
    views = tuple(trained)
    seed, operating = run.train.seed, run.task.operating
    kind: Literal["logistic", "linear"] = "logistic" if target.kind == "binary" else "linear"
    fitted, fitted_scores = _by_study(
        {view: own.calibration.assign(split="calibration") for view, own in trained.items()}, target
    )
    _require_enough(target, fitted)
    labels = fitted["label"].to_numpy(float)
    patients = fitted["patient_id"].to_numpy(object)
    fusion = fit_fusion(kind, views, fitted_scores, labels)
    honest = fuse_out_of_fold(kind, views, fitted_scores, labels, patients)
    calibration = fitted.assign(head=target.name, score=honest)
    point = fit_operating_point(
        calibration,
        target,
        rule=operating.rule,
        calibration=operating.calibration,
        alpha=operating.alpha,
        seed=seed,
    )
    scored = {view: own.predictions for view, own in trained.items()}
    tests, scores = _by_study(scored, target, split="test")
    table = pd.concat(
        [calibration, tests.assign(head=target.name, score=fusion.apply(scores))],
        ignore_index=True,
    )
    best = _best(target, fitted, fitted_scores, views)
    return Fused(
        fusion=fusion,
        point=point,
        table=table,
        evaluation=evaluate(table, target, point, seed=seed),
        views={
            view: _headline(target, tests, scores[:, number], seed)
            for number, view in enumerate(views)
            if np.isfinite(scores[:, number]).any()
        },
        best=best,
        against_best=_against(
            target, tests, fusion.apply(scores), scores[:, views.index(best)], seed
        ),
    )


def _by_study(
    tables: Mapping[str, pd.DataFrame],
    target: BinaryTarget | RegressionTarget,
    split: str | None = None,
) -> tuple[pd.DataFrame, Any]:
    checked = [check_predictions(table, target).assign(view=view) for view, table in tables.items()]
    every = pd.concat(checked, ignore_index=True)
    if split is not None:
        every = every[every["split"] == split]
    return views_side_by_side(every, tuple(tables))


def _require_enough(target: BinaryTarget | RegressionTarget, studies: pd.DataFrame) -> None:
    if isinstance(target, RegressionTarget):
        counts = [studies["patient_id"].nunique()]
    else:
        positive = studies.groupby("patient_id")["label"].max() > 0
        counts = [int((~positive).sum()), int(positive.sum())]
    if min(counts) < _LEAST_PATIENTS:
        raise ValueError(
            f"fusion of {target.name!r} needs {_LEAST_PATIENTS} calibration patients of each "
            f"class, and there are {' and '.join(map(str, counts))}: more patients, or a larger "
            "split.calibration."
        )


def _statistic(target: BinaryTarget | RegressionTarget, labels: Any, scores: Any) -> Any:
    """The headline figure of some scores, of which more is better, for the bootstrap."""
    if isinstance(target, BinaryTarget):
        return lambda weights: {"auc": auc_statistic(labels, scores, weights)}
    return lambda weights: {"mae": regression_statistics(labels, scores, weights)["mae"]}


def _headline(
    target: BinaryTarget | RegressionTarget, studies: pd.DataFrame, scores: Any, seed: int
) -> Interval:
    there = np.isfinite(scores)
    labels = studies["label"].to_numpy(float)[there]
    found = patient_bootstrap(studies[there], _statistic(target, labels, scores[there]), seed=seed)
    [interval] = found.values()
    return interval


def _best(
    target: BinaryTarget | RegressionTarget,
    studies: pd.DataFrame,
    scores: Any,
    views: Sequence[str],
) -> str:
    sign = 1 if target.kind == "binary" else -1
    labels = studies["label"].to_numpy(float)

    def standing(number: int) -> float:
        there = np.isfinite(scores[:, number])
        figures = _statistic(target, labels[there], scores[there, number])(
            np.ones((1, int(there.sum())))
        )
        [value] = figures.values()
        return sign * float(value[0]) if np.isfinite(value[0]) else -np.inf

    return views[int(np.argmax([standing(number) for number in range(len(views))]))]


def _against(
    target: BinaryTarget | RegressionTarget,
    studies: pd.DataFrame,
    fused: Any,
    single: Any,
    seed: int,
) -> PairedTest | None:
    there = np.isfinite(single)
    if not there.any():
        return None
    labels = studies["label"].to_numpy(float)[there]
    first, second = (_statistic(target, labels, s[there]) for s in (fused, single))
    if target.kind == "regression":  # less is better
        first, second = second, first
    [test] = paired_patient_bootstrap(studies[there], first, second, seed=seed).values()
    return test


def _least_probability(sorter: Trained) -> float:
    """How likely its view must be for a cine to count: nearly all calibration cines' are."""
    table = sorter.calibration
    right = table[table["label"] == 1]
    if right.empty:
        return LEAST_PROBABILITY
    passed = float(right["score"].quantile(TURNED_AWAY))
    return min(max(LEAST_PROBABILITY, passed), _HIGHEST_BAR)


def _write(
    run: RunConfig,
    shards: ShardSet,
    views: tuple[str, ...],
    trained: Mapping[str, Trained],
    sorter: Trained,
    fused: Mapping[str, Fused],
    place: str,
    name: str,
) -> Bundle:
    members = {**{view: own.bundle for view, own in trained.items()}, SORTER: sorter.bundle}
    fusion = StudyFusion(
        views=views,
        least_probability=_least_probability(sorter),
        targets={target: own.fusion for target, own in fused.items()},
    )
    first = trained[views[0]].bundle
    metadata = {
        **first.metadata,
        "name": name,
        "created": bundles.now(),
        "dataset_hash": shards.index.dataset_hash,
        MEMBERS: list(members),
        **{
            key: list(
                dict.fromkeys(w for own in members.values() for w in own.metadata.get(key, ()))
            )
            for key in ("warnings", TRAINING_WARNINGS)
        },
        "starting_weights": "those of the members",
    }
    written = {k: v for k, v in run.to_dict().items() if k != "scale"} | {"views": list(views)}
    with tempfile.TemporaryDirectory(prefix="cardioray-study-") as scratch:
        folder = Path(scratch) / "bundle"
        for member, bundle in members.items():
            shutil.copytree(bundle.path, folder / MEMBERS / member)
        (folder / bundles.METADATA).write_bytes(dump_json(metadata))
        (folder / bundles.CONFIG).write_text(yaml.safe_dump(written, sort_keys=False))
        (folder / FUSION).write_bytes(dump_json(config.to_dict(fusion)))
        (folder / "preprocess.json").write_bytes(dump_json(first.json("preprocess.json")))
        write_operating_points({target: own.point for target, own in fused.items()}, folder)
        metrics = {
            "targets": {target: own.evaluation.to_dict() for target, own in fused.items()},
            "fusion": {target: own.to_dict() for target, own in fused.items()},
            "views": sorter.bundle.json("metrics.json")["targets"],
        }
        (folder / "metrics.json").write_bytes(dump_json(metrics))
        tables = [own.table for own in fused.values()]
        pd.concat(tables, ignore_index=True).to_parquet(folder / PREDICTIONS, index=False)
        for target in run.task.targets:
            own = fused[target.name]
            plotted = str(folder / "plots" / target.name)
            write_plots(own.table, target, own.point, plotted, seed=run.train.seed)
            if isinstance(target, BinaryTarget):
                figure = _roc_of_views(target, trained, own, run.train.seed)
                (Path(plotted) / "roc_by_view.png").write_bytes(plots.png_bytes(figure))
        card = render_card(
            "study_card.md.jinja",
            folder,
            meta=metadata,
            fusion=fusion,
            fused=fused,
            members=members,
        )
        (folder / bundles.CARD).write_text(card)
        bundles.seal(folder)
        bundles.copy_bundle(str(folder), place)
    return bundles.open_bundle(place)


def _roc_of_views(
    target: BinaryTarget, trained: Mapping[str, Trained], fused: Fused, seed: int
) -> Any:
    """The fused score and the network of each view, on test studies."""
    tests = fused.table[fused.table["split"] == "test"]
    scored = {"fused": (tests, tests["score"].to_numpy(float))}
    for view, own in trained.items():
        studies, scores = _by_study({view: own.predictions}, target, split="test")
        scored[view] = (studies, scores[:, 0])
    models = []
    for name, (studies, scores) in scored.items():
        labels = studies["label"].to_numpy(float)
        auc = _headline(target, studies, scores, seed)
        models.append(plots.ScoredModel(name, labels, scores, studies["patient_id"].tolist(), auc))
    return plots.roc_plot(models, seed=seed)
