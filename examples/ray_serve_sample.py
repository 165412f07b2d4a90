"""A Serve deployment around an asynchronous engine: 4 replicas with 2 GPUs each, streamed over HTTP.

    ray start --head
    python examples/ray_serve_sample.py [MODEL]
    curl -N localhost:8000 -H 'content-type: application/json' -d '{"prompt": "The capital of France is"}'

The script is the same for vLLM: `from vllm import AsyncLLMEngine, SamplingParams` is the one line that differs.
"""

import sys
import uuid

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import StreamingResponse

from quire import AsyncLLMEngine, SamplingParams


@serve.deployment(num_replicas=4, max_ongoing_requests=64, ray_actor_options={"num_gpus": 2})
class TextGenerator:
    def __init__(self, model):
        self.engine = AsyncLLMEngine(model=model, tensor_parallel_size=2, max_model_len=1024, kv_cache_memory_bytes=128 << 20)

    async def __call__(self, request: Request):
        body = await request.json()
        params = SamplingParams(temperature=body.get("temperature", 0.8), max_tokens=body.get("max_tokens", 64))
        return StreamingResponse(self.stream(body["prompt"], params), media_type="text/plain")

    async def stream(self, prompt, params):
        sent = 0
        async for output in self.engine.generate(prompt, params, request_id=uuid.uuid4().hex):
            text = output.outputs[0].text
            yield text[sent:]
            sent = len(text)


if __name__ == "__main__":
    ray.init(address="auto")
    serve.run(TextGenerator.bind(sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M-Instruct"))
