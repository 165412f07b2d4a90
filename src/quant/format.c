#include "quant/format.h"

#include "base/assert.h"
#include "quant/format_headers.inc"

#define QR_FORMAT_ROW(x)                                                               \
    static void dequant_row_##x(const void *row, float *out, int64_t n)                \
    {                                                                                  \
        const uint8_t *block = row;                                                    \
        for (int64_t i = 0; i < n; i += QR_TRAIT_BLOCK(x), block += QR_TRAIT_BYTES(x)) \
            qr_##x##_dequant_block(block, out + i);                                    \
    }
#include "quant/formats.inc"
#undef QR_FORMAT_ROW

static const qr_format_traits traits[QR_FORMAT_COUNT] = {
#define QR_FORMAT_ROW(x) [QR_FORMAT_##x] = {QR_TRAITS_##x, dequant_row_##x},
#include "quant/formats.inc"
#undef QR_FORMAT_ROW
};

const qr_format_traits *qr_format_get(qr_format format)
{
    QR_ASSERT(format >= 0 && format < QR_FORMAT_COUNT);
    return &traits[format];
}

qr_format qr_format_by_hf_dtype(const char *dtype, size_t len)
{
    for (int i = 0; i < QR_FORMAT_COUNT; i++) {
        const char *name = traits[i].hf_dtype;
        if (len > 0 && strlen(name) == len && memcmp(name, dtype, len) == 0)
            return (qr_format)i;
    }
    return QR_FORMAT_NONE;
}

qr_format qr_format_by_ggml_type(uint32_t type)
{
    for (int i = 0; i < QR_FORMAT_COUNT; i++)
        if (traits[i].ggml_type >= 0 && (uint32_t)traits[i].ggml_type == type)
            return (qr_format)i;
    return QR_FORMAT_NONE;
}

size_t qr_format_row_bytes(qr_format format, int64_t n)
{
    const qr_format_traits *t = qr_format_get(format);
    QR_ASSERT(n >= 0 && n % t->block == 0);
    return (size_t)(n / t->block) * (size_t)t->bytes;
}
