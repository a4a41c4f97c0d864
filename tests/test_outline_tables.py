"""What is measured of outlines: units where they are known, and none where they are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_segments as tiny
from numpy.typing import NDArray

from cardioray.data.label_maps import CAVITY, STRUCTURES
from cardioray.evaluation.segmentation import mask_figures, pack_labels, unpack_labels
from cardioray.tasks import make_task
from cardioray.tasks.base import ScoredRows, Tables, encode_labels
from cardioray.tasks.lv_seg import ef_of_references
from cardioray.tasks.outline_tables import measure_frame, pixel_doubts, view_doubts
from cardioray.training.single import require_patients, require_scored

NOT_KNOWN = (np.nan, np.nan)
HEARTS = {"ED": (82.0, 46.0), "ES": (72.0, 34.0)}
VIEWS = {"A4C": 1.0, "A2C": 0.9}


def shrunk(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A prediction that is a little too small, with a speck that tidying would remove."""
    found = np.roll(labels, 1, axis=0)
    found[:2, :2] = CAVITY
    return found


def scored(spacing: dict[str, tuple[float, float]], **labels: float) -> Tables:
    """The tables of one study, with pixels of these sizes in each view."""
    rows, samples = [], []
    for view, share in VIEWS.items():
        for phase, (length, width) in HEARTS.items():
            reference = tiny.heart(length, width * share)
            known = None if np.isnan(spacing[view][0]) else spacing[view]
            raw = shrunk(reference)
            tidied = raw.copy()
            tidied[:2, :2] = 0
            rows.append(measure_frame(raw, tidied, reference, known, tuple(STRUCTURES)))
            samples.append(
                {
                    **{"sample_id": f"p_{view}_{phase}", "patient_id": "p", "study_id": "p"},
                    **{"source": "f", "row": len(rows), "frame": "0", "view": view, "phase": phase},
                    **{"height_px": tiny.SHAPE[0], "width_px": tiny.SHAPE[1]},
                    **dict(
                        zip(("spacing_row_mm", "spacing_column_mm"), spacing[view], strict=True)
                    ),
                }
            )
    measures: dict[str, NDArray[Any]] = {
        name: np.array([row[name] for row in rows], object if name == "predicted_png" else float)
        for name in rows[0]
    }
    task = make_task("lv-seg")
    known = {t.name: np.full(4, labels.get(t.name, np.nan), np.float32) for t in task.targets}
    return task.tables(
        ScoredRows(
            samples=pd.DataFrame(samples),
            split="test",
            labels=known,
            measures=measures,
            one_window={},
        )
    )


def scores(tables: Tables) -> dict[str, float]:
    table = tables.predictions
    assert table["head"].is_unique
    return dict(zip(table["head"], table["score"], strict=True))


def both(spacing: tuple[float, float]) -> dict[str, tuple[float, float]]:
    return dict.fromkeys(VIEWS, spacing)


def test_where_pixels_have_a_size_all_is_in_mm_and_ml() -> None:
    small, large = (scored(both((s, s)), edv=100.0, ef=40.0) for s in (1.0, 2.0))
    first, second = scores(small), scores(large)
    assert set(first) == {"ef", "ef_of_reference", "edv", "edv_of_reference", "esv"}
    assert second["ef"] == pytest.approx(first["ef"])
    assert second["edv"] == pytest.approx(8 * first["edv"])
    for name, power in (
        *(("hd95_mm_cavity", 1), ("msd_mm_atrium", 1), ("raw_hd95_mm_cavity", 1)),
        *(("predicted_length_mm", 1), ("reference_area_mm2", 2), ("dice_cavity", 0)),
    ):
        one, two = (tables.parts[name].to_numpy() for tables in (small, large))
        assert np.isfinite(one).all()
        assert two == pytest.approx(2**power * one)
    widths = np.stack(large.parts["predicted_widths_mm"])
    assert widths == pytest.approx(2 * np.stack(small.parts["predicted_widths_mm"]))
    assert ef_of_references(large.predictions) == {"p": pytest.approx(first["ef_of_reference"])}


def test_where_they_have_none_there_is_an_ejection_fraction_and_no_length() -> None:
    known, unknown = scored(both((1.0, 1.0))), scored(both(NOT_KNOWN), edv=100.0, esv=60.0)
    assert set(scores(unknown)) == {"ef"}
    assert scores(unknown)["ef"] == pytest.approx(scores(known)["ef"])
    parts = unknown.parts
    measured = [name for name in parts if "_mm" in name]
    assert len(measured) == 2 * 3 + 2 * 2 * 3 + 2
    for name in measured:
        assert np.isnan(np.stack(parts[name])).all(), name
    assert parts["dice_cavity"].tolist() == pytest.approx(known.parts["dice_cavity"].tolist())


def test_views_with_and_without_a_size_are_not_mixed() -> None:
    mixed = {"A4C": (1.5, 1.5), "A2C": NOT_KNOWN}
    found, whole = scored(mixed), scored(both((1.5, 1.5)))
    assert scores(found)["edv"] > 0
    assert scores(found)["edv"] != pytest.approx(scores(whole)["edv"], rel=0.02)
    lengths = found.parts.set_index("view")["predicted_length_mm"]
    assert lengths["A4C"].notna().all()
    assert lengths["A2C"].isna().all()


def test_distances_need_the_size_of_a_pixel_and_overlap_does_not() -> None:
    first, second = tiny.heart(80, 44) == CAVITY, tiny.heart(80, 40) == CAVITY
    known, unknown = (mask_figures(first, second, spacing) for spacing in ((1.0, 2.0), None))
    assert (unknown.dice, unknown.iou) == (known.dice, known.iou)
    assert np.isnan([unknown.hd95_mm, unknown.msd_mm]).all()
    assert known.hd95_mm > 0


def test_label_maps_are_packed_and_unpacked() -> None:
    labels = tiny.heart(80, 44)
    packed = pack_labels(labels)
    assert np.array_equal(unpack_labels(packed), labels)
    assert len(packed) < labels.size / 10
    parts = scored(both((1.0, 1.0))).parts
    drawn = unpack_labels(parts["predicted_png"].iloc[0])
    assert drawn.shape == tiny.SHAPE
    assert (drawn == CAVITY).any()
    assert drawn[0, 0] == 0  # tidied


def doubts(**spacing: tuple[float, float]) -> list[str]:
    """Of three frames of each view."""
    views = [view for view in spacing for _ in range(3)]
    return pixel_doubts(views, [spacing[view] for view in views])


def test_what_pixel_sizes_leave_open_is_said() -> None:
    assert doubts(A4C=(0.3, 0.3), A2C=(0.5, 0.5)) == []
    [text] = doubts(A4C=(0.3, 0.3), A2C=(0.0, 0.3))
    assert "3 of 6 frames do not state the size of a pixel" in text
    [text] = doubts(A4C=(0.31, 0.31), A2C=(0.71, 0.87))
    assert "0.82 in A2C and 1.00 in A4C" in text
    assert "resampled" in text
    columns = {"view": ["A4C", "A2C"], "spacing_row_mm": [0.3, np.nan]}
    samples = pd.DataFrame({**columns, "spacing_column_mm": 0.3})
    [text] = make_task("lv-seg").warnings(samples)
    assert "1 of 2 frames" in text


def test_a_division_that_could_not_be_scored_is_refused() -> None:
    table = pd.DataFrame(
        {
            "patient_id": ["a", "a", "b", "b"],
            "study_id": ["a", "a", "b", "b"],
            "view": ["A4C", "A4C", "A4C", "A2C"],
            "phase": ["ED", "ES", "ED", "ES"],
            "spacing_row_mm": [np.nan] * 2 + [0.3] * 2,
            "spacing_column_mm": [0.3] * 4,
        }
    )
    task, volumes = make_task("lv-seg", {"volumes": False}), make_task("lv-seg")
    of_a = pd.Series(["test", "test", "train", "train"])
    of_b = pd.Series(["train", "train", "test", "test"])
    task.require(table, of_a)
    with pytest.raises(ValueError, match="no test study has both phases of a view, so that 'ef'"):
        task.require(table, of_b)
    with pytest.raises(ValueError, match="and states the size of a pixel, so that 'edv'"):
        volumes.require(table, of_a)
    volumes.require(table.assign(spacing_row_mm=0.3), of_a)


def frames(patients: int, spacing: float = 0.3) -> pd.DataFrame:
    """Both phases of one view of each patient."""
    names = np.repeat([f"p{number}" for number in range(patients)], 2)
    return pd.DataFrame(
        {
            "patient_id": names,
            "study_id": names,
            "view": "A4C",
            "phase": ["ED", "ES"] * patients,
            "spacing_row_mm": spacing,
            "spacing_column_mm": spacing,
        }
    )


@pytest.mark.parametrize(
    ("fitted_on", "advice"),
    [
        ("validation", "split.cross_fit_folds=2"),
        ("calibration", "no calibration rows"),
        (None, "more patients; operating.calibration=none"),
    ],
)
def test_too_few_patients_to_calibrate_on_are_refused_before_training(
    fitted_on: str | None, advice: str
) -> None:
    few, enough = divided(3, fitted_on), divided(4, fitted_on)
    few_frames, enough_frames = frames(len(few) // 2), frames(len(enough) // 2)
    for settings in ({}, {"volumes": False}):
        with pytest.raises(ValueError, match=f"at least 4 .* there are 3. .*{advice}"):
            require_patients(make_task("lv-seg", settings), few_frames, few, fitted_on)
    require_patients(make_task("lv-seg"), enough_frames, enough, fitted_on)
    plain = make_task("lv-seg", {"operating": {"calibration": "none"}})
    require_patients(plain, few_frames, few, fitted_on)
    # A study without one of the phases cannot be measured, and does not count.
    torn = enough_frames.assign(phase=[*enough_frames["phase"][:-5], "ED", *["ED", "ES"] * 2])
    with pytest.raises(ValueError, match="there are 3. "):
        require_patients(make_task("lv-seg"), torn, enough, fitted_on)


def test_too_few_patients_for_figures_of_folds_are_refused() -> None:
    require_scored(make_task("lv-seg"), frames(5))
    with pytest.raises(ValueError, match="'ef' out of fold need at least 5 .* there are 4"):
        require_scored(make_task("lv-seg"), frames(4))
    some = frames(5).assign(spacing_row_mm=[0.3] * 8 + [np.nan] * 2)
    with pytest.raises(ValueError, match="figures of 'edv'"):
        require_scored(make_task("lv-seg"), some)


def divided(patients: int, fitted_on: str | None) -> pd.Series[str]:
    """The split of both frames of so many patients to calibrate on, of others and of test ones."""
    others = ["train"] if fitted_on else []
    names = [*others, *[fitted_on or "train"] * patients, "test", "test"]
    return pd.Series(np.repeat(names, 2))


def test_where_no_pixel_has_a_size_there_are_no_volumes_to_ask_for() -> None:
    task = make_task("lv-seg")
    assert [target.name for target in task.targets] == ["ef", "edv", "esv"]
    assert task.suited(frames(2)) is task
    suited = task.suited(frames(2, np.nan))
    assert [target.name for target in suited.targets] == ["ef"]
    suited.require(frames(2, np.nan), pd.Series(["train", "train", "test", "test"]))


def test_numbers_that_nobody_states_are_missing() -> None:
    task = make_task("lv-seg")
    labels = encode_labels(task, pd.DataFrame({"ef": [50.0, 40.0], "edv_ml": [100.0, np.nan]}))
    assert labels["ef"].tolist() == [50, 40]
    assert np.isnan(labels["edv"]).tolist() == [False, True]
    assert np.isnan(labels["esv"]).all()


def test_numbers_say_which_views_they_rest_on() -> None:
    found = scored({"A4C": (1.5, 1.5), "A2C": NOT_KNOWN}).predictions.set_index("head")
    assert found["measured_views"][["ef", "edv"]].tolist() == ["A4C", "A4C"]
    whole = scored(both((1.5, 1.5))).predictions.set_index("head")
    assert whole["measured_views"]["ef"] == "A4C+A2C"


def test_a_calibration_of_other_views_is_told() -> None:
    two = {"A4C+A2C": 9, "A2C": 1}
    assert view_doubts(two, ("A4C", "A2C")) == []
    assert view_doubts({}, ("A4C",)) == []
    [text] = view_doubts(two, ("A4C",))
    assert "A4C and A2C (9 of 10), A2C (1 of 10); this one is measured in A4C, and" in text
    assert view_doubts(two, ("A2C",))
    assert view_doubts({"A4C": 5}, ("A4C", "A2C"))
