/* A typed growing array on the heap: `QR_VEC(int) ids = {0}; QR_VEC_PUSH(&ids, 7); QR_VEC_RELEASE(&ids);`
 * Thread: none shared. */
#ifndef QR_BASE_VEC_H
#define QR_BASE_VEC_H

#include "base/mem.h"

#define QR_VEC(type)     \
    struct {             \
        type *data;      \
        size_t count;    \
        size_t capacity; \
    }

#define QR_VEC_RESERVE(vec, wanted)                                                        \
    do {                                                                                   \
        size_t wanted_ = (wanted);                                                         \
        if (wanted_ > (vec)->capacity) {                                                   \
            size_t grown_ = (vec)->capacity + (vec)->capacity / 2 + 8;                     \
            (vec)->capacity = wanted_ > grown_ ? wanted_ : grown_;                         \
            (vec)->data = qr_realloc((vec)->data, (vec)->capacity * sizeof(*(vec)->data)); \
        }                                                                                  \
    } while (0)

#define QR_VEC_PUSH(vec, item)                   \
    do {                                         \
        QR_VEC_RESERVE((vec), (vec)->count + 1); \
        (vec)->data[(vec)->count++] = (item);    \
    } while (0)

#define QR_VEC_RELEASE(vec)                 \
    do {                                    \
        qr_free((vec)->data);               \
        (vec)->data = NULL;                 \
        (vec)->count = (vec)->capacity = 0; \
    } while (0)

#endif
