"""The driver's side of a training run: plan it, hand it to Ray Train, read what it left."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import ray
import yaml
from numpy.typing import NDArray
from ray.actor import ActorHandle
from ray.train import CheckpointConfig, FailureConfig, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from safetensors.numpy import load as load_arrays

from cardioray import config, storage
from cardioray.data import cluster
from cardioray.data.manifest import check_studies
from cardioray.data.ranks import RankedRows, Rows
from cardioray.data.reading import pixel_statistics, read_rows
from cardioray.data.shards import ShardSet
from cardioray.targets import BinaryTarget, RegressionTarget
from cardioray.tasks.base import TASKS, Task, encode_labels
from cardioray.training.controller import (
    EndOnValueError,
    EndWhenWrittenOff,
    TorchGroup,
    run_plan,
)
from cardioray.training.outcome import CONFIG, WEIGHTS_CACHE, Outcome, read_outcome
from cardioray.training.plan import SCORED_SPLITS, TrainPlan
from cardioray.training.progress import STARTING
from cardioray.training.resources import threads_per_worker, worker_resources
from cardioray.training.settings import RunConfig, ScaleConfig, TrainConfig
from cardioray.training.tracking import Tracking, end_tracked
from cardioray.training.trainer import CalledOff, Trainer, fit

log = logging.getLogger(__name__)

STARTED = "started.json"


def run_name(run: RunConfig, shards: ShardSet, split: pd.Series[str]) -> str:
    """A name that changes with anything that changes the result, so that a rerun resumes."""
    model = run.to_dict().get("model", {}).get("backbone", "model")
    return f"{run.task.name}-{model}-{_request(run, shards, split)}"


def _request(run: RunConfig, shards: ShardSet, split: pd.Series[str]) -> str:
    """A short hash over settings, data, division and the file of starting weights."""
    what = run.decisive()
    assignment = pd.util.hash_pandas_object(split.reset_index(drop=True)).to_numpy().tobytes()
    given = what.get("model", {}).get("weights")
    weights = storage.fingerprints([given]) if given else []
    key = [what, shards.index.dataset_hash, assignment.hex(), weights]
    return config.digest(key, length=8)


def train(
    run: RunConfig,
    shards: ShardSet,
    split: pd.Series[str],
    out: str,
    *,
    name: str | None = None,
    progress: ActorHandle[Any] | None = None,
    callbacks: Sequence[Any] = (),
    called_off: Callable[[], bool] | None = None,
) -> Outcome:
    """Train one model on prepared shards, or go on with a run that was stopped.

    The same call after a kill of a worker, a node or the driver continues from the last
    checkpoint; after a finished run it returns its outcome.

    Args:
        run: settings.
        shards: prepared data.
        split: "train", "validation", "calibration", "test" or "" for every sample of the shards.
        out: folder or prefix that holds runs.
        name: the run's folder below it; by default a name that depends on all settings and data.
        progress: actor that is told how far the run is.
        callbacks: for Ray Train's run config (Tune's report callback).
        called_off: asked several times a second whether to end the run where it is.

    Raises:
        CalledOff: when `called_off` said so.
        ValueError: for settings that cannot work with this data or cluster, and for a folder that
            holds a run of other settings or data.
        ray.train.TrainingFailedError: when workers failed more often than `train.max_failures`.
        KeyboardInterrupt: when the user stopped it; the next call goes on.
    """
    cluster.connect()
    out = storage.absolute(out)
    cluster.require_shared(out, run.scale.shared_storage)
    name = name or run_name(run, shards, split)
    folder = storage.join(out, name)
    finished = read_outcome(folder)
    if finished is not None:
        _require_same(folder, _request(run, shards, split))
        log.info("%s is finished; nothing to do.", folder)
        return finished
    start = None
    first = pretraining_run(run)
    if first is not None:
        log.info("%s starts from a network of %s, which is trained first.", name, first.task.name)
        start = pretrain(
            first, shards, split, out, f"{name}-start", progress=progress, called_off=called_off
        ).weights_place
    cache = storage.join(out, WEIGHTS_CACHE)
    plan = make_plan(run, shards, split, folder, cache, progress, name, start=start)
    text = yaml.safe_dump(run.to_dict(), sort_keys=False)
    storage.write_bytes(storage.join(folder, CONFIG), text.encode())
    if progress is not None:
        progress.update.remote(name, {"status": STARTING})
    trainer = _trainer(run, plan, out, name, [*callbacks, EndWhenWrittenOff(), EndOnValueError()])
    trainer.called_off = called_off
    try:
        fit(trainer)
    except (CalledOff, KeyboardInterrupt):
        end_tracked(folder, "KILLED")
        raise
    except Exception:
        end_tracked(folder, "FAILED")
        raise
    outcome = read_outcome(folder)
    assert outcome is not None
    for note in outcome.notes:
        log.warning("%s: %s", name, note)
    return outcome


def pretraining_run(run: RunConfig) -> RunConfig | None:
    """The training that comes before one, or None: see `Task.pretraining`."""
    first = run.task.pretraining()
    if first is None:
        return None
    changed = replace(
        run.train,
        recipe="scratch",
        stages=None,
        epochs=first.epochs,
        learning_rate=first.learning_rate,
        batch_size=first.batch_size,
    )
    return replace(run, task=first.task, train=changed)


def pretrain(
    first: RunConfig,
    shards: ShardSet,
    split: pd.Series[str],
    out: str,
    name: str | None = None,
    *,
    progress: ActorHandle[Any] | None = None,
    called_off: Callable[[], bool] | None = None,
) -> Outcome:
    """Train the network that another one starts from, on training and validation patients alone.

    Args:
        first: its run (`pretraining_run`).
        shards: prepared data of the run that starts from it.
        split: split of every sample; what is told of other patients is of no use here, and they
            are not to be seen.
        out: folder or prefix that holds runs.
        name: as in `train`.
        progress: as in `train`.
        called_off: as in `train`.

    Raises:
        ValueError: as `train`, and when the shards have nothing for it to learn from.
    """
    known = split.where(split.isin(["train", "validation"]), "")
    taught = first.task.takes_part(shards.samples)
    if not taught.any():
        raise ValueError(
            f"{shards.path} has no label maps to train the backbone on (model.pretrained=outlines)"
            ": prepare data with label maps, or give weights with model.weights."
        )
    return train(first, shards, known, out, name=name, progress=progress, called_off=called_off)


def make_plan(
    run: RunConfig,
    shards: ShardSet,
    split: pd.Series[str],
    folder: str,
    weights_cache: str,
    progress: ActorHandle[Any] | None,
    label: str,
    *,
    start: str | None = None,
) -> TrainPlan:
    """Decide everything ranks must agree on.

    Where the first weights come from is decided when a run first starts, and kept in its folder: a
    run that goes on with internet may have begun without. `start` names them where a training came
    before.

    Raises:
        ValueError: for what `check_data` refuses, and when the folder holds another run.
    """
    chosen, labels = check_data(run, shards, split)
    training = np.isin(shards.samples["row"].to_numpy(np.int64), chosen["train"])
    carried = {name: shards.samples[name].to_numpy(np.float32) for name in run.task.carried}
    statistics = run.task.label_statistics(
        {target: values[training] for target, values in labels.items()},
        {name: values[training] for name, values in carried.items()},
    )
    if run.task.measures_pixels:
        mean, std = pixel_statistics(
            shards, chosen["train"], run.task.decoder.columns[0], run.train.seed
        )
        statistics = replace(statistics, pixel_mean=mean, pixel_std=std)
    weights = _starting_weights(run, _request(run, shards, split), folder, weights_cache, start)
    return TrainPlan(
        run=run.to_dict(),
        folder=folder,
        shards=shards,
        rows=chosen,
        labels=labels,
        carried=carried,
        statistics=statistics,
        weights=weights,
        stages=run.train.resolved_stages(weights is not None),
        threads=threads_per_worker(run.scale, cluster.capacity(), runs=1),
        progress=progress,
        label=label,
        tracking=Tracking.from_environment(),
    )


def check_data(
    run: RunConfig, shards: ShardSet, split: pd.Series[str]
) -> tuple[dict[str, Rows], dict[str, NDArray[np.float32]]]:
    """The rows of each split that take part, and the labels of all samples.

    Raises:
        ValueError: when the shards were made with other settings, a study has two labels, a split
            that training needs is empty, training or validation rows have one class only, or the
            training rows do not fill one step of every worker.
    """
    require_fitting(run.task, shards)
    labels = encode_labels(run.task, shards.samples)
    check_studies(shards.samples, labels, run.task.studies(shards.samples))
    rows = shards.samples["row"].to_numpy(np.int64)
    _refuse_leak(run, shards, split)
    known = run.task.takes_part(shards.samples)
    if run.task.learns_from_labels:
        known = known & np.any([np.isfinite(values) for values in labels.values()], axis=0)
    parts = {part: known & (split == part).to_numpy() for part in ("train", *SCORED_SPLITS)}
    if run.train.max_patients is not None:
        parts["train"] &= _some_patients(run.train, shards.samples, parts["train"])
    for needed in ("train", "validation"):
        if not parts[needed].any():
            raise ValueError(f"no labelled samples are in the {needed} split.")
    _require_full_step(run, int(parts["train"].sum()))
    if run.task.learns_from_labels:
        _require_labels(run.task, labels, parts)
    return {part: np.sort(rows[mask]) for part, mask in parts.items() if mask.any()}, labels


def seen_by_weights(run: RunConfig, shards: ShardSet) -> NDArray[np.bool_]:
    """Which samples the network of `model.weights` was made with, where its bundle says so.

    A bundle keeps digests of its samples beside the weights. They are compared by content, so that
    samples which were prepared otherwise are not known again.

    Returns:
        (N,); nothing where no weights were given, or a file without a bundle.
    """
    given = run.to_dict().get("model", {}).get("weights")
    if not given:
        return np.zeros(len(shards.samples), bool)
    from cardioray.predictor import SEEN, digest_numbers  # with all it loads; trials need none

    place = storage.join(given.rpartition("/")[0], SEEN)
    if not storage.exists(place):
        return np.zeros(len(shards.samples), bool)
    digests = digest_numbers(shards.samples["array_sha256"].tolist())
    return np.isin(digests, load_arrays(storage.read_bytes(place))["digests"])


def _refuse_leak(run: RunConfig, shards: ShardSet, split: pd.Series[str]) -> None:
    """Refuse to score patients whom the starting weights have learned from."""
    leaked = seen_by_weights(run, shards) & (split == "test").to_numpy()
    if leaked.any():
        patients = shards.samples["patient_id"][leaked].nunique()
        raise ValueError(
            f"model.weights is of a bundle that was made with {patients} of the test patients: "
            "their scores would be too good. Train those weights on other patients, or choose "
            "the test patients by a split column."
        )


def _require_labels(
    task: Task, labels: Mapping[str, NDArray[np.float32]], parts: Mapping[str, NDArray[np.bool_]]
) -> None:
    for target in task.targets:
        _require_both_classes(target, labels[target.name][parts["train"]], "training")
    # Early stopping follows the first target, whose AUC would be no number.
    target = task.targets[0]
    if not np.isfinite(labels[target.name][parts["validation"]]).any():
        raise ValueError(f"no validation sample has a label of {target.name!r}, the headline.")
    _require_both_classes(target, labels[target.name][parts["validation"]], "validation")


def _some_patients(
    train: TrainConfig, samples: pd.DataFrame, training: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Rows of as many training patients as `max_patients` says."""
    patients = np.unique(samples["patient_id"].to_numpy(str)[training])
    drawn = np.random.default_rng(train.seed).permutation(patients)[: train.max_patients]
    return np.asarray(samples["patient_id"].isin(drawn))


def require_fitting(task: Task, shards: ShardSet) -> None:
    """Refuse shards that were made for another task or with other settings than the run's.

    A bundle records the run's settings as those of its pictures, and a server decodes by them.

    Raises:
        ValueError: names what differs.
    """
    index = shards.index
    if index.task != task.name and not _alike(index.task, task):
        raise ValueError(f"{shards.path} holds shards of task {index.task!r}, not {task.name!r}.")
    asked = _flat(config.to_dict(task.decoder))
    made = _flat(index.decode_settings)
    differing = [key for key in asked | made if asked.get(key) != made.get(key)]
    if differing:
        shown = [f"{key}={made.get(key)} (not {asked.get(key)})" for key in differing]
        wanted = " ".join(f"--set {key}={made[key]}" for key in differing if key in made)
        raise ValueError(
            f"{shards.path} was prepared with {', '.join(shown)}. Train with {wanted}, or prepare "
            "the data again."
        )


def _alike(made_for: str, task: Task) -> bool:
    """Whether a task may train on another one's shards."""
    other = TASKS.get(made_for).shards_kind if made_for in TASKS else ""
    return task.shards_kind != "" and task.shards_kind == other


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with the keys that `--set` takes."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _starting_weights(
    run: RunConfig, request: str, folder: str, cache: str, start: str | None
) -> str | None:
    if _require_same(folder, request):
        record = json.loads(storage.read_bytes(storage.join(folder, STARTED)))
        weights: str | None = record["starting_weights"]
        return weights
    weights = start or run.task.starting_weights(cache)
    record = {"request": request, "starting_weights": weights}
    storage.write_bytes(storage.join(folder, STARTED), json.dumps(record, indent=2).encode())
    return weights


def _require_same(folder: str, request: str) -> bool:
    """Whether a run has begun in this folder; refuses one of other settings or data."""
    place = storage.join(folder, STARTED)
    if not storage.exists(place):
        return False
    if json.loads(storage.read_bytes(place))["request"] != request:
        raise ValueError(
            f"{folder} holds a run of other settings or data; give another --name or --out."
        )
    return True


def _trainer(
    run: RunConfig, plan: TrainPlan, out: str, name: str, callbacks: Sequence[Any]
) -> Trainer:
    scale = run.scale
    resources = worker_resources(scale)
    use_gpu = resources.get("GPU", 0) > 0
    backend = _backend(scale, resources.get("GPU", 0))
    filesystem, path = storage.filesystem(out)
    columns = run.task.stored
    return Trainer(
        run_plan,
        # By reference: the controller then passes the plan on without loading what it is made of.
        train_loop_config={"plan": ray.put(plan)},
        scaling_config=ScalingConfig(
            num_workers=scale.workers,
            use_gpu=use_gpu,
            resources_per_worker=resources,
            placement_strategy="SPREAD" if scale.spread else "PACK",
        ),
        run_config=RayRunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem if storage.is_remote(out) else None,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=run.train.max_failures),
            callbacks=list(callbacks),
        ),
        backend_config=TorchGroup(backend),
        datasets={part: read_rows(plan.shards, rows, columns) for part, rows in plan.rows.items()},
        dataset_config=RankedRows(plan.shards, plan.rows, columns, run.train.seed),
    )


def _backend(scale: ScaleConfig, gpus: float) -> str:
    """How the workers talk: nccl where each has a GPU of its own, which it insists on.

    Raises:
        ValueError: when nccl was asked for and workers share a GPU.
    """
    shared = scale.workers > 1 and gpus < 1
    if scale.backend == "auto":
        return "nccl" if gpus and not shared else "gloo"
    if scale.backend == "nccl" and gpus and shared:
        raise ValueError(
            f"nccl needs a GPU for every worker, and scale.gpus_per_worker is {gpus:g}; leave "
            "scale.backend at auto, or give whole GPUs."
        )
    return scale.backend


def _require_full_step(run: RunConfig, num_rows: int) -> None:
    batch, accumulate = run.train.batch_size, run.train.optimizer.accumulate
    needed = batch * accumulate * run.scale.workers
    if num_rows < needed:
        raise ValueError(
            f"{num_rows} training samples do not fill one step of {run.scale.workers} workers x "
            f"{accumulate} batches x {batch} samples; lower train.batch_size."
        )


def _require_both_classes(
    target: BinaryTarget | RegressionTarget, labels: NDArray[np.float32], part: str
) -> None:
    if isinstance(target, RegressionTarget):
        return
    known = labels[np.isfinite(labels)]
    if len(np.unique(known)) < 2:
        only = target.classes[int(known[0])] if len(known) else "no class"
        advice = "; more patients or a larger split.validation help" * (part == "validation")
        raise ValueError(f"all {len(known)} {part} samples of {target.name!r} are {only}{advice}.")
