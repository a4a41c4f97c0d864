"""Plots: what they draw from odd input, and that they stay small and global-free."""

from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cardioray.evaluation import plots
from cardioray.evaluation.intervals import Interval

CLASSES = ("FFR>0.80", "FFR<=0.80")


def scored(name: str, seed: int, n: int = 40) -> plots.ScoredModel:
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 2).astype(float)
    patients = [f"p{i}" for i in range(n)]
    return plots.ScoredModel(name, labels, labels + rng.normal(size=n), patients)


def texts(figure: object) -> str:
    found = figure.findobj(mpl.text.Text)  # type: ignore[attr-defined]
    return " | ".join(text.get_text() for text in found)


def test_plots_change_nothing_global() -> None:
    before = dict(mpl.rcParams)
    plots.png_bytes(plots.roc_plot([scored("a", 0)]))
    assert dict(mpl.rcParams) == before


def test_roc_names_every_model_and_bands_one_alone() -> None:
    alone = plots.roc_plot([scored("a", 0)])
    assert "95 % band" in texts(alone)
    assert "40 studies, 20 positive" in texts(alone)
    many = plots.roc_plot([scored(f"model{i}", i) for i in range(12)], zoom=True)
    assert "95 % band" not in texts(many)
    assert all(f"model{i}: AUC" in texts(many) for i in range(12))
    one_class = plots.ScoredModel("flat", np.zeros(3), np.arange(3.0), ["a", "b", "c"])
    assert "flat: one class only" in texts(plots.roc_plot([one_class]))


def test_confusion_counts_and_shares() -> None:
    figure = plots.confusion_plot([0, 0, 0, 1], [0, 0, 1, 1], CLASSES)
    assert "66.7%" in texts(figure)
    assert "100.0%" in texts(figure)
    assert "n = 4" in texts(figure)
    assert "0.0%" in texts(plots.confusion_plot([0, 0], [0, 0], CLASSES))


def test_learning_curves_mark_the_stage_and_name_the_figure() -> None:
    log = pd.DataFrame(
        {
            "epoch": [1, 2, 3, 4],
            "stage": ["head", "head", "all", "all"],
            "train_loss": [0.7, 0.6, 0.5, 0.4],
            "val_loss": [0.7, np.nan, 0.6, 0.5],
            "val_auc": [0.5, 0.6, 0.7, 0.8],
        }
    )
    figure = plots.learning_curves(log)
    assert "next stage" in texts(figure)
    assert "AUC (4 epochs)" in texts(figure)
    marks = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert marks == [2.5]
    loss_only = plots.learning_curves(log[["epoch", "train_loss", "val_loss"]])
    assert len(loss_only.axes) == 1
    one = plots.learning_curves(log.head(1))
    assert "AUC (1 epoch)" in texts(one)
    assert [tick for tick in one.axes[0].get_xticks() if tick % 1] == []
    with pytest.raises(ValueError, match="no column 'val_f1': epoch, stage"):
        plots.learning_curves(log, metric="val_f1")


def test_prediction_grid_is_green_when_right_and_red_when_wrong() -> None:
    images = [np.zeros((8, 8), np.uint8), np.ones((8, 8, 3)), np.zeros((8, 8), np.uint8)]
    figure = plots.prediction_grid(images, [1, 1, 0], [0.9, 0.2, 0.1], [1, 0, 0], CLASSES)
    colours = [axes.title.get_color() for axes in figure.axes[:3]]
    assert colours == [plots.GREEN, plots.RED, plots.GREEN]
    assert "wrong, is FFR<=0.80" in texts(figure)
    assert "3 of 3" in texts(figure)
    some = plots.prediction_grid(
        images, [1, 1, 0], [0.9, 0.2, 0.1], [1, 0, 0], CLASSES, drawn_from=90
    )
    assert "3 of 90" in texts(some)
    assert "probability of FFR<=0.80" in texts(some)


def test_a_grid_of_noisy_pictures_stays_small_and_keeps_its_colours() -> None:
    rng = np.random.default_rng(0)
    smooth = np.linspace(60, 180, 200)[None] + np.linspace(0, 40, 200)[:, None]
    images = [(smooth + rng.normal(0, 2, (200, 200))).astype(np.uint8) for _ in range(30)]
    labels = np.arange(30) % 2
    data = plots.png_bytes(
        plots.prediction_grid(images, labels, np.full(30, 0.7), np.ones(30), CLASSES)
    )
    assert len(data) <= 100_000
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).reshape(-1, 3).astype(int)
    assert (pixels[:, 1] > pixels[:, 0] + 80).sum() > 1000
    assert (pixels[:, 0] > pixels[:, 2] + 120).sum() > 1000


def test_latency_plot_leaves_out_what_is_unknown() -> None:
    table = pd.DataFrame(
        {
            "name": ["a", "b", "c"],
            "latency_ms": [4.0, 40.0, None],
            "auc": [0.8, 0.9, 0.7],
            "auc_low": [0.7, 0.8, 0.6],
            "auc_high": [0.9, np.nan, 0.8],
        }
    )
    figure = plots.latency_plot(table)
    assert "2 models" in texts(figure)
    assert figure.axes[0].get_xscale() == "log"
    plots.png_bytes(figure)


@pytest.mark.parametrize("n", [1, 3, 25])
def test_small_tables_can_be_drawn(n: int) -> None:
    rng = np.random.default_rng(n)
    labels, scores = (np.arange(n) % 2).astype(float), rng.random(n)
    for figure in (
        plots.reliability_plot(labels, scores, scores),
        plots.probability_histogram(labels, scores, 0.5, CLASSES),
        plots.threshold_plot(labels, scores, 0.5),
        plots.class_counts_plot(["test"] * n, labels, CLASSES),
        plots.scatter_plot(labels, scores, "ef", "%"),
        plots.bland_altman_plot(labels, scores, "ef", "%"),
        plots.error_by_band_plot(labels + 9, scores + 9, (8.0, 12.0), "ef", "%"),
    ):
        assert f"{n} studies" in texts(figure) or f"n = {n}" in texts(figure)
        assert len(plots.png_bytes(figure)) < 100_000


def test_errors_are_shown_in_the_band_of_the_true_value() -> None:
    truth, predicted = [30.0, 35.0, 39.0, 60.0], [34.0, 35.0, 37.0, 60.0]
    figure = plots.error_by_band_plot(truth, predicted, (35.0, 40.0, 50.0), "ef", "%")
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert ticks == [
        "below 35\n1 studies\nMAE 4",
        "35 to 40\n2 studies\nMAE 1",
        "40 to 50\n0 studies\nnone",
        "from 50\n1 studies\nMAE 0",
    ]


def test_auc_of_the_legend_is_the_one_given() -> None:
    model = scored("a", 0)
    given = plots.ScoredModel(
        "a", model.labels, model.scores, model.patient_ids, Interval(0.5, 0.4, 0.6)
    )
    assert "a: AUC 0.500 (0.400 to 0.600)" in texts(plots.roc_plot([given]))
