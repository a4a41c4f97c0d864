"""What a label means: names, cut-offs and their operators, missing and contradicting values."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cardioray.config import parse, to_dict
from cardioray.targets import BinaryTarget, RegressionTarget
from cardioray.tasks.ffr import FFR_TARGET as FFR


@pytest.mark.parametrize(
    ("operator", "at_cutoff", "below"), [("<", 0, 1), ("<=", 1, 1), (">", 0, 0), (">=", 1, 0)]
)
def test_the_operator_decides_at_the_cutoff(
    operator: Literal["<", "<=", ">", ">="], at_cutoff: int, below: int
) -> None:
    target = BinaryTarget(
        name="t", positive="p", negative="n", value_column="v", cutoff=40.0, operator=operator
    )
    codes = target.encode(pd.DataFrame({"v": [40.0, 39.999]}))
    assert codes.tolist() == [at_cutoff, below]
    assert codes.dtype == np.float32


@given(st.lists(st.floats(0, 1, width=16), min_size=1))
def test_every_value_is_coded_as_the_plain_comparison(values: list[float]) -> None:
    codes = FFR.encode(pd.DataFrame({"ffr": values}))
    assert codes.tolist() == [float(value <= 0.80) for value in values]


@pytest.mark.parametrize("value", [-1.0, 76.0, 1.2])
def test_a_value_that_cannot_be_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=rf"row 2: ffr={value:g} is outside \[0, 1.1\]"):
        FFR.encode(pd.DataFrame({"ffr": [0.9, value]}))


def test_a_cutoff_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="cutoff must be between low and high"):
        BinaryTarget(
            name="t", positive="p", negative="n", value_column="v", cutoff=80.0, low=0.0, high=1.0
        )


@pytest.mark.parametrize(
    "kind", ["float16", "float32", "float64", "Float32", "float[pyarrow]", "double[pyarrow]"]
)
def test_a_value_at_the_cutoff_is_so_in_any_precision(kind: str) -> None:
    values = pd.Series([0.8, 0.79, 0.81, np.nan]).astype(kind)
    codes = FFR.encode(pd.DataFrame({"ffr": values}))
    np.testing.assert_array_equal(codes, [1, 1, 0, np.nan])


@pytest.mark.parametrize("dtype", [object, "string"])
def test_a_value_that_is_no_number_is_named_with_its_row(dtype: object) -> None:
    table = pd.DataFrame({"ffr": pd.Series(["0.7", "", None, "0,76"], dtype=dtype)})
    number = RegressionTarget(name="n", value_column="ffr")
    for target in (FFR, number):
        with pytest.raises(ValueError, match=r"row 4: ffr='0,76' is no number"):
            target.encode(table)
    np.testing.assert_allclose(number.encode(table[:3]), [0.7, np.nan, np.nan], rtol=1e-6)


def test_class_names_are_in_the_order_of_their_codes() -> None:
    assert FFR.classes == ("FFR>0.80", "FFR<=0.80")


def test_names_aliases_and_codes_are_read_in_any_case() -> None:
    names = ["FFRL", "ffrh", " FFR<=0.80 ", "1", "0", "True", "FALSE"]
    codes = FFR.encode(pd.DataFrame({"label": names}))
    assert codes.tolist() == [1, 0, 1, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("column", "codes"),
    [
        ([1, 0], [1, 0]),
        ([1.0, np.nan], [1, np.nan]),
        ([True, False], [1, 0]),
        (["", "1"], [np.nan, 1]),
    ],
)
def test_label_columns_of_every_kind(column: list[object], codes: list[float]) -> None:
    encoded = FFR.encode(pd.DataFrame({"label": column}))
    np.testing.assert_array_equal(encoded, codes)


def test_label_and_value_fill_each_others_gaps() -> None:
    table = pd.DataFrame({"label": ["FFRL", None, None], "ffr": [np.nan, 0.91, np.nan]})
    np.testing.assert_array_equal(FFR.encode(table), [1, 0, np.nan])


def test_a_contradiction_names_the_row_and_both_values() -> None:
    table = pd.DataFrame({"label": ["FFRH", "FFRH"], "ffr": [0.9, 0.5]})
    with pytest.raises(ValueError, match=r"row 2: label='FFRH' contradicts ffr=.*0\.5"):
        FFR.encode(table)


def test_an_unknown_class_names_the_row_and_the_classes() -> None:
    with pytest.raises(ValueError, match=r"row 2: label='maybe'.*FFRL.*FFRH"):
        FFR.encode(pd.DataFrame({"label": ["FFRL", "maybe"]}))


def test_a_table_without_either_column_says_which_are_looked_for() -> None:
    with pytest.raises(ValueError, match="needs a column 'label' or 'ffr'"):
        FFR.encode(pd.DataFrame({"x": [1]}))


def test_text_where_a_number_is_due_is_refused() -> None:
    with pytest.raises(ValueError, match="low"):
        FFR.encode(pd.DataFrame({"ffr": ["0.5", "low"]}))


def test_a_column_without_cutoff_is_refused() -> None:
    with pytest.raises(ValueError, match="value_column and cutoff go together"):
        BinaryTarget(name="t", positive="p", negative="n", value_column="ef")


def test_targets_survive_their_written_form() -> None:
    assert parse(BinaryTarget, to_dict(FFR)) == FFR


class TestRegression:
    EF = RegressionTarget(name="ef", value_column="EF", unit="%", low=0, high=100)

    def test_values_pass_and_gaps_stay(self) -> None:
        encoded = self.EF.encode(pd.DataFrame({"EF": [55.5, None, 100]}))
        np.testing.assert_array_equal(encoded, np.float32([55.5, np.nan, 100]))

    def test_out_of_range_names_the_row_and_the_range(self) -> None:
        with pytest.raises(ValueError, match=r"row 2: EF=120 is outside \[0, 100\]"):
            self.EF.encode(pd.DataFrame({"EF": [50, 120]}))

    def test_missing_column_is_named(self) -> None:
        with pytest.raises(ValueError, match="'ef' needs a column 'EF'"):
            self.EF.encode(pd.DataFrame({"ef": [50]}))
