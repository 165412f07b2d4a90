/* Unicode as the reference tokenizers have it: general categories, the classes of their expressions and of
 * Rust's char methods, scripts, normal forms, lower case, grapheme breaks. One table, made by
 * tools/unicode/generate.py by asking the reference itself about every code point. Thread: any (constants).
 */
#ifndef QR_TEXT_UNICODE_H
#define QR_TEXT_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/str.h"

/* General category: order of GENERAL in the generator. */
typedef enum qr_unicode_general {
    QR_GC_CN,
    QR_GC_LU,
    QR_GC_LL,
    QR_GC_LT,
    QR_GC_LM,
    QR_GC_LO,
    QR_GC_MN,
    QR_GC_MC,
    QR_GC_ME,
    QR_GC_ND,
    QR_GC_NL,
    QR_GC_NO,
    QR_GC_PC,
    QR_GC_PD,
    QR_GC_PS,
    QR_GC_PE,
    QR_GC_PI,
    QR_GC_PF,
    QR_GC_PO,
    QR_GC_SM,
    QR_GC_SC,
    QR_GC_SK,
    QR_GC_SO,
    QR_GC_ZS,
    QR_GC_ZL,
    QR_GC_ZP,
    QR_GC_CC,
    QR_GC_CF,
    QR_GC_CO,
    QR_GC_CS,
    QR_GC_COUNT
} qr_unicode_general;

/* Grapheme cluster break: order of BREAKS in the generator. */
typedef enum qr_unicode_break {
    QR_GCB_OTHER,
    QR_GCB_CR,
    QR_GCB_LF,
    QR_GCB_CONTROL,
    QR_GCB_EXTEND,
    QR_GCB_ZWJ,
    QR_GCB_REGIONAL,
    QR_GCB_PREPEND,
    QR_GCB_SPACING,
    QR_GCB_L,
    QR_GCB_V,
    QR_GCB_T,
    QR_GCB_LV,
    QR_GCB_LVT,
    QR_GCB_PICTOGRAPHIC
} qr_unicode_break;

/* Bits of qr_unicode_record.flags. */
#define QR_UC_SPACE      0x001u /* \s of an expression */
#define QR_UC_WORD       0x002u /* \w of an expression */
#define QR_UC_HAN        0x004u /* \p{Han} */
#define QR_UC_WHITESPACE 0x008u /* char::is_whitespace */
#define QR_UC_NUMERIC    0x010u /* char::is_numeric */
#define QR_UC_PUNCT      0x020u /* punctuation of BertPreTokenizer and Punctuation */
#define QR_UC_BERT_CLEAN 0x040u /* taken out by BertNormalizer's clean_text */
#define QR_UC_BERT_MARK  0x080u /* taken out by BertNormalizer's strip_accents */
#define QR_UC_ACCENT     0x100u /* taken out by StripAccents */
#define QR_UC_RUST_WORD  0x200u /* \w of Rust's regex: Whitespace, single_word */

typedef struct qr_unicode_record {
    uint8_t general;
    uint8_t script;    /* equal numbers: one script; 0: none */
    uint8_t combining; /* canonical combining class as a rank; 0: starter */
    uint8_t grapheme_break;
    uint16_t flags;
} qr_unicode_record;

typedef struct qr_unicode_mapping {
    uint32_t codepoint;
    uint16_t offset, count; /* into the pool beside the table */
} qr_unicode_mapping;

typedef struct qr_unicode_composition {
    uint32_t first, second, composed;
} qr_unicode_composition;

/* A character that has this category, is Han or not, and takes this many bytes, in every Unicode version. */
typedef struct qr_unicode_stand_in {
    uint8_t general, han, bytes;
    uint32_t codepoint;
} qr_unicode_stand_in;

extern const qr_unicode_stand_in qr_unicode_stand_ins[];
extern const uint32_t qr_unicode_stand_in_count;
extern const qr_unicode_record qr_unicode_records[];
extern const uint16_t qr_unicode_stage1[0x110000 / 128];
extern const uint16_t qr_unicode_stage2[];
extern const qr_unicode_mapping qr_unicode_nfd[], qr_unicode_nfkd[], qr_unicode_lower[];
extern const uint32_t qr_unicode_nfd_pool[], qr_unicode_nfkd_pool[], qr_unicode_lower_pool[];
extern const uint32_t qr_unicode_nfd_count, qr_unicode_nfkd_count, qr_unicode_lower_count;
extern const qr_unicode_composition qr_unicode_compositions[];
extern const uint32_t qr_unicode_composition_count;

/* codepoint must be <= 10FFFF. */
static inline const qr_unicode_record *qr_unicode_of(uint32_t codepoint)
{
    return &qr_unicode_records[qr_unicode_stage2[(uint32_t)qr_unicode_stage1[codepoint >> 7] * 128 +
                                                 (codepoint & 127)]];
}

static inline bool qr_unicode_is(uint32_t codepoint, uint32_t flag)
{
    return (qr_unicode_of(codepoint)->flags & flag) != 0;
}

/* Decodes one character of text that is known to be valid UTF-8; returns its length. */
static inline size_t qr_unicode_next(const uint8_t *text, uint32_t *codepoint)
{
    uint32_t c = text[0];
    if (c < 0x80) {
        *codepoint = c;
        return 1;
    }
    if (c < 0xE0) {
        *codepoint = (c & 0x1F) << 6 | (text[1] & 0x3Fu);
        return 2;
    }
    if (c < 0xF0) {
        *codepoint = (c & 0x0F) << 12 | (text[1] & 0x3Fu) << 6 | (text[2] & 0x3Fu);
        return 3;
    }
    *codepoint = (c & 0x07) << 18 | (text[1] & 0x3Fu) << 12 | (text[2] & 0x3Fu) << 6 | (text[3] & 0x3Fu);
    return 4;
}

/* Start of the character that ends before `end` (> 0) in valid UTF-8. */
static inline size_t qr_unicode_before(const uint8_t *text, size_t end)
{
    do
        end--;
    while (end > 0 && (text[end] & 0xC0) == 0x80);
    return end;
}

/* Finds codepoint in a sorted mapping; NULL when it maps to itself. */
const qr_unicode_mapping *qr_unicode_map(const qr_unicode_mapping *table, uint32_t count, uint32_t codepoint);

typedef enum qr_unicode_form { QR_FORM_NFC, QR_FORM_NFD, QR_FORM_NFKC, QR_FORM_NFKD } qr_unicode_form;
/* Appends the normal form of valid UTF-8. */
void qr_unicode_normalize(qr_str text, qr_unicode_form form, qr_buf *out);
/* Appends text in lower case, character by character (no rule for a final sigma, as the reference). */
void qr_unicode_lowercase(qr_str text, qr_buf *out);
/* Length in bytes of the extended grapheme cluster at text (valid UTF-8, len > 0). */
size_t qr_unicode_grapheme(const uint8_t *text, size_t len);

#endif
