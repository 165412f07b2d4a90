"""EngineArgs with vLLM's names; what Quire does not have yet is refused by name, never ignored."""

from __future__ import annotations

import ctypes as c
import json
from dataclasses import dataclass
from typing import Any

from quire import _native as native


@dataclass
class EngineArgs:
    """Arguments of an engine. `model` is a folder, a .gguf file or ORG/NAME on the hub."""

    model: str
    served_model_name: str | None = None
    tokenizer: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    seed: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    long_prefill_token_threshold: int = 0
    block_size: int | None = None
    kv_cache_dtype: str = "auto"
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    enable_prefix_caching: bool = True
    scheduling_policy: str = "fcfs"
    max_logprobs: int = 20
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    quantization: str | None = None
    load_format: str = "auto"
    hf_overrides: dict[str, Any] | None = None
    revision: str | None = None
    threads: int = 0
    isa: str = "auto"
    # Accepted for scripts written for vLLM; they mean nothing to this engine.
    trust_remote_code: bool = False
    gpu_memory_utilization: float = 0.92
    enforce_eager: bool = False
    disable_log_stats: bool = False
    disable_log_requests: bool = True
    enable_chunked_prefill: bool = True

    def __post_init__(self) -> None:
        for name, supported in (("pipeline_parallel_size", 1), ("quantization", None), ("tokenizer", None)):
            value = getattr(self, name)
            if value != supported and not (name == "tokenizer" and value == self.model):
                raise native.InvalidArgument("UNSUPPORTED", f"{name}={value!r} is not supported yet")
        if self.tensor_parallel_size < 1:
            raise native.InvalidArgument("INVALID_ARGUMENT", f"tensor_parallel_size must be 1 or more, got {self.tensor_parallel_size}")
        if self.scheduling_policy not in ("fcfs", "priority"):
            raise native.InvalidArgument("INVALID_ARGUMENT", f"scheduling_policy must be fcfs or priority, got {self.scheduling_policy!r}")

    def model_options(self, path: str) -> native.ModelOptions:
        o = native.ModelOptions()
        native.lib.qr_model_options_init(c.byref(o))
        o.path, o.dtype, o.device, o.isa = path.encode(), self.dtype.encode(), self.device.encode(), self.isa.encode()
        o.threads, o.load_format = self.threads, self.load_format.encode()
        o.tensor_parallel_size = self.tensor_parallel_size
        if self.hf_overrides:
            o.hf_overrides = json.dumps(self.hf_overrides).encode()
        return o

    def engine_options(self) -> native.EngineOptions:
        o = native.EngineOptions()
        native.lib.qr_engine_options_init(c.byref(o))
        o.max_model_len, o.max_num_seqs = self.max_model_len or 0, self.max_num_seqs or 0
        o.max_num_batched_tokens, o.block_size = self.max_num_batched_tokens or 0, self.block_size or 0
        o.long_prefill_token_threshold = self.long_prefill_token_threshold
        o.kv_cache_dtype = self.kv_cache_dtype.encode()
        o.kv_cache_memory_bytes = self.kv_cache_memory_bytes or 0
        o.gpu_memory_utilization = self.gpu_memory_utilization
        o.num_kv_blocks = self.num_gpu_blocks_override or 0
        o.enable_prefix_caching = self.enable_prefix_caching
        o.priority_scheduling = self.scheduling_policy == "priority"
        o.seed, o.max_logprobs = self.seed or 0, self.max_logprobs
        return o


@dataclass
class AsyncEngineArgs(EngineArgs):
    """EngineArgs for AsyncLLMEngine."""
