"""`python -m benchmarks NAME`: run one benchmark, print it, save it, and write the page anew."""

from __future__ import annotations

import typer
from rich.console import Console

from benchmarks.report import PAGE, Report, write_page

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
console = Console()


@app.command()
def page() -> None:
    """Write docs/benchmarks.md from the saved reports."""
    write_page()
    console.print(f"wrote {PAGE}")


def finish(report: Report) -> None:
    """Print and save a report, and bring the page up to date."""
    report.show(console)
    console.print(f"saved {report.save()}")
    write_page()


if __name__ == "__main__":
    app()
