"""One loaded model with its engine and poller, and the assembly of events into RequestOutput: shared by LLM and
AsyncLLMEngine. Tokens cross into Python once a poll, for all requests that have news."""

from __future__ import annotations

import ctypes as c
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

from quire import _native as native
from quire.engine_args import EngineArgs
from quire.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from quire.sampling_params import RequestOutputKind, SamplingParams
from quire.tokenizer import Tokenizer

PromptType = Union[str, Sequence[int], Mapping[str, Any]]
_EVENTS = 256


@dataclass
class Running:
    """A submitted request and what has come of it."""

    pointer: int
    request_id: str
    prompt: str | None
    params: SamplingParams
    outputs: list[CompletionOutput]
    new: list[CompletionOutput] = field(default_factory=list)
    error: native.QuireError | None = None
    prompt_ids: list[int] | None = None
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    cached: int | None = None
    seed: int | None = None

    @property
    def finished(self) -> bool:
        return self.error is not None or all(o.finish_reason is not None for o in self.outputs)


class Engine:
    """Owns model, engine and poller. Submitting is safe from any thread; polling belongs to one."""

    def __init__(self, args: EngineArgs) -> None:
        self.args = args
        self._model, self._engine, self._poller = c.c_void_p(), c.c_void_p(), c.c_void_p()
        error = native.Error()
        path = resolve_model(args.model, args.revision)
        model_options, engine_options = args.model_options(path), args.engine_options()
        try:
            native.check(native.lib.qr_model_open(c.byref(model_options), c.byref(self._model), c.byref(error)), error)
            native.check(native.lib.qr_engine_open(self._model, c.byref(engine_options), c.byref(self._engine), c.byref(error)), error)
            native.check(native.lib.qr_poller_open(self._engine, c.byref(self._poller), c.byref(error)), error)
        except native.QuireError:
            self.close()
            raise
        self.vocab_size = int(native.lib.qr_model_vocab_size(self._model))
        tokenizer = native.lib.qr_model_tokenizer(self._model)
        self.tokenizer = Tokenizer(tokenizer) if tokenizer else None
        self._events = (native.Event * _EVENTS)()
        self._running: dict[int, Running] = {}
        self._submitting = threading.Lock()

    def close(self) -> None:
        for running in list(getattr(self, "_running", {}).values()):
            self.release(running)
        if self._poller:
            native.lib.qr_poller_close(self._poller)
            self._poller = c.c_void_p()
        if self._engine:
            native.lib.qr_engine_close(self._engine)
            self._engine = c.c_void_p()
        if self._model:
            native.lib.qr_model_close(self._model)
            self._model = c.c_void_p()

    @property
    def max_model_len(self) -> int:
        return int(native.lib.qr_engine_max_model_len(self._engine))

    def stats(self) -> native.EngineStats:
        stats = native.EngineStats()
        stats.size = c.sizeof(stats)
        native.lib.qr_engine_get_stats(self._engine, c.byref(stats))
        return stats

    def reset_prefix_cache(self) -> None:
        native.lib.qr_engine_reset_prefix_cache(self._engine)

    # ---- Submitting ----

    def submit(
        self,
        prompt: PromptType | None,
        params: SamplingParams,
        *,
        chat_json: bytes | None = None,
        request_id: str | None = None,
        priority: int = 0,
        output_prefix_ids: Sequence[int] = (),
    ) -> Running:
        """Queues a request; raises QuireError (status BUSY when the queue is full)."""
        o, error = native.RequestOptions(), native.Error()
        native.lib.qr_request_options_init(c.byref(o))
        text = self._set_prompt(o, prompt, chat_json)
        o.sampling, keep = params.to_native(self.vocab_size)
        o.priority, o.skip_reading_prefix_cache = priority, params.skip_reading_prefix_cache
        if request_id is not None:
            o.request_id = request_id.encode()
        prefix = native.ids_array(list(output_prefix_ids))
        o.output_prefix_ids, o.output_prefix_count = prefix, len(output_prefix_ids)
        outputs = [CompletionOutput(index=i, logprobs=None if params.logprobs is None else []) for i in range(params.n)]
        for output in outputs:
            output.cumulative_logprob = None if params.logprobs is None else 0.0
        pointer = c.c_void_p()
        with self._submitting:
            status = native.lib.qr_request_submit(self._engine, self._poller, c.byref(o), c.byref(pointer), c.byref(error))
            del keep
            native.check(status, error)
            assert pointer.value is not None
            running = Running(pointer.value, request_id or "", text, params, outputs)
            self._running[pointer.value] = running
        return running

    @staticmethod
    def _set_prompt(o: native.RequestOptions, prompt: PromptType | None, chat_json: bytes | None) -> str | None:
        if isinstance(prompt, Mapping):  # vLLM's TextPrompt and TokensPrompt
            if prompt.get("cache_salt") is not None:
                o.cache_salt = str(prompt["cache_salt"]).encode()
            inner = prompt.get("prompt_token_ids", prompt.get("prompt"))
            if inner is None:
                raise native.InvalidArgument("INVALID_ARGUMENT", "a prompt needs 'prompt' or 'prompt_token_ids'")
            prompt = inner
        if chat_json is not None:
            o.chat_json, o.chat_json_bytes = chat_json, len(chat_json)
            return None
        if isinstance(prompt, str):
            data = prompt.encode()
            o.text, o.text_bytes = data, len(data)
            return prompt
        assert prompt is not None
        ids = list(prompt)
        o.token_ids, o.token_count = c.cast(native.ids_array(ids), c.POINTER(c.c_int32)), len(ids)
        return None

    def cancel(self, running: Running) -> None:
        native.lib.qr_request_cancel(running.pointer)

    def release(self, running: Running) -> None:
        if self._running.pop(running.pointer, None) is not None:
            native.lib.qr_request_release(running.pointer)

    # ---- Polling ----

    def poll(self, timeout_ms: int) -> Iterator[Running]:
        """Waits for news and yields each request that has some, once, with `new` filled."""
        count = native.lib.qr_poller_poll(self._poller, self._events, _EVENTS, timeout_ms)
        with self._submitting:
            pass  # a request whose event is here has been submitted, but maybe not yet entered in _running
        changed: dict[int, Running] = {}
        for event in self._events[:count]:
            running = self._running.get(event.request)
            if running is None:
                continue
            if running.pointer not in changed:
                running.new = [CompletionOutput(index=o.index) for o in running.outputs]
                changed[running.pointer] = running
            self._take(running, event)
        yield from changed.values()

    def _take(self, running: Running, event: native.Event) -> None:
        if running.prompt_ids is None:
            self._take_facts(running)
        output, new = running.outputs[event.sample], running.new[event.sample]
        ids: list[int] = event.token_ids[: event.token_count] if event.token_count else []
        text = c.string_at(event.text, event.text_bytes).decode() if event.text_bytes else ""
        output.token_ids += ids
        new.token_ids += ids
        output.text += text
        new.text += text
        if output.logprobs is not None and ids:
            self._take_logprobs(running, output, new, event, len(ids))
        if event.finish != 0:
            output.finish_reason = new.finish_reason = native.FINISH_NAMES[event.finish]
            reason: int | str | None = None
            if event.stop_string >= 0:
                reason = running.params.stop_strings[event.stop_string]
            elif event.stop_token >= 0 and event.stop_token in (running.params.stop_token_ids or []):
                reason = event.stop_token
            output.stop_reason = new.stop_reason = reason
        if event.finish == 4:
            name = native.lib.qr_status_name(event.status).decode()
            kind = native.InvalidArgument if name in ("INVALID_ARGUMENT", "LIMIT_EXCEEDED") else native.QuireError
            running.error = kind(name, (event.message or b"").decode(errors="replace"))

    def _row(self, rows: Any, begin: int, columns: int) -> dict[int, Logprob]:
        result: dict[int, Logprob] = {}
        for i in range(begin, begin + columns):
            entry = rows[i]
            if entry.token < 0 or entry.token in result:
                continue
            decoded = self.tokenizer.decode([entry.token]) if self.tokenizer is not None else None
            result[entry.token] = Logprob(entry.logprob, entry.rank, decoded)
        return result

    def _take_logprobs(self, running: Running, output: CompletionOutput, new: CompletionOutput, event: native.Event, tokens: int) -> None:
        asked = running.params.logprobs or 0
        columns = 1 + (self.vocab_size if asked == -1 else asked)
        assert output.logprobs is not None
        new.logprobs = new.logprobs or []
        for t in range(tokens):
            row = self._row(event.logprobs, t * columns, columns)
            output.logprobs.append(row)
            new.logprobs.append(row)
            output.cumulative_logprob = (output.cumulative_logprob or 0.0) + float(event.logprobs[t * columns].logprob)
        new.cumulative_logprob = output.cumulative_logprob

    def _take_facts(self, running: Running) -> None:
        facts = native.lib.qr_request_describe(running.pointer)
        running.prompt_ids = facts.prompt_ids[: facts.prompt_count] if facts.prompt_count else []
        running.cached, running.seed = facts.cached_count, facts.seed
        running.request_id = running.request_id or (facts.id or b"").decode()

    def output(self, running: Running, kind: RequestOutputKind) -> RequestOutput:
        """A RequestOutput of the moment; copies, so that later news do not change it."""
        facts = native.lib.qr_request_describe(running.pointer)
        finished = running.finished
        if facts.prompt_logprobs and running.prompt_logprobs is None:
            columns = facts.prompt_logprob_columns
            rows = [self._row(facts.prompt_logprobs, i * columns, columns) for i in range(facts.prompt_count)]
            running.prompt_logprobs = [row or None for row in rows]
        source = running.new if kind is RequestOutputKind.DELTA else running.outputs
        outputs = [
            CompletionOutput(o.index, o.text, list(o.token_ids), o.cumulative_logprob, None if o.logprobs is None else list(o.logprobs), o.finish_reason, o.stop_reason)
            for o in source
        ]
        times = RequestMetrics(facts.queued_ns / 1e9, facts.scheduled_ns / 1e9, facts.first_token_ns / 1e9, facts.finished_ns / 1e9)
        return RequestOutput(
            running.request_id, running.prompt, running.prompt_ids, outputs, finished, running.prompt_logprobs, times, running.cached, running.seed
        )


class HubOptions(c.Structure):
    _fields_ = [
        ("size", c.c_size_t),
        ("repo", c.c_char_p),
        ("revision", c.c_char_p),
        ("endpoint", c.c_char_p),
        ("token", c.c_char_p),
        ("cache_dir", c.c_char_p),
        ("offline", c.c_bool),
        ("progress", native.ProgressFn),
        ("progress_user", c.c_void_p),
    ]


def resolve_model(model: str, revision: str | None) -> str:
    """A path as it is; ORG/NAME from the hub's cache or the hub."""
    if os.path.exists(model) or "/" not in model or model.startswith((".", "/", "~")):
        return os.path.expanduser(model)
    options, path, error = HubOptions(), c.c_void_p(), native.Error()
    options.size, options.repo = c.sizeof(options), model.encode()
    options.revision = revision.encode() if revision else None
    native.check(native.lib.qr_hub_pull(c.byref(options), c.byref(path), c.byref(error)), error)
    found = c.string_at(path.value or 0).decode()
    native.lib.qr_string_free(path)
    return found
