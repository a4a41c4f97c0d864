"""What is shown while runs go on: a table on a terminal, lines in a log."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from cardioray.training import progress
from cardioray.training.progress import ProgressBoard, Shown, shown_progress

BOARD_OF_ALL = ProgressBoard()
BOARD_OF_ALL.begin("first fold", ["a-fold0", "b-fold0", "c-fold0", "d-fold0", "e-fold0"])
BOARD_OF_ALL.update("a-fold0", {"status": progress.DONE, "epoch": 6.0, "epochs": 6, "best": 0.91})
BOARD_OF_ALL.update("b-fold0", {"status": progress.STOPPED, "best": 0.7})
BOARD_OF_ALL.update("c-fold0", {"status": progress.STARTING})
BOARD_OF_ALL.update(
    "d-fold0",
    {
        "status": progress.RUNNING,
        "stage": "fine_tune",
        "epoch": 2.25,
        "epochs": 6,
        "best": float("nan"),
        "images_per_second": 151.4,
    },
)


def written(board: ProgressBoard, figure: str = "val_auc", *, terminal: bool = False) -> str:
    console = Console(width=80, file=io.StringIO(), record=True, force_terminal=terminal)
    shown = Shown("Comparing ffr", figure, console)
    step, runs = board.snapshot()
    if terminal:
        console.print(progress._table(step, runs, shown))
        return console.export_text()
    return progress._line(step, runs, shown)


def test_a_line_says_what_ended_what_runs_and_what_is_best() -> None:
    assert written(BOARD_OF_ALL) == (
        "Comparing ffr, first fold; 1 of 5 done, 1 stopped early, 1 waiting; running d-fold0 "
        "(2.2/6 epochs, 151 images/s); starting c-fold0; best val_auc 0.910 (a-fold0)"
    )


def test_a_late_word_of_a_stopped_run_does_not_bring_it_back() -> None:
    board = ProgressBoard()
    board.begin("first fold", ["a"])
    board.update("a", {"status": progress.STOPPED, "best": 0.7})
    board.update("a", {"status": progress.RUNNING, "epoch": 2.1, "epochs": 6, "best": 0.8})
    assert board.snapshot()[1]["a"] == {"status": progress.STOPPED, "best": 0.7}


def test_the_best_of_an_error_is_the_smallest() -> None:
    assert "best val_mae 0.700 (b-fold0)" in written(BOARD_OF_ALL, "val_mae")


def test_one_run_needs_no_best_and_no_run_no_counts() -> None:
    board = ProgressBoard()
    board.begin("reading")
    assert written(board) == "Comparing ffr, reading"
    board.update("run", {"status": progress.RUNNING, "epoch": 0.5, "epochs": 2, "best": 0.8})
    assert written(board) == (
        "Comparing ffr, reading; 0 of 1 done; running run (0.5/2 epochs, val_auc 0.800)"
    )


def test_a_run_that_begins_again_keeps_what_it_said() -> None:
    board = ProgressBoard()
    board.update("a", {"status": progress.DONE, "best": 0.9})
    board.begin("other folds", ["a", "b"])
    assert board.snapshot()[1] == {
        "a": {"status": progress.DONE, "best": 0.9},
        "b": {"status": progress.WAITING},
    }


def test_the_table_fits_eighty_columns() -> None:
    text = written(BOARD_OF_ALL, terminal=True)
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    for word in ("first fold", "running, fine_tune", "stopped early", "2.2/6", "151", "waiting"):
        assert word in text
    places = [text.index(f"\n{letter}-fold0") for letter in "dcabe"]
    assert places == sorted(places)


@pytest.mark.ray
def test_a_log_gets_whole_lines_as_things_happen(ray_local: None) -> None:
    import ray

    stream = io.StringIO()
    shown = Shown("Comparing ffr", "val_auc", Console(file=stream, width=80))
    labels = [f"a-backbone-with-a-long-name-{i}" for i in range(6)]
    with shown_progress(shown) as board:
        assert board is not None
        ray.get(board.begin.remote("first fold", labels))
        for label in labels:
            ray.get(board.update.remote(label, {"status": progress.STARTING}))
    lines = stream.getvalue().splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d Comparing ffr", line) for line in lines)
    assert all(label in lines[-1] for label in labels)


@pytest.mark.ray
def test_ctrl_c_is_answered_with_how_to_go_on(ray_local: None) -> None:
    stream = io.StringIO()
    shown = Shown("Training", "val_auc", Console(file=stream, width=80))
    with pytest.raises(KeyboardInterrupt), shown_progress(shown):
        raise KeyboardInterrupt
    assert stream.getvalue().endswith("The same command goes on from the last checkpoints.\n")
