"""The beating ventricle and the echo phantom: what is known of them by construction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cardioray.data.echo_layouts import read_tracings, traced_area
from cardioray.data.video import read_video
from cardioray.phantoms.echo import CMR_MANIFEST, FILE_LIST, TRACINGS, write_echoes
from cardioray.phantoms.echo_config import ECHO_PRESETS
from cardioray.phantoms.echo_patient import VIEWS, draw_echo_patient, draw_rhythm
from cardioray.phantoms.echo_scene import render_view
from cardioray.phantoms.ventricle import (
    TRUNCATION,
    Beat,
    Territory,
    Ventricle,
    contraction_at,
    ef_percent,
)
from cardioray.tasks import make_task

PLAIN = Ventricle(long_axis_cm=8.5, radius_cm=(2.4, 2.6), wall_cm=0.9, radial_shortening=0.35)
INFARCT = Territory(phi=2.0, phi_width=0.8, theta=0.7, theta_width=0.7, loss=0.9)
SMALL = replace(ECHO_PRESETS.get("clear"), image_size_px=64, seconds=(1.0, 1.2))


def closed_form_ml(ventricle: Ventricle, contraction: float) -> float:
    """Volume of a truncated spheroid with an elliptical short axis: pi a b L (...)."""
    semi = ventricle.long_semi_axis_cm(contraction)
    shrunk = 1 - ventricle.radial_shortening * contraction
    a, b = (radius * shrunk for radius in ventricle.radius_cm)
    return np.pi * a * b * semi * ((1 + TRUNCATION) - (1 + TRUNCATION**3) / 3)


@pytest.mark.parametrize("contraction", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("radius", [(2.4, 2.6), (2.0, 3.1), (3.0, 3.0)])
def test_volume_is_the_closed_form_where_there_is_one(
    contraction: float, radius: tuple[float, float]
) -> None:
    ventricle = replace(PLAIN, radius_cm=radius)
    assert ventricle.volume_ml(contraction) == pytest.approx(
        closed_form_ml(ventricle, contraction), rel=1e-4
    )


def test_volume_of_an_infarct_agrees_with_counting_points() -> None:
    ventricle = replace(PLAIN, territories=(INFARCT,), scarred=(True,))
    rng = np.random.default_rng(0)
    semi = ventricle.long_semi_axis_cm(1.0)
    points = rng.uniform([-3, -3, -TRUNCATION * semi], [3, 3, semi], (400_000, 3))
    rho = np.linalg.norm(points, axis=1)
    theta, phi = np.arccos(points[:, 2] / rho), np.arctan2(points[:, 1], points[:, 0])
    inside = (rho < ventricle.cavity(theta, phi, 1.0)).mean()
    counted = inside * 36 * semi * (1 + TRUNCATION)
    assert ventricle.volume_ml(1.0) == pytest.approx(counted, rel=0.01)


def test_ef_falls_with_an_infarct_and_rises_with_contraction() -> None:
    infarcted = replace(PLAIN, territories=(INFARCT,), scarred=(False,))
    assert ef_percent(infarcted) < ef_percent(PLAIN) - 3
    values = [ef_percent(replace(PLAIN, radial_shortening=s)) for s in (0.1, 0.2, 0.3, 0.4)]
    assert values == sorted(values)
    assert ef_percent(PLAIN, 0.5) < ef_percent(PLAIN)


def test_muscle_moves_less_where_the_infarct_is() -> None:
    infarcted = replace(PLAIN, territories=(INFARCT,), scarred=(True,))
    theta = np.array([INFARCT.theta])
    there = infarcted.shortening(theta, np.array([INFARCT.phi]))[0]
    opposite = infarcted.shortening(theta, np.array([INFARCT.phi + np.pi]))[0]
    assert there == pytest.approx(0.1 * opposite)
    assert infarcted.wall(theta, np.array([INFARCT.phi]))[0] < PLAIN.wall(theta, theta)[0]


def test_the_cycle_begins_and_ends_at_end_diastole() -> None:
    beats = (Beat(0.0, 0.8, 1.0), Beat(0.8, 1.0, 0.9))
    times = np.linspace(0, 0.8, 200, endpoint=False)
    course = [contraction_at(beats, t) for t in times]
    assert course[0] == pytest.approx(0, abs=1e-6)
    assert max(course) == pytest.approx(1, abs=1e-3)
    assert times[int(np.argmax(course))] == pytest.approx(beats[0].end_systole_s, abs=0.01)
    assert contraction_at(beats, 0.7999) == pytest.approx(0, abs=0.01)
    assert max(contraction_at(beats, t) for t in np.linspace(0.8, 1.7, 200)) <= 0.9 + 1e-9


@pytest.mark.parametrize("preset", ECHO_PRESETS)
def test_patients_are_drawn_over_the_whole_range_and_findings_follow(preset: str) -> None:
    patients = [draw_echo_patient(3, index, ECHO_PRESETS.get(preset)) for index in range(60)]
    ef = np.array([patient.ef_percent for patient in patients])
    abnormal = np.array([patient.findings.wall_motion_abnormality for patient in patients])
    assert 48 < ef.mean() < 62
    assert ef.min() < 35
    assert ef[abnormal].mean() < ef[~abnormal].mean() - 5
    for patient in patients[:5]:
        diastole, systole = patient.ventricle.volume_ml(0.0), patient.ventricle.volume_ml(1.0)
        assert patient.ef_percent == pytest.approx(100 * (diastole - systole) / diastole, rel=1e-6)


@pytest.mark.parametrize("irregular", [False, True])
def test_a_clip_holds_the_whole_beat_that_is_traced(irregular: bool) -> None:
    for seed in range(20):
        rhythm = draw_rhythm(np.random.default_rng(seed), SMALL, irregular=irregular)
        beat = rhythm.beats[rhythm.traced]
        assert beat.strength == 1
        assert beat.start_s >= 0 or irregular
        assert rhythm.frame_of(beat.end_systole_s) < rhythm.num_frames
        assert np.all(np.diff([b.start_s for b in rhythm.beats]) > 0)


@pytest.mark.parametrize("view", VIEWS)
def test_the_cavity_is_dark_inside_its_outline_and_smaller_in_systole(view: str) -> None:
    patient = draw_echo_patient(5, 0, SMALL)
    clip = render_view(patient, view, SMALL)
    assert clip.frames.dtype == np.uint8
    assert clip.frames.shape[1:] == (64, 64)
    areas = {}
    for phase, (frame, axis, chords) in clip.outlines.items():
        middle = (chords[:, 0] + chords[:, 1]) / 2
        beyond = chords[4:12, 1] + 0.12 * (chords[4:12, 1] - middle[4:12])
        picture = clip.frames[frame].astype(float)
        inside = [picture[round(y), round(x)] for x, y in middle[4:14]]
        wall = [picture[min(round(y), 63), min(round(x), 63)] for x, y in beyond]
        assert np.mean(inside) < 0.5 * np.mean(wall)
        width = np.linalg.norm(chords[:, 1] - chords[:, 0], axis=1)
        areas[phase] = width.mean() * np.linalg.norm(axis[1] - axis[0])
    assert areas["ES"] < areas["ED"]


def test_speckle_moves_with_the_wall() -> None:
    patient = draw_echo_patient(5, 0, SMALL)
    clip = render_view(patient, "A4C", SMALL)
    first, second, last = (clip.frames[i].astype(float).ravel() for i in (0, 1, 12))
    near, far = np.corrcoef(first, second)[0, 1], np.corrcoef(first, last)[0, 1]
    assert near > far > 0.3


def test_the_same_request_gives_the_same_pixels() -> None:
    frames = [render_view(draw_echo_patient(7, 3, SMALL), "A2C", SMALL).frames for _ in range(2)]
    assert np.array_equal(*frames)
    other = render_view(draw_echo_patient(8, 3, SMALL), "A2C", SMALL).frames
    assert not np.array_equal(frames[0][:5], other[:5])


@pytest.mark.ray
def test_a_data_set_has_the_layouts_of_its_field(ray_local: None, tmp_path: Path) -> None:
    out = tmp_path / "echoes"
    manifest = write_echoes(str(out), 6, seed=2, config=SMALL)
    assert len(manifest) == 18
    assert manifest.groupby("patient_id")["view"].apply(list).tolist() == [list(VIEWS)] * 6
    listed = pd.read_csv(out / FILE_LIST)
    columns = "FileName EF ESV EDV FrameHeight FrameWidth FPS NumberOfFrames Split"
    assert list(listed) == columns.split()
    assert not listed["FileName"].str.endswith(".avi").any()
    assert set(listed["Split"]) <= {"TRAIN", "VAL", "TEST"}
    recomputed = 100 * (listed["EDV"] - listed["ESV"]) / listed["EDV"]
    assert np.allclose(recomputed, listed["EF"], atol=0.01)

    for task in ("echo-ef", "echo-cmr"):
        read = make_task(task).read_manifest(str(out), None).table
        assert len(read) == {"echo-ef": 6, "echo-cmr": 18}[task]
        assert read["phantom"].all()  # of which answers warn
    lines = read_tracings(str(out / TRACINGS))
    assert set(lines["name"]) == set(listed["FileName"])
    for name, own in lines.groupby("name"):
        row = manifest[manifest["sample_id"] == name].iloc[0]
        areas = {frame: traced_area(part) for frame, part in own.groupby("frame")}
        assert max(areas, key=areas.get) == row["ed_frame"]
        assert min(areas, key=areas.get) == row["es_frame"]
        assert (own.groupby("frame").size() == 21).all()

    cmr = pd.read_csv(out / CMR_MANIFEST)
    assert {"Study_Unique_ID", "Video_Unique_ID", "frames", "Wall_Motion", "Scar"} <= set(cmr)
    row = manifest.iloc[0]
    frames, fps = read_video((out / row["source"]).read_bytes())
    assert (len(frames), fps) == (row["frames"], row["fps"])
    assert write_echoes(str(out), 6, seed=2, config=SMALL).equals(manifest)
    with pytest.raises(ValueError, match="another phantom data set"):
        write_echoes(str(out), 7, seed=2, config=SMALL)
