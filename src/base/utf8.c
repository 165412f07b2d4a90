#include "base/utf8.h"

#include "base/assert.h"

/* How many bytes a sequence with this first byte has, and which second bytes are allowed: Table 3-7 of
 * the Unicode standard, which leaves no overlong form, surrogate or value above 10FFFF. */
typedef struct lead {
    uint8_t length; /* 0: not a first byte */
    uint8_t low, high;
} lead;

static lead lead_of(uint8_t byte)
{
    if (byte < 0x80)
        return (lead){1, 0, 0};
    if (byte < 0xC2)
        return (lead){0, 0, 0};
    if (byte < 0xE0)
        return (lead){2, 0x80, 0xBF};
    if (byte < 0xF0)
        return (lead){3, byte == 0xE0 ? 0xA0 : 0x80, byte == 0xED ? 0x9F : 0xBF};
    if (byte < 0xF5)
        return (lead){4, byte == 0xF0 ? 0x90 : 0x80, byte == 0xF4 ? 0x8F : 0xBF};
    return (lead){0, 0, 0};
}

/* Bytes at text that are a valid beginning of one character (0 when not even the first is), and the
 * length it would have when whole. */
static size_t valid_beginning(const uint8_t *text, size_t len, size_t *whole)
{
    lead first = lead_of(text[0]);
    *whole = first.length;
    if (first.length <= 1)
        return first.length;
    if (len < 2 || text[1] < first.low || text[1] > first.high)
        return 1;
    size_t count = 2;
    while (count < first.length && count < len && (text[count] & 0xC0) == 0x80)
        count++;
    return count;
}

size_t qr_utf8_decode(const char *text, size_t len, uint32_t *codepoint)
{
    const uint8_t *bytes = (const uint8_t *)text;
    size_t whole = 0;
    size_t count = valid_beginning(bytes, len, &whole);
    if (count == 0 || count < whole)
        return 0;
    static const uint8_t masks[5] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    uint32_t value = bytes[0] & masks[count];
    for (size_t i = 1; i < count; i++)
        value = value << 6 | (bytes[i] & 0x3Fu);
    *codepoint = value;
    return count;
}

size_t qr_utf8_encode(uint32_t codepoint, char out[4])
{
    if (codepoint > 0x10FFFF || (codepoint >= 0xD800 && codepoint <= 0xDFFF))
        codepoint = QR_UTF8_REPLACEMENT;
    if (codepoint < 0x80) {
        out[0] = (char)codepoint;
        return 1;
    }
    size_t count = codepoint < 0x800 ? 2 : codepoint < 0x10000 ? 3 : 4;
    for (size_t i = count - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (codepoint & 0x3F));
        codepoint >>= 6;
    }
    static const uint8_t marks[5] = {0, 0, 0xC0, 0xE0, 0xF0};
    out[0] = (char)(marks[count] | codepoint);
    return count;
}

size_t qr_utf8_validate(const char *text, size_t len)
{
    size_t at = 0;
    while (at < len) {
        uint64_t eight;
        if (len - at >= 8 &&
            (__builtin_memcpy(&eight, text + at, 8), (eight & UINT64_C(0x8080808080808080)) == 0)) {
            at += 8;
            continue;
        }
        size_t whole = 0;
        size_t count = valid_beginning((const uint8_t *)text + at, len - at, &whole);
        if (count == 0 || count < whole)
            return at;
        at += count;
    }
    return len;
}

size_t qr_utf8_complete_prefix(const char *text, size_t len)
{
    /* Only the last three bytes can belong to a character that goes on. */
    for (size_t back = 1; back <= 3 && back <= len; back++) {
        const uint8_t *start = (const uint8_t *)text + (len - back);
        if ((*start & 0xC0) == 0x80)
            continue;
        size_t whole = 0;
        size_t count = valid_beginning(start, back, &whole);
        return count == back && count < whole ? len - back : len;
    }
    return len;
}

size_t qr_utf8_invalid_length(const char *text, size_t len)
{
    QR_ASSERT(len > 0);
    size_t whole = 0;
    size_t count = valid_beginning((const uint8_t *)text, len, &whole);
    return count > 0 ? count : 1;
}
