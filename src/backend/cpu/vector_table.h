/* The table of one instruction set: the file that includes this gets cpu_vector_<set>.
 * Private to backend/cpu/. Thread: any. */
#include "backend/cpu/attention_body.h"
#include "backend/cpu/vector_body.h"

#define TABLE_JOIN(name)  cpu_vector_##name
#define TABLE_OF(name)    TABLE_JOIN(name)
#define TABLE_QUOTE(name) #name
#define TABLE_TEXT(name)  TABLE_QUOTE(name)

const cpu_vector_kernels TABLE_OF(SIMD_NAME) = {
    .name = TABLE_TEXT(SIMD_NAME),
    .rmsnorm = row_rmsnorm,
    .add = row_add,
    .add_rmsnorm = row_add_rmsnorm,
    .silu_mul = row_silu_mul,
    .gelu_mul = row_gelu_mul,
    .gelu_tanh_mul = row_gelu_tanh_mul,
    .rope_halves = head_rope_halves,
    .rope_pairs = head_rope_pairs,
    .to_f16 = row_to_f16,
    .to_bf16 = row_to_bf16,
    .attention =
        {[QR_DTYPE_F32] = attention_f32, [QR_DTYPE_F16] = attention_f16, [QR_DTYPE_BF16] = attention_bf16},
    .key_lanes = VF,
    .attention_merge = attention_merge,
    .scale = row_scale,
};
