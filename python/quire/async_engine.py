"""AsyncLLMEngine: one thread polls the C engine; news reach asyncio once a poll, for all requests together."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

from quire import _native as native
from quire._engine import Engine, PromptType, Running
from quire.engine_args import AsyncEngineArgs, EngineArgs
from quire.outputs import RequestOutput
from quire.sampling_params import RequestOutputKind, SamplingParams
from quire.tokenizer import Tokenizer, chat_request

_POLL_MS = 200  # how often the poll thread looks whether it should end
_STALLED_S = 30.0


class _Stream:
    """What one generate() call waits for; touched on its event loop only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, running: Running, kind: RequestOutputKind) -> None:
        self.loop, self.running, self.kind = loop, running, kind
        self.queue: asyncio.Queue[RequestOutput | BaseException] = asyncio.Queue()


class AsyncLLMEngine:
    """vLLM's asynchronous engine.

    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="path"))
    async for output in engine.generate("Hello", SamplingParams(), request_id="1"):
        ...

    A task that is cancelled, or a generator that is closed, cancels its request in the engine.
    """

    def __init__(self, model: str | None = None, *, engine_args: EngineArgs | None = None, **kwargs: Any) -> None:
        if engine_args is None:
            if model is None:
                raise native.InvalidArgument("INVALID_ARGUMENT", "model is expected")
            engine_args = AsyncEngineArgs(model=model, **kwargs)
        self.engine_args = engine_args
        self._engine = Engine(engine_args)
        self._lock = threading.Lock()
        self._streams: dict[int, _Stream] = {}
        self._by_id: dict[str, Running] = {}
        self._retired: deque[Running] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._poll_forever, name="quire-poll", daemon=True)
        self._thread.start()

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs, **_: Any) -> AsyncLLMEngine:
        return cls(engine_args=engine_args)

    # ---- The poll thread ----

    def _poll_forever(self) -> None:
        while not self._closing:
            batches: dict[asyncio.AbstractEventLoop, list[tuple[_Stream, Any]]] = {}
            while self._retired:
                self._engine.release(self._retired.popleft())
            for running in self._engine.poll(_POLL_MS):
                with self._lock:
                    stream = self._streams.get(running.pointer)
                if stream is None:
                    continue
                if running.error is not None:
                    item: Any = running.error
                elif stream.kind is RequestOutputKind.FINAL_ONLY and not running.finished:
                    continue
                else:
                    item = self._engine.output(running, stream.kind)
                batches.setdefault(stream.loop, []).append((stream, item))
            for loop, items in batches.items():
                try:
                    loop.call_soon_threadsafe(_deliver, items)
                except RuntimeError:  # the loop is closed: its generators are gone
                    for stream, _item in items:
                        self._engine.cancel(stream.running)

    # ---- Requests ----

    async def generate(
        self,
        prompt: PromptType,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        output_prefix_ids: list[int] | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yields RequestOutput as tokens come (cumulative unless output_kind says otherwise)."""
        async for output in self._stream(prompt, None, sampling_params, request_id, priority, output_prefix_ids or []):
            yield output

    async def chat(
        self, messages: list[dict[str, Any]], sampling_params: SamplingParams | None = None, request_id: str | None = None, *, priority: int = 0, **template_options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """Like generate, through the chat template; template_options as Tokenizer.apply_chat_template's."""
        async for output in self._stream(None, chat_request(messages, **template_options), sampling_params, request_id, priority, []):
            yield output

    async def _stream(
        self, prompt: PromptType | None, chat_json: bytes | None, params: SamplingParams | None, request_id: str | None, priority: int, prefix: list[int]
    ) -> AsyncGenerator[RequestOutput, None]:
        stream = self._start(prompt, chat_json, params or SamplingParams(), request_id or uuid.uuid4().hex, priority, prefix)
        try:
            while True:
                item = await stream.queue.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.finished:
                    return
        finally:
            self._end(stream)

    def _start(
        self, prompt: PromptType | None, chat_json: bytes | None, params: SamplingParams, request_id: str, priority: int, prefix: list[int]
    ) -> _Stream:
        if self._closing:
            raise native.QuireError("CLOSED", "the engine is shut down")
        with self._lock:
            if request_id in self._by_id:
                raise native.InvalidArgument("INVALID_ARGUMENT", f"request id {request_id!r} is running already")
            running = self._engine.submit(prompt, params, chat_json=chat_json, request_id=request_id, priority=priority, output_prefix_ids=prefix)
            stream = _Stream(asyncio.get_running_loop(), running, params.output_kind)
            self._streams[running.pointer] = stream
            self._by_id[request_id] = running
        return stream

    def _end(self, stream: _Stream) -> None:
        """Forgets a request; the engine stops computing it when it still runs."""
        with self._lock:
            self._streams.pop(stream.running.pointer, None)
            self._by_id.pop(stream.running.request_id, None)
        self._retire(stream.running)

    def _retire(self, running: Running) -> None:
        # Only the poll thread may release: its event array may still name the request.
        self._engine.cancel(running)
        self._retired.append(running)

    async def abort(self, request_id: str) -> None:
        """Ends a request; its generator yields a last output with finish_reason "abort"."""
        with self._lock:
            running = self._by_id.get(request_id)
            if running is not None:
                self._engine.cancel(running)

    # ---- The rest ----

    async def check_health(self) -> None:
        """Raises when the engine failed, or has work and made no step for 30 s."""
        stats = self._engine.stats()
        busy = stats.running + stats.waiting > 0
        stalled = busy and time.monotonic() - stats.last_progress_ns / 1e9 > _STALLED_S
        if not stats.healthy or stalled:
            raise native.QuireError("DEVICE_FAILED", "the engine makes no progress")

    async def get_tokenizer(self) -> Tokenizer:
        if self._engine.tokenizer is None:
            raise native.QuireError("UNSUPPORTED", "this checkpoint has no tokenizer")
        return self._engine.tokenizer

    async def reset_prefix_cache(self) -> None:
        self._engine.reset_prefix_cache()

    @property
    def is_running(self) -> bool:
        return not self._closing

    def shutdown(self) -> None:
        """Cancels what runs and frees the engine. Idempotent."""
        if self._closing:
            return
        self._closing = True
        self._thread.join()
        with self._lock:
            for stream in self._streams.values():
                error = native.QuireError("CLOSED", "the engine is shut down")
                stream.loop.call_soon_threadsafe(stream.queue.put_nowait, error)
            self._streams.clear()
            self._by_id.clear()
        self._engine.close()

    def __del__(self) -> None:
        if hasattr(self, "_thread"):
            self.shutdown()


AsyncLLM = AsyncLLMEngine


def _deliver(items: list[tuple[_Stream, Any]]) -> None:
    for stream, item in items:
        stream.queue.put_nowait(item)
