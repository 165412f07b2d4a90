#include "base/map.h"

#include "base/assert.h"
#include "base/hash.h"
#include "base/mem.h"

/* Linear probing at a load of at most 2/3. Removal shifts back what follows, so there are no tombstones
 * and a map that never exceeds its expected size never touches the heap again. */

static size_t capacity_for(size_t expected)
{
    QR_ASSERT(expected < SIZE_MAX / 64);
    size_t capacity = 16;
    while (capacity / 3 * 2 <= expected)
        capacity *= 2;
    return capacity;
}

static bool too_full(size_t count, size_t capacity) { return count + 1 > capacity / 3 * 2; }

/* ---- bytes -> uint32 ------------------------------------------------------------------------------- */

struct qr_str_map_slot {
    const char *data; /* NULL: empty */
    size_t len;
    uint32_t hash; /* spares most comparisons */
    uint32_t value;
};

void qr_str_map_init(qr_str_map *map, size_t expected)
{
    *map = (qr_str_map){.capacity = capacity_for(expected)};
    map->slots = qr_calloc(map->capacity, sizeof(map->slots[0]));
}

void qr_str_map_release(qr_str_map *map)
{
    qr_free(map->slots);
    *map = (qr_str_map){0};
}

/* The slot that holds key, or the empty one where it belongs. */
static struct qr_str_map_slot *str_slot(const qr_str_map *map, qr_str key, uint64_t hash)
{
    size_t mask = map->capacity - 1;
    for (size_t at = (size_t)hash & mask;; at = (at + 1) & mask) {
        struct qr_str_map_slot *slot = &map->slots[at];
        if (slot->data == NULL)
            return slot;
        if (slot->hash == (uint32_t)(hash >> 32) && qr_str_equal(qr_str_make(slot->data, slot->len), key))
            return slot;
    }
}

static void str_grow(qr_str_map *map)
{
    qr_str_map bigger;
    qr_str_map_init(&bigger, map->capacity);
    for (size_t i = 0; i < map->capacity; i++) {
        const struct qr_str_map_slot *slot = &map->slots[i];
        if (slot->data != NULL)
            *str_slot(&bigger, qr_str_make(slot->data, slot->len), qr_hash64(slot->data, slot->len, 0)) =
                *slot;
    }
    bigger.count = map->count;
    qr_str_map_release(map);
    *map = bigger;
}

static bool str_put(qr_str_map *map, qr_str key, uint32_t value, bool replace)
{
    if (map->slots == NULL)
        qr_str_map_init(map, 0);
    if (too_full(map->count, map->capacity))
        str_grow(map);
    uint64_t hash = qr_hash64(key.data, key.len, 0);
    struct qr_str_map_slot *slot = str_slot(map, key, hash);
    if (slot->data != NULL) {
        if (replace)
            slot->value = value;
        return false;
    }
    *slot =
        (struct qr_str_map_slot){key.data != NULL ? key.data : "", key.len, (uint32_t)(hash >> 32), value};
    map->count++;
    return true;
}

bool qr_str_map_add(qr_str_map *map, qr_str key, uint32_t value) { return str_put(map, key, value, false); }
void qr_str_map_set(qr_str_map *map, qr_str key, uint32_t value) { str_put(map, key, value, true); }

bool qr_str_map_get(const qr_str_map *map, qr_str key, uint32_t *value)
{
    if (map->count == 0)
        return false;
    const struct qr_str_map_slot *slot = str_slot(map, key, qr_hash64(key.data, key.len, 0));
    if (slot->data == NULL)
        return false;
    *value = slot->value;
    return true;
}

/* ---- uint64 -> uint64 ------------------------------------------------------------------------------ */

struct qr_u64_map_slot {
    uint64_t key, value;
    bool full;
};

void qr_u64_map_init(qr_u64_map *map, size_t expected)
{
    *map = (qr_u64_map){.capacity = capacity_for(expected)};
    map->slots = qr_calloc(map->capacity, sizeof(map->slots[0]));
}

void qr_u64_map_release(qr_u64_map *map)
{
    qr_free(map->slots);
    *map = (qr_u64_map){0};
}

static size_t u64_home(const qr_u64_map *map, uint64_t key)
{
    return (size_t)qr_hash_mix(key) & (map->capacity - 1);
}

static size_t u64_index(const qr_u64_map *map, uint64_t key)
{
    size_t at = u64_home(map, key);
    while (map->slots[at].full && map->slots[at].key != key)
        at = (at + 1) & (map->capacity - 1);
    return at;
}

static void u64_grow(qr_u64_map *map)
{
    qr_u64_map bigger;
    qr_u64_map_init(&bigger, map->capacity);
    for (size_t i = 0; i < map->capacity; i++)
        if (map->slots[i].full)
            bigger.slots[u64_index(&bigger, map->slots[i].key)] = map->slots[i];
    bigger.count = map->count;
    qr_u64_map_release(map);
    *map = bigger;
}

void qr_u64_map_set(qr_u64_map *map, uint64_t key, uint64_t value)
{
    if (map->slots == NULL)
        qr_u64_map_init(map, 0);
    if (too_full(map->count, map->capacity))
        u64_grow(map);
    struct qr_u64_map_slot *slot = &map->slots[u64_index(map, key)];
    map->count += !slot->full;
    *slot = (struct qr_u64_map_slot){key, value, true};
}

bool qr_u64_map_get(const qr_u64_map *map, uint64_t key, uint64_t *value)
{
    if (map->count == 0)
        return false;
    const struct qr_u64_map_slot *slot = &map->slots[u64_index(map, key)];
    if (slot->full)
        *value = slot->value;
    return slot->full;
}

bool qr_u64_map_remove(qr_u64_map *map, uint64_t key)
{
    if (map->count == 0)
        return false;
    size_t mask = map->capacity - 1;
    size_t hole = u64_index(map, key);
    if (!map->slots[hole].full)
        return false;
    /* Move up every later item of the run whose home does not lie between the hole and itself. */
    for (size_t at = (hole + 1) & mask; map->slots[at].full; at = (at + 1) & mask) {
        size_t home = u64_home(map, map->slots[at].key);
        if (((at - home) & mask) >= ((at - hole) & mask)) {
            map->slots[hole] = map->slots[at];
            hole = at;
        }
    }
    map->slots[hole].full = false;
    map->count--;
    return true;
}
