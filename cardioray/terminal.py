"""What long work shows on a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import Progress


@contextlib.contextmanager
def progress_bar(console: Console, title: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar, and what moves it: called with what is done and the total."""
    with Progress(console=console) as progress:
        bar = progress.add_task(title, total=total)
        yield lambda done, total: progress.update(bar, completed=done, total=total)
