"""Batch inference on Ray Data: an actor pool of engines behind `Dataset.map_batches`.

    import ray
    from quire.ray.data import generate

    prompts = ray.data.read_json("prompts.jsonl")  # a column "prompt"
    generate(prompts, model="path/to/checkpoint", sampling_params={"max_tokens": 64}).write_parquet("answers/")

A lost actor is started again and its batches are repeated by Ray Data; rows come out once. Corpus cleaning, with
stages that can be restarted, is in `quire.ray.cleaning`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
import ray.data

from quire.async_engine import AsyncLLMEngine
from quire.engine_args import AsyncEngineArgs
from quire.outputs import RequestOutput
from quire.sampling_params import RequestOutputKind, SamplingParams

Batch = dict[str, Any]


class EnginePredictor:
    """An actor's callable: one engine, batches in, the same batches with answers out.

    It is asynchronous: Ray Data hands it the next batch while this one runs, so that continuous batching never drains
    between batches. A prompt is text, token ids, or (with `chat`) a list of messages.
    """

    def __init__(
        self,
        engine_args: Mapping[str, Any],
        sampling_params: Mapping[str, Any] | None = None,
        prompt_column: str = "prompt",
        output_column: str = "generated_text",
        chat: bool = False,
    ) -> None:
        self._engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(**engine_args))
        self._params = SamplingParams(**{**(sampling_params or {}), "output_kind": RequestOutputKind.FINAL_ONLY})
        self._prompt_column, self._output_column, self._chat = prompt_column, output_column, chat

    async def __call__(self, batch: Batch) -> AsyncIterator[Batch]:
        if self._prompt_column not in batch:
            raise KeyError(f"EnginePredictor: the dataset has no column {self._prompt_column!r}, only {sorted(batch)}")
        prompts = batch[self._prompt_column]
        outputs = await asyncio.gather(*[self._answer(_plain(prompt)) for prompt in prompts])
        first = [output.outputs[0] for output in outputs]
        yield {
            **batch,
            self._output_column: np.array([answer.text for answer in first], dtype=object),
            "finish_reason": np.array([answer.finish_reason for answer in first], dtype=object),
            "prompt_tokens": np.array([len(output.prompt_token_ids or ()) for output in outputs], dtype=np.int64),
            "completion_tokens": np.array([len(answer.token_ids) for answer in first], dtype=np.int64),
        }

    async def _answer(self, prompt: Any) -> RequestOutput:
        result: RequestOutput | None = None
        stream = self._engine.chat(prompt, self._params) if self._chat else self._engine.generate(prompt, self._params)
        async for output in stream:
            result = output
        assert result is not None
        return result


def _plain(value: Any) -> Any:
    """A cell as the engine takes it: Ray Data turns lists into arrays and strings into numpy's."""
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value


def generate(
    dataset: ray.data.Dataset,
    *,
    model: str,
    sampling_params: Mapping[str, Any] | None = None,
    engine_args: Mapping[str, Any] | None = None,
    prompt_column: str = "prompt",
    output_column: str = "generated_text",
    chat: bool = False,
    min_engines: int = 1,
    max_engines: int | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    batch_size: int = 64,
) -> ray.data.Dataset:
    """`dataset` with the columns `output_column`, `finish_reason`, `prompt_tokens` and `completion_tokens`.

    `min_engines`..`max_engines` engines of `num_cpus` CPUs and `num_gpus` GPUs each; up to three batches of
    `batch_size` rows are in flight in each of them. Raises (as the dataset runs) what the engine reports.
    """
    pool = ray.data.ActorPoolStrategy(
        min_size=min_engines, max_size=max_engines or min_engines, max_tasks_in_flight_per_actor=3
    )
    return dataset.map_batches(
        EnginePredictor,
        fn_constructor_kwargs={
            "engine_args": {"model": model, **(engine_args or {})},
            "sampling_params": dict(sampling_params or {}),
            "prompt_column": prompt_column,
            "output_column": output_column,
            "chat": chat,
        },
        batch_size=batch_size,
        compute=pool,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
