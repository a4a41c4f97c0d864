"""The models of an application: loading, naming, batching, and following production."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from ray.serve.handle import DeploymentHandle

from cardioray.answers import ModelOutputs
from cardioray.bundle import Bundle, open_bundle
from cardioray.data.decoding import DecodedSample, Decoder
from cardioray.data.isolation import IsolatedDecoder, IsolationConfig
from cardioray.model_store import bundle_place, production_path
from cardioray.predictor import Overlay, Predictor
from cardioray.registry import unknown_name
from cardioray.scratch import process_folder
from cardioray.serve.batcher import Batcher
from cardioray.serve.metrics import ServeMetrics
from cardioray.serve.problems import Problem
from cardioray.serve.settings import ServeSettings
from cardioray.studies import open_predictor

RuntimeName = Literal["auto", "openvino", "torch"]

log = logging.getLogger("ray.serve.cardioray")

_NO_PICTURE = np.zeros((1, 1), np.uint8)
# A pass of 32 frames takes a second or two on one slow core, and some where pictures are large.
STUCK_AFTER_S = 120.0
# Who asks whether a replica is ready does so every few seconds, and goes elsewhere if it is not.
READY_WITHIN_S = 5.0


class Engine(Protocol):
    """Where the network of a model runs."""

    @property
    def busy_s(self) -> float: ...  # noqa: D102

    async def ready(self) -> None: ...  # noqa: D102

    async def infer(self, samples: Sequence[DecodedSample]) -> ModelOutputs: ...  # noqa: D102

    async def overlay(self, sample: DecodedSample, method: str) -> Overlay: ...  # noqa: D102


class LocalEngine:
    """A network in this process, behind a batcher."""

    def __init__(
        self,
        predictor: Predictor,
        name: str,
        settings: ServeSettings,
        metrics: ServeMetrics,
        threads: Threads,
    ) -> None:
        self._predictor = predictor
        self._threads = threads
        self._batcher = Batcher(
            predictor.infer,
            threads.model,
            max_batch_size=settings.max_batch_size,
            wait_s=settings.batch_wait_ms / 1000,
            on_batch=lambda frames: metrics.batch(name, frames, self._batcher.waiting),
            passes=predictor.passes,
        )

    @property
    def busy_s(self) -> float:
        """Seconds the present forward pass has taken so far."""
        return self._batcher.busy_s

    async def ready(self) -> None:
        """Loaded and warm since it is there."""

    async def infer(self, samples: Sequence[DecodedSample]) -> ModelOutputs:
        """The outputs for one study."""
        return await self._batcher.infer(samples)

    async def overlay(self, sample: DecodedSample, method: str) -> Overlay:
        """A frame or cine with the heat of the headline target."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads.overlay, self._predictor.overlay, sample, method
        )


class RemoteEngine:
    """A network in replicas of the model deployment."""

    busy_s = 0.0  # those replicas have a health check of their own

    def __init__(self, handle: DeploymentHandle[Any], path: str, name: str) -> None:
        self._handle = handle
        self._key = (path, name)

    async def infer(self, samples: Sequence[DecodedSample]) -> ModelOutputs:
        """The outputs for one study."""
        # The network needs the prepared arrays only; the pictures stay here.
        small = [dataclasses.replace(sample, picture=_NO_PICTURE) for sample in samples]
        outputs: ModelOutputs = await self._handle.infer.remote(*self._key, small)
        return outputs

    async def overlay(self, sample: DecodedSample, method: str) -> Overlay:
        """A frame or cine with the heat of the headline target."""
        picture: Overlay = await self._handle.overlay.remote(*self._key, sample, method)
        return picture

    async def prepare(self) -> None:
        """Have the model loaded before the first request needs it."""
        await self._handle.prepare.remote(*self._key)

    async def ready(self) -> None:
        """Return when a replica has the model loaded.

        Raises:
            RuntimeError: when none says so within `READY_WITHIN_S`.
        """
        try:
            await asyncio.wait_for(self.prepare(), READY_WITHIN_S)
        except TimeoutError:
            raise RuntimeError(
                f"No replica has the network of model {self._key[1]} ready."
            ) from None


@dataclass(frozen=True)
class Threads:
    """Thread pools of a replica.

    Attributes:
        decode: files to arrays, and outputs to answers.
        model: the forward pass, one at a time.
        overlay: heat maps, one at a time and beside the forward passes.
    """

    decode: ThreadPoolExecutor
    model: ThreadPoolExecutor
    overlay: ThreadPoolExecutor

    @classmethod
    def start(cls, decoders: int) -> Threads:
        """Start the pools."""
        return cls(
            decode=ThreadPoolExecutor(decoders, "decode"),
            model=ThreadPoolExecutor(1, "model"),
            overlay=ThreadPoolExecutor(1, "overlay"),
        )


@dataclass(frozen=True)
class Model:
    """A bundle that answers.

    Attributes:
        name: for `?model=`, and in answers.
        path: where the bundle was opened from.
        predictor: turns outputs into answers.
        engine: runs the network.
        decoder: the predictor's, in processes of its own where it is a risky one.
    """

    name: str
    path: str
    predictor: Predictor
    engine: Engine
    decoder: Decoder | IsolatedDecoder

    @property
    def bundle(self) -> Bundle:
        """The files."""
        return self.predictor.bundle


class Catalogue:
    """The models of an application by name; the first one answers by default."""

    def __init__(
        self,
        settings: ServeSettings,
        metrics: ServeMetrics,
        load: Callable[[str, str | None], Model],
    ) -> None:
        """Load every model; blocks until all are warm.

        Args:
            settings: which bundles, and which store to follow.
            metrics: told of swaps.
            load: makes a model from the path of a bundle and the name it shall have.

        Raises:
            ValueError: when two models have one name, or a bundle is of another task.
        """
        self._settings = settings
        self._metrics = metrics
        self._load = load
        self._followed: Model | None = None
        if settings.follow:
            self._followed = self._open(production_path(settings.follow, settings.task), None)
        self._pinned = [self._open(item.path, item.name) for item in settings.named_bundles]
        self._by_name = _by_name(self.models)

    @property
    def models(self) -> list[Model]:
        """All models, the default one first."""
        return [*([self._followed] if self._followed else []), *self._pinned]

    @property
    def default(self) -> Model:
        """The model that answers when none is asked for."""
        return self.models[0]

    def get(self, name: str | None) -> Model:
        """A model by name.

        Raises:
            Problem: 404 with the known names.
        """
        if name is None:
            return self.default
        if name not in self._by_name:
            detail = str(unknown_name("model", name[:80], self._by_name))
            raise Problem("unknown-model", 404, "There is no such model", detail)
        return self._by_name[name]

    async def follow(self) -> None:
        """Look at the store for ever, and swap the default model when its production changed."""
        assert self._settings.follow
        while True:
            await asyncio.sleep(self._settings.follow_every_s)
            try:
                await self._look()
            except Exception:
                # The store may be away for a while; the present model goes on answering.
                self._metrics.swap("failed")
                log.exception("The production model could not be followed.")

    async def _look(self) -> None:
        assert self._settings.follow
        assert self._followed
        path = await asyncio.to_thread(production_path, self._settings.follow, self._settings.task)
        if path == self._followed.path:
            return
        started = time.monotonic()
        fresh = await asyncio.to_thread(self._open, path, None)
        if isinstance(fresh.engine, RemoteEngine):
            await fresh.engine.prepare()
        by_name = _by_name([fresh, *self._pinned])
        before, self._followed, self._by_name = self._followed, fresh, by_name
        self._metrics.swap("swapped")
        log.info(
            "production: %s (%s) follows %s (%s), ready after %.1f s",
            fresh.name,
            fresh.bundle.identity,
            before.name,
            before.bundle.identity,
            time.monotonic() - started,
        )

    def _open(self, path: str, name: str | None) -> Model:
        model = self._load(path, name)
        if model.bundle.task != self._settings.task:
            raise ValueError(
                f"{path} is a bundle of task {model.bundle.task!r}; this application answers "
                f"{self._settings.task!r}."
            )
        return model


def check_models(models: Sequence[Model]) -> None:
    """Fail when a network does not come back.

    Raises:
        RuntimeError: after `STUCK_AFTER_S`; Serve then replaces the replica.
    """
    for model in models:
        if model.engine.busy_s > STUCK_AFTER_S:
            raise RuntimeError(
                f"Model {model.name} has been busy with one batch for {model.engine.busy_s:.0f} s."
            )


async def check_ready(models: Sequence[Model]) -> None:
    """Fail when a network cannot be asked now, wherever it runs.

    Raises:
        RuntimeError: says which.
    """
    check_models(models)
    await asyncio.gather(*(model.engine.ready() for model in models))


def load_local(
    path: str,
    name: str | None,
    settings: ServeSettings,
    metrics: ServeMetrics,
    threads: Threads,
) -> Model:
    """Load a bundle, warm it up for every batch size, and put a batcher in front of it.

    Raises:
        ValueError: when the replica was given a GPU and PyTorch finds none.
    """
    if settings.gpus > 0 and not torch.cuda.is_available():
        raise ValueError(
            f"The application asks for {settings.gpus:g} GPU a replica, and PyTorch finds none. "
            "Install a PyTorch with CUDA on that machine, or set gpus: 0 to answer on CPUs."
        )
    predictor = _predictor(
        path,
        settings.systoles_from,
        runtime=settings.runtime,
        precision=settings.precision,
        num_threads=settings.threads,
        max_windows=settings.limits.max_windows,
    )
    predictor.warm_up(range(1, settings.max_batch_size + 1))
    name = name or predictor.bundle.name
    engine = LocalEngine(predictor, name, settings, metrics, threads)
    return Model(name, path, predictor, engine, _shielded(predictor, settings))


def load_remote(
    path: str, name: str | None, settings: ServeSettings, handle: DeploymentHandle[Any]
) -> Model:
    """Open a bundle for decoding and answering, with its network elsewhere."""
    predictor = _predictor(
        path,
        settings.systoles_from,
        runtime=_runtime_elsewhere(settings),
        max_windows=settings.limits.max_windows,
        network=False,
    )
    name = name or predictor.bundle.name
    engine = RemoteEngine(handle, path, name)
    return Model(name, path, predictor, engine, _shielded(predictor, settings))


def decoding_threads(settings: ServeSettings) -> int:
    """Files that a replica decodes at a time."""
    return math.ceil(settings.ingress_cpus if settings.apart else settings.cpus)


def _shielded(predictor: Predictor, settings: ServeSettings) -> Decoder | IsolatedDecoder:
    """A bundle's decoder; processes that it runs in end with the bundle."""
    decoder = predictor.decoder
    if not decoder.risky:
        return decoder
    bounds = IsolationConfig(
        deadline_s=settings.limits.decode_s, memory_mb=settings.limits.decode_mb
    )
    shielded = IsolatedDecoder(decoder, bounds, processes=decoding_threads(settings))
    weakref.finalize(predictor, shielded.close)
    return shielded


def _predictor(path: str, systoles_from: str | None, **options: Any) -> Predictor:
    """A bundle's predictor; copies from a bucket go with it, or after the process."""
    scratch = tempfile.mkdtemp(prefix="bundle-", dir=process_folder())
    try:
        outlines = None
        if systoles_from is not None:
            outlines = open_bundle(bundle_place(systoles_from), Path(scratch))
        bundle = open_bundle(bundle_place(path), Path(scratch))
        predictor = open_predictor(bundle, systoles_from=outlines, **options)
    except BaseException:
        shutil.rmtree(scratch)
        raise
    weakref.finalize(predictor, shutil.rmtree, scratch, ignore_errors=True)
    return predictor


def _runtime_elsewhere(settings: ServeSettings) -> RuntimeName:
    """What runs the network in the replicas that have it; "auto" goes by their device."""
    return "torch" if settings.runtime == "auto" and settings.gpus > 0 else settings.runtime


def describe(model: Model, default: bool) -> dict[str, Any]:
    """What a client may know of a model."""
    metadata = model.bundle.metadata
    return {
        "name": model.name,
        "bundle": model.bundle.identity,
        "task": model.bundle.task,
        "description": metadata["description"],
        "created": metadata["created"],
        "runtime": model.predictor.runtime,
        "default": default,
    }


def _by_name(models: Sequence[Model]) -> dict[str, Model]:
    by_name: dict[str, Model] = {}
    for model in models:
        if model.name in by_name:
            raise ValueError(
                f"Two bundles answer to the name {model.name!r}: {by_name[model.name].path} and "
                f"{model.path}. Name one of them: {{path: ..., name: ...}}."
            )
        by_name[model.name] = model
    return by_name
