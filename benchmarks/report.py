"""What every benchmark yields: a table, ratios to its peers with their goals, and the environment.

A report is saved as benchmarks/results/NAME.json; docs/benchmarks.md is written from these files.
"""

from __future__ import annotations

import json
import operator
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cardioray.bundle import dump_json
from cardioray.machine import bf16_flags, cpu_flags, find_gpus, usable_cores, usable_memory_gib

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
PACKAGES = (
    *("ray", "torch", "torchvision", "timm", "segmentation-models-pytorch", "openvino"),
    *("numpy", "opencv-python-headless", "albumentations", "fastapi", "uvicorn", "litserve"),
)
_COMPARISONS = {">=": operator.ge, "<=": operator.le}

Cell = str | float | int | None


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A figure of CardioRay over that of its peer, or a difference, with what was aimed at.

    Attributes:
        name: what is divided by what.
        value: the figure.
        goal: comparison and bound, such as `>= 5` or `<= 0.35`; None where nothing was set.
        unit: of the value; empty for a pure ratio.
    """

    name: str
    value: float
    goal: str | None = None
    unit: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None where there is none."""
        if self.goal is None:
            return None
        sign, bound = self.goal.split()
        return bool(_COMPARISONS[sign](self.value, float(bound)))


@dataclass(frozen=True, kw_only=True)
class Report:
    """One benchmark's outcome.

    Attributes:
        name: of the benchmark and its files.
        title: heading on the page.
        question: what is compared with what, and how it was measured; Markdown.
        columns: key of a row -> heading with unit, in order.
        rows: one mapping a system or size; a missing key is an empty cell.
        ratios: the verdicts.
        settings: what was chosen for the run (model, sizes, seconds).
        plot: name of a picture in docs/images, or None.
        environment: machine, versions, revision and time; filled in when left empty.
    """

    name: str
    title: str
    question: str
    columns: Mapping[str, str]
    rows: Sequence[Mapping[str, Cell]]
    ratios: Sequence[Ratio]
    settings: Mapping[str, Any]
    plot: str | None = None
    environment: Mapping[str, Any] = field(default_factory=lambda: environment())

    def save(self, folder: Path = RESULTS) -> Path:
        """Write NAME.json and give its path."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.name}.json"
        file.write_bytes(dump_json(asdict(self)))
        return file

    @classmethod
    def read(cls, file: Path) -> Report:
        """A report that was saved."""
        values = json.loads(file.read_text())
        values["ratios"] = [Ratio(**ratio) for ratio in values["ratios"]]
        return cls(**values)

    def show(self, console: Console) -> None:
        """Print the table and the ratios."""
        table = Table(*self.columns.values(), title=self.title)
        for row in self.rows:
            table.add_row(*(_shown(row.get(key)) for key in self.columns))
        console.print(table)
        for ratio in self.ratios:
            console.print(f"  {ratio.name}: [bold]{_with_goal(ratio)}[/]")

    def markdown(self) -> str:
        """The report as a section of the page."""
        lines = [f"## {self.title}", "", self.question, ""]
        lines += _markdown_table(
            list(self.columns.values()),
            [[_shown(row.get(key)) for key in self.columns] for row in self.rows],
        )
        lines += [""] + [f"- {ratio.name}: **{_with_goal(ratio)}**" for ratio in self.ratios]
        if self.plot:
            lines += ["", f"![{self.title}](images/{self.plot})"]
        chosen = ", ".join(
            f"{key.replace('_', ' ')} {value}" for key, value in self.settings.items()
        )
        where = self.environment
        machine = f"{where['cores']} cores of {where['cpu']}, {where['gpu'] or 'no GPU'}"
        lines += ["", f"{chosen[:1].upper()}{chosen[1:]}. {machine}; {where['date']}."]
        return "\n".join(lines) + "\n"


def environment() -> dict[str, Any]:
    """Machine, versions, revision, date and load, so that a figure can be placed."""
    gpus = find_gpus()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "memory_gib": round(usable_memory_gib(), 1),
        "bf16": bf16_flags(cpu_flags()),
        "gpu": gpus[0].name if gpus else None,
        "gpus": len(gpus),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: v for name in PACKAGES if (v := _version(name))},
        "revision": _revision(),
        "load_average": os.getloadavg()[0],
    }


def write_page(page: Path = PAGE, results: Path = RESULTS) -> str:
    """Write the page from every saved report; gives its text."""
    reports = [Report.read(file) for file in sorted(results.glob("*.json"))]
    text = "\n".join([_INTRODUCTION, *(report.markdown() for report in reports)])
    page.write_text(text)
    return text


_INTRODUCTION = """# Benchmarks

Each benchmark runs CardioRay and a peer in turn, in one run on one machine, and gives the ratio.
Absolute figures belong to the machine named below each table; ratios travel better. The page is
written from `benchmarks/results/*.json`, which also hold versions and settings.

```bash
pip install -c constraints.txt -e '.[benchmarks]'
python -m benchmarks --help
python -m benchmarks page
```
"""


def _with_goal(ratio: Ratio) -> str:
    text = _shown(ratio.value) + (f" {ratio.unit}" if ratio.unit else "")
    if ratio.goal is None:
        return text
    return f"{text} (goal {ratio.goal}: {'met' if ratio.met else 'missed'})"


def _shown(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def _markdown_table(headings: list[str], rows: list[list[str]]) -> list[str]:
    lines = [headings, ["---"] * len(headings), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _revision() -> str | None:
    """The commit, marked where the code that was measured differs from it."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    commit = git("rev-parse", "--short", "HEAD").stdout.strip()
    changed = git("status", "--porcelain", "--", "cardioray", "benchmarks/*.py").stdout.strip()
    return f"{commit}{'-dirty' if changed else ''}" if commit else None
