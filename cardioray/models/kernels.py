"""Stationary kernels of Gaussian processes, by name, in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import distance

from cardioray.registry import Registry

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class KernelInfo:
    """A stationary kernel.

    Attributes:
        correlation: of two inputs, given their squared distance in length scales and, for the one
            kernel that has it, the mixture parameter.
        library: name of GPyTorch's class, with its arguments.
        arguments: see `library`.
    """

    correlation: Callable[[Floats, float], Floats]
    library: str
    arguments: Mapping[str, float]


def _rbf(squared: Floats, mixture: float) -> Floats:
    return np.asarray(np.exp(-squared / 2))


def _matern32(squared: Floats, mixture: float) -> Floats:
    far = np.sqrt(3 * squared)
    return np.asarray((1 + far) * np.exp(-far))


def _matern52(squared: Floats, mixture: float) -> Floats:
    far = np.sqrt(5 * squared)
    return np.asarray((1 + far + far**2 / 3) * np.exp(-far))


def _rational_quadratic(squared: Floats, mixture: float) -> Floats:
    return np.asarray((1 + squared / (2 * mixture)) ** -mixture)


# Formulas: Rasmussen and Williams, equations 4.9, 4.17 and 4.19.
KERNELS: Registry[KernelInfo] = Registry("kernel")
KERNELS.add("rbf", KernelInfo(_rbf, "RBFKernel", {}))
KERNELS.add("matern32", KernelInfo(_matern32, "MaternKernel", {"nu": 1.5}))
KERNELS.add("matern52", KernelInfo(_matern52, "MaternKernel", {"nu": 2.5}))
KERNELS.add("rational_quadratic", KernelInfo(_rational_quadratic, "RQKernel", {}))


@dataclass(frozen=True, eq=False)
class Hyperparameters:
    """What the likelihood decides, in units of the standardised target and of the inputs.

    Attributes:
        kernel: name.
        length_scales: (K,), or (1,) for one of all inputs.
        mixture: of length scales, in the rational quadratic kernel; 1 elsewhere.
        variance: of the process.
        noise: variance of the white noise.
    """

    kernel: str
    length_scales: Floats
    mixture: float
    variance: float
    noise: float

    def covariance(self, first: Floats, second: Floats) -> Floats:
        """Covariance of the process at inputs (A, K) and (B, K), (A, B); without noise."""
        scaled = (first / self.length_scales, second / self.length_scales)
        squared = distance.cdist(*scaled, "sqeuclidean")
        return self.variance * KERNELS.get(self.kernel).correlation(squared, self.mixture)
