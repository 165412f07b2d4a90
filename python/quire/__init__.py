"""Quire for Python: vLLM's names over the C engine.

    from quire import LLM, SamplingParams

    llm = LLM(model="path/to/checkpoint")
    for output in llm.generate(["Hello"], SamplingParams(max_tokens=16)):
        print(output.outputs[0].text)
"""

from quire._native import QuireError, library_version
from quire.async_engine import AsyncLLM, AsyncLLMEngine
from quire.engine_args import AsyncEngineArgs, EngineArgs
from quire.llm import LLM
from quire.outputs import CompletionOutput, Logprob, RequestOutput
from quire.sampling_params import RequestOutputKind, SamplingParams

__all__ = [
    "LLM",
    "AsyncEngineArgs",
    "AsyncLLM",
    "AsyncLLMEngine",
    "CompletionOutput",
    "EngineArgs",
    "Logprob",
    "QuireError",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "__version__",
]

__version__ = library_version()
