/* Hash maps with open addressing: bytes -> uint32, and uint64 -> uint64. Keys of a qr_str_map are
 * borrowed: the caller keeps the bytes alive. A map that never holds more than `expected` items takes no
 * memory after init. Thread: read-only sharing is safe. */
#ifndef QR_BASE_MAP_H
#define QR_BASE_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/str.h"

typedef struct qr_str_map {
    struct qr_str_map_slot *slots; /* capacity is a power of two */
    size_t capacity;
    size_t count;
} qr_str_map;

void qr_str_map_init(qr_str_map *map, size_t expected);
void qr_str_map_release(qr_str_map *map);
/* Sets key -> value; returns false (and changes nothing) when the key is there already. */
bool qr_str_map_add(qr_str_map *map, qr_str key, uint32_t value);
void qr_str_map_set(qr_str_map *map, qr_str key, uint32_t value);
bool qr_str_map_get(const qr_str_map *map, qr_str key, uint32_t *value);

typedef struct qr_u64_map {
    struct qr_u64_map_slot *slots;
    size_t capacity;
    size_t count;
} qr_u64_map;

void qr_u64_map_init(qr_u64_map *map, size_t expected);
void qr_u64_map_release(qr_u64_map *map);
void qr_u64_map_set(qr_u64_map *map, uint64_t key, uint64_t value);
bool qr_u64_map_get(const qr_u64_map *map, uint64_t key, uint64_t *value);
bool qr_u64_map_remove(qr_u64_map *map, uint64_t key);

#endif
