/* From a chat request to the prompt's text: the variables transformers passes to a template, and the marker
 * that keeps untrusted text from spelling special tokens. Thread: any.
 *
 * Marker: user, system and tool content is untrusted (assistant and developer-written template text is not
 * touched): in every string of the messages, tools and documents, each occurrence of the spelling of a
 * `special` added token gets the byte 0xFF after its first byte. The encoder splits there and drops the byte.
 * One function does it (chat_mark_untrusted); the template engine knows nothing of it.
 */
#ifndef QR_TEXT_CHAT_H
#define QR_TEXT_CHAT_H

#include "base/json.h"
#include "base/status.h"
#include "base/str.h"
#include "text/jinja.h"
#include "text/tokenizer.h"

/* request: what qr_template_render in quire.h documents. Appends the prompt to out. Content given as a list of
 * parts stays a list when the template iterates over content, else its text parts are joined with newlines
 * (as vLLM's "auto" content format); a string becomes a list of one part for a template that takes nothing
 * else. Errors: QR_INVALID_ARGUMENT (no messages, wrong types, template errors),
 * QR_UNSUPPORTED (image parts; no chat template). */
qr_status qr_chat_render(const qr_tokenizer *tokenizer, const qr_json *request, int64_t now_unix_s,
                         qr_buf *out, qr_error *err);

#endif
