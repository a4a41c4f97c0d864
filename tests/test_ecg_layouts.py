"""Tables of ECGs: names that columns have, and the hospital's table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cardioray.data.ecg_layouts import CHART, read_ecg_manifest
from cardioray.targets import BinaryTarget, EfCutOff

TARGETS = (
    BinaryTarget(name="scar", positive="scar", negative="no scar", label_column="scar"),
    EfCutOff(value=50).target("lvef", "lvef"),
)


def written(folder: Path, table: pd.DataFrame, name: str = "ecg.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / name, index=False)
    return folder


def hospital(**columns: object) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "run_num": [1, 1, 2, 1],
            "file_name": ["a", "b", "b", "c"],
            "lvef": [55, 40, 45, 61],
            "scar_cad": [0, 1, 1, 0],
            "age": [70, 61, 61, None],
            "female": [1, 0, 0, 1],
            "diabetes": ["yes", "no", "", "1"],
            "hypertension": [1, 1, 1, 0],
            "smoke": [0, 0, 0, 0],
            "dyslipidemia": [1, 0, 0, 1],
            "hn": ["p1", "p2", "p2", "p3"],
        }
        | columns
    )


def with_files(folder: Path, table: pd.DataFrame) -> Path:
    for row in table.to_dict("records"):
        place = folder / "2012" / "Jan"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{row['file_name']}_{row['run_num']}.jpg").write_bytes(b"x")
    return written(folder, table)


def test_the_table_of_a_hospital_names_files_labels_and_charts(tmp_path: Path) -> None:
    manifest = read_ecg_manifest(str(with_files(tmp_path, hospital())), TARGETS)
    table = manifest.table
    assert list(table["source"]) == [f"2012/Jan/{n}.jpg" for n in ("a_1", "b_1", "b_2", "c_1")]
    assert list(table["patient_id"]) == ["p1", "p2", "p2", "p3"]
    assert TARGETS[0].encode(table).tolist() == [0, 1, 1, 0]
    assert TARGETS[1].encode(table).tolist() == [0, 1, 1, 0]
    chart = table[list(CHART)].to_numpy(float)
    np.testing.assert_array_equal(
        chart,
        [
            [70, 1, 1, 1, 0, 1],
            [61, 0, 0, 1, 0, 0],
            [61, 0, np.nan, 1, 0, 0],
            [np.nan, 1, 1, 0, 0, 1],
        ],
    )


def test_rows_that_were_cut_wrongly_or_guessed_are_left_out_with_a_word(tmp_path: Path) -> None:
    table = hospital(new_cut=[0, 1, 0, 0], impute=[1, 0, 0, 0])
    place = str(with_files(tmp_path, table))
    manifest = read_ecg_manifest(place, TARGETS)
    assert len(manifest) == 3
    assert any("1 row(s) were cut wrongly (new_cut)" in text for text in manifest.warnings)
    assert len(read_ecg_manifest(place, TARGETS, drop_imputed=True)) == 2


def test_splits_are_those_of_the_table(tmp_path: Path) -> None:
    table = hospital(train_80_percent=[1, 0, 0, 0], develop_10_percent=[0, 1, 1, 0])
    manifest = read_ecg_manifest(str(with_files(tmp_path, table)), TARGETS)
    assert list(manifest.table["split"]) == ["train", "validation", "validation", "test"]


def test_a_manifest_of_ones_own_may_name_the_chart_as_it_likes(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "source": ["a.png", "b.png"],
            "patient_id": ["1", "2"],
            "scar": ["scar", "no scar"],
            "lvef": [40.0, 60.0],
            "Sex": ["F", "M"],
            "Diabetes": [0, 1],
        }
    )
    manifest = read_ecg_manifest(str(written(tmp_path, table, "manifest.csv")), TARGETS)
    assert manifest.table["female"].tolist() == [1, 0]
    assert manifest.table["dm"].tolist() == [0, 1]
    assert manifest.table[["age", "ht", "smoke", "dlp"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"age": [70, 61, 61, 170]}, r"row 4: age='170.*' is no age in years"),
        ({"smoke": [0, "often", 0, 0]}, r"row 2: smoke='often' is neither 0 or no nor 1 or yes"),
        ({"file_name": ["a", "b", "b", "missing"]}, r"1 of 4 rows name no file"),
    ],
)
def test_what_is_wrong_in_a_table_is_named(
    tmp_path: Path, columns: dict[str, object], said: str
) -> None:
    with_files(tmp_path, hospital())
    place = written(tmp_path, hospital(**columns))
    with pytest.raises(ValueError, match=said):
        read_ecg_manifest(str(place), TARGETS)
