#!/usr/bin/env python3
"""SmolLM2-135M-Instruct's GGUF under transformers, on the values that the file dequantises to.

    /tmp/venv-golden/bin/python tools/golden/make_smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf wiki.test.raw \
        tests/golden/smollm2

Files: tests/golden/smollm2/README.md. wiki.test.raw is WikiText-2's raw test split.
"""
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from gguf_out import LAYER_NAMES, TOP_NAMES, unpermute

GREEDY, TOP, TOKENS, WINDOW = 32, 5, 8192, 512
CHAT = ("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")


def field(reader, key):
    return reader.fields[key].contents()


def read_config(reader):
    f = lambda key: field(reader, f"llama.{key}")
    return LlamaConfig(hidden_size=f("embedding_length"), intermediate_size=f("feed_forward_length"),
                       num_hidden_layers=f("block_count"), num_attention_heads=f("attention.head_count"),
                       num_key_value_heads=f("attention.head_count_kv"), vocab_size=f("vocab_size"),
                       max_position_embeddings=f("context_length"), tie_word_embeddings=True,
                       rms_norm_eps=float(f("attention.layer_norm_rms_epsilon")),
                       rope_parameters={"rope_type": "default", "rope_theta": float(f("rope.freq_base"))})


def read_model(reader):
    config = read_config(reader)
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager").float().eval()
    layer_names = {v: k for k, v in LAYER_NAMES.items()}
    top_names = {v: k for k, v in TOP_NAMES.items()}
    state = {}
    for tensor in reader.tensors:
        array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        base, kind = tensor.name.rsplit(".", 1)
        if base in top_names:
            name = top_names[base]
        else:
            _, layer, short = base.split(".")
            name = f"model.layers.{layer}.{layer_names[short]}"
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(short)
            array = unpermute(array, heads) if heads else array
        state[f"{name}.{kind}"] = torch.from_numpy(np.ascontiguousarray(array))
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return model


def read_tokenizer(reader):
    """Byte-level BPE with single digits: what tokenizer.ggml.pre = smollm means."""
    tokens = field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(m.split(" ")) for m in field(reader, "tokenizer.ggml.merges")]
    out = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    out.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False)])
    out.decoder = decoders.ByteLevel()
    out.add_special_tokens([t for t, k in zip(tokens, field(reader, "tokenizer.ggml.token_type")) if k == 3])
    return out


def make_chat(model, tokenizer, path):
    prompt = tokenizer.encode(CHAT).ids
    ids, rows = list(prompt), []
    with torch.no_grad():
        for _ in range(GREEDY):
            rows.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].float())
            ids.append(int(rows[-1].argmax()))
    top = torch.stack(rows).topk(TOP, dim=1)
    margin = (top.values[:, 0] - top.values[:, 1]).min()
    head = np.array([len(prompt), GREEDY, TOP, rows[0].numel()], "<i4")
    path.write_bytes(head.tobytes() + np.array(ids, "<i4").tobytes() + rows[0].numpy().astype("<f4").tobytes() +
                     top.indices.numpy().astype("<i4").tobytes() + top.values.numpy().astype("<f4").tobytes())
    print(f"chat: {len(prompt)} prompt ids, smallest lead of the greedy choice {margin:.4f}")
    print(repr(tokenizer.decode(ids[len(prompt):], skip_special_tokens=False)))


def make_wikitext(model, tokenizer, text, path):
    ids = np.array(tokenizer.encode(text[:TOKENS * 8]).ids[:TOKENS], "<i4").reshape(-1, WINDOW)
    logprobs = np.zeros(ids.shape, "<f4")
    with torch.no_grad():
        for i, window in enumerate(ids):
            logits = model(torch.from_numpy(window.astype(np.int64))[None], use_cache=False).logits[0, :-1].double()
            picked = logits.log_softmax(1).gather(1, torch.from_numpy(window[1:].astype(np.int64))[:, None])
            logprobs[i, 1:] = picked[:, 0].numpy()
    head = np.array([ids.shape[0], WINDOW], "<i4")
    path.write_bytes(head.tobytes() + ids.tobytes() + logprobs.tobytes())
    nll = -logprobs[:, 1:].astype(np.float64).mean()
    print(f"wikitext: {ids.shape[0]} windows of {WINDOW}, mean negative log-probability {nll:.6f}, "
          f"perplexity {np.exp(nll):.4f}")


def main():
    reader = gguf.GGUFReader(sys.argv[1])
    root = Path(sys.argv[3])
    root.mkdir(parents=True, exist_ok=True)
    model, tokenizer = read_model(reader), read_tokenizer(reader)
    make_chat(model, tokenizer, root / "chat.bin")
    make_wikitext(model, tokenizer, Path(sys.argv[2]).read_text(), root / "wikitext.bin")


if __name__ == "__main__":
    main()
