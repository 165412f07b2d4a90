/* A vocabulary as plain arrays: what a GGUF file's `tokenizer.ggml.*` metadata says, in a form that this
 * layer can read without knowing GGUF. Built by loader/gguf_vocab.c's caller (engine/open.c); everything is
 * borrowed for the duration of qr_text_tokenizer_from_vocab. Thread: any. */
#ifndef QR_TEXT_VOCAB_H
#define QR_TEXT_VOCAB_H

#include <stdbool.h>
#include <stdint.h>

#include "base/str.h"

/* tokenizer.ggml.token_type (llama.cpp's values). */
typedef enum qr_vocab_token_type {
    QR_VOCAB_NORMAL = 1,
    QR_VOCAB_UNKNOWN = 2,
    QR_VOCAB_CONTROL = 3,
    QR_VOCAB_USER_DEFINED = 4,
    QR_VOCAB_UNUSED = 5,
    QR_VOCAB_BYTE = 6
} qr_vocab_token_type;

typedef struct qr_vocab {
    qr_str model; /* "llama" (SentencePiece BPE), "gpt2" (byte-level BPE), "bert", "t5" */
    qr_str pre;   /* "llama-bpe", "qwen2", "smollm", ...; "" when absent */
    const qr_str *tokens;
    const float *scores;  /* NULL when absent */
    const int32_t *types; /* NULL when absent */
    int32_t token_count;
    const qr_str *merges; /* "left right" */
    int32_t merge_count;
    int32_t bos, eos, unk, pad, eot;                                  /* -1: none */
    int add_bos, add_eos, add_space_prefix, remove_extra_whitespaces; /* 0, 1, or -1: not said */
    qr_str precompiled_charsmap;                                      /* raw bytes or empty */
    qr_str chat_template;                                             /* or empty */
} qr_vocab;

#endif
