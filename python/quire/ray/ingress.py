"""The way in: a thin ASGI object that reads a request, has a replica chosen and passes bytes.

It parses neither bodies nor events. What the router needs to know about a prompt is a chain of checksums over the
body's bytes, because equal conversations are equal bytes up to where they part.
"""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from contextlib import AsyncExitStack
from typing import Any

from quire.ray import settings
from quire.ray.forward import Lost, Reply, Request, Unreachable, forward
from quire.ray.resume import Attempt, lasting

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_BLOCK_BYTES = 256
_BLOCKS_MAX = 256


class Replica:
    """A replica that holds a slot for this request until released."""

    def __init__(self, selection: Any) -> None:
        self.replica_id: str = selection.replica_id
        self.metadata: Mapping[str, Any] = selection.replica_metadata
        self.address: str = self.metadata["native"]


# Chooses a replica for a request, avoiding those that failed it; the slot is released when the stack closes.
Choose = Callable[[Request, Collection[str], AsyncExitStack], Awaitable[Replica]]


async def exchange(
    request: Request, choose: Choose, stack: AsyncExitStack, counters: Counters, avoid: Collection[str] = ()
) -> Reply:
    """The reply of the first replica that answers; everything held for it is on `stack`.

    A replica that cannot be reached, or that is shutting down, has done nothing of the request: another one gets it.
    Raises Unreachable when none answered in time. This is the one place that a request passes on its way to replicas:
    what resumes, splits or mirrors requests wraps it.
    """
    failed = set(avoid)
    tries = 0
    end = time.monotonic() + settings.REROUTE_TIMEOUT_S
    while True:
        attempt, replica = AsyncExitStack(), None
        try:
            replica = await asyncio.wait_for(choose(request, failed, attempt), settings.REROUTE_TIMEOUT_S)
            reply = await attempt.enter_async_context(forward(request, replica.address))
            if not await _is_leaving(reply):
                stack.push_async_exit(attempt)
                reply.replica = replica.replica_id
                return reply
            reason = f"{replica.address} is shutting down"
        except (Unreachable, asyncio.TimeoutError) as error:
            reason = str(error) or "no replica has a free place"
        except BaseException:
            await attempt.aclose()
            raise
        await attempt.aclose()
        if replica is not None:
            failed.add(replica.replica_id)
        counters.rerouted += 1
        tries += 1
        if tries >= settings.REROUTE_TRIES and time.monotonic() > end:
            raise Unreachable(reason)
        await asyncio.sleep(settings.REROUTE_PAUSE_S)


async def _is_leaving(reply: Reply) -> bool:
    """A server that drains refuses new work with this code: a refusal before anything was done."""
    if reply.status != 503:
        return False
    body = b"".join([piece async for piece in reply.chunks])
    reply.chunks = _once(body)
    return b"server_shutting_down" in body


async def _once(body: bytes) -> Any:
    yield body


class Counters:
    """What /metrics of the ingress shows."""

    def __init__(self) -> None:
        self.requests = self.failed = self.rerouted = self.lost = self.open_streams = 0
        self.resumed = self.resumed_inexact = 0

    def text(self) -> str:
        rows = (
            ("requests_total", "counter", "Requests taken.", self.requests),
            ("rerouted_total", "counter", "Attempts given to another replica before a reply began.", self.rerouted),
            ("failed_total", "counter", "Requests that no replica answered.", self.failed),
            ("resumed_total", "counter", "Replies that went on at another replica after a loss.", self.resumed),
            ("resumed_inexact_total", "counter", "Of these, on an engine of another numerics fingerprint.", self.resumed_inexact),
            ("lost_total", "counter", "Replies that broke after they had begun.", self.lost),
            ("open_streams", "gauge", "Streams being passed.", self.open_streams),
        )
        return "".join(f"# HELP quire_ingress_{n} {h}\n# TYPE quire_ingress_{n} {t}\nquire_ingress_{n} {v}\n" for n, t, h, v in rows)


class Ingress:
    """The ASGI deployment. `engines` is a handle of the engine deployment."""

    def __init__(self, engines: Any) -> None:
        self.engines = engines
        self.counters = Counters()

    def __serve_build_asgi_app__(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:  # uvicorn takes a bound method for ASGI 2
            await self.serve(scope, receive, send)

        return app

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = await read_request(scope, receive)
        if request is None:
            await send_error(send, 413, f"the body is larger than {settings.BODY_BYTES_MAX} bytes", "payload_too_large")
        elif request.target == "/metrics":
            await send_whole(send, 200, b"text/plain; version=0.0.4", self.metrics().encode())
        else:
            await self._pass(request, send)

    async def _pass(self, request: Request, send: Send) -> None:
        self.counters.requests += 1
        async with AsyncExitStack() as stack:
            try:
                reply = await lasting(request, self.attempt_for(request), stack, self.counters)
            except Unreachable as error:
                self.counters.failed += 1
                await send_error(send, 503, f"no replica answered: {error}", "unavailable")
                return
            await self._send(reply, send)

    async def _send(self, reply: Reply, send: Send) -> None:
        await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
        self.counters.open_streams += 1
        sent = 0
        try:
            async for piece in reply.chunks:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                sent += 1
                if reply.is_stream and sent > 1:  # the first may be a head without a token
                    await self._gather()
        except Lost as error:
            self.counters.lost += 1
            if not reply.is_stream:
                raise  # the head promised a length: only a broken connection tells the truth
            await send({"type": "http.response.body", "body": lost_event(error), "more_body": True})
        finally:
            self.counters.open_streams -= 1
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def metrics(self) -> str:
        return self.counters.text()

    def attempt_for(self, request: Request) -> Attempt:
        """How this request gets its replies; an ingress of several deployments chooses one here."""
        return self.attempt

    async def _gather(self) -> None:
        """Lets events gather until the next common tick: streams that wake together share their way through the loop."""
        pause = min(settings.PAUSE_MAX_S, self.counters.open_streams * settings.PAUSE_PER_STREAM_S)
        await asyncio.sleep(pause - time.monotonic() % pause)

    async def attempt(self, request: Request, stack: AsyncExitStack, avoid: Collection[str] = ()) -> Reply:
        return await exchange(request, self.choose, stack, self.counters, avoid)

    async def choose(self, request: Request, avoid: Collection[str], stack: AsyncExitStack) -> Replica:
        return await choose_replica(self.engines, request, avoid, stack)


async def choose_replica(engines: Any, request: Request, avoid: Collection[str], stack: AsyncExitStack) -> Replica:
    """The router's choice, with a slot reserved; see quire.ray.router for what the keywords mean."""
    chosen = engines.choose_replica(prefix=prefix_keys(request), avoid=sorted(avoid))
    selection = await chosen.__aenter__()
    stack.callback(_release_soon, chosen)
    return Replica(selection)


def _release_soon(chosen: Any) -> None:
    """Gives the slot back beside the request: the message to a host that is gone would hold it up for seconds."""
    task = asyncio.get_running_loop().create_task(chosen.__aexit__(None, None, None))
    _releasing.add(task)
    task.add_done_callback(_releasing.discard)


_releasing: set[asyncio.Task[Any]] = set()


def prefix_keys(request: Request) -> list[int]:
    """Chained checksums of the prompt's leading blocks, or one of the session's name."""
    session = request.header(b"x-session-id")
    if session is not None:
        return [zlib.crc32(session)]
    body = request.body
    start = max(body.find(b'"messages"'), body.find(b'"prompt"'))
    if start < 0:
        return []
    end = min(len(body), start + _BLOCK_BYTES * _BLOCKS_MAX)
    keys, key = [], 0
    for at in range(start, max(start + 1, end - _BLOCK_BYTES + 1), _BLOCK_BYTES):
        key = zlib.crc32(body[at : at + _BLOCK_BYTES], key)
        keys.append(key)
    return keys


async def read_request(scope: Scope, receive: Receive) -> Request | None:
    """The request with its whole body; None when that is too large."""
    pieces, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError
        piece = message.get("body", b"")
        size += len(piece)
        if size > settings.BODY_BYTES_MAX:
            return None
        pieces.append(piece)
        if not message.get("more_body"):
            break
    path = scope.get("raw_path") or scope["path"].encode()
    prefix = scope.get("root_path", "").encode()
    if prefix and path.startswith(prefix):
        path = path[len(prefix) :] or b"/"
    query = scope.get("query_string", b"")
    target = path + (b"?" + query if query else b"")
    headers = [(bytes(name).lower(), bytes(value)) for name, value in scope["headers"]]
    return Request(scope["method"], target.decode("latin-1"), headers, b"".join(pieces))


def error_body(message: str, code: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": "server_error", "param": None, "code": code}}).encode()


def lost_event(error: Exception) -> bytes:
    """How a stream that cannot go on says so: as the server itself ends a stream with an error."""
    return b"data: " + error_body(f"the replica was lost: {error}", "replica_lost") + b"\n\ndata: [DONE]\n\n"


async def send_whole(send: Send, status: int, kind: bytes, body: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_error(send: Send, status: int, message: str, code: str) -> None:
    await send_whole(send, status, b"application/json", error_body(message, code))
