/* A pull scanner over JSON text in memory, for files too large for a tree (an 8 MB tokenizer.json, a
 * safetensors header). It checks syntax as it goes, allocates nothing (but for numbers of 128 characters)
 * and keeps no tree; strings come as raw slices and are unescaped on request. Depth is bounded. Thread: one
 * owner.
 *
 *     qr_json_scan scan;
 *     qr_json_scan_init(&scan, text);
 *     if (!qr_json_scan_object(&scan)) ...        // '{'
 *     while (qr_json_scan_key(&scan, &key)) {     // false at '}' or error
 *         if (qr_str_equals(key, "vocab")) ... else qr_json_scan_skip(&scan);
 *     }
 *     if (scan.failed) ... scan.message, scan.position
 */
#ifndef QR_BASE_JSON_SCAN_H
#define QR_BASE_JSON_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/str.h"

#define QR_JSON_SCAN_DEPTH_MAX 64

typedef struct qr_json_scan {
    qr_str text;
    size_t position;
    bool failed;         /* once set, every call returns false */
    const char *message; /* constant text */
    int depth;
    uint8_t state[QR_JSON_SCAN_DEPTH_MAX]; /* per level: object or array, first item or not */
} qr_json_scan;

void qr_json_scan_init(qr_json_scan *scan, qr_str text);

/* The next value's first byte class without consuming it: '{' '[' '"' '0' (number) 't' 'f' 'n', 0 on end. */
char qr_json_scan_peek(qr_json_scan *scan);
bool qr_json_scan_object(qr_json_scan *scan);               /* enters */
bool qr_json_scan_key(qr_json_scan *scan, qr_str *raw_key); /* next key, or leaves at '}' and returns false */
bool qr_json_scan_array(qr_json_scan *scan);                /* enters */
bool qr_json_scan_item(qr_json_scan *scan);                 /* next item is there, or leaves at ']' */
/* The raw slice between the quotes; *escaped tells whether qr_json_scan_unescape is needed. */
bool qr_json_scan_string(qr_json_scan *scan, qr_str *raw, bool *escaped);
bool qr_json_scan_int(qr_json_scan *scan, int64_t *value); /* fails on fractions and overflow */
bool qr_json_scan_number(qr_json_scan *scan, double *value);
bool qr_json_scan_bool(qr_json_scan *scan, bool *value);
bool qr_json_scan_null(qr_json_scan *scan);
bool qr_json_scan_skip(qr_json_scan *scan); /* any value */
/* The raw text of the next value, skipped: for handing a small part to qr_json_parse. */
bool qr_json_scan_raw(qr_json_scan *scan, qr_str *raw);
bool qr_json_scan_end(qr_json_scan *scan); /* only white space is left */

/* Appends the unescaped string; lone surrogates become U+FFFD. */
void qr_json_scan_unescape(qr_str raw, qr_buf *out);
/* Fills err with "path: line L, column C: message"; returns QR_INVALID_ARGUMENT. */
qr_status qr_json_scan_error(const qr_json_scan *scan, const char *path, qr_error *err);

#endif
