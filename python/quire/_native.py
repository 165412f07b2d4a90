"""The C library (include/quire.h) through ctypes: structures, prototypes, errors.

ctypes releases the GIL during every call, so waiting in qr_poller_poll blocks no Python thread. Structures mirror
quire.h field by field; `size` comes first in option structs, so an older library ignores what it does not know.
"""

from __future__ import annotations

import ctypes as c
import os
from pathlib import Path
from typing import Any

FINISH_NAMES = (None, "stop", "length", "abort", "error")


class QuireError(RuntimeError):
    """An error of the library; `status` is its name, such as "INVALID_ARGUMENT"."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


class InvalidArgument(QuireError, ValueError):
    """QR_INVALID_ARGUMENT and QR_LIMIT_EXCEEDED: the caller's values are wrong."""


class Error(c.Structure):
    _fields_ = [("status", c.c_int), ("message", c.c_char * 252)]


ProgressFn = c.CFUNCTYPE(None, c.c_void_p, c.c_char_p, c.c_uint64, c.c_uint64)


class EncodeOptions(c.Structure):
    _fields_ = [("size", c.c_size_t), ("add_special_tokens", c.c_bool), ("parse_special", c.c_bool)]


class ModelOptions(c.Structure):
    _fields_ = [
        ("size", c.c_size_t),
        ("path", c.c_char_p),
        ("dtype", c.c_char_p),
        ("device", c.c_char_p),
        ("isa", c.c_char_p),
        ("threads", c.c_int),
        ("hf_overrides", c.c_char_p),
        ("load_format", c.c_char_p),
        ("dummy_seed", c.c_uint64),
        ("progress", ProgressFn),
        ("progress_user", c.c_void_p),
        ("engine_options", c.c_void_p),
        ("tensor_parallel_size", c.c_int32),
    ]


class EngineOptions(c.Structure):
    _fields_ = [
        ("size", c.c_size_t),
        ("max_model_len", c.c_int64),
        ("max_num_seqs", c.c_int32),
        ("max_num_batched_tokens", c.c_int32),
        ("long_prefill_token_threshold", c.c_int32),
        ("block_size", c.c_int32),
        ("kv_cache_dtype", c.c_char_p),
        ("kv_cache_memory_bytes", c.c_uint64),
        ("num_kv_blocks", c.c_int32),
        ("enable_prefix_caching", c.c_bool),
        ("priority_scheduling", c.c_bool),
        ("deterministic", c.c_bool),
        ("seed", c.c_uint64),
        ("max_logprobs", c.c_int32),
        ("max_waiting", c.c_int32),
        ("output_bytes_max", c.c_uint64),
        ("text_threads", c.c_int32),
        ("gpu_memory_utilization", c.c_double),
        ("async_scheduling", c.c_char_p),
    ]


class LogitBias(c.Structure):
    _fields_ = [("token", c.c_int32), ("bias", c.c_float)]


class SamplingParamsStruct(c.Structure):
    _fields_ = [
        ("size", c.c_size_t),
        ("n", c.c_int32),
        ("temperature", c.c_float),
        ("top_p", c.c_float),
        ("top_k", c.c_int32),
        ("min_p", c.c_float),
        ("repetition_penalty", c.c_float),
        ("presence_penalty", c.c_float),
        ("frequency_penalty", c.c_float),
        ("has_seed", c.c_bool),
        ("seed", c.c_uint64),
        ("max_tokens", c.c_int64),
        ("min_tokens", c.c_int64),
        ("ignore_eos", c.c_bool),
        ("stop", c.POINTER(c.c_char_p)),
        ("stop_count", c.c_size_t),
        ("include_stop_str_in_output", c.c_bool),
        ("stop_token_ids", c.POINTER(c.c_int32)),
        ("stop_token_id_count", c.c_size_t),
        ("logprobs", c.c_int32),
        ("prompt_logprobs", c.c_int32),
        ("detokenize", c.c_bool),
        ("skip_special_tokens", c.c_bool),
        ("logit_bias", c.POINTER(LogitBias)),
        ("logit_bias_count", c.c_size_t),
        ("allowed_token_ids", c.POINTER(c.c_int32)),
        ("allowed_token_id_count", c.c_size_t),
        ("bad_words", c.POINTER(c.c_char_p)),
        ("bad_word_count", c.c_size_t),
    ]


class RequestOptions(c.Structure):
    _fields_ = [
        ("size", c.c_size_t),
        ("text", c.c_char_p),
        ("text_bytes", c.c_size_t),
        ("token_ids", c.POINTER(c.c_int32)),
        ("token_count", c.c_size_t),
        ("chat_json", c.c_char_p),
        ("chat_json_bytes", c.c_size_t),
        ("add_special_tokens", c.c_bool),
        ("parse_special", c.c_bool),
        ("sampling", SamplingParamsStruct),
        ("priority", c.c_int32),
        ("cache_salt", c.c_char_p),
        ("skip_reading_prefix_cache", c.c_bool),
        ("request_id", c.c_char_p),
        ("output_prefix_ids", c.POINTER(c.c_int32)),
        ("output_prefix_count", c.c_size_t),
        ("truncate_prompt_tokens", c.c_int64),
        ("user", c.c_void_p),
        ("kept_special_ids", c.POINTER(c.c_int32)),
        ("kept_special_count", c.c_size_t),
        ("max_tokens_must_fit", c.c_bool),
        ("output_prefix_text_bytes", c.c_int64),
    ]


class LogprobStruct(c.Structure):
    _fields_ = [("token", c.c_int32), ("rank", c.c_int32), ("logprob", c.c_float)]


class Event(c.Structure):
    _fields_ = [
        ("request", c.c_void_p),
        ("user", c.c_void_p),
        ("sample", c.c_int32),
        ("token_ids", c.POINTER(c.c_int32)),
        ("token_count", c.c_size_t),
        ("text", c.c_void_p),
        ("text_bytes", c.c_size_t),
        ("logprobs", c.POINTER(LogprobStruct)),
        ("finish", c.c_int),
        ("stop_token", c.c_int32),
        ("stop_string", c.c_int32),
        ("status", c.c_int),
        ("message", c.c_char_p),
    ]


class RequestFacts(c.Structure):
    _fields_ = [
        ("id", c.c_char_p),
        ("seed", c.c_uint64),
        ("prompt_ids", c.POINTER(c.c_int32)),
        ("prompt_count", c.c_size_t),
        ("cached_count", c.c_size_t),
        ("prompt_logprobs", c.POINTER(LogprobStruct)),
        ("prompt_logprob_columns", c.c_size_t),
        ("queued_ns", c.c_uint64),
        ("scheduled_ns", c.c_uint64),
        ("first_token_ns", c.c_uint64),
        ("finished_ns", c.c_uint64),
    ]


class EngineStats(c.Structure):
    _fields_ = [
        ("size", c.c_size_t),
        ("steps", c.c_uint64),
        ("last_progress_ns", c.c_uint64),
        ("healthy", c.c_bool),
        ("draining", c.c_bool),
        ("running", c.c_int32),
        ("waiting", c.c_int32),
        ("kv_usage", c.c_double),
        ("kv_blocks", c.c_int64),
        ("kv_blocks_free", c.c_int64),
        ("block_size", c.c_int32),
        ("prompt_tokens", c.c_uint64),
        ("generation_tokens", c.c_uint64),
        ("cached_tokens", c.c_uint64),
        ("preemptions", c.c_uint64),
        ("prefix_queries", c.c_uint64),
        ("prefix_hits", c.c_uint64),
        ("step_ns_total", c.c_uint64),
        ("bytes_moved_total", c.c_uint64),
        ("flops_total", c.c_uint64),
        ("engine_heap_allocations", c.c_uint64),
        ("device_busy_ns_total", c.c_uint64),
        ("device_idle_ns_total", c.c_uint64),
        ("device_failed", c.c_bool),
        ("roof_ns_total", c.c_uint64),
    ]


def _find_library() -> str:
    """The library beside this file (as installed), $QUIRE_LIBRARY, or the checkout's build folder."""
    here = Path(__file__).resolve().parent
    candidates = [here / "libquire.so", here.parents[1] / "build" / "libquire.so"]
    given = os.environ.get("QUIRE_LIBRARY")
    if given:
        return given
    for path in candidates:
        if path.exists():
            return str(path)
    raise ImportError(f"libquire.so is not beside {here} nor in build/: run `make`, or set QUIRE_LIBRARY")


lib = c.CDLL(_find_library())

_VP, _SZ, _ERR = c.c_void_p, c.c_size_t, c.POINTER(Error)
_IDS = c.POINTER(c.c_int32)
_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "qr_version": (c.c_char_p, []),
    "qr_status_name": (c.c_char_p, [c.c_int]),
    "qr_string_free": (None, [_VP]),
    "qr_ids_free": (None, [_IDS]),
    "qr_tokenizer_open": (c.c_int, [c.c_char_p, c.POINTER(_VP), _ERR]),
    "qr_tokenizer_close": (None, [_VP]),
    "qr_tokenizer_vocab_size": (c.c_int32, [_VP]),
    "qr_tokenizer_bos": (c.c_int32, [_VP]),
    "qr_tokenizer_eos": (c.c_int32, [_VP]),
    "qr_tokenizer_token": (c.c_char_p, [_VP, c.c_int32, c.POINTER(c.c_bool)]),
    "qr_tokenizer_find": (c.c_int32, [_VP, c.c_char_p, _SZ]),
    "qr_encode_options_init": (None, [c.POINTER(EncodeOptions)]),
    "qr_tokenizer_encode": (c.c_int, [_VP, c.c_char_p, _SZ, c.POINTER(EncodeOptions), c.POINTER(_IDS), c.POINTER(_SZ), _ERR]),
    "qr_tokenizer_decode": (c.c_int, [_VP, _IDS, _SZ, c.c_bool, c.POINTER(_VP), c.POINTER(_SZ), _ERR]),
    "qr_tokenizer_chat_template": (c.c_char_p, [_VP]),
    "qr_tokenizer_set_chat_template": (c.c_int, [_VP, c.c_char_p, _ERR]),
    "qr_template_render": (c.c_int, [_VP, c.c_char_p, _SZ, c.POINTER(_VP), c.POINTER(_SZ), _ERR]),
    "qr_model_options_init": (None, [c.POINTER(ModelOptions)]),
    "qr_model_open": (c.c_int, [c.POINTER(ModelOptions), c.POINTER(_VP), _ERR]),
    "qr_model_close": (None, [_VP]),
    "qr_model_tokenizer": (_VP, [_VP]),
    "qr_model_tokenizer_mutable": (_VP, [_VP]),
    "qr_model_vocab_size": (c.c_int32, [_VP]),
    "qr_model_generation_config": (c.c_char_p, [_VP]),
    "qr_model_fingerprint": (c.c_char_p, [_VP]),
    "qr_engine_options_init": (None, [c.POINTER(EngineOptions)]),
    "qr_engine_open": (c.c_int, [_VP, c.POINTER(EngineOptions), c.POINTER(_VP), _ERR]),
    "qr_engine_close": (None, [_VP]),
    "qr_engine_drain": (None, [_VP]),
    "qr_engine_max_model_len": (c.c_int64, [_VP]),
    "qr_engine_get_stats": (None, [_VP, c.POINTER(EngineStats)]),
    "qr_engine_reset_prefix_cache": (None, [_VP]),
    "qr_sampling_params_init": (None, [c.POINTER(SamplingParamsStruct)]),
    "qr_sampling_params_check": (c.c_int, [c.POINTER(SamplingParamsStruct), _ERR]),
    "qr_request_options_init": (None, [c.POINTER(RequestOptions)]),
    "qr_poller_open": (c.c_int, [_VP, c.POINTER(_VP), _ERR]),
    "qr_poller_close": (None, [_VP]),
    "qr_poller_poll": (_SZ, [_VP, c.POINTER(Event), _SZ, c.c_int]),
    "qr_request_submit": (c.c_int, [_VP, _VP, c.POINTER(RequestOptions), c.POINTER(_VP), _ERR]),
    "qr_request_cancel": (None, [_VP]),
    "qr_request_release": (None, [_VP]),
    "qr_request_describe": (RequestFacts, [_VP]),
    "qr_hub_pull": (c.c_int, [_VP, c.POINTER(_VP), _ERR]),
}
for _name, (_result, _arguments) in _PROTOTYPES.items():
    _function = getattr(lib, _name)
    _function.restype = _result
    _function.argtypes = _arguments


def check(status: int, error: Error) -> None:
    """Raises what a call reported."""
    if status == 0:
        return
    name = lib.qr_status_name(status).decode()
    kind = InvalidArgument if name in ("INVALID_ARGUMENT", "LIMIT_EXCEEDED", "UNSUPPORTED") else QuireError
    raise kind(name, error.message.decode(errors="replace"))


def take_string(pointer: c.c_void_p, size: int) -> bytes:
    """Copies a string that the library returned and gives it back."""
    data = c.string_at(pointer.value, size) if pointer.value else b""
    lib.qr_string_free(pointer)
    return data


def ids_array(ids: list[int]) -> Any:
    """A C array of token ids; ids out of int32 are refused by ctypes' silent wrap, so they are checked here."""
    for token in ids:
        if not 0 <= token < 2**31:
            raise InvalidArgument("INVALID_ARGUMENT", f"token id {token} is out of range")
    return (c.c_int32 * max(1, len(ids)))(*ids)


def strings_array(strings: list[str]) -> Any:
    return (c.c_char_p * max(1, len(strings)))(*[s.encode() for s in strings])


def library_version() -> str:
    version: bytes = lib.qr_version()
    return version.decode()
