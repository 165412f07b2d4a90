/* Normalizers: each step rewrites the text; steps run in order over two buffers in turn. */
#include "text/tokenizer_impl.h"

enum { CHARSMAP_TEXT_MAX = 256 }; /* bytes that one character becomes; the real ones have at most 33 */

static bool is_chinese(uint32_t c)
{
    return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) ||
           (c >= 0x2A700 && c <= 0x2B73F) || (c >= 0x2B740 && c <= 0x2B81F) ||
           (c >= 0x2B920 && c <= 0x2CEAF) || (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

/* Appends text without the characters that have `flag`. */
static void drop_flagged(qr_str text, uint32_t flag, qr_buf *out)
{
    const uint8_t *bytes = (const uint8_t *)text.data;
    for (size_t i = 0; i < text.len;) {
        uint32_t c;
        size_t len = qr_unicode_next(bytes + i, &c);
        if (!qr_unicode_is(c, flag))
            qr_buf_append(out, bytes + i, len);
        i += len;
    }
}

/* clean_text and handle_chinese_chars in one pass. */
static void bert_clean(const qr_normalizer_step *step, qr_str text, qr_buf *out)
{
    const uint8_t *bytes = (const uint8_t *)text.data;
    for (size_t i = 0; i < text.len;) {
        uint32_t c;
        size_t len = qr_unicode_next(bytes + i, &c);
        uint32_t flags = qr_unicode_of(c)->flags;
        bool chinese = step->chinese && is_chinese(c);
        if (step->clean_text && (flags & QR_UC_BERT_CLEAN)) {
            i += len;
            continue;
        }
        if (chinese)
            qr_buf_append_char(out, ' ');
        if (step->clean_text && (flags & QR_UC_WHITESPACE))
            qr_buf_append_char(out, ' ');
        else
            qr_buf_append(out, bytes + i, len);
        if (chinese)
            qr_buf_append_char(out, ' ');
        i += len;
    }
}

static void normalize_bert(const qr_normalizer_step *step, qr_encoder *encoder, qr_str text, qr_buf *out)
{
    qr_buf *a = &encoder->bert[0], *b = &encoder->bert[1];
    qr_buf_clear(a);
    bert_clean(step, text, a);
    if (step->strip_accents) {
        qr_buf_clear(b);
        qr_unicode_normalize(qr_buf_str(a), QR_FORM_NFD, b);
        qr_buf_clear(a);
        drop_flagged(qr_buf_str(b), QR_UC_BERT_MARK, a);
    }
    if (step->lowercase)
        qr_unicode_lowercase(qr_buf_str(a), out);
    else
        qr_buf_append_str(out, qr_buf_str(a));
}

static void normalize_strip(const qr_normalizer_step *step, qr_str text, qr_buf *out)
{
    const uint8_t *bytes = (const uint8_t *)text.data;
    size_t begin = 0, end = text.len;
    uint32_t c;
    while (step->left && begin < end) {
        size_t len = qr_unicode_next(bytes + begin, &c);
        if (!qr_unicode_is(c, QR_UC_WHITESPACE))
            break;
        begin += len;
    }
    while (step->right && end > begin) {
        size_t at = qr_unicode_before(bytes, end);
        qr_unicode_next(bytes + at, &c);
        if (!qr_unicode_is(c, QR_UC_WHITESPACE))
            break;
        end = at;
    }
    qr_buf_append(out, text.data + begin, end - begin);
}

static qr_status too_long(qr_error *err)
{
    return qr_fail(err, QR_LIMIT_EXCEEDED, "normalizer: the text grows beyond %zu bytes",
                   QR_EXPANDED_BYTES_MAX);
}

/* Not memmem: the address sanitizer's looks at all of the text for each find, which is quadratic. */
static const char *find_needle(const qr_normalizer_step *step, const char *at, const char *end)
{
    while (at < end && (at = memchr(at, step->needle[0], (size_t)(end - at))) != NULL) {
        if ((size_t)(end - at) >= step->needle_len && memcmp(at, step->needle, step->needle_len) == 0)
            return at;
        at++;
    }
    return NULL;
}

static qr_status replace_string(const qr_normalizer_step *step, qr_str text, qr_buf *out, qr_error *err)
{
    size_t at = 0;
    while (at < text.len && step->needle_len > 0) {
        const char *found = find_needle(step, text.data + at, text.data + text.len);
        if (found == NULL)
            break;
        qr_buf_append(out, text.data + at, (size_t)(found - text.data) - at);
        qr_buf_append(out, step->text, step->text_len);
        at = (size_t)(found - text.data) + step->needle_len;
        if (out->len > QR_EXPANDED_BYTES_MAX)
            return too_long(err);
    }
    qr_buf_append(out, text.data + at, text.len - at);
    return QR_OK;
}

static qr_status replace_pattern(const qr_normalizer_step *step, qr_encoder *encoder, qr_str text,
                                 qr_buf *out, qr_error *err)
{
    size_t at = 0, begin, end;
    int found;
    if (encoder->match == NULL)
        encoder->match = qr_match_data_new();
    qr_pattern_subject(step->pattern, encoder->match, text);
    size_t search = 0;
    while ((found = qr_pattern_find(step->pattern, encoder->match, search, &begin, &end)) > 0) {
        qr_buf_append(out, text.data + at, begin - at);
        qr_buf_append(out, step->text, step->text_len);
        if (out->len > QR_EXPANDED_BYTES_MAX)
            return too_long(err);
        at = search = end;
        if (begin == end) { /* an empty match: step over a character */
            if (end >= text.len)
                break;
            uint32_t c;
            search += qr_unicode_next((const uint8_t *)text.data + end, &c);
        }
    }
    if (found < 0)
        return qr_fail(err, QR_LIMIT_EXCEEDED,
                       "normalizer: the expression needs too many steps on this text");
    qr_buf_append(out, text.data + at, text.len - at);
    return QR_OK;
}

static void normalize_nmt(qr_str text, qr_buf *out)
{
    const uint8_t *bytes = (const uint8_t *)text.data;
    for (size_t i = 0; i < text.len;) {
        uint32_t c;
        size_t len = qr_unicode_next(bytes + i, &c);
        bool gone = (c >= 1 && c <= 8) || c == 0x0B || (c >= 0x0E && c <= 0x1F) || c == 0x7F || c == 0x8F ||
                    c == 0x9F;
        bool space = c == 9 || c == 0x0A || c == 0x0C || c == 0x0D || c == 0x1680 ||
                     (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029 || c == 0x2581 ||
                     c == 0xFEFF || c == 0xFFFD;
        if (space)
            qr_buf_append_char(out, ' ');
        else if (!gone)
            qr_buf_append(out, bytes + i, len);
        i += len;
    }
}

/* SentencePiece's remove_extra_whitespaces: none at the ends, one in between. */
static void normalize_spaces(qr_str text, qr_buf *out)
{
    size_t start = out->len;
    bool wanted = false;
    for (size_t i = 0; i < text.len; i++) {
        if (text.data[i] == ' ') {
            wanted = out->len > start;
            continue;
        }
        if (wanted)
            qr_buf_append_char(out, ' ');
        wanted = false;
        qr_buf_append_char(out, text.data[i]);
    }
}

/* ---- Precompiled: SentencePiece's charsmap, a double-array trie (Darts) over UTF-8 ---- */

static uint32_t unit_at(const qr_normalizer_step *step, uint32_t index)
{
    const uint8_t *p = step->charsmap + (size_t)index * 4;
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Value of the shortest (first) or longest key that text begins with; -1: none. *used: the key's length. */
static int64_t charsmap_find(const qr_normalizer_step *step, const uint8_t *text, size_t len, bool longest,
                             size_t *used)
{
    int64_t found = -1;
    if (step->trie_units == 0)
        return -1;
    uint32_t unit = unit_at(step, 0), at = unit >> 10 << (unit >> 6 & 8);
    for (size_t i = 0; i < len && text[i] != 0; i++) {
        at ^= text[i];
        if (at >= step->trie_units)
            break;
        unit = unit_at(step, at);
        if ((unit & 0x800000FFu) != text[i])
            break;
        at ^= unit >> 10 << (unit >> 6 & 8);
        if (at >= step->trie_units)
            break;
        if (unit >> 8 & 1) {
            found = unit_at(step, at) & 0x7FFFFFFF;
            *used = i + 1;
            if (!longest)
                break;
        }
    }
    return found;
}

static void append_charsmap(const qr_normalizer_step *step, int64_t value, qr_buf *out)
{
    const char *strings = (const char *)step->charsmap + (size_t)step->trie_units * 4;
    if ((uint64_t)value < step->strings_len)
        qr_buf_append(out, strings + value,
                      strnlen(strings + value, QR_MIN(step->strings_len - (size_t)value, CHARSMAP_TEXT_MAX)));
}

/* As the reference does it: a grapheme of less than six bytes is replaced whole by the value of the first key
 * that is a prefix of it; else each of its characters by itself. */
static void normalize_precompiled(const qr_normalizer_step *step, qr_str text, qr_buf *out)
{
    const uint8_t *bytes = (const uint8_t *)text.data;
    size_t used;
    for (size_t i = 0; i < text.len;) {
        size_t whole = qr_unicode_grapheme(bytes + i, text.len - i);
        int64_t value = whole < 6 ? charsmap_find(step, bytes + i, whole, false, &used) : -1;
        if (value >= 0) {
            append_charsmap(step, value, out);
            i += whole;
            continue;
        }
        for (size_t end = i + whole; i < end;) {
            uint32_t c;
            size_t len = qr_unicode_next(bytes + i, &c);
            value = charsmap_find(step, bytes + i, len, false, &used);
            if (value >= 0)
                append_charsmap(step, value, out);
            else
                qr_buf_append(out, bytes + i, len);
            i += len;
        }
    }
}

/* As SentencePiece does it: the longest key that begins here, else the character. */
static void normalize_longest(const qr_normalizer_step *step, qr_str text, qr_buf *out)
{
    const uint8_t *bytes = (const uint8_t *)text.data;
    for (size_t i = 0; i < text.len;) {
        uint32_t c;
        size_t used = 0, len = qr_unicode_next(bytes + i, &c);
        int64_t value = charsmap_find(step, bytes + i, text.len - i, true, &used);
        if (value >= 0)
            append_charsmap(step, value, out);
        else
            qr_buf_append(out, bytes + i, len);
        i += value >= 0 ? used : len;
    }
}

/* ---- The list ---- */

static qr_status run_step(const qr_normalizer_step *step, qr_encoder *encoder, qr_str text, bool continues,
                          qr_buf *out, qr_error *err)
{
    switch (step->kind) {
    case QR_NORM_FORM: qr_unicode_normalize(text, step->form, out); break;
    case QR_NORM_LOWERCASE: qr_unicode_lowercase(text, out); break;
    case QR_NORM_STRIP: normalize_strip(step, text, out); break;
    case QR_NORM_STRIP_ACCENTS: drop_flagged(text, QR_UC_ACCENT, out); break;
    case QR_NORM_BERT: normalize_bert(step, encoder, text, out); break;
    case QR_NORM_PREPEND:
        if (text.len > 0 && !continues)
            qr_buf_append(out, step->text, step->text_len);
        qr_buf_append_str(out, text);
        break;
    case QR_NORM_REPLACE:
        if (step->pattern != NULL)
            return replace_pattern(step, encoder, text, out, err);
        return replace_string(step, text, out, err);
    case QR_NORM_PRECOMPILED:
        if (step->longest)
            normalize_longest(step, text, out);
        else
            normalize_precompiled(step, text, out);
        break;
    case QR_NORM_BYTE_LEVEL: qr_byte_alphabet_encode((const uint8_t *)text.data, text.len, out); break;
    case QR_NORM_NMT: normalize_nmt(text, out); break;
    case QR_NORM_SPACES: normalize_spaces(text, out); break;
    case QR_NORM_TRAILING:
        while (qr_str_ends(text, qr_str_make(step->text, step->text_len)))
            text.len -= step->text_len;
        qr_buf_append_str(out, text);
        break;
    }
    return QR_OK;
}

qr_status qr_normalize(const qr_tokenizer *tokenizer, qr_encoder *encoder, qr_str text, bool continues,
                       qr_buf *out, qr_error *err)
{
    for (size_t i = 0; i < tokenizer->normalizers.count; i++) {
        bool last = i + 1 == tokenizer->normalizers.count;
        qr_buf *target = last ? out : &encoder->norm[i % 2];
        if (!last)
            qr_buf_clear(target);
        qr_status status = run_step(&tokenizer->normalizers.data[i], encoder, text, continues, target, err);
        if (status == QR_OK && target->len > QR_EXPANDED_BYTES_MAX)
            status = too_long(err);
        if (status != QR_OK)
            return status;
        text = qr_buf_str(target);
    }
    if (tokenizer->normalizers.count == 0)
        qr_buf_append_str(out, text);
    return QR_OK;
}
