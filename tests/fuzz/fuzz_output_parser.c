// links: qr_text qr_base
/* Byte 0 picks the style, byte 1 seeds the cuts; the rest is the model's text. Whatever the cuts, the same comes out,
 * and calls open and close in turn. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/assert.h"
#include "base/mem.h"
#include "base/str.h"
#include "quire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

typedef struct outcome {
    qr_buf text; /* kind and bytes of each run of one kind */
    int kind;
    bool open;
} outcome;

static void take(outcome *o, const qr_output_delta *deltas, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const qr_output_delta *d = &deltas[i];
        bool fresh =
            (int)d->kind != o->kind || d->kind == QR_OUTPUT_TOOL_BEGIN || d->kind == QR_OUTPUT_TOOL_END;
        QR_ASSERT(d->kind != QR_OUTPUT_TOOL_BEGIN || !o->open);
        QR_ASSERT((d->kind != QR_OUTPUT_TOOL_ARGUMENTS && d->kind != QR_OUTPUT_TOOL_END) || o->open);
        o->open = d->kind == QR_OUTPUT_TOOL_BEGIN || (o->open && d->kind != QR_OUTPUT_TOOL_END);
        if (fresh)
            qr_buf_printf(&o->text, "\n%d:", (int)d->kind);
        o->kind = (int)d->kind;
        qr_buf_append(&o->text, d->text, d->bytes);
    }
}

static bool parse(const qr_output_parser_options *options, const char *text, size_t bytes, bool whole,
                  uint32_t seed, outcome *o)
{
    qr_output_parser *parser = NULL;
    const qr_output_delta *deltas = NULL;
    size_t count = 0;
    qr_status status = qr_output_parser_new(options, &parser, NULL);
    QR_ASSERT(status == QR_OK);
    for (size_t at = 0; at < bytes && status == QR_OK;) {
        seed = seed * 1664525u + 1013904223u;
        size_t piece = whole ? bytes : QR_MIN((size_t)(seed >> 28) + 1, bytes - at);
        status = qr_output_parser_push(parser, text + at, piece, &deltas, &count, NULL);
        if (status == QR_OK)
            take(o, deltas, count);
        at += piece;
    }
    if (status == QR_OK) {
        status = qr_output_parser_finish(parser, &deltas, &count, NULL);
        take(o, deltas, count);
        QR_ASSERT(!o->open);
    }
    qr_output_parser_free(parser);
    return status == QR_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const char *const styles[] = {"none", "hermes", "llama3_json", "pythonic", "mistral", "harmony"};
    static const char *const choices[] = {"auto", "none", "required", "named"};
    static const char *const names[] = {"f", "get_weather"};
    static const char tools[] =
        "[{\"function\":{\"name\":\"f\",\"parameters\":{\"properties\":{\"n\":{\"type\":"
        "\"number\"},\"l\":{\"type\":\"array\"},\"b\":{\"type\":\"boolean\"}}}}}]";
    if (bytes < 2)
        return 0;
    qr_output_parser_options options;
    qr_output_parser_options_init(&options);
    options.tools = styles[data[0] % 6];
    options.reasoning = data[0] & 64 ? "think" : "none";
    options.reasoning_open = (data[0] & 128) != 0;
    options.tool_choice = choices[data[1] & 3];
    options.tool_name = "pick";
    options.constrained = (data[1] & 4) != 0;
    options.tool_names = names;
    options.tool_name_count = data[1] & 8 ? 2 : 0;
    options.memory_bytes_max = 300;
    if (data[1] & 16) {
        options.tools = "qwen3_coder";
        options.tools_json = tools;
        options.tools_json_bytes = sizeof(tools) - 1;
    }
    outcome whole = {.kind = -1}, cut = {.kind = -1};
    const char *text = (const char *)data + 2;
    bool ok = parse(&options, text, bytes - 2, true, 0, &whole);
    bool cut_ok = parse(&options, text, bytes - 2, false, data[1] * 7919u + 1u, &cut);
    QR_ASSERT(ok == cut_ok);
    QR_ASSERT(!ok || qr_str_equal(qr_buf_str(&whole.text), qr_buf_str(&cut.text)));
    qr_buf_release(&whole.text);
    qr_buf_release(&cut.text);
    return 0;
}
