"""Kernels and components of Gaussian processes, searched by Ray Tune over patient folds."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import tune
from ray.tune import RunConfig as TuneRunConfig
from ray.tune import TuneConfig, Tuner

from cardioray import config, storage
from cardioray.models.gaussian_process import GaussianProcessConfig, score_candidate
from cardioray.models.kernels import KERNELS
from cardioray.scratch import process_folder

log = logging.getLogger(__name__)

SCORES = "kernels.json"
# By which the best is chosen: it rewards an SD that is as large as the errors, and no larger.
CRITERION = "mean_log_density"
# Shares of the variance that principal components keep.
_COMPONENTS = (0.8, 0.95, 0.5, 0.9, 0.7, 0.99)


@dataclass(frozen=True, eq=False)
class Job:
    """Rows that a Gaussian process is to be chosen for.

    Attributes:
        features: (N, D), finite.
        labels: the number, (N,).
        patients: whose rows they are, (N,).
    """

    features: NDArray[np.float64]
    labels: NDArray[np.float64]
    patients: NDArray[np.object_]

    @property
    def digest(self) -> str:
        """A hash of the rows."""
        arrays = (self.features, self.labels)
        parts = [value.astype(np.float32).tobytes().hex() for value in arrays]
        return config.digest([*parts, self.patients.astype(str).tolist()])


def candidates(base: GaussianProcessConfig, count: int) -> list[GaussianProcessConfig]:
    """The first `count` of all kernels with several numbers of components, the given one first."""
    found = [base]
    for components, kernel in itertools.product(_COMPONENTS, KERNELS):
        changed = config.replace(base, [f"kernel={kernel}", f"space.components={components}"])
        if changed not in found:
            found.append(changed)
    return found[: max(1, count)]


def search_kernels(
    jobs: Mapping[str, Job], base: GaussianProcessConfig, count: int, out: str
) -> dict[str, GaussianProcessConfig]:
    """For each job, the candidate that tells held-out patients best.

    Every candidate is one trial of Ray Tune and is scored on all jobs by folds of their patients.
    The scores are kept in `<out>/kernels.json`; the same call with the same rows reads them.

    Args:
        jobs: rows by name; those of one job never see another's.
        base: settings that the search starts from.
        count: how many candidates are tried; 0 takes the given settings.
        out: folder or prefix.
    """
    tried = candidates(base, count)
    if count == 0 or len(tried) == 1:
        return dict.fromkeys(jobs, base)
    request = config.digest(
        [[config.to_dict(each) for each in tried], {name: job.digest for name, job in jobs.items()}]
    )
    place = storage.join(out, SCORES)
    scores: dict[str, list[float]] = {}
    if storage.exists(place):
        record = json.loads(storage.read_bytes(place))
        if record["request"] == request:
            scores = record["scores"]
    if not scores:
        scores = _run(jobs, tried)
        record = {
            "request": request,
            "criterion": CRITERION,
            "candidates": [config.to_dict(each) for each in tried],
            "scores": scores,
        }
        storage.write_bytes(place, json.dumps(record, indent=2).encode())
    return {name: tried[int(np.argmax(scores[name]))] for name in jobs}


def _run(jobs: Mapping[str, Job], tried: list[GaussianProcessConfig]) -> dict[str, list[float]]:
    """The score of every candidate on every job."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune's own answer to Ctrl-C is to return, as though the trials had ended.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    trainable = tune.with_resources(
        tune.with_parameters(_score, jobs=dict(jobs), tried=tried), {"cpu": 1}
    )
    tuner = Tuner(
        trainable,
        param_space={"candidate": tune.grid_search(list(range(len(tried))))},
        tune_config=TuneConfig(reuse_actors=True),
        run_config=TuneRunConfig(
            name="kernels", storage_path=str(process_folder() / "kernel_search"), verbose=0
        ),
    )
    results = tuner.fit()
    if results.errors:
        raise results.errors[0]
    scores = {name: [0.0] * len(tried) for name in jobs}
    for result in results:
        assert result.config is not None
        assert result.metrics is not None
        for name in jobs:
            scores[name][result.config["candidate"]] = result.metrics["scores"][name]
    return scores


def _score(
    trial: Mapping[str, Any], *, jobs: Mapping[str, Job], tried: list[GaussianProcessConfig]
) -> None:
    """One trial: a candidate on all jobs."""
    # One start tells candidates apart; the one that wins is fitted from all of them.
    settings = dataclasses.replace(tried[trial["candidate"]], restarts=0)
    found = {
        name: score_candidate(job.features, job.labels, job.patients, settings)[CRITERION]
        for name, job in jobs.items()
    }
    tune.report({"scores": found})
