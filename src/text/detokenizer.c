/* Streaming detokenizer: the text of each token as it comes, whole characters only.
 *
 * What cannot be known yet is held back: the bytes of a character that is not complete. Where byte tokens do not
 * spell UTF-8, each of those bytes becomes one U+FFFD, as in the reference; the reference also gives up the whole
 * characters of the same run, which a stream cannot take back, so those stay.
 */
#include "base/utf8.h"
#include "text/tokenizer_impl.h"

typedef struct sink {
    char *out; /* NULL: thrown away */
    size_t len, max;
} sink;

static void put(sink *to, const void *bytes, size_t len)
{
    if (to->out == NULL || len == 0)
        return;
    len = QR_MIN(len, to->max - to->len);
    memcpy(to->out + to->len, bytes, len);
    to->len += len;
}

static void put_replacement(sink *to) { put(to, "\xEF\xBF\xBD", 3); }

void qr_detokenizer_init(qr_detokenizer *detokenizer, const qr_tokenizer *tokenizer, bool skip_special)
{
    *detokenizer = (qr_detokenizer){
        .tokenizer = tokenizer, .skip_special = skip_special, .strip_left = tokenizer->stream_strip_count};
}

/* Text at the beginning loses up to strip_left marks (a space). */
static void put_stripped(qr_detokenizer *d, sink *to, const char *text, size_t len)
{
    while (d->strip_left > 0 && len > 0) {
        if (*text != ' ') {
            d->strip_left = 0;
            break;
        }
        d->strip_left--;
        text++;
        len--;
    }
    put(to, text, len);
}

/* Appends bytes to what is pending and puts out all that is decided. Of bytes that are no UTF-8, a maximal subpart
 * (each_byte: every byte) becomes one U+FFFD. */
static void push_bytes(qr_detokenizer *d, sink *to, const uint8_t *bytes, size_t len, bool each_byte)
{
    char joined[sizeof(d->pending)];
    while (len > 0 || d->pending_bytes > 0) {
        size_t held = d->pending_bytes, taken = QR_MIN(len, sizeof(joined) - held);
        memcpy(joined, d->pending, held);
        memcpy(joined + held, bytes, taken);
        size_t total = held + taken, whole = qr_utf8_complete_prefix(joined, total), at = 0;
        while (at < whole) {
            size_t valid = qr_utf8_validate(joined + at, whole - at);
            put_stripped(d, to, joined + at, valid);
            at += valid;
            if (at == whole)
                break;
            size_t bad = qr_utf8_invalid_length(joined + at, whole - at);
            for (size_t i = 0; i < (each_byte ? bad : 1); i++)
                put_replacement(to);
            d->strip_left = 0;
            at += bad;
        }
        d->pending_bytes = (uint32_t)(total - whole);
        memmove(d->pending, joined + whole, d->pending_bytes);
        bytes += taken;
        len -= taken;
        if (len == 0)
            break;
    }
}

/* What is pending will not become a character any more. */
static void end_bytes(qr_detokenizer *d, sink *to, bool each_byte)
{
    if (d->pending_bytes == 0)
        return;
    for (size_t i = 0; i < (each_byte ? d->pending_bytes : 1); i++)
        put_replacement(to);
    d->pending_bytes = 0;
    d->strip_left = 0;
}

/* Metaspace: all marks of the first token go. */
static void put_unmarked(const qr_decoder_step *step, qr_str token, sink *to)
{
    qr_str mark = qr_str_make(step->text, step->text_len);
    for (size_t at = 0; at < token.len;) {
        ptrdiff_t found = qr_str_find(token, mark, at);
        size_t end = found >= 0 ? (size_t)found : token.len;
        put(to, token.data + at, end - at);
        at = found >= 0 ? end + mark.len : end;
    }
}

static void push_piece(qr_detokenizer *d, sink *to, int32_t id)
{
    const qr_tokenizer *tokenizer = d->tokenizer;
    int byte = tokenizer->stream_byte_fallback
                   ? qr_decode_byte_of(qr_token_table_text(&tokenizer->spelled, id))
                   : -1;
    if (byte >= 0) {
        uint8_t one = (uint8_t)byte;
        push_bytes(d, to, &one, 1, true);
        return;
    }
    end_bytes(d, to, true);
    qr_str text = qr_token_table_text(&tokenizer->decoded, id);
    if (!d->started && tokenizer->stream_first_marks) {
        put_unmarked(&tokenizer->decoders.data[0], qr_token_table_text(&tokenizer->spelled, id), to);
        return;
    }
    put_stripped(d, to, text.data, text.len);
}

static void push_word(qr_detokenizer *d, sink *to, int32_t id)
{
    const qr_tokenizer *tokenizer = d->tokenizer;
    qr_str token = qr_token_table_text(&tokenizer->spelled, id);
    if (tokenizer->decoders.count == 0) {
        put(to, " ", d->started ? 1 : 0);
        put(to, token.data, token.len);
        return;
    }
    qr_buf text = {0};
    qr_decode_wordpiece(&tokenizer->decoders.data[0], token, !d->started, &text);
    put(to, text.data, text.len);
    qr_buf_release(&text);
}

static void push_chain(qr_detokenizer *d, sink *to, int32_t id)
{
    qr_buf text = {0};
    if (qr_decode_chain(d->tokenizer, &id, 1, false, &text, NULL) == QR_OK)
        put(to, text.data, text.len);
    qr_buf_release(&text);
}

static bool skipped(const qr_detokenizer *d, int32_t id)
{
    if (!d->skip_special || !(d->tokenizer->flags.data[id] & QR_TOKEN_SPECIAL))
        return false;
    for (size_t i = 0; i < d->kept_count; i++)
        if (d->kept[i] == id)
            return false;
    return true;
}

static void push_id(qr_detokenizer *d, int32_t id, sink *to)
{
    const qr_tokenizer *tokenizer = d->tokenizer;
    if (id < 0 || (size_t)id >= tokenizer->flags.count || !(tokenizer->flags.data[id] & QR_TOKEN_PRESENT))
        return;
    if (skipped(d, id))
        return;
    switch (tokenizer->stream) {
    case QR_STREAM_BYTES: {
        qr_str bytes = qr_token_table_text(tokenizer->byte_mode ? &tokenizer->raw : &tokenizer->decoded, id);
        push_bytes(d, to, (const uint8_t *)bytes.data, bytes.len, false);
        break;
    }
    case QR_STREAM_PIECES: push_piece(d, to, id); break;
    case QR_STREAM_WORDS: push_word(d, to, id); break;
    case QR_STREAM_CHAIN: push_chain(d, to, id); break;
    }
    d->started = true;
}

void qr_detokenizer_prime(qr_detokenizer *detokenizer, const int32_t *ids, size_t count)
{
    sink nowhere = {0};
    for (size_t i = 0; i < count; i++)
        push_id(detokenizer, ids[i], &nowhere);
}

size_t qr_detokenizer_push(qr_detokenizer *detokenizer, int32_t id, char *out, size_t out_max)
{
    sink to = {out, 0, out_max};
    push_id(detokenizer, id, &to);
    return to.len;
}

size_t qr_detokenizer_finish(qr_detokenizer *detokenizer, char *out, size_t out_max)
{
    sink to = {out, 0, out_max};
    end_bytes(detokenizer, &to, detokenizer->tokenizer->stream != QR_STREAM_BYTES);
    return to.len;
}
