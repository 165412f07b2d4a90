"""SamplingParams with vLLM's fields, defaults and meanings."""

from __future__ import annotations

import ctypes as c
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from quire import _native as native


class RequestOutputKind(Enum):
    """What each RequestOutput of a stream holds."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class SamplingParams:
    """How tokens are drawn and when a request ends.

    Every number is checked by the library when the object is made: `quire.QuireError` (also a ValueError) names the
    field and the value. `max_tokens=None` means the rest of the context; `logprobs=-1` the whole vocabulary.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    skip_reading_prefix_cache: bool = False
    extra_args: dict[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        error = native.Error()
        struct, _keep = self.to_native(vocab_size=2**31 - 1)
        native.check(native.lib.qr_sampling_params_check(c.byref(struct), c.byref(error)), error)

    @property
    def stop_strings(self) -> list[str]:
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    def to_native(self, vocab_size: int) -> tuple[native.SamplingParamsStruct, list[Any]]:
        """The C struct and the arrays that it points to (keep them alive until the call returned)."""
        s = native.SamplingParamsStruct()
        native.lib.qr_sampling_params_init(c.byref(s))
        s.n, s.temperature, s.top_p, s.top_k, s.min_p = self.n, self.temperature, self.top_p, self.top_k, self.min_p
        s.presence_penalty, s.frequency_penalty = self.presence_penalty, self.frequency_penalty
        s.repetition_penalty = self.repetition_penalty
        if self.seed is not None:
            s.has_seed, s.seed = True, self.seed & (2**64 - 1)
        s.max_tokens = -1 if self.max_tokens is None else self.max_tokens
        s.min_tokens, s.ignore_eos = self.min_tokens, self.ignore_eos
        s.include_stop_str_in_output = self.include_stop_str_in_output
        s.detokenize, s.skip_special_tokens = self.detokenize, self.skip_special_tokens
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            setattr(s, name, -1 if value is None else vocab_size if value == -1 else value)
        stops, bad = native.strings_array(self.stop_strings), native.strings_array(self.bad_words or [])
        stop_ids, allowed = native.ids_array(self.stop_token_ids or []), native.ids_array(self.allowed_token_ids or [])
        bias_items = list((self.logit_bias or {}).items())
        bias = (native.LogitBias * max(1, len(bias_items)))(*[native.LogitBias(int(k), float(v)) for k, v in bias_items])
        s.stop, s.stop_count = stops, len(self.stop_strings)
        s.bad_words, s.bad_word_count = bad, len(self.bad_words or [])
        s.stop_token_ids, s.stop_token_id_count = stop_ids, len(self.stop_token_ids or [])
        s.allowed_token_ids, s.allowed_token_id_count = allowed, len(self.allowed_token_ids or [])
        s.logit_bias, s.logit_bias_count = bias, len(bias_items)
        return s, [stops, bad, stop_ids, allowed, bias]
