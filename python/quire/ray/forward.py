"""One request to one replica's native port: bytes in, bytes out.

    async with forward(request, "10.0.0.7:40123") as reply:
        reply.status, reply.headers
        async for piece in reply.chunks: ...

The request is sent as HTTP/1.0, so the reply's body is what the socket holds until it closes: there is no chunked
framing to take apart, and a read of 256 KiB that brought a thousand events is one `bytes` object. A stream's pieces end
where an event ends. Leaving the `async with` closes the connection, and the server then cancels the request.

This is the seam for what happens to a request around one attempt: `exchange` chooses replicas until one answers;
quire.ray.resume wraps it to go on elsewhere after a loss.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from quire.ray import settings

Headers = list[tuple[bytes, bytes]]

_DONE = b"data: [DONE]\n\n"
# Of one connection only: the next hop makes its own. The body's length is said anew.
_HOP_HEADERS = frozenset(
    (b"connection", b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade", b"proxy-connection", b"content-length", b"expect", b"host")
)


class Unreachable(Exception):
    """No byte of a reply came: another replica may be given the request."""


class Lost(Exception):
    """The connection broke after the reply had begun."""


@dataclass(frozen=True)
class Request:
    """A client's request, its body read whole."""

    method: str
    target: str
    headers: Headers
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key == name), None)


@dataclass
class Reply:
    """A reply whose head is here; `chunks` reads the body and raises Lost when it ends too early."""

    status: int
    headers: Headers
    chunks: AsyncIterator[bytes]
    replica: str = ""  # who gives it, where that is known

    @property
    def is_stream(self) -> bool:
        return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in self.headers)


@asynccontextmanager
async def forward(request: Request, address: str) -> AsyncIterator[Reply]:
    """Sends `request` to the server at HOST:PORT. Raises Unreachable until the head of a reply has come."""
    reader, writer = await _connect(address)
    try:
        yield await _exchange(request, address, reader, writer)
    finally:
        writer.transport.abort()


async def _exchange(request: Request, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Reply:
    try:
        writer.write(_head(request, address) + request.body)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
    except (OSError, asyncio.IncompleteReadError) as error:
        raise Unreachable(f"{address}: {error}") from error
    except asyncio.LimitOverrunError as error:
        raise Unreachable(f"{address}: a reply's head of more than {settings.READ_BYTES} bytes") from error
    status, headers, length = _parse_head(head, address)
    reply = Reply(status, headers, _whole(reader, length))
    if reply.is_stream:
        reply.chunks = _events(reader)
    return reply


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    try:
        opening = asyncio.open_connection(host.strip("[]"), int(port), limit=settings.READ_BYTES)
        reader, writer = await asyncio.wait_for(opening, settings.CONNECT_TIMEOUT_S)
    except (OSError, asyncio.TimeoutError) as error:
        raise Unreachable(f"{address}: {error or 'no connection in time'}") from error
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, settings.KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, settings.KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, settings.KEEPALIVE_COUNT)
    return reader, writer


def _head(request: Request, address: str) -> bytes:
    lines = [f"{request.method} {request.target} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {len(request.body)}\r\n".encode("latin-1")]
    lines += [b"%s: %s\r\n" % (name, value) for name, value in request.headers if name not in _HOP_HEADERS]
    return b"".join(lines) + b"\r\n"


def _parse_head(head: bytes, address: str) -> tuple[int, Headers, int | None]:
    first, *lines = head[:-4].split(b"\r\n")
    parts = first.split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        raise Unreachable(f"{address}: not HTTP: {first[:80]!r}")
    headers: Headers = []
    length = None
    for line in lines:
        name, _, value = line.partition(b":")
        name, value = name.strip().lower(), value.strip()
        if name == b"content-length":
            length = int(value)
        if name not in _HOP_HEADERS or name == b"content-length":
            headers.append((name, value))
    return int(parts[1]), headers, length


async def _whole(reader: asyncio.StreamReader, length: int | None) -> AsyncIterator[bytes]:
    """A body of known length, or until the close."""
    left = length
    while left is None or left > 0:
        piece = await _read(reader)
        if not piece:
            if left is None:
                return
            raise Lost(f"{left} of {length} bytes did not come")
        if left is not None:
            left -= len(piece)
        yield piece


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Whole events, as many as have arrived; a stream that was not ended by [DONE] is lost."""
    rest, tail = b"", b""
    while True:
        piece = await _read(reader)
        if not piece:
            break
        piece = rest + piece if rest else piece
        end = piece.rfind(b"\n\n") + 2
        if end < 2:
            rest = piece
            continue
        rest = piece[end:]
        piece = piece[:end] if rest else piece
        tail = piece[-len(_DONE) :]
        yield piece
    if tail != _DONE:
        raise Lost("the stream ended before [DONE]")


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(settings.READ_BYTES)
    except OSError as error:
        raise Lost(str(error)) from error
