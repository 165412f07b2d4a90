/* Pre-tokenizers: each step cuts every piece into smaller ones; some rewrite the text, too.
 *
 * A step finds ranges of matches in a piece (encoder->ranges, matched and unmatched in turn, covering it) and
 * one function applies the delimiter behaviour, as the reference's NormalizedString::split.
 */
#include "text/tokenizer_impl.h"

typedef struct cutter {
    qr_encoder *encoder;
    const uint8_t *text; /* of the current buffer */
    qr_pieces *out;
    qr_piece source; /* the piece being cut */
} cutter;

static void push_range(cutter *cut, size_t begin, size_t end, bool matched)
{
    qr_range range = {begin, end, matched};
    QR_VEC_PUSH(&cut->encoder->ranges, range);
}

static void push_piece(cutter *cut, size_t begin, size_t end)
{
    if (begin >= end)
        return;
    bool first = begin == cut->source.begin;
    qr_piece piece = {begin, end, first && cut->source.at_start, first && cut->source.continues};
    QR_VEC_PUSH(cut->out, piece);
}

/* Joins ranges in place by behaviour; returns how many are left. */
static size_t join_ranges(qr_range *ranges, size_t count, qr_split_behavior behavior)
{
    size_t out = 0;
    bool previous = false;
    if (behavior == QR_SPLIT_MERGED_NEXT) { /* from the back */
        out = count;
        for (size_t i = count; i-- > 0;) {
            bool matched = ranges[i].matched;
            if (matched && !previous && out < count)
                ranges[out].begin = ranges[i].begin;
            else
                ranges[--out] = (qr_range){ranges[i].begin, ranges[i].end, false};
            previous = matched;
        }
        memmove(ranges, ranges + out, (count - out) * sizeof(*ranges));
        return count - out;
    }
    for (size_t i = 0; i < count; i++) {
        bool matched = ranges[i].matched;
        bool joins = behavior == QR_SPLIT_MERGED_PREVIOUS ? matched && !previous : matched == previous;
        if (behavior != QR_SPLIT_ISOLATED && joins && out > 0)
            ranges[out - 1].end = ranges[i].end;
        else
            ranges[out++] = (qr_range){ranges[i].begin, ranges[i].end, false};
        previous = matched;
    }
    return out;
}

static void apply_behavior(cutter *cut, qr_split_behavior behavior, bool invert)
{
    qr_range *ranges = cut->encoder->ranges.data;
    size_t count = cut->encoder->ranges.count;
    for (size_t i = 0; invert && i < count; i++)
        ranges[i].matched = !ranges[i].matched;
    if (behavior != QR_SPLIT_REMOVED)
        count = join_ranges(ranges, count, behavior);
    for (size_t i = 0; i < count; i++)
        if (behavior != QR_SPLIT_REMOVED || !ranges[i].matched)
            push_piece(cut, ranges[i].begin, ranges[i].end);
}

/* Ranges by a class of characters: each character of the class is a match by itself. */
static void find_flagged(cutter *cut, uint32_t flag)
{
    size_t begin = cut->source.begin;
    for (size_t at = begin; at < cut->source.end;) {
        uint32_t c;
        size_t len = qr_unicode_next(cut->text + at, &c);
        if (qr_unicode_is(c, flag)) {
            if (begin < at)
                push_range(cut, begin, at, false);
            push_range(cut, at, at + len, true);
            begin = at + len;
        }
        at += len;
    }
    if (begin < cut->source.end)
        push_range(cut, begin, cut->source.end, false);
}

static void find_string(cutter *cut, const char *needle, size_t needle_len)
{
    size_t begin = cut->source.begin;
    while (needle_len > 0 && begin < cut->source.end) {
        const uint8_t *found = memmem(cut->text + begin, cut->source.end - begin, needle, needle_len);
        if (found == NULL)
            break;
        size_t at = (size_t)(found - cut->text);
        if (begin < at)
            push_range(cut, begin, at, false);
        push_range(cut, at, at + needle_len, true);
        begin = at + needle_len;
    }
    if (begin < cut->source.end)
        push_range(cut, begin, cut->source.end, false);
}

static qr_status find_pattern(cutter *cut, const qr_pattern *pattern, qr_error *err)
{
    size_t base = cut->source.begin, len = cut->source.end - base, begin = 0, search = 0, from, to;
    qr_encoder *encoder = cut->encoder;
    int found;
    if (encoder->match == NULL)
        encoder->match = qr_match_data_new();
    qr_pattern_subject(pattern, encoder->match, qr_str_make((const char *)cut->text + base, len));
    while ((found = qr_pattern_find(pattern, encoder->match, search, &from, &to)) > 0) {
        if (begin < from)
            push_range(cut, base + begin, base + from, false);
        push_range(cut, base + from, base + to, true);
        begin = search = to;
        if (from == to) {
            if (to >= len)
                break;
            uint32_t c;
            search += qr_unicode_next(cut->text + base + to, &c);
        }
    }
    if (found < 0)
        return qr_fail(err, QR_LIMIT_EXCEEDED,
                       "pre-tokenizer: the expression needs too many steps on this text");
    if (begin < len)
        push_range(cut, base + begin, base + len, false);
    return QR_OK;
}

static void find_scanned(cutter *cut, qr_scanner_kind scanner)
{
    const uint8_t *text = cut->text + cut->source.begin;
    size_t len = cut->source.end - cut->source.begin;
    for (size_t at = 0; at < len;) {
        size_t next = qr_scanner_next(scanner, text, at, len);
        push_range(cut, cut->source.begin + at, cut->source.begin + next, true);
        at = next;
    }
}

/* \w+ and [^\w\s]+ of Rust's regex are pieces; white space is dropped. */
static void cut_whitespace(cutter *cut)
{
    size_t begin = cut->source.begin;
    int before = 0; /* 0: space, 1: word, 2: other */
    for (size_t at = begin; at < cut->source.end;) {
        uint32_t c;
        size_t len = qr_unicode_next(cut->text + at, &c);
        uint32_t flags = qr_unicode_of(c)->flags;
        int kind = flags & QR_UC_RUST_WORD ? 1 : flags & QR_UC_WHITESPACE ? 0 : 2;
        if (kind != before) {
            if (before != 0)
                push_piece(cut, begin, at);
            begin = at;
        }
        before = kind;
        at += len;
    }
    if (before != 0)
        push_piece(cut, begin, cut->source.end);
}

/* White space is dropped, each punctuation character a piece of its own. */
static void cut_bert(cutter *cut)
{
    size_t begin = cut->source.begin;
    for (size_t at = begin; at < cut->source.end;) {
        uint32_t c;
        size_t len = qr_unicode_next(cut->text + at, &c);
        uint32_t flags = qr_unicode_of(c)->flags;
        if (flags & (QR_UC_WHITESPACE | QR_UC_PUNCT)) {
            push_piece(cut, begin, at);
            if (!(flags & QR_UC_WHITESPACE))
                push_piece(cut, at, at + len);
            begin = at + len;
        }
        at += len;
    }
    push_piece(cut, begin, cut->source.end);
}

/* A character of no script goes with what is before it; at the beginning the reference drops it. */
static void cut_scripts(cutter *cut)
{
    size_t begin = cut->source.end;
    int before = 0;
    for (size_t at = cut->source.begin; at < cut->source.end;) {
        uint32_t c;
        size_t len = qr_unicode_next(cut->text + at, &c);
        int script = qr_unicode_of(c)->script;
        if (script != 0 && script != before) {
            push_piece(cut, begin, at);
            begin = at;
            before = script;
        }
        at += len;
    }
    push_piece(cut, begin, cut->source.end);
}

static void cut_fixed(cutter *cut, uint32_t length)
{
    size_t begin = cut->source.begin;
    uint32_t count = 0;
    for (size_t at = begin; at < cut->source.end;) {
        uint32_t c;
        at += qr_unicode_next(cut->text + at, &c);
        if (++count == length) {
            push_piece(cut, begin, at);
            begin = at;
            count = 0;
        }
    }
    push_piece(cut, begin, cut->source.end);
}

static qr_status cut_piece(cutter *cut, const qr_pretokenizer_step *step, qr_error *err)
{
    cut->encoder->ranges.count = 0;
    switch (step->kind) {
    case QR_PRE_SPLIT:
    case QR_PRE_BYTE_LEVEL:
        if (step->scanner != QR_SCAN_NONE) {
            find_scanned(cut, step->scanner);
        } else if (step->pattern != NULL) {
            qr_status status = find_pattern(cut, step->pattern, err);
            if (status != QR_OK)
                return status;
        } else if (step->kind == QR_PRE_BYTE_LEVEL) {
            push_range(cut, cut->source.begin, cut->source.end, false);
        } else {
            find_string(cut, step->text, step->text_len);
        }
        apply_behavior(cut, step->kind == QR_PRE_BYTE_LEVEL ? QR_SPLIT_ISOLATED : step->behavior,
                       step->invert);
        break;
    case QR_PRE_METASPACE:
        if (step->split) {
            find_string(cut, step->text, step->text_len);
            apply_behavior(cut, QR_SPLIT_MERGED_NEXT, false);
        } else {
            push_piece(cut, cut->source.begin, cut->source.end);
        }
        break;
    case QR_PRE_DIGITS:
        find_flagged(cut, QR_UC_NUMERIC);
        apply_behavior(cut, step->split ? QR_SPLIT_ISOLATED : QR_SPLIT_CONTIGUOUS, false);
        break;
    case QR_PRE_PUNCTUATION:
        find_flagged(cut, QR_UC_PUNCT);
        apply_behavior(cut, step->behavior, false);
        break;
    case QR_PRE_WHITESPACE_SPLIT:
        find_flagged(cut, QR_UC_WHITESPACE);
        apply_behavior(cut, QR_SPLIT_REMOVED, false);
        break;
    case QR_PRE_DELIMITER:
        find_string(cut, step->text, step->text_len);
        apply_behavior(cut, QR_SPLIT_REMOVED, false);
        break;
    case QR_PRE_BERT: cut_bert(cut); break;
    case QR_PRE_WHITESPACE: cut_whitespace(cut); break;
    case QR_PRE_SCRIPTS: cut_scripts(cut); break;
    case QR_PRE_FIXED_LENGTH: cut_fixed(cut, step->length); break;
    }
    return QR_OK;
}

/* ---- Steps that rewrite ---- */

/* The text of one piece as Metaspace leaves it. */
static void rewrite_metaspace(const qr_pretokenizer_step *step, const uint8_t *text, qr_piece piece,
                              qr_buf *out)
{
    bool marked = piece.end > piece.begin && text[piece.begin] == ' ';
    if (!marked)
        marked = piece.end - piece.begin >= step->text_len &&
                 memcmp(text + piece.begin, step->text, step->text_len) == 0;
    bool wanted = step->scheme == QR_PREPEND_ALWAYS || (step->scheme == QR_PREPEND_FIRST && piece.at_start);
    if (wanted && !marked && !piece.continues)
        qr_buf_append(out, step->text, step->text_len);
    for (size_t i = piece.begin; i < piece.end;) {
        const uint8_t *space = memchr(text + i, ' ', piece.end - i);
        size_t stop = space != NULL ? (size_t)(space - text) : piece.end;
        qr_buf_append(out, text + i, stop - i);
        if (space != NULL)
            qr_buf_append(out, step->text, step->text_len);
        i = stop + (space != NULL);
    }
}

static bool rewrites_before(const qr_pretokenizer_step *step)
{
    return step->kind == QR_PRE_METASPACE || (step->kind == QR_PRE_BYTE_LEVEL && step->add_prefix_space);
}

/* Writes all pieces anew into the other buffer with what the step puts in before it cuts. */
static void rewrite_before(qr_encoder *encoder, const qr_pretokenizer_step *step, qr_pieces *pieces,
                           int *buffer)
{
    const uint8_t *text = (const uint8_t *)encoder->text[*buffer].data;
    qr_buf *out = &encoder->text[3 - *buffer];
    qr_buf_clear(out);
    for (size_t i = 0; i < pieces->count; i++) {
        qr_piece *piece = &pieces->data[i];
        size_t begin = out->len;
        if (step->kind == QR_PRE_METASPACE) {
            rewrite_metaspace(step, text, *piece, out);
        } else {
            if (text[piece->begin] != ' ' && !piece->continues)
                qr_buf_append_char(out, ' ');
            qr_buf_append(out, text + piece->begin, piece->end - piece->begin);
        }
        piece->begin = begin;
        piece->end = out->len;
    }
    *buffer = 3 - *buffer;
}

/* Outside byte mode, ByteLevel ends by spelling its bytes in the alphabet. */
static void rewrite_alphabet(qr_encoder *encoder, qr_pieces *pieces, int *buffer)
{
    const uint8_t *text = (const uint8_t *)encoder->text[*buffer].data;
    qr_buf *out = &encoder->text[3 - *buffer];
    qr_buf_clear(out);
    for (size_t i = 0; i < pieces->count; i++) {
        qr_piece *piece = &pieces->data[i];
        size_t begin = out->len;
        qr_byte_alphabet_encode(text + piece->begin, piece->end - piece->begin, out);
        piece->begin = begin;
        piece->end = out->len;
    }
    *buffer = 3 - *buffer;
}

qr_status qr_pretokenize(qr_encoder *encoder, int *which, int *buffer, qr_error *err)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    for (size_t i = 0; i < tokenizer->pretokenizers.count; i++) {
        const qr_pretokenizer_step *step = &tokenizer->pretokenizers.data[i];
        if (rewrites_before(step))
            rewrite_before(encoder, step, &encoder->pieces[*which], buffer);
        const qr_pieces *in = &encoder->pieces[*which];
        cutter cut = {.encoder = encoder,
                      .text = (const uint8_t *)encoder->text[*buffer].data,
                      .out = &encoder->pieces[1 - *which]};
        cut.out->count = 0;
        for (size_t k = 0; k < in->count; k++) {
            cut.source = in->data[k];
            qr_status status = cut_piece(&cut, step, err);
            if (status != QR_OK)
                return status;
        }
        *which = 1 - *which;
        if (step->kind == QR_PRE_BYTE_LEVEL && !tokenizer->byte_mode)
            rewrite_alphabet(encoder, &encoder->pieces[*which], buffer);
    }
    return QR_OK;
}
