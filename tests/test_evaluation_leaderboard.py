"""Leaderboards: who wins, what is tested, where thresholds come from, what is written."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy.special import expit

from cardioray.clinical.calibration import fit_calibration, patient_folds
from cardioray.evaluation.intervals import delong_test, holm
from cardioray.evaluation.leaderboard import (
    Leaderboard,
    LeaderboardEntry,
    build_leaderboard,
)
from cardioray.evaluation.leaderboard_page import Picture
from cardioray.evaluation.leaderboard_terminal import print_leaderboard
from cardioray.targets import BinaryTarget, RegressionTarget

FFR = BinaryTarget(name="ffr", positive="FFR<=0.80", negative="FFR>0.80")
EF = RegressionTarget(name="ef", value_column="ef_percent", unit="%", low=0, high=100)
PATIENTS = 60


def predictions(
    effect: float,
    seed: int,
    folds: tuple[int, ...] = (0, 1),
    *,
    calibration: bool = True,
    shift: float = 0.0,
    frames: int = 3,
) -> pd.DataFrame:
    shared = np.random.default_rng(0)
    label = np.arange(PATIENTS) % 3 == 0
    base = shared.normal(size=PATIENTS)
    rng = np.random.default_rng(seed)
    rows = []
    for fold in folds:
        logit = effect * label + base + 0.5 * rng.normal(size=PATIENTS) + shift * fold
        for patient in range(PATIENTS):
            split = "test" if patient % 2 == fold else "calibration"
            if split == "test" or calibration:
                for frame in range(frames):
                    score = expit(logit[patient] + 0.3 * rng.normal())
                    rows.append(
                        (f"p{patient}", f"{patient}-{frame}", fold, split, label[patient], score)
                    )
    columns = ["patient_id", "sample_id", "fold", "split", "label", "score"]
    return pd.DataFrame(rows, columns=columns).assign(label=lambda t: t["label"].astype(int))


def entry(
    name: str, effect: float, score: float, seed: int = 1, **more: object
) -> LeaderboardEntry:
    keep = {k: more.pop(k) for k in ("folds", "calibration", "shift", "frames") if k in more}
    table = predictions(effect, seed, **keep)  # type: ignore[arg-type]
    return LeaderboardEntry(name=name, predictions=table, validation_score=score, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def board() -> Leaderboard:
    return build_leaderboard(
        [
            entry("weak", 0.2, 0.60, seed=1, latency_ms=4.0, parameters_millions=4.2),
            entry("strong", 3.5, 0.90, seed=2, latency_ms=16.0, train_seconds=4000.0),
            entry("twin", 3.4, 0.89, seed=3, latency_ms=30.0, gflops=3.4),
            entry("stopped", 3.5, 0.95, seed=4, folds=(0,), stopped_early=True),
        ],
        FFR,
        num_resamples=300,
    )


def test_a_model_that_could_not_be_tested_is_not_called_worse() -> None:
    ours, theirs = entry("ours", 3.5, 0.9, folds=(0,)), entry("theirs", 0.2, 0.6, folds=(1,))
    board = build_leaderboard([ours, theirs], FFR, num_resamples=50)
    other = board.rows[1]
    assert np.isnan(other.p_holm)
    assert other.marks == "not tested against the winner"
    console = Console(width=100, record=True, file=io.StringIO())
    print_leaderboard(board, console)
    assert "not tested" in console.export_text()


def test_validation_chooses_and_a_stopped_model_cannot_win(board: Leaderboard) -> None:
    assert board.table["name"].tolist() == ["strong", "twin", "weak", "stopped"]
    assert board.winner.name == "strong"
    assert board.table["marks"].tolist() == [
        "winner",
        "not distinguishable from the winner",
        "",
        "stopped early",
    ]


def test_test_rows_do_not_choose_the_winner() -> None:
    entries = [entry("lucky", 3.5, 0.70), entry("chosen", 0.5, 0.80)]
    board = build_leaderboard(entries, FFR, num_resamples=50)
    assert board.winner.name == "chosen"
    assert board.table["auc"][1] > board.table["auc"][0]


def test_between_equal_validation_scores_the_standing_decides() -> None:
    entries = [
        dataclasses.replace(entry("a", 1.0, 1.0), standing=0.99995),
        dataclasses.replace(entry("b", 1.0, 1.0), standing=0.99999),
    ]
    assert build_leaderboard(entries, FFR, num_resamples=50).winner.name == "b"


def test_a_loss_chooses_the_smallest() -> None:
    entries = [entry("a", 1.0, 0.70), entry("b", 1.0, 0.60)]
    board = build_leaderboard(entries, FFR, validation_metric="loss", num_resamples=50)
    assert board.winner.name == "b"


def test_p_values_are_delongs_on_common_studies(board: Leaderboard) -> None:
    table = board.table.set_index("name")
    studies = {row.entry.name: row.studies for row in board.rows}
    for name, folds in (("weak", (0, 1)), ("stopped", (0,))):
        first = studies["strong"][studies["strong"]["fold"].isin(folds)]
        groups = first["fold"] if len(folds) > 1 else None
        scores = studies[name]["score"]
        expected = delong_test(first["label"], first["score"], scores, groups=groups)
        assert table["p_vs_winner"][name] == pytest.approx(expected.p_value)
    assert table["p_holm"]["weak"] < 0.01
    assert table["p_holm"]["twin"] > 0.05
    assert np.isnan(table["p_vs_winner"]["strong"])
    assert table["patients"].to_dict() == {"strong": 60, "twin": 60, "weak": 60, "stopped": 30}


def test_several_studies_of_a_patient_are_tested_by_bootstrap() -> None:
    entries = []
    for name, effect in (("a", 3.0), ("b", 0.1)):
        made = entry(name, effect, effect)
        frame = made.predictions["sample_id"].str[-1]
        study = made.predictions["patient_id"] + "-" + frame
        entries.append(
            dataclasses.replace(made, predictions=made.predictions.assign(study_id=study))
        )
    table = build_leaderboard(entries, FFR, num_resamples=200).table
    assert table["test_vs_winner"][1] == "paired patient bootstrap"
    assert table["studies"][0] == 3 * PATIENTS
    assert table["p_vs_winner"][1] < 0.05


def test_holm_is_the_textbook_example() -> None:
    corrected = holm([0.01, float("nan"), 0.04, 0.03, 0.005])
    assert corrected[0] == pytest.approx(0.03)
    assert np.isnan(corrected[1])
    assert corrected[2:] == pytest.approx([0.06, 0.06, 0.02])


def test_thresholds_come_from_calibration_or_are_cross_fitted_or_fixed() -> None:
    few = predictions(2.0, 1, (0,), calibration=False)
    few = few[few["patient_id"].isin(["p0", "p6", "p2", "p4", "p8"])]
    board = build_leaderboard(
        [
            entry("calibrated", 2.0, 0.9),
            entry("crossed", 2.0, 0.8, calibration=False),
            LeaderboardEntry(name="few", predictions=few, validation_score=0.7),
        ],
        FFR,
        num_resamples=50,
    )
    assert board.table["thresholds_from"].tolist() == [
        "calibration patients of the same fold",
        "cross-fitted over test patients",
        "fixed:0.5 (too few patients of a class)",
    ]
    assert board.table["uncertain"][2] == 1


@pytest.mark.parametrize("flipped", [False, True])
def test_a_patient_is_decided_by_a_map_fitted_on_others(flipped: bool) -> None:
    table = predictions(2.0, 1, folds=(0,), calibration=False)
    own = table["patient_id"] == "p8"
    assert own.any()
    if flipped:
        table["label"] = table["label"].where(~own, 1 - table["label"])
    entries = [LeaderboardEntry(name="a", predictions=table, validation_score=0.9)]
    studies = build_leaderboard(entries, FFR, num_resamples=2).rows[0].studies
    found = studies.set_index("patient_id")["probability"]["p8"]

    scores = table.groupby("patient_id")["score"].mean()
    labels = table.groupby("patient_id")["label"].first()
    [fitted] = [
        fitted
        for fitted, held_out in patient_folds(labels, labels.index)
        if "p8" in labels.index[held_out]
    ]
    assert "p8" not in labels.index[fitted]
    others = fit_calibration("platt", labels.iloc[fitted], scores.iloc[fitted])
    assert found == pytest.approx(float(others.apply(scores["p8"])))


def test_auc_within_folds_is_not_fooled_by_shifted_scores() -> None:
    table = build_leaderboard(
        [entry("even", 2.0, 0.9), entry("shifted", 2.0, 0.8, shift=4.0)], FFR, num_resamples=50
    ).table.set_index("name")
    assert table["auc"]["shifted"] < table["auc"]["even"] - 0.1
    within = table["auc_within_folds"]
    assert within["shifted"] == pytest.approx(within["even"], abs=0.01)
    assert table["p_holm"]["shifted"] > 0.3
    assert table["test_vs_winner"]["shifted"] == "DeLong within folds"


def test_delong_within_folds_adds_up_over_folds() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 80)
    groups = np.repeat([0, 1], [30, 50])
    a, b = (labels + rng.normal(0, 1, 80) for _ in range(2))
    one = delong_test(labels, a, b, groups=np.zeros(80))
    assert one.difference == delong_test(labels, a, b).difference
    parts = [delong_test(labels[groups == g], a[groups == g], b[groups == g]) for g in (0, 1)]
    pairs = [np.prod(np.bincount(labels[groups == g])) for g in (0, 1)]
    both = delong_test(labels, a, b, groups=groups)
    expected = np.average([part.difference.value for part in parts], weights=pairs)
    assert both.difference.value == pytest.approx(expected)
    widths = [part.difference.high - part.difference.low for part in parts]
    width = np.hypot(*(np.array(widths) * pairs)) / np.sum(pairs)
    assert both.difference.high - both.difference.low == pytest.approx(width)


def test_failed_models_are_named(board: Leaderboard, tmp_path: Path) -> None:
    failing = dataclasses.replace(board, failed={"vgg19": "CUDA out of memory"})
    failing.write(str(tmp_path))
    assert "vgg19 failed: CUDA out of memory" in (tmp_path / "leaderboard.html").read_text()
    assert json.loads((tmp_path / "leaderboard.json").read_text())["failed"] == failing.failed
    stream = io.StringIO()
    print_leaderboard(failing, Console(file=stream, width=200))
    assert "vgg19 failed: CUDA out of memory" in stream.getvalue()


def test_one_fold_has_no_auc_within_folds(board: Leaderboard) -> None:
    assert np.isnan(board.table.set_index("name")["auc_within_folds"]["stopped"])


def test_regression_is_compared_by_error() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(55, 10, 80).clip(10, 90)
    entries = [
        LeaderboardEntry(
            name=name,
            validation_score=error,
            predictions=pd.DataFrame(
                {
                    "patient_id": [f"p{i}" for i in range(80)],
                    "label": truth,
                    "score": truth + rng.normal(0, error, 80),
                }
            ),
        )
        for name, error in (("poor", 9.0), ("good", 4.0))
    ]
    board = build_leaderboard(entries, EF, validation_metric="mae", num_resamples=300)
    assert board.winner.name == "good"
    assert board.headline == "mae"
    row = board.table.set_index("name").loc["poor"]
    assert row["p_vs_winner"] < 0.01
    assert row["difference_vs_winner"] < 0
    console = Console(width=80, record=True, file=io.StringIO())
    print_leaderboard(board, console)
    assert "…" not in console.export_text(clear=False)
    assert max(map(len, console.export_text().splitlines())) <= 80


def test_files_are_complete_and_the_page_stands_alone(board: Leaderboard, tmp_path: Path) -> None:
    paths = board.write(
        str(tmp_path),
        [Picture("Training <b>", "Learning <curves>", "learning_a/b", b"\x89PNG fake")],
    )
    assert {Path(path).name for path in paths} >= {
        *("leaderboard.csv", "leaderboard.json", "leaderboard.html"),
        *("roc.png", "roc_zoom.png", "latency.png", "confusion_strong.png", "learning_a_b.png"),
    }
    table = pd.read_csv(tmp_path / "leaderboard.csv")
    assert table["name"].tolist() == board.table["name"].tolist()
    assert {"auc", "auc_low", "auc_high", "frame_auc", "p_holm", "tp"} <= set(table.columns)
    figures = [c for c in table.columns if f"{c}_low" in table.columns]
    assert len(figures) > 25
    stored = json.loads((tmp_path / "leaderboard.json").read_text())
    assert stored["winner"] == "strong"
    assert stored["rows"][0]["evaluation"]["per_study"]["auc"]["value"] == table["auc"][0]
    page = (tmp_path / "leaderboard.html").read_text()
    assert "Not for clinical use" in page
    assert "Learning &lt;curves&gt;" in page
    assert "<h2>Training &lt;b&gt;</h2>" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<tr>") == 5


@pytest.mark.parametrize("width", [80, 100, 160])
def test_printed_leaderboard_is_whole_at_every_width(board: Leaderboard, width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    print_leaderboard(board, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert text.index("strong") < text.index("twin") < text.index("weak")
    assert "stopped early" in text
    for title in ("AUC", "Acc.", "Sens.", "Spec.", "Prec.", "F1", "Val.", "GFLOPs", "Training"):
        assert title in text
    for row in board.rows:
        for name in ("auc", "accuracy", "sensitivity", "specificity", "precision", "f1"):
            assert f"{row.evaluation.per_study.values[name].value:.3f}" in text
    # Names and marks are said once a table.
    assert text.count("stopped early") == (1 if width == 160 else 2)


def test_errors_name_the_entry() -> None:
    good = entry("good", 1.0, 0.8)
    with pytest.raises(ValueError, match="different names"):
        build_leaderboard([good, good], FFR)
    with pytest.raises(ValueError, match="different names"):
        build_leaderboard([], FFR)
    bad = dataclasses.replace(good, name="bad", predictions=good.predictions.drop(columns="score"))
    with pytest.raises(ValueError, match="^bad: .*no column score"):
        build_leaderboard([good, bad], FFR)
    unscored = dataclasses.replace(good, name="odd", validation_score=float("nan"))
    with pytest.raises(ValueError, match="^odd: the validation score is no number"):
        build_leaderboard([good, unscored], FFR)
