"""A phantom data set on disk or in a bucket: written once, recognised when it is there."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, TypeVar

import pandas as pd

from cardioray import storage
from cardioray.config import to_dict
from cardioray.data.layouts import PHANTOM_REQUEST, read_phantom_request
from cardioray.machine import usable_cores

ResultT = TypeVar("ResultT")
Request = dict[str, Any]

_MANIFEST = "manifest.csv"


def write_once(
    out: str,
    phantom: str,
    write: Callable[[str], pd.DataFrame],
    *,
    generator: int,
    num_patients: int,
    seed: int,
    config: Any,
    **further: Any,
) -> pd.DataFrame:
    """The manifest of a data set, which is written unless a finished one is there.

    Args:
        out: folder or s3:// prefix, empty or absent, or with the same data set.
        phantom: what is drawn.
        write: writes the files below the full path of `out` and gives the manifest.
        generator: changes whenever the same request would give other files.
        num_patients: number of patients.
        seed: of the data set.
        config: settings of the phantom.
        **further: what else the content depends on, as JSON can hold it.

    Raises:
        ValueError: when there is no patient, the seed is negative, or `out` holds something else.
    """
    if num_patients < 1 or seed < 0:
        raise ValueError("num_patients must be at least 1 and seed at least 0.")
    out = storage.absolute(out)
    request = {
        "phantom": phantom,
        "generator": generator,
        "num_patients": num_patients,
        "seed": seed,
        "config": to_dict(config),
        **further,
    }
    manifest = _finished_manifest(out, request)
    if manifest is not None:
        return manifest
    # Marked as being written, so that a killed run is recognised.
    _write_request(out, request, complete=False)
    write_csv(storage.join(out, _MANIFEST), write(out))
    _write_request(out, request, complete=True)
    return _read_manifest(out)


def write_csv(path: str, table: pd.DataFrame) -> None:
    """A table of a data set, alike on every machine."""
    storage.write_bytes(path, table.to_csv(index=False, lineterminator="\n").encode())


def _finished_manifest(out: str, request: Request) -> pd.DataFrame | None:
    """The manifest of a finished data set that answers the same request, or None.

    Args:
        out: folder or s3:// prefix of the data set.
        request: everything the content depends on, as JSON can hold it.

    Returns:
        None when the folder is empty, or holds what a killed run of this request left.

    Raises:
        ValueError: when the folder holds something else.
    """
    if not storage.exists(out) or not (files := storage.list_files(out)):
        return None
    found, complete = _read_request(out, files)
    if found != request:
        keys = sorted({*found, *request})
        differing = ", ".join(key for key in keys if found.get(key) != request.get(key))
        raise ValueError(
            f"{out} holds another phantom data set (it differs in {differing}); "
            "choose an empty folder or remove it."
        )
    if not complete:
        return None
    manifest = _read_manifest(out)
    expected = {storage.join(out, source) for source in manifest["source"]}
    return manifest if expected <= set(files) else None


def run_parallel(
    work: Callable[[int], ResultT],
    count: int,
    *,
    num_workers: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> list[ResultT]:
    """Results of work(0), ..., work(count - 1), in that order, from several processes.

    Args:
        work: a picklable function of the item's index.
        count: number of items.
        num_workers: number of processes; 1 works in this process, None uses every core that this
            process may use.
        on_progress: called in this process with the number of finished items and `count`.
    """
    workers = min(num_workers or usable_cores(), count)
    results: dict[int, ResultT] = {}

    def keep(index: int, result: ResultT) -> None:
        results[index] = result
        if on_progress is not None:
            on_progress(len(results), count)

    if workers <= 1:
        for index in range(count):
            keep(index, work(index))
    else:
        # Not fork: the caller may hold threads of Ray or torch.
        with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
            futures = {pool.submit(work, index): index for index in range(count)}
            for future in as_completed(futures):
                keep(futures[future], future.result())
    return [results[index] for index in range(count)]


def _read_request(out: str, files: list[str]) -> tuple[Request, bool]:
    """The request a folder was written for, and whether it was finished."""
    if storage.join(out, PHANTOM_REQUEST) in files:
        content = read_phantom_request(out)
        if content is not None:
            return content["request"], content["complete"]
    raise ValueError(f"{out} is not empty and holds no phantom data set; choose an empty folder.")


def _read_manifest(out: str) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(storage.read_bytes(storage.join(out, _MANIFEST))))


def _write_request(out: str, request: Request, *, complete: bool) -> None:
    text = json.dumps({"request": request, "complete": complete}, indent=2) + "\n"
    storage.write_bytes(storage.join(out, PHANTOM_REQUEST), text.encode())
