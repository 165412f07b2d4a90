/* Arena: memory that is given back all at once. Four lifetimes use it: process, model, request, step.
 *
 * Chunks are kept by qr_arena_reset, so a step arena stops touching the heap once it has seen its
 * largest step. Thread: one owner at a time.
 */
#ifndef QR_BASE_ARENA_H
#define QR_BASE_ARENA_H

#include <stddef.h>

typedef struct qr_arena_chunk qr_arena_chunk;
typedef struct qr_arena {
    qr_arena_chunk *first;   /* all chunks, in order of allocation */
    qr_arena_chunk *current; /* the one that serves allocations */
    size_t chunk_bytes;      /* size of a new chunk; larger requests get a chunk of their own */
} qr_arena;

void qr_arena_init(qr_arena *arena, size_t chunk_bytes);
void qr_arena_release(qr_arena *arena);
void qr_arena_reset(qr_arena *arena); /* forgets everything, keeps the chunks */

void *qr_arena_alloc(qr_arena *arena, size_t bytes);                     /* 64-byte aligned, uninitialised */
void *qr_arena_calloc(qr_arena *arena, size_t count, size_t item_bytes); /* zeroed; aborts on overflow */
char *qr_arena_strndup(qr_arena *arena, const char *text, size_t len);

#define QR_ARENA_NEW(arena, type)          ((type *)qr_arena_calloc((arena), 1, sizeof(type)))
#define QR_ARENA_ARRAY(arena, type, count) ((type *)qr_arena_calloc((arena), (count), sizeof(type)))

#endif
