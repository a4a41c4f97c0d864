"""Missing numbers of a chart, filled in by what the known ones say, inside the network.

Fitted once on training patients by scikit-learn's `IterativeImputer` (a Bayesian ridge regression
of every feature on all others, in rounds), and kept as arrays that a network carries, so that an
answer fills in as training did and nothing is unpickled.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

ROUNDS = 10
# What stands for a number that is not known in a chart of bytes.
MISSING = 255


@dataclass(frozen=True, eq=False)
class Imputation:
    """What fills in missing features.

    Attributes:
        start: what a feature is taken for before the first round, (F,).
        weights: of every feature on the others in each round, (ROUNDS, F, F), 0 on the diagonal.
        offsets: beside them, (ROUNDS, F).
        order: which feature is filled in when, (F,).
        low: smallest value of each feature, (F,).
        high: largest value of each feature, (F,).
        cut_offs: a filled in flag is 1 above this, NaN for a number that stays as it is, (F,).
    """

    start: NDArray[np.float64]
    weights: NDArray[np.float64]
    offsets: NDArray[np.float64]
    order: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    cut_offs: NDArray[np.float64]


def fit_imputation(table: NDArray[np.floating], flags: NDArray[np.bool_], seed: int) -> Imputation:
    """Learn from training patients how features go together.

    The cut-off of a flag is such that it is as common among those who were filled in as among
    those of whom it is known.

    Args:
        table: features of training patients, NaN where not known, (N, F).
        flags: which features are 0 or 1, (F,).
        seed: of ties.

    Raises:
        ValueError: when a feature is known of nobody.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    known = np.isfinite(table)
    if not known.any(axis=0).all():
        missing = np.flatnonzero(~known.any(axis=0)).tolist()
        raise ValueError(f"feature(s) {missing} are known of no training patient.")
    low, high = np.nanmin(table, axis=0), np.nanmax(table, axis=0)
    fitted = IterativeImputer(
        max_iter=ROUNDS,
        tol=0,  # all rounds, whenever the last one changed little
        min_value=low,
        max_value=high,
        random_state=seed,
        skip_complete=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ten rounds are what is asked for
        fitted.fit(table)
    width = table.shape[1]
    weights, offsets = np.zeros((ROUNDS, width, width)), np.zeros((ROUNDS, width))
    order = np.zeros(width, np.int64)
    for number, step in enumerate(fitted.imputation_sequence_):
        round_number, place = divmod(number, width)
        order[place] = step.feat_idx
        weights[round_number, step.feat_idx, step.neighbor_feat_idx] = step.estimator.coef_
        offsets[round_number, step.feat_idx] = step.estimator.intercept_
    found = Imputation(
        start=fitted.initial_imputer_.statistics_,
        weights=weights,
        offsets=offsets,
        order=order,
        low=low,
        high=high,
        cut_offs=np.full(width, np.nan),
    )
    filler = Imputer(width)
    filler.load(found)
    # Everybody's flag as it would be guessed: at which value are as many above it as have it?
    cut_offs = np.full(width, np.nan)
    for index in np.flatnonzero(flags):
        hidden = np.where(np.arange(width) == index, np.nan, table)
        guessed = filler(torch.tensor(hidden, dtype=torch.float32))[:, index].numpy()
        cut_offs[index] = _dividing(guessed.astype(float), float(np.nanmean(table[:, index])))
    return Imputation(**{**vars(found), "cut_offs": cut_offs})


def _dividing(guessed: NDArray[np.float64], share: float) -> float:
    """A value above which about a share of the guesses lie, and next to none of them.

    Many charts are alike, and so are their guesses: a cut-off that is one of these would leave the
    last bit of a sum to decide.
    """
    values, counts = np.unique(np.round(guessed, 5), return_counts=True)
    edges = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2, [values[-1] + 1]])
    above = 1 - np.concatenate([[0], np.cumsum(counts)]) / len(guessed)
    return float(edges[np.abs(above - share).argmin()])


class Imputer(nn.Module):
    """Fills in what is missing, (B, F) with NaN to (B, F) without.

    Its arrays are buffers: they travel with the weights.
    """

    start: Tensor
    weights: Tensor
    offsets: Tensor
    low: Tensor
    high: Tensor
    cut_offs: Tensor
    is_flag: Tensor
    order: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("start", torch.zeros(width))
        self.register_buffer("weights", torch.zeros(ROUNDS, width, width))
        self.register_buffer("offsets", torch.zeros(ROUNDS, width))
        self.register_buffer("low", torch.zeros(width))
        self.register_buffer("high", torch.zeros(width))
        self.register_buffer("cut_offs", torch.zeros(width))
        self.register_buffer("is_flag", torch.zeros(width))
        # One row for each place in the order, with 1 at the feature that it is the turn of.
        self.register_buffer("order", torch.eye(width))

    def load(self, fitted: Imputation) -> None:
        """Take what was learned from training patients."""
        for name in ("start", "weights", "offsets", "low", "high"):
            getattr(self, name).copy_(torch.as_tensor(getattr(fitted, name)))
        cut_offs = torch.as_tensor(fitted.cut_offs)
        self.is_flag.copy_(torch.isfinite(cut_offs).float())
        self.cut_offs.copy_(torch.nan_to_num(cut_offs))
        self.order.copy_(torch.eye(len(fitted.start))[torch.as_tensor(fitted.order)])

    def forward(self, table: Tensor, known: Tensor | None = None) -> Tensor:
        """Everything that is not known replaced; what is known stays as it is.

        Args:
            table: (B, F).
            known: which entries are, (B, F); by default those that are not NaN. Exported networks
                say it, since not every runtime knows NaN.
        """
        missing = torch.isnan(table) if known is None else torch.logical_not(known)
        values = torch.where(missing, self.start, table)
        gaps = missing.to(values.dtype)
        for number in range(ROUNDS):
            for place in range(len(self.start)):
                # In double precision, which autocast leaves alone. Products that are summed by hand
                # come out wrong in OpenVINO.
                weights, offsets = self.weights[number].double(), self.offsets[number].double()
                guess = nn.functional.linear(values.double(), weights, offsets).to(values.dtype)
                guess = torch.minimum(torch.maximum(guess, self.low), self.high)
                mine = gaps * self.order[place]
                values = values + mine * (guess - values)
        above = (values > self.cut_offs).to(values.dtype)
        judged = gaps * self.is_flag
        return values + judged * (above - values)
