/* Decoders over a list of tokens, as the reference's decode_chain: each step maps the list of strings to another;
 * the result is their concatenation. What can be streamed goes through detokenizer.c instead. */
#include "base/utf8.h"
#include "text/tokenizer_impl.h"

typedef struct pieces {
    qr_buf text;
    QR_VEC(size_t) ends;
} pieces;

static qr_str piece_at(const pieces *list, size_t i)
{
    size_t begin = i > 0 ? list->ends.data[i - 1] : 0;
    return qr_str_make(list->text.data + begin, list->ends.data[i] - begin);
}

static void end_piece(pieces *list) { QR_VEC_PUSH(&list->ends, list->text.len); }

static void clear_pieces(pieces *list)
{
    qr_buf_clear(&list->text);
    list->ends.count = 0;
}

static void release_pieces(pieces *list)
{
    qr_buf_release(&list->text);
    QR_VEC_RELEASE(&list->ends);
}

static void append_replaced(qr_str text, qr_str needle, qr_str with, qr_buf *out)
{
    size_t at = 0;
    while (needle.len > 0) {
        ptrdiff_t found = qr_str_find(text, needle, at);
        if (found < 0)
            break;
        qr_buf_append(out, text.data + at, (size_t)found - at);
        qr_buf_append_str(out, with);
        at = (size_t)found + needle.len;
    }
    qr_buf_append(out, text.data + at, text.len - at);
}

/* The reference's clean-up of English punctuation. */
void qr_decode_cleanup(qr_str text, qr_buf *out)
{
    static const struct {
        const char *from, *to;
    } rows[] = {{" .", "."},   {" ?", "?"},     {" !", "!"},    {" ,", ","},
                {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},  {" do not", " don't"},
                {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
    qr_buf a = {0}, b = {0};
    qr_buf_append_str(&a, text);
    for (size_t i = 0; i < QR_COUNT_OF(rows); i++) {
        qr_buf_clear(&b);
        append_replaced(qr_buf_str(&a), qr_str_of(rows[i].from), qr_str_of(rows[i].to), &b);
        qr_buf swap = a;
        a = b;
        b = swap;
    }
    qr_buf_append_str(out, qr_buf_str(&a));
    qr_buf_release(&a);
    qr_buf_release(&b);
}

/* String::from_utf8_lossy. */
void qr_decode_lossy(qr_str bytes, qr_buf *out)
{
    while (bytes.len > 0) {
        size_t valid = qr_utf8_validate(bytes.data, bytes.len);
        qr_buf_append(out, bytes.data, valid);
        bytes = qr_str_make(bytes.data + valid, bytes.len - valid);
        if (bytes.len == 0)
            break;
        size_t bad = qr_utf8_invalid_length(bytes.data, bytes.len);
        qr_buf_append(out, "\xEF\xBF\xBD", 3);
        bytes = qr_str_make(bytes.data + bad, bytes.len - bad);
    }
}

int qr_decode_byte_of(qr_str token)
{
    int value = 0;
    if (token.len != 6 || memcmp(token.data, "<0x", 3) != 0 || token.data[5] != '>')
        return -1;
    for (int i = 3; i < 5; i++) {
        char c = token.data[i];
        int digit = c >= '0' && c <= '9'                 ? c - '0'
                    : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                         : -1;
        if (digit < 0)
            return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* ---- Steps ---- */

static void step_byte_level(const pieces *in, pieces *out)
{
    qr_buf bytes = {0};
    for (size_t i = 0; i < in->ends.count; i++) {
        size_t before = bytes.len;
        if (!qr_byte_alphabet_decode(piece_at(in, i), &bytes)) {
            bytes.len = before;
            qr_buf_append_str(&bytes, piece_at(in, i));
        }
    }
    qr_decode_lossy(qr_buf_str(&bytes), &out->text);
    end_piece(out);
    qr_buf_release(&bytes);
}

/* A run of byte tokens becomes its text when the whole run is UTF-8, else one U+FFFD a byte. */
static void end_byte_run(qr_buf *run, pieces *out)
{
    if (run->len == 0)
        return;
    if (qr_utf8_validate(run->data, run->len) == run->len) {
        qr_buf_append_str(&out->text, qr_buf_str(run));
        end_piece(out);
    } else {
        for (size_t i = 0; i < run->len; i++) {
            qr_buf_append(&out->text, "\xEF\xBF\xBD", 3);
            end_piece(out);
        }
    }
    qr_buf_clear(run);
}

static void step_byte_fallback(const pieces *in, pieces *out)
{
    qr_buf run = {0};
    for (size_t i = 0; i < in->ends.count; i++) {
        int byte = qr_decode_byte_of(piece_at(in, i));
        if (byte >= 0) {
            qr_buf_append_char(&run, (char)byte);
            continue;
        }
        end_byte_run(&run, out);
        qr_buf_append_str(&out->text, piece_at(in, i));
        end_piece(out);
    }
    end_byte_run(&run, out);
    qr_buf_release(&run);
}

static qr_str strip_token(const qr_decoder_step *step, qr_str token)
{
    qr_str mark = qr_str_make(step->text, step->text_len);
    for (uint32_t i = 0; i < step->start && qr_str_starts(token, mark); i++)
        token = qr_str_make(token.data + mark.len, token.len - mark.len);
    for (uint32_t i = 0; i < step->stop && qr_str_ends(token, mark); i++)
        token.len -= mark.len;
    return token;
}

static qr_status replace_token(const qr_decoder_step *step, qr_match_data *match, qr_str token, qr_buf *out,
                               qr_error *err)
{
    size_t at = 0, search = 0, begin, end;
    int found;
    if (step->pattern == NULL) {
        append_replaced(token, qr_str_make(step->needle, step->needle_len),
                        qr_str_make(step->text, step->text_len), out);
        return QR_OK;
    }
    qr_pattern_subject(step->pattern, match, token);
    while ((found = qr_pattern_find(step->pattern, match, search, &begin, &end)) > 0) {
        qr_buf_append(out, token.data + at, begin - at);
        qr_buf_append(out, step->text, step->text_len);
        at = end;
        search = end > begin ? end : end + 1;
        while (search < token.len && ((uint8_t)token.data[search] & 0xC0) == 0x80)
            search++;
    }
    if (found < 0)
        return qr_fail(err, QR_LIMIT_EXCEEDED, "decoder: the expression needs too many steps on this text");
    qr_buf_append(out, token.data + at, token.len - at);
    return QR_OK;
}

/* One token of WordPiece; also what the detokenizer calls. */
void qr_decode_wordpiece(const qr_decoder_step *step, qr_str token, bool first, qr_buf *out)
{
    qr_buf text = {0};
    qr_str prefix = qr_str_make(step->text, step->text_len);
    if (!first && prefix.len > 0 && qr_str_starts(token, prefix))
        token = qr_str_make(token.data + prefix.len, token.len - prefix.len);
    else if (!first)
        qr_buf_append_char(&text, ' ');
    qr_buf_append_str(&text, token);
    if (step->cleanup)
        qr_decode_cleanup(qr_buf_str(&text), out);
    else
        qr_buf_append_str(out, qr_buf_str(&text));
    qr_buf_release(&text);
}

/* One token of Metaspace: the first loses its marks. */
void qr_decode_metaspace(const qr_decoder_step *step, qr_str token, bool first, qr_buf *out)
{
    append_replaced(token, qr_str_make(step->text, step->text_len),
                    first && step->prefix ? QR_STR("") : QR_STR(" "), out);
}

static void step_ctc(const qr_decoder_step *step, const pieces *in, pieces *out)
{
    qr_buf text = {0}, clean = {0};
    for (size_t i = 0; i < in->ends.count; i++) {
        if (i > 0 && qr_str_equal(piece_at(in, i), piece_at(in, i - 1)))
            continue;
        qr_buf_clear(&text);
        append_replaced(piece_at(in, i), qr_str_make(step->text, step->text_len), QR_STR(""), &text);
        if (step->cleanup) {
            qr_buf_clear(&clean);
            qr_decode_cleanup(qr_buf_str(&text), &clean);
            qr_buf_clear(&text);
            append_replaced(qr_buf_str(&clean), qr_str_make(step->needle, step->needle_len), QR_STR(" "),
                            &text);
        }
        if (text.len > 0) {
            qr_buf_append_str(&out->text, qr_buf_str(&text));
            end_piece(out);
        }
    }
    qr_buf_release(&text);
    qr_buf_release(&clean);
}

static qr_status each_token(const qr_decoder_step *step, const pieces *in, pieces *out, qr_error *err)
{
    qr_match_data *match = step->pattern != NULL ? qr_match_data_new() : NULL;
    qr_status status = QR_OK;
    for (size_t i = 0; i < in->ends.count && status == QR_OK; i++) {
        qr_str token = piece_at(in, i);
        if (out->text.len > QR_EXPANDED_BYTES_MAX)
            status = qr_fail(err, QR_LIMIT_EXCEEDED, "decoder: the text grows beyond %zu bytes",
                             QR_EXPANDED_BYTES_MAX);
        switch (step->kind) {
        case QR_DEC_STRIP: qr_buf_append_str(&out->text, strip_token(step, token)); break;
        case QR_DEC_REPLACE: status = replace_token(step, match, token, &out->text, err); break;
        case QR_DEC_METASPACE: qr_decode_metaspace(step, token, i == 0, &out->text); break;
        case QR_DEC_WORDPIECE: qr_decode_wordpiece(step, token, i == 0, &out->text); break;
        case QR_DEC_BPE:
            append_replaced(token, qr_str_make(step->text, step->text_len),
                            i + 1 == in->ends.count ? QR_STR("") : QR_STR(" "), &out->text);
            break;
        default: break;
        }
        end_piece(out);
    }
    qr_match_data_free(match);
    return status;
}

static qr_status run_step(const qr_decoder_step *step, const pieces *in, pieces *out, qr_error *err)
{
    clear_pieces(out);
    switch (step->kind) {
    case QR_DEC_BYTE_LEVEL: step_byte_level(in, out); return QR_OK;
    case QR_DEC_BYTE_FALLBACK: step_byte_fallback(in, out); return QR_OK;
    case QR_DEC_CTC: step_ctc(step, in, out); return QR_OK;
    case QR_DEC_FUSE:
        qr_buf_append_str(&out->text, qr_buf_str(&in->text));
        end_piece(out);
        return QR_OK;
    default: return each_token(step, in, out, err);
    }
}

qr_status qr_decode_chain(const qr_tokenizer *tokenizer, const int32_t *ids, size_t count, bool skip_special,
                          qr_buf *out, qr_error *err)
{
    pieces lists[2] = {0};
    int which = 0;
    qr_status status = QR_OK;
    for (size_t i = 0; i < count; i++) {
        uint8_t flags = tokenizer->flags.data[ids[i]];
        if (!(flags & QR_TOKEN_PRESENT) || (skip_special && (flags & QR_TOKEN_SPECIAL)))
            continue;
        qr_buf_append_str(&lists[0].text, qr_token_table_text(&tokenizer->spelled, ids[i]));
        end_piece(&lists[0]);
    }
    for (size_t i = 0; i < tokenizer->decoders.count && status == QR_OK; i++) {
        status = run_step(&tokenizer->decoders.data[i], &lists[which], &lists[1 - which], err);
        which = 1 - which;
    }
    for (size_t i = 0; i < lists[which].ends.count && status == QR_OK; i++) {
        if (i > 0 && tokenizer->decoders.count == 0)
            qr_buf_append_char(out, ' ');
        qr_buf_append_str(out, piece_at(&lists[which], i));
    }
    release_pieces(&lists[0]);
    release_pieces(&lists[1]);
    return status;
}
