"""Tidying label maps, and the figures of an outline beside a plain implementation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from cardioray.data.label_maps import ATRIUM, CAVITY, MYOCARDIUM, NO_CLEAN_UP, CleanUp
from cardioray.evaluation.segmentation import mask_figures

LABELS = arrays(
    np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.integers(0, 3)
)
MASKS = arrays(bool, (9, 11))
SPACING = st.tuples(st.floats(0.2, 2), st.floats(0.2, 2))


def heart() -> NDArray[np.uint8]:
    """A cavity in its wall, with an atrium below."""
    labels = np.zeros((60, 50), np.uint8)
    labels[5:40, 10:40] = MYOCARDIUM
    labels[10:40, 15:35] = CAVITY
    labels[40:55, 14:36] = ATRIUM
    return labels


def test_a_tidy_map_stays_as_it_is() -> None:
    assert np.array_equal(CleanUp().apply(heart()), heart())


@given(LABELS)
def test_without_any_step_nothing_changes(labels: NDArray[np.uint8]) -> None:
    assert np.array_equal(NO_CLEAN_UP.apply(labels), labels)


@given(LABELS)
def test_tidying_makes_up_no_structure(labels: NDArray[np.uint8]) -> None:
    before = labels.copy()
    tidied = CleanUp().apply(labels)
    assert np.array_equal(labels, before)
    assert set(np.unique(tidied)) <= {0, *np.unique(labels)}
    assert (tidied == CAVITY).any() == (labels == CAVITY).any()


def test_each_step_does_its_own() -> None:
    labels = heart()
    labels[2:4, 44:48] = CAVITY  # an island
    labels[20:23, 20:23] = 0  # a hole
    labels[25:28, 25:28] = MYOCARDIUM  # a hole that another structure fills
    labels[30:32, 10:15] = 0  # a gap in the wall
    only_largest = dataclasses.replace(NO_CLEAN_UP, largest=True).apply(labels)
    assert not only_largest[2:4, 44:48].any()
    assert (only_largest[20:23, 20:23] == 0).all()
    only_fill = dataclasses.replace(NO_CLEAN_UP, fill=True).apply(labels)
    assert (only_fill[20:28, 20:28] == CAVITY).all()
    assert (only_fill[2:4, 44:48] == CAVITY).all()
    only_closing = dataclasses.replace(NO_CLEAN_UP, closing_px=3).apply(labels)
    assert (only_closing[30:32, 11:15] == MYOCARDIUM).all()
    assert np.array_equal(CleanUp().apply(labels), heart())


@given(MASKS, MASKS, SPACING)
def test_every_figure_equals_its_definition(
    predicted: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: tuple[float, float]
) -> None:
    figures = mask_figures(predicted, reference, spacing)
    both, either = (predicted & reference).sum(), (predicted | reference).sum()
    if not either:
        assert np.isnan(list(figures.to_dict().values())).all()
        return
    assert figures.dice == pytest.approx(2 * both / (both + either))
    assert figures.iou == pytest.approx(both / either)
    if not (predicted.any() and reference.any()):
        assert np.isnan([figures.hd95_mm, figures.msd_mm]).all()
        return
    distances = cdist(surface(predicted) * spacing, surface(reference) * spacing)
    there, back = distances.min(axis=1), distances.min(axis=0)
    assert figures.hd95_mm == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert figures.msd_mm == pytest.approx((there.sum() + back.sum()) / sum(distances.shape))


def surface(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Pixels with one of four neighbours outside the mask, or outside the picture."""
    height, width = mask.shape
    found = []
    for row, column in np.argwhere(mask):
        around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        if any(not (0 <= r < height and 0 <= c < width) or not mask[r, c] for r, c in around):
            found.append((row, column))
    return np.array(found)


def test_masks_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        mask_figures(np.ones((2, 3), bool), np.ones((3, 2), bool), (1, 1))
