"""The files of a request, in memory and within limits; nothing touches the disk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from cardioray.serve.problems import Problem, malformed, too_large, unreadable, unsupported_type
from cardioray.serve.settings import Limits

if TYPE_CHECKING:
    from cardioray.tasks import Task

FIELDS = ("file", "files")
# Fields that say which view a cine shows, which view and phase a frame, and which key frame it is.
_CINES = {"a4c": "A4C", "a2c": "A2C"}
_FRAMES = {"a4c_ed": "A4C-ED", "a4c_es": "A4C-ES", "a2c_ed": "A2C-ED", "a2c_es": "A2C-ES"}
_KEY_FRAMES = {"ed": "ED", "es": "ES", "mid": "MID"}
ACCEPTED_TYPES = ("image/*", "video/*", "application/dicom", "application/octet-stream")
ACCEPTED = (
    f"Send the files as multipart/form-data in fields named {' or '.join(FIELDS)}, or one file as "
    f"the body with Content-Type {', '.join(ACCEPTED_TYPES)}."
)
_MAX_TEXT_FIELDS = 16
_LINGER_S = 5.0


class SentFile(NamedTuple):
    """A file of a request.

    Attributes:
        content: its bytes.
        view: what its field says that it shows; "" in a field that says nothing.
    """

    content: bytes
    view: str = ""


class _InMemoryParser(MultiPartParser):
    # SpooledTemporaryFile moves to the disk beyond this size, and never when it is 0.
    spool_max_size = 0


def form_fields(task: Task) -> dict[str, str]:
    """The fields in which a task takes files, each with the view that it says; "" of most."""
    # With torch, which an application that only hands files on is without.
    from cardioray.tasks.keyframe_ef import KeyframeEfTask
    from cardioray.tasks.lv_seg import LvSegTask

    plain = dict.fromkeys(FIELDS, "")
    if not task.takes_views:
        return plain
    if isinstance(task, KeyframeEfTask):
        return {**plain, **_KEY_FRAMES, **_FRAMES, **_CINES}
    return {**plain, **(_FRAMES if isinstance(task, LvSegTask) else {}), **_CINES}


async def read_upload(
    request: Request, limits: Limits, fields: Mapping[str, str]
) -> list[SentFile]:
    """Read the files of a request.

    Args:
        request: multipart/form-data with one or several files, or one file as the body.
        limits: enforced while the body is read.
        fields: of `form_fields`.

    Returns:
        The files in order. Their names, and the headers of the parts, are dropped.

    Raises:
        Problem: when the type is not accepted, a limit is passed, a field of the form is unknown or
            holds text, or there is no file.
        ClientDisconnect: when the client goes away.
    """
    content_type = request.headers.get("content-type", "application/octet-stream")
    kind = content_type.partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise unsupported_type(f"with Content-Encoding {_shown(encoding)}", "Send it as it is.")
    if kind != "multipart/form-data" and not _is_accepted(kind):
        raise unsupported_type(_shown(kind), ACCEPTED)
    body = _limited(request, limits.max_bytes)
    try:
        async with asyncio.timeout(limits.upload_s):
            if kind == "multipart/form-data":
                return await _read_multipart(request, body, limits, fields)
            return [SentFile(b"".join([chunk async for chunk in body]))]
    except TimeoutError:
        raise Problem(
            "upload-timeout",
            408,
            "The upload took too long",
            f"The body has to arrive within {limits.upload_s:g} s.",
        ) from None


async def _read_multipart(
    request: Request,
    body: AsyncGenerator[bytes, None],
    limits: Limits,
    fields: Mapping[str, str],
) -> list[SentFile]:
    parser = _InMemoryParser(
        request.headers, body, max_files=limits.max_files, max_fields=_MAX_TEXT_FIELDS
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise malformed(f"The multipart body is broken: {error.message} {ACCEPTED}") from None
    try:
        sent = form.multi_items()
        if unknown := {name for name, _ in sent} - set(fields):
            raise malformed(
                f"{len(unknown)} unknown form field(s). Known: {', '.join(sorted(fields))}."
            )
        # A browser sends a field that was left empty as empty text.
        if any(isinstance(value, str) and value for _, value in sent):
            raise unreadable(f"A form field holds no file but text. {ACCEPTED}")
        files = [
            (value, view)
            for name, view in fields.items()
            for value in form.getlist(name)
            if isinstance(value, UploadFile)
        ]
        if not files:
            raise unreadable(f"The upload holds no file, or ends before it does. {ACCEPTED}")
        return [SentFile(await file.read(), view) for file, view in files]
    finally:
        await form.close()


async def _limited(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The chunks of the body; refuses it as soon as it is, or says that it will be, too large."""
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_bytes:
        await _linger(request.stream(), max_bytes)
        raise too_large(max_bytes)
    stream = request.stream()
    received = 0
    async for chunk in stream:
        received += len(chunk)
        if received > max_bytes:
            await _linger(stream, max_bytes)
            raise too_large(max_bytes)
        yield chunk


async def _linger(stream: AsyncIterator[bytes], at_most: int) -> None:
    """Read on for a while and forget it.

    A connection that is closed while the client still sends is reset, and the answer is lost.
    """
    end = time.monotonic() + _LINGER_S
    async for chunk in stream:
        at_most -= len(chunk)
        if at_most < 0 or time.monotonic() > end:
            return


def _is_accepted(kind: str) -> bool:
    family = f"{kind.partition('/')[0]}/*"
    return kind in ACCEPTED_TYPES or family in ACCEPTED_TYPES


def _shown(text: str) -> str:
    return repr(text[:80])
