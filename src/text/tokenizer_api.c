/* The public qr_tokenizer_* functions, and what other layers ask of a tokenizer. */
#include "text/tokenizer_impl.h"

enum { TEXT_BYTES_MAX = 1 << 30 };

void qr_tokenizer_close(qr_tokenizer *tokenizer) { qr_tokenizer_destroy(tokenizer); }

static bool is_token(const qr_tokenizer *tokenizer, int32_t id)
{
    return id >= 0 && (size_t)id < tokenizer->flags.count && (tokenizer->flags.data[id] & QR_TOKEN_PRESENT);
}

int32_t qr_tokenizer_vocab_size(const qr_tokenizer *tokenizer) { return (int32_t)tokenizer->flags.count; }

int32_t qr_tokenizer_bos(const qr_tokenizer *tokenizer) { return tokenizer->special_ids[QR_SPECIAL_BOS]; }

int32_t qr_tokenizer_eos(const qr_tokenizer *tokenizer) { return tokenizer->special_ids[QR_SPECIAL_EOS]; }

const char *qr_tokenizer_token(const qr_tokenizer *tokenizer, int32_t id, bool *special)
{
    if (!is_token(tokenizer, id))
        return NULL;
    if (special != NULL)
        *special = (tokenizer->flags.data[id] & QR_TOKEN_SPECIAL) != 0;
    return qr_token_table_text(&tokenizer->spelled, id).data;
}

int32_t qr_tokenizer_find(const qr_tokenizer *tokenizer, const char *token, size_t bytes)
{
    return qr_tokenizer_id_of(tokenizer, qr_str_make(token, bytes));
}

void qr_encode_options_init(qr_encode_options *options)
{
    *options =
        (qr_encode_options){.size = sizeof(*options), .add_special_tokens = true, .parse_special = true};
}

/* One idle encoder is kept with its word cache, so that lone calls are warm, too. */
static qr_encoder *take_encoder(const qr_tokenizer *tokenizer)
{
    qr_encoder **spare = (qr_encoder **)&((qr_tokenizer *)(uintptr_t)tokenizer)->spare;
    qr_encoder *encoder = __atomic_exchange_n(spare, NULL, __ATOMIC_ACQUIRE);
    return encoder != NULL ? encoder : qr_encoder_new(tokenizer);
}

static void give_encoder(const qr_tokenizer *tokenizer, qr_encoder *encoder)
{
    qr_encoder **spare = (qr_encoder **)&((qr_tokenizer *)(uintptr_t)tokenizer)->spare;
    qr_encoder_free(__atomic_exchange_n(spare, encoder, __ATOMIC_ACQ_REL));
}

qr_status qr_tokenizer_encode(const qr_tokenizer *tokenizer, const char *text, size_t bytes,
                              const qr_encode_options *options, int32_t **ids, size_t *count, qr_error *err)
{
    if (bytes > TEXT_BYTES_MAX)
        return qr_fail(err, QR_LIMIT_EXCEEDED, "tokenizer: text of %zu bytes, more than %d", bytes,
                       TEXT_BYTES_MAX);
    qr_ids out = {0};
    qr_encoder *encoder = take_encoder(tokenizer);
    qr_status status = qr_encoder_encode(encoder, qr_str_make(text, bytes), options, &out, err);
    give_encoder(tokenizer, encoder);
    if (status != QR_OK) {
        QR_VEC_RELEASE(&out);
        return status;
    }
    QR_VEC_RESERVE(&out, 1);
    *ids = out.data;
    *count = out.count;
    return QR_OK;
}

void qr_ids_free(int32_t *ids) { qr_free(ids); }

static void decode_stream(const qr_tokenizer *tokenizer, const int32_t *ids, size_t count, bool skip_special,
                          qr_buf *out)
{
    qr_detokenizer detokenizer;
    size_t room = tokenizer->token_bytes_max + 64;
    qr_detokenizer_init(&detokenizer, tokenizer, skip_special);
    for (size_t i = 0; i < count; i++) {
        qr_buf_reserve(out, room + 1);
        out->len += qr_detokenizer_push(&detokenizer, ids[i], out->data + out->len, room);
    }
    qr_buf_reserve(out, room + 1);
    out->len += qr_detokenizer_finish(&detokenizer, out->data + out->len, room);
    out->data[out->len] = '\0';
}

qr_status qr_tokenizer_decode(const qr_tokenizer *tokenizer, const int32_t *ids, size_t count,
                              bool skip_special_tokens, char **text, size_t *bytes, qr_error *err)
{
    qr_buf out = {0};
    qr_status status = QR_OK;
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || (size_t)ids[i] >= tokenizer->flags.count)
            return qr_fail(err, QR_INVALID_ARGUMENT, "tokenizer: decode: id %d at %zu, vocabulary of %zu",
                           (int)ids[i], i, tokenizer->flags.count);
    if (tokenizer->stream == QR_STREAM_CHAIN)
        status = qr_decode_chain(tokenizer, ids, count, skip_special_tokens, &out, err);
    else
        decode_stream(tokenizer, ids, count, skip_special_tokens, &out);
    if (status != QR_OK) {
        qr_buf_release(&out);
        return status;
    }
    qr_buf_reserve(&out, 1);
    out.data[out.len] = '\0';
    *text = qr_buf_detach(&out, bytes);
    return QR_OK;
}

const char *qr_tokenizer_chat_template(const qr_tokenizer *tokenizer) { return tokenizer->template_source; }

qr_status qr_tokenizer_set_chat_template(qr_tokenizer *tokenizer, const char *source, qr_error *err)
{
    qr_jinja *compiled = NULL;
    qr_status status = qr_jinja_compile(qr_str_of(source), &compiled, err);
    if (status != QR_OK)
        return status;
    qr_jinja_free(tokenizer->template_compiled);
    qr_free(tokenizer->template_source);
    tokenizer->template_compiled = compiled;
    tokenizer->template_source = qr_strdup(source);
    return QR_OK;
}

const struct qr_jinja *qr_tokenizer_template(const qr_tokenizer *tokenizer)
{
    return tokenizer->template_compiled;
}

qr_str qr_tokenizer_special(const qr_tokenizer *tokenizer, qr_special_name name)
{
    return tokenizer->special_text[name] != NULL ? qr_str_of(tokenizer->special_text[name])
                                                 : qr_str_make("", 0);
}

int qr_tokenizer_end_ids(const qr_tokenizer *tokenizer, int32_t *ids, int max)
{
    int count = 0;
    int32_t eos = tokenizer->special_ids[QR_SPECIAL_EOS], eot = tokenizer->eot;
    if (eos >= 0 && count < max)
        ids[count++] = eos;
    if (eot >= 0 && eot != eos && count < max)
        ids[count++] = eot;
    return count;
}

void qr_tokenizer_each_special(const qr_tokenizer *tokenizer,
                               void (*fn)(void *user, qr_str spelling, int32_t id), void *user)
{
    for (size_t i = 0; i < tokenizer->special_order.count; i++) {
        int32_t id = tokenizer->special_order.data[i];
        fn(user, qr_token_table_text(&tokenizer->spelled, id), id);
    }
}

size_t qr_tokenizer_token_bytes_max(const qr_tokenizer *tokenizer) { return tokenizer->token_bytes_max; }

size_t qr_tokenizer_piece(const qr_tokenizer *tokenizer, int32_t id, char *out, size_t out_max)
{
    if (!is_token(tokenizer, id))
        return 0;
    qr_str spelled = qr_token_table_text(&tokenizer->spelled, id), piece = spelled;
    int byte = tokenizer->stream_byte_fallback ? qr_decode_byte_of(spelled) : -1;
    char one = (char)byte;
    if (byte >= 0)
        piece = qr_str_make(&one, 1);
    else if (tokenizer->stream == QR_STREAM_BYTES && tokenizer->byte_mode)
        piece = qr_token_table_text(&tokenizer->raw, id);
    else if (tokenizer->stream == QR_STREAM_BYTES || tokenizer->stream == QR_STREAM_PIECES)
        piece = qr_token_table_text(&tokenizer->decoded, id);
    if (out_max > 0 && piece.len > 0)
        memcpy(out, piece.data, QR_MIN(piece.len, out_max));
    return piece.len;
}
