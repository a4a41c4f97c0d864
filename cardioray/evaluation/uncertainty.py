"""Whether predicted standard deviations are true, and which cases a person should look at.

Everything reads a table with one row a study: `patient_id`, `label`, `value` (the predicted number)
and `sd` (its predictive standard deviation, above 0), the latter three in the target's unit. The
predictive distribution is taken as normal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from cardioray.evaluation.figures import Figures, Resampling
from cardioray.evaluation.intervals import Statistic, patient_bootstrap

Floats = NDArray[np.float64]

COLUMNS = ("patient_id", "label", "value", "sd")
# Central intervals whose coverage is reported, in percent.
LEVELS = (50, 80, 95)
_CURVE_LEVELS = tuple(share / 100 for share in range(5, 100, 5))
# A person should look at a study whose sd is above that of this share of the calibration studies,
# and at one that is on the wrong side of the cut-off with more than this probability.
REVIEW_SHARE = 0.8
REVIEW_WRONG_SIDE = 0.25


@dataclass(frozen=True)
class CoverageCurve:
    """How often central intervals hold the truth.

    Attributes:
        nominal: coverage aimed at, shape (levels,).
        observed: share of the studies whose truth lies inside, shape (levels,).
        n: studies.
    """

    nominal: Floats
    observed: Floats
    n: int


@dataclass(frozen=True)
class RiskCoverageCurve:
    """The error of the studies that are kept, against the share that is referred to a person.

    Attributes:
        referred: shares 0, 1/n, ..., (n - 1)/n of the studies, the most doubtful first.
        risk: mean error of the others, shape (n,).
        area: mean of the risk over these shares (Y. Geifman, G. Uziel, R. El-Yaniv,
            arXiv:1805.08206, section 3); smaller is better.
    """

    referred: Floats
    risk: Floats
    area: float


def uncertainty_statistics(
    labels: Floats, values: Floats, sds: Floats, weights: Floats
) -> dict[str, Floats]:
    """Figures of predictive distributions for each row of a weight matrix.

    Args:
        labels: the truth, shape (rows,).
        values: predicted means, shape (rows,).
        sds: predictive standard deviations, above 0, shape (rows,).
        weights: how often each row counts, shape (resamples, rows).

    Returns:
        Arrays of shape (resamples,) by name: `coverage_50` and so on, the share of truths inside
        the central interval; `width_50` and so on, its mean width; `sharpness`, the root of the
        mean predictive variance (V. Kuleshov, N. Fenner, S. Ermon, arXiv:1807.00263, section 3.5);
        `crps`, the continuous ranked probability score, and `nlpd`, the negative log predictive
        density (T. Gneiting, A. E. Raftery, J Am Stat Assoc 102:359-378, 2007,
        doi:10.1198/016214506000001437). The smaller `crps` and `nlpd`, the better.
    """
    z = (labels - values) / sds
    columns: dict[str, Floats] = {}
    for level in LEVELS:
        reach = float(stats.norm.ppf(0.5 + level / 200))
        columns[f"coverage_{level}"] = (np.abs(z) <= reach).astype(float)
        columns[f"width_{level}"] = 2 * reach * sds
    columns["sharpness"] = sds**2
    columns["crps"] = sds * (
        z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi)
    )
    columns["nlpd"] = -stats.norm.logpdf(z) + np.log(sds)
    means = _means(columns, weights)
    means["sharpness"] = np.sqrt(means["sharpness"])
    return means


def uncertainty_figures(table: pd.DataFrame, resampling: Resampling | None = None) -> Figures:
    """Figures of `uncertainty_statistics` with intervals resampled by patient.

    Raises:
        ValueError: when a column is missing, a number is not finite or an sd is not above 0.
    """
    labels, values, sds = _columns(table)

    def statistic(weights: Floats) -> dict[str, Floats]:
        return uncertainty_statistics(labels, values, sds, weights)

    return _figures(table, statistic, resampling)


def coverage_curve(labels: ArrayLike, values: ArrayLike, sds: ArrayLike) -> CoverageCurve:
    """Observed coverage of central intervals from 5 to 95 %.

    Args:
        labels: the truth, shape (rows,).
        values: predicted means, shape (rows,).
        sds: predictive standard deviations, above 0, shape (rows,).
    """
    truth, means, spreads = (np.asarray(each, dtype=float) for each in (labels, values, sds))
    nominal = np.array(_CURVE_LEVELS)
    reach = stats.norm.ppf(0.5 + nominal / 2)
    inside = np.abs((truth - means) / spreads)[:, None] <= reach
    return CoverageCurve(nominal, inside.mean(axis=0), len(truth))


def wrong_side_probability(values: ArrayLike, sds: ArrayLike, cutoff: float) -> Floats:
    """Probability that the truth is on the other side of a cut-off than the predicted number.

    Args:
        values: predicted means, shape (rows,).
        sds: predictive standard deviations, above 0, shape (rows,).
        cutoff: in the target's unit.

    Returns:
        (rows,), at most 0.5, which it is for a number on the cut-off.
    """
    distance = np.abs(np.asarray(values, dtype=float) - cutoff)
    return np.asarray(stats.norm.sf(distance / np.asarray(sds, dtype=float)))


def review_queue(table: pd.DataFrame, cutoff: float | None = None) -> pd.DataFrame:
    """The studies in the order in which a person should look at them.

    Args:
        table: as the module says; `label` may be missing. Where there is an `sd_limit`, the sd
            above which a person should look, studies are flagged. Other columns stay.
        cutoff: by which the number decides. Without one, studies with the largest sd come first;
            with one, those that are the likeliest to be on its wrong side.

    Returns:
        The table sorted, with a fresh index and the columns `rank_by_sd` (1 is the largest) and,
        with a cut-off, `sds_to_cutoff`, `wrong_side_probability` and `rank_by_cutoff`; with a
        limit, `flagged`: the sd is above it, or the study is on the wrong side of the cut-off with
        a probability above `REVIEW_WRONG_SIDE`.

    Raises:
        ValueError: as `uncertainty_figures`.
    """
    _, values, sds = _columns(table.assign(label=0.0) if "label" not in table else table)
    queue = table.assign(rank_by_sd=_ranks(sds))
    limited = "sd_limit" in table
    if limited:
        queue["flagged"] = sds > table["sd_limit"].to_numpy(float)
    if cutoff is None:
        return queue.sort_values("rank_by_sd", kind="stable", ignore_index=True)
    doubt = wrong_side_probability(values, sds, cutoff)
    if limited:
        queue["flagged"] |= doubt > REVIEW_WRONG_SIDE
    queue = queue.assign(
        sds_to_cutoff=np.abs(values - cutoff) / sds,
        wrong_side_probability=doubt,
        rank_by_cutoff=_ranks(doubt),
    )
    return queue.sort_values("rank_by_cutoff", kind="stable", ignore_index=True)


def risk_coverage(errors: ArrayLike, doubts: ArrayLike) -> RiskCoverageCurve:
    """The error of what is kept when the most doubtful studies are referred.

    Args:
        errors: of each study, at least 0: absolute errors, or 1 for a wrong decision; (rows,).
        doubts: the larger, the earlier a study is referred; (rows,). Errors themselves give the
            oracle's curve, one number for all of them that of chance. Between studies of equal
            doubt chance decides; the curve is its expectation.
    """
    costs, order = np.asarray(errors, dtype=float), np.asarray(doubts, dtype=float)
    count = len(costs)
    kept = _kept_risk(costs, order)
    return RiskCoverageCurve(np.arange(count) / count, kept[::-1], float(kept.mean()))


def referral_figures(
    table: pd.DataFrame,
    resampling: Resampling | None = None,
    *,
    cutoff: float | None = None,
    inclusive: bool = False,
) -> Figures:
    """Areas under risk-coverage curves, with intervals resampled by patient.

    For `mae`, the mean absolute error, and with a cut-off also for `wrong`, the share of studies
    that are called to be on the wrong side of it: `<error>_area_by_sd`, `<error>_area_by_cutoff`
    (with a cut-off), `<error>_area_by_chance`, `<error>_area_by_oracle`, and for each order
    `<error>_gain_by_...`, the share of the way from chance to the oracle: 0 is no better than
    chance, 1 is as good as the errors themselves.

    Args:
        table: as the module says.
        resampling: how intervals are made.
        cutoff: in the target's unit.
        inclusive: whether the cut-off itself is below it, as in EF <= 40.

    Raises:
        ValueError: as `uncertainty_figures`.
    """
    labels, values, sds = _columns(table)
    errors = {"mae": np.abs(values - labels)}
    doubts = {"sd": sds}
    if cutoff is not None:
        below = np.less_equal if inclusive else np.less
        errors["wrong"] = (below(labels, cutoff) != below(values, cutoff)).astype(float)
        doubts["cutoff"] = wrong_side_probability(values, sds, cutoff)
    chance = np.zeros(len(labels))

    def statistic(weights: Floats) -> dict[str, Floats]:
        found: dict[str, Floats] = {}
        for name, costs in errors.items():
            orders = {**doubts, "chance": chance, "oracle": costs}
            areas = {by: _area(costs, order, weights) for by, order in orders.items()}
            found |= {f"{name}_area_by_{by}": area for by, area in areas.items()}
            span = areas["chance"] - areas["oracle"]
            known = np.where(span > 1e-12, span, np.nan)
            found |= {
                f"{name}_gain_by_{by}": (areas["chance"] - areas[by]) / known for by in doubts
            }
        return found

    figures = _figures(table, statistic, resampling)
    undefined = {
        name: "all errors are equal"
        for name, interval in figures.values.items()
        if math.isnan(interval.value)
    }
    return Figures(figures.n, {}, figures.values, undefined)


def errors_by_band(
    table: pd.DataFrame, edges: Sequence[float], resampling: Resampling | None = None
) -> dict[str, Figures]:
    """Errors of the studies whose true value is in each band.

    Where a decision is made matters most: for an ejection fraction edges of 35 and 45 % set the
    band apart in which a cut-off of 40 % divides.

    Args:
        table: as the module says.
        edges: rising; a value on an edge belongs to the band above it.
        resampling: how intervals are made.

    Returns:
        By band ("below 35", "35 to 45", "from 45"): `mae`, `rmse`, `bias` (mean of value minus
        label), `mean_sd`, `coverage_95`; a band without a study has n = 0 and no figures.

    Raises:
        ValueError: as `uncertainty_figures`, and when the edges do not rise.
    """
    if not len(edges) or (np.diff(edges) <= 0).any():
        raise ValueError(f"Edges of bands rise, given {tuple(edges)}.")
    labels = _columns(table)[0]
    band = np.digitize(labels, edges)
    found = {}
    for number, name in enumerate(band_names(edges)):
        rows = table[band == number].reset_index(drop=True)
        if rows.empty:
            found[name] = Figures(0, {}, {}, {})
            continue
        found[name] = _figures(rows, _band_statistic(rows), resampling)
    return found


def band_names(edges: Sequence[float]) -> list[str]:
    """Names of the bands between edges, from the lowest up."""
    between = [f"{low:g} to {high:g}" for low, high in zip(edges, edges[1:], strict=False)]
    return [f"below {edges[0]:g}", *between, f"from {edges[-1]:g}"]


def feature_correlations(features: ArrayLike, values: ArrayLike) -> Floats:
    """Pearson correlation of each feature with a number, NaN for a feature that never changes.

    Args:
        features: (rows, D).
        values: (rows,).
    """
    table, target = np.asarray(features, dtype=float), np.asarray(values, dtype=float)
    x, y = table - table.mean(axis=0), target - target.mean()
    # A feature that differs by rounding alone is constant.
    scale = np.sqrt((x**2).sum(axis=0))
    constant = scale <= 1e-7 * np.abs(table).max(axis=0) * math.sqrt(len(table))
    product = np.where(constant, np.nan, scale) * math.sqrt(float((y**2).sum()))
    return np.asarray((x * y[:, None]).sum(axis=0) / np.where(product > 0, product, np.nan))


def _band_statistic(rows: pd.DataFrame) -> Statistic:
    labels, values, sds = _columns(rows)
    errors = values - labels
    columns = {
        "mae": np.abs(errors),
        "rmse": errors**2,
        "bias": errors,
        "mean_sd": sds,
        "coverage_95": (np.abs(errors / sds) <= float(stats.norm.ppf(0.975))).astype(float),
    }

    def statistic(weights: Floats) -> dict[str, Floats]:
        means = _means(columns, weights)
        return {**means, "rmse": np.sqrt(means["rmse"])}

    return statistic


def _kept_risk(errors: Floats, doubts: Floats) -> Floats:
    """Mean error of the rows up to each one, the least doubtful first; (rows,).

    The rows are in the order of their doubts. Within a tie each row counts with the tie's mean
    error, which is what an order by chance gives on average.
    """
    costs, starts, sizes = _ties(errors, doubts)
    means = np.add.reduceat(costs, starts) / sizes
    return np.asarray(np.cumsum(np.repeat(means, sizes)) / np.arange(1, len(costs) + 1))


def _area(errors: Floats, doubts: Floats, weights: Floats) -> Floats:
    """Mean of `_kept_risk` over all rows, of rows that are drawn several times; (resamples,).

    Copies of a row are ties. With K rows of summed error L kept before a tie of k rows of mean
    error m, the risks within it add up to sum_j (L + j m) / (K + j), j = 1..k, which is
    k m + (L - K m) (H(K + k) - H(K)) with harmonic numbers H.
    """
    order = np.argsort(doubts, kind="stable")
    costs, starts, _ = _ties(errors, doubts)
    drawn = weights[:, order]
    total = np.add.reduceat(drawn, starts, axis=1)
    spent = np.add.reduceat(drawn * costs, starts, axis=1)
    means = np.divide(spent, total, out=np.zeros_like(spent), where=total > 0)
    kept, lost = np.cumsum(total, axis=1) - total, np.cumsum(spent, axis=1) - spent
    harmonic = special.digamma(kept + total + 1) - special.digamma(kept + 1)
    sums = spent + (lost - kept * means) * harmonic
    return np.asarray(sums.sum(axis=1) / weights.sum(axis=1))


def _ties(errors: Floats, doubts: Floats) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Errors in the order of their doubts, where ties of equal doubts begin, and their sizes."""
    order = np.argsort(doubts, kind="stable")
    starts = np.append(0, np.flatnonzero(np.diff(doubts[order])) + 1)
    return errors[order], starts, np.diff(np.append(starts, len(order)))


def _ranks(doubts: Floats) -> NDArray[np.int64]:
    """1 for the largest; equal ones share the better rank."""
    return np.asarray(stats.rankdata(-doubts, method="min"), np.int64)


def _means(columns: dict[str, Floats], weights: Floats) -> dict[str, Floats]:
    means = weights @ np.stack(list(columns.values()), axis=1) / weights.sum(axis=1)[:, None]
    return dict(zip(columns, means.T, strict=True))


def _figures(table: pd.DataFrame, statistic: Statistic, resampling: Resampling | None) -> Figures:
    how = resampling or Resampling()
    intervals = patient_bootstrap(
        table,
        statistic,
        num_resamples=how.num_resamples,
        seed=how.seed,
        confidence=how.confidence,
    )
    return Figures(len(table), {}, intervals, {})


def _columns(table: pd.DataFrame) -> tuple[Floats, Floats, Floats]:
    """Labels, values and standard deviations of a checked table, (rows,) each."""
    missing = [name for name in COLUMNS if name not in table]
    if missing or table.empty:
        raise ValueError(
            f"A table of predictive distributions has rows with the columns {', '.join(COLUMNS)}; "
            f"missing: {', '.join(missing) or 'rows'}."
        )
    labels, values, sds = (table[name].to_numpy(float) for name in COLUMNS[1:])
    for name, column in zip(COLUMNS[1:], (labels, values, sds), strict=True):
        if not np.isfinite(column).all():
            row = int(np.flatnonzero(~np.isfinite(column))[0])
            raise ValueError(f"{name} is no number in row {row + 1}.")
    if not (sds > 0).all():
        raise ValueError(f"sd is not above 0 in row {int(np.flatnonzero(sds <= 0)[0]) + 1}.")
    return labels, values, sds
