/* Heap memory and checked size arithmetic.
 *
 * Small allocations (structs, names, tables whose size was bounded before) use qr_alloc and friends:
 * they abort with a message when the system has nothing left. Large ones whose size comes from a model
 * or an option (weights, KV, rings) use qr_pages_map, which returns NULL so that the caller can refuse
 * with numbers. Thread: any.
 */
#ifndef QR_BASE_MEM_H
#define QR_BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void *qr_alloc(size_t bytes);                     /* uninitialised; bytes 0 gives a unique pointer */
void *qr_calloc(size_t count, size_t item_bytes); /* zeroed; aborts when the product overflows */
void *qr_realloc(void *old, size_t bytes);
char *qr_strdup(const char *text);
char *qr_strndup(const char *text, size_t len); /* NUL-terminated copy */
void qr_free(void *memory);                     /* NULL is allowed */

/* Calls to qr_alloc, qr_calloc, qr_realloc by this thread so far: the "engine steps take no heap
 * memory" test compares it around steps. */
uint64_t qr_alloc_count(void);

/* Zeroed anonymous pages; asks for 2 MB pages (MADV_HUGEPAGE) when `huge`. NULL when the system refuses. */
void *qr_pages_map(size_t bytes, bool huge);
/* The same with huge pages where they fit, for tables that were bounded before: aborts like qr_alloc. */
void *qr_pages_zeroed(size_t bytes);
void qr_pages_unmap(void *pages, size_t bytes);

/* true and *out set when the result fits; false on overflow. */
static inline bool qr_size_mul(size_t a, size_t b, size_t *out) { return !__builtin_mul_overflow(a, b, out); }
static inline bool qr_size_add(size_t a, size_t b, size_t *out) { return !__builtin_add_overflow(a, b, out); }

#define QR_COUNT_OF(array)       (sizeof(array) / sizeof((array)[0]))
#define QR_ROUND_UP(value, step) (((value) + (step)-1) / (step) * (step))
#define QR_MIN(a, b)             ((a) < (b) ? (a) : (b))
#define QR_MAX(a, b)             ((a) > (b) ? (a) : (b))

#endif
