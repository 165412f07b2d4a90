#!/usr/bin/env python3
"""Blocks of random bytes and what the `gguf` package dequantises from them: the oracle of tests/unit/test_quant.c.

    /tmp/venv-golden/bin/python tools/golden/make_formats.py tests/golden/formats

NAME.bin: int32 values in a block, int32 bytes of a block, int32 block count n, n blocks, n x values float32.
Half-precision fields are kept finite: every 16-bit pattern of f16 and bf16 is tested in C.
"""
import sys
from pathlib import Path

import gguf
import numpy as np

BLOCKS = 6
HALF_AT = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2],
           "Q6_K": [208]}


def main():
    root = Path(sys.argv[1])
    root.mkdir(exist_ok=True)
    rng = np.random.default_rng(11)
    for name, halves in HALF_AT.items():
        qtype = getattr(gguf.GGMLQuantizationType, name)
        values, size = gguf.GGML_QUANT_SIZES[qtype]
        blocks = rng.integers(0, 256, (BLOCKS, size)).astype(np.uint8)
        for at in halves:
            scale = rng.normal(0, 2, BLOCKS).astype(np.float16)
            scale[0] = np.float16(3e-7)  # a subnormal
            blocks[:, at:at + 2] = scale.view(np.uint8).reshape(BLOCKS, 2)
        out = gguf.quants.dequantize(blocks, qtype).astype("<f4")
        head = np.array([values, size, BLOCKS], "<i4")
        (root / f"{name.lower()}.bin").write_bytes(head.tobytes() + blocks.tobytes() + out.tobytes())


if __name__ == "__main__":
    main()
