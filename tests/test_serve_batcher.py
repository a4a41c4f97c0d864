"""Gathering studies into batches, and decoding what was sent; no cluster needed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from cardioray import config
from cardioray.answers import ModelOutputs
from cardioray.data.decoding import DecodedSample
from cardioray.data.frames import UnreadableImage
from cardioray.serve.batcher import Batcher
from cardioray.serve.hosting import Threads
from cardioray.serve.problems import Problem
from cardioray.serve.replica import Answerer
from cardioray.serve.settings import ServeSettings

SETTINGS = config.parse(ServeSettings, {"task": "ffr", "bundles": ["b"]})


# The batcher, over a network that doubles its input


def sample(value: int) -> DecodedSample:
    array = np.full((1,), value, np.uint8)
    return DecodedSample(frame="0", arrays={"image": array}, picture=array[None])


class Doubler:
    """Records its batches; waits for `gate` while it is closed."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def infer(self, samples: Sequence[DecodedSample]) -> ModelOutputs:
        values = [int(s.arrays["image"][0]) for s in samples]
        self.batches.append(values)
        assert self.gate.wait(10)
        if 13 in values:
            raise ValueError("thirteen")
        doubled = 2 * np.array(values, np.float32)
        return ModelOutputs.of_windows([1] * len(values), {"x": doubled}, doubled[:, None])


async def scores(batcher: Batcher, *values: int) -> list[float]:
    outputs = await batcher.infer([sample(value) for value in values])
    return [float(score) for score in outputs.scores["x"]]


def run_batcher(network: Doubler, scenario: Any, **options: Any) -> None:
    async def run() -> None:
        with ThreadPoolExecutor(1) as executor:
            await scenario(Batcher(network.infer, executor, **options))

    asyncio.run(run())


def test_an_idle_model_starts_at_once_and_a_busy_one_gathers() -> None:
    network = Doubler()

    async def scenario(batcher: Batcher) -> None:
        network.gate.clear()
        first = asyncio.create_task(scores(batcher, 1))
        while not network.batches:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(scores(batcher, n, n + 1)) for n in (10, 20, 30)]
        await asyncio.sleep(0.01)
        assert batcher.waiting == 3
        assert batcher.busy_s > 0
        network.gate.set()
        assert await first == [2]
        assert await asyncio.gather(*others) == [[20, 22], [40, 42], [60, 62]]
        assert batcher.busy_s == 0

    run_batcher(network, scenario, max_batch_size=4)
    assert network.batches == [[1], [10, 11, 20, 21], [30, 31]]


def test_a_study_larger_than_a_batch_is_answered_whole() -> None:
    network = Doubler()

    async def scenario(batcher: Batcher) -> None:
        assert await scores(batcher, *range(10)) == [2.0 * n for n in range(10)]

    run_batcher(network, scenario, max_batch_size=4)
    assert network.batches == [list(range(10))]


def test_a_failing_batch_fails_its_studies_and_no_others() -> None:
    network = Doubler()

    async def scenario(batcher: Batcher) -> None:
        with pytest.raises(ValueError, match="thirteen"):
            await scores(batcher, 13)
        assert await scores(batcher, 4) == [8]

    run_batcher(network, scenario, max_batch_size=4)


def test_a_client_that_went_away_costs_no_computation() -> None:
    network = Doubler()

    async def scenario(batcher: Batcher) -> None:
        network.gate.clear()
        first = asyncio.create_task(scores(batcher, 1))
        gone = asyncio.create_task(scores(batcher, 2))
        stays = asyncio.create_task(scores(batcher, 3))
        while not network.batches:
            await asyncio.sleep(0.001)
        gone.cancel()
        await asyncio.sleep(0.001)
        network.gate.set()
        assert [await first, await stays] == [[2], [6]]

    run_batcher(network, scenario, max_batch_size=1)
    assert network.batches == [[1], [3]]


def test_a_waiting_batcher_starts_early_when_the_batch_is_full() -> None:
    network = Doubler()

    async def scenario(batcher: Batcher) -> None:
        async with asyncio.timeout(5):
            await asyncio.gather(*(scores(batcher, n) for n in range(4)))

    run_batcher(network, scenario, max_batch_size=4, wait_s=60)
    assert network.batches == [[0, 1, 2, 3]]


def model_with(decoder: Any) -> Any:
    return SimpleNamespace(decoder=decoder)


@pytest.mark.parametrize(
    ("raised", "answered"), [(ZeroDivisionError, Problem), (MemoryError, None)]
)
def test_only_the_file_is_blamed_for_what_is_in_it(
    raised: type[Exception], answered: type[Exception] | None
) -> None:
    def decode(data: bytes, frames: str | None, max_frames: int) -> None:
        raise raised

    replica = SimpleNamespace(_threads=Threads.start(decoders=1), settings=SETTINGS)
    model = model_with(SimpleNamespace(decode=decode))
    with pytest.raises(answered or raised) as error:
        asyncio.run(Answerer._decode(cast(Any, replica), model, b"", None))
    if isinstance(error.value, Problem):
        assert error.value.status == 422


class Decoder:
    """Gives one frame for each byte of a file; the letter x is no picture."""

    def __init__(self) -> None:
        self.files: list[bytes] = []

    def decode(self, data: bytes, frames: str | None, max_frames: int) -> list[DecodedSample]:
        self.files.append(data)
        if data == b"x":
            raise UnreadableImage("no picture")
        return [sample(value) for value in data]


@pytest.mark.parametrize("decoders", [1, 2])
def test_a_refused_study_is_decoded_no_further(decoders: int) -> None:
    decoder = Decoder()
    replica = SimpleNamespace(
        _threads=Threads.start(decoders), _decoders=decoders, settings=SETTINGS
    )
    replica._decode = lambda *given: Answerer._decode(cast(Any, replica), *given)
    model = model_with(decoder)

    def decoded(files: list[bytes]) -> list[DecodedSample]:
        return asyncio.run(Answerer.decode(cast(Any, replica), model, files, None, 1))

    kept = decoded([b"ab", b"c", b"d"])
    assert [int(s.arrays["image"][0]) for s in kept] == list(b"abcd")
    # Of all but the first the picture is a stand-in of the same shape, without memory of its own.
    assert [s.picture.any() for s in kept] == [True, False, False, False]
    assert {s.source_shape for s in kept} == {(1, 1)}
    decoder.files.clear()
    with pytest.raises(Problem, match="no picture"):
        decoded([b"x", *[b"a"] * 50])
    assert len(decoder.files) == decoders
    decoder.files.clear()
    with pytest.raises(Problem, match="more than 256 frames"):
        decoded([b"a" * 257, *[b"a"] * 50])
    assert len(decoder.files) == decoders
