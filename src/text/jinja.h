/* The Jinja that chat templates use, set up as transformers does: trim_blocks, lstrip_blocks, loop controls,
 * raise_exception, strftime_now, tojson, `generation` blocks. A bounded interpreter: templates come with
 * checkpoints and are not trusted, so steps, depth, output and time are limited.
 *
 * Values are built from qr_json (messages, tools, ...) without copying strings.
 * Thread: a compiled template is immutable and shared; a render uses the caller's memory only, and at most 512 KiB
 * of stack.
 */
#ifndef QR_TEXT_JINJA_H
#define QR_TEXT_JINJA_H

#include "base/json.h"
#include "base/status.h"
#include "base/str.h"

typedef struct qr_jinja qr_jinja;

typedef struct qr_jinja_limits {
    uint64_t steps_max; /* evaluated nodes */
    uint32_t depth_max; /* height of expressions, blocks and macro calls, one inside the other */
    size_t output_bytes_max;
    size_t memory_bytes_max; /* of values made while rendering */
    uint64_t time_ns_max;
} qr_jinja_limits;
extern const qr_jinja_limits qr_jinja_limits_default; /* 20 M steps, 1000, 64 MiB, 256 MiB, 5 s */

/* Compiles (source is copied). Errors: QR_INVALID_ARGUMENT "template: line L, column C: ...", QR_UNSUPPORTED. */
qr_status qr_jinja_compile(qr_str source, qr_jinja **out, qr_error *err);
void qr_jinja_free(qr_jinja *jinja);
/* Whether it has a loop over the content of a message: then content may be a list of parts. *only (may be NULL):
 * it never asks what content is (`is string` and the like), so that content must be a list. */
bool qr_jinja_takes_parts(const qr_jinja *jinja, bool *only);

/* Renders with `variables` (a JSON object: messages, tools, bos_token, ...; keys are top-level names) and
 * appends to out. now_unix_s: what strftime_now formats (local time zone UTC). limits may be NULL.
 * Errors: QR_INVALID_ARGUMENT with line and column ("raise_exception: ..." included), QR_LIMIT_EXCEEDED. */
qr_status qr_jinja_render(const qr_jinja *jinja, const qr_json *variables, int64_t now_unix_s,
                          const qr_jinja_limits *limits, qr_buf *out, qr_error *err);

#endif
