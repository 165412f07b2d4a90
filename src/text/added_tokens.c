/* Added tokens: found in text before anything else is done to it. The search is leftmost, then longest; tokens
 * marked `normalized` are looked for a second time in normalized text, spelled as the normalizer leaves them.
 */
#include <stdlib.h>

#include "text/tokenizer_impl.h"

static int compare_spellings(const void *a, const void *b)
{
    const qr_added_spelling *x = a, *y = b;
    int order = memcmp(x->text, y->text, QR_MIN(x->len, y->len));
    if (order != 0)
        return order;
    if (x->len != y->len)
        return x->len < y->len ? -1 : 1;
    return x->token < y->token ? -1 : x->token > y->token;
}

static void index_set(qr_added_set *set)
{
    if (set->spellings.count > 0)
        qsort(set->spellings.data, set->spellings.count, sizeof(qr_added_spelling), compare_spellings);
    size_t at = 0;
    set->first_byte_count = 0;
    for (unsigned byte = 0; byte < 256; byte++) {
        set->first_begin[byte] = (uint32_t)at;
        size_t begin = at;
        while (at < set->spellings.count && (uint8_t)set->spellings.data[at].text[0] == byte)
            at++;
        if (at > begin) {
            set->first_byte_count++;
            set->first_byte = (uint8_t)byte;
        }
    }
    set->first_begin[256] = (uint32_t)at;
}

static void add_spelling(qr_added_set *set, const char *text, size_t len, uint32_t token)
{
    qr_added_spelling item = {text, (uint32_t)len, token};
    if (len > 0)
        QR_VEC_PUSH(&set->spellings, item);
}

/* Longest first; a counting sort by length keeps it stable without a context for qsort. */
static void order_specials(qr_tokenizer *tokenizer)
{
    size_t longest = 0;
    tokenizer->special_order.count = 0;
    for (size_t i = 0; i < tokenizer->added.count; i++)
        if (tokenizer->added.data[i].special)
            longest =
                QR_MAX(longest, qr_token_table_text(&tokenizer->spelled, tokenizer->added.data[i].id).len);
    size_t *start = qr_calloc(longest + 2, sizeof(*start)), count = 0;
    for (size_t i = 0; i < tokenizer->added.count; i++)
        if (tokenizer->added.data[i].special) {
            start[longest - qr_token_table_text(&tokenizer->spelled, tokenizer->added.data[i].id).len + 1]++;
            count++;
        }
    for (size_t i = 0; i <= longest; i++)
        start[i + 1] += start[i];
    QR_VEC_RESERVE(&tokenizer->special_order, count);
    for (size_t i = 0; i < tokenizer->added.count; i++) {
        int32_t id = tokenizer->added.data[i].id;
        if (tokenizer->added.data[i].special)
            tokenizer->special_order
                .data[start[longest - qr_token_table_text(&tokenizer->spelled, id).len]++] = id;
    }
    tokenizer->special_order.count = count;
    qr_free(start);
}

void qr_added_build(qr_tokenizer *tokenizer)
{
    QR_VEC(size_t) offsets = {0};
    qr_buf *normalized = &tokenizer->added_normalized;
    tokenizer->plain_set.spellings.count = tokenizer->normalized_set.spellings.count = 0;
    qr_buf_clear(normalized);
    qr_encoder *encoder = qr_encoder_new(tokenizer);
    for (size_t i = 0; i < tokenizer->added.count; i++) {
        qr_str text = qr_token_table_text(&tokenizer->spelled, tokenizer->added.data[i].id);
        QR_VEC_PUSH(&offsets, normalized->len);
        if (tokenizer->added.data[i].normalized)
            qr_normalize(tokenizer, encoder, text, false, normalized, NULL);
        else
            add_spelling(&tokenizer->plain_set, text.data, text.len, (uint32_t)i);
    }
    QR_VEC_PUSH(&offsets, normalized->len);
    for (size_t i = 0; i < tokenizer->added.count; i++)
        if (tokenizer->added.data[i].normalized)
            add_spelling(&tokenizer->normalized_set, normalized->data + offsets.data[i],
                         offsets.data[i + 1] - offsets.data[i], (uint32_t)i);
    QR_VEC_RELEASE(&offsets);
    qr_encoder_free(encoder);
    order_specials(tokenizer);
    index_set(&tokenizer->plain_set);
    index_set(&tokenizer->normalized_set);
}

void qr_added_release(qr_tokenizer *tokenizer)
{
    QR_VEC_RELEASE(&tokenizer->added);
    QR_VEC_RELEASE(&tokenizer->special_order);
    QR_VEC_RELEASE(&tokenizer->plain_set.spellings);
    QR_VEC_RELEASE(&tokenizer->normalized_set.spellings);
    qr_buf_release(&tokenizer->added_normalized);
}

/* First spelling in [low, high) whose byte at `depth` is >= byte; spellings that end before come first. */
static size_t lower_bound(const qr_added_spelling *items, size_t low, size_t high, size_t depth,
                          unsigned byte)
{
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (items[middle].len <= depth || (uint8_t)items[middle].text[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest spelling that text begins with at `at`, or NULL: the range of candidates narrows byte by byte. */
static const qr_added_spelling *longest_at(const qr_added_set *set, qr_str text, size_t at)
{
    const qr_added_spelling *items = set->spellings.data, *found = NULL;
    unsigned first = (uint8_t)text.data[at];
    size_t low = set->first_begin[first], high = set->first_begin[first + 1];
    for (size_t depth = 1; low < high; depth++) {
        if (items[low].len == depth) {
            found = &items[low]; /* of equal ones the first added counts */
            while (low < high && items[low].len == depth)
                low++;
        }
        if (low == high || at + depth >= text.len)
            break;
        unsigned byte = (uint8_t)text.data[at + depth];
        low = lower_bound(items, low, high, depth, byte);
        high = lower_bound(items, low, high, depth, byte + 1);
    }
    return found;
}

static bool is_word_at(qr_str text, size_t at)
{
    uint32_t c;
    qr_unicode_next((const uint8_t *)text.data + at, &c);
    return qr_unicode_is(c, QR_UC_RUST_WORD);
}

static size_t spaces_before(qr_str text, size_t end)
{
    while (end > 0) {
        size_t at = qr_unicode_before((const uint8_t *)text.data, end);
        uint32_t c;
        qr_unicode_next((const uint8_t *)text.data + at, &c);
        if (!qr_unicode_is(c, QR_UC_WHITESPACE))
            break;
        end = at;
    }
    return end;
}

static size_t spaces_after(qr_str text, size_t at)
{
    while (at < text.len) {
        uint32_t c;
        size_t len = qr_unicode_next((const uint8_t *)text.data + at, &c);
        if (!qr_unicode_is(c, QR_UC_WHITESPACE))
            break;
        at += len;
    }
    return at;
}

/* The next place at or after `at` where some spelling could begin. */
static size_t next_candidate(const qr_added_set *set, qr_str text, size_t at)
{
    if (set->first_byte_count == 1) {
        const char *found = memchr(text.data + at, set->first_byte, text.len - at);
        return found != NULL ? (size_t)(found - text.data) : text.len;
    }
    while (at < text.len &&
           set->first_begin[(uint8_t)text.data[at]] == set->first_begin[(uint8_t)text.data[at] + 1])
        at++;
    return at;
}

bool qr_added_next(const qr_tokenizer *tokenizer, const qr_added_set *set, qr_str text, bool parse_special,
                   size_t *search, size_t floor, qr_added_match *match)
{
    if (set->spellings.count == 0)
        return false;
    size_t at = *search;
    while ((at = at < text.len ? next_candidate(set, text, at) : text.len) < text.len) {
        const qr_added_spelling *spelling = longest_at(set, text, at);
        if (spelling == NULL) {
            at++;
            continue;
        }
        const qr_added_token *token = &tokenizer->added.data[spelling->token];
        size_t begin = at, end = at + spelling->len;
        at = end;
        if (token->special && !parse_special)
            continue;
        if (token->single_word &&
            ((begin > 0 && is_word_at(text, qr_unicode_before((const uint8_t *)text.data, begin))) ||
             (end < text.len && is_word_at(text, end))))
            continue;
        if (token->lstrip)
            begin = QR_MAX(spaces_before(text, begin), floor);
        if (token->rstrip)
            end = spaces_after(text, end);
        *search = at;
        *match = (qr_added_match){begin, end, token->id};
        return true;
    }
    *search = text.len;
    return false;
}
