"""Hyperparameters of a Gaussian process, by its marginal likelihood.

GPyTorch has the likelihood of an exact process and Titsias' bound on that of a sparse one, with
their gradients; SciPy's L-BFGS-B climbs them from several starts.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from scipy.spatial import distance
from torch import Tensor

from cardioray.config import Failed
from cardioray.models.kernels import KERNELS, Hyperparameters

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # of torch.jit, which a dependency still uses
    import gpytorch
    from linear_operator.utils.errors import NanError, NotPSDError

Floats = NDArray[np.float64]

# Rows by which the typical distance of inputs is measured.
_MEASURED = 1000


@dataclass(frozen=True)
class _Range:
    """Of a hyperparameter: the first start, where others are drawn from, and its bounds."""

    first: float
    drawn: tuple[float, float]
    bounds: tuple[float, float]


# Targets have variance 1, and inputs a typical distance of 1.
_RANGES = {
    "raw_lengthscale": _Range(1.0, (0.1, 10.0), (1e-2, 1e3)),
    "raw_alpha": _Range(1.0, (0.1, 10.0), (1e-2, 1e3)),
    "raw_outputscale": _Range(1.0, (0.3, 3.0), (1e-3, 1e2)),
    "raw_noise": _Range(0.3, (0.01, 1.0), (1e-4, 1e1)),
}


class _Process(gpytorch.models.ExactGP):
    def __init__(self, inputs: Tensor, targets: Tensor, likelihood: Any, kernel: Any) -> None:
        super().__init__(inputs, targets, likelihood)
        self.mean_module = gpytorch.means.ZeroMean()
        self.covar_module = kernel

    def forward(self, inputs: Tensor) -> Any:
        return gpytorch.distributions.MultivariateNormal(
            self.mean_module(inputs), self.covar_module(inputs)
        )


def fit_hyperparameters(
    kernel: str,
    inputs: Floats,
    targets: Floats,
    inducing: Floats | None,
    *,
    ard: bool,
    restarts: int,
    iterations: int,
    seed: int,
) -> Hyperparameters:
    """Hyperparameters of the largest marginal likelihood, or bound on it, that a start leads to.

    Args:
        kernel: name.
        inputs: (N, K).
        targets: standardised, (N,).
        inducing: points (M, K) of a sparse process, which stay where they are; None for an exact
            one.
        ard: whether each input has a length scale of its own.
        restarts: starts from drawn hyperparameters, after a first one.
        iterations: at most, for each start.
        seed: of the draws.

    Raises:
        Failed: when no start comes to a finite likelihood.
    """
    unit = _typical_distance(inputs)
    points = None if inducing is None else inducing / unit
    model = make_model(kernel, ard, inputs / unit, targets, points)
    rng = np.random.default_rng(seed)
    starts = [_start(model, None), *(_start(model, rng) for _ in range(restarts))]
    ends = [_climb(model, start, iterations) for start in starts]
    best, value = max(ends, key=lambda end: end[1])
    if not np.isfinite(value):
        raise Failed(
            "The likelihood of the Gaussian process is not finite from any start; the features "
            "may be alike for every picture. Take fewer components or another kernel."
        )
    _set(model, best)
    fitted = _scaled_kernel(model)
    return Hyperparameters(
        kernel=kernel,
        length_scales=unit * fitted.base_kernel.lengthscale.detach().numpy().ravel(),
        mixture=float(getattr(fitted.base_kernel, "alpha", 1.0)),
        variance=float(fitted.outputscale),
        noise=float(model.likelihood.noise),
    )


def make_model(
    kernel: str, ard: bool, inputs: Floats, targets: Floats, inducing: Floats | None
) -> Any:
    """GPyTorch's model, in double precision, whose parameters are logarithms.

    Args:
        kernel: name.
        ard: whether each input has a length scale of its own.
        inputs: (N, K).
        targets: (N,).
        inducing: (M, K), or None for an exact process.
    """
    info = KERNELS.get(kernel)
    arguments = {"ard_num_dims": inputs.shape[1] if ard else None, "lengthscale_constraint": _log()}
    if kernel == "rational_quadratic":
        arguments["alpha_constraint"] = _log()
    base = getattr(gpytorch.kernels, info.library)(**info.arguments, **arguments)
    covariance = gpytorch.kernels.ScaleKernel(base, outputscale_constraint=_log())
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=_log())
    if inducing is not None:
        points = torch.from_numpy(inducing.copy())
        covariance = gpytorch.kernels.InducingPointKernel(covariance, points, likelihood)
        covariance.inducing_points.requires_grad_(False)
    rows, truth = torch.from_numpy(inputs.copy()), torch.from_numpy(targets.copy())
    return _Process(rows, truth, likelihood, covariance).double()


def log_likelihood(model: Any) -> Tensor:
    """Log marginal likelihood of the model's own rows, or the bound on it; with its graph."""
    size = len(model.train_targets)
    marginal = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    # Iterative solvers are for sizes that are not taken here; they would draw random vectors.
    with gpytorch.settings.max_cholesky_size(size + 1):
        found: Tensor = marginal(model(*model.train_inputs), model.train_targets) * size
    return found


def _climb(model: Any, start: Floats, iterations: int) -> tuple[Floats, float]:
    """Logarithms of the hyperparameters at a local maximum, and the likelihood there."""
    model.train()
    parameters = list(_free(model).values())
    bounds = np.log(
        [_RANGES[name].bounds for name, p in _free(model).items() for _ in range(p.numel())]
    )
    worst = 1e6 * len(model.train_targets)  # beyond any likelihood within the bounds

    def loss(logarithms: Floats) -> tuple[float, Floats]:
        _set(model, logarithms)
        for parameter in parameters:
            parameter.grad = None
        try:
            value = -log_likelihood(model)
            value.backward()
        except (NotPSDError, NanError):  # a step too far: the line search takes a shorter one
            return worst, np.zeros_like(logarithms)
        slope = [p.grad.numpy().ravel() for p in parameters if p.grad is not None]
        return float(value), np.concatenate(slope)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of jitter that GPyTorch adds to covariances
        found = optimize.minimize(
            loss,
            np.clip(start, *bounds.T),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": iterations},
        )
    value = -float(found.fun)
    return np.asarray(found.x), value if -value < worst else -np.inf


def _start(model: Any, rng: np.random.Generator | None) -> Floats:
    """Logarithms to begin at: the first ones, or drawn between their ranges."""
    parts = []
    for name, parameter in _free(model).items():
        known = _RANGES[name]
        drawn = np.log(known.first) if rng is None else rng.uniform(*np.log(known.drawn))
        parts.append(np.full(parameter.numel(), drawn))
    return np.concatenate(parts)


def _free(model: Any) -> dict[str, Tensor]:
    """Parameters that are fitted, by the last part of their names."""
    return {
        name.rpartition(".")[2]: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _set(model: Any, logarithms: Floats) -> None:
    begin = 0
    for parameter in _free(model).values():
        part = torch.from_numpy(logarithms[begin : begin + parameter.numel()].copy())
        parameter.data = part.reshape(parameter.shape)
        begin += parameter.numel()


def _scaled_kernel(model: Any) -> Any:
    """The kernel with its constant, of an exact or a sparse process."""
    kernel = model.covar_module
    return kernel.base_kernel if hasattr(kernel, "inducing_points") else kernel


def _log() -> Any:
    """A constraint under which the parameter that is optimised is the logarithm."""
    return gpytorch.constraints.Positive(transform=torch.exp, inv_transform=torch.log)


def _typical_distance(inputs: Floats) -> float:
    """Median distance between rows; at least the smallest that differs from 0."""
    step = max(1, len(inputs) // _MEASURED)
    apart = distance.pdist(inputs[::step])
    different = apart[apart > 0]
    if not len(different):
        raise Failed("The inputs of the Gaussian process are all alike; keep more components.")
    return float(np.median(different))
