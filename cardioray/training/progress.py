"""How far runs are: an actor that workers tell, and a display that the user sees meanwhile."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from cardioray.data import cluster
from cardioray.evaluation.metrics import LOWER_IS_BETTER

# A log gets a line at once when a run begins or ends, and otherwise this often.
LINE_SECONDS = 60.0
POLL_SECONDS = 0.5

# What a run says of itself as its "status".
WAITING, STARTING, RUNNING = "waiting", "starting", "running"
DONE, STOPPED, FAILED = "done", "stopped early", "failed"
# A terminal may have fewer lines than there are runs: what goes on stands above what is over.
_ORDER = (RUNNING, STARTING, FAILED, DONE, STOPPED, WAITING)

_Runs = Mapping[str, Mapping[str, Any]]


class ProgressBoard:
    """Keeps the latest word of every run, and what is being done; lives in an actor."""

    def __init__(self) -> None:
        self._step = ""
        self._runs: dict[str, dict[str, Any]] = {}

    def begin(self, step: str, runs: Sequence[str] = ()) -> None:
        """Note what is being done from now on, and the runs that will take part."""
        self._step = step
        for label in runs:
            self._runs.setdefault(label, {"status": WAITING})

    def update(self, label: str, state: Mapping[str, Any]) -> None:
        """Note what a run says of itself, unless it was stopped in the meantime."""
        known = self._runs.setdefault(label, {})
        if known.get("status") != STOPPED:
            known.update(state)

    def snapshot(self) -> tuple[str, dict[str, dict[str, Any]]]:
        """What is being done, and everything that runs said."""
        return self._step, self._runs


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
    cluster.connect()  # before Ray does so by itself, in its own way
    board = ray.remote(num_cpus=0)(ProgressBoard).remote()
    stop = threading.Event()
    show = _show_table if shown.console.is_terminal else _print_lines
    thread = threading.Thread(target=show, args=(board, shown, stop), daemon=True)
    thread.start()
    try:
        yield board
    except KeyboardInterrupt:
        _end(thread, stop)
        shown.console.print(
            "Interrupted. The same command goes on from the last checkpoints.", soft_wrap=True
        )
        raise
    finally:
        _end(thread, stop)
        ray.kill(board)


def _end(thread: threading.Thread, stop: threading.Event) -> None:
    stop.set()
    thread.join()


def _show_table(board: ActorHandle[Any], shown: Shown, stop: threading.Event) -> None:
    with Live(console=shown.console, refresh_per_second=4, transient=False) as display:
        finished = False
        while not finished:
            finished = stop.wait(POLL_SECONDS)
            step, runs = ray.get(board.snapshot.remote())
            display.update(_table(step, runs, shown))


def _print_lines(board: ActorHandle[Any], shown: Shown, stop: threading.Event) -> None:
    said, before = -math.inf, None
    finished = False
    while not finished:
        finished = stop.wait(POLL_SECONDS)
        step, runs = ray.get(board.snapshot.remote())
        events = (step, {label: state.get("status") for label, state in runs.items()})
        if events == before and time.monotonic() - said < LINE_SECONDS:
            continue
        said, before = time.monotonic(), events
        # One line of a log stays one line, however long it is.
        text = f"{time.strftime('%H:%M:%S')} {_line(step, runs, shown)}"
        shown.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _table(step: str, runs: _Runs, shown: Shown) -> Table:
    title = f"{shown.title}: {step}" if step else shown.title
    table = Table(
        title=escape(title),
        caption=_best_text(runs, shown),
        box=None,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("run", overflow="fold")
    table.add_column("status", no_wrap=True)
    for name in ("epochs", "", "images/s", shown.figure):
        table.add_column(name, justify="right", no_wrap=True)
    ordered = sorted(runs.items(), key=lambda run: _ORDER.index(run[1].get("status", STARTING)))
    for label, state in ordered:
        done, total = state.get("epoch", 0.0), state.get("epochs")
        status = state.get("status", STARTING)
        stage = state.get("stage", "")
        table.add_row(
            escape(label),
            f"{status}, {stage}" if status == RUNNING and stage else status,
            f"{done:.1f}/{total}" if total else "",
            ProgressBar(total=total, completed=done, width=8) if total else "",
            _number(state.get("images_per_second"), ".0f"),
            _best_of(state, shown),
        )
    return table


def _line(step: str, runs: _Runs, shown: Shown) -> str:
    """Everything the table says, in one line: counts, what runs now, the best so far."""
    by_status: dict[str, list[str]] = {}
    for label, state in runs.items():
        by_status.setdefault(state.get("status", STARTING), []).append(label)
    ended = [f"{len(by_status.get(DONE, ()))} of {len(runs)} done"] if runs else []
    ended += [f"{len(by_status[s])} {s}" for s in (STOPPED, FAILED, WAITING) if s in by_status]
    running = [_running(label, runs[label], shown) for label in by_status.get(RUNNING, ())]
    parts = [
        f"{shown.title}, {step}" if step else shown.title,
        ", ".join(ended),
        f"running {', '.join(running)}" if running else "",
        f"starting {', '.join(by_status[STARTING])}" if STARTING in by_status else "",
        _best_text(runs, shown),
    ]
    return "; ".join(part for part in parts if part)


def _running(label: str, state: Mapping[str, Any], shown: Shown) -> str:
    figures = [f"{state.get('epoch', 0.0):.1f}/{state.get('epochs', '?')} epochs"]
    if state.get("images_per_second") is not None:
        figures.append(f"{state['images_per_second']:.0f} images/s")
    if _known(state.get("best")):
        figures.append(f"{state.get('figure', shown.figure)} {state['best']:.3f}")
    return f"{label} ({', '.join(figures)})"


def _best_of(state: Mapping[str, Any], shown: Shown) -> str:
    """A run's best figure, by name where it is not the one in the heading."""
    text = _number(state.get("best"), ".3f")
    own = state.get("figure", shown.figure)
    return text if own == shown.figure or not text else f"{own} {text}"


def _best_text(runs: _Runs, shown: Shown) -> str:
    """The best run so far, where there are several."""
    known = {
        label: state["best"]
        for label, state in runs.items()
        if _known(state.get("best")) and state.get("figure", shown.figure) == shown.figure
    }
    if len(runs) < 2 or not known:
        return ""
    lower = shown.figure.removeprefix("val_") in LOWER_IS_BETTER
    label = (min if lower else max)(known, key=lambda name: known[name])
    return f"best {shown.figure} {known[label]:.3f} ({label})"


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _number(value: float | None, spec: str) -> str:
    return format(value, spec) if value is not None and not math.isnan(value) else "-"
