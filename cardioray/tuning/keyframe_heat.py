"""How much of the heat of key frames lies in cavity, wall and mitral plane, where known."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cardioray.clinical.simpson import measure_cavity
from cardioray.data.keyframe_layouts import OUTLINED
from cardioray.data.label_maps import CAVITY, MYOCARDIUM, STRUCTURES
from cardioray.data.reading import take_rows
from cardioray.data.segment import IMAGE, MASK
from cardioray.data.shards import ShardSet
from cardioray.evaluation.intervals import Floats, Statistic, patient_bootstrap
from cardioray.explain.feature_cam import heat_shares
from cardioray.models.backbones import NoFeatureMap
from cardioray.tasks.keyframe_ef import KeyframeEfTask
from cardioray.tasks.keyframe_heat import frame_heat
from cardioray.training.settings import RunConfig
from cardioray.tuning.keyframes import Fitted, Studies

log = logging.getLogger(__name__)

_IDS = ("frame", "study_id", "patient_id")


def heat_in_structures(
    run: RunConfig, shards: ShardSet, studies: Studies, fitted: Mapping[str, Fitted]
) -> pd.DataFrame:
    """Shares of heat of all test frames that have a label map; see `heat_shares`.

    Beside each share stands that of the area of the picture: heat that knows nothing of the heart
    has the same. What a label map lacks has neither.

    Returns:
        One row a frame; empty where no frame has a label map, or the backbone no feature map, of
        which the log says why.
    """
    task = run.task
    assert isinstance(task, KeyframeEfTask)
    samples = shards.samples.set_index("row")
    if OUTLINED not in samples:
        return pd.DataFrame(columns=list(_IDS))
    found = []
    for own in fitted.values():
        model = task.build_model()
        model.load_state_dict(dict(own.weights))
        model.eval()
        for frame in own.fit.heads.record.frames:
            rows = studies.rows[frame][own.test]
            rows = np.sort(rows[rows >= 0])
            rows = rows[samples.loc[rows, OUTLINED].to_numpy(bool)]
            if not len(rows):
                continue
            arrays = take_rows(shards, rows, (IMAGE, MASK))
            for row, picture, labels in zip(rows, arrays[IMAGE], arrays[MASK], strict=True):
                try:
                    heat = frame_heat(model, own.fit.heads, frame, picture)
                except NoFeatureMap as error:
                    log.warning("There are no shares of heat: %s", error)
                    return pd.DataFrame(columns=list(_IDS))
                shares = heat_shares(heat, labels, STRUCTURES, _plane(labels))
                # As in `heat_shares`, what is not there was not outlined.
                areas = {
                    f"area_{name}": float((labels == number).mean() or np.nan)
                    for name, number in STRUCTURES.items()
                }
                about = samples.loc[row]
                found.append(
                    {
                        "frame": frame,
                        "study_id": about["study_id"],
                        "patient_id": about["patient_id"],
                        **shares,
                        **areas,
                    }
                )
    return pd.DataFrame(found)


def summary(shares: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Means of the shares by frame, with patient-bootstrap intervals; one row a frame and place."""
    rows = []
    for frame, own in shares.groupby("frame", sort=False):
        for name in (column for column in own if column not in _IDS):
            known = own[own[name].notna()]
            if known.empty:
                continue
            values = known[name].to_numpy(float)
            interval = patient_bootstrap(known, _mean_of(values), seed=seed)["mean"]
            rows.append({"frame": frame, "place": name, "frames": len(known), **vars(interval)})
    return pd.DataFrame(rows)


def _mean_of(values: Floats) -> Statistic:
    return lambda weights: {"mean": weights @ values / weights.sum(axis=1)}


def _plane(labels: NDArray[np.uint8]) -> Floats | None:
    """Both ends of the mitral plane in px of the stored picture; None where no wall shows it."""
    cavity = labels == CAVITY
    if not cavity.any() or not (labels == MYOCARDIUM).any():
        return None
    return measure_cavity(cavity, (1.0, 1.0), labels == MYOCARDIUM).annulus
