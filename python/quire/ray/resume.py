"""Streams that outlive their replica: what was lost in the middle goes on elsewhere, and the client does nothing.

On request a replica puts a mark after the chunks of each step, an SSE comment with the token ids of the step and the bytes
of text so far (docs/http-api.md). `lasting` asks for them, passes on what stands before a mark and keeps the marks as
bytes; nobody parses anything. When the connection breaks before [DONE], the marks are read, and another replica gets the
same request with the ids as output that is already there and the seed that the first reply named: the stream goes on
with the character after the last one.

The old attempt is fenced by its connection, which is closed before the new attempt begins: nothing of it is read any
more, its replica cancels when it sees the close, and behind a cut network when its kernel gives the peer up
(`--peer-timeout`). A loss is found by the close, or by TCP keepalive (quire.ray.settings).
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from quire.ray import settings
from quire.ray.forward import Headers, Lost, Reply, Request, Unreachable

if TYPE_CHECKING:
    from quire.ray.ingress import Counters

_PATHS = ("/v1/chat/completions", "/v1/completions")
_DONE = b"data: [DONE]\n\n"
_BEGIN = b": quire "
_MARK = re.compile(rb"^: quire [^\n]*\n\n", re.M)
_ASK, _CREATED, _FINGERPRINT = b"x-quire-marks", b"x-quire-created", b"x-quire-fingerprint"


class Attempt(Protocol):
    """One way of getting a reply: chooses replicas until one answers; what it holds is on the stack."""

    async def __call__(self, request: Request, stack: AsyncExitStack, avoid: Collection[str] = ()) -> Reply: ...


async def lasting(request: Request, attempt: Attempt, stack: AsyncExitStack, counters: Counters) -> Reply:
    """A reply that survives the loss of the replicas that give it, up to settings.RESUMES_MAX of them."""
    if request.method != "POST" or request.target.partition("?")[0] not in _PATHS:
        return await attempt(request, stack)
    shows_marks = request.header(_ASK) is not None
    marked = replace(request, headers=[*(h for h in request.headers if h[0] != _ASK), (_ASK, b"1")])
    for losses in range(settings.RESUMES_MAX + 1):
        inner = AsyncExitStack()
        reply = await _begin(marked, attempt, inner)
        if reply.is_stream and _header(reply.headers, _CREATED) is None:  # a server that knows no marks
            stack.push_async_callback(inner.aclose)
            return reply
        if reply.is_stream:
            stream = _Stream(marked, reply, inner, attempt, counters, shows_marks)
            stack.push_async_callback(stream.aclose)
            headers = reply.headers if shows_marks else [h for h in reply.headers if h[0] not in (_CREATED, _FINGERPRINT)]
            return Reply(reply.status, headers, stream.chunks(), reply.replica)
        try:
            body = b"".join([piece async for piece in reply.chunks])
            return replace(reply, chunks=_once(body))
        except Lost as error:  # nothing of it was shown: once more, from the start
            if losses == settings.RESUMES_MAX:
                raise Unreachable(str(error)) from error
            counters.resumed += 1
        finally:
            await inner.aclose()
    raise AssertionError("not reached")


async def _begin(request: Request, attempt: Attempt, inner: AsyncExitStack) -> Reply:
    try:
        return await attempt(request, inner)
    except BaseException:
        await inner.aclose()
        raise


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _header(headers: Headers, name: bytes) -> bytes | None:
    return next((value for key, value in headers if key == name), None)


class _Stream:
    """The stream as the client sees it, over one attempt after the other."""

    def __init__(
        self, request: Request, reply: Reply, inner: AsyncExitStack, attempt: Attempt, counters: Counters, shows_marks: bool
    ) -> None:
        self._request, self._reply, self._inner = request, reply, inner
        self._attempt, self._counters, self._shows_marks = attempt, counters, shows_marks
        self._first_headers = reply.headers
        self._marks: list[bytes] = []
        self._rest = b""  # behind the last mark: not shown yet
        self._losses = 0

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            try:
                async for piece in self._reply.chunks:
                    if shown := self._take(piece):
                        yield shown
                return
            except Lost as error:
                await self._go_on(error)

    async def aclose(self) -> None:
        await self._inner.aclose()

    def _take(self, piece: bytes) -> bytes:
        """What may be shown: all up to the last mark, or everything at the end."""
        data = self._rest + piece if self._rest else piece
        if data.endswith(_DONE):
            self._rest = b""
        else:
            end = _end_of_last_mark(data)
            data, self._rest = data[:end], data[end:]
        self._marks += _MARK.findall(data)
        return data if self._shows_marks else _MARK.sub(b"", data)

    async def _go_on(self, error: Lost) -> None:
        """Puts another replica's stream in the place of the lost one, or raises Lost."""
        lost = self._reply.replica
        self._losses += 1
        self._rest = b""
        await self._inner.aclose()
        if self._losses > settings.RESUMES_MAX:
            raise error
        request = continuation(self._request, self._first_headers, self._marks)
        try:
            self._reply = await self._another(request, lost)
        except Unreachable as unreachable:
            raise Lost(f"{error}; then: {unreachable}") from unreachable
        self._counters.resumed += 1
        if _header(self._reply.headers, _FINGERPRINT) != _header(self._first_headers, _FINGERPRINT):
            self._counters.resumed_inexact += 1

    async def _another(self, request: Request, lost: str) -> Reply:
        """The stream of a replica that takes it; those left are fuller now, so one that refuses is asked again."""
        end = time.monotonic() + settings.REROUTE_TIMEOUT_S
        while True:
            self._inner = AsyncExitStack()
            reply = await self._attempt(request, self._inner, avoid=(lost,))
            if reply.is_stream:
                return reply
            body = b"".join([piece async for piece in reply.chunks])
            await self._inner.aclose()
            if reply.status not in (429, 503) or time.monotonic() > end:
                raise Unreachable(f"{reply.status}: {body[:300].decode(errors='replace')}")
            await asyncio.sleep(settings.REROUTE_PAUSE_S)


def _end_of_last_mark(data: bytes) -> int:
    begin = data.rfind(b"\n" + _BEGIN) + 1
    if begin == 0 and not data.startswith(_BEGIN):
        return 0
    return data.find(b"\n\n", begin) + 2


@dataclass(frozen=True)
class Progress:
    """What marks say of the one choice of a stream."""

    ids: list[int]
    text_bytes: int
    closed: bool


def read_marks(marks: Collection[bytes]) -> Progress:
    """Raises Lost for a stream of several choices."""
    ids: list[int] = []
    text_bytes, closed = 0, False
    for mark in marks:
        index, text, listed, *rest = mark[len(_BEGIN) : -2].split(b" ")
        if index != b"0":
            raise Lost("a stream of several choices cannot go on elsewhere")
        ids += map(int, listed.split(b",")) if listed else ()
        text_bytes, closed = int(text), rest == [b"closed"]
    return Progress(ids, text_bytes, closed)


def continuation(request: Request, headers: Headers, marks: Collection[bytes]) -> Request:
    """The request that goes on behind the last mark; `headers` are those of the first reply."""
    try:
        body: Any = json.loads(request.body)
    except ValueError as error:  # the server took it, so this is its JSON and not Python's
        raise Lost(f"the request cannot be read again: {error}") from error
    seed, created, name = (_header(headers, key) for key in (b"x-quire-seed", _CREATED, b"x-request-id"))
    if seed is not None:
        body["seed"] = int(seed)
    if marks:
        progress = read_marks(marks)
        body["output_prefix_ids"] = (body.get("output_prefix_ids") or []) + progress.ids
        body["resume"] = {"created": int(created or 0), "text_bytes": progress.text_bytes, "opened": True, "closed": progress.closed}
    fresh = [h for h in request.headers if h[0] != b"x-request-id"]
    if name is not None:
        fresh.append((b"x-request-id", name))  # it is part of the chunks' id
    return replace(request, headers=fresh, body=json.dumps(body).encode())
