// links: qr_loader
/* Any bytes as a GGUF file: refused with a message, or all metadata and tensors can be read. */
#include "base/assert.h"
#include "loader/container.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_arrays(const qr_gguf *gguf, const char *key)
{
    int64_t count = qr_gguf_array_count(gguf, key);
    if (count < 0)
        return;
    qr_str *strings = qr_calloc((size_t)count + 1, sizeof(*strings));
    int32_t *ints = qr_calloc((size_t)count + 1, sizeof(*ints));
    float *floats = qr_calloc((size_t)count + 1, sizeof(*floats));
    qr_buf all = {0};
    if (qr_gguf_str_array(gguf, key, strings, count))
        for (int64_t i = 0; i < count; i++)
            qr_buf_append_str(&all, strings[i]);
    qr_gguf_i32_array(gguf, key, ints, count);
    qr_gguf_f32_array(gguf, key, floats, count);
    qr_buf_release(&all);
    qr_free(strings);
    qr_free(ints);
    qr_free(floats);
}

static void read_metadata(const qr_gguf *gguf)
{
    qr_buf text = {0};
    for (size_t i = 0; i < qr_gguf_count(gguf); i++) {
        qr_str raw = qr_gguf_key_at(gguf, i);
        char *key = qr_strndup(raw.data, raw.len);
        uint64_t u;
        int64_t s;
        double f;
        bool b;
        qr_str value;
        qr_gguf_print_value(gguf, i, &text);
        qr_gguf_u64(gguf, key, &u);
        qr_gguf_i64(gguf, key, &s);
        qr_gguf_f64(gguf, key, &f);
        qr_gguf_bool(gguf, key, &b);
        qr_gguf_str(gguf, key, &value);
        /* Counts are bounded by the file except for arrays whose elements take no bytes: there are none. */
        read_arrays(gguf, key);
        qr_free(key);
    }
    qr_buf_release(&text);
}

static void read_tensors(const qr_gguf *gguf)
{
    qr_error err = {0};
    qr_weights *weights = qr_weights_new("fuzz", QR_CONTAINER_GGUF);
    if (qr_gguf_add_tensors(weights, gguf, "fuzz", &err) == QR_OK) {
        for (size_t i = 0; i < qr_weights_count(weights); i++) {
            const qr_weights_entry *entry = qr_weights_at(weights, i);
            if (entry->format == QR_FORMAT_NONE)
                continue;
            const qr_format_traits *traits = qr_format_get(entry->format);
            float out[256];
            for (size_t at = 0; at < entry->bytes; at += (size_t)traits->bytes)
                traits->dequant_row(entry->data + at, out, traits->block);
        }
    } else {
        QR_ASSERT(err.message[0] != 0);
    }
    qr_weights_close(weights);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qr_error err = {0};
    qr_gguf *gguf;
    if (qr_gguf_parse("fuzz", data, size, &gguf, &err) != QR_OK) {
        QR_ASSERT(err.message[0] != 0);
        return 0;
    }
    read_metadata(gguf);
    read_tensors(gguf);
    qr_gguf_close(gguf);
    return 0;
}
