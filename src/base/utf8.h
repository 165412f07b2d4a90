/* UTF-8 (RFC 3629). Thread: any. */
#ifndef QR_BASE_UTF8_H
#define QR_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define QR_UTF8_REPLACEMENT 0xFFFDu

/* Decodes one code point at text[0..len); returns its length in bytes (1-4), or 0 when the bytes are not
 * valid (overlong, surrogate, above 10FFFF, cut). len must be > 0. */
size_t qr_utf8_decode(const char *text, size_t len, uint32_t *codepoint);
/* Writes 1-4 bytes; a surrogate or a value above 10FFFF becomes U+FFFD. */
size_t qr_utf8_encode(uint32_t codepoint, char out[4]);
/* Offset of the first byte that is not valid, or len. */
size_t qr_utf8_validate(const char *text, size_t len);
/* The largest prefix length that does not end in the middle of a character that more bytes could
 * complete; an invalid sequence counts as ended. For streaming. */
size_t qr_utf8_complete_prefix(const char *text, size_t len);
/* Length of the maximal ill-formed subpart at text (WHATWG replacement: one U+FFFD each), >= 1. */
size_t qr_utf8_invalid_length(const char *text, size_t len);

#endif
