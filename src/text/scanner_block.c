/* Pre-tokenizer patterns over 64 bytes of ASCII at once: one bit a byte, and where words begin follows from a few
 * operations on whole masks.
 *
 * A block begins where a word does, so that nothing before it matters; what its end leaves open is left to the next
 * block, which begins at the last word that was found. Other than ASCII, and words longer than a block, are the
 * business of scanner.c, whose functions say what each pattern means; tests hold the two against each other.
 */
#include "text/scanner.h"

#ifdef __SSE2__
#include <emmintrin.h>

/* A mask for each class of scanner.c, of the first `count` bytes. */
typedef struct block {
    uint64_t letters, upper, digits, space, white, eol, quote, slash, other, graph;
    unsigned count; /* known bytes: up to 64, to the first one that is not ASCII */
} block;

static inline uint64_t below(unsigned count) { return count >= 64 ? UINT64_MAX : (UINT64_C(1) << count) - 1; }

static inline __m128i in_range(__m128i bytes, char low, char high)
{
    __m128i offset = _mm_sub_epi8(bytes, _mm_set1_epi8(low));
    return _mm_cmpeq_epi8(_mm_min_epu8(offset, _mm_set1_epi8((char)(high - low))), offset);
}

static inline uint64_t mask_of(__m128i bytes) { return (uint32_t)_mm_movemask_epi8(bytes); }

static inline __m128i equal(__m128i bytes, char c) { return _mm_cmpeq_epi8(bytes, _mm_set1_epi8(c)); }

/* The 64 bytes at text, of which `known` belong to it. */
static inline block classify(const uint8_t *text, unsigned known)
{
    block out = {0};
    uint64_t wide = 0, feeds = 0;
    for (unsigned i = 0; i < 64; i += 16) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)(text + i));
        wide |= mask_of(bytes) << i;
        out.letters |= mask_of(in_range(_mm_or_si128(bytes, _mm_set1_epi8(0x20)), 'a', 'z')) << i;
        out.upper |= mask_of(in_range(bytes, 'A', 'Z')) << i;
        out.digits |= mask_of(in_range(bytes, '0', '9')) << i;
        out.space |= mask_of(equal(bytes, ' ')) << i;
        feeds |= mask_of(in_range(bytes, '\t', '\r')) << i;
        out.eol |= mask_of(_mm_or_si128(equal(bytes, '\n'), equal(bytes, '\r'))) << i;
        out.quote |= mask_of(equal(bytes, '\'')) << i;
        out.slash |= mask_of(equal(bytes, '/')) << i;
        out.graph |= mask_of(in_range(bytes, '!', '~')) << i;
    }
    out.count = known;
    if (wide != 0 && (unsigned)__builtin_ctzll(wide) < known)
        out.count = (unsigned)__builtin_ctzll(wide);
    uint64_t all = below(out.count);
    out.letters &= all;
    out.upper &= all;
    out.digits &= all;
    out.space &= all;
    out.white = (feeds & all) | out.space;
    out.eol &= all;
    out.quote &= all;
    out.slash &= all;
    out.other = all & ~(out.letters | out.digits | out.white);
    return out;
}

/* Bits of a run of `run` that are reached from `from`, its first ones. */
static inline uint64_t reached(uint64_t from, uint64_t run) { return run & ~(run + from); }

static inline uint64_t first_of(uint64_t runs) { return runs & ~(runs << 1); }

/* \p{N}{1,3}: every third digit of a run. */
static inline uint64_t triples(uint64_t digits)
{
    uint64_t starts = first_of(digits), next = starts, whole = digits & digits << 1 & digits << 2;
    while ((next = next << 3 & whole) != 0)
        starts |= next;
    return starts;
}

/* `\s*[\r\n]+|\s+(?!\S)|\s+` where `white` is what no other alternative took: a run begins a word, so does what
 * follows its last line end, and its last character, when that is no line end, belongs to what comes after. */
static inline uint64_t white_starts(uint64_t white, uint64_t eol, uint64_t all_white)
{
    uint64_t blank = white & ~eol;
    uint64_t after = first_of(blank) & (white & eol) << 1; /* a line end may still follow */
    uint64_t not_last = ((after + blank) & ~blank) & eol;
    while (not_last != 0) {
        uint64_t before = after & ((not_last & -not_last) - 1);
        after &= ~(UINT64_C(1) << (63 - __builtin_clzll(before)));
        not_last &= not_last - 1;
    }
    return first_of(white) | after | (blank & ~(all_white >> 1));
}

/* Where words begin, before contractions. Joined to a word: the first of a run of letters behind a blank or
 * behind another character that begins a word. */
static inline uint64_t starts_cl100k(const block *b, uint64_t others, int digits)
{
    uint64_t taken = reached(b->eol & b->other << 1, b->eol), blank = b->white & ~b->eol;
    return (first_of(b->letters) & ~((others | blank) << 1)) |
           (digits == 1 ? b->digits : triples(b->digits)) | others |
           white_starts(b->white & ~taken, b->eol & ~taken, b->white);
}

/* ` ?` joins a space to what follows it. */
static inline uint64_t starts_gpt2(const block *b, uint64_t others, bool single_digits)
{
    uint64_t joined = b->space << 1, next = b->white >> 1;
    uint64_t digits = single_digits ? b->digits : first_of(b->digits) & ~joined;
    if (single_digits) /* an end like the text's: white space before it stays whole */
        next |= b->digits >> 1;
    return (first_of(b->letters) & ~joined) | digits | others | first_of(b->white) | (b->white & ~next);
}

/* Not `other` but punctuation and symbols alone; control characters, which nothing matches but before letters, are
 * a class of their own, and a digit is an end like the text's. */
static inline uint64_t starts_deepseek3(const block *b)
{
    uint64_t marks = b->other & b->graph, control = b->other & ~b->graph;
    uint64_t taken = reached(b->eol & marks << 1, b->eol), blank = b->white & ~b->eol;
    uint64_t words = first_of(marks) & ~(b->space << 1);
    return (first_of(b->letters) & ~((words | blank | control) << 1)) | triples(b->digits) | words |
           first_of(control) | (control & b->letters >> 1) |
           white_starts(b->white & ~taken, b->eol & ~taken, b->white | b->digits);
}

typedef enum quote_rule { QUOTE_NONE, QUOTE_EXACT, QUOTE_FOLDED, QUOTE_SUFFIX } quote_rule;

/* Corrects *starts for 's 't 're and so on at the places of `quotes`, where they would count; returns how many of
 * the block's bytes are sure. */
static inline unsigned contract(const uint8_t *text, const block *b, quote_rule rule, uint64_t quotes,
                                uint64_t *starts)
{
    unsigned end = 64; /* of the last one */
    quotes &= b->letters >> 1 | UINT64_C(1) << (b->count - 1);
    for (; quotes != 0; quotes &= quotes - 1) {
        unsigned at = (unsigned)__builtin_ctzll(quotes);
        if (at + 2 >= b->count)
            return at;
        unsigned len = (unsigned)qr_scanner_contraction(text + at, b->count - at, rule != QUOTE_EXACT);
        if (len == 0 || (rule == QUOTE_SUFFIX && at == end))
            continue;
        end = at + len;
        *starts &= ~(UINT64_C(1) << (rule == QUOTE_SUFFIX ? at : at + 1));
        *starts |= UINT64_C(2) << (end - 1);
    }
    return b->count;
}

/* Bit i: a word begins at text + i; bit 0 is left out. */
static inline uint64_t block_starts(qr_scanner_kind kind, const uint8_t *text, block *b)
{
    uint64_t others = first_of(b->other) & ~(b->space << 1), open = b->white & ~b->eol, starts = 0;
    unsigned sure = b->count;
    switch (kind) {
    case QR_SCAN_GPT2:
    case QR_SCAN_SMOLLM:
        open = b->white;
        starts = starts_gpt2(b, others, kind == QR_SCAN_SMOLLM);
        sure = contract(text, b, QUOTE_EXACT, b->quote & others, &starts);
        break;
    case QR_SCAN_CL100K_1:
    case QR_SCAN_CL100K_3:
        starts = starts_cl100k(b, others, kind == QR_SCAN_CL100K_1 ? 1 : 3);
        sure = contract(text, b, QUOTE_FOLDED, b->quote & others, &starts);
        break;
    case QR_SCAN_O200K:
        starts = starts_cl100k(b, others, 3) | (b->upper & (b->letters & ~b->upper) << 1);
        sure = contract(text, b, QUOTE_SUFFIX, b->quote & b->letters << 1, &starts);
        break;
    case QR_SCAN_NEMO:
        starts = starts_cl100k(b, others, 1) | (b->upper & (b->letters & ~b->upper) << 1);
        break;
    case QR_SCAN_DEEPSEEK3:
        open |= b->other & ~b->graph;
        starts = starts_deepseek3(b);
        break;
    case QR_SCAN_NONE:
    case QR_SCAN_COUNT: break;
    }
    /* What follows blanks (and control characters) at the end decides about them. */
    uint64_t closed = ~open & below(b->count);
    unsigned decided = closed == 0 ? 0 : 64 - (unsigned)__builtin_clzll(closed);
    return starts & below(QR_MIN(decided, sure)) & ~UINT64_C(1);
}

size_t qr_scanner_block(qr_scanner_kind kind, const uint8_t *text, size_t from, size_t len, size_t *ends)
{
    uint8_t tail[64] = {0};
    const uint8_t *bytes = text + from;
    size_t known = len - from, count = 0;
    if (known < sizeof(tail)) {
        memcpy(tail, bytes, known);
        bytes = tail;
    }
    block b = classify(bytes, (unsigned)QR_MIN(known, sizeof(tail)));
    if (kind == QR_SCAN_O200K || kind == QR_SCAN_NEMO) { /* [\r\n/]*: leave those to scanner.c */
        uint64_t slash = b.slash & b.eol << 1;
        if (slash != 0)
            b = classify(bytes, (unsigned)__builtin_ctzll(slash));
    }
    if (b.count == 0)
        return 0;
    for (uint64_t starts = block_starts(kind, bytes, &b); starts != 0; starts &= starts - 1)
        ends[count++] = from + (unsigned)__builtin_ctzll(starts);
    return count;
}

#else

size_t qr_scanner_block(qr_scanner_kind kind, const uint8_t *text, size_t from, size_t len, size_t *ends)
{
    (void)kind, (void)text, (void)from, (void)len, (void)ends;
    return 0;
}

#endif
