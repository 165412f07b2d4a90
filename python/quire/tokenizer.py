"""The checkpoint's tokenizer, as LLM.get_tokenizer() returns it."""

from __future__ import annotations

import ctypes as c
import json
from typing import Any

from quire import _native as native


class Tokenizer:
    """encode, decode and apply_chat_template with transformers' names. What a model's get_tokenizer() returns is borrowed:
    use it while the model is open. One from from_pretrained() closes itself."""

    _owned = False

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    @classmethod
    def from_pretrained(cls, path: str) -> Tokenizer:
        """The tokenizer of a checkpoint's folder or .gguf file, without its weights. Raises QuireError."""
        pointer, error = c.c_void_p(), native.Error()
        native.check(native.lib.qr_tokenizer_open(path.encode(), c.byref(pointer), c.byref(error)), error)
        assert pointer.value is not None
        tokenizer = cls(pointer.value)
        tokenizer._owned = True
        return tokenizer

    def __del__(self) -> None:
        if self._owned:
            native.lib.qr_tokenizer_close(self._pointer)

    @property
    def vocab_size(self) -> int:
        return int(native.lib.qr_tokenizer_vocab_size(self._pointer))

    def __len__(self) -> int:
        return self.vocab_size

    @property
    def bos_token_id(self) -> int | None:
        token = int(native.lib.qr_tokenizer_bos(self._pointer))
        return token if token >= 0 else None

    @property
    def eos_token_id(self) -> int | None:
        token = int(native.lib.qr_tokenizer_eos(self._pointer))
        return token if token >= 0 else None

    @property
    def chat_template(self) -> str | None:
        source: bytes | None = native.lib.qr_tokenizer_chat_template(self._pointer)
        return source.decode() if source is not None else None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        options, error = native.EncodeOptions(), native.Error()
        native.lib.qr_encode_options_init(c.byref(options))
        options.add_special_tokens = add_special_tokens
        ids, count, data = c.POINTER(c.c_int32)(), c.c_size_t(), text.encode()
        status = native.lib.qr_tokenizer_encode(
            self._pointer, data, len(data), c.byref(options), c.byref(ids), c.byref(count), c.byref(error)
        )
        native.check(status, error)
        result: list[int] = ids[: count.value] if count.value else []
        native.lib.qr_ids_free(ids)
        return result

    def decode(self, token_ids: int | list[int], skip_special_tokens: bool = False) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        text, size, error = c.c_void_p(), c.c_size_t(), native.Error()
        status = native.lib.qr_tokenizer_decode(
            self._pointer, native.ids_array(ids), len(ids), skip_special_tokens, c.byref(text), c.byref(size), c.byref(error)
        )
        native.check(status, error)
        return native.take_string(text, size.value).decode()

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str | None]:
        special = c.c_bool()
        tokens = [native.lib.qr_tokenizer_token(self._pointer, token, c.byref(special)) for token in ids]
        return [token.decode(errors="replace") if token is not None else None for token in tokens]

    def apply_chat_template(self, messages: list[dict[str, Any]], tokenize: bool = True, **options: Any) -> str | list[int]:
        """options: tools, documents, add_generation_prompt, continue_final_message; others are template variables."""
        request = chat_request(messages, **options)
        text, size, error = c.c_void_p(), c.c_size_t(), native.Error()
        status = native.lib.qr_template_render(self._pointer, request, len(request), c.byref(text), c.byref(size), c.byref(error))
        native.check(status, error)
        rendered = native.take_string(text, size.value)
        if not tokenize:
            return rendered.replace(b"\xff", b"").decode()
        return self._encode_rendered(rendered)

    def _encode_rendered(self, rendered: bytes) -> list[int]:
        options, error = native.EncodeOptions(), native.Error()
        native.lib.qr_encode_options_init(c.byref(options))
        options.add_special_tokens = False
        ids, count = c.POINTER(c.c_int32)(), c.c_size_t()
        status = native.lib.qr_tokenizer_encode(
            self._pointer, rendered, len(rendered), c.byref(options), c.byref(ids), c.byref(count), c.byref(error)
        )
        native.check(status, error)
        result: list[int] = ids[: count.value] if count.value else []
        native.lib.qr_ids_free(ids)
        return result


_TEMPLATE_FIELDS = ("tools", "documents", "add_generation_prompt", "continue_final_message")


def chat_request(messages: list[dict[str, Any]], **options: Any) -> bytes:
    """The JSON that qr_template_render takes."""
    request: dict[str, Any] = {"messages": messages}
    kwargs = dict(options.pop("chat_template_kwargs", None) or {})
    for name, value in options.items():
        if name in _TEMPLATE_FIELDS:
            if value is not None:
                request[name] = value
        else:
            kwargs[name] = value
    if kwargs:
        request["chat_template_kwargs"] = kwargs
    return json.dumps(request, ensure_ascii=False).encode()
