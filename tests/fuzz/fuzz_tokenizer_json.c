// links: qr_text
/* Any bytes as a tokenizer.json, after a line of text to encode with it: refused with a message, or the text
 * encodes, its ids decode, and the stream of them equals the decoding. */
#include "base/assert.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "text/tokenizer_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_stream(const qr_tokenizer *tokenizer, const int32_t *ids, size_t count, qr_str want)
{
    size_t room = qr_tokenizer_token_bytes_max(tokenizer) + 64;
    char *out = qr_alloc(room);
    qr_buf text = {0};
    qr_detokenizer stream;
    qr_detokenizer_init(&stream, tokenizer, true);
    for (size_t i = 0; i < count; i++) {
        size_t len = qr_detokenizer_push(&stream, ids[i], out, room);
        QR_ASSERT(len <= room);
        qr_buf_append(&text, out, len);
    }
    qr_buf_append(&text, out, qr_detokenizer_finish(&stream, out, room));
    if (tokenizer->stream != QR_STREAM_CHAIN)
        QR_ASSERT(qr_str_equal(qr_buf_str(&text), want));
    qr_buf_release(&text);
    qr_free(out);
}

static void use(const qr_tokenizer *tokenizer, qr_str text)
{
    int32_t *ids = NULL;
    size_t count = 0, bytes = 0;
    char *back = NULL;
    if (qr_tokenizer_encode(tokenizer, text.data, text.len, NULL, &ids, &count, NULL) != QR_OK)
        return;
    for (size_t i = 0; i < count; i++)
        QR_ASSERT(ids[i] >= 0 && ids[i] < QR_TOKEN_ID_MAX);
    bool inside = true; /* a template may name ids that the vocabulary lacks: decoding refuses them */
    for (size_t i = 0; i < count; i++)
        inside = inside && ids[i] < qr_tokenizer_vocab_size(tokenizer);
    qr_status status = qr_tokenizer_decode(tokenizer, ids, count, true, &back, &bytes, NULL);
    QR_ASSERT(inside || status == QR_INVALID_ARGUMENT);
    if (status == QR_OK)
        check_stream(tokenizer, ids, count, qr_str_make(back, bytes));
    qr_free(back);
    qr_ids_free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *line = size > 0 ? memchr(data, '\n', size) : NULL;
    qr_tokenizer *tokenizer = NULL;
    qr_error err = {0};
    if (line == NULL || size > 1 << 20)
        return 0;
    qr_str text = qr_str_make((const char *)data, (size_t)(line - data));
    qr_str json = qr_str_make((const char *)line + 1, size - text.len - 1);
    if (qr_text_tokenizer_from_json(json, qr_str_make(NULL, 0), "fuzz", &tokenizer, &err) != QR_OK) {
        QR_ASSERT(err.message[0] != '\0');
        return 0;
    }
    use(tokenizer, text);
    qr_tokenizer_close(tokenizer);
    return 0;
}
