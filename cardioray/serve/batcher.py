"""Requests of many clients, one forward pass.

Ray's `@serve.batch` takes what is in its queue as soon as the wait is over, whether the model is
free or not: with no wait nearly every batch holds one request, and a wait is paid by every request
on an idle server. Here the queue is emptied at the moment the model is free. An idle model starts
at once; a busy one finds the batch that gathered meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from cardioray.answers import ModelOutputs
from cardioray.data.decoding import DecodedSample


@dataclass
class _Study:
    samples: Sequence[DecodedSample]
    outputs: asyncio.Future[ModelOutputs]


class Batcher:
    """Gathers the samples of waiting studies into batches for one model."""

    def __init__(
        self,
        infer: Callable[[Sequence[DecodedSample]], ModelOutputs],
        executor: Executor,
        *,
        max_batch_size: int,
        wait_s: float = 0.0,
        on_batch: Callable[[int], None] = lambda size: None,
        passes: Callable[[Sequence[DecodedSample]], int] = lambda samples: 1,
    ) -> None:
        """Args:
        infer: the forward pass; runs in the executor, one call at a time.
        executor: threads that compute.
        max_batch_size: samples of a batch; a study with more of them is a batch of its own.
        wait_s: how long an idle model waits for a batch to fill.
        on_batch: told the samples of every batch.
        passes: how many forward passes some samples take.
        """
        self._infer = infer
        self._executor = executor
        self._max_batch_size = max_batch_size
        self._wait_s = wait_s
        self._on_batch = on_batch
        self._waiting: deque[_Study] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._busy_since: float | None = None
        self._count_passes = passes
        self._passes = 1
        self._full = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Studies in the queue."""
        return len(self._waiting)

    @property
    def busy_s(self) -> float:
        """Seconds the present work has taken so far for every forward pass of it; 0 for none.

        A study of many frames goes through the network in several passes.
        """
        return (
            0.0
            if self._busy_since is None
            else (time.monotonic() - self._busy_since) / self._passes
        )

    async def infer(self, samples: Sequence[DecodedSample]) -> ModelOutputs:
        """The outputs for the samples of one study; whatever the forward pass raises is raised."""
        study = _Study(samples, asyncio.get_running_loop().create_future())
        self._waiting.append(study)
        if sum(len(waiting.samples) for waiting in self._waiting) >= self._max_batch_size:
            self._full.set()
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await study.outputs

    async def _work(self) -> None:
        try:
            if self._wait_s:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), self._wait_s)
            while batch := self._next_batch():
                await self._run(batch)
        finally:
            self._worker = None
            self._full.clear()

    def _next_batch(self) -> list[_Study]:
        batch: list[_Study] = []
        size = 0
        while self._waiting:
            study = self._waiting[0]
            if study.outputs.done():  # the client went away
                self._waiting.popleft()
                continue
            if batch and size + len(study.samples) > self._max_batch_size:
                break
            batch.append(self._waiting.popleft())
            size += len(study.samples)
        return batch

    async def _run(self, batch: list[_Study]) -> None:
        samples = [sample for study in batch for sample in study.samples]
        self._busy_since, self._passes = time.monotonic(), self._count_passes(samples)
        try:
            self._on_batch(len(samples))
            loop = asyncio.get_running_loop()
            outputs = await loop.run_in_executor(self._executor, self._infer, samples)
        except Exception as error:
            for study in batch:
                if not study.outputs.done():
                    study.outputs.set_exception(error)
            return
        finally:
            self._busy_since = None
        start = 0
        for study in batch:
            end = start + len(study.samples)
            if not study.outputs.done():
                study.outputs.set_result(outputs[start:end])
            start = end
