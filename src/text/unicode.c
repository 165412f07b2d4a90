/* Normal forms (Unicode annex 15), lower case and grapheme clusters (annex 29) over the generated table. */
#include "text/unicode.h"

#include "base/mem.h"
#include "base/utf8.h"
#include "base/vec.h"

enum {
    HANGUL_S = 0xAC00,
    HANGUL_L = 0x1100,
    HANGUL_V = 0x1161,
    HANGUL_T = 0x11A7,
    HANGUL_L_COUNT = 19,
    HANGUL_V_COUNT = 21,
    HANGUL_T_COUNT = 28,
    HANGUL_S_COUNT = 11172
};

typedef struct mark {
    uint32_t codepoint;
    uint8_t combining;
} mark;
typedef QR_VEC(mark) mark_vec;

const qr_unicode_mapping *qr_unicode_map(const qr_unicode_mapping *table, uint32_t count, uint32_t codepoint)
{
    uint32_t low = 0, high = count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (table[middle].codepoint < codepoint)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && table[low].codepoint == codepoint ? &table[low] : NULL;
}

static void append_codepoint(qr_buf *out, uint32_t codepoint)
{
    char bytes[4];
    qr_buf_append(out, bytes, qr_utf8_encode(codepoint, bytes));
}

static void push_mark(mark_vec *out, uint32_t codepoint)
{
    mark item = {codepoint, qr_unicode_of(codepoint)->combining};
    QR_VEC_PUSH(out, item);
}

static void decompose(mark_vec *out, uint32_t c, bool compatible)
{
    if (c >= HANGUL_S && c < HANGUL_S + HANGUL_S_COUNT) {
        uint32_t index = c - HANGUL_S, tail = index % HANGUL_T_COUNT;
        push_mark(out, HANGUL_L + index / (HANGUL_V_COUNT * HANGUL_T_COUNT));
        push_mark(out, HANGUL_V + index % (HANGUL_V_COUNT * HANGUL_T_COUNT) / HANGUL_T_COUNT);
        if (tail != 0)
            push_mark(out, HANGUL_T + tail);
        return;
    }
    const qr_unicode_mapping *mapping = NULL;
    const uint32_t *pool = qr_unicode_nfkd_pool;
    if (compatible)
        mapping = qr_unicode_map(qr_unicode_nfkd, qr_unicode_nfkd_count, c);
    if (mapping == NULL) {
        mapping = qr_unicode_map(qr_unicode_nfd, qr_unicode_nfd_count, c);
        pool = qr_unicode_nfd_pool;
    }
    if (mapping == NULL) {
        push_mark(out, c);
        return;
    }
    for (uint32_t i = 0; i < mapping->count; i++)
        push_mark(out, pool[mapping->offset + i]);
}

/* Stable sort of a run of marks by class. Merge sort by insertion of runs would do for short ones; a text of
 * a million marks must not be quadratic, so: counting sort, a class is a small number. */
static void sort_marks(mark *marks, size_t count, mark_vec *scratch)
{
    bool sorted = true;
    for (size_t i = 1; i < count && sorted; i++)
        sorted = marks[i - 1].combining <= marks[i].combining;
    if (sorted)
        return;
    size_t start[257] = {0};
    for (size_t i = 0; i < count; i++)
        start[marks[i].combining + 1]++;
    for (int i = 0; i < 256; i++)
        start[i + 1] += start[i];
    scratch->count = 0;
    QR_VEC_RESERVE(scratch, count);
    for (size_t i = 0; i < count; i++)
        scratch->data[start[marks[i].combining]++] = marks[i];
    memcpy(marks, scratch->data, count * sizeof(*marks));
}

static void reorder(mark_vec *text)
{
    mark_vec scratch = {0};
    for (size_t i = 0; i < text->count;) {
        if (text->data[i].combining == 0) {
            i++;
            continue;
        }
        size_t end = i + 1;
        while (end < text->count && text->data[end].combining != 0)
            end++;
        if (end - i > 1)
            sort_marks(text->data + i, end - i, &scratch);
        i = end;
    }
    QR_VEC_RELEASE(&scratch);
}

static uint32_t compose_pair(uint32_t a, uint32_t b)
{
    if (a >= HANGUL_L && a < HANGUL_L + HANGUL_L_COUNT && b >= HANGUL_V && b < HANGUL_V + HANGUL_V_COUNT)
        return HANGUL_S + ((a - HANGUL_L) * HANGUL_V_COUNT + (b - HANGUL_V)) * HANGUL_T_COUNT;
    if (a >= HANGUL_S && a < HANGUL_S + HANGUL_S_COUNT && (a - HANGUL_S) % HANGUL_T_COUNT == 0 &&
        b > HANGUL_T && b < HANGUL_T + HANGUL_T_COUNT)
        return a + (b - HANGUL_T);
    uint32_t low = 0, high = qr_unicode_composition_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        const qr_unicode_composition *item = &qr_unicode_compositions[middle];
        if (item->first < a || (item->first == a && item->second < b))
            low = middle + 1;
        else
            high = middle;
    }
    if (low == qr_unicode_composition_count || qr_unicode_compositions[low].first != a ||
        qr_unicode_compositions[low].second != b)
        return 0;
    return qr_unicode_compositions[low].composed;
}

/* Canonical composition in place. */
static void compose(mark_vec *text)
{
    size_t out = 0, starter = SIZE_MAX;
    int last = -1; /* class of the last character kept after the starter; -1: none */
    for (size_t i = 0; i < text->count; i++) {
        mark item = text->data[i];
        if (starter != SIZE_MAX && (last < (int)item.combining || last == -1)) {
            uint32_t composed = compose_pair(text->data[starter].codepoint, item.codepoint);
            if (composed != 0) {
                text->data[starter].codepoint = composed;
                continue;
            }
        }
        if (item.combining == 0) {
            starter = out;
            last = -1;
        } else {
            last = item.combining;
        }
        text->data[out++] = item;
    }
    text->count = out;
}

/* Nothing below U+0300 and no ASCII boundary needs work in NFC; other forms only copy ASCII. */
static size_t quick_prefix(qr_str text, qr_unicode_form form)
{
    const uint8_t *bytes = (const uint8_t *)text.data;
    uint8_t limit = form == QR_FORM_NFC ? 0xCC : 0x80; /* CC 80 is U+0300 */
    size_t i = 0;
    while (i < text.len && bytes[i] < limit)
        i++;
    if (i == text.len)
        return i;
    /* The last character before may combine with what follows. */
    return i > 0 ? qr_unicode_before(bytes, i) : 0;
}

/* First offset after `from` where a plain ASCII character is followed by another: safe to cut before it. */
static size_t stretch_end(qr_str text, size_t from)
{
    const uint8_t *bytes = (const uint8_t *)text.data;
    for (size_t i = from + 1; i + 1 < text.len; i++)
        if (bytes[i] < 0x80 && bytes[i + 1] < 0x80)
            return i;
    return text.len;
}

void qr_unicode_normalize(qr_str text, qr_unicode_form form, qr_buf *out)
{
    bool compatible = form == QR_FORM_NFKC || form == QR_FORM_NFKD;
    mark_vec marks = {0};
    while (text.len > 0) {
        size_t quick = quick_prefix(text, form);
        qr_buf_append(out, text.data, quick);
        text = qr_str_make(text.data + quick, text.len - quick);
        if (text.len == 0)
            break;
        size_t end = stretch_end(text, 0);
        marks.count = 0;
        for (size_t i = 0; i < end;) {
            uint32_t c;
            i += qr_unicode_next((const uint8_t *)text.data + i, &c);
            decompose(&marks, c, compatible);
        }
        reorder(&marks);
        if (form == QR_FORM_NFC || form == QR_FORM_NFKC)
            compose(&marks);
        for (size_t i = 0; i < marks.count; i++)
            append_codepoint(out, marks.data[i].codepoint);
        text = qr_str_make(text.data + end, text.len - end);
    }
    QR_VEC_RELEASE(&marks);
}

void qr_unicode_lowercase(qr_str text, qr_buf *out)
{
    const uint8_t *bytes = (const uint8_t *)text.data;
    qr_buf_reserve(out, text.len);
    for (size_t i = 0; i < text.len;) {
        if (bytes[i] < 0x80) {
            qr_buf_append_char(out, (char)(bytes[i] >= 'A' && bytes[i] <= 'Z' ? bytes[i] + 32 : bytes[i]));
            i++;
            continue;
        }
        uint32_t c;
        size_t len = qr_unicode_next(bytes + i, &c);
        const qr_unicode_mapping *mapping = qr_unicode_map(qr_unicode_lower, qr_unicode_lower_count, c);
        if (mapping == NULL)
            qr_buf_append(out, bytes + i, len);
        for (uint32_t k = 0; mapping != NULL && k < mapping->count; k++)
            append_codepoint(out, qr_unicode_lower_pool[mapping->offset + k]);
        i += len;
    }
}

/* Rules GB3-GB9b and GB999 between two neighbours; GB11 to GB13 need what came before. */
static bool breaks_between(int a, int b)
{
    if (a == QR_GCB_CR && b == QR_GCB_LF)
        return false;
    if (a == QR_GCB_CR || a == QR_GCB_LF || a == QR_GCB_CONTROL)
        return true;
    if (b == QR_GCB_CR || b == QR_GCB_LF || b == QR_GCB_CONTROL)
        return true;
    if (a == QR_GCB_L && (b == QR_GCB_L || b == QR_GCB_V || b == QR_GCB_LV || b == QR_GCB_LVT))
        return false;
    if ((a == QR_GCB_LV || a == QR_GCB_V) && (b == QR_GCB_V || b == QR_GCB_T))
        return false;
    if ((a == QR_GCB_LVT || a == QR_GCB_T) && b == QR_GCB_T)
        return false;
    if (b == QR_GCB_EXTEND || b == QR_GCB_ZWJ || b == QR_GCB_SPACING || a == QR_GCB_PREPEND)
        return false;
    return true;
}

size_t qr_unicode_grapheme(const uint8_t *text, size_t len)
{
    uint32_t c;
    size_t end = qr_unicode_next(text, &c);
    int before = qr_unicode_of(c)->grapheme_break;
    bool pictographic = before == QR_GCB_PICTOGRAPHIC, joined = false;
    bool regional_pair = false;
    while (end < len) {
        size_t next = qr_unicode_next(text + end, &c);
        int after = qr_unicode_of(c)->grapheme_break;
        bool cut = breaks_between(before, after);
        if (cut && before == QR_GCB_ZWJ && after == QR_GCB_PICTOGRAPHIC && joined)
            cut = false;
        if (cut && before == QR_GCB_REGIONAL && after == QR_GCB_REGIONAL && !regional_pair) {
            cut = false;
            regional_pair = true;
        }
        if (cut)
            break;
        joined = pictographic && after == QR_GCB_ZWJ;
        pictographic = after == QR_GCB_PICTOGRAPHIC || (pictographic && after == QR_GCB_EXTEND);
        before = after;
        end += next;
    }
    return end;
}
