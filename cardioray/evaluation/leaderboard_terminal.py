"""A leaderboard on the terminal, and in a log."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from cardioray.evaluation.intervals import Interval
from cardioray.evaluation.leaderboard_page import (
    duration,
    figure_names,
    number,
    p_value,
    page_title,
    short_title,
)

if TYPE_CHECKING:
    from cardioray.evaluation.leaderboard import Leaderboard, LeaderboardRow

# A column: its heading, and the one or two lines it has for a row.
_Columns = list[tuple[str, list[str]]]
# Longer names are folded where there is no room; figures never are.
_LEAST_NAME = 19
_EXPLANATION = (
    "Per study, out of fold; below, 95% intervals by patient. Val.: on validation patients, chose "
    "the winner. p: against the winner, corrected after Holm; from 0.05 on not distinguishable "
    "from it. Frame: on single frames. CPU: latency of one picture. Not for clinical use."
)


def print_leaderboard(leaderboard: Leaderboard, console: Console | None = None) -> None:
    """Print the leaderboard: one table where the terminal is wide enough, else two.

    Args:
        leaderboard: what is printed.
        console: where to; needs 80 columns.
    """
    console = console or Console()
    figures, costs = _figures(leaderboard), _costs(leaderboard)
    whole = _table(leaderboard, [*figures, *costs])
    unbounded = console.options.update_width(10_000)
    if Measurement.get(console, unbounded, whole).maximum <= console.width:
        tables = [whole]
    else:
        tables = [_table(leaderboard, figures), _table(leaderboard, costs)]
    console.print(f"[bold]{escape(page_title(leaderboard))}[/]", highlight=False)
    for table in tables:
        console.print(table)
    for name, reason in leaderboard.failed.items():
        console.print(f"{escape(name)} failed: {escape(reason)}", highlight=False)
    console.print(_EXPLANATION, style="dim", highlight=False)


def _figures(leaderboard: Leaderboard) -> _Columns:
    """Figures per study, each with its interval below."""
    columns = []
    for name in figure_names(leaderboard):
        values = [row.evaluation.per_study.values[name] for row in leaderboard.rows]
        lines = [f"{number(i.value, '.3f')}\n[dim]{_narrow(i)}[/]" for i in values]
        columns.append((short_title(name), lines))
    return columns


def _costs(leaderboard: Leaderboard) -> _Columns:
    """What chose and tested the winner, the headline figure on single frames, and what it costs."""
    rows = leaderboard.rows
    frame = [row.evaluation.per_frame.values[leaderboard.headline] for row in rows]
    entries = [row.entry for row in rows]
    validation = short_title(leaderboard.validation_metric)
    return [
        (f"Val.\n{validation}", [number(e.validation_score, ".3f") for e in entries]),
        ("p", [p_value(row.p_holm) for row in rows]),
        (
            f"Frame\n{short_title(leaderboard.headline)}",
            [f"{number(i.value, '.3f')}\n[dim]{_narrow(i)}[/]" for i in frame],
        ),
        ("Params\nM", [number(e.parameters_millions, ".1f") for e in entries]),
        ("GFLOPs", [number(e.gflops, ".2f") for e in entries]),
        ("Training", [duration(e.train_seconds) for e in entries]),
        ("CPU\nms", [number(e.latency_ms, ".1f") for e in entries]),
    ]


def _table(leaderboard: Leaderboard, columns: _Columns) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0))
    table.add_column("Model", overflow="fold", min_width=_LEAST_NAME)
    for title, _ in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for i, row in enumerate(leaderboard.rows):
        mark = _mark(row)
        name = escape(row.entry.name) + (f"\n[bold]{mark}[/]" if mark else "")
        table.add_row(name, *(lines[i] for _, lines in columns))
    return table


def _mark(row: LeaderboardRow) -> str:
    if row.versus_winner is None:
        return "winner"
    if row.entry.stopped_early:
        return "stopped early"
    if math.isnan(row.p_holm):
        return "not tested"
    return "not distinguishable" if row.p_holm >= 0.05 else ""


def _narrow(interval: Interval) -> str:
    """A range in few characters; a hyphen would be misread beside a negative number."""
    if math.isnan(interval.low):
        return ""
    low, high = (f"{end:.2f}" for end in (interval.low, interval.high))
    if interval.low < 0:
        return f"{low} to {high}"
    return f"{low.removeprefix('0')}-{high.removeprefix('0')}"
