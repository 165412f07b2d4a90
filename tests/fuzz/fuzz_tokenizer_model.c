// links: qr_text
/* Any bytes as a tokenizer.model (SentencePiece or tiktoken ranks), after a line of text: refused with a message, or
 * the text encodes and its ids decode. */
#include "base/assert.h"
#include "base/mem.h"
#include "text/tokenizer_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *line = size > 0 ? memchr(data, '\n', size) : NULL;
    qr_tokenizer *tokenizer = NULL;
    qr_error err = {0};
    int32_t *ids = NULL;
    size_t count = 0, bytes;
    char *text = NULL;
    if (line == NULL || size > 1 << 20)
        return 0;
    size_t text_len = (size_t)(line - data);
    qr_str model = qr_str_make((const char *)line + 1, size - text_len - 1);
    if (qr_text_tokenizer_from_model(model, "fuzz", &tokenizer, &err) != QR_OK) {
        QR_ASSERT(err.message[0] != '\0');
        return 0;
    }
    if (qr_tokenizer_encode(tokenizer, (const char *)data, text_len, NULL, &ids, &count, NULL) == QR_OK)
        QR_ASSERT(qr_tokenizer_decode(tokenizer, ids, count, true, &text, &bytes, NULL) == QR_OK);
    qr_free(text);
    qr_ids_free(ids);
    qr_tokenizer_close(tokenizer);
    return 0;
}
