"""Coverage, scores of distributions and referral, against plain definitions and by simulation."""

from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats
from sklearn.decomposition import PCA

from cardioray.evaluation.figures import Resampling
from cardioray.evaluation.plots.features import (
    feature_correlation_plot,
    feature_map_plot,
    value_histogram,
)
from cardioray.evaluation.plots.style import png_bytes
from cardioray.evaluation.plots.uncertainty import (
    coverage_plot,
    interval_plot,
    risk_coverage_plot,
)
from cardioray.evaluation.uncertainty import (
    band_names,
    coverage_curve,
    errors_by_band,
    feature_correlations,
    referral_figures,
    review_queue,
    risk_coverage,
    uncertainty_figures,
    uncertainty_statistics,
    wrong_side_probability,
)

FEW = Resampling(num_resamples=200)


def table(rows: int = 400, stretch: float = 1.0, seed: int = 0) -> pd.DataFrame:
    """Predictions whose errors have the SD that is stated, times 1 / stretch."""
    rng = np.random.default_rng(seed)
    true_sd = rng.uniform(2, 10, rows)
    value = rng.normal(50, 10, rows)
    return pd.DataFrame(
        {
            "patient_id": [f"p{number}" for number in range(rows)],
            "label": value + true_sd * rng.normal(size=rows),
            "value": value,
            "sd": stretch * true_sd,
        }
    )


def numbers(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(rows[name].to_numpy() for name in ("label", "value", "sd"))  # type: ignore[return-value]


def test_true_standard_deviations_cover_what_they_say() -> None:
    rows = table(2000)
    found = uncertainty_figures(rows, FEW).values
    for level in (50, 80, 95):
        low, high = stats.binom.interval(0.999, len(rows), level / 100)
        assert low <= found[f"coverage_{level}"].value * len(rows) <= high
        interval = found[f"coverage_{level}"]
        assert interval.low < interval.value < interval.high
        reach = 2 * stats.norm.ppf(0.5 + level / 200)
        assert found[f"width_{level}"].value == pytest.approx(reach * rows["sd"].mean())
    small = uncertainty_figures(table(2000, 0.5), FEW).values
    large = uncertainty_figures(table(2000, 2.0), FEW).values
    assert small["coverage_80"].high < 0.8 < large["coverage_80"].low
    # Both scores are best for the truth.
    for name in ("crps", "nlpd"):
        assert found[name].value < min(small[name].value, large[name].value)


def test_crps_is_the_integral_it_is_defined_by() -> None:
    for label, value, sd in ((3.0, 1.0, 2.0), (0.0, 0.0, 0.5), (-4.0, 2.0, 1.0)):
        arrays = (np.array([number]) for number in (label, value, sd))
        found = uncertainty_statistics(*arrays, np.ones((1, 1)))

        def gap(x: float, label: float = label, value: float = value, sd: float = sd) -> float:
            return float((stats.norm.cdf(x, value, sd) - (x >= label)) ** 2)

        expected = sum(integrate.quad(gap, *ends)[0] for ends in ((-30, label), (label, 30)))
        assert found["crps"][0] == pytest.approx(expected, abs=1e-6)
        assert found["nlpd"][0] == pytest.approx(-stats.norm.logpdf(label, value, sd))
        assert found["sharpness"][0] == pytest.approx(sd)


def test_weights_count_rows() -> None:
    rows = table(20)
    weights = np.random.default_rng(0).integers(0, 4, (1, 20)).astype(float)
    repeated = rows.loc[np.repeat(np.arange(20), weights[0].astype(int))]
    found = uncertainty_statistics(*numbers(rows), weights)
    expected = uncertainty_statistics(*numbers(repeated), np.ones((1, len(repeated))))
    for name in expected:
        assert found[name][0] == pytest.approx(expected[name][0])


def test_a_curve_agrees_with_the_figures() -> None:
    rows = table(300)
    curve = coverage_curve(*numbers(rows))
    found = uncertainty_figures(rows, FEW).values
    at = dict(zip(np.round(100 * curve.nominal).astype(int), curve.observed, strict=True))
    for level in (50, 80, 95):
        assert at[level] == found[f"coverage_{level}"].value
    assert (np.diff(curve.observed) >= 0).all()


def test_units_change_no_coverage_and_scale_what_has_one() -> None:
    rows = table(100)
    scaled = rows.assign(**{name: 10 * rows[name] for name in ("label", "value", "sd")})
    found, other = (uncertainty_figures(each, FEW).values for each in (rows, scaled))
    assert other["coverage_80"] == found["coverage_80"]
    for name in ("width_95", "sharpness", "crps"):
        assert other[name].value == pytest.approx(10 * found[name].value)
    assert other["nlpd"].value == pytest.approx(found["nlpd"].value + np.log(10))


def plain_risk(errors: np.ndarray, doubts: np.ndarray) -> np.ndarray:
    """Mean error of the kept ones, averaged over every order that the doubts allow."""
    orders = [
        order
        for order in itertools.permutations(range(len(errors)))
        if (np.diff(doubts[list(order)]) <= 0).all()
    ]
    kept = [[errors[list(order[k:])].mean() for k in range(len(errors))] for order in orders]
    return np.mean(kept, axis=0)


@pytest.mark.parametrize("doubts", [[5, 1, 3, 2, 4], [1, 1, 2, 2, 2], [1, 1, 1, 1, 1]])
def test_a_risk_curve_is_the_mean_over_the_orders_of_ties(doubts: list[int]) -> None:
    errors = np.array([3.0, 0.0, 2.0, 7.0, 1.0])
    curve = risk_coverage(errors, doubts)
    expected = plain_risk(errors, np.array(doubts))
    np.testing.assert_allclose(curve.risk, expected)
    np.testing.assert_allclose(curve.referred, [0, 0.2, 0.4, 0.6, 0.8])
    assert curve.area == pytest.approx(expected.mean())
    order = np.random.default_rng(0).permutation(5)
    again = risk_coverage(errors[order], np.array(doubts)[order])
    np.testing.assert_allclose(again.risk, curve.risk)


def test_the_oracle_is_below_every_order_and_chance_is_flat() -> None:
    rng = np.random.default_rng(0)
    errors = rng.exponential(size=60)
    oracle = risk_coverage(errors, errors)
    assert (np.diff(oracle.risk) <= 1e-12).all()
    for _ in range(20):
        assert (oracle.risk <= risk_coverage(errors, rng.random(60)).risk + 1e-12).all()
    np.testing.assert_allclose(risk_coverage(errors, np.zeros(60)).risk, errors.mean())


def test_referral_by_sd_gains_where_sds_know_something() -> None:
    rows = table(600)
    found = referral_figures(rows, FEW, cutoff=50.0).values
    blind = referral_figures(rows.assign(sd=4.0), FEW, cutoff=50.0).values
    assert found["mae_gain_by_sd"].low > 0.1
    assert blind["mae_gain_by_sd"].value == pytest.approx(0)
    for error in ("mae", "wrong"):
        areas = [found[f"{error}_area_by_{by}"].value for by in ("oracle", "sd", "chance")]
        assert areas == sorted(areas)
    # Whether a decision is right hangs on the distance to the cut-off first.
    assert found["wrong_area_by_cutoff"].value < found["wrong_area_by_sd"].value
    errors = np.abs(rows["value"] - rows["label"])
    assert found["mae_area_by_sd"].value == pytest.approx(risk_coverage(errors, rows["sd"]).area)
    assert found["mae_area_by_chance"].value == pytest.approx(errors.mean())


def test_the_cut_off_may_count_as_below_it() -> None:
    rows = pd.DataFrame(
        {"patient_id": ["a", "b"], "label": [40.0, 60.0], "value": [39.0, 61.0], "sd": [1.0, 1.0]}
    )
    strict = referral_figures(rows, FEW, cutoff=40.0)
    assert strict.values["wrong_area_by_chance"].value == 0.5
    inclusive = referral_figures(rows, FEW, cutoff=40.0, inclusive=True)
    assert inclusive.values["wrong_area_by_chance"].value == 0
    assert "all errors are equal" in inclusive.undefined["wrong_gain_by_sd"]


def test_the_queue_begins_with_the_most_doubtful() -> None:
    rows = pd.DataFrame(
        {
            "patient_id": ["a", "b", "c", "d"],
            "study_id": ["s1", "s2", "s3", "s4"],
            "value": [40.0, 48.0, 52.0, 70.0],
            "sd": [5.0, 1.0, 4.0, 9.0],
        }
    )
    by_sd = review_queue(rows)
    assert by_sd["patient_id"].tolist() == ["d", "a", "c", "b"]
    by_cutoff = review_queue(rows, cutoff=50.0)
    assert by_cutoff["patient_id"].tolist() == ["c", "a", "b", "d"]
    assert by_cutoff["rank_by_cutoff"].tolist() == [1, 2, 2, 4]
    np.testing.assert_allclose(by_cutoff["sds_to_cutoff"], [0.5, 2, 2, 20 / 9])
    np.testing.assert_allclose(by_cutoff["wrong_side_probability"][0], stats.norm.sf(0.5))
    assert by_cutoff["rank_by_sd"].tolist() == [3, 2, 4, 1]
    assert "study_id" in by_cutoff


def test_nearness_to_a_cut_off_is_a_probability() -> None:
    rng = np.random.default_rng(0)
    for value, sd in ((45.0, 5.0), (50.0, 3.0), (80.0, 20.0)):
        draws = rng.normal(value, sd, 200_000)
        wrong = ((draws < 50) != (value < 50)).mean()
        assert wrong_side_probability([value], [sd], 50.0)[0] == pytest.approx(wrong, abs=0.005)


def test_errors_by_band_add_up_to_all() -> None:
    rows = table(300)
    bands = errors_by_band(rows, (35.0, 45.0), FEW)
    assert list(bands) == band_names((35.0, 45.0)) == ["below 35", "35 to 45", "from 45"]
    errors = (rows["value"] - rows["label"]).to_numpy()
    for name, statistic in (("mae", np.abs(errors)), ("bias", errors)):
        total = sum(found.n * found.values[name].value for found in bands.values())
        assert total / len(rows) == pytest.approx(statistic.mean())
    middle = rows["label"].between(35, 45, inclusive="left").to_numpy()
    assert bands["35 to 45"].n == middle.sum()
    assert bands["35 to 45"].values["rmse"].value == pytest.approx(
        np.sqrt((errors[middle] ** 2).mean())
    )
    empty = errors_by_band(rows, (35.0, 45.0, 1000.0), FEW)["from 1000"]
    assert (empty.n, dict(empty.values)) == (0, {})
    with pytest.raises(ValueError, match="rise"):
        errors_by_band(rows, (45.0, 35.0), FEW)


def test_rows_of_a_patient_are_resampled_together() -> None:
    rows = table(40)
    doubled = pd.concat([rows, rows], ignore_index=True)
    once, twice = (uncertainty_figures(each, FEW).values["crps"] for each in (rows, doubled))
    assert twice.low == pytest.approx(once.low)
    assert twice.high == pytest.approx(once.high)


def test_tables_at_fault_are_refused() -> None:
    rows = table(5)
    with pytest.raises(ValueError, match="missing: sd"):
        uncertainty_figures(rows.drop(columns="sd"))
    with pytest.raises(ValueError, match="missing: rows"):
        uncertainty_figures(rows.head(0))
    with pytest.raises(ValueError, match="sd is not above 0 in row 3"):
        uncertainty_figures(rows.assign(sd=[1, 1, 0, 1, 1]))
    with pytest.raises(ValueError, match="value is no number in row 2"):
        uncertainty_figures(rows.assign(value=[1, np.nan, 0, 1, 1]))


def test_correlations_are_pearsons() -> None:
    rng = np.random.default_rng(0)
    features, values = rng.normal(size=(30, 4)).astype(np.float32), rng.normal(size=30)
    features[:, 2] = 0.1
    found = feature_correlations(features, values)
    for column in (0, 1, 3):
        assert found[column] == pytest.approx(stats.pearsonr(features[:, column], values)[0])
    assert np.isnan(found[2])


def texts(figure: object) -> str:
    found = figure.findobj(mpl.text.Text)  # type: ignore[attr-defined]
    return " | ".join(text.get_text() for text in found)


@pytest.mark.parametrize("n", [1, 3, 60])
def test_tables_of_any_size_can_be_drawn(n: int) -> None:
    rows = table(n)
    labels, values, sds = numbers(rows)
    errors = np.abs(labels - values)
    features = np.random.default_rng(0).normal(size=(n, 12))
    places = PCA(2).fit_transform(features) if n > 2 else np.zeros((n, 2))
    figures = [
        interval_plot(labels, values, sds, "ef", "%"),
        coverage_plot({"gp": coverage_curve(labels, values, sds)}),
        risk_coverage_plot(
            {"by SD": risk_coverage(errors, sds), "oracle": risk_coverage(errors, errors)}, "MAE, %"
        ),
        value_histogram(labels, "EF", "%", splits=["test"] * n, cutoffs=(40.0,)),
        feature_map_plot(places, labels, "EF", "%", (0.4, 0.2)),
    ]
    for figure in figures:
        assert f"{n} studies" in texts(figure)
        assert len(png_bytes(figure)) < 100_000
    shown = feature_correlation_plot(feature_correlations(features, labels), "EF")
    assert ("0 features" if n == 1 else "12 features") in texts(shown)
    png_bytes(shown)


def test_intervals_that_miss_the_truth_are_counted() -> None:
    figure = interval_plot([50.0, 50.0, 50.0], [51.0, 49.0, 60.0], [1.0, 1.0, 1.0], "ef", "%")
    assert "holds the truth (2)" in texts(figure)
    assert "does not (1)" in texts(figure)
