"""What heads on key frames tell, beside their ensemble, a constant and other models of a number."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from cardioray import storage
from cardioray.evaluation import plots
from cardioray.evaluation.figures import Figures, Resampling
from cardioray.evaluation.intervals import (
    Floats,
    Interval,
    PairedTest,
    holm,
    paired_patient_bootstrap,
    patient_bootstrap,
)
from cardioray.evaluation.metrics import (
    auc_within_groups,
    binary_statistics,
    regression_statistics,
)
from cardioray.evaluation.uncertainty import (
    CoverageCurve,
    RiskCoverageCurve,
    coverage_curve,
    errors_by_band,
    referral_figures,
    review_queue,
    risk_coverage,
    uncertainty_figures,
    wrong_side_probability,
)
from cardioray.targets import BinaryTarget, RegressionTarget

log = logging.getLogger(__name__)

ENSEMBLE = "ensemble"
CONSTANT = "constant mean"
_NUMBER = ("mae", "rmse", "r2", "bias", "pearson_r")
_QUESTION = ("auc", "accuracy", "f1")
_COVERAGE = ("coverage_50", "coverage_80", "coverage_95")
# Around the value that clinicians act on, answers are the most in doubt.
BANDS = (35.0, 45.0)


@dataclass(frozen=True)
class ModelRow:
    """One model on the test studies that it has an answer for.

    Attributes:
        model: its name.
        studies: studies scored.
        number: figures of the number; empty for a model of the class alone.
        question: figures of the class; empty for a model without probabilities.
        coverage: of its predictive intervals; None for a model without SD.
        against: absolute error of the ensemble minus its own, on the studies that both answer;
            below 0 the ensemble is nearer. None for the ensemble, and for a model of the class.
        p_holm: p-value of that test, corrected for the number of models (Holm 1979); NaN without
            a test.
    """

    model: str
    studies: int
    number: Mapping[str, Interval]
    question: Mapping[str, Interval]
    coverage: Figures | None
    against: PairedTest | None
    p_holm: float = math.nan


@dataclass(frozen=True)
class KeyframeReport:
    """All models on the same test studies.

    Attributes:
        target: the number.
        question: the class.
        rows: one a model, the ensemble first.
        referral: areas under risk-coverage curves of the ensemble.
        bands: errors of the ensemble by band of the true number.
        queue: the ensemble's studies, the most doubtful first.
        predictions: the table that it was counted from.
        resampling: how intervals were made.
    """

    target: RegressionTarget
    question: BinaryTarget
    rows: tuple[ModelRow, ...]
    referral: Figures
    bands: Mapping[str, Figures]
    queue: pd.DataFrame
    predictions: pd.DataFrame
    resampling: Resampling

    def to_dict(self) -> dict[str, Any]:
        """For keyframes.json."""
        return {
            "models": {row.model: _plain(row) for row in self.rows},
            "referral": self.referral.to_dict(),
            "bands": {band: figures.to_dict() for band, figures in self.bands.items()},
            "interval": {
                "method": "patient bootstrap, percentile",
                "confidence": self.resampling.confidence,
                "num_resamples": self.resampling.num_resamples,
                "seed": self.resampling.seed,
            },
        }

    def table(self) -> pd.DataFrame:
        """One row a model; every figure with `_low` and `_high`."""
        rows = []
        for row in self.rows:
            flat: dict[str, Any] = {"model": row.model, "studies": row.studies}
            own = {**row.number, **row.question}
            if row.coverage is not None:
                own |= {name: row.coverage.values[name] for name in _COVERAGE}
            if row.against is not None:
                own["ensemble_minus_model_mae"] = row.against.difference
                flat["p_holm"] = row.p_holm
            for name, found in own.items():
                flat |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
            rows.append(flat)
        return pd.DataFrame(rows)

    def write(self, out: str) -> None:
        """Write keyframes.json, heads.csv, review_queue.csv and plots."""
        storage.write_bytes(
            storage.join(out, "keyframes.json"), json.dumps(self.to_dict(), indent=2).encode()
        )
        for name, table in (("heads", self.table()), ("review_queue", self.queue)):
            storage.write_bytes(
                storage.join(out, f"{name}.csv"), table.to_csv(index=False).encode()
            )
        for name, figure in self.figures().items():
            place = storage.join(out, "plots", f"{name}.png")
            storage.write_bytes(place, plots.png_bytes(figure))

    def figures(self) -> dict[str, Any]:
        """Plots of the ensemble: agreement, its band, coverage, risk against referral."""
        own = _of(self.predictions, ENSEMBLE)
        labels, values, sds = (own[name].to_numpy(float) for name in ("label", "value", "sd"))
        name, unit = self.target.name, self.target.unit
        cutoff = self.question.cutoff
        found = {
            "scatter": plots.scatter_plot(labels, values, name, unit),
            "bland_altman": plots.bland_altman_plot(labels, values, name, unit),
            "band": plots.interval_plot(labels, values, sds, name, unit),
            "coverage": plots.coverage_plot(self._coverage_curves()),
            "risk_coverage": plots.risk_coverage_plot(
                _risk_curves(labels, values, sds, cutoff), f"MAE, {unit}"
            ),
            "histogram": plots.value_histogram(labels, name, unit, cutoffs=self.target.cutoffs),
        }
        classes = _of(self.predictions, ENSEMBLE, "probability")
        truth = _classes(classes, self.target, self.question)
        if 0 < truth.sum() < len(truth):
            probability = classes["probability"].to_numpy(float)
            auc = _auc(classes, truth, self.resampling)
            patients = classes["patient_id"].tolist()
            model = plots.ScoredModel(self.question.name, truth, probability, patients, auc)
            found["roc"] = plots.roc_plot([model], seed=self.resampling.seed)
            found["confusion"] = plots.confusion_plot(
                truth, _decisions(classes), self.question.classes
            )
        return found

    def _coverage_curves(self) -> dict[str, CoverageCurve]:
        """Of the ensemble and of each Gaussian process."""
        curves = {}
        for row in self.rows:
            if row.coverage is None or not (row.model == ENSEMBLE or row.model.endswith("/gp")):
                continue
            own = _of(self.predictions, row.model)
            curves[row.model] = coverage_curve(own["label"], own["value"], own["sd"])
        return curves


def keyframe_report(
    predictions: pd.DataFrame,
    target: RegressionTarget,
    question: BinaryTarget,
    *,
    seed: int = 0,
    num_resamples: int = 2000,
) -> KeyframeReport:
    """Score every model of a table.

    Args:
        predictions: `model`, `study_id`, `patient_id`, `label` (the number), `value`, `sd`,
            `probability`; NaN of what a model does not tell. `positive` is what a model decides, 0
            or 1; without it, a probability of 0.5 does. Where there is a `fold`, AUCs compare
            studies of one fold. One row a study and model; "ensemble" is among the models.
        target: the number.
        question: the class.
        seed: of the patient bootstrap.
        num_resamples: of it.

    Raises:
        ValueError: when there is no ensemble, or a model has a study twice.
    """
    models = list(dict.fromkeys(predictions["model"]))
    if ENSEMBLE not in models:
        raise ValueError(f"no model is called {ENSEMBLE!r}, only {', '.join(models)}.")
    twice = predictions.duplicated(["model", "study_id"])
    if twice.any():
        first = predictions[twice].iloc[0]
        raise ValueError(f"{first['model']} has several answers for study {first['study_id']}.")
    resampling = Resampling(num_resamples, seed)
    ordered = [ENSEMBLE, *(name for name in models if name not in (ENSEMBLE, CONSTANT))]
    if CONSTANT in models:
        ordered.append(CONSTANT)
    own = _of(predictions, ENSEMBLE)
    scored = [_row(predictions, name, target, question, resampling) for name in ordered]
    corrected = holm([row.against.p_value if row.against else math.nan for row in scored])
    rows = tuple(
        replace(row, p_holm=p_value) for row, p_value in zip(scored, corrected, strict=True)
    )
    return KeyframeReport(
        target=target,
        question=question,
        rows=rows,
        referral=referral_figures(
            own, resampling, cutoff=question.cutoff, inclusive=question.operator in ("<=", ">")
        ),
        bands=errors_by_band(own, BANDS, resampling),
        queue=review_queue(own, question.cutoff),
        predictions=predictions,
        resampling=resampling,
    )


def print_keyframes(report: KeyframeReport, console: Console) -> None:
    """The table of models, and how well the ensemble knows what it does not know."""
    table = Table(
        title=f"{report.target.name}: {report.rows[0].studies} test studies",
        caption=f"{report.resampling.confidence:.0%} intervals, {report.resampling.num_resamples} "
        "resamples of patients. Not for clinical use.",
    )
    table.add_column("Model")
    for title in ("MAE", "R2", f"AUC {report.question.positive}", "in 95 %", "ensemble - model"):
        table.add_column(title, justify="right")
    for row in report.rows:
        covered = "" if row.coverage is None else f"{row.coverage.values['coverage_95']:.2f}"
        against = "" if row.against is None else f"{row.against.difference:.2f}"
        table.add_row(
            row.model,
            f"{row.number['mae']:.2f}" if row.number else "",
            f"{row.number['r2']:.2f}" if row.number else "",
            f"{row.question['auc']:.2f}" if row.question else "",
            covered,
            against,
        )
    console.print(table)


def _of(predictions: pd.DataFrame, model: str, known: str = "value") -> pd.DataFrame:
    own = predictions[predictions["model"] == model]
    return own[own[known].notna()].reset_index(drop=True)


def _row(
    predictions: pd.DataFrame,
    model: str,
    target: RegressionTarget,
    question: BinaryTarget,
    resampling: Resampling,
) -> ModelRow:
    numbers, classes = _of(predictions, model), _of(predictions, model, "probability")
    number: dict[str, Interval] = {}
    coverage, against = None, None
    if len(numbers):
        labels, values = (numbers[name].to_numpy(float) for name in ("label", "value"))
        found = patient_bootstrap(
            numbers,
            lambda weights: regression_statistics(labels, values, weights),
            num_resamples=resampling.num_resamples,
            seed=resampling.seed,
            confidence=resampling.confidence,
        )
        number = {name: found[name] for name in _NUMBER}
        if numbers["sd"].notna().all():
            coverage = uncertainty_figures(numbers, resampling)
        if model != ENSEMBLE:
            against = _against(_of(predictions, ENSEMBLE), numbers, resampling)
    return ModelRow(
        model=model,
        studies=max(len(numbers), len(classes)),
        number=number,
        question=_of_class(classes, target, question, resampling),
        coverage=coverage,
        against=against,
    )


def _of_class(
    table: pd.DataFrame, target: RegressionTarget, question: BinaryTarget, resampling: Resampling
) -> dict[str, Interval]:
    if not len(table):
        return {}
    truth = _classes(table, target, question)
    probability = table["probability"].to_numpy(float)
    positive, folds = _decisions(table), _folds(table)

    def statistic(weights: Any) -> dict[str, Any]:
        found = binary_statistics(truth, probability, probability, positive, weights)
        found["auc"] = auc_within_groups(truth, probability, folds, weights)
        return {name: found[name] for name in _QUESTION}

    found = patient_bootstrap(
        table,
        statistic,
        num_resamples=resampling.num_resamples,
        seed=resampling.seed,
        confidence=resampling.confidence,
    )
    return {name: found[name] for name in _QUESTION}


def _decisions(table: pd.DataFrame) -> NDArray[np.bool_]:
    """What a model calls each study."""
    likely = table["probability"] >= 0.5
    if "positive" not in table:
        return likely.to_numpy(bool)
    return table["positive"].fillna(likely).to_numpy(bool)


def _folds(table: pd.DataFrame) -> NDArray[Any]:
    """The fold of each study; one for all where there are none."""
    if "fold" not in table:
        return np.zeros(len(table))
    return table["fold"].to_numpy(str)


def _classes(table: pd.DataFrame, target: RegressionTarget, question: BinaryTarget) -> Floats:
    """The class of each study, by its number."""
    assert question.value_column == target.value_column
    return question.encode(table[["label"]].rename(columns={"label": target.value_column})).astype(
        np.float64
    )


def _risk_curves(
    labels: Floats, values: Floats, sds: Floats, cutoff: float | None
) -> dict[str, RiskCoverageCurve]:
    """Error of the studies kept, by each order in which studies are referred."""
    errors = np.abs(values - labels)
    curves = {"by SD": risk_coverage(errors, sds)}
    if cutoff is not None:
        doubts = wrong_side_probability(values, sds, cutoff)
        curves["by nearness to the cut-off"] = risk_coverage(errors, doubts)
    return curves | {
        "by the error itself": risk_coverage(errors, errors),
        "by chance": risk_coverage(errors, np.zeros(len(errors))),
    }


def _auc(table: pd.DataFrame, truth: Any, resampling: Resampling) -> Interval:
    probability, folds = table["probability"].to_numpy(float), _folds(table)
    return patient_bootstrap(
        table,
        lambda weights: {"auc": auc_within_groups(truth, probability, folds, weights)},
        num_resamples=resampling.num_resamples,
        seed=resampling.seed,
        confidence=resampling.confidence,
    )["auc"]


def _against(
    ensemble: pd.DataFrame, other: pd.DataFrame, resampling: Resampling
) -> PairedTest | None:
    both = ensemble[["study_id", "patient_id", "label", "value"]].merge(
        other[["study_id", "value"]], on="study_id", suffixes=("", "_other")
    )
    if both.empty:
        return None
    labels, first, second = (
        both[name].to_numpy(float) for name in ("label", "value", "value_other")
    )
    return paired_patient_bootstrap(
        both,
        lambda weights: {"mae": regression_statistics(labels, first, weights)["mae"]},
        lambda weights: {"mae": regression_statistics(labels, second, weights)["mae"]},
        num_resamples=resampling.num_resamples,
        seed=resampling.seed,
        confidence=resampling.confidence,
    )["mae"]


def _plain(row: ModelRow) -> dict[str, Any]:
    return {
        "studies": row.studies,
        "number": {name: value.to_dict() for name, value in row.number.items()},
        "class": {name: value.to_dict() for name, value in row.question.items()},
        "coverage": None if row.coverage is None else row.coverage.to_dict(),
        "ensemble_minus_model_mae": None if row.against is None else row.against.to_dict(),
        "p_holm": None if math.isnan(row.p_holm) else row.p_holm,
    }


def joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Predictions of several models as one table, of the studies that all of them have in common.

    How many studies are left out is said in the log. A model without folds gets those of the first
    table.

    Raises:
        ValueError: when they have none in common, or disagree about a label.
    """
    common = set.intersection(*(set(table["study_id"]) for table in tables))
    if not common:
        raise ValueError("the predictions have no study in common: compare models of one data set.")
    every = pd.concat(tables, ignore_index=True)
    lost = set(every["study_id"]) - common
    if lost:
        log.warning(
            "%d of %d studies are left out, since not every model has an answer for them: %s.",
            len(lost),
            len(lost) + len(common),
            ", ".join(sorted(lost)[:3]) + (" and others" if len(lost) > 3 else ""),
        )
    every = every[every["study_id"].isin(common)].reset_index(drop=True)
    labels = every.groupby("study_id")["label"].agg(["min", "max"])
    apart = labels[(labels["max"] - labels["min"]) > 1e-3]
    if len(apart):
        raise ValueError(f"study {apart.index[0]} has different labels in the predictions.")
    if "fold" in tables[0]:
        folds = tables[0].drop_duplicates("study_id").set_index("study_id")["fold"]
        every["fold"] = every["study_id"].map(folds)
    return every
