import io
import json

import numpy as np
import pytest
from PIL import Image

from cardioray import config, storage
from cardioray.clinical.pressure_drop import fractional_flow_reserve
from cardioray.phantoms.angiogram import (
    PRESETS,
    AngiogramPhantomConfig,
    draw_patient,
    render_frames,
    write_angiograms,
)
from cardioray.phantoms.angiogram_patient import draw_truth
from cardioray.phantoms.coronary_tree import STEP_MM, lesion_profile
from cardioray.phantoms.fluoroscopy import add_lumen

SMALL = config.replace(PRESETS.get("clear"), ["image_size_px=48", "frames_per_patient=2"])


def _with_stenosis(percent: float, preset: str = "clear") -> AngiogramPhantomConfig:
    return config.replace(
        PRESETS.get(preset),
        [f"percent_diameter_stenosis=[{percent}, {percent}]", "excluded_ffr=null"],
    )


# The picture


def test_a_straight_tube_shows_the_chord_of_a_cylinder():
    spacing_mm, radius_mm = 0.5, 4.0
    chord = np.zeros((41, 41))
    rows = np.linspace(-10, 50, 200)
    points = np.stack([np.full(200, 20.0), rows, np.zeros(200)], axis=1)
    add_lumen(chord, points, np.full(200, radius_mm), np.ones(200), spacing_mm)
    offset_mm = (np.arange(41) - 20) * spacing_mm
    expected = 2 * np.sqrt(np.clip(radius_mm**2 - offset_mm**2, 0, None))
    np.testing.assert_allclose(chord[20], expected, atol=0.05)


def test_a_tube_thinner_than_a_pixel_keeps_its_cross_section():
    chord = np.zeros((21, 21))
    points = np.stack([np.full(100, 10.3), np.linspace(-5, 25, 100), np.zeros(100)], axis=1)
    add_lumen(chord, points, np.full(100, 0.3), np.ones(100), 1.0)
    assert chord[10].sum() == pytest.approx(np.pi * 0.3**2, rel=0.25)


def test_undiluted_contrast_is_darker_and_unfilled_vessels_are_not_seen():
    points = np.stack([np.full(100, 10.0), np.linspace(-5, 25, 100), np.zeros(100)], axis=1)
    pictures = []
    for density in (0.0, 0.5, 1.0):
        chord = np.zeros((21, 21))
        add_lumen(chord, points, np.full(100, 3.0), np.full(100, density), 1.0)
        pictures.append(chord.sum())
    assert pictures[0] == 0
    assert pictures[2] == pytest.approx(2 * pictures[1])


@pytest.mark.parametrize("preset", PRESETS)
def test_vessels_are_dark_at_the_centre_line(preset):
    settings = PRESETS.get(preset)
    differences = []
    for index in range(6):
        patient = draw_patient(index, 1, settings)
        frame = settings.frames_per_patient - 1
        picture = render_frames(patient, settings)[frame].astype(float)
        line = patient.centerline_px(frame).round().astype(int)
        inside = ((line > 8) & (line < settings.image_size_px - 8)).all(axis=1)
        normal_px = round(4.0 / patient.view.spacing_mm)
        for x, y in line[inside]:
            ring = picture[
                max(y - normal_px, 0) : y + normal_px + 1, max(x - normal_px, 0) : x + normal_px + 1
            ]
            differences.append(np.median(ring) - picture[y, x])
    assert np.mean(np.array(differences) > 0) > 0.85


def test_the_narrowing_is_where_the_truth_says_and_as_deep():
    settings = _with_stenosis(70.0)
    patient = draw_patient(3, 5, settings)
    lad = patient.tree.lad
    radius_mm = lad.radius_mm[: int(0.6 * len(lad.radius_mm))]
    narrowest = int(np.argmin(radius_mm))
    throat = np.flatnonzero(radius_mm < 1.1 * radius_mm.min())
    assert throat.min() < patient.tree.throat_index < throat.max()
    assert np.ptp(throat) * STEP_MM == pytest.approx(0.65 * patient.lesion_length_mm, rel=0.2)
    healthy_mm = patient.reference_diameter_mm / 2
    assert radius_mm[narrowest] == pytest.approx(0.3 * healthy_mm, rel=0.1)  # the vessel tapers
    assert np.abs(patient.throat_px(0) - settings.image_size_px / 2).max() < 30


@pytest.mark.parametrize("percent", [30, 45, 60, 80])
def test_the_drawn_lesion_resists_as_the_law_behind_its_ffr_says(percent):
    distance_mm = np.linspace(-10, 10, 4001)
    width = 1 - percent / 100 * lesion_profile(distance_mm, 20.0)
    poiseuille = ((1 - percent / 100) / width) ** 4  # loss per mm, over the throat's
    assert np.mean(poiseuille) == pytest.approx(0.83, rel=0.22)


def test_contrast_runs_down_the_vessel_from_frame_to_frame():
    settings = config.replace(
        PRESETS.get("standard"),
        ["first_fill=[0.1, 0.1]", "background=[0, 0]", "collimator_mm=0", "centring=0"],
    )
    reached = []
    patient = draw_patient(0, 0, settings)
    for number, picture in enumerate(render_frames(patient, settings).astype(float)):
        line = patient.centerline_px(number).round().astype(int)
        visible = ((line >= 0) & (line < settings.image_size_px)).all(axis=1)
        grey = picture[line[visible, 1], line[visible, 0]]
        reached.append((grey < np.median(picture) - 25).mean())
    assert (np.diff(reached) > 0).all()
    assert reached[0] < 0.4 < 0.7 < reached[-1]


# The truth


def test_ffr_and_label_follow_from_the_lesion():
    for index in range(20):
        patient = draw_patient(index, 2, PRESETS.get("standard"))
        expected = fractional_flow_reserve(
            percent_diameter_stenosis=patient.percent_diameter_stenosis,
            lesion_length_mm=patient.lesion_length_mm,
            reference_diameter_mm=patient.reference_diameter_mm,
            hyperaemic_flow_ml_s=patient.hyperaemic_flow_ml_s,
        )
        assert patient.ffr == pytest.approx(float(expected), abs=1e-4)
        assert patient.label == ("FFRL" if patient.ffr <= 0.80 else "FFRH")


@pytest.mark.parametrize("preset", PRESETS)
def test_classes_are_about_balanced_in_every_preset(preset):
    ffr = [draw_truth(index, 0, PRESETS.get(preset))[2] for index in range(600)]
    assert 0.35 < np.mean(np.array(ffr) <= 0.80) < 0.65


def test_excluded_ffr_leaves_the_range_empty_and_says_when_nobody_is_left():
    low, high = PRESETS.get("clear").excluded_ffr
    ffr = np.array([draw_truth(index, 0, PRESETS.get("clear"))[2] for index in range(300)])
    assert not ((ffr > low) & (ffr < high)).any()
    nobody = config.replace(PRESETS.get("clear"), ["excluded_ffr=[0.0, 1.0]"])
    with pytest.raises(ValueError, match="excludes every patient"):
        draw_patient(0, 0, nobody)


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_but_the_lesion_depends_on_its_severity(preset):
    mild, severe = (draw_patient(4, 9, _with_stenosis(percent, preset)) for percent in (35.0, 75.0))
    assert mild.label != severe.label
    np.testing.assert_array_equal(mild.view.axes, severe.view.axes)
    assert mild.view.centre_mm == severe.view.centre_mm
    assert mild.view.spacing_mm == severe.view.spacing_mm
    np.testing.assert_array_equal(mild.contraction, severe.contraction)
    np.testing.assert_array_equal(mild.shift_px, severe.shift_px)
    np.testing.assert_array_equal(mild.fill_mm, severe.fill_mm)
    for one, other in zip(mild.tree.vessels, severe.tree.vessels, strict=True):
        if one.name != "LAD":
            np.testing.assert_array_equal(one.points_mm, other.points_mm)
            np.testing.assert_array_equal(one.radius_mm, other.radius_mm)
    distance_mm = np.abs(mild.tree.lad.travel_mm - mild.tree.lad.travel_mm[mild.tree.throat_index])
    outside = distance_mm > mild.lesion_length_mm / 2
    np.testing.assert_array_equal(
        mild.tree.lad.radius_mm[outside], severe.tree.lad.radius_mm[outside]
    )


def test_pictures_differ_only_at_the_lesion_before_windowing():
    # The same nuisance and noise: away from the lesion a monotone grey scale is all that differs.
    mild_settings, severe_settings = _with_stenosis(35.0), _with_stenosis(75.0)
    mild, severe = draw_patient(4, 9, mild_settings), draw_patient(4, 9, severe_settings)
    first = render_frames(mild, mild_settings)[0].astype(float)
    second = render_frames(severe, severe_settings)[0].astype(float)
    rows, columns = np.indices(first.shape)
    x, y = mild.throat_px(0)
    far = np.hypot(columns - x, rows - y) * mild.view.spacing_mm > mild.lesion_length_mm / 2 + 2
    assert np.corrcoef(first[far], second[far])[0, 1] > 0.98
    assert np.corrcoef(first[~far], second[~far])[0, 1] < 0.95


# Determinism and files


def test_patients_are_the_same_in_any_order_and_differ_between_seeds():
    once = render_frames(draw_patient(7, 3, SMALL), SMALL)
    draw_patient(2, 3, SMALL)
    again = render_frames(draw_patient(7, 3, SMALL), SMALL)
    np.testing.assert_array_equal(once, again)
    other = render_frames(draw_patient(7, 4, SMALL), SMALL)
    assert (once != other).mean() > 0.5


def test_writes_the_same_files_whatever_the_number_of_processes(tmp_path):
    one = write_angiograms(str(tmp_path / "one"), 5, seed=1, config=SMALL, num_workers=1)
    two = write_angiograms(str(tmp_path / "two"), 5, seed=1, config=SMALL, num_workers=2)
    assert one.equals(two)
    for source in one["source"]:
        assert (tmp_path / "one" / source).read_bytes() == (tmp_path / "two" / source).read_bytes()


def test_manifest_tells_the_truth_about_every_frame(tmp_path):
    seen = []
    table = write_angiograms(
        str(tmp_path),
        3,
        seed=6,
        config=SMALL,
        num_workers=1,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert len(table) == 6
    assert table["sample_id"].is_unique
    assert table["patient_id"].nunique() == table["study_id"].nunique() == 3
    assert ((table["ffr"] <= 0.80) == (table["label"] == "FFRL")).all()
    assert set(table["preset"]) == {"clear"}
    assert set(table["seed"]) == {6}
    row = table.iloc[3]
    patient = draw_patient(1, 6, SMALL)
    with Image.open(tmp_path / row["source"]) as picture:
        assert (picture.mode, picture.size) == ("L", (48, 48))
        np.testing.assert_array_equal(np.asarray(picture), render_frames(patient, SMALL)[1])
    assert row["patient_id"] == patient.patient_id
    assert row["frame"] == 1
    assert row["percent_diameter_stenosis"] == pytest.approx(
        patient.percent_diameter_stenosis, abs=0.01
    )
    line = np.array(json.loads(row["centerline_px"]))
    np.testing.assert_allclose(line, patient.centerline_px(1), atol=0.06)


def test_folder_per_class_keeps_patients_whole_and_both_classes_in_both_splits(tmp_path):
    table = write_angiograms(
        str(tmp_path), 20, seed=0, config=SMALL, folder_per_class=True, num_workers=1
    )
    assert (table.groupby("patient_id")["split"].nunique() == 1).all()
    parts = table["source"].str.split("/", expand=True)
    assert (parts[0] == table["split"]).all()
    assert (parts[1] == table["label"]).all()
    assert set(zip(parts[0], parts[1], strict=True)) == {
        (split, label) for split in ("train", "test") for label in ("FFRH", "FFRL")
    }
    assert all((tmp_path / source).exists() for source in table["source"])


def test_the_same_request_does_nothing_and_another_is_refused(tmp_path):
    out = str(tmp_path / "set")
    first = write_angiograms(out, 2, seed=0, config=SMALL, num_workers=1)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*.png")}
    again = write_angiograms(out, 2, seed=0, config=SMALL, num_workers=1)
    assert first.equals(again)
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*.png")}
    with pytest.raises(ValueError, match=r"another phantom data set \(it differs in num_patients"):
        write_angiograms(out, 3, seed=0, config=SMALL, num_workers=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no phantom data set"):
        write_angiograms(str(tmp_path / "other"), 2, seed=0, config=SMALL, num_workers=1)


def test_a_foreign_request_file_is_no_phantom_data_set(tmp_path):
    for content in ("not JSON", '["request"]', '{"request": 1}'):
        (tmp_path / "request.json").write_text(content)
        with pytest.raises(ValueError, match="holds no phantom data set"):
            write_angiograms(str(tmp_path), 2, seed=0, config=SMALL, num_workers=1)


def test_writes_to_a_bucket_and_recognises_it(s3):
    out = f"{s3}/phantoms/"
    table = write_angiograms(out, 2, seed=0, config=SMALL, num_workers=1)
    picture = Image.open(io.BytesIO(storage.read_bytes(storage.join(out, table["source"][0]))))
    assert picture.size == (48, 48)
    calls = []
    again = write_angiograms(
        out, 2, seed=0, config=SMALL, num_workers=1, on_progress=lambda *done: calls.append(done)
    )
    assert again.equals(table)
    assert not calls


def test_a_killed_run_is_recognised_and_redone(tmp_path):
    out = str(tmp_path / "set")

    def die(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_angiograms(out, 3, seed=0, config=SMALL, num_workers=1, on_progress=die)
    assert not storage.exists(storage.join(out, "manifest.csv"))
    table = write_angiograms(out, 3, seed=0, config=SMALL, num_workers=1)
    assert len(table) == 6
    # A file lost later is noticed too.
    lost = tmp_path / "set" / table["source"].iloc[0]
    lost.unlink()
    write_angiograms(out, 3, seed=0, config=SMALL, num_workers=1)
    assert lost.exists()


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="Did you mean 'clear'.*Known: clear, hard, standard"):
        PRESETS.get("cleer")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("percent_diameter_stenosis=[80, 30]", "low, high"),
        ("percent_diameter_stenosis=[30, 99]", r"must lie in \[0, 95\)"),
        ("field_of_view_mm=[0, 20]", "field_of_view_mm must be positive"),
        ("image_size_px=4", "image_size_px"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        config.replace(PRESETS.get("standard"), [setting])
