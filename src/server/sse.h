/* Server-sent events of a generation call (WHATWG HTML, section 9.2): no tree, no decision; text goes straight from the
 * engine's memory into the bytes of one write. Thread: I/O. */
#ifndef QR_SERVER_SSE_H
#define QR_SERVER_SSE_H

#include "server/call.h"

#define QR_SSE_CONTENT_TYPE "text/event-stream; charset=utf-8"

/* Builds call->head: what all chunks of the call begin with. */
void qr_sse_prepare(qr_call *call);
/* `data: {...,"choices":[{"index":N,` ; the caller appends the choice's members and calls qr_sse_chunk_end. */
void qr_sse_chunk_begin(const qr_call *call, size_t index, qr_buf *out);
/* `}],"usage":...}` as asked for, and the blank line. choice: for continuous usage; NULL: none. */
void qr_sse_chunk_end(const qr_call *call, qr_buf *out);
/* The last chunks: usage when asked for, and [DONE]. */
void qr_sse_finish(const qr_call *call, qr_buf *out);
void qr_sse_error(const qr_api_error *error, qr_buf *out);
/* {"prompt_tokens":...} of the whole call so far. */
void qr_usage_append(const qr_call *call, qr_buf *out);

#endif
