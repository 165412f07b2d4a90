#!/usr/bin/env python3
"""Writes the benchmark model of bench/README.md: the shape of Llama-3.2-1B with seeded random-normal weights, as GGUF.

    make_model.py OUT.gguf {bf16,f16,q8_0,q4_0,q4_1,q4_k,q6_k} [--vocab VOCAB.gguf] [--layers 16]

Needs the PyPI packages gguf and numpy. --vocab takes the tokenizer of a GGUF file (a vocabulary-only file will do), which
llama.cpp and ik_llama.cpp need to open a model, padded to the shape's size; without it the tokens are made up.
"""

import argparse

import gguf
import numpy as np

HIDDEN, FF, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 2048, 8192, 32, 8, 64, 128256


def add_vocab(writer: gguf.GGUFWriter, path: str | None) -> None:
    if path is None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("llama-bpe")
        writer.add_token_list([f"t{i}" for i in range(VOCAB)])
        writer.add_token_types([1] * VOCAB)
        writer.add_token_merges(["t 0"])
        return
    for field in gguf.GGUFReader(path).fields.values():
        if not field.name.startswith("tokenizer."):
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = field.contents()
        if field.name == "tokenizer.ggml.tokens":
            value = value + [f"<extra_{i}>" for i in range(VOCAB - len(value))]
        if field.name == "tokenizer.ggml.token_type":
            value = value + [1] * (VOCAB - len(value))
        writer.add_key_value(field.name, value, kind, sub_type=sub)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("format")
    parser.add_argument("--vocab")
    parser.add_argument("--layers", type=int, default=16)
    args = parser.parse_args()
    kind = gguf.GGMLQuantizationType[args.format.upper()]
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(args.out, "llama")
    writer.add_name("llama-3.2-1b-shape")
    writer.add_context_length(131072)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(args.layers)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    add_vocab(writer, args.vocab)

    def matrix(name: str, rows: int, cols: int) -> None:
        values = random.standard_normal((rows, cols), dtype=np.float32) * np.float32(0.02)
        data = gguf.quants.quantize(values, kind)
        writer.add_tensor(name, data, raw_dtype=kind)

    def ones(name: str, n: int) -> None:
        writer.add_tensor(name, np.ones(n, dtype=np.float32))

    matrix("token_embd.weight", VOCAB, HIDDEN)
    for i in range(args.layers):
        ones(f"blk.{i}.attn_norm.weight", HIDDEN)
        matrix(f"blk.{i}.attn_q.weight", HEADS * HEAD_DIM, HIDDEN)
        matrix(f"blk.{i}.attn_k.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        matrix(f"blk.{i}.attn_v.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        matrix(f"blk.{i}.attn_output.weight", HIDDEN, HEADS * HEAD_DIM)
        ones(f"blk.{i}.ffn_norm.weight", HIDDEN)
        matrix(f"blk.{i}.ffn_gate.weight", FF, HIDDEN)
        matrix(f"blk.{i}.ffn_up.weight", FF, HIDDEN)
        matrix(f"blk.{i}.ffn_down.weight", HIDDEN, FF)
    ones("output_norm.weight", HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
