"""What features look like: their principal components, and how each goes with the number."""

from __future__ import annotations

import numpy as np

from cardioray import storage
from cardioray.evaluation import plots
from cardioray.evaluation.uncertainty import feature_correlations
from cardioray.models.feature_space import FeatureSpace, FeatureSpaceConfig
from cardioray.tasks.keyframe_ef import EF_TARGET
from cardioray.tuning.keyframes import Fitted, Studies


def write_feature_plots(studies: Studies, fitted: Fitted, out: str) -> None:
    """Draw the features of every frame, by one backbone: `plots/pca_ED.png` and its like.

    Args:
        studies: all of them.
        fitted: of one division of the patients; its backbone may have learned from some.
        out: folder or prefix.
    """
    everyone = np.ones(len(studies.table), bool)
    labels = studies.table["label"].to_numpy(float)
    for frame, values in studies.features(fitted.features, everyone).items():
        there = np.isfinite(values).all(axis=1)
        own, numbers = values[there], labels[there]
        if len(own) < 3:
            continue
        space = FeatureSpace.fit(own, FeatureSpaceConfig(components=2))
        name, unit = f"{EF_TARGET.name}, {frame}", EF_TARGET.unit
        figures = {
            "pca": plots.feature_map_plot(
                space.apply(own), numbers, name, unit, space.explained.tolist()
            ),
            "correlations": plots.feature_correlation_plot(
                feature_correlations(own, numbers), name
            ),
        }
        for kind, figure in figures.items():
            place = storage.join(out, "plots", f"{kind}_{frame}.png")
            storage.write_bytes(place, plots.png_bytes(figure))
