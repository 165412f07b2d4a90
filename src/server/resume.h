/* Streams that survive their replica. With `X-Quire-Marks: 1` a stream carries, after the chunks of each event, a mark: an
 * SSE comment that says how far the output has got,
 *
 *     : quire INDEX TEXT_BYTES ID,ID,... [closed]
 *
 * with the bytes of the choice's text so far and the ids since the last mark. What stands before a mark can be passed on;
 * when the stream breaks, the same request with "output_prefix_ids", "seed" and "resume" goes on behind the last one, here or
 * on another server, as if nothing had happened (docs/http-api.md). Thread: I/O. */
#ifndef QR_SERVER_RESUME_H
#define QR_SERVER_RESUME_H

#include "server/call.h"

/* After submission: what the lost stream has shown counts as shown. */
void qr_resume_begin(qr_call *call);
/* Headers that a resume will need. */
void qr_resume_add_headers(const qr_call *call);
/* At the first event of a prompt: what depends on the text that was seen before. */
bool qr_resume_choice(qr_call *call, qr_choice *choice, qr_api_error *error);
/* Appends a mark: the piece now holds all chunks of the events so far. */
void qr_resume_mark(const qr_call *call, qr_choice *choice, qr_buf *out);

#endif
