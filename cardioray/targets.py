"""What a model predicts: the meaning of a label, as part of the configuration.

A target names its classes, its cut-off and the operator, so that a bundle, a plot and an answer
can say what "1" means, and any binary image manifest works and is named as what it is.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from cardioray.config import config

Operator = Literal["<", "<=", ">", ">="]
# In names of targets, and what is true of the other class.
_WORDS: dict[Operator, str] = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
_OPPOSITES: dict[Operator, Operator] = {"<": ">=", "<=": ">", ">": "<=", ">=": "<"}
_OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@config
class BinaryTarget:
    """A yes/no question, asked of a 0/1 or named label, or of a number with a cut-off.

    Attributes:
        name: key of the head and of the answer ("ffr").
        positive: name of class 1 ("FFR<=0.80").
        negative: name of class 0 ("FFR>0.80").
        value_column: manifest column with the number the cut-off is applied to, if there is one.
        cutoff: value at which the class changes, in the units of `value_column`.
        operator: a sample is positive when `value <operator> cutoff` holds.
        label_column: manifest column with the class itself; wins over `value_column` where filled.
        positive_aliases: other spellings of class 1 in `label_column` (folder names, codes).
        negative_aliases: other spellings of class 0 in `label_column`.
        low: lowest number that `value_column` may hold; None for no bound.
        high: highest one; a percentage where a ratio is expected is beyond it.
        one_of: where the label column holds one of several classes, all of them; `positive` is
            one, and every other is class 0. Targets with the same label column and `one_of` are
            one question: their probabilities add up to 1.
    """

    kind: Literal["binary"] = "binary"
    name: str
    positive: str
    negative: str
    value_column: str | None = None
    cutoff: float | None = None
    operator: Operator = "<="
    label_column: str = "label"
    positive_aliases: tuple[str, ...] = ()
    negative_aliases: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    one_of: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.one_of and self.positive not in self.one_of:
            raise ValueError(f"target {self.name!r}: {self.positive!r} is not in one_of.")
        if (self.value_column is None) != (self.cutoff is None):
            raise ValueError(f"target {self.name!r}: value_column and cutoff go together.")
        if self.cutoff is not None and _outside(np.array(self.cutoff), self.low, self.high):
            raise ValueError(f"target {self.name!r}: cutoff must be between low and high.")

    @property
    def classes(self) -> tuple[str, str]:
        """Class names in the order of their codes 0 and 1."""
        return (self.negative, self.positive)

    def encode(self, table: pd.DataFrame) -> NDArray[np.float32]:
        """Labels of a manifest: 0.0, 1.0, or NaN where neither column is filled; shape (rows,).

        Raises:
            ValueError: when neither column is present, a value is no number or out of range, a
                label is unknown, or label and value contradict each other; names the first row at
                fault.
        """
        labels = np.full(len(table), np.nan, dtype=np.float32)
        if self.value_column is not None and self.value_column in table:
            values = _numbers(table[self.value_column], self.low, self.high)
            assert self.cutoff is not None
            known = np.isfinite(values)
            labels[known] = _OPERATORS[self.operator](values[known], self.cutoff)
        elif self.label_column not in table:
            wanted = " or ".join(repr(c) for c in (self.label_column, self.value_column) if c)
            raise ValueError(f"target {self.name!r} needs a column {wanted} in the manifest.")
        if self.label_column in table:
            named = self._encode_names(table[self.label_column])
            clash = np.isfinite(named) & np.isfinite(labels) & (named != labels)
            if clash.any():
                row = int(np.flatnonzero(clash)[0])
                raise ValueError(
                    f"row {row + 1}: {self.label_column}={table[self.label_column].iloc[row]!r} "
                    f"contradicts {self.value_column}={table[self.value_column].iloc[row]!r} "
                    f"(positive is {self.value_column} {self.operator} {self.cutoff})."
                )
            labels = np.where(np.isfinite(named), named, labels).astype(np.float32)
        return labels

    def _encode_names(self, column: pd.Series) -> NDArray[np.float32]:
        if self.one_of:
            codes = {name.lower(): float(name == self.positive) for name in self.one_of}
        else:
            codes = {
                name.lower(): 1.0
                for name in (self.positive, *self.positive_aliases, "1", "1.0", "true")
            }
            codes |= {
                name.lower(): 0.0
                for name in (self.negative, *self.negative_aliases, "0", "0.0", "false")
            }
        missing = column.isna() | (column.astype(str).str.strip() == "")
        coded = column.astype(str).str.strip().str.lower().map(codes)
        unknown = coded.isna() & ~missing
        if unknown.any():
            row = int(np.flatnonzero(unknown)[0])
            if self.one_of:
                raise ValueError(
                    f"row {row + 1}: {self.label_column}={column.iloc[row]!r} is none of the "
                    f"classes {', '.join(self.one_of)}."
                )
            raise ValueError(
                f"row {row + 1}: {self.label_column}={column.iloc[row]!r} is none of the classes "
                f"{self.positive!r} (also {', '.join((*self.positive_aliases, '1'))}) and "
                f"{self.negative!r} (also {', '.join((*self.negative_aliases, '0'))})."
            )
        return coded.to_numpy(np.float32)


def choice(name: str, label_column: str, classes: Sequence[str]) -> tuple[BinaryTarget, ...]:
    """A question with several answers of which one is true: a yes/no target for each.

    Args:
        name: of the question; the targets are called `<name>_<class>`.
        label_column: manifest column with the class.
        classes: at least two, as the column spells them in any case.

    Raises:
        ValueError: when there are fewer than two, or two alike.
    """
    if len({each.lower() for each in classes}) < max(2, len(classes)):
        raise ValueError(f"{name}: give at least two classes, all different.")
    return tuple(
        BinaryTarget(
            name=f"{name}_{each}",
            positive=each,
            negative=f"not {each}",
            label_column=label_column,
            one_of=tuple(classes),
        )
        for each in classes
    )


def questions(
    targets: Sequence[BinaryTarget | RegressionTarget],
) -> dict[str, tuple[BinaryTarget, ...]]:
    """The targets that are one question of several classes, by its name; see `choice`."""
    found: dict[str, list[BinaryTarget]] = {}
    for target in targets:
        if isinstance(target, BinaryTarget) and target.one_of:
            name = target.name.removesuffix(f"_{target.positive}")
            found.setdefault(name, []).append(target)
    for name, members in found.items():
        if len(members) < len(members[0].one_of):
            raise ValueError(f"{name}: every class of one_of needs a target of its own.")
    return {name: tuple(members) for name, members in found.items()}


@config
class RegressionTarget:
    """A number to predict.

    Attributes:
        name: key of the head and of the answer ("ffr_value").
        value_column: manifest column with the number.
        unit: unit in plots and answers ("" for a ratio).
        low: lowest possible value, used to bound answers; None for no bound.
        high: highest possible value.
        cutoffs: values at which clinicians divide it; a report says how well scores tell which
            side of each a study is on.
    """

    kind: Literal["regression"] = "regression"
    name: str
    value_column: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    cutoffs: tuple[float, ...] = ()

    def encode(self, table: pd.DataFrame) -> NDArray[np.float32]:
        """Values of a manifest, NaN where missing; shape (rows,).

        Raises:
            ValueError: when the column is absent or a value is no number or out of range.
        """
        if self.value_column not in table:
            raise ValueError(f"target {self.name!r} needs a column {self.value_column!r}.")
        return _numbers(table[self.value_column], self.low, self.high).astype(np.float32)


@config
class EfCutOff:
    """A class of ejection fractions: "ef_le_40" is an EF of at most 40 %.

    Attributes:
        value: in percent.
        operator: a study is positive when `EF <operator> value` holds.
    """

    value: float = Field(default=40.0, gt=0, lt=100)
    operator: Operator = "<="

    @property
    def name(self) -> str:
        """The class in a word."""
        return f"ef_{_WORDS[self.operator]}_{self.value:g}".replace(".", "_")

    def target(self, name: str, value_column: str) -> BinaryTarget:
        """The question of whether a study is of the class.

        Args:
            name: key of the head and of the answer.
            value_column: column with the ejection fraction in percent.
        """
        return BinaryTarget(
            name=name,
            positive=f"EF{self.operator}{self.value:g}",
            negative=f"EF{_OPPOSITES[self.operator]}{self.value:g}",
            value_column=value_column,
            cutoff=self.value,
            operator=self.operator,
            low=0.0,
            high=100.0,
        )


def _numbers(column: pd.Series, low: float | None, high: float | None) -> NDArray[np.float64]:
    """A column of a manifest as numbers between `low` and `high`, NaN where it is empty.

    A value of lower precision stands for the shortest decimal that it is printed as: 0.8 in 32 bit
    is 0.80000001 in 64, and would be on the wrong side of a cut-off at 0.8.
    """
    short = {"float": "float32", "float32": "float32", "float16": "float16", "halffloat": "float16"}
    kind = short.get(str(column.dtype).lower().removesuffix("[pyarrow]"))
    if kind is not None:
        printed = column.to_numpy(kind, na_value=np.nan).astype(str)
        column = pd.Series(printed, index=column.index, name=column.name)
    empty = column.isna() | (column.astype(str).str.strip().isin(["", "nan"]))
    values = pd.to_numeric(column.where(~empty), errors="coerce").to_numpy(float, na_value=np.nan)
    bad = np.isnan(values) & ~empty.to_numpy(bool)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(f"row {row + 1}: {column.name}={column.iloc[row]!r} is no number.")
    outside = _outside(values, low, high)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        bounds = ", ".join("-" if bound is None else f"{bound:g}" for bound in (low, high))
        raise ValueError(f"row {row + 1}: {column.name}={values[row]:g} is outside [{bounds}].")
    return values


def _outside(
    values: NDArray[np.float64], low: float | None, high: float | None
) -> NDArray[np.bool_]:
    below = values < (-np.inf if low is None else low)
    return np.asarray(below | (values > (np.inf if high is None else high)))


Target = Annotated[BinaryTarget | RegressionTarget, Field(discriminator="kind")]
