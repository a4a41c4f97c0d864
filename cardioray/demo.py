"""The main job from beginning to end, on phantoms: what `make demo` runs.

Phantom patients, ten backbones compared, the winner served, a real request answered over HTTP.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
from rich.console import Console

from cardioray import config, storage
from cardioray.data import cluster
from cardioray.data.pipeline import PrepareConfig, prepare
from cardioray.evaluation.leaderboard_terminal import print_leaderboard
from cardioray.machine import environment, free_port
from cardioray.phantoms.angiogram import PRESETS, write_angiograms
from cardioray.serve.deploy import application_settings, serve_bundles
from cardioray.serve.proxy import VARIABLES
from cardioray.serve.settings import ServerSettings
from cardioray.studies import load
from cardioray.terminal import progress_bar
from cardioray.training.progress import Shown
from cardioray.training.settings import RunConfig
from cardioray.tuning.compare import Comparison, compare
from cardioray.tuning.settings import AshaConfig, CompareConfig, select_backbones

# Least AUC of the demo's winner on patients it never saw.
LEAST_AUC = 0.80
# Largest difference of a probability between a server and Python, with the same runtime and batch.
SAME = 1e-6


@config.config
class DemoConfig:
    """Size of the demo.

    Attributes:
        patients: phantom patients.
        frames_per_patient: frames drawn of each; more patients teach more than more frames do.
        preset: difficulty of the phantoms.
        image_size: side in px of what the networks see; Inception networks need 75.
        epochs: most epochs a training.
        batch_size: pictures a step.
        learning_rate: peak rate of the one-cycle schedule.
        backbones: which of the ten.
        folds: folds of the comparison.
        grace_epochs: epochs every backbone gets before ASHA may stop it.
        reduction_factor: of the backbones at that point, one in this many goes on.
        seed: of everything.
        shuffle_labels: give every patient another one's label, so that nothing can be learned.
    """

    patients: int = 150
    frames_per_patient: int = 2
    preset: str = "clear"
    image_size: int = 75
    epochs: int = 5
    batch_size: int = 16
    learning_rate: float = 1e-3
    backbones: str = "all"
    folds: int = 2
    grace_epochs: int = 2
    reduction_factor: float = 5.0
    seed: int = 7
    shuffle_labels: bool = False


def run_demo(out: str, settings: DemoConfig, console: Console) -> dict[str, Any]:
    """Run the whole way and leave everything in `out`; a second call only serves again.

    Returns:
        The answer that the served winner gave over HTTP.

    Raises:
        ValueError: when `out` is no local folder.
        Failed: when the server answers otherwise than Python, or when the demo as it stands
            has not learned what it should.
    """
    if storage.is_remote(out):
        raise ValueError(f"The demo works in a local folder, and {out} is a bucket's.")
    root = Path(out).expanduser().resolve()
    say = _teller(console)
    comparison = compare_on_phantoms(root, settings, console, say)
    print_leaderboard(comparison.leaderboard, console)
    auc = _held_out(comparison, console)
    say("4. Serve the winner and ask it over HTTP")
    answer = _serve_and_ask(comparison, root, console)
    say("Done")
    console.print(f"Leaderboard: {root / 'compare' / 'leaderboard.html'}")
    console.print(f"Bundle:      {comparison.bundles[0].place}")
    console.print(f"Serve again: cardioray serve {comparison.bundles[0].place}")
    require_learned(settings, auc)
    return answer


def _teller(console: Console) -> Callable[[str], None]:
    """What prints the heading of a step with the seconds until then."""
    started = time.monotonic()

    def say(text: str) -> None:
        console.rule(f"[bold]{text}[/] ({time.monotonic() - started:.0f} s)", align="left")

    return say


def compare_on_phantoms(
    root: Path, settings: DemoConfig, console: Console, say: Callable[[str], None]
) -> Comparison:
    """The demo up to its winner: patients drawn, shards made, backbones compared."""
    say(f"1. {settings.patients} phantom patients, preset {settings.preset!r}")
    manifest = _phantoms(root, settings, console)
    say("2. Shards: decode and resize once")
    run = _run_config(settings)
    with environment(VARIABLES):  # of the proxies that will serve the winner
        cluster.connect(dashboard=True)
    data = run.task.read_manifest(str(manifest), None)
    with progress_bar(console, "preparing", len(data)) as advance:
        shards = prepare(run.task, data, str(root / "shards"), PrepareConfig(), advance)
    say("3. Compare backbones: ASHA on the first fold, survivors on all")
    return compare(
        run,
        shards,
        CompareConfig(
            backbones=select_backbones(settings.backbones, run.task),
            folds=settings.folds,
            asha=AshaConfig(
                grace_epochs=settings.grace_epochs,
                reduction_factor=settings.reduction_factor,
            ),
            seed=settings.seed,
        ),
        str(root / "compare"),
        shown=Shown("Comparing ffr", run.task.monitor.name, console),
    )


def _phantoms(root: Path, settings: DemoConfig, console: Console) -> Path:
    """Draw the patients; gives the manifest."""
    folder = root / "phantoms"
    drawn = PRESETS.get(settings.preset)
    with progress_bar(console, "drawing patients", settings.patients) as advance:
        table = write_angiograms(
            str(folder),
            settings.patients,
            seed=settings.seed,
            config=dataclasses.replace(drawn, frames_per_patient=settings.frames_per_patient),
            on_progress=advance,
        )
    if not settings.shuffle_labels:
        return folder
    shuffled = folder / "manifest-shuffled.csv"
    shuffle_labels(table, settings.seed).to_csv(shuffled, index=False)
    return shuffled


def shuffle_labels(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Every patient with the FFR and label of one drawn without replacement.

    Args:
        table: a manifest with the columns patient_id, ffr and label.
        seed: of the draw.
    """
    patients = table.drop_duplicates("patient_id").set_index("patient_id")[["ffr", "label"]]
    drawn = patients.sample(frac=1, random_state=seed)
    drawn.index = patients.index
    return table.drop(columns=["ffr", "label"]).join(drawn, on="patient_id")


def _run_config(settings: DemoConfig) -> RunConfig:
    values = {
        "preprocess": {"image_size": settings.image_size},
        # From scratch on purpose: the demo gives the same figures with and without internet.
        "model": {"pretrained": "none"},
        "train": {
            "epochs": settings.epochs,
            "batch_size": settings.batch_size,
            "learning_rate": settings.learning_rate,
            "seed": settings.seed,
        },
    }
    return RunConfig.build("ffr", values)


def _held_out(comparison: Comparison, console: Console) -> dict[str, float]:
    """Print the AUC on held-out patients, and give it with its interval."""
    bundle = comparison.bundles[0]
    figures = bundle.json("metrics.json")["targets"]["ffr"]
    auc: dict[str, float] = figures["per_study"]["auc"]
    console.print(
        f"The winner, {bundle.name}, trained again and scored once on {figures['patients']} "
        f"held-out phantom patients: AUC {auc['value']:.3f} "
        f"(95 % interval {auc['low']:.3f} to {auc['high']:.3f}).",
        highlight=False,
    )
    return auc


def require_learned(settings: DemoConfig, auc: dict[str, float]) -> None:
    """Whether the demo, unchanged, found what is drawn into its phantoms.

    Args:
        settings: of the demo; what was made smaller or given other labels need not learn.
        auc: "value", "low" and "high" on held-out patients.

    Raises:
        Failed: when it did not.
    """
    if settings == DemoConfig() and not (auc["value"] >= LEAST_AUC and auc["low"] > 0.5):
        raise config.Failed(
            f"the winner's AUC on held-out patients should be at least {LEAST_AUC} with an "
            f"interval above 0.5; it is {auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f})."
        )


def _serve_and_ask(comparison: Comparison, root: Path, console: Console) -> dict[str, Any]:
    """Deploy the winner, send it all frames of one held-out patient, and stop."""
    bundle = comparison.bundles[0]
    predictions = pd.read_parquet(bundle.path / "predictions.parquet")
    test = predictions[predictions["split"] == "test"]
    frames = test[test["patient_id"] == test["patient_id"].iloc[0]]["source"].unique()
    files = [("files", (root / "phantoms" / source).read_bytes()) for source in frames]
    server = ServerSettings(port=free_port())
    # What Serve does on the way is of no interest here; its warnings are.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serving = serve_bundles(application_settings([str(bundle.path)]), server)
    try:
        url = serving.urls["ffr"]
        response = httpx.post(url, files=files, timeout=60.0)
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
    finally:
        serving.stop()
    console.print(f"POST {url} with {len(files)} frames answered {response.status_code}:")
    console.print_json(json.dumps(answer))
    in_python = load(str(bundle.path)).predict([data for _, data in files])
    difference = abs(in_python["ffr"]["probability"] - answer["ffr"]["probability"])
    if difference > SAME:
        raise config.Failed(f"the server's probability differs from Python's by {difference:.1e}.")
    console.print(f"cardioray.load(...).predict gives the same to {difference:.1e}.")
    return answer
