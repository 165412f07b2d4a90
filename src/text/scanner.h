/* The common pre-tokenizer patterns by hand: character by character (scanner.c), and 64 bytes of ASCII at a time
 * (scanner_block.c). Text is valid UTF-8. Thread: any. */
#ifndef QR_TEXT_SCANNER_H
#define QR_TEXT_SCANNER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"

typedef enum qr_scanner_kind {
    QR_SCAN_NONE,
    QR_SCAN_GPT2,
    QR_SCAN_SMOLLM,
    QR_SCAN_CL100K_1,
    QR_SCAN_CL100K_3,
    QR_SCAN_O200K,
    QR_SCAN_NEMO,
    QR_SCAN_DEEPSEEK3,
    QR_SCAN_COUNT
} qr_scanner_kind;

enum { QR_SCANNER_BATCH_MIN = 64 };

/* QR_SCAN_DEEPSEEK3 is these three, one on the pieces of the other. */
enum { QR_DEEPSEEK3_STEPS = 3 };
extern const char *const qr_deepseek3_expressions[QR_DEEPSEEK3_STEPS];

/* Which scanner does what this expression says, or QR_SCAN_NONE. */
qr_scanner_kind qr_scanner_of(qr_str expression);
/* The expression of a scanner, for tests and for GGUF files. */
const char *qr_scanner_expression(qr_scanner_kind kind);
/* End of the match at `from` (< len); every position has one. */
size_t qr_scanner_next(qr_scanner_kind kind, const uint8_t *text, size_t from, size_t len);
/* The ends of up to `most` (>= QR_SCANNER_BATCH_MIN) matches in a row from `from` on; returns how many. */
size_t qr_scanner_batch(qr_scanner_kind kind, const uint8_t *text, size_t from, size_t len, size_t *ends,
                        size_t most);

/* ---- Between the two files ---- */

/* The ends that the 64 bytes at `from` are enough to know, fewer than QR_SCANNER_BATCH_MIN; 0: ask
 * qr_scanner_next. */
size_t qr_scanner_block(qr_scanner_kind kind, const uint8_t *text, size_t from, size_t len, size_t *ends);
/* Length of 's 't 're 've 'm 'll 'd at text, 0: none. With fold, as (?i:...): then U+017F folds to s, too. */
size_t qr_scanner_contraction(const uint8_t *text, size_t len, bool fold);

#endif
