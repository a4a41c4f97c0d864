"""The deployments of an application: one that answers requests, and one that only computes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from fastapi import FastAPI
from pydicom.dataset import Dataset
from ray.serve.context import _get_global_client
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from cardioray import config
from cardioray.answers import ModelOutputs
from cardioray.data.decoding import DecodedSample
from cardioray.data.image import UnreadableImage
from cardioray.data.isolation import DecoderUnavailableError
from cardioray.dicom_results.objects import read_sources
from cardioray.keyframes import KeyframePredictor, chosen_frames, frame_span
from cardioray.model_store import production_path
from cardioray.models.backbones import NoFeatureMap
from cardioray.outlines import parse_view, shown_as
from cardioray.predictor import Overlay
from cardioray.serve.about import LOOK_FRAMES, about, look_of, unlike_training
from cardioray.serve.auth import read_keys, require_keys
from cardioray.serve.hosting import (
    Catalogue,
    Model,
    Threads,
    check_models,
    decoding_threads,
    load_local,
    load_remote,
)
from cardioray.serve.metrics import ServeMetrics
from cardioray.serve.middleware import log_fault
from cardioray.serve.problems import (
    Problem,
    malformed,
    no_heat_map,
    overloaded,
    too_large,
    unreadable,
)
from cardioray.serve.routes import make_routes
from cardioray.serve.settings import NamedBundle, ServeSettings
from cardioray.serve.upload import SentFile

# Frames whose answer is put together in the event loop. A frame takes 0.2 ms there, and would wait
# for threads that decode; more of them would hold up other requests.
_AT_ONCE = 8


class Answerer:
    """A replica that takes requests, decodes, has the network run, and answers.

    The network is in this process, or, given a handle, in replicas of `ModelReplica`.
    """

    def __init__(
        self, settings: Mapping[str, Any], network: DeploymentHandle[Any] | None = None
    ) -> None:
        self.settings = config.parse(ServeSettings, settings)
        # The address Serve really listens on: http_options of a config file may be overruled by
        # a server that runs already.
        server = _get_global_client()
        assert server is not None
        host = server.http_config.host
        self.keys = read_keys(self.settings.api_keys_file)
        require_keys(host, self.keys)
        _quieten()
        self.metrics = ServeMetrics()
        self._decoders = decoding_threads(self.settings)
        self._threads = Threads.start(decoders=self._decoders)
        self.catalogue = Catalogue(self.settings, self.metrics, self._loader(network))
        self._following: asyncio.Task[None] | None = None

    def _loader(self, network: DeploymentHandle[Any] | None) -> Any:
        if network is not None:
            return functools.partial(load_remote, settings=self.settings, handle=network)
        torch.set_num_threads(self.settings.threads)
        return functools.partial(
            load_local, settings=self.settings, metrics=self.metrics, threads=self._threads
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The routes; Serve calls this once, in the event loop that will run them."""
        if self.settings.follow:
            self._following = asyncio.create_task(self.catalogue.follow())
        return make_routes(self)

    def check_health(self) -> None:
        """Serve replaces the replica when this fails."""
        check_models(self.catalogue.models)

    async def decode(
        self,
        model: Model,
        files: Sequence[bytes],
        frame: str | None,
        pictures: int,
        views: Sequence[str] = (),
        key_frames: tuple[int, int] | None = None,
    ) -> list[DecodedSample]:
        """The frames of a study.

        As many files are decoded at a time as there are threads, and nothing is decoded any more
        once the request is refused: what it may cost is bounded by one file a thread.

        Args:
            model: whose decoder.
            files: contents of the files.
            frame: which frames of each file, or None for the model's own choice.
            pictures: of how many frames the whole picture is kept, to be drawn on.
            views: the view that each file shows, "" where it is not known; () for none known.
            key_frames: of a model of key frames, those of one cine at end diastole and at end
                systole, counted from 0; nothing else of it is kept.

        Raises:
            Problem: when a file cannot be read or there are too many frames, when the views are not
                as many as the files, and for key frames of several files.
        """
        said = _views_of(model, views, len(files))
        if key_frames is not None:
            return await self._decode_key_frames(model, files, said, pictures, key_frames)
        samples: list[DecodedSample] = []
        most = self.settings.limits.max_frames
        step = self._decoders
        for start in range(0, len(files), step):
            pieces = await asyncio.gather(
                *(self._decode(model, data, frame) for data in files[start : start + step]),
                return_exceptions=True,
            )
            for piece, view in zip(pieces, said[start : start + step], strict=True):
                if isinstance(piece, BaseException):
                    raise piece
                samples += [dataclasses.replace(s, view=view) for s in piece] if view else piece
            if len(samples) > most:
                raise unreadable(f"The study has more than {most} frames.")
            samples[pictures:] = [sample.without_picture() for sample in samples[pictures:]]
        return samples

    async def _decode_key_frames(
        self,
        model: Model,
        files: Sequence[bytes],
        views: Sequence[str],
        pictures: int,
        key_frames: tuple[int, int],
    ) -> list[DecodedSample]:
        assert isinstance(model.predictor, KeyframePredictor)
        if len(files) != 1:
            raise malformed(
                f"?key_frames= are those of one cine, and {len(files)} files were sent. Send the "
                "cine alone, or frames in fields that say which they are."
            )
        try:
            span = frame_span(key_frames, self.settings.limits.max_frames)
            cine = await self._decode(model, files[0], span)
            cine = [dataclasses.replace(sample, view=views[0]) for sample in cine]
            samples = chosen_frames(cine, key_frames, model.predictor.frames)
        except UnreadableImage as error:
            raise unreadable(str(error)) from None
        samples[pictures:] = [sample.without_picture() for sample in samples[pictures:]]
        return samples

    async def _decode(self, model: Model, data: bytes, frame: str | None) -> list[DecodedSample]:
        loop = asyncio.get_running_loop()
        most = self.settings.limits.max_frames
        try:
            return await loop.run_in_executor(
                self._threads.decode, model.decoder.decode, data, frame, most
            )
        except UnreadableImage as error:
            raise unreadable(str(error)) from None
        except (MemoryError, DecoderUnavailableError):
            raise  # the server's trouble, not the file's: pictures are measured before decoding
        except Exception as error:
            # Nothing but the upload goes into a decoder: what it did not foresee is in there.
            log_fault("Decoding", error)
            raise unreadable(
                "The file is damaged in a way that the decoder did not expect."
            ) from None

    async def about(self) -> dict[str, Any]:
        """What the page needs to know of this application; see `cardioray.serve.about`."""
        return about(self.catalogue, self.settings)

    async def gate(self, files: Sequence[bytes]) -> dict[str, Any]:
        """Whether the default model has learned from inputs like some files.

        Nothing of what they show has to be known: no answer is given.

        Args:
            files: their contents.

        Returns:
            `reads`: whether the files can be read; `familiar`: whether they are like the training
            data; `findings`: what is unlike them; `problem`: where they cannot be read, the details
            of an error.
        """
        model, limits = self.catalogue.default, self.settings.limits
        try:
            if sum(map(len, files)) > limits.max_bytes:
                raise too_large(limits.max_bytes)
            if len(files) > limits.max_files:
                raise unreadable(f"{len(files)} files were sent; at most {limits.max_files} count.")
            samples = await self.decode(model, files, None, pictures=0)
            with self._overload_told():
                outputs = await model.engine.infer(samples)
            loop = asyncio.get_running_loop()
            findings = await loop.run_in_executor(
                self._threads.decode, unlike_training, model.predictor, samples, outputs
            )
        except UnreadableImage as error:
            problem = unreadable(str(error))
        except Problem as error:
            problem = error
        else:
            return {"reads": True, "familiar": not findings, "findings": findings}
        problem.accepted = model.predictor.task.decoder.accepted
        return {
            "reads": False,
            "familiar": False,
            "findings": [],
            "problem": problem.body(request_id=""),
        }

    async def look(self, file: bytes) -> tuple[bytes, str] | None:
        """What a file shows, for a browser that cannot show it: content and media type.

        None where it cannot be read. A plain tuple, so that whoever asks need not load this code.
        """
        try:
            if len(file) > self.settings.limits.max_bytes:
                return None
            samples = await self.decode(self.catalogue.default, [file], "all", LOOK_FRAMES)
        except Problem:
            return None
        loop = asyncio.get_running_loop()
        seen = await loop.run_in_executor(self._threads.decode, look_of, samples)
        return seen.content, seen.media_type

    async def sources(self, files: Sequence[SentFile]) -> dict[str, Dataset]:
        """The headers that DICOM results refer to, by what each file shows.

        Raises:
            Problem: when a file is none that they could refer to.
        """
        loop = asyncio.get_running_loop()
        try:
            contents = {shown_as(*parse_view(file.view)): file.content for file in files}
            return await loop.run_in_executor(self._threads.decode, read_sources, contents)
        except UnreadableImage as error:
            raise unreadable(str(error)) from None

    async def answer(
        self,
        model: Model,
        samples: Sequence[DecodedSample],
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The answer for the frames of one study.

        Args:
            model: who answers.
            samples: the frames.
            options: what else its predictor's `answer` takes.

        Raises:
            Problem: when no answer can be given for the frames, no cine shows what the model has
                learned, or the replicas with the network are overloaded.
        """
        try:
            model.predictor.check(samples)
        except UnreadableImage as error:
            raise unreadable(str(error)) from None
        started = time.perf_counter()
        with self._overload_told():
            outputs = await model.engine.infer(samples)
        seconds = time.perf_counter() - started
        answering: Callable[..., dict[str, Any]] = model.predictor.answer
        put_together = functools.partial(answering, **(options or {}))
        try:
            if len(samples) <= _AT_ONCE and not model.predictor.task.references:
                answer = put_together(samples, outputs)
            else:
                loop = asyncio.get_running_loop()
                answer = await loop.run_in_executor(
                    self._threads.decode, put_together, samples, outputs
                )
        except UnreadableImage as error:  # none of the cines shows what the model has learned
            raise unreadable(str(error)) from None
        self.metrics.study(model.name, seconds, model.predictor.task.targets, answer)
        return {**answer, "model": model.name}

    async def overlay(self, model: Model, sample: DecodedSample, method: str) -> Overlay:
        """A frame or cine with the heat of the headline target.

        Raises:
            Problem: when the model has no feature map, or the replicas with the network are
                overloaded.
        """
        with self._overload_told():
            try:
                return await model.engine.overlay(sample, method)
            except (NoFeatureMap, UnreadableImage) as error:
                raise no_heat_map(str(error)) from None

    @contextlib.contextmanager
    def _overload_told(self) -> Iterator[None]:
        try:
            yield
        except BackPressureError:
            raise overloaded(self.settings.retry_after_s) from None


class ModelReplica:
    """A replica that computes for the decoding replicas; it takes no requests of its own."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = config.parse(ServeSettings, settings)
        _quieten()
        torch.set_num_threads(self._settings.threads)
        self._metrics = ServeMetrics()
        self._threads = Threads.start(decoders=1)
        self._loading = asyncio.Lock()
        self._pinned = {item.path: self._load(item) for item in self._settings.named_bundles}
        self._followed: dict[str, Model] = {}
        if self._settings.follow:
            path = production_path(self._settings.follow, self._settings.task)
            self._followed[path] = self._load(NamedBundle(path=path))

    def check_health(self) -> None:
        """Serve replaces the replica when this fails."""
        check_models([*self._pinned.values(), *self._followed.values()])

    async def prepare(self, path: str, name: str) -> None:
        """Load a model before it is needed."""
        await self._get(path, name)

    async def infer(self, path: str, name: str, samples: Sequence[DecodedSample]) -> ModelOutputs:
        """The outputs for one study."""
        return await (await self._get(path, name)).engine.infer(samples)

    async def overlay(self, path: str, name: str, sample: DecodedSample, method: str) -> Overlay:
        """A frame or cine with its heat."""
        return await (await self._get(path, name)).engine.overlay(sample, method)

    async def _get(self, path: str, name: str) -> Model:
        """A model; the decoding replicas say when production has changed.

        The one before stays loaded, for the replicas that still ask for it.
        """
        model = self._pinned.get(path) or self._followed.get(path)
        if model is not None:  # the others do not wait for one that is being loaded
            return model
        async with self._loading:
            model = self._followed.get(path)
            if model is None:
                model = await asyncio.to_thread(self._load, NamedBundle(path=path, name=name))
                self._followed = dict([*self._followed.items(), (path, model)][-2:])
        return model

    def _load(self, bundle: NamedBundle) -> Model:
        return load_local(bundle.path, bundle.name, self._settings, self._metrics, self._threads)


def _views_of(model: Model, views: Sequence[str], files: int) -> list[str]:
    """The view of each file, "" where nobody says."""
    if not views:
        return [""] * files
    if not model.predictor.task.takes_views:
        raise malformed(
            f"Leave out views, and send files in the field file: {model.predictor.task.name} is "
            "about single pictures."
        )
    if len(views) != files:
        raise malformed(f"{len(views)} ?view= for {files} files; give one for each, in order.")
    return list(views)


def _quieten() -> None:
    """Keep what libraries say about a file out of the log: it may quote names and dates."""
    warnings.simplefilter("ignore")
    for name in ("pydicom", "highdicom", "PIL", "tifffile", "python_multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
