#include "base/json_prepare.h"

#include <stdio.h>
#include <string.h>

/* Bytes that mean something to the census; the rest is passed over at one table look-up each. */
enum { PLAIN, QUOTE, OPEN, CLOSE, COMMA, DIGIT };
static const unsigned char kinds[256] = {
    ['"'] = QUOTE, ['['] = OPEN,  ['{'] = OPEN,  [']'] = CLOSE, ['}'] = CLOSE, [','] = COMMA,
    ['0'] = DIGIT, ['1'] = DIGIT, ['2'] = DIGIT, ['3'] = DIGIT, ['4'] = DIGIT, ['5'] = DIGIT,
    ['6'] = DIGIT, ['7'] = DIGIT, ['8'] = DIGIT, ['9'] = DIGIT,
};

enum { INT64_DIGITS = 19 }; /* of 9223372036854775807 */

/* The code unit of a \uXXXX at text, or -1. */
static int unit_at(const char *text, size_t len)
{
    int value = 0;
    if (len < 6 || text[0] != '\\' || text[1] != 'u')
        return -1;
    for (int i = 2; i < 6; i++) {
        char c = text[i];
        int lower = c | 0x20;
        int digit = c >= '0' && c <= '9' ? c - '0' : lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
        if (digit < 0)
            return -1;
        value = value << 4 | digit;
    }
    return value;
}

/* From after the opening quote to after the closing one. Lone surrogates are told, and mended in `mend`. */
static size_t pass_string(const char *text, size_t len, size_t at, bool *lone, char *mend)
{
    while (at < len && text[at] != '"') {
        if (text[at] != '\\') {
            at++;
            continue;
        }
        int unit = unit_at(text + at, len - at);
        if (unit < 0xD800 || unit > 0xDFFF) {
            at += 2;
            continue;
        }
        int next = unit < 0xDC00 ? unit_at(text + at + 6, len - at - 6) : -1;
        if (next >= 0xDC00 && next <= 0xDFFF) {
            at += 12;
            continue;
        }
        *lone = true;
        if (mend != NULL)
            memcpy(mend + at, "\\ufffd", 6);
        at += 6;
    }
    return at < len ? at + 1 : len;
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

/* Past the digits and letters of a number; *integer_digits > 0 when it is an integer with so many. */
static size_t pass_number(const char *text, size_t len, size_t at, size_t *integer_digits)
{
    size_t start = at;
    while (at < len && is_digit(text[at]))
        at++;
    *integer_digits = at - start;
    while (at < len && (is_digit(text[at]) || strchr(".eE+-", text[at]) != NULL) && text[at] != '\0') {
        *integer_digits = 0;
        at++;
    }
    return at;
}

static bool beyond_int64(const char *digits, size_t count, bool negative)
{
    if (count != INT64_DIGITS)
        return count > INT64_DIGITS;
    return memcmp(digits, negative ? "9223372036854775808" : "9223372036854775807", INT64_DIGITS) > 0;
}

/* 18446744073709551615 -> 1.84467440737095e+19: the same value to 14 digits or more, the same length. */
static void make_real(char *digits, size_t count)
{
    char exponent[32];
    size_t tail = (size_t)snprintf(exponent, sizeof(exponent), "e+%zu", count - 1);
    memmove(digits + 2, digits + 1, count - 2);
    digits[1] = '.';
    memcpy(digits + count - tail, exponent, tail);
}

static qr_json_census walk(const char *text, size_t len, char *mend)
{
    qr_json_census census = {.values = 1};
    size_t depth = 0;
    for (size_t at = 0; at < len;) {
        size_t digits = 0, start = at;
        switch (kinds[(unsigned char)text[at]]) {
        case QUOTE: at = pass_string(text, len, at + 1, &census.needs_repair, mend); continue;
        case DIGIT:
            at = pass_number(text, len, at, &digits);
            if (beyond_int64(text + start, digits, start > 0 && text[start - 1] == '-')) {
                census.needs_repair = true;
                if (mend != NULL && text[start] != '0')
                    make_real(mend + start, digits);
            }
            continue;
        case OPEN:
            depth++;
            census.depth = depth > census.depth ? depth : census.depth;
            census.values++;
            break;
        case CLOSE: depth -= depth > 0; break;
        case COMMA: census.values++; break;
        default: break;
        }
        at++;
    }
    return census;
}

qr_json_census qr_json_take_census(qr_str text) { return walk(text.data, text.len, NULL); }
void qr_json_repair(char *text, size_t len) { walk(text, len, text); }
