"""How far runs are: an actor that workers tell, and a table that the user sees meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

# A log file gets a line this often; a terminal redraws instead.
LINE_SECONDS = 15.0
POLL_SECONDS = 0.5


class ProgressBoard:
    """Keeps the latest word of every run; lives in an actor."""

    def __init__(self) -> None:
        self._runs: dict[str, dict[str, Any]] = {}

    def update(self, label: str, state: Mapping[str, Any]) -> None:
        """Note what a run says of itself."""
        self._runs.setdefault(label, {}).update(state)

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """Everything that was said."""
        return self._runs


@dataclass(frozen=True)
class Shown:
    """How a display is labelled.

    Attributes:
        title: heading of the table.
        figure: name of the monitored figure.
        console: where to; a terminal gets a live table, anything else a line now and then.
    """

    title: str
    figure: str
    console: Console


@contextmanager
def shown_progress(shown: Shown | None) -> Iterator[ActorHandle[Any] | None]:
    """Show the runs that tell the yielded board how far they are; None shows nothing."""
    if shown is None:
        yield None
        return
    board = ray.remote(num_cpus=0)(ProgressBoard).remote()
    stop = threading.Event()
    thread = threading.Thread(target=_show, args=(board, shown, stop), daemon=True)
    thread.start()
    try:
        yield board
    finally:
        stop.set()
        thread.join()
        ray.kill(board)


def _show(board: ActorHandle[Any], shown: Shown, stop: threading.Event) -> None:
    live = shown.console.is_terminal
    with Live(console=shown.console, refresh_per_second=4, transient=False) as display:
        said = time.monotonic()
        while True:
            finished = stop.wait(POLL_SECONDS)
            runs = ray.get(board.snapshot.remote())
            if live:
                display.update(_table(runs, shown))
            elif time.monotonic() - said > LINE_SECONDS or finished:
                said = time.monotonic()
                shown.console.print(_line(runs, shown), highlight=False)
            if finished:
                return


def _table(runs: Mapping[str, Mapping[str, Any]], shown: Shown) -> Table:
    table = Table(title=shown.title, box=None, title_justify="left")
    for name in ("run", "stage", "epochs", "", "images/s", f"best {shown.figure}"):
        table.add_column(name, justify="right" if name not in ("run", "stage") else "left")
    for label, state in runs.items():
        done, total = state.get("epoch", 0.0), state.get("epochs", 1)
        table.add_row(
            label,
            state.get("stage", ""),
            f"{done:.1f}/{total}",
            ProgressBar(total=total, completed=done, width=24),
            _number(state.get("images_per_second"), ".0f"),
            _number(state.get("best"), ".3f"),
        )
    return table


def _line(runs: Mapping[str, Mapping[str, Any]], shown: Shown) -> str:
    active = [
        f"{label} {state.get('epoch', 0.0):.1f}/{state.get('epochs', 1)} "
        f"({shown.figure} {_number(state.get('best'), '.3f')})"
        for label, state in runs.items()
        if not state.get("done")
    ]
    finished = sum(bool(state.get("done")) for state in runs.values())
    return f"{shown.title}: {finished} ended; " + ("; ".join(active) or "starting")


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
