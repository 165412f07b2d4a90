// links: qr_text
/* A line of text, a line that is the pre-tokenizer's expression (empty: by the number of ranks), then any bytes as
 * tiktoken ranks: refused with a message, or the text encodes and its ids decode. */
#include "base/assert.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "text/tokenizer_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static qr_str take_line(qr_str *rest)
{
    const char *end = rest->len > 0 ? memchr(rest->data, '\n', rest->len) : NULL;
    size_t len = end != NULL ? (size_t)(end - rest->data) : rest->len;
    size_t skip = end != NULL ? len + 1 : len;
    qr_str line = qr_str_make(rest->data, len);
    *rest = qr_str_make(rest->data + skip, rest->len - skip);
    return line;
}

static void use(const qr_tokenizer *tokenizer, qr_str text)
{
    int32_t *ids = NULL;
    size_t count = 0, bytes = 0;
    char *back = NULL;
    if (qr_tokenizer_encode(tokenizer, text.data, text.len, NULL, &ids, &count, NULL) == QR_OK)
        QR_ASSERT(qr_tokenizer_decode(tokenizer, ids, count, false, &back, &bytes, NULL) == QR_OK);
    qr_free(back);
    qr_ids_free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qr_str ranks = qr_str_make((const char *)data, size);
    qr_str text = take_line(&ranks), expression = take_line(&ranks);
    qr_tokenizer *tokenizer = qr_tokenizer_make("fuzz");
    qr_error err = {0};
    qr_status status = qr_tokenizer_load_tiktoken(tokenizer, ranks, expression, &err);
    if (status == QR_OK)
        status = qr_tokenizer_finish(tokenizer, &err);
    if (status != QR_OK) {
        QR_ASSERT(err.message[0] != '\0');
        qr_tokenizer_destroy(tokenizer);
        return 0;
    }
    use(tokenizer, text);
    qr_tokenizer_close(tokenizer);
    return 0;
}
