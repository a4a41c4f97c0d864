"""The layouts that people keep echo pictures with label maps in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from cardioray import storage
from cardioray.data.camus import is_camus, read_camus
from cardioray.data.echo_layouts import (
    find_tracings,
    read_echo_manifest,
    read_tracings,
    traced_outline,
    video_stem,
)
from cardioray.data.layouts import (
    as_text,
    files_of,
    find_table,
    is_phantom,
    read_table,
)
from cardioray.data.manifest import Manifest, read_manifest
from cardioray.targets import RegressionTarget

VIEWS = ("A2C", "A4C")
PHASES = ("ED", "ES")
# Other words for both.
VIEW_WORDS = {"2ch": "A2C", "a2c": "A2C", "4ch": "A4C", "a4c": "A4C"}
_PHASES = {"ed": "ED", "es": "ES", "diastole": "ED", "systole": "ES"}


def read_segment_manifest(
    data: str, targets: Sequence[RegressionTarget], *, patient_from: str | None = None
) -> Manifest:
    """Read CAMUS, EchoNet with its tracings, or a table with a column `mask`.

    - CAMUS: see `read_camus`.
    - EchoNet: a folder with `FileList.csv` and `VolumeTracings.csv`. Each traced frame is a row,
      whose `mask` holds the outline of the cavity; wall and atrium are not traced.
    - A table: .csv, .xlsx or .parquet, or `manifest.*` in a folder, with `source`, `mask`, `view`
      ("A2C", "A4C"; "2CH", "4CH" do, too), `phase` ("ED", "ES"), `patient_id`, and optionally
      `study_id`, `frame`, `split` and the numbers of the targets.

    Rows without label map are left out, and a warning counts them.

    Args:
        data: folder or table; local or s3://.
        targets: numbers of a study; their columns are added where they are missing.
        patient_from: regular expression that finds the patient in a file name.

    Raises:
        ValueError: when the data are none of these or a row is wrong; names it.
    """
    data = storage.absolute(data)
    files = files_of(data)
    if is_camus(files):
        manifest = read_camus(data, patient_from)
    elif find_tracings(files) is not None and not _has_masks(data, targets):
        manifest = _with_outlines(data, files, targets, patient_from)
    else:
        manifest = _from_table(data, targets, patient_from)
    table = manifest.table
    if "phantom" not in table and files and is_phantom(data):
        table = table.assign(phantom=True)
    for target in targets:
        if target.value_column not in table:
            table = table.assign(**{target.value_column: np.nan})
    bare = table["mask"] == ""
    warnings = list(manifest.warnings)
    if bare.all():
        raise ValueError(f"No row of {data} has a label map.")
    if bare.any():
        warnings.append(f"{int(bare.sum())} frame(s) without label map are left out.")
    return replace(
        manifest, table=table[~bare].reset_index(drop=True), warnings=tuple(dict.fromkeys(warnings))
    )


def _has_masks(folder: str, targets: Sequence[RegressionTarget]) -> bool:
    """Whether a folder has a manifest that names label maps."""
    table = find_table(folder, "manifest")
    return table is not None and "mask" in read_table(table, targets)


def _from_table(
    data: str, targets: Sequence[RegressionTarget], patient_from: str | None
) -> Manifest:
    manifest = read_manifest(data, targets, patient_from=patient_from, needs_label=False)
    table = manifest.table
    missing = [name for name in ("mask", "view", "phase") if name not in table]
    if missing:
        raise ValueError(
            f"The table has no column {', '.join(missing)}. Segmentation needs source, mask (the "
            "label map), view (A2C or A4C) and phase (ED or ES)."
        )
    table["mask"] = [as_text(value) for value in table["mask"]]
    for column, words, allowed in (("view", VIEW_WORDS, VIEWS), ("phase", _PHASES, PHASES)):
        said = [words.get(as_text(value).lower(), "") for value in table[column]]
        if "" in said:
            row = said.index("")
            raise ValueError(
                f"Manifest row {row + 1}: {column}={table[column].iloc[row]!r} is none of "
                f"{', '.join(allowed)}."
            )
        table[column] = said
    return manifest


def _with_outlines(
    data: str, files: Sequence[str], targets: Sequence[RegressionTarget], patient_from: str | None
) -> Manifest:
    """A row for each traced frame of EchoNet's videos."""
    manifest = read_echo_manifest(data, targets, patient_from=patient_from)
    place = find_tracings(files)
    assert place is not None
    rows = read_tracings(storage.join(data, place))
    by_name = dict(list(rows.groupby("name", sort=False)))
    table = manifest.table
    pieces = []
    for _, row in table.iterrows():
        own = by_name.get(video_stem(str(row["source"])))
        for phase in PHASES:
            frame = int(row.get(f"{phase.lower()}_frame", -1))
            if own is None or frame < 0:
                continue
            traced = own[own["frame"] == frame]
            pieces.append(
                {
                    **row.to_dict(),
                    "sample_id": f"{row['sample_id']}_{phase}",
                    "study_id": row.get("study_id") or row["sample_id"],
                    "view": row.get("view") or "A4C",
                    "phase": phase,
                    "frame": str(frame),
                    "mask": json.dumps({"cavity": traced_outline(traced).round(2).tolist()}),
                }
            )
    if not pieces:
        raise ValueError(
            f"{storage.join(data, place)} traces two frames of none of the {len(table)} videos of "
            f"{data}, so that there is no outline. Are the names in its column FileName those of "
            "the videos?"
        )
    untraced = len(table) - len({piece["source"] for piece in pieces})
    warnings = [text for text in manifest.warnings if "no tracing of two frames" not in text]
    if untraced:
        warnings.append(f"{untraced} of {len(table)} videos have no tracing and are left out.")
    warnings.append(
        "Only the cavity is traced: wall and atrium are background here, which a network that is "
        "to find them must not learn."
    )
    return replace(manifest, table=pd.DataFrame(pieces), warnings=tuple(warnings))
