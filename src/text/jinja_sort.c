/* A stable merge sort of values by keys, bottom-up. */
#include <string.h>

#include "base/mem.h"
#include "text/jinja_run.h"

typedef struct sort_rows {
    qr_jv *keys, *items;
} sort_rows;

/* Python sorts a reversed list the other way round and keeps equal items in order: so does "b before a only when
 * it must". */
static bool takes_right(qr_jrun *run, qr_jv left, qr_jv right, bool reverse)
{
    int order = 0;
    if (!qr_jv_compare(run, right, left, "<", &order))
        return false;
    return reverse ? order > 0 : order < 0;
}

static bool merge(qr_jrun *run, const sort_rows *from, const sort_rows *to, uint32_t low, uint32_t middle,
                  uint32_t high, bool reverse)
{
    uint32_t left = low, right = middle;
    for (uint32_t i = low; i < high; i++) {
        bool use_right = left >= middle ||
                         (right < high && takes_right(run, from->keys[left], from->keys[right], reverse));
        uint32_t at = use_right ? right++ : left++;
        to->keys[i] = from->keys[at];
        to->items[i] = from->items[at];
    }
    return qr_jinja_charge(run, high - low);
}

bool qr_jinja_sort(qr_jrun *run, qr_jv *keys, qr_jv *items, uint32_t count, bool reverse)
{
    size_t bytes = ((size_t)count + 1) * sizeof(qr_jv);
    sort_rows a = {keys, items}, b = {qr_jinja_alloc(run, bytes), qr_jinja_alloc(run, bytes)};
    if (b.keys == NULL || b.items == NULL)
        return false;
    for (uint64_t width = 1; width < count; width *= 2) {
        for (uint64_t low = 0; low < count; low += 2 * width) {
            uint32_t middle = (uint32_t)QR_MIN(low + width, (uint64_t)count);
            uint32_t high = (uint32_t)QR_MIN(low + 2 * width, (uint64_t)count);
            if (!merge(run, &a, &b, (uint32_t)low, middle, high, reverse))
                return false;
        }
        sort_rows swap = a;
        a = b;
        b = swap;
    }
    if (a.keys != keys && count > 0) {
        memcpy(keys, a.keys, count * sizeof(qr_jv));
        memcpy(items, a.items, count * sizeof(qr_jv));
    }
    return !qr_jinja_failed(run);
}
