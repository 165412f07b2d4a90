/* Tokenizer: text to token ids and back, from tokenizer.json or a GGUF vocabulary.
 *
 * One immutable object serves every thread; scratch memory is per call (a qr_encoder kept by a thread makes
 * repeated calls allocation-free and carries the word cache). The pipeline is the reference's (Hugging Face
 * tokenizers): added tokens are split off first, then normalizer, pre-tokenizer, model, post-processor.
 * Contract of the byte 0xFF in input: it never occurs in UTF-8; text is split there and the byte is dropped,
 * so that "<|im_" 0xFF "end|>" encodes as plain text (see chat.h).
 *
 * The public functions of quire.h (qr_tokenizer_*) are implemented here and in tokenizer_api.c; qr_tokenizer
 * is this struct.
 * Thread: a tokenizer is shared by any; an encoder and a detokenizer belong to one at a time.
 */
#ifndef QR_TEXT_TOKENIZER_H
#define QR_TEXT_TOKENIZER_H

#include "base/status.h"
#include "base/str.h"
#include "base/vec.h"
#include "text/vocab.h"

typedef QR_VEC(int32_t) qr_ids;

/* dir: the folder that holds tokenizer.json, else tokenizer.model (SentencePiece or tiktoken) or
 * tiktoken.model (tokenizer_config.json, special_tokens_map.json,
 * chat_template.jinja or chat_template.json are read beside it when present).
 * Errors: QR_NOT_FOUND (no tokenizer.json), QR_BAD_FILE with line and column, QR_UNSUPPORTED naming the part. */
qr_status qr_text_tokenizer_from_dir(const char *dir, qr_tokenizer **out, qr_error *err);
/* The text of one tokenizer.json and, or NULL/empty, of tokenizer_config.json. name: for messages. */
qr_status qr_text_tokenizer_from_json(qr_str json, qr_str config_json, const char *name, qr_tokenizer **out,
                                      qr_error *err);
/* The bytes of a tokenizer.model: SentencePiece's protobuf, or a tiktoken rank file. */
qr_status qr_text_tokenizer_from_model(qr_str bytes, const char *name, qr_tokenizer **out, qr_error *err);
qr_status qr_text_tokenizer_from_vocab(const qr_vocab *vocab, const char *name, qr_tokenizer **out,
                                       qr_error *err);

/* Per-thread state for encoding: scratch buffers and the word cache. */
typedef struct qr_encoder qr_encoder;
qr_encoder *qr_encoder_new(const qr_tokenizer *tokenizer);
void qr_encoder_free(qr_encoder *encoder);
/* Appends the ids of text to `ids`. */
qr_status qr_encoder_encode(qr_encoder *encoder, qr_str text, const qr_encode_options *options, qr_ids *ids,
                            qr_error *err);
/* Two texts as one input (rerankers, classifiers). types, or NULL: the token_type_id of each id is appended. */
qr_status qr_encoder_encode_pair(qr_encoder *encoder, qr_str text, qr_str second,
                                 const qr_encode_options *options, qr_ids *ids, qr_ids *types, qr_error *err);

/* Special tokens as the template sees them: the spelling of bos_token, eos_token, unk_token, pad_token, or
 * empty. Borrowed. */
typedef enum qr_special_name {
    QR_SPECIAL_BOS,
    QR_SPECIAL_EOS,
    QR_SPECIAL_UNK,
    QR_SPECIAL_PAD,
    QR_SPECIAL_SEP,
    QR_SPECIAL_CLS,
    QR_SPECIAL_MASK,
    QR_SPECIAL_COUNT
} qr_special_name;
qr_str qr_tokenizer_special(const qr_tokenizer *tokenizer, qr_special_name name);
/* All ids that end generation as far as the tokenizer knows (eos, eot). Returns the count, at most max. */
int qr_tokenizer_end_ids(const qr_tokenizer *tokenizer, int32_t *ids, int max);

/* Calls fn for each added token that is marked `special`, longest spelling first: what chat.c marks. */
void qr_tokenizer_each_special(const qr_tokenizer *tokenizer,
                               void (*fn)(void *user, qr_str spelling, int32_t id), void *user);
/* Bytes that one token can add to the text at most: for sizing output memory. */
size_t qr_tokenizer_token_bytes_max(const qr_tokenizer *tokenizer);

/* ---- Streaming detokenizer (detokenizer.c) --------------------------------------------------------
 * Feeds ids one at a time and yields text whose concatenation equals decoding all ids at once, at every
 * chunking; never half a UTF-8 character (at the end, an incomplete one becomes U+FFFD). No heap memory after
 * qr_detokenizer_init when the output fits out_max. */
typedef struct qr_detokenizer {
    const qr_tokenizer *tokenizer;
    bool skip_special;
    const int32_t *kept; /* special tokens that are not skipped all the same; borrowed */
    size_t kept_count;
    bool started;        /* the first token was seen: leading-space rules of SentencePiece families */
    uint32_t strip_left; /* leading spaces of the text that are still to be dropped */
    uint8_t pending[64]; /* bytes that do not yet make a whole character */
    uint32_t pending_bytes;
} qr_detokenizer;

void qr_detokenizer_init(qr_detokenizer *detokenizer, const qr_tokenizer *tokenizer, bool skip_special);
/* Primes the state as if `ids` had been fed and their text thrown away (output_prefix_ids). */
void qr_detokenizer_prime(qr_detokenizer *detokenizer, const int32_t *ids, size_t count);
/* Writes at most out_max bytes; out_max must be >= qr_tokenizer_token_bytes_max() + 64. Returns the count. */
size_t qr_detokenizer_push(qr_detokenizer *detokenizer, int32_t id, char *out, size_t out_max);
size_t qr_detokenizer_finish(qr_detokenizer *detokenizer, char *out, size_t out_max);

/* The compiled chat template that belongs to this tokenizer, or NULL (owned by the tokenizer; see chat.h). */
struct qr_jinja;
const struct qr_jinja *qr_tokenizer_template(const qr_tokenizer *tokenizer);

#endif
