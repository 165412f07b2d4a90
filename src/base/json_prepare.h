/* What a JSON text will cost, counted before a byte of memory is taken, and repairs that keep its length:
 * private to json.c and its test. Thread: any. */
#ifndef QR_BASE_JSON_PREPARE_H
#define QR_BASE_JSON_PREPARE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/str.h"

typedef struct qr_json_census {
    size_t depth;      /* deepest nesting of brackets */
    size_t values;     /* never less than there are (an empty container counts one too many) */
    bool needs_repair; /* see qr_json_repair */
} qr_json_census;

qr_json_census qr_json_take_census(qr_str text);

/* In place: an escaped half of a surrogate pair becomes \ufffd, and an integer beyond 64 bits (Hugging
 * Face writes model_max_length as 10^30) becomes a real of as many characters. */
void qr_json_repair(char *text, size_t len);

#endif
