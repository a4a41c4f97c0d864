"""Plots of an evaluation and of a training. Each function returns a figure; nothing is global."""

from cardioray.evaluation.plots.features import (
    feature_correlation_plot,
    feature_map_plot,
    value_histogram,
)
from cardioray.evaluation.plots.models import latency_plot
from cardioray.evaluation.plots.numbers import (
    bland_altman_plot,
    error_by_band_plot,
    noise_plot,
    scatter_plot,
)
from cardioray.evaluation.plots.outlines import PanelFrame, outline_panel
from cardioray.evaluation.plots.pictures import GRID_PICTURES, prediction_grid
from cardioray.evaluation.plots.studies import (
    ScoredModel,
    confusion_plot,
    decision_plot,
    probability_histogram,
    reliability_plot,
    roc_plot,
    threshold_plot,
)
from cardioray.evaluation.plots.style import GREEN, RED, png_bytes
from cardioray.evaluation.plots.training import class_counts_plot, learning_curves
from cardioray.evaluation.plots.uncertainty import (
    coverage_plot,
    interval_plot,
    risk_coverage_plot,
)

__all__ = [
    "GREEN",
    "GRID_PICTURES",
    "PanelFrame",
    "RED",
    "ScoredModel",
    "bland_altman_plot",
    "class_counts_plot",
    "confusion_plot",
    "coverage_plot",
    "decision_plot",
    "error_by_band_plot",
    "feature_correlation_plot",
    "feature_map_plot",
    "interval_plot",
    "latency_plot",
    "learning_curves",
    "noise_plot",
    "outline_panel",
    "png_bytes",
    "prediction_grid",
    "probability_histogram",
    "reliability_plot",
    "risk_coverage_plot",
    "roc_plot",
    "scatter_plot",
    "threshold_plot",
    "value_histogram",
]
