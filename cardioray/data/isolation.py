"""Decoding in processes that can be killed: what a file may cost is one error, and bounded.

Video decoders hang on some files, crash on others, and keep memory after every one. Here a decoder
runs in a process of its own, which is ended at a deadline and replaced after some files. The
process loads no network, and arrays come back through memory that both map, so that a clip costs
one copy.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cardioray.config import config
from cardioray.data.decoding import DecodedSample, Decoder, Inspection
from cardioray.data.frames import MAX_FRAMES, UnreadableImage

# From starting the interpreter to the first file, libraries included, on a busy machine.
_START_S = 120.0
_GRACE_S = 5.0
_SLAB_BYTES = 1 << 24


@config
class IsolationConfig:
    """What one file may cost.

    Attributes:
        deadline_s: seconds to decode it.
        memory_mb: address space of the process that does.
        recycle_after: files after which the process is replaced, and what it leaked with it.
    """

    deadline_s: float = Field(default=60.0, gt=0)
    memory_mb: int = Field(default=8192, ge=512)
    recycle_after: int = Field(default=500, ge=1)


class IsolatedDecoder:
    """A decoder whose work is done in other processes; may be shared by threads.

    Processes start when they are first needed. `close` ends them; a process whose owner was killed
    ends by itself.
    """

    def __init__(
        self,
        decoder: Decoder,
        settings: IsolationConfig = IsolationConfig(),  # noqa: B008 (frozen)
        *,
        processes: int = 1,
    ) -> None:
        """Args:
        decoder: does the work.
        settings: what one file may cost.
        processes: files that are decoded at a time.
        """
        self._decoder = decoder
        self._settings = settings
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(processes):
            self._idle.put(None)
        self._lock = threading.Lock()
        self._running: set[_Process] = set()
        self._closed = False

    def decode(
        self, data: bytes, frames: str | None, max_frames: int = MAX_FRAMES
    ) -> list[DecodedSample]:
        """`Decoder.decode`, within the bounds.

        Raises:
            UnreadableImage: when the file cannot be read, and when decoding it took too long, too
                much memory, or ended the process.
            DecoderUnavailableError: when no process could be started.
        """
        samples: list[DecodedSample] = self._call("decode", data, frames, max_frames)
        return samples

    def decode_labelled(
        self, data: bytes, labels: bytes, frames: str | None, max_frames: int = MAX_FRAMES
    ) -> list[DecodedSample]:
        """`LabelledDecoder.decode_labelled`, within the bounds; errors as those of `decode`."""
        samples: list[DecodedSample] = self._call(
            "decode_labelled", data, labels, frames, max_frames
        )
        return samples

    def inspect(self, data: bytes, frames: str | None) -> Inspection:
        """`Decoder.inspect`, within the bounds; errors as those of `decode`."""
        found: Inspection = self._call("inspect", data, frames)
        return found

    def _call(self, method: str, *arguments: Any) -> Any:
        process = self._idle.get()
        try:
            if process is None or process.used >= self._settings.recycle_after:
                process = self._replace(process)
            return process.call(method, *arguments)
        except _ProcessLostError as lost:
            self._end(process)
            process = None
            raise UnreadableImage(str(lost)) from None
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        with self._lock:
            self._closed = True
            running, self._running = self._running, set()
        for process in running:
            process.kill()

    def __enter__(self) -> IsolatedDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _replace(self, old: _Process | None) -> _Process:
        self._end(old)
        new = _Process.start(self._decoder, self._settings)
        with self._lock:
            closed = self._closed
            if not closed:
                self._running.add(new)
        if closed:
            new.kill()
            raise RuntimeError("the decoder is closed")
        return new

    def _end(self, process: _Process | None) -> None:
        if process is None:
            return
        with self._lock:
            self._running.discard(process)
        process.kill()


@contextlib.contextmanager
def isolated(
    decoder: Decoder, settings: IsolationConfig, *, processes: int = 1
) -> Iterator[Decoder | IsolatedDecoder]:
    """The decoder itself where its libraries can be trusted, else one in other processes."""
    if not decoder.risky:
        yield decoder
        return
    with IsolatedDecoder(decoder, settings, processes=processes) as shielded:
        yield shielded


class DecoderUnavailableError(RuntimeError):
    """No process to decode in could be started; the machine's trouble, not the file's."""


class _ProcessLostError(Exception):
    """The process ended, or had to be ended."""


@dataclass(frozen=True)
class _Fault:
    """An error in the decoder that is not the file's."""

    trace: str


@dataclass(eq=False)
class _Process:
    """The owner's side of one process."""

    popen: subprocess.Popen[bytes]
    pipe: Connection
    slab: _Slab
    deadline_s: float
    used: int = 0

    @classmethod
    def start(cls, decoder: Decoder, settings: IsolationConfig) -> _Process:
        ours, theirs = Pipe()
        slab = _Slab.create()
        command = [sys.executable, "-m", __spec__.name, str(theirs.fileno()), str(slab.fd)]
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # FFmpeg's remarks, which may quote a file; what ends the process is told by its status.
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), slab.fd),
            # A worker of a cluster finds its code by a path that its environment does not name.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        theirs.close()
        process = cls(popen, ours, slab, settings.deadline_s)
        try:
            process._send((decoder, settings))
            process._receive(_START_S)
        except _ProcessLostError as lost:  # before any file: none is to blame
            process.kill()
            raise DecoderUnavailableError("The decoding process did not start.") from lost
        return process

    def call(self, method: str, *arguments: Any) -> Any:
        self.used += 1
        self._send((method, arguments))
        answer = self._receive(self.deadline_s + _GRACE_S)
        if isinstance(answer, UnreadableImage):
            raise answer
        if isinstance(answer, _Fault):
            raise RuntimeError(f"the decoder is at fault:\n{answer.trace}")
        if not isinstance(answer, _Samples):
            return answer
        self.slab.grow_to(answer.slab_bytes)
        return [self._restored(sample) for sample in answer.samples]

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()
        self.pipe.close()
        self.slab.close()

    def _restored(self, sample: _Packed) -> DecodedSample:
        arrays = {name: self.slab.copy(place) for name, place in sample.arrays.items()}
        return DecodedSample(
            frame=sample.frame,
            arrays=arrays,
            picture=self.slab.copy(sample.picture),
            facts=sample.facts,
            notes=sample.notes,
        )

    def _send(self, message: Any) -> None:
        try:
            self.pipe.send(message)
        except (BrokenPipeError, ConnectionError):
            raise self._lost() from None

    def _receive(self, timeout_s: float) -> Any:
        try:
            if not self.pipe.poll(timeout_s):
                raise _ProcessLostError(f"Decoding the file takes more than {self.deadline_s:g} s.")
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            raise self._lost() from None

    def _lost(self) -> _ProcessLostError:
        status = self.popen.wait()
        if status == -signal.SIGALRM:
            return _ProcessLostError(f"Decoding the file takes more than {self.deadline_s:g} s.")
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        return _ProcessLostError(f"The file ends the decoder ({how}): it is damaged.")


@dataclass(frozen=True)
class _Place:
    """Where an array lies in the shared memory."""

    offset: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class _Packed:
    """A sample whose arrays lie in the shared memory."""

    frame: str
    arrays: dict[str, _Place]
    picture: _Place
    facts: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Samples:
    """Decoded samples, and how large the shared memory is with them in it."""

    slab_bytes: int
    samples: list[_Packed]


class _Slab:
    """Memory that two processes map; grows with what is put into it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, 0)

    @classmethod
    def create(cls) -> _Slab:
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("cardioray-decoder", 0)
        else:
            with tempfile.TemporaryFile(prefix="cardioray-decoder-") as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, _SLAB_BYTES)
        return cls(fd)

    def grow_to(self, size: int) -> None:
        """Map at least this many bytes."""
        if size <= len(self._map):
            return
        if size > os.fstat(self.fd).st_size:
            os.ftruncate(self.fd, size)
        self._map.close()
        self._map = mmap.mmap(self.fd, 0)

    def put(self, arrays: Sequence[NDArray[Any]]) -> list[_Place]:
        """Lay arrays side by side."""
        places = []
        offset = 0
        for array in arrays:
            places.append(_Place(offset, array.shape, array.dtype.str))
            offset += -(-array.nbytes // 64) * 64
        self.grow_to(max(offset, 1))
        for array, place in zip(arrays, places, strict=True):
            self._view(place)[...] = array
        return places

    def copy(self, place: _Place) -> NDArray[Any]:
        """An array of its own with what lies at a place."""
        return self._view(place).copy()

    def size(self) -> int:
        """Bytes mapped."""
        return len(self._map)

    def close(self) -> None:
        self._map.close()
        os.close(self.fd)

    def _view(self, place: _Place) -> NDArray[Any]:
        return np.ndarray(place.shape, place.dtype, buffer=self._map, offset=place.offset)


def _serve(pipe: Connection, slab: _Slab) -> None:
    """The other side: decode one file after the other until the owner is gone."""
    decoder, settings = pipe.recv()
    _limit_memory(settings.memory_mb)
    pipe.send("ready")
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        # Its default is to end the process, wherever in a library it hangs, and even where nobody
        # is left to kill it.
        signal.setitimer(signal.ITIMER_REAL, settings.deadline_s)
        try:
            answer: Any = getattr(decoder, method)(*arguments)
            if method != "inspect":
                packed = _packed(answer, slab)
                answer = _Samples(slab.size(), packed)
        except UnreadableImage as error:
            answer = error
        except MemoryError:
            answer = UnreadableImage(
                f"Decoding the file takes more than {settings.memory_mb:,} MB of memory."
            )
        except Exception:
            answer = _Fault(traceback.format_exc())
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send(answer)


def _packed(samples: Sequence[DecodedSample], slab: _Slab) -> list[_Packed]:
    flat = [array for s in samples for array in (*s.arrays.values(), s.picture)]
    places = iter(slab.put(flat))
    return [
        _Packed(
            s.frame, {name: next(places) for name in s.arrays}, next(places), dict(s.facts), s.notes
        )
        for s in samples
    ]


def _limit_memory(megabytes: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = megabytes << 20
    if hard == resource.RLIM_INFINITY or wanted < hard:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


if __name__ == "__main__":
    # As the module that others import, so that what is sent between them has one name.
    from cardioray.data import isolation

    isolation._serve(Connection(int(sys.argv[1])), isolation._Slab(int(sys.argv[2])))
