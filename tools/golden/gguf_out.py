"""A transformers checkpoint as GGUF, the way llama.cpp's converter lays it out (Q and K permuted for Llama
and Mistral), and back: the state dict that a reader of that file sees."""
import math

import gguf
import numpy as np
import torch

from kquant import QUANTIZERS

ARCH = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
LAYER_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name):
    base, kind = name.rsplit(".", 1)
    if base in TOP_NAMES:
        return f"{TOP_NAMES[base]}.{kind}"
    _, _, layer, rest = base.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[rest]}.{kind}"


def permute(w, heads):
    """Rows of a head from halves (i, i + d/2) to neighbours (2i, 2i + 1)."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def unpermute(w, heads):
    return w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def heads_to_permute(config, name):
    if ARCH[config.model_type] != "llama":
        return 0
    if ".q_proj." in name:
        return config.num_attention_heads
    return config.num_key_value_heads if ".k_proj." in name else 0


def encode(array, kind):
    """float32 -> bytes in ggml type `kind`; a list in `raw_dtype` order for GGUFWriter."""
    qtype = getattr(gguf.GGMLQuantizationType, kind)
    if kind in QUANTIZERS:
        rows = QUANTIZERS[kind](array.astype(np.float32))
        return rows.reshape(*array.shape[:-1], -1), qtype
    return gguf.quants.quantize(array.astype(np.float32), qtype), qtype


def decode(data, qtype):
    return gguf.quants.dequantize(data, qtype).astype(np.float32)


def llama3_factors(config):
    rope, d = config.rope_parameters, config.head_dim
    freqs = 1.0 / rope["rope_theta"] ** (np.arange(0, d, 2, dtype=np.float64) / d)
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    out = []
    for freq in freqs:
        wavelen = 2 * math.pi / freq
        if wavelen < high:
            out.append(1)
        elif wavelen > low:
            out.append(rope["factor"])
        else:
            smooth = (rope["original_max_position_embeddings"] / wavelen - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"])
            out.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(out, np.float32)


def add_metadata(w, config, file_type):
    arch = ARCH[config.model_type]
    w.add_name("golden")
    w.add_file_type(file_type)
    w.add_block_count(config.num_hidden_layers)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_dim * config.num_attention_heads != config.hidden_size:
        w.add_key_length(head_dim)
        w.add_value_length(head_dim)
    w.add_rope_dimension_count(head_dim)
    rope = config.rope_parameters
    w.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        w.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        w.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if getattr(config, "sliding_window", None) and config.model_type == "mistral":
        w.add_sliding_window(config.sliding_window)
    w.add_vocab_size(config.vocab_size)
    w.add_uint32("tokenizer.ggml.bos_token_id", 1)
    w.add_uint32("tokenizer.ggml.eos_token_id", config.vocab_size - 1)
    return arch


def write_gguf(path, model, pick, file_type, split_tensors=0):
    """pick(gguf_name, shape) -> ggml type name. Returns the state dict that the file holds, as float32."""
    config = model.config
    w = gguf.GGUFWriter(path, ARCH[config.model_type], split_max_tensors=split_tensors)
    add_metadata(w, config, file_type)
    seen = {}
    if config.rope_parameters["rope_type"] == "llama3":
        w.add_tensor("rope_freqs.weight", llama3_factors(config))
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.detach().float().numpy()
        heads = heads_to_permute(config, name)
        if heads:
            array = permute(array, heads)
        out = gguf_name(name)
        data, qtype = encode(np.ascontiguousarray(array), pick(out, array.shape))
        w.add_tensor(out, data, raw_dtype=qtype)
        back = decode(data, qtype).reshape(array.shape)
        seen[name] = torch.from_numpy(np.ascontiguousarray(unpermute(back, heads) if heads else back))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return seen
