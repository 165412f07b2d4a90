"""LLM: offline generation, with vLLM's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quire import _native as native
from quire._engine import Engine, PromptType, Running
from quire.engine_args import EngineArgs
from quire.outputs import RequestOutput
from quire.sampling_params import RequestOutputKind, SamplingParams
from quire.tokenizer import Tokenizer, chat_request

ChatMessages = Sequence[dict[str, Any]]


class LLM:
    """A model for offline use.

    llm = LLM(model="path", max_model_len=2048)
    outputs = llm.generate(["Hello", "World"], SamplingParams(temperature=0))
    """

    def __init__(self, model: str, **engine_args: Any) -> None:
        self.engine_args = EngineArgs(model=model, **engine_args)
        self._engine = Engine(self.engine_args)

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self.close()

    def close(self) -> None:
        self._engine.close()

    def get_tokenizer(self) -> Tokenizer:
        if self._engine.tokenizer is None:
            raise native.QuireError("UNSUPPORTED", "this checkpoint has no tokenizer")
        return self._engine.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What generation_config.json says, over SamplingParams' defaults."""
        import json

        config = json.loads(native.lib.qr_model_generation_config(self._engine._model) or b"{}")
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        return SamplingParams(**{name: config[name] for name in names if config.get(name) is not None})

    def generate(
        self,
        prompts: PromptType | Sequence[PromptType],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """One RequestOutput a prompt, in the order of the prompts. A prompt is text, token ids, or a dict with `prompt`
        or `prompt_token_ids`. Raises QuireError for the first request that fails."""
        many = [prompts] if _is_one_prompt(prompts) else list(prompts)
        params = self._params_for(sampling_params, len(many))
        jobs: list[tuple[Any, bytes | None]] = [(prompt, None) for prompt in many]
        return self._run(jobs, params, priority, use_tqdm)

    def chat(
        self,
        messages: ChatMessages | Sequence[ChatMessages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Like generate, for one conversation or a list of them, through the checkpoint's chat template."""
        one = len(messages) > 0 and isinstance(messages[0], dict)
        conversations: list[Any] = [messages] if one else list(messages)
        jobs: list[tuple[Any, bytes | None]] = [
            (
                None,
                chat_request(
                    list(conversation),
                    tools=tools,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    chat_template_kwargs=chat_template_kwargs,
                ),
            )
            for conversation in conversations
        ]
        return self._run(jobs, self._params_for(sampling_params, len(jobs)), None, use_tqdm)

    def encode(self, prompts: str | Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of texts."""
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        return [self.get_tokenizer().encode(text, add_special_tokens) for text in texts]

    def reset_prefix_cache(self) -> None:
        self._engine.reset_prefix_cache()

    def _params_for(self, given: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        if given is None:
            given = self.get_default_sampling_params()
        if isinstance(given, SamplingParams):
            return [given] * count
        if len(given) != count:
            raise native.InvalidArgument("INVALID_ARGUMENT", f"{count} prompts but {len(given)} sampling params")
        return list(given)

    def _run(
        self, jobs: list[tuple[Any, bytes | None]], params: list[SamplingParams], priority: Sequence[int] | None, use_tqdm: bool
    ) -> list[RequestOutput]:
        """Keeps the engine's queue filled, collects, and frees each request when it ends."""
        results: list[RequestOutput | None] = [None] * len(jobs)
        index_of: dict[int, int] = {}
        bar, following = _progress(len(jobs), use_tqdm), 0
        try:
            while following < len(jobs) or index_of:
                while following < len(jobs):
                    prompt, chat = jobs[following]
                    try:
                        running = self._engine.submit(
                            prompt, params[following], chat_json=chat, request_id=str(following), priority=priority[following] if priority else 0
                        )
                    except native.QuireError as error:
                        if error.status != "BUSY" or not index_of:
                            raise
                        break  # the queue is full: collect first
                    index_of[running.pointer] = following
                    following += 1
                for running in self._engine.poll(-1):
                    if running.finished:
                        self._collect(running, results, index_of)
                        bar.update(1)
        finally:
            bar.close()
            for running in [r for r in self._engine._running.values() if r.pointer in index_of]:
                self._engine.release(running)
        return [result for result in results if result is not None]

    def _collect(self, running: Running, results: list[RequestOutput | None], index_of: dict[int, int]) -> None:
        index = index_of.pop(running.pointer)
        output = self._engine.output(running, RequestOutputKind.CUMULATIVE)
        self._engine.release(running)
        if running.error is not None:
            raise running.error
        results[index] = output


def _is_one_prompt(prompts: Any) -> bool:
    if isinstance(prompts, (str, dict)):
        return True
    return len(prompts) > 0 and isinstance(prompts[0], int)


class _NoBar:
    def update(self, _: int) -> None:
        pass

    def close(self) -> None:
        pass


def _progress(total: int, wanted: bool) -> Any:
    """tqdm's bar when it is wanted and installed."""
    if not wanted:
        return _NoBar()
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _NoBar()
    return tqdm(total=total, desc="Processed prompts", dynamic_ncols=True)
