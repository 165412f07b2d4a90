#!/usr/bin/env python3
"""Compares Quire on tokenizer.model and tiktoken rank files with the PyPI packages `sentencepiece` and `tiktoken`.

    python3 differential_models.py libquire.so SHARED_DIR [COUNT]
"""
import base64
import ctypes
import os
import random
import shutil
import sys
import tempfile

import sentencepiece
import tiktoken

import differential

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")
CL100K = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
          r"\s+(?!\S)|\s")
TAIL = r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n%s]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def camel(extra):
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}%s]" % extra, r"[\p{Ll}\p{Lm}\p{Lo}\p{M}%s]" % extra
    first, last = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    return first + upper + "*" + lower + "+" + last + "|" + first + upper + "+" + lower + "*" + last


MODELS = ["llama-2/tokenizer.model", "mistral/tokenizer.model.v1",
          "mistral/mistral_instruct_tokenizer_240323.model.v3", "sentencepiece-test/test_model.model"]
RANKS = [("cl100k/cl100k_base.tiktoken", CL100K), ("gpt-oss/o200k_base.tiktoken", camel("") + TAIL % "/"),
         ("llama-3/tokenizer.model", LLAMA3),
         ("kimi-k2/tiktoken.model", r"[\p{Han}]+|" + camel(r"&&[^\p{Han}]") + TAIL % "")]


def compare(library, path, name, encode, count):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, os.path.join(folder, name))
        ours, rng, wrong = differential.Quire(library, folder), random.Random(path), 0
        for _ in range(count):
            text = differential.random_text(rng, []).replace("\0", "")
            want, got = encode(text), ours.encode(text, False)
            if want != got:
                wrong += 1
                if wrong <= 3:
                    print("  %r\n   got %s\n  want %s" % (text, got, want))
        ours.close()
    print("%-60s %6d texts %4d differ" % ("/".join(path.split("/")[-2:]), count, wrong), flush=True)
    return wrong


def main():
    library, shared = ctypes.CDLL(os.path.abspath(sys.argv[1])), sys.argv[2] + "/data/tokenizers/"
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 3000
    library.qr_tokenizer_close.argtypes = [ctypes.c_void_p]
    library.qr_string_free.argtypes = [ctypes.c_void_p]
    wrong = 0
    for path in MODELS:
        model = sentencepiece.SentencePieceProcessor(model_file=shared + path)
        wrong += compare(library, shared + path, "tokenizer.model", model.encode, count)
    for path, expression in RANKS:
        with open(shared + path, "rb") as file:
            ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in file if line.strip()}
        encoding = tiktoken.Encoding("x", pat_str=expression, mergeable_ranks=ranks, special_tokens={})
        wrong += compare(library, shared + path, "tiktoken.model",
                         lambda text, e=encoding: e.encode(text, disallowed_special=()), count)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
