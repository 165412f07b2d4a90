/* WordPiece: the longest piece of the vocabulary that the rest of the word begins with, again and again; a word
 * that cannot be covered is one unknown token. WordLevel: the whole word or unknown. */
#include "text/tokenizer_impl.h"

static void push_unknown(const qr_tokenizer *tokenizer, qr_ids *ids)
{
    if (tokenizer->wordpiece.unk >= 0)
        QR_VEC_PUSH(ids, tokenizer->wordpiece.unk);
}

static int32_t find_model(const qr_tokenizer *tokenizer, qr_str text)
{
    int32_t id = qr_token_table_find(&tokenizer->spelled, text.data, text.len);
    return id >= 0 && (tokenizer->flags.data[id] & QR_TOKEN_MODEL) ? id : -1;
}

/* The longest piece at `at`; *end: where it ends. */
static int32_t longest_piece(qr_encoder *encoder, const uint8_t *word, size_t len, size_t at, size_t *end)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    qr_buf *text = &encoder->temporary;
    const char *prefix = at > 0 && tokenizer->wordpiece.prefix != NULL ? tokenizer->wordpiece.prefix : "";
    size_t prefix_len = strlen(prefix), stop = QR_MIN(len, at + tokenizer->wordpiece.piece_bytes_max);
    while (stop < len && stop > at && (word[stop] & 0xC0) == 0x80)
        stop--;
    qr_buf_clear(text);
    qr_buf_append(text, prefix, prefix_len);
    qr_buf_append(text, word + at, stop - at);
    while (stop > at) {
        int32_t id = find_model(tokenizer, qr_str_make(text->data, prefix_len + stop - at));
        if (id >= 0) {
            *end = stop;
            return id;
        }
        stop = qr_unicode_before(word, stop);
    }
    return -1;
}

void qr_wordpiece_word(qr_encoder *encoder, const uint8_t *word, size_t len, qr_ids *ids)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    size_t chars = 0, before = ids->count, end = 0;
    for (size_t i = 0; i < len; i++)
        chars += (word[i] & 0xC0) != 0x80;
    bool bad = chars > tokenizer->wordpiece.chars_max;
    for (size_t at = 0; at < len && !bad; at = end) {
        int32_t id = longest_piece(encoder, word, len, at, &end);
        bad = id < 0;
        if (!bad)
            QR_VEC_PUSH(ids, id);
    }
    if (bad) {
        ids->count = before;
        push_unknown(tokenizer, ids);
    }
}

void qr_wordlevel_word(qr_encoder *encoder, const uint8_t *word, size_t len, qr_ids *ids)
{
    int32_t id = find_model(encoder->tokenizer, qr_str_make((const char *)word, len));
    if (id >= 0)
        QR_VEC_PUSH(ids, id);
    else
        push_unknown(encoder->tokenizer, ids);
}
