/* The pre-tokenizer patterns of GPT-2, cl100k (Llama 3, Qwen), o200k and their relatives, by hand.
 *
 * Each function says what its expression says, alternative by alternative and in that order; the expressions
 * stand in qr_scanner_expression and tests compare the two over random text. Text is valid UTF-8.
 */
#include "text/scanner.h"

#include "text/unicode.h"

enum {
    K_L = 1,       /* \p{L} */
    K_N = 2,       /* \p{N} */
    K_S = 4,       /* \s */
    K_M = 8,       /* \p{M} */
    K_EOL = 16,    /* \r \n */
    K_UP = 32,     /* \p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M} */
    K_LOW = 64,    /* \p{Ll}\p{Lm}\p{Lo}\p{M} */
    K_DIGIT = 128, /* char::is_numeric */
    K_PS = 256,    /* \p{P}\p{S} */
    K_END = 512    /* not a character: where a piece ends */
};

static const uint16_t general_kind[QR_GC_COUNT] = {
    [QR_GC_LU] = K_L | K_UP,
    [QR_GC_LL] = K_L | K_LOW,
    [QR_GC_LT] = K_L | K_UP,
    [QR_GC_LM] = K_L | K_UP | K_LOW,
    [QR_GC_LO] = K_L | K_UP | K_LOW,
    [QR_GC_MN] = K_M | K_UP | K_LOW,
    [QR_GC_MC] = K_M | K_UP | K_LOW,
    [QR_GC_ME] = K_M | K_UP | K_LOW,
    [QR_GC_ND] = K_N,
    [QR_GC_NL] = K_N,
    [QR_GC_NO] = K_N,
    [QR_GC_PC] = K_PS,
    [QR_GC_PD] = K_PS,
    [QR_GC_PS] = K_PS,
    [QR_GC_PE] = K_PS,
    [QR_GC_PI] = K_PS,
    [QR_GC_PF] = K_PS,
    [QR_GC_PO] = K_PS,
    [QR_GC_SM] = K_PS,
    [QR_GC_SC] = K_PS,
    [QR_GC_SK] = K_PS,
    [QR_GC_SO] = K_PS,
};

#define UP4(x)  x, x, x, x
#define UP26(x) UP4(x), UP4(x), UP4(x), UP4(x), UP4(x), UP4(x), x, x
static const uint16_t ascii_kind[128] = {
    ['\t'] = K_S,
    ['\n'] = K_S | K_EOL,
    ['\v'] = K_S,
    ['\f'] = K_S,
    ['\r'] = K_S | K_EOL,
    [' '] = K_S,
    ['!'] = UP4(K_PS),
    UP4(K_PS),
    UP4(K_PS),
    K_PS,
    K_PS,
    K_PS,
    ['0'] = UP4(K_N | K_DIGIT),
    UP4(K_N | K_DIGIT),
    K_N | K_DIGIT,
    K_N | K_DIGIT,
    [':'] = UP4(K_PS),
    K_PS,
    K_PS,
    K_PS,
    ['A'] = UP26(K_L | K_UP),
    ['['] = UP4(K_PS),
    K_PS,
    K_PS,
    ['a'] = UP26(K_L | K_LOW),
    ['{'] = UP4(K_PS),
};

static unsigned wide_kind(const uint8_t *text, size_t *len)
{
    uint32_t c;
    *len = qr_unicode_next(text, &c);
    const qr_unicode_record *record = qr_unicode_of(c);
    return general_kind[record->general] | ((record->flags & QR_UC_SPACE) ? K_S : 0u) |
           ((record->flags & QR_UC_NUMERIC) ? K_DIGIT : 0u);
}

/* Kind of the character at text and its length. */
static inline unsigned kind_at(const uint8_t *text, size_t *len)
{
    if (text[0] < 0x80) {
        *len = 1;
        return ascii_kind[text[0]];
    }
    return wide_kind(text, len);
}

/* End of the run of characters whose kind has one of `any` and none of `none`. */
static inline size_t run_of(const uint8_t *text, size_t at, size_t end, unsigned any, unsigned none)
{
    while (at < end) {
        size_t len;
        unsigned kind = kind_at(text + at, &len);
        if ((kind & any) == 0 || (kind & none) != 0)
            break;
        at += len;
    }
    return at;
}

/* End of the run of [^\s\p{L}\p{N}]. */
static inline size_t run_of_other(const uint8_t *text, size_t at, size_t end)
{
    while (at < end) {
        size_t len;
        if (kind_at(text + at, &len) & (K_L | K_N | K_S))
            break;
        at += len;
    }
    return at;
}

/* \s+(?!\S)|\s+ where the run of white space is from..run: all of it at the end, else all but its last
 * character, if that leaves one. */
static inline size_t space_end(const uint8_t *text, size_t from, size_t run, size_t end)
{
    if (run == end)
        return run;
    size_t last = qr_unicode_before(text, run);
    return last > from ? last : run;
}

size_t qr_scanner_contraction(const uint8_t *text, size_t len, bool fold)
{
    if (len < 2 || text[0] != '\'')
        return 0;
    uint8_t a = text[1], b = len > 2 ? text[2] : 0;
    if (fold && a == 0xC5 && b == 0xBF)
        return 3;
    if (fold) {
        a |= a >= 'A' && a <= 'Z' ? 0x20 : 0;
        b |= b >= 'A' && b <= 'Z' ? 0x20 : 0;
    }
    if (a == 's' || a == 't' || a == 'm' || a == 'd')
        return 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l'))
        return 3;
    return 0;
}

static size_t scan_gpt2(const uint8_t *text, size_t from, size_t end)
{
    size_t found = qr_scanner_contraction(text + from, end - from, false);
    if (found != 0)
        return from + found;
    size_t len, at = from;
    unsigned kind = kind_at(text + at, &len);
    if (text[at] == ' ' && at + 1 < end) { /* " ?" takes it when something else than space follows */
        size_t next_len;
        unsigned next = kind_at(text + at + 1, &next_len);
        if ((next & K_S) == 0) {
            at++;
            kind = next;
            len = next_len;
        }
    }
    if (kind & K_L)
        return run_of(text, at + len, end, K_L, 0);
    if (kind & K_N)
        return run_of(text, at + len, end, K_N, 0);
    if ((kind & K_S) == 0)
        return run_of_other(text, at + len, end);
    return space_end(text, from, run_of(text, at + len, end, K_S, 0), end);
}

/* Digits one by one, then GPT-2's pattern on what is between them: a digit is an end like the text's. */
static size_t scan_smollm(const uint8_t *text, size_t from, size_t end)
{
    size_t len;
    if (kind_at(text + from, &len) & K_DIGIT)
        return from + len;
    size_t found = qr_scanner_contraction(text + from, end - from, false);
    if (found != 0)
        return from + found;
    size_t at = from;
    unsigned kind = kind_at(text + at, &len);
    if (text[at] == ' ' && at + 1 < end) {
        size_t next_len;
        unsigned next = kind_at(text + at + 1, &next_len);
        if ((next & (K_S | K_DIGIT)) == 0) {
            at++;
            kind = next;
            len = next_len;
        }
    }
    if (kind & K_L)
        return run_of(text, at + len, end, K_L, K_DIGIT);
    if (kind & K_N)
        return run_of(text, at + len, end, K_N, K_DIGIT);
    if ((kind & K_S) == 0) {
        at += len;
        while (at < end && (kind_at(text + at, &len) & (K_L | K_N | K_S | K_DIGIT)) == 0)
            at += len;
        return at;
    }
    size_t run = run_of(text, at + len, end, K_S, K_DIGIT);
    if (run < end && (kind_at(text + run, &len) & K_DIGIT))
        return run;
    return space_end(text, from, run, end);
}

/* ` ?[^\s\p{L}\p{N}]+[\r\n]*` (with slash: [\r\n/]*) at from, or from. */
static inline size_t scan_other(const uint8_t *text, size_t from, size_t end, bool slash)
{
    size_t at = text[from] == ' ' ? from + 1 : from;
    size_t stop = run_of_other(text, at, end);
    if (stop == at)
        return from;
    while (stop < end && (text[stop] == '\r' || text[stop] == '\n' || (slash && text[stop] == '/')))
        stop++;
    return stop;
}

/* `\s*[\r\n]+|\s+(?!\S)|\s+`: white space begins at from. */
static inline size_t scan_space(const uint8_t *text, size_t from, size_t end)
{
    size_t at = from, line_end = 0;
    while (at < end) {
        size_t len;
        unsigned kind = kind_at(text + at, &len);
        if ((kind & K_S) == 0)
            break;
        at += len;
        if (kind & K_EOL)
            line_end = at;
    }
    return line_end != 0 ? line_end : space_end(text, from, at, end);
}

static inline size_t scan_digits(const uint8_t *text, size_t at, size_t end, int most)
{
    for (int i = 0; i < most && at < end; i++) {
        size_t len;
        if ((kind_at(text + at, &len) & K_N) == 0)
            break;
        at += len;
    }
    return at;
}

static inline size_t scan_cl100k(const uint8_t *text, size_t from, size_t end, int digits)
{
    if (text[from] == '\'') {
        size_t found = qr_scanner_contraction(text + from, end - from, true);
        if (found != 0)
            return from + found;
    }
    size_t len;
    unsigned kind = kind_at(text + from, &len);
    if (kind & K_L)
        return run_of(text, from + len, end, K_L, 0);
    if (kind & K_N)
        return scan_digits(text, from, end, digits);
    if ((kind & K_EOL) == 0 && from + len < end) {
        size_t next_len;
        if (kind_at(text + from + len, &next_len) & K_L)
            return run_of(text, from + len + next_len, end, K_L, 0);
    }
    size_t stop = scan_other(text, from, end, false);
    return stop > from ? stop : scan_space(text, from, end);
}

/* [UP]*[LOW]+ from `at`, or [UP]+[LOW]* when that finds none; `at` itself when neither does. *lower: the first
 * of the two matched. A character of both classes (\p{Lm}\p{Lo}\p{M}) may end the first even though the greedy
 * [UP]* has taken it. */
static size_t camel_end(const uint8_t *text, size_t at, size_t end, bool *lower)
{
    size_t both = 0, up = at;
    while (up < end) {
        size_t len;
        unsigned kind = kind_at(text + up, &len);
        if ((kind & K_UP) == 0)
            break;
        up += len;
        if (kind & K_LOW)
            both = up;
    }
    size_t low = run_of(text, up, end, K_LOW, 0);
    *lower = low > up || both != 0;
    if (low > up)
        return low;
    return both != 0 ? both : up;
}

static size_t scan_o200k(const uint8_t *text, size_t from, size_t end, bool contractions, int digits)
{
    size_t len, stop = from;
    unsigned kind = kind_at(text + from, &len);
    bool prefix = (kind & (K_L | K_N | K_EOL)) == 0, lower = false;
    size_t upper_stop = from;
    if (prefix && from + len < end) {
        size_t found = camel_end(text, from + len, end, &lower);
        if (lower)
            stop = found;
        else if (found > from + len)
            upper_stop = found;
    }
    if (stop == from && (kind & (K_UP | K_LOW))) { /* without the optional first character */
        size_t found = camel_end(text, from, end, &lower);
        if (lower)
            stop = found;
        else if (upper_stop == from)
            upper_stop = found;
    }
    if (stop == from)
        stop = upper_stop;
    if (stop > from)
        return contractions ? stop + qr_scanner_contraction(text + stop, end - stop, true) : stop;
    if (kind & K_N)
        return scan_digits(text, from, end, digits);
    stop = scan_other(text, from, end, true);
    return stop > from ? stop : scan_space(text, from, end);
}

/* ---- DeepSeek V3: digits, then Chinese and Japanese, then the words of what is left ---- */

const char *const qr_deepseek3_expressions[QR_DEEPSEEK3_STEPS] = {
    "\\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    ("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
     " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+")};

/* The text that a word is looked for in: a piece ends at a digit, and where the second step's class begins or ends. */
typedef struct deepseek3 {
    const uint8_t *text;
    size_t end;
    bool asian;
} deepseek3;

static bool is_asian(const uint8_t *text)
{
    uint32_t c;
    if (text[0] < 0xE3 || text[0] > 0xE9)
        return false;
    qr_unicode_next(text, &c);
    return (c >= 0x4E00 && c <= 0x9FA5) || (c >= 0x3040 && c <= 0x30FF);
}

static inline unsigned piece_kind(const deepseek3 *in, size_t at, size_t *len)
{
    *len = 0;
    if (at >= in->end || is_asian(in->text + at) != in->asian)
        return K_END;
    unsigned kind = kind_at(in->text + at, len);
    return kind & K_N ? K_END : kind;
}

static inline size_t piece_run(const deepseek3 *in, size_t at, unsigned any)
{
    size_t len;
    while (piece_kind(in, at, &len) & any)
        at += len;
    return at;
}

/* White space begins at from. */
static size_t deepseek3_space(const deepseek3 *in, size_t from)
{
    size_t at = from, line_end = 0, len;
    unsigned kind;
    while ((kind = piece_kind(in, at, &len)) & K_S) {
        at += len;
        if (kind & K_EOL)
            line_end = at;
    }
    if (line_end != 0)
        return line_end;
    return kind & K_END ? at : space_end(in->text, from, at, in->end);
}

static size_t scan_deepseek3(const uint8_t *text, size_t from, size_t end)
{
    deepseek3 in = {text, end, is_asian(text + from)};
    size_t len, next_len;
    unsigned kind = kind_at(text + from, &len);
    if (kind & K_N)
        return scan_digits(text, from, end, 3);
    unsigned next = piece_kind(&in, from + len, &next_len);
    bool is_letter = next_len == 1 && (next & K_L);
    if (text[from] < 0x80 && (kind & K_PS) && is_letter) {
        size_t at = from + 1;
        while (at < end && text[at] < 0x80 && (ascii_kind[text[at]] & K_L))
            at++;
        return at;
    }
    if ((kind & (K_L | K_M)) || ((kind & (K_EOL | K_PS)) == 0 && (next & (K_L | K_M))))
        return piece_run(&in, from + len, K_L | K_M);
    if ((kind & K_PS) || (text[from] == ' ' && (next & K_PS))) {
        size_t at = piece_run(&in, from + len, K_PS);
        return piece_run(&in, at, K_EOL);
    }
    if (kind & K_S)
        return deepseek3_space(&in, from);
    /* What nothing matches, up to where something does. */
    size_t at = from;
    do {
        at += len;
        kind = piece_kind(&in, at, &len);
        next = piece_kind(&in, at + len, &next_len);
    } while ((kind & (K_L | K_M | K_PS | K_S | K_END)) == 0 && (next & (K_L | K_M)) == 0);
    return at;
}

static const struct scanner_row {
    qr_scanner_kind kind;
    const char *expression;
} scanner_rows[] = {
    {QR_SCAN_GPT2, "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"},
    {QR_SCAN_CL100K_1,
     "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
     "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
    {QR_SCAN_CL100K_3, "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
                       "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
    {QR_SCAN_O200K,
     "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
     "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+"
     "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| "
     "?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
    {QR_SCAN_NEMO,
     "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|"
     "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|"
     "\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
};

qr_scanner_kind qr_scanner_of(qr_str expression)
{
    for (size_t i = 0; i < QR_COUNT_OF(scanner_rows); i++)
        if (qr_str_equals(expression, scanner_rows[i].expression))
            return scanner_rows[i].kind;
    return QR_SCAN_NONE;
}

const char *qr_scanner_expression(qr_scanner_kind kind)
{
    for (size_t i = 0; i < QR_COUNT_OF(scanner_rows); i++)
        if (scanner_rows[i].kind == kind)
            return scanner_rows[i].expression;
    return NULL;
}

size_t qr_scanner_next(qr_scanner_kind kind, const uint8_t *text, size_t from, size_t len)
{
    switch (kind) {
    case QR_SCAN_GPT2: return scan_gpt2(text, from, len);
    case QR_SCAN_SMOLLM: return scan_smollm(text, from, len);
    case QR_SCAN_CL100K_1: return scan_cl100k(text, from, len, 1);
    case QR_SCAN_CL100K_3: return scan_cl100k(text, from, len, 3);
    case QR_SCAN_O200K: return scan_o200k(text, from, len, true, 3);
    case QR_SCAN_NEMO: return scan_o200k(text, from, len, false, 1);
    case QR_SCAN_DEEPSEEK3: return scan_deepseek3(text, from, len);
    case QR_SCAN_NONE:
    case QR_SCAN_COUNT: break;
    }
    return len;
}

size_t qr_scanner_batch(qr_scanner_kind kind, const uint8_t *text, size_t from, size_t len, size_t *ends,
                        size_t most)
{
    size_t count = 0;
    while (from < len && count + QR_SCANNER_BATCH_MIN <= most) {
        size_t found = text[from] < 0x80 ? qr_scanner_block(kind, text, from, len, ends + count) : 0;
        if (found == 0) {
            ends[count] = qr_scanner_next(kind, text, from, len);
            found = 1;
        }
        count += found;
        from = ends[count - 1];
    }
    return count;
}
