"""What is asked of an evaluation beside its figures: other populations, readers, and decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from cardioray import storage
from cardioray.data.layouts import read_table
from cardioray.evaluation import plots
from cardioray.evaluation.figures import Resampling
from cardioray.evaluation.intervals import Interval
from cardioray.evaluation.populations import at_prevalence, subgroup_figures, subgroup_table
from cardioray.evaluation.readers import Reader, compare_readers, decision_curve
from cardioray.targets import BinaryTarget


@dataclass(frozen=True)
class Further:
    """What else is wanted.

    Attributes:
        prevalences: shares of positive studies that test sets are drawn to have.
        subgroups: conditions such as "qrs_ms > 120" or "sex = F".
        facts: what the conditions ask about: a table with a column study_id; None where none.
        readers: a table with a column study_id and one column a reader with 0, 1 or nothing.
    """

    prevalences: tuple[float, ...] = ()
    subgroups: tuple[str, ...] = ()
    facts: pd.DataFrame | None = field(default=None, repr=False)
    readers: pd.DataFrame | None = field(default=None, repr=False)

    @property
    def asked(self) -> bool:
        """Whether anything is."""
        return bool(self.prevalences or self.subgroups or self.readers is not None)

    @classmethod
    def read(
        cls,
        prevalences: str | None,
        subgroups: list[str] | None,
        facts: str | None,
        readers: str | None,
    ) -> Further:
        """From what was typed.

        Raises:
            ValueError: for shares that are no numbers, tables that cannot be read, and subgroups
                without a table of facts.
        """
        try:
            shares = tuple(float(s) for s in (prevalences or "").split(",") if s.strip())
        except ValueError:
            raise ValueError(
                f"--prevalence {prevalences}: shares are written as 0.079,0.2."
            ) from None
        return cls(
            shares,
            tuple(subgroups or ()),
            None if facts is None else _with_ids(facts),
            None if readers is None else _with_ids(readers),
        )


def _with_ids(path: str) -> pd.DataFrame:
    table = read_table(storage.absolute(path), ())
    if "study_id" not in table:
        raise ValueError(f"{path} has no column study_id.")
    return table.assign(study_id=table["study_id"].astype(str))


def report_further(
    further: Further,
    studies: Mapping[str, pd.DataFrame],
    targets: Mapping[str, BinaryTarget],
    facts: pd.DataFrame | None,
    console: Console,
    out: str | None,
) -> dict[str, Any]:
    """Print what else was asked of yes/no questions, and write it.

    Args:
        further: what.
        studies: by question the decided test studies.
        targets: by question.
        facts: what is known of studies where `further` has no table of its own.
        console: where it is printed.
        out: folder or prefix for tables and plots; None writes nothing.

    Returns:
        What metrics.json says of it.

    Raises:
        ValueError: for subgroups of which nothing is known, or a table that does not fit.
    """
    said: dict[str, Any] = {}
    known = further.facts if further.facts is not None else facts
    if further.subgroups and known is None:
        raise ValueError("Subgroups need --facts, a table with study_id and what they ask about.")
    for name, table in studies.items():
        rows = table.assign(study_id=table["study_id"].astype(str)).reset_index(drop=True)
        own: dict[str, Any] = {}
        if further.prevalences:
            own["prevalence"] = [
                at_prevalence(rows, share).to_dict() for share in further.prevalences
            ]
            _print_prevalence(name, own["prevalence"], console)
        if further.subgroups:
            assert known is not None
            groups = subgroup_table(
                subgroup_figures(rows, known, further.subgroups, resampling=Resampling())
            )
            own["subgroups"] = groups.to_dict("records")
            _print_groups(name, groups, console)
            if out is not None:
                text = groups.to_csv(index=False).encode()
                storage.write_bytes(storage.join(out, f"subgroups_{name}.csv"), text)
        if further.readers is not None:
            readers = compare_readers(rows, further.readers)
            own["readers"] = [_plain(reader) for reader in readers]
            _print_readers(name, readers, console)
        if out is not None:
            curve = decision_curve(rows["label"], rows["probability"])
            drawn = plots.decision_plot(curve, targets[name].classes[1])
            place = storage.join(out, "plots", name, "decision.png")
            storage.write_bytes(place, plots.png_bytes(drawn))
        said[name] = own
    return said


def _plain(reader: Reader) -> dict[str, Any]:
    return {
        "name": reader.name,
        "studies": reader.studies,
        "sensitivity": reader.sensitivity.to_dict(),
        "specificity": reader.specificity.to_dict(),
        "model_sensitivity": reader.model_sensitivity.to_dict(),
        "p_value": None if reader.p_value != reader.p_value else reader.p_value,
    }


def _print_prevalence(name: str, found: list[dict[str, Any]], console: Console) -> None:
    table = Table("Prevalence", "AUC (mean)", "One test set", "F1 (mean)", title=f"{name}")
    for row in found:
        spread = row["auc_spread"]
        table.add_row(
            f"{row['prevalence']:.1%}",
            f"{Interval(**row['auc'])}",
            f"{spread['low']:.3f} to {spread['high']:.3f}",
            f"{Interval(**row['f1'])}",
        )
    console.print(table)


def _print_groups(name: str, groups: pd.DataFrame, console: Console) -> None:
    table = Table("Group", "Studies", "Positive", "AUC", "Sens / spec", title=f"{name}")
    for row in groups.to_dict("records"):
        interval = Interval(row["auc"], row["auc_low"], row["auc_high"])
        table.add_row(
            str(row["group"]),
            str(row["studies"]),
            str(row["positive"]),
            f"{interval}" if row["auc"] == row["auc"] else "too few",
            f"{row['sensitivity']:.2f} / {row['specificity']:.2f}",
        )
    console.print(table)


def _print_readers(name: str, readers: list[Reader], console: Console) -> None:
    table = Table(
        *("Reader", "Studies", "Sensitivity", "Specificity", "Model, as specific", "p"),
        title=f"{name}",
    )
    for reader in readers:
        p_value = "" if reader.p_value != reader.p_value else f"{reader.p_value:.3f}"
        table.add_row(
            reader.name,
            str(reader.studies),
            f"{reader.sensitivity}",
            f"{reader.specificity}",
            f"{reader.model_sensitivity}",
            p_value,
        )
    console.print(table)
