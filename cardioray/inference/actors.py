"""A pool of actors on the cluster, each with a bundle's network, that files are spread over."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import ray
import torch

from cardioray.bundle import open_bundle
from cardioray.data import cluster
from cardioray.data.decoding import DecodedSample, Decoder, LabelledDecoder
from cardioray.data.frames import LOST_FILES
from cardioray.data.isolation import IsolatedDecoder, IsolationConfig
from cardioray.data.nifti import read_labels, read_source
from cardioray.outlines import parse_spacing, with_spacing
from cardioray.predictor import Predictor
from cardioray.studies import open_predictor

RuntimeName = Literal["auto", "openvino", "torch"]
Precision = Literal["auto", "bf16", "fp32"]

# Files that are decoded and go through the network together.
FILES_PER_BATCH = 32


@dataclass(frozen=True)
class Loading:
    """How every actor of a pool loads its network.

    Attributes:
        bundle: local directory or s3:// prefix that every node can read.
        runtime: as in `Predictor`.
        precision: as in `Predictor`.
        systoles_from: likewise, of the bundle in whose outlines beats are found; None for none.
    """

    bundle: str
    runtime: RuntimeName
    precision: Precision
    systoles_from: str | None = None

    def open(self, folder: Path, **options: Any) -> Predictor:
        """The predictor.

        Args:
            folder: for copies of bundles from a bucket.
            **options: further ones of `Predictor`.
        """
        outlines = None
        if self.systoles_from is not None:
            outlines = open_bundle(self.systoles_from, folder)
        return open_predictor(
            open_bundle(self.bundle, folder),
            systoles_from=outlines,
            runtime=self.runtime,
            precision=self.precision,
            **options,
        )


@dataclass(frozen=True)
class SourceFile:
    """A file to decode.

    Attributes:
        path: local path or s3:// address.
        frames: which of its frames, as a manifest says it; "" for the task's default.
        view: the view it shows, where a manifest says it; "" elsewhere.
        split: its split, as a manifest says it; "" elsewhere.
        spacing_mm: height and width of a pixel where the file does not state them, as
            `parse_spacing` reads it; "" where nobody says it.
        mask: its label map (`Manifest.masks`), where the samples are to have theirs; "" elsewhere.
        facts: what its row of a table says beside the file (`Task.facts_of_row`).
    """

    path: str
    frames: str = ""
    view: str = ""
    split: str = ""
    spacing_mm: str = ""
    mask: str = ""
    facts: tuple[tuple[str, float], ...] = ()


class PredictorActor:
    """Base of the actors: a network that is loaded once, and threads that decode for it."""

    def __init__(self, loading: Loading, threads: int) -> None:
        torch.set_num_threads(threads)
        # The copy of a bundle from a bucket; goes when the actor goes.
        self._scratch = tempfile.TemporaryDirectory(prefix="cardioray-actor-")
        self.predictor = loading.open(Path(self._scratch.name), num_threads=threads)
        self._pool = ThreadPoolExecutor(max_workers=threads)
        decoder = self.predictor.decoder
        self._decoder: Decoder | IsolatedDecoder = decoder
        if decoder.risky:
            # Its processes end when they lose their owner.
            self._decoder = IsolatedDecoder(decoder, IsolationConfig(), processes=threads)

    def decode(self, files: Sequence[SourceFile]) -> list[list[DecodedSample] | str]:
        """For each file its samples, or the reason why it cannot be read."""
        return list(self._pool.map(self._decode_file, files))

    def _decode_file(self, file: SourceFile) -> list[DecodedSample] | str:
        try:
            data = read_source(file.path)
            if file.mask:
                assert isinstance(self._decoder, LabelledDecoder | IsolatedDecoder)
                labels = read_labels(file.mask)
                samples = self._decoder.decode_labelled(data, labels, file.frames or None)
            else:
                samples = self._decoder.decode(data, file.frames or None)
        except LOST_FILES as error:
            return str(error)
        if file.spacing_mm:
            pixel = parse_spacing(file.spacing_mm)
            samples = [with_spacing(sample, pixel) for sample in samples]
        return [
            replace(
                sample.without_picture(), view=file.view, facts={**sample.facts, **dict(file.facts)}
            )
            for sample in samples
        ]


def run_on_actors(
    actor: type[PredictorActor], loading: Loading, chunks: Sequence[str], *args: Any
) -> Iterator[str]:
    """Hand texts to a pool of actors and yield what they return, in the order they finish.

    Args:
        actor: its `__call__` takes {"chunk": text} and returns {"result": text}.
        loading: how each loads its network.
        chunks: one call each.
        args: further arguments of the actor's constructor.
    """
    size = cluster.pool_size()
    items = [{"chunk": chunk} for chunk in chunks]
    now = min(size.actors, len(items))
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
        actor,
        fn_constructor_args=(loading, size.threads, *args),
        compute=ray.data.ActorPoolStrategy(
            min_size=1 if size.grows else now,
            initial_size=now,
            max_size=len(items) if size.grows else now,
            max_tasks_in_flight_per_actor=2,
        ),
        **size.resources,
    )
    dataset.context.enable_progress_bars = False
    for row in dataset.iter_rows():
        yield str(row["result"])
