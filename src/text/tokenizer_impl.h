/* The inside of qr_tokenizer, shared by the files of the tokenizer and nobody else.
 *
 * A tokenizer is compiled once into plain tables and then only read. Steps of a pipeline (normalizer,
 * pre-tokenizer, decoder) are flat lists: a Sequence is spliced into the list of its parent.
 * Byte mode: a BPE model behind a ByteLevel pre-tokenizer works on the raw bytes; its vocabulary is turned
 * from the byte alphabet ("Ġ" for a space) into bytes at load, so that no text is ever mapped.
 * Thread: immutable after load; qr_encoder belongs to one thread.
 */
#ifndef QR_TEXT_TOKENIZER_IMPL_H
#define QR_TEXT_TOKENIZER_IMPL_H

#include "base/json.h"
#include "base/mem.h"
#include "text/jinja.h"
#include "text/scanner.h"
#include "text/tokenizer.h"
#include "text/unicode.h"
#include "text/word_key.h"

enum {
    QR_TOKEN_ID_MAX = 1 << 22,
    QR_TOKEN_BYTES_MAX = 1 << 16,
    QR_ADDED_MAX = 1 << 17,
    QR_STEPS_MAX = 256,
    QR_TOKEN_BATCH = 64,     /* lookups whose memory is asked for together */
    QR_PART_BYTES_MAX = 4096 /* of a replacement, prefix or mark */
};
/* Text that a normalizer, decoder or token table may come to: files are not trusted to be modest. */
#define QR_EXPANDED_BYTES_MAX ((size_t)1 << 29)

/* ---- Vocabulary (tokenizer_vocab.c) ---- */

#define QR_TOKEN_PRESENT      1u
#define QR_TOKEN_SPECIAL      2u /* an added token marked special */
#define QR_TOKEN_ADDED        4u
#define QR_TOKEN_MODEL        8u /* the model knows it */

/* Strings in one growing block; ids index `items`. */
typedef struct qr_token_text {
    uint32_t offset, len;
} qr_token_text;

typedef struct qr_token_table {
    qr_buf text; /* every spelling, each followed by a NUL */
    QR_VEC(qr_token_text) items;
    qr_word_slot *slots; /* by word key, open addressing; ids[0]: the token */
    size_t mask;
    size_t used;
} qr_token_table;

/* Makes room for lookups; the table is zero or holds texts that were only stored. */
void qr_token_table_init(qr_token_table *table, size_t expected);
void qr_token_table_release(qr_token_table *table);
/* Sets the text of id; the first id that takes a text is what lookups find. */
void qr_token_table_set(qr_token_table *table, int32_t id, qr_str text);
/* Only the text, no lookup. */
void qr_token_table_store(qr_token_table *table, int32_t id, qr_str text);
/* Tokens on their way into the lookup of one table, stored before: their slots stand at random places in memory,
 * which are asked for one after the other and waited for together. */
typedef struct qr_token_batch {
    size_t count;
    qr_word_key keys[QR_TOKEN_BATCH];
    int32_t ids[QR_TOKEN_BATCH];
} qr_token_batch;
void qr_token_batch_add(qr_token_batch *batch, qr_token_table *table, int32_t id);
void qr_token_batch_flush(qr_token_batch *batch, qr_token_table *table);
int32_t qr_token_table_find(const qr_token_table *table, const void *text, size_t len); /* or -1 */
/* The same of a key that was made before, so that a prefetch had time to bring its slot near. */
int32_t qr_token_table_find_key(const qr_token_table *table, const qr_word_key *key, const void *text,
                                size_t len);
static inline void qr_token_table_prefetch(const qr_token_table *table, const qr_word_key *key)
{
    __builtin_prefetch(&table->slots[key->hash & table->mask]);
}
static inline qr_str qr_token_table_text(const qr_token_table *table, int32_t id)
{
    qr_token_text item = table->items.data[id];
    return (qr_str){table->text.data + item.offset, item.len};
}

/* Byte alphabet of GPT-2: appends the bytes that `text` spells; false when a character is outside it. */
bool qr_byte_alphabet_decode(qr_str text, qr_buf *out);
void qr_byte_alphabet_encode(const uint8_t *bytes, size_t len, qr_buf *out);

/* ---- Expressions (pretokenizer_regex.c) ---- */

typedef struct qr_pattern qr_pattern;
/* expression: Oniguruma's (Ruby) syntax as tokenizer.json holds it. Errors: QR_UNSUPPORTED. */
qr_status qr_pattern_new(qr_str expression, qr_pattern **out, qr_error *err);
void qr_pattern_free(qr_pattern *pattern);
const char *qr_pattern_expression(const qr_pattern *pattern); /* as it was given */

typedef struct qr_match_data qr_match_data; /* per encoder */
qr_match_data *qr_match_data_new(void);
void qr_match_data_free(qr_match_data *data);
/* Must be called once per text before qr_pattern_find; text is valid UTF-8. */
void qr_pattern_subject(const qr_pattern *pattern, qr_match_data *data, qr_str text);
/* Next match at or after `from`; 1: found, 0: none, -1: the match limit was reached. */
int qr_pattern_find(const qr_pattern *pattern, qr_match_data *data, size_t from, size_t *start, size_t *end);

/* ---- Steps ---- */

typedef enum qr_normalizer_kind {
    QR_NORM_FORM,
    QR_NORM_LOWERCASE,
    QR_NORM_STRIP,
    QR_NORM_STRIP_ACCENTS,
    QR_NORM_BERT,
    QR_NORM_PREPEND,
    QR_NORM_REPLACE,
    QR_NORM_PRECOMPILED,
    QR_NORM_BYTE_LEVEL,
    QR_NORM_NMT,
    QR_NORM_SPACES,
    QR_NORM_TRAILING
} qr_normalizer_kind;

typedef struct qr_normalizer_step {
    qr_normalizer_kind kind;
    qr_unicode_form form;
    bool left, right;                                   /* STRIP */
    bool clean_text, chinese, strip_accents, lowercase; /* BERT */
    char *text;                                         /* PREPEND: what; REPLACE: with what */
    size_t text_len;
    char *needle; /* REPLACE by string */
    size_t needle_len;
    qr_pattern *pattern; /* REPLACE by expression */
    uint8_t *charsmap;   /* PRECOMPILED: trie, then strings */
    bool longest;        /* PRECOMPILED: SentencePiece's own rule */
    uint32_t trie_units;
    size_t strings_len;
} qr_normalizer_step;

typedef enum qr_split_behavior {
    QR_SPLIT_REMOVED,
    QR_SPLIT_ISOLATED,
    QR_SPLIT_MERGED_PREVIOUS,
    QR_SPLIT_MERGED_NEXT,
    QR_SPLIT_CONTIGUOUS
} qr_split_behavior;

typedef enum qr_pretokenizer_kind {
    QR_PRE_SPLIT,
    QR_PRE_BYTE_LEVEL,
    QR_PRE_METASPACE,
    QR_PRE_DIGITS,
    QR_PRE_PUNCTUATION,
    QR_PRE_BERT,
    QR_PRE_WHITESPACE,
    QR_PRE_WHITESPACE_SPLIT,
    QR_PRE_SCRIPTS,
    QR_PRE_DELIMITER,
    QR_PRE_FIXED_LENGTH
} qr_pretokenizer_kind;

typedef enum qr_prepend_scheme { QR_PREPEND_NEVER, QR_PREPEND_FIRST, QR_PREPEND_ALWAYS } qr_prepend_scheme;

typedef struct qr_pretokenizer_step {
    qr_pretokenizer_kind kind;
    qr_split_behavior behavior;
    bool invert;
    qr_scanner_kind scanner; /* SPLIT, BYTE_LEVEL: instead of the pattern */
    qr_pattern *pattern;     /* SPLIT by expression */
    char *text;              /* SPLIT by string; METASPACE replacement; DELIMITER */
    size_t text_len;
    bool add_prefix_space; /* BYTE_LEVEL */
    qr_prepend_scheme scheme;
    bool split;      /* METASPACE; DIGITS: one by one */
    uint32_t length; /* FIXED_LENGTH, in characters */
} qr_pretokenizer_step;

typedef enum qr_decoder_kind {
    QR_DEC_BYTE_LEVEL,
    QR_DEC_BYTE_FALLBACK,
    QR_DEC_FUSE,
    QR_DEC_STRIP,
    QR_DEC_REPLACE,
    QR_DEC_METASPACE,
    QR_DEC_WORDPIECE,
    QR_DEC_CTC,
    QR_DEC_BPE
} qr_decoder_kind;

typedef struct qr_decoder_step {
    qr_decoder_kind kind;
    uint32_t start, stop; /* STRIP */
    char *text;           /* STRIP: character; REPLACE: with what; METASPACE, WORDPIECE, BPE, CTC: mark */
    size_t text_len;
    char *needle; /* REPLACE; CTC: word delimiter */
    size_t needle_len;
    qr_pattern *pattern;  /* REPLACE by expression */
    bool cleanup, prefix; /* WORDPIECE, CTC; METASPACE: drop the first mark */
} qr_decoder_step;

typedef QR_VEC(qr_normalizer_step) qr_normalizer_steps;
typedef QR_VEC(qr_pretokenizer_step) qr_pretokenizer_steps;
typedef QR_VEC(qr_decoder_step) qr_decoder_steps;

/* ---- Models ---- */

typedef enum qr_model_kind {
    QR_MODEL_BPE,
    QR_MODEL_UNIGRAM,
    QR_MODEL_WORDPIECE,
    QR_MODEL_WORDLEVEL
} qr_model_kind;

enum { QR_BPE_ID_BITS = 20, QR_BPE_ID_MAX = 1 << QR_BPE_ID_BITS, QR_BPE_RANK_MAX = (1 << 24) - 1 };

/* Two neighbours and their merge: a lookup touches one cache line. */
typedef struct qr_pair_slot {
    uint64_t key;   /* left | right << 32 */
    uint64_t merge; /* (rank + 1) << 32 | what it makes: the order of merges; 0: an empty slot */
} qr_pair_slot;

typedef struct qr_bpe {
    qr_pair_slot *pairs; /* open addressing */
    size_t pair_mask, pair_count;
    uint64_t *pair_filter; /* one bit a hash: most lookups find nothing */
    size_t filter_mask;
    uint64_t *byte_merges; /* byte mode: of two bytes, first << 8 | second; NULL: not every byte is a token */
    int32_t bytes[256];    /* byte mode: id of each byte; else of "<0xXX>"; -1: none */
    int32_t last_bytes[256]; /* byte mode with an end_of_word_suffix: id of a word's last byte */
    uint32_t
        *characters; /* byte mode: by code point below 10000: its token, if no neighbour can keep its bytes
                                from becoming that; else 0 (stored + 1); NULL: none */
    int32_t unk;     /* -1: none */
    bool fuse_unk, byte_fallback, ignore_merges;
    bool cut_at_mark;      /* no token holds the mark U+2581 after another character */
    char *prefix, *suffix; /* continuing_subword_prefix, end_of_word_suffix; NULL when empty */
} qr_bpe;

typedef struct qr_unigram {
    double *scores; /* by id */
    double min_score;
    int32_t unk; /* -1: none */
    bool byte_fallback, fuse_unk;
    int32_t bytes[256];
    uint32_t *trie; /* hash of (node, byte) -> node; see unigram.c */
    int32_t *trie_ids;
    uint64_t *trie_keys;
    size_t trie_mask, trie_nodes;
} qr_unigram;

typedef struct qr_wordpiece {
    int32_t unk;
    uint32_t chars_max;
    size_t piece_bytes_max; /* of the vocabulary */
    char *prefix;
} qr_wordpiece;

/* ---- Added tokens (added_tokens.c) ---- */

typedef struct qr_added_token {
    int32_t id;
    bool special, lstrip, rstrip, single_word, normalized;
} qr_added_token;

/* Spellings in order, for the leftmost-longest search. */
typedef struct qr_added_spelling {
    const char *text;
    uint32_t len;
    uint32_t token; /* index into added */
} qr_added_spelling;

typedef struct qr_added_set {
    QR_VEC(qr_added_spelling) spellings; /* sorted by bytes */
    uint32_t first_begin[257];           /* range of spellings by first byte */
    int first_byte_count;
    uint8_t first_byte; /* when there is just one */
} qr_added_set;

/* ---- Post-processor ---- */

enum { QR_ITEM_TEXT = -1, QR_ITEM_SECOND = -2 };
typedef struct qr_template_item {
    int32_t id;   /* or QR_ITEM_TEXT, QR_ITEM_SECOND: the (second) sequence */
    uint8_t type; /* token_type_id */
} qr_template_item;
typedef QR_VEC(qr_template_item) qr_template_items;

typedef struct qr_padding {
    bool on, fixed, left;
    uint32_t length, multiple;
    int32_t id;
} qr_padding;

typedef struct qr_truncation {
    bool on, left;
    uint32_t length;
} qr_truncation;

/* How decoded text is put together when it can be streamed token by token. */
typedef enum qr_stream_kind {
    QR_STREAM_BYTES,  /* ByteLevel: bytes one after the other */
    QR_STREAM_PIECES, /* Replace, ByteFallback, Fuse, Strip at the start; Metaspace */
    QR_STREAM_WORDS,  /* WordPiece; no decoder (tokens joined with spaces) */
    QR_STREAM_CHAIN   /* anything else: the whole chain on each token */
} qr_stream_kind;

struct qr_tokenizer {
    char *name;
    qr_model_kind model;
    bool byte_mode;

    qr_token_table spelled; /* tokens as the vocabulary spells them */
    qr_token_table raw;     /* byte mode: the same as bytes; lookups of words go here */
    QR_VEC(uint8_t) flags;  /* by id */
    int32_t model_count;    /* entries of the model's vocabulary */

    qr_bpe bpe;
    qr_unigram unigram;
    qr_wordpiece wordpiece;

    QR_VEC(qr_added_token) added;
    qr_buf added_normalized; /* spellings after the normalizer */
    qr_added_set plain_set, normalized_set;
    QR_VEC(int32_t) special_order; /* ids of special added tokens, longest spelling first */

    qr_normalizer_steps normalizers;
    qr_pretokenizer_steps pretokenizers;
    qr_decoder_steps decoders;
    qr_scanner_kind fast_scanner; /* byte mode with one scanner as the whole pre-tokenizer */
    bool fast_prefix_space;

    qr_template_items post;      /* with add_special_tokens; empty: the sequence alone */
    qr_template_items post_pair; /* of two sequences; empty: one after the other */
    qr_padding padding;
    qr_truncation truncation;

    qr_stream_kind stream;
    uint32_t stream_strip_count; /* PIECES: so many leading spaces of the text go */
    bool stream_first_marks;     /* PIECES by Metaspace: the first token loses its marks */
    bool stream_byte_fallback;
    size_t token_bytes_max;
    qr_token_table decoded; /* PIECES: text of each token after Replace; else empty */

    int32_t special_ids[QR_SPECIAL_COUNT]; /* -1: none */
    char *special_text[QR_SPECIAL_COUNT];
    int32_t eot;

    char *template_source;
    qr_jinja *template_compiled;
    QR_VEC(void *) owned; /* small strings of the steps */
    qr_buf byte_text;     /* scratch while loading */
    qr_encoder *spare;    /* an encoder that no call uses at the moment; taken atomically */
};

/* ---- Loading (tokenizer_load.c, tokenizer_parts.c, tokenizer_config.c, tokenizer_gguf.c) ---- */

qr_tokenizer *qr_tokenizer_make(const char *name);
void qr_tokenizer_destroy(qr_tokenizer *tokenizer);
char *qr_tokenizer_own(qr_tokenizer *tokenizer, qr_str text); /* NUL-terminated copy, freed with it */
void qr_tokenizer_set_token(qr_tokenizer *tokenizer, int32_t id, qr_str text, uint8_t flags);
/* Adds or changes an added token; its id is the vocabulary's, else the next free one, as the reference does.
 * wanted: the id of a GGUF token, or -1. */
qr_status qr_tokenizer_add(qr_tokenizer *tokenizer, qr_str text, qr_added_token token, int32_t wanted,
                           qr_error *err);
/* Byte mode: a token of the model by its bytes; it is spelled in the byte alphabet. */
void qr_tokenizer_set_bytes(qr_tokenizer *tokenizer, int32_t id, qr_str bytes);
int32_t qr_tokenizer_id_of(const qr_tokenizer *tokenizer, qr_str text);
/* Derives everything that depends on several parts; the last step of loading. */
qr_status qr_tokenizer_finish(qr_tokenizer *tokenizer, qr_error *err);

qr_status qr_tokenizer_parse_normalizer(qr_tokenizer *tokenizer, const qr_json *json, qr_error *err);
/* map: raw bytes. longest: SentencePiece's own rule, the longest key wherever it begins. */
qr_status qr_tokenizer_add_charsmap(qr_tokenizer *tokenizer, qr_str map, bool longest, qr_error *err);
qr_status qr_tokenizer_parse_pretokenizer(qr_tokenizer *tokenizer, const qr_json *json, qr_error *err);
qr_status qr_tokenizer_parse_post(qr_tokenizer *tokenizer, const qr_json *json, qr_error *err);
qr_status qr_tokenizer_parse_decoder(qr_tokenizer *tokenizer, const qr_json *json, qr_error *err);
qr_status qr_tokenizer_parse_config(qr_tokenizer *tokenizer, const qr_json *json, qr_error *err);
qr_status qr_tokenizer_load_json(qr_tokenizer *tokenizer, qr_str json, qr_error *err);
/* name: of the configuration file, for messages. */
qr_status qr_tokenizer_load_config(qr_tokenizer *tokenizer, qr_str config, const char *name, qr_error *err);
/* sentencepiece: normalized as that library does, not as the reference does its files. */
qr_status qr_tokenizer_load_vocab(qr_tokenizer *tokenizer, const qr_vocab *vocab, bool sentencepiece,
                                  qr_error *err);
qr_status qr_tokenizer_load_sentencepiece(qr_tokenizer *tokenizer, qr_str bytes, qr_error *err);
/* expression: the pre-tokenizer's, or empty: by the number of ranks. */
qr_status qr_tokenizer_load_tiktoken(qr_tokenizer *tokenizer, qr_str text, qr_str expression, qr_error *err);
bool qr_base64_decode(qr_str text, qr_buf *out);
qr_status qr_tokenizer_load_template(qr_tokenizer *tokenizer, qr_str source, qr_error *err);

/* BPE loading: expects merges in order of rank. */
void qr_bpe_init(qr_bpe *bpe, size_t merges);
void qr_bpe_release(qr_bpe *bpe);
/* left, right and id < QR_BPE_ID_MAX, rank < QR_BPE_RANK_MAX: checked by the caller. */
void qr_bpe_add(qr_bpe *bpe, uint32_t left, uint32_t right, uint32_t rank, uint32_t id);
/* Every way to put a token of `order` together from two others becomes a merge whose rank is the token's place. */
void qr_bpe_merge_in_order(qr_tokenizer *tokenizer, const int32_t *order, size_t count);
void qr_bpe_prefetch(const qr_bpe *bpe, uint32_t left, uint32_t right);
qr_status qr_bpe_finish(qr_tokenizer *tokenizer, qr_error *err);

qr_status qr_unigram_finish(qr_tokenizer *tokenizer, qr_error *err);
void qr_unigram_release(qr_unigram *unigram);

void qr_added_build(qr_tokenizer *tokenizer);
void qr_added_release(qr_tokenizer *tokenizer);

/* ---- Encoding ---- */

typedef struct qr_piece {
    size_t begin, end; /* in the current text */
    bool at_start;     /* begins where the whole text begins */
    bool continues;    /* follows a dropped 0xFF: no prefix is put before it */
} qr_piece;
typedef QR_VEC(qr_piece) qr_pieces;

typedef struct qr_range {
    size_t begin, end;
    bool matched;
} qr_range;

/* A word of a few symbols on its way through the merges: a symbol keeps its place, and the one that it was merged
 * with leaves. */
enum { QR_BPE_LANES = 32, QR_BPE_LANE_SYMBOLS = 32 };
typedef struct qr_bpe_lane {
    uint32_t ids[QR_BPE_LANE_SYMBOLS];
    uint64_t merges
        [QR_BPE_LANE_SYMBOLS]; /* of each symbol with the next: a qr_pair_slot's, its place above the id */
    uint64_t alive;            /* bit i: a symbol stands at place i */
    uint64_t asked;            /* bit i: merges[i] is still to be looked up */
    uint32_t places, count;    /* count: of ids, when it is done */
} qr_bpe_lane;

typedef struct qr_bpe_scratch {
    QR_VEC(uint32_t) ids, next, previous;
    QR_VEC(uint64_t) heap;
    QR_VEC(uint64_t) merges; /* of a symbol with its next */
} qr_bpe_scratch;

struct qr_encoder {
    const qr_tokenizer *tokenizer;
    qr_buf clean;            /* input with U+FFFD for what is not UTF-8 */
    qr_buf text[3];          /* normalized text; then what pre-tokenizers rewrite, in turn */
    qr_buf norm[2], bert[2]; /* between normalizer steps */
    qr_buf temporary;
    qr_pieces pieces[2];
    QR_VEC(qr_range) ranges;
    qr_bpe_scratch bpe;
    QR_VEC(double) scores;   /* unigram */
    QR_VEC(int32_t) nodes;   /* unigram: best id that ends here */
    QR_VEC(uint32_t) starts; /* unigram: where it starts */
    qr_match_data *match;
    qr_ids ids, second_ids; /* of the sequences before the post-processor */

    qr_word_slot *words; /* the word cache (word_cache.c): open addressing */
    size_t word_mask, word_count;
    qr_ids many_ids;   /* of words that have more than fit a slot */
    qr_buf long_words; /* bytes of words that do not fit a key */
};

/* Appends the normal form of text to out (steps of the tokenizer, in order). */
qr_status qr_normalize(const qr_tokenizer *tokenizer, qr_encoder *encoder, qr_str text, bool continues,
                       qr_buf *out, qr_error *err);
/* Splits encoder->pieces[*which] over encoder->text[*buffer]; both may change sides. */
qr_status qr_pretokenize(qr_encoder *encoder, int *which, int *buffer, qr_error *err);

/* Words to ids through the encoder's cache (word_cache.c): open before the first word of a text. */
void qr_word_cache_open(qr_encoder *encoder, size_t text_len);
void qr_word_cache_free(qr_encoder *encoder);
qr_status qr_encode_word(qr_encoder *encoder, const uint8_t *word, size_t len, qr_ids *ids, qr_error *err);
qr_status qr_encode_pieces(qr_encoder *encoder, const uint8_t *text, size_t len, const qr_piece *pieces,
                           size_t count, qr_ids *ids, qr_error *err);
/* Every word of the tokenizer's fast scanner. */
qr_status qr_encode_scanned(qr_encoder *encoder, const uint8_t *text, size_t len, qr_ids *ids, qr_error *err);
/* Cut before every run of the mark U+2581. */
qr_status qr_encode_marked(qr_encoder *encoder, const uint8_t *text, size_t len, qr_ids *ids, qr_error *err);

qr_status qr_bpe_word(qr_encoder *encoder, const uint8_t *word, size_t len, qr_ids *ids, qr_error *err);
/* The same for many words at once, without the shortcut of ignore_merges: begin a lane for each (false: too many
 * symbols), merge them all (count <= QR_BPE_LANES); then a lane holds the ids of its word. */
bool qr_bpe_lane_begin(qr_encoder *encoder, qr_bpe_lane *lane, const uint8_t *word, size_t len);
void qr_bpe_lanes_merge(const qr_bpe *bpe, qr_bpe_lane *lanes, size_t count);
qr_status qr_unigram_word(qr_encoder *encoder, const uint8_t *word, size_t len, qr_ids *ids, qr_error *err);
void qr_wordpiece_word(qr_encoder *encoder, const uint8_t *word, size_t len, qr_ids *ids);
void qr_wordlevel_word(qr_encoder *encoder, const uint8_t *word, size_t len, qr_ids *ids);

typedef struct qr_added_match {
    size_t begin, end;
    int32_t id;
} qr_added_match;
/* The next added token in text at or after `*search` that counts under the options; false: none. `floor` is
 * where the previous match ended (lstrip does not reach before it); *search moves on. */
bool qr_added_next(const qr_tokenizer *tokenizer, const qr_added_set *set, qr_str text, bool parse_special,
                   size_t *search, size_t floor, qr_added_match *match);

/* ---- Decoding (decoder.c) ---- */

/* Runs the decoder's steps over whole tokens, as the reference's decode_chain. */
qr_status qr_decode_chain(const qr_tokenizer *tokenizer, const int32_t *ids, size_t count, bool skip_special,
                          qr_buf *out, qr_error *err);
void qr_decode_wordpiece(const qr_decoder_step *step, qr_str token, bool first, qr_buf *out);
void qr_decode_metaspace(const qr_decoder_step *step, qr_str token, bool first, qr_buf *out);
void qr_decode_cleanup(qr_str text, qr_buf *out);
void qr_decode_lossy(qr_str bytes, qr_buf *out);
int qr_decode_byte_of(qr_str token); /* of "<0xXX>"; else -1 */

#endif
