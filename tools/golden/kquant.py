"""Simple numpy quantisers for ggml's Q4_K, Q5_K and Q6_K blocks.

The `gguf` package reads these types but does not write them. Quality does not matter for golden files: the
reference model runs on what the package dequantises from these bytes. Layouts: ggml-common.h.
"""
import numpy as np


def _half_bytes(x):
    return np.ascontiguousarray(x.astype(np.float16)).view(np.uint8)


def _pack_scales(scales, mins):
    """8 six-bit scales and minimums -> 12 bytes."""
    out = np.zeros((scales.shape[0], 12), np.uint8)
    s, m = scales.astype(np.uint8), mins.astype(np.uint8)
    out[:, 0:4] = s[:, 0:4] | (s[:, 4:8] >> 4 << 6)
    out[:, 4:8] = m[:, 0:4] | (m[:, 4:8] >> 4 << 6)
    out[:, 8:12] = (s[:, 4:8] & 15) | (m[:, 4:8] & 15) << 4
    return out


def _k_levels(x, top):
    """Blocks [n, 256] -> half d and dmin, six-bit scales and minimums, levels 0..top [n, 8, 32]."""
    sub = x.reshape(-1, 8, 32)
    low = np.minimum(sub.min(axis=2), 0)
    step = (sub.max(axis=2) - low) / top
    d = (step.max(axis=1, keepdims=True) / 63).astype(np.float16).astype(np.float32)
    dmin = (-low.min(axis=1, keepdims=True) / 63).astype(np.float16).astype(np.float32)
    safe = lambda v: np.where(v == 0, 1, v)
    scales = np.clip(np.rint(step / safe(d)), 0, 63)
    mins = np.clip(np.rint(-low / safe(dmin)), 0, 63)
    effective = (d * scales)[:, :, None]
    q = np.clip(np.rint((sub + (dmin * mins)[:, :, None]) / safe(effective)), 0, top)
    return d, dmin, scales, mins, np.where(effective == 0, 0, q).astype(np.uint8)


def _nibbles(q):
    pairs = (q & 15).reshape(-1, 4, 2, 32)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)


def quantize_q4_k(x):
    d, dmin, scales, mins, q = _k_levels(x.reshape(-1, 256), 15)
    return np.concatenate([_half_bytes(d), _half_bytes(dmin), _pack_scales(scales, mins), _nibbles(q)], axis=1)


def quantize_q5_k(x):
    d, dmin, scales, mins, q = _k_levels(x.reshape(-1, 256), 31)
    high = np.zeros((q.shape[0], 32), np.uint8)
    for j in range(8):
        high |= (q[:, j] >> 4) << j
    return np.concatenate([_half_bytes(d), _half_bytes(dmin), _pack_scales(scales, mins), high, _nibbles(q)], axis=1)


def quantize_q6_k(x):
    sub = x.reshape(-1, 16, 16)
    step = np.abs(sub).max(axis=2) / 31
    d = (step.max(axis=1, keepdims=True) / 127).astype(np.float16).astype(np.float32)
    scales = np.clip(np.rint(step / np.where(d == 0, 1, d)), 0, 127)
    effective = (d * scales)[:, :, None]
    q = np.clip(np.rint(sub / np.where(effective == 0, 1, effective)), -32, 31) + 32
    q = q.astype(np.uint8).reshape(-1, 2, 4, 32)  # half, quarter, value
    low = np.concatenate([(q[:, :, 0] & 15) | (q[:, :, 2] & 15) << 4, (q[:, :, 1] & 15) | (q[:, :, 3] & 15) << 4], axis=2)
    high = (q[:, :, 0] >> 4) | (q[:, :, 1] >> 4) << 2 | (q[:, :, 2] >> 4) << 4 | (q[:, :, 3] >> 4) << 6
    return np.concatenate([low.reshape(-1, 128), high.reshape(-1, 64), scales.astype(np.int8).view(np.uint8),
                           _half_bytes(d)], axis=1)


QUANTIZERS = {"Q4_K": quantize_q4_k, "Q5_K": quantize_q5_k, "Q6_K": quantize_q6_k}
