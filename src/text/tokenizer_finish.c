/* The last step of loading: everything that follows from several parts together. */
#include "text/tokenizer_impl.h"

enum { QR_DECODED_BYTES_MAX = 1 << 20 }; /* of one token */

static const char mark_text[] = "\xE2\x96\x81";

static bool is_deepseek3(const qr_pretokenizer_step *steps, size_t count)
{
    if (count != QR_DEEPSEEK3_STEPS + 1 || steps[count - 1].scanner != QR_SCAN_NONE ||
        steps[count - 1].add_prefix_space)
        return false;
    for (size_t i = 0; i < QR_DEEPSEEK3_STEPS; i++)
        if (steps[i].kind != QR_PRE_SPLIT || steps[i].pattern == NULL || steps[i].invert ||
            steps[i].behavior != QR_SPLIT_ISOLATED ||
            strcmp(qr_pattern_expression(steps[i].pattern), qr_deepseek3_expressions[i]) != 0)
            return false;
    return true;
}

/* Which scanner is the whole pre-tokenizer of a byte-mode BPE, if any. */
static void find_fast_scanner(qr_tokenizer *tokenizer)
{
    size_t count = tokenizer->pretokenizers.count;
    const qr_pretokenizer_step *steps = tokenizer->pretokenizers.data;
    tokenizer->fast_scanner = QR_SCAN_NONE;
    if (!tokenizer->byte_mode || count == 0)
        return;
    const qr_pretokenizer_step *last = &steps[count - 1];
    tokenizer->fast_prefix_space = last->add_prefix_space;
    if (count == 1) {
        tokenizer->fast_scanner = last->scanner;
    } else if (count == 2 && steps[0].kind == QR_PRE_SPLIT && last->scanner == QR_SCAN_NONE &&
               !last->add_prefix_space) {
        bool whole = (steps[0].behavior == QR_SPLIT_ISOLATED) ||
                     (steps[0].behavior == QR_SPLIT_REMOVED && steps[0].invert);
        tokenizer->fast_scanner = whole ? steps[0].scanner : QR_SCAN_NONE;
    } else if (count == 2 && steps[0].kind == QR_PRE_DIGITS && steps[0].split &&
               last->scanner == QR_SCAN_GPT2 && !last->add_prefix_space) {
        tokenizer->fast_scanner = QR_SCAN_SMOLLM;
    } else if (is_deepseek3(steps, count)) {
        tokenizer->fast_scanner = QR_SCAN_DEEPSEEK3;
    }
}

/* Does no token hold U+2581 after another character? Then a text may be cut before every such mark. */
static bool can_cut_at_mark(const qr_tokenizer *tokenizer)
{
    bool marked = false;
    if (tokenizer->byte_mode || tokenizer->bpe.prefix != NULL || tokenizer->bpe.suffix != NULL)
        return false;
    for (size_t id = 0; id < tokenizer->flags.count; id++) {
        if (!(tokenizer->flags.data[id] & QR_TOKEN_MODEL))
            continue;
        qr_str text = qr_token_table_text(&tokenizer->spelled, (int32_t)id);
        size_t at = 0;
        while (qr_str_starts(qr_str_make(text.data + at, text.len - at), qr_str_of(mark_text)))
            at += 3;
        marked = marked || (at == 3 && text.len == 3);
        if (qr_str_find(text, qr_str_of(mark_text), at) >= 0)
            return false;
    }
    return marked; /* known by itself, so that no unknown run reaches over it */
}

/* ---- Streams ---- */

/* Replace* ByteFallback? Fuse? Strip(at the start)?, all by strings. */
static bool is_piece_chain(qr_tokenizer *tokenizer)
{
    const qr_decoder_step *steps = tokenizer->decoders.data;
    size_t count = tokenizer->decoders.count, i = 0;
    while (i < count && steps[i].kind == QR_DEC_REPLACE && steps[i].pattern == NULL)
        i++;
    if (i < count && steps[i].kind == QR_DEC_BYTE_FALLBACK) {
        tokenizer->stream_byte_fallback = true;
        i++;
    }
    bool fused = i < count && steps[i].kind == QR_DEC_FUSE;
    i += fused;
    if (fused && i < count && steps[i].kind == QR_DEC_STRIP && steps[i].stop == 0 && steps[i].text_len == 1 &&
        steps[i].text[0] == ' ') {
        tokenizer->stream_strip_count = steps[i].start;
        i++;
    }
    return i == count;
}

static qr_stream_kind stream_of(qr_tokenizer *tokenizer)
{
    const qr_decoder_step *steps = tokenizer->decoders.data;
    size_t count = tokenizer->decoders.count;
    if (count == 0 || (count == 1 && steps[0].kind == QR_DEC_WORDPIECE))
        return QR_STREAM_WORDS;
    if (count == 1 && steps[0].kind == QR_DEC_BYTE_LEVEL)
        return QR_STREAM_BYTES;
    if (count == 1 && steps[0].kind == QR_DEC_METASPACE) {
        tokenizer->stream_first_marks = steps[0].prefix;
        return QR_STREAM_PIECES;
    }
    if (is_piece_chain(tokenizer))
        return QR_STREAM_PIECES;
    tokenizer->stream_byte_fallback = false;
    tokenizer->stream_strip_count = 0;
    return QR_STREAM_CHAIN;
}

static void replace_all(qr_str text, const qr_decoder_step *step, qr_buf *out)
{
    qr_buf_clear(out);
    size_t at = 0;
    qr_str needle = step->kind == QR_DEC_METASPACE ? qr_str_make(step->text, step->text_len)
                                                   : qr_str_make(step->needle, step->needle_len);
    qr_str with = step->kind == QR_DEC_METASPACE ? QR_STR(" ") : qr_str_make(step->text, step->text_len);
    while (needle.len > 0 && out->len <= QR_DECODED_BYTES_MAX) {
        ptrdiff_t found = qr_str_find(text, needle, at);
        if (found < 0)
            break;
        qr_buf_append(out, text.data + at, (size_t)found - at);
        qr_buf_append_str(out, with);
        at = (size_t)found + needle.len;
    }
    qr_buf_append(out, text.data + at, text.len - at);
}

/* The text of every token after the steps that look at one token only. */
static qr_status build_decoded(qr_tokenizer *tokenizer, qr_error *err)
{
    qr_buf a = {0}, b = {0};
    qr_status status = QR_OK;
    for (size_t id = 0; id < tokenizer->flags.count; id++) {
        if (!(tokenizer->flags.data[id] & QR_TOKEN_PRESENT))
            continue;
        qr_str text = qr_token_table_text(&tokenizer->spelled, (int32_t)id);
        for (size_t i = 0; i < tokenizer->decoders.count && tokenizer->stream == QR_STREAM_PIECES; i++) {
            const qr_decoder_step *step = &tokenizer->decoders.data[i];
            if (step->kind != QR_DEC_REPLACE && step->kind != QR_DEC_METASPACE)
                break;
            qr_buf *target = i % 2 ? &b : &a;
            replace_all(text, step, target);
            text = qr_buf_str(target);
        }
        if (tokenizer->stream == QR_STREAM_BYTES) {
            qr_buf_clear(&a);
            if (qr_byte_alphabet_decode(text, &a))
                text = qr_buf_str(&a);
        }
        if (text.len > QR_DECODED_BYTES_MAX || tokenizer->decoded.text.len > QR_EXPANDED_BYTES_MAX) {
            status =
                qr_fail(err, QR_LIMIT_EXCEEDED, "%s: decoder: token %zu becomes %zu bytes, all before it %zu",
                        tokenizer->name, id, text.len, tokenizer->decoded.text.len);
            break;
        }
        qr_token_table_store(&tokenizer->decoded, (int32_t)id, text);
    }
    qr_buf_release(&a);
    qr_buf_release(&b);
    return status;
}

static void find_limits(qr_tokenizer *tokenizer)
{
    size_t most = 0;
    for (size_t id = 0; id < tokenizer->flags.count; id++) {
        if (!(tokenizer->flags.data[id] & QR_TOKEN_PRESENT))
            continue;
        most = QR_MAX(most, qr_token_table_text(&tokenizer->spelled, (int32_t)id).len);
        if (tokenizer->stream == QR_STREAM_PIECES)
            most = QR_MAX(most, qr_token_table_text(&tokenizer->decoded, (int32_t)id).len);
    }
    tokenizer->wordpiece.piece_bytes_max = most;
    tokenizer->token_bytes_max = most * 3 + 16; /* each byte may become U+FFFD */
}

qr_status qr_tokenizer_finish(qr_tokenizer *tokenizer, qr_error *err)
{
    qr_status status = QR_OK;
    if (tokenizer->spelled.slots == NULL)
        qr_token_table_init(&tokenizer->spelled, 64);
    if (tokenizer->byte_mode && tokenizer->raw.items.count < tokenizer->flags.count &&
        tokenizer->flags.count > 0)
        qr_token_table_store(&tokenizer->raw, (int32_t)tokenizer->flags.count - 1,
                             qr_token_table_text(&tokenizer->spelled, (int32_t)tokenizer->flags.count - 1));
    if (tokenizer->model == QR_MODEL_BPE) {
        status = qr_bpe_finish(tokenizer, err);
        tokenizer->bpe.cut_at_mark = can_cut_at_mark(tokenizer);
    } else if (tokenizer->model == QR_MODEL_UNIGRAM) {
        status = qr_unigram_finish(tokenizer, err);
    }
    if (status != QR_OK)
        return status;
    find_fast_scanner(tokenizer);
    tokenizer->stream = stream_of(tokenizer);
    if (tokenizer->stream == QR_STREAM_PIECES ||
        (tokenizer->stream == QR_STREAM_BYTES && !tokenizer->byte_mode))
        status = build_decoded(tokenizer, err);
    if (status != QR_OK)
        return status;
    find_limits(tokenizer);
    qr_added_build(tokenizer);
    return QR_OK;
}
