"""Phantom ECGs: what the heart does, the leads show; what the chart says is as common as wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from cardioray.data.ecg_leads import LAYOUTS, LEADS, EcgSignals
from cardioray.data.ecg_paper import PaperStyle, draw_page
from cardioray.phantoms.ecg import HOSPITAL_TABLE, draw_ecg, write_ecgs
from cardioray.phantoms.ecg_config import ECG_PRESETS, EcgPhantomConfig
from cardioray.phantoms.ecg_heart import TERRITORIES, Heart, record
from cardioray.phantoms.ecg_patient import FLAGS, draw_ecg_patient
from cardioray.phantoms.ecg_scan import photograph, scan

SMALL = EcgPhantomConfig(px_per_mm=3.0)


def quiet(heart: Heart) -> EcgSignals:
    """Ten seconds without noise, the same beats for every heart with the same rhythm."""
    return record(heart, np.random.default_rng(4), noise_mv=0.0, wander_mv=0.0)


def lead(signals: EcgSignals, name: str) -> NDArray[np.float32]:
    shown: NDArray[np.float32] = signals.millivolts[LEADS.index(name)]
    return shown


class TestHeart:
    @pytest.mark.parametrize(
        "heart", [Heart(), Heart(lbbb=True), Heart(fibrillation=True, ectopic_share=0.3)]
    )
    def test_leads_obey_einthoven_and_goldberger(self, heart: Heart) -> None:
        signals = quiet(heart)
        np.testing.assert_allclose(
            lead(signals, "I") + lead(signals, "III"), lead(signals, "II"), atol=1e-5
        )
        augmented = sum(lead(signals, name) for name in ("aVR", "aVL", "aVF"))
        np.testing.assert_allclose(augmented, 0, atol=1e-5)

    @pytest.mark.parametrize(("artery", "above"), [("LAD", "V2"), ("RCA", "III"), ("LCX", "I")])
    def test_a_scar_takes_r_waves_from_the_leads_above_it(self, artery: str, above: str) -> None:
        heights = []
        for size in (0.0, 0.4, 0.8):
            scar = {part: size * most for part, most in TERRITORIES[artery].items()}
            heights.append(lead(quiet(Heart(scar=scar)), above).max())
        assert heights[0] > heights[1] > heights[2]

    def test_a_bundle_branch_block_is_wide_and_turns_the_t_wave(self) -> None:
        assert Heart().qrs_ms < 100
        assert Heart(lbbb=True).qrs_ms > 130
        assert Heart(qrs_scale=1.3).qrs_ms == pytest.approx(1.3 * Heart().qrs_ms)
        # In V6 the T wave goes with the QRS complex, and against it in a block.
        assert lead(quiet(Heart()), "V6").min() > -0.25
        assert lead(quiet(Heart(lbbb=True)), "V6").min() < -0.25


class TestPatients:
    def test_findings_are_as_common_as_wanted_and_a_chart_leans_towards_scar(self) -> None:
        config = EcgPhantomConfig()
        patients = [draw_ecg_patient(0, index, config) for index in range(1500)]
        scar = np.array([patient.scar for patient in patients])
        lvef = np.array([patient.lvef_percent for patient in patients])
        assert scar.mean() == pytest.approx(0.27, abs=0.03)
        assert (lvef <= 50).mean() == pytest.approx(0.19, abs=0.035)
        assert (lvef[scar] <= 50).mean() > 2 * (lvef[~scar] <= 50).mean()
        female = np.array([patient.flags["female"] for patient in patients])
        assert scar[female].mean() < 0.7 * scar[~female].mean()
        widths = np.array([patient.heart.qrs_ms for patient in patients])
        assert widths[lvef <= 40].mean() > widths[lvef > 55].mean() + 15

    def test_without_effect_the_heart_does_not_know_the_label(self) -> None:
        config = replace(EcgPhantomConfig(), effect=0.0)
        weak = [draw_ecg_patient(0, index, config) for index in range(300)]
        assert all(not any(patient.heart.scar.values()) for patient in weak)
        low = [p.heart.lateral_strain for p in weak if p.lvef_percent <= 45]
        high = [p.heart.lateral_strain for p in weak if p.lvef_percent > 55]
        assert np.mean(low) == pytest.approx(np.mean(high), abs=0.06)


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_page_shows_every_lead_where_it_says(layout: str) -> None:
    signals = quiet(Heart())
    style = PaperStyle(px_per_mm=4, grid="none", names=False, pulse=False, separators=False)
    page = draw_page(signals, LAYOUTS.get(layout), style)
    dark = page.picture.min(axis=2) < 128
    for name in LEADS:
        box = page.boxes[name]
        inside = dark[:, round(box.left) + 1 : round(box.right) - 1]
        found = np.flatnonzero(inside.any(axis=0))
        assert len(found) > 0.95 * inside.shape[1]
    # The first R wave of II is where the signal says, at its height.
    shown = signals.cut(LAYOUTS.get(layout)).millivolts[LEADS.index("II")]
    sign = LAYOUTS.get(layout).sign("II")
    peak = int(np.argmax(sign * shown))
    box = page.boxes["II"]
    across = round(box.left + peak / signals.rate_hz * 25 * 4)
    height = round(box.baseline - sign * float(shown[peak]) * 10 * 4)
    assert dark[height - 2 : height + 3, across - 2 : across + 3].any()


def test_signals_that_are_too_short_for_a_page_are_refused() -> None:
    signals = EcgSignals(np.zeros((12, 1000), np.float32), 500.0, np.zeros(12))
    with pytest.raises(ValueError, match=r"2\.0 s long; a page shows 10 s"):
        draw_page(signals, LAYOUTS.get("3x4"))


@pytest.mark.parametrize("degrade", [scan, photograph])
def test_a_page_comes_out_of_a_scanner_or_camera_changed_and_alike_each_time(
    degrade: Callable[..., NDArray[np.uint8]],
) -> None:
    patient = draw_ecg_patient(0, 1, SMALL)
    page, _ = draw_ecg(patient, 0, SMALL, new=True)
    once, again = (degrade(page.picture, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert once.dtype == np.uint8
    assert once.shape[0] >= page.picture.shape[0]
    other = degrade(page.picture, np.random.default_rng(6))
    assert np.abs(once.astype(int) - other).mean() > 1


@pytest.mark.ray
@pytest.mark.slow
def test_a_data_set_is_written_once_in_the_layout_of_the_hospital(
    ray_local: None, tmp_path: Path
) -> None:
    out = tmp_path / "ecgs"
    manifest = write_ecgs(str(out), 24, seed=3, config=SMALL)
    table = pd.read_csv(out / HOSPITAL_TABLE)
    assert len(manifest) == len(table) == 24
    assert set(manifest["ecg_format"]) == {"old", "new"}
    for row in manifest.to_dict("records"):
        picture = Image.open(out / row["source"])
        assert (row["year"] >= 2017) == (row["ecg_format"] == "new")
        assert picture.mode == "RGB"
    assert list(table["scar_cad"]) == list(manifest["scar"])
    assert 0 < manifest[list(FLAGS)].isna().mean().mean() < 0.25
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")}
    again = write_ecgs(str(out), 24, seed=3, config=SMALL)
    pd.testing.assert_frame_equal(again, manifest)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")} == before
    with pytest.raises(ValueError, match="another phantom data set"):
        write_ecgs(str(out), 24, seed=3, config=ECG_PRESETS.get("hard"))
