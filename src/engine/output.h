/* From a sampled id to published text: detokenise, match stop ids and stop strings (across token borders, with
 * text that may become one held back), decide whether the sample ends.
 *
 * What is published is never taken back. Text is held back exactly while its end is a proper beginning of a stop
 * string. A stop string counts when it is complete after min_tokens output tokens; of several in one token's text
 * the one that begins first wins, then the first in the list.
 * Thread: accept, end and publish by the engine thread (the replay of output_prefix_ids by prepare, before).
 */
#ifndef QR_ENGINE_OUTPUT_H
#define QR_ENGINE_OUTPUT_H

#include "engine/request.h"

/* Takes the token that was appended last to the sample's ids. Sets finish, stop_token and stop_string and returns
 * finish; QR_FINISH_NONE: it goes on. */
qr_finish qr_output_accept(qr_output *sample);
/* Ends it otherwise (abort, error, length without a token): flushes what the detokenizer holds. */
void qr_output_end(qr_output *sample, qr_finish finish, qr_status status);
/* Stores the public counts. True when a reader has something new to see. */
bool qr_output_publish(qr_output *sample);
/* Takes output_prefix_ids as if they had been sampled here. Of their text, text_bytes (-1: all) are not emitted. */
qr_finish qr_output_replay(qr_output *sample, const int32_t *ids, int64_t count, int64_t text_bytes);

/* ---- Stop strings (pure) ---- */

typedef struct qr_stop_match {
    int32_t index; /* into the list, or -1 */
    size_t begin, end;
} qr_stop_match;
/* A stop string that ends after `from` in text[0, count). */
qr_stop_match qr_stop_find(const qr_stop_strings *stops, const char *text, size_t count, size_t from);
/* Length of the longest end of text that is a proper beginning of a stop string. */
size_t qr_stop_held(const qr_stop_strings *stops, const char *text, size_t count);
/* Whether a sorted list holds id. */
bool qr_id_list_has(const qr_id_list *list, int32_t id);

#endif
