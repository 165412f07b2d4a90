"""A graph of deployments: retrieve -> rerank -> generate -> moderate, each stage scaled by itself.

    from ray import serve
    from quire.ray.pipelines import PipelineConfig, build_pipeline

    serve.run(build_pipeline(PipelineConfig(model="path/to/checkpoint", documents="docs.jsonl")))
    # or: serve run quire.ray.pipelines:build_pipeline model=path/to/checkpoint documents=docs.jsonl
    # curl 127.0.0.1:8000/answer -d '{"question": "...", "stream": true}'

Retrieval is lexical (BM25, Robertson and Zaragoza 2009); reranking is by query likelihood: how probable the model finds
the question after the passage (Ponte and Croft 1998; with language models, Sachan et al. 2022). What the moderator
refuses never leaves: streamed answers go out a sentence at a time, each looked at before it is sent.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from quire.async_engine import AsyncLLMEngine
from quire.engine_args import AsyncEngineArgs
from quire.sampling_params import RequestOutputKind, SamplingParams

_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclass(frozen=True)
class Passage:
    id: str
    text: str
    score: float


@dataclass(frozen=True)
class PipelineConfig:
    """`options` gives a stage's Serve options by its name (retrieve, rerank, generate, moderate, answer), for example
    {"generate": {"num_replicas": 4, "ray_actor_options": {"num_gpus": 1}}}."""

    model: str
    documents: str  # .jsonl with "text" and perhaps "id"
    rerank_model: str | None = None  # default: model
    refused_patterns: Sequence[str] = ()  # regular expressions, without regard to case
    retrieved: int = 20
    kept: int = 3
    max_tokens: int = 256
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.kept <= self.retrieved:
            raise ValueError(f"PipelineConfig: 1 <= kept <= retrieved, got {self.kept} and {self.retrieved}")
        if isinstance(self.refused_patterns, str):
            raise ValueError("PipelineConfig: refused_patterns: a list is expected, got one string")
        unknown = set(self.options) - set(_STAGES)
        if unknown:
            raise ValueError(f"PipelineConfig: options for {sorted(unknown)}, but the stages are {', '.join(_STAGES)}")


_STAGES = ("retrieve", "rerank", "generate", "moderate", "answer")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


class BM25:
    """An inverted index in memory; k1 = 1.2, b = 0.75."""

    def __init__(self, documents: Sequence[tuple[str, str]]) -> None:
        self._documents = documents
        counts = [Counter(_words(text)) for _, text in documents]
        self._lengths = [sum(count.values()) for count in counts]
        self._mean = max(1.0, sum(self._lengths) / max(1, len(documents)))
        self._postings: dict[str, list[tuple[int, int]]] = {}
        for number, count in enumerate(counts):
            for word, times in count.items():
                self._postings.setdefault(word, []).append((number, times))

    def search(self, query: str, count: int) -> list[Passage]:
        scores: dict[int, float] = {}
        for word in set(_words(query)):
            postings = self._postings.get(word, [])
            weight = math.log(1 + (len(self._documents) - len(postings) + 0.5) / (len(postings) + 0.5))
            for number, times in postings:
                norm = times + 1.2 * (0.25 + 0.75 * self._lengths[number] / self._mean)
                scores[number] = scores.get(number, 0.0) + weight * times * 2.2 / norm
        best = sorted(scores, key=lambda number: (-scores[number], number))[:count]
        return [Passage(*self._documents[number], scores[number]) for number in best]


def read_documents(path: str) -> list[tuple[str, str]]:
    """(id, text) of each line. Raises ValueError with the line that is wrong."""
    documents = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            value = json.loads(line) if line.strip() else None
            if value is None:
                continue
            if not isinstance(value, dict) or not isinstance(value.get("text"), str):
                raise ValueError(f'{path}: line {number}: an object with "text" is expected')
            documents.append((str(value.get("id", number)), value["text"]))
    return documents


@serve.deployment(name="retrieve")
class Retriever:
    def __init__(self, documents: str) -> None:
        self._index = BM25(read_documents(documents))

    async def search(self, question: str, count: int) -> list[Passage]:
        return self._index.search(question, count)


@serve.deployment(name="rerank", max_ongoing_requests=64)
class Reranker:
    def __init__(self, model: str, engine_args: Mapping[str, Any]) -> None:
        self._engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model=model, **engine_args))

    async def rank(self, question: str, passages: Sequence[Passage], count: int) -> list[Passage]:
        scores = await asyncio.gather(*[self._likelihood(question, passage) for passage in passages])
        ranked = [Passage(p.id, p.text, score) for p, score in zip(passages, scores, strict=True)]
        return sorted(ranked, key=lambda passage: -passage.score)[:count]

    async def _likelihood(self, question: str, passage: Passage) -> float:
        """Mean log-probability of the question's tokens after the passage."""
        tokenizer = await self._engine.get_tokenizer()
        before = tokenizer.encode(f"{passage.text}\nThe question that this text answers is:")
        asked = tokenizer.encode(" " + question, add_special_tokens=False)
        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY)
        async for output in self._engine.generate(before + asked, params):
            rows = (output.prompt_logprobs or [])[len(before) :]
        return sum(row[token].logprob for row, token in zip(rows, asked, strict=True) if row) / max(1, len(asked))

    async def check_health(self) -> None:
        await self._engine.check_health()


@serve.deployment(name="generate", max_ongoing_requests=256)
class Generator:
    def __init__(self, model: str, engine_args: Mapping[str, Any], max_tokens: int) -> None:
        self._engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model=model, **engine_args))
        self._params = SamplingParams(max_tokens=max_tokens, temperature=0, output_kind=RequestOutputKind.DELTA)

    async def stream(self, question: str, passages: Sequence[Passage]) -> AsyncIterator[str]:
        """The answer, a sentence at a time."""
        context = "\n\n".join(f"[{i}] {passage.text}" for i, passage in enumerate(passages, 1))
        messages = [
            {"role": "system", "content": "Answer from the numbered passages, and say so when they do not hold the answer."},
            {"role": "user", "content": f"{context}\n\nQuestion: {question}"},
        ]
        waiting = ""
        async for output in self._engine.chat(messages, self._params):
            waiting += output.outputs[0].text
            end = max((match.end() for match in _SENTENCE.finditer(waiting)), default=0)
            if end:
                yield waiting[:end]
                waiting = waiting[end:]
        if waiting:
            yield waiting

    async def check_health(self) -> None:
        await self._engine.check_health()


@serve.deployment(name="moderate")
class Moderator:
    """Refuses text by patterns: the place for a classifier, with the same method."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [re.compile(pattern, re.IGNORECASE) for pattern in patterns]

    async def refuses(self, text: str) -> bool:
        return any(pattern.search(text) for pattern in self._patterns)


@serve.deployment(name="answer", max_ongoing_requests=1024)
@serve.ingress()
class Answer:
    """POST /answer {"question", "stream"}: JSON, or one JSON line an event."""

    def __init__(
        self,
        retrieve: DeploymentHandle[Any],
        rerank: DeploymentHandle[Any],
        generate: DeploymentHandle[Any],
        moderate: DeploymentHandle[Any],
        config: PipelineConfig,
    ) -> None:
        self._retrieve, self._rerank, self._moderate, self._config = retrieve, rerank, moderate, config
        self._generate = generate.options(stream=True)

    def __serve_build_asgi_app__(self) -> Starlette:
        return Starlette(routes=[Route("/answer", self._post, methods=["POST"])])

    async def _post(self, request: Request) -> Response:
        try:
            body = await request.json()
            question = body["question"]
        except (ValueError, KeyError, TypeError):
            return JSONResponse({"error": 'a JSON object with "question" is expected'}, status_code=400)
        if not isinstance(question, str) or not question.strip():
            return JSONResponse({"error": '"question" must be a string with text'}, status_code=400)
        events = self._events(question)
        if body.get("stream"):
            return StreamingResponse((json.dumps(event) + "\n" async for event in events), media_type="application/x-ndjson")
        answer: dict[str, Any] = {"answer": "", "sources": [], "refused": False}
        async for event in events:
            answer["answer"] += event.pop("text", "")
            answer.update(event)
        return JSONResponse(answer)

    async def _events(self, question: str) -> AsyncIterator[dict[str, Any]]:
        """{"sources"}, then {"text"} for each sentence, and {"refused": true} where the moderator stops it."""
        if await self._moderate.refuses.remote(question):
            yield {"refused": True}
            return
        found = await self._retrieve.search.remote(question, self._config.retrieved)
        kept = await self._rerank.rank.remote(question, found, self._config.kept) if found else []
        yield {"sources": [{"id": passage.id, "score": passage.score} for passage in kept]}
        sentences: Any = self._generate.stream.remote(question, kept)
        async for sentence in sentences:
            if await self._moderate.refuses.remote(sentence):
                yield {"refused": True}
                return
            yield {"text": sentence}


def build_pipeline(config: PipelineConfig | Mapping[str, Any]) -> serve.Application:
    """The graph; the import path for `serve run`, whose arguments are PipelineConfig's fields."""
    if not isinstance(config, PipelineConfig):
        config = PipelineConfig(**config)

    def stage(deployment: Any, name: str, *arguments: Any) -> Any:  # Serve types its decorator as returning the class
        return deployment.options(**config.options.get(name, {})).bind(*arguments)

    if not Path(config.documents).exists():
        raise ValueError(f"PipelineConfig: documents: no file {config.documents}")
    engine_args = dict(config.engine_args)
    app: serve.Application = stage(
        Answer,
        "answer",
        stage(Retriever, "retrieve", config.documents),
        stage(Reranker, "rerank", config.rerank_model or config.model, engine_args),
        stage(Generator, "generate", config.model, engine_args, config.max_tokens),
        stage(Moderator, "moderate", list(config.refused_patterns)),
        config,
    )
    return app
