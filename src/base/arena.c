#include "base/arena.h"

#include <stdint.h>
#include <string.h>

#include "base/assert.h"
#include "base/mem.h"

enum { ARENA_ALIGN = 64 };

struct qr_arena_chunk {
    qr_arena_chunk *next;
    char *base;      /* first aligned byte */
    size_t capacity; /* bytes from base */
    size_t used;
};

void qr_arena_init(qr_arena *arena, size_t chunk_bytes)
{
    QR_ASSERT(chunk_bytes > 0);
    *arena = (qr_arena){.chunk_bytes = QR_ROUND_UP(chunk_bytes, (size_t)ARENA_ALIGN)};
}

void qr_arena_release(qr_arena *arena)
{
    for (qr_arena_chunk *chunk = arena->first, *next; chunk != NULL; chunk = next) {
        next = chunk->next;
        qr_free(chunk);
    }
    arena->first = arena->current = NULL;
}

void qr_arena_reset(qr_arena *arena)
{
    for (qr_arena_chunk *chunk = arena->first; chunk != NULL; chunk = chunk->next)
        chunk->used = 0;
    arena->current = arena->first;
}

static qr_arena_chunk *chunk_new(size_t capacity)
{
    size_t bytes = 0;
    QR_ASSERT(qr_size_add(capacity, sizeof(qr_arena_chunk) + ARENA_ALIGN, &bytes));
    qr_arena_chunk *chunk = qr_alloc(bytes);
    uintptr_t base = QR_ROUND_UP((uintptr_t)(chunk + 1), (uintptr_t)ARENA_ALIGN);
    *chunk = (qr_arena_chunk){.base = (char *)base, .capacity = capacity};
    return chunk;
}

/* The next chunk that has room; a chunk too small for this request is passed over until the next reset.
 * A new chunk goes after the current one, so that a later, smaller request still finds the rest. */
static qr_arena_chunk *chunk_with_room(qr_arena *arena, size_t bytes)
{
    qr_arena_chunk *chunk = arena->current;
    while (chunk != NULL && chunk->next != NULL) {
        chunk = chunk->next;
        if (chunk->capacity - chunk->used >= bytes)
            return chunk;
    }
    qr_arena_chunk *fresh = chunk_new(QR_MAX(bytes, arena->chunk_bytes));
    if (chunk == NULL)
        arena->first = fresh;
    else
        chunk->next = fresh;
    return fresh;
}

void *qr_arena_alloc(qr_arena *arena, size_t bytes)
{
    QR_ASSERT(bytes <= SIZE_MAX / 2);
    bytes = QR_ROUND_UP(QR_MAX(bytes, (size_t)1), (size_t)ARENA_ALIGN);
    qr_arena_chunk *chunk = arena->current;
    if (chunk == NULL || chunk->capacity - chunk->used < bytes)
        arena->current = chunk = chunk_with_room(arena, bytes);
    void *memory = chunk->base + chunk->used;
    chunk->used += bytes;
    return memory;
}

void *qr_arena_calloc(qr_arena *arena, size_t count, size_t item_bytes)
{
    size_t bytes = 0;
    QR_ASSERT(qr_size_mul(count, item_bytes, &bytes));
    return memset(qr_arena_alloc(arena, bytes), 0, bytes);
}

char *qr_arena_strndup(qr_arena *arena, const char *text, size_t len)
{
    QR_ASSERT(len < SIZE_MAX / 2);
    char *copy = qr_arena_alloc(arena, len + 1);
    if (len > 0)
        memcpy(copy, text, len);
    copy[len] = '\0';
    return copy;
}
