"""Phantom frames with label maps: CAMUS's layout, and volumes that the label maps give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cardioray.clinical.simpson import measure_cavity
from cardioray.clinical.volumes import volumes_of
from cardioray.data.camus import read_camus
from cardioray.data.label_maps import ATRIUM, CAVITY, MYOCARDIUM
from cardioray.data.nifti import EchoVolume, read_volume
from cardioray.data.segment_layouts import read_segment_manifest
from cardioray.phantoms.camus import write_camus
from cardioray.phantoms.echo_config import ECHO_PRESETS
from cardioray.tasks.lv_seg import EF_TARGET

PATIENTS = 10

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Path:
    out = tmp_path_factory.mktemp("camus") / "frames"
    write_camus(str(out), PATIENTS, seed=3, config=ECHO_PRESETS.get("clear"))
    return out


def read(path: Path) -> EchoVolume:
    return read_volume(path.read_bytes())


def test_it_is_read_as_camus_is(folder: Path) -> None:
    manifest = read_camus(str(folder))
    assert len(manifest) == 4 * PATIENTS
    assert manifest.warnings == ()
    written = read_segment_manifest(str(folder), [EF_TARGET])
    assert written.table["phantom"].all()
    assert written.table["ef"].between(10, 80).all()


def test_the_sequence_begins_and_ends_with_the_frames(folder: Path) -> None:
    for patient in ("patient0001", "patient0002"):
        for view in ("2CH", "4CH"):
            for suffix in ("", "_gt"):
                stem = folder / patient / f"{patient}_{view}"
                whole = read(stem.with_name(f"{stem.name}_half_sequence{suffix}.nii.gz"))
                for phase, frame in (("ED", 0), ("ES", -1)):
                    one = read(stem.with_name(f"{stem.name}_{phase}{suffix}.nii.gz"))
                    assert np.array_equal(one.frames[0], whole.frames[frame])
                    assert one.spacing_mm == whole.spacing_mm
                assert len(whole.frames) > len(one.frames) == 1


def test_discs_of_true_outlines_give_the_true_ejection_fraction(folder: Path) -> None:
    manifest = read_camus(str(folder))
    errors = []
    for patient, rows in manifest.table.groupby("patient_id"):
        cavities = {}
        for row in rows.itertuples():
            volume = read(folder / row.mask)
            labels = volume.frames[0]
            assert volume.spacing_mm is not None
            cavity = measure_cavity(labels == CAVITY, volume.spacing_mm, labels == MYOCARDIUM)
            assert cavity.annulus is not None, f"{patient}: no mitral plane"
            cavities[row.view, row.phase] = cavity
        found = volumes_of(cavities)
        assert found is not None
        errors.append(found.ef_percent - rows["ef"].iloc[0])
    assert np.abs(errors).mean() < 1.0
    assert np.abs(np.mean(errors)) < 1.0


def test_walls_are_bright_and_blood_is_dark(folder: Path) -> None:
    for file in sorted(folder.glob("*/*4CH_ED.nii.gz")):
        picture = read(file).frames[0].astype(float)
        labels = read(file.with_name(file.name.replace("_ED", "_ED_gt"))).frames[0]
        assert set(np.unique(labels)) == {0, CAVITY, MYOCARDIUM, ATRIUM}
        assert picture[labels == MYOCARDIUM].mean() > 1.5 * picture[labels == CAVITY].mean()


def test_the_same_request_writes_nothing_again(folder: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.nii.gz")}
    write_camus(str(folder), PATIENTS, seed=3, config=ECHO_PRESETS.get("clear"))
    assert before == {file: file.stat().st_mtime_ns for file in folder.rglob("*.nii.gz")}
    with pytest.raises(ValueError, match="differs in seed"):
        write_camus(str(folder), PATIENTS, seed=4, config=ECHO_PRESETS.get("clear"))
