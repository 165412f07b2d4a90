/* tiktoken rank files: lines of a token in base64 and its rank, which is its id. Any two neighbours whose bytes
 * together are a token may merge, the token of lowest rank first; a word that is a token is that token. */
#include "text/tokenizer_impl.h"

static const char kimi[] =
    "[\\p{Han}]+|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]*"
    "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\\r\\n\\p{L}\\p{N}]?"
    "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]*"
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"
    "\\s+(?!\\S)|\\s+";

/* The file does not say its expression; the published ones are told by their number of ranks. */
static const char *expression_of(size_t count)
{
    if (count == 50256 || count == 50280)
        return qr_scanner_expression(QR_SCAN_GPT2);
    if (count == 199998)
        return qr_scanner_expression(QR_SCAN_O200K);
    if (count == 163584)
        return kimi;
    return qr_scanner_expression(QR_SCAN_CL100K_3);
}

static qr_status bad_line(const qr_tokenizer *tokenizer, size_t line, const char *what, qr_error *err)
{
    return qr_fail(err, QR_BAD_FILE, "%s: line %zu: %s", tokenizer->name, line, what);
}

static qr_status read_line(qr_tokenizer *tokenizer, qr_str line, size_t number, qr_buf *bytes, qr_error *err)
{
    const char *space = memchr(line.data, ' ', line.len);
    int64_t rank = 0;
    if (space == NULL)
        return bad_line(tokenizer, number, "no space between token and rank", err);
    size_t token_len = (size_t)(space - line.data);
    if (token_len + 1 == line.len)
        return bad_line(tokenizer, number, "no rank", err);
    for (size_t i = token_len + 1; i < line.len; i++) {
        if (line.data[i] < '0' || line.data[i] > '9' || rank >= QR_BPE_ID_MAX)
            return bad_line(tokenizer, number, "rank is not a number below 1048576", err);
        rank = rank * 10 + (line.data[i] - '0');
    }
    qr_buf_clear(bytes);
    if (rank >= QR_BPE_ID_MAX || token_len % 4 != 0 ||
        !qr_base64_decode(qr_str_make(line.data, token_len), bytes))
        return bad_line(tokenizer, number, "token is not base64, or its rank too great", err);
    if (bytes->len > QR_TOKEN_BYTES_MAX)
        return bad_line(tokenizer, number, "token is too long", err);
    qr_tokenizer_set_bytes(tokenizer, (int32_t)rank, qr_buf_str(bytes));
    return QR_OK;
}

static qr_status read_lines(qr_tokenizer *tokenizer, qr_str text, qr_error *err)
{
    qr_buf bytes = {0};
    qr_status status = QR_OK;
    for (size_t at = 0, number = 1; at < text.len && status == QR_OK; number++) {
        const char *end = memchr(text.data + at, '\n', text.len - at);
        size_t stop = end != NULL ? (size_t)(end - text.data) : text.len, len = stop - at;
        if (len > 0 && text.data[at + len - 1] == '\r')
            len--;
        if (len > 0)
            status = read_line(tokenizer, qr_str_make(text.data + at, len), number, &bytes, err);
        at = stop + 1;
    }
    qr_buf_release(&bytes);
    return status;
}

static qr_status add_steps(qr_tokenizer *tokenizer, qr_str expression, qr_error *err)
{
    qr_pretokenizer_step split = {.kind = QR_PRE_SPLIT, .behavior = QR_SPLIT_ISOLATED};
    qr_pretokenizer_step bytes = {.kind = QR_PRE_BYTE_LEVEL};
    qr_decoder_step decoder = {.kind = QR_DEC_BYTE_LEVEL};
    split.scanner = qr_scanner_of(expression);
    if (split.scanner == QR_SCAN_NONE) {
        qr_status status = qr_pattern_new(expression, &split.pattern, err);
        if (status != QR_OK)
            return status;
    }
    QR_VEC_PUSH(&tokenizer->pretokenizers, split);
    QR_VEC_PUSH(&tokenizer->pretokenizers, bytes);
    QR_VEC_PUSH(&tokenizer->decoders, decoder);
    return QR_OK;
}

qr_status qr_tokenizer_load_tiktoken(qr_tokenizer *tokenizer, qr_str text, qr_str expression, qr_error *err)
{
    tokenizer->byte_mode = true;
    qr_token_table_init(&tokenizer->raw, 131072);
    qr_status status = read_lines(tokenizer, text, err);
    if (status != QR_OK)
        return status;
    if (tokenizer->model_count == 0)
        return qr_fail(err, QR_BAD_FILE, "%s: holds no ranks", tokenizer->name);
    int32_t *order = qr_alloc(tokenizer->flags.count * sizeof(*order));
    size_t count = 0;
    for (size_t id = 0; id < tokenizer->flags.count; id++)
        if (tokenizer->flags.data[id] & QR_TOKEN_MODEL)
            order[count++] = (int32_t)id;
    qr_bpe_merge_in_order(tokenizer, order, count);
    qr_free(order);
    tokenizer->bpe.ignore_merges = true;
    return add_steps(tokenizer, expression.len > 0 ? expression : qr_str_of(expression_of(count)), err);
}
