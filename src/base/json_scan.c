#include "base/json_scan.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/utf8.h"

/* One byte per open level. */
enum { LEVEL_OBJECT = 1, LEVEL_STARTED = 2 };

void qr_json_scan_init(qr_json_scan *scan, qr_str text)
{
    *scan = (qr_json_scan){.text = text};
    if (qr_str_starts(text, QR_STR("\xEF\xBB\xBF")))
        scan->position = 3; /* a byte order mark, as some editors leave it */
}

static bool fail(qr_json_scan *scan, const char *message)
{
    if (!scan->failed) {
        scan->failed = true;
        scan->message = message;
    }
    return false;
}

/* The next byte that is not white space, not consumed; -1 at the end. */
static int next_byte(qr_json_scan *scan)
{
    const char *data = scan->text.data;
    size_t at = scan->position, len = scan->text.len;
    while (at < len && (data[at] == ' ' || data[at] == '\n' || data[at] == '\t' || data[at] == '\r'))
        at++;
    scan->position = at;
    return at < len ? (unsigned char)data[at] : -1;
}

/* White space, then exactly this byte. */
static bool take(qr_json_scan *scan, char byte, const char *message)
{
    if (scan->failed)
        return false;
    if (next_byte(scan) != byte)
        return fail(scan, message);
    scan->position++;
    return true;
}

char qr_json_scan_peek(qr_json_scan *scan)
{
    int byte = scan->failed ? -1 : next_byte(scan);
    if (byte == '-' || (byte >= '0' && byte <= '9'))
        return '0';
    switch (byte) {
    case '{':
    case '[':
    case '"':
    case 't':
    case 'f':
    case 'n': return (char)byte;
    default: return 0;
    }
}

/* ---- Containers ------------------------------------------------------------------------------------ */

static bool enter(qr_json_scan *scan, uint8_t level)
{
    if (scan->depth == QR_JSON_SCAN_DEPTH_MAX)
        return fail(scan, "nested too deep");
    scan->state[scan->depth++] = level;
    return true;
}

bool qr_json_scan_object(qr_json_scan *scan)
{
    return take(scan, '{', "expected an object") && enter(scan, LEVEL_OBJECT);
}

bool qr_json_scan_array(qr_json_scan *scan) { return take(scan, '[', "expected an array") && enter(scan, 0); }

/* Moves to the next entry of the innermost level: over a comma, or out of it at `close`. */
static bool next_entry(qr_json_scan *scan, char close, const char *message)
{
    if (scan->failed)
        return false;
    uint8_t *level = &scan->state[scan->depth - 1];
    int byte = next_byte(scan);
    if (byte == close) {
        scan->position++;
        scan->depth--;
        return false;
    }
    if (*level & LEVEL_STARTED)
        return take(scan, ',', message);
    *level |= LEVEL_STARTED;
    return true;
}

bool qr_json_scan_key(qr_json_scan *scan, qr_str *raw_key)
{
    if (scan->failed || scan->depth == 0 || !(scan->state[scan->depth - 1] & LEVEL_OBJECT))
        return fail(scan, "not inside an object");
    bool escaped;
    return next_entry(scan, '}', "expected ',' or '}'") && qr_json_scan_string(scan, raw_key, &escaped) &&
           take(scan, ':', "expected ':'");
}

bool qr_json_scan_item(qr_json_scan *scan)
{
    if (scan->failed || scan->depth == 0 || (scan->state[scan->depth - 1] & LEVEL_OBJECT))
        return fail(scan, "not inside an array");
    if (!next_entry(scan, ']', "expected ',' or ']'"))
        return false;
    return qr_json_scan_peek(scan) != 0 || fail(scan, "expected a value");
}

bool qr_json_scan_skip(qr_json_scan *scan)
{
    int base = scan->depth;
    do {
        qr_str text;
        bool flag;
        double number;
        switch (qr_json_scan_peek(scan)) {
        case '{': qr_json_scan_object(scan); break;
        case '[': qr_json_scan_array(scan); break;
        case '"': qr_json_scan_string(scan, &text, &flag); break;
        case '0': qr_json_scan_number(scan, &number); break;
        case 't':
        case 'f': qr_json_scan_bool(scan, &flag); break;
        case 'n': qr_json_scan_null(scan); break;
        default: fail(scan, "expected a value"); break;
        }
        /* On to where the next value starts, leaving what is at its end. */
        bool found = false;
        while (!scan->failed && !found && scan->depth > base)
            found = scan->state[scan->depth - 1] & LEVEL_OBJECT ? qr_json_scan_key(scan, &text)
                                                                : qr_json_scan_item(scan);
    } while (!scan->failed && scan->depth > base);
    return !scan->failed;
}

bool qr_json_scan_raw(qr_json_scan *scan, qr_str *raw)
{
    if (scan->failed)
        return false;
    next_byte(scan);
    size_t start = scan->position;
    if (!qr_json_scan_skip(scan))
        return false;
    *raw = qr_str_make(scan->text.data + start, scan->position - start);
    return true;
}

bool qr_json_scan_end(qr_json_scan *scan)
{
    if (scan->failed)
        return false;
    return next_byte(scan) < 0 || fail(scan, "text after the end of the value");
}

/* ---- Strings --------------------------------------------------------------------------------------- */

static int hex_value(unsigned char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Four hexadecimal digits at text; -1 when they are not. */
static int32_t hex4(const char *text, size_t len)
{
    int32_t value = 0;
    if (len < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        int digit = hex_value((unsigned char)text[i]);
        if (digit < 0)
            return -1;
        value = value << 4 | digit;
    }
    return value;
}

/* Length of the escape at text (which starts with a backslash), or 0. */
static size_t escape_length(const char *text, size_t len)
{
    if (len < 2)
        return 0;
    if (text[1] == 'u')
        return hex4(text + 2, len - 2) >= 0 ? 6 : 0;
    return text[1] != '\0' && strchr("\"\\/bfnrt", text[1]) != NULL ? 2 : 0;
}

#define PLAIN4(x)  [x] = true, [(x) + 1] = true, [(x) + 2] = true, [(x) + 3] = true
#define PLAIN16(x) PLAIN4(x), PLAIN4((x) + 4), PLAIN4((x) + 8), PLAIN4((x) + 12)
/* ASCII that stands for itself in a string. */
static const bool is_plain[256] = {[0x20] = true, [0x21] = true, [0x23] = true, PLAIN4(0x24),
                                   PLAIN4(0x28),  PLAIN4(0x2C),  PLAIN16(0x30), PLAIN16(0x40),
                                   PLAIN4(0x50),  PLAIN4(0x54),  PLAIN4(0x58),  [0x5D] = true,
                                   [0x5E] = true, [0x5F] = true, PLAIN16(0x60), PLAIN16(0x70)};

bool qr_json_scan_string(qr_json_scan *scan, qr_str *raw, bool *escaped)
{
    if (!take(scan, '"', "expected a string"))
        return false;
    const char *data = scan->text.data;
    size_t len = scan->text.len, start = scan->position, at = start;
    *escaped = false;
    for (;;) {
        while (at < len && is_plain[(unsigned char)data[at]])
            at++;
        if (at >= len || data[at] == '"')
            break;
        unsigned char c = (unsigned char)data[at];
        size_t step = 1;
        uint32_t codepoint;
        if (c >= 0xC2 && c < 0xE0 && at + 1 < len && ((unsigned char)data[at + 1] & 0xC0) == 0x80) {
            step = 2; /* most of what is not ASCII */
        } else if (c == '\\') {
            *escaped = true;
            step = escape_length(data + at, len - at);
        } else if (c >= 0x80) {
            step = qr_utf8_decode(data + at, len - at, &codepoint);
        } else if (c < 0x20) {
            step = 0;
        }
        if (step == 0) {
            scan->position = at;
            return fail(scan, c == '\\'   ? "invalid escape"
                              : c >= 0x80 ? "invalid UTF-8"
                                          : "control character in a string");
        }
        at += step;
    }
    if (at >= len)
        return fail(scan, "string without an end");
    *raw = qr_str_make(data + start, at - start);
    scan->position = at + 1;
    return true;
}

/* A \u escape at text, with its second half where it is a pair; *used bytes. */
static uint32_t unescape_unicode(const char *text, size_t len, size_t *used)
{
    int32_t high = hex4(text + 2, len - 2);
    *used = 6;
    if (high < 0xD800 || high > 0xDBFF)
        return high >= 0xDC00 && high <= 0xDFFF ? QR_UTF8_REPLACEMENT : (uint32_t)high;
    if (len >= 12 && text[6] == '\\' && text[7] == 'u') {
        int32_t low = hex4(text + 8, len - 8);
        if (low >= 0xDC00 && low <= 0xDFFF) {
            *used = 12;
            return 0x10000u + ((uint32_t)(high - 0xD800) << 10) + (uint32_t)(low - 0xDC00);
        }
    }
    return QR_UTF8_REPLACEMENT;
}

void qr_json_scan_unescape(qr_str raw, qr_buf *out)
{
    static const char letters[] = "bfnrt", values[] = "\b\f\n\r\t";
    qr_buf_reserve(out, raw.len);
    for (size_t at = 0; at < raw.len;) {
        const char *slash = memchr(raw.data + at, '\\', raw.len - at);
        size_t plain = slash != NULL ? (size_t)(slash - raw.data) - at : raw.len - at;
        qr_buf_append(out, raw.data + at, plain);
        at += plain;
        if (at == raw.len)
            break;
        size_t used = escape_length(raw.data + at, raw.len - at);
        char utf8[4];
        if (used == 6) {
            uint32_t codepoint = unescape_unicode(raw.data + at, raw.len - at, &used);
            qr_buf_append(out, utf8, qr_utf8_encode(codepoint, utf8));
        } else if (used == 2) {
            const char *letter = strchr(letters, raw.data[at + 1]);
            qr_buf_append_char(out, letter != NULL ? values[letter - letters] : raw.data[at + 1]);
        } else { /* not from qr_json_scan_string: keep it as it is */
            qr_buf_append_char(out, '\\');
            used = 1;
        }
        at += used;
    }
}

/* ---- Numbers and words ----------------------------------------------------------------------------- */

/* A number split by the grammar of RFC 8259, section 6. */
typedef struct number {
    const char *start;
    size_t len;
    uint64_t digits; /* of the integer and fraction, when they fit */
    int64_t exponent;
    bool negative, integer, exact; /* exact: digits did not overflow */
} number;

static bool is_digit(qr_str text, size_t at)
{
    return at < text.len && text.data[at] >= '0' && text.data[at] <= '9';
}

static size_t read_digits(qr_str text, size_t at, number *out)
{
    for (; is_digit(text, at); at++) {
        uint64_t digit = (uint64_t)(text.data[at] - '0');
        if (out->digits > (UINT64_MAX - digit) / 10)
            out->exact = false;
        else
            out->digits = out->digits * 10 + digit;
    }
    return at;
}

static size_t read_exponent(qr_str text, size_t at, number *out)
{
    bool negative = at < text.len && text.data[at] == '-';
    at += at < text.len && (text.data[at] == '-' || text.data[at] == '+');
    if (!is_digit(text, at))
        return 0;
    int64_t value = 0;
    for (; is_digit(text, at); at++)
        value = value < 100000 ? value * 10 + (text.data[at] - '0') : value;
    out->exponent += negative ? -value : value;
    return at;
}

/* Scans a number and consumes it. */
static bool read_number(qr_json_scan *scan, number *out)
{
    if (scan->failed)
        return false;
    next_byte(scan);
    qr_str text = scan->text;
    size_t start = scan->position, at = start;
    *out = (number){.start = text.data + start, .integer = true, .exact = true};
    out->negative = at < text.len && text.data[at] == '-';
    at += out->negative;
    if (!is_digit(text, at))
        return fail(scan, "expected a number");
    size_t first = at;
    at = read_digits(text, at, out);
    if (text.data[first] == '0' && at > first + 1)
        return fail(scan, "number with a leading zero");
    if (at < text.len && text.data[at] == '.') {
        size_t fraction = at + 1;
        at = read_digits(text, fraction, out);
        if (at == fraction)
            return fail(scan, "number without digits after the point");
        out->integer = false;
        out->exponent = -(int64_t)(at - fraction);
    }
    if (at < text.len && (text.data[at] == 'e' || text.data[at] == 'E')) {
        at = read_exponent(text, at + 1, out);
        if (at == 0)
            return fail(scan, "number without digits in the exponent");
        out->integer = false;
    }
    out->len = at - start;
    scan->position = at;
    return true;
}

bool qr_json_scan_int(qr_json_scan *scan, int64_t *value)
{
    number n;
    size_t start = scan->position;
    if (!read_number(scan, &n))
        return false;
    uint64_t limit = (uint64_t)INT64_MAX + n.negative;
    if (!n.integer || !n.exact || n.digits > limit) {
        scan->position = start;
        return fail(scan, n.integer ? "integer out of range" : "expected an integer");
    }
    *value = n.negative ? (int64_t)(0 - n.digits) : (int64_t)n.digits;
    return true;
}

bool qr_json_scan_number(qr_json_scan *scan, double *value)
{
    static const double powers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                    1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    number n;
    if (!read_number(scan, &n))
        return false;
    /* Up to 2^53 and a power of ten that is a double: one rounding, hence exact (Clinger's fast path). */
    if (n.exact && n.digits <= UINT64_C(1) << 53 && n.exponent >= -22 && n.exponent <= 22) {
        double magnitude = (double)n.digits;
        magnitude = n.exponent < 0 ? magnitude / powers[-n.exponent] : magnitude * powers[n.exponent];
        *value = n.negative ? -magnitude : magnitude;
        return true;
    }
    char text[128]; /* strtod wants an end; hardly a number is longer */
    char *copy = n.len < sizeof(text) ? memcpy(text, n.start, n.len) : qr_strndup(n.start, n.len);
    copy[n.len] = '\0';
    *value = strtod(copy, NULL);
    if (copy != text)
        qr_free(copy);
    return (*value - *value == 0) || fail(scan, "number out of range");
}

static bool word(qr_json_scan *scan, const char *text)
{
    size_t len = strlen(text);
    next_byte(scan);
    if (scan->text.len - scan->position < len || memcmp(scan->text.data + scan->position, text, len) != 0)
        return false;
    scan->position += len;
    return true;
}

bool qr_json_scan_bool(qr_json_scan *scan, bool *value)
{
    if (scan->failed)
        return false;
    *value = word(scan, "true");
    return *value || word(scan, "false") || fail(scan, "expected true or false");
}

bool qr_json_scan_null(qr_json_scan *scan)
{
    return !scan->failed && (word(scan, "null") || fail(scan, "expected null"));
}

qr_status qr_json_scan_error(const qr_json_scan *scan, const char *path, qr_error *err)
{
    size_t line = 1, column = 1;
    for (size_t i = 0; i < scan->position && i < scan->text.len; i++) {
        column++;
        if (scan->text.data[i] == '\n') {
            line++;
            column = 1;
        }
    }
    return qr_fail(err, QR_INVALID_ARGUMENT, "%s: line %zu, column %zu: %s", path, line, column,
                   scan->message != NULL ? scan->message : "invalid JSON");
}
