/* tokenizer_config.json and special_tokens_map.json: names of special tokens, added tokens that tokenizer.json
 * lacks, the beginning- and end-of-sequence switches of the Llama classes, the chat template. */
#include "base/log.h"
#include "text/tokenizer_impl.h"

static const char *const special_keys[QR_SPECIAL_COUNT] = {"bos_token", "eos_token", "unk_token", "pad_token",
                                                           "sep_token", "cls_token", "mask_token"};

/* A token given as its spelling or as an object with "content". */
static qr_str token_text(const qr_json *json)
{
    return qr_json_is(json, QR_JSON_OBJECT) ? qr_json_string(qr_json_get(json, "content"))
                                            : qr_json_string(json);
}

static qr_added_token token_attributes(const qr_json *json, bool special)
{
    special = qr_json_bool(qr_json_get(json, "special"), special);
    return (qr_added_token){.special = special,
                            .lstrip = qr_json_bool(qr_json_get(json, "lstrip"), false),
                            .rstrip = qr_json_bool(qr_json_get(json, "rstrip"), false),
                            .single_word = qr_json_bool(qr_json_get(json, "single_word"), false),
                            .normalized = qr_json_bool(qr_json_get(json, "normalized"), !special)};
}

static bool is_added(const qr_tokenizer *tokenizer, int32_t id)
{
    return id >= 0 && (size_t)id < tokenizer->flags.count && (tokenizer->flags.data[id] & QR_TOKEN_ADDED);
}

/* {"151643": {"content": ...}, ...}: tokens that transformers adds, at the ids that are written there. */
static qr_status parse_added_decoder(qr_tokenizer *tokenizer, const qr_json *json, qr_error *err)
{
    for (void *it = qr_json_iter(json); it != NULL; it = qr_json_iter_next(json, it)) {
        qr_str key = qr_json_iter_key(it), text = token_text(qr_json_iter_value(it));
        int64_t id = 0;
        for (size_t i = 0; i < key.len; i++) {
            if (key.data[i] < '0' || key.data[i] > '9' || id >= QR_TOKEN_ID_MAX)
                return qr_fail(err, QR_BAD_FILE, "%s: added_tokens_decoder: id '%.*s'", tokenizer->name,
                               (int)QR_MIN(key.len, 40u), key.data);
            id = id * 10 + (key.data[i] - '0');
        }
        if (text.data == NULL)
            return qr_fail(err, QR_BAD_FILE, "%s: added_tokens_decoder: %lld has no content", tokenizer->name,
                           (long long)id);
        int32_t known = qr_tokenizer_id_of(tokenizer, text);
        bool taken = (size_t)id < tokenizer->flags.count && (tokenizer->flags.data[id] & QR_TOKEN_PRESENT);
        qr_added_token token = token_attributes(qr_json_iter_value(it), false);
        qr_status status =
            qr_tokenizer_add(tokenizer, text, token, known >= 0 || taken ? -1 : (int32_t)id, err);
        if (status != QR_OK)
            return status;
    }
    return QR_OK;
}

/* A token that the configuration calls special becomes an added one, as transformers makes it. */
static qr_status ensure_special(qr_tokenizer *tokenizer, const qr_json *value, int32_t *id, qr_error *err)
{
    qr_str text = token_text(value);
    *id = text.len > 0 ? qr_tokenizer_id_of(tokenizer, text) : -1;
    if (text.len == 0 || is_added(tokenizer, *id))
        return QR_OK;
    qr_added_token token = token_attributes(value, true);
    token.special = true;
    if (!qr_json_is(value, QR_JSON_OBJECT))
        token.normalized = false;
    qr_status status = qr_tokenizer_add(tokenizer, text, token, -1, err);
    *id = qr_tokenizer_id_of(tokenizer, text);
    return status;
}

static qr_status parse_specials(qr_tokenizer *tokenizer, const qr_json *json, qr_error *err)
{
    qr_status status = QR_OK;
    for (int i = 0; i < QR_SPECIAL_COUNT && status == QR_OK; i++) {
        const qr_json *value = qr_json_get(json, special_keys[i]);
        int32_t id;
        status = ensure_special(tokenizer, value, &id, err);
        if (status == QR_OK && id >= 0) {
            tokenizer->special_ids[i] = id;
            tokenizer->special_text[i] = qr_tokenizer_own(tokenizer, token_text(value));
        }
    }
    static const char *const lists[] = {"additional_special_tokens", "extra_special_tokens"};
    for (size_t k = 0; k < QR_COUNT_OF(lists); k++) {
        const qr_json *list = qr_json_get(json, lists[k]);
        int32_t id;
        for (size_t i = 0; qr_json_is(list, QR_JSON_ARRAY) && i < qr_json_count(list) && status == QR_OK; i++)
            status = ensure_special(tokenizer, qr_json_at(list, i), &id, err);
        for (void *it = qr_json_is(list, QR_JSON_OBJECT) ? qr_json_iter(list) : NULL;
             it != NULL && status == QR_OK; it = qr_json_iter_next(list, it))
            status = ensure_special(tokenizer, qr_json_iter_value(it), &id, err);
    }
    return status;
}

static bool is_llama_class(qr_str name)
{
    static const char *const names[] = {"LlamaTokenizer",         "LlamaTokenizerFast", "CodeLlamaTokenizer",
                                        "CodeLlamaTokenizerFast", "GemmaTokenizer",     "GemmaTokenizerFast"};
    for (size_t i = 0; i < QR_COUNT_OF(names); i++)
        if (qr_str_equals(name, names[i]))
            return true;
    return false;
}

/* The Llama classes of transformers make their post-processor from two switches, whatever tokenizer.json says. */
static void parse_llama_switches(qr_tokenizer *tokenizer, const qr_json *json)
{
    bool bos = qr_json_bool(qr_json_get(json, "add_bos_token"), true);
    bool eos = qr_json_bool(qr_json_get(json, "add_eos_token"), false);
    if (!is_llama_class(qr_json_string(qr_json_get(json, "tokenizer_class"))))
        return;
    qr_template_item begin = {tokenizer->special_ids[QR_SPECIAL_BOS], 0}, text = {QR_ITEM_TEXT, 0},
                     end = {tokenizer->special_ids[QR_SPECIAL_EOS], 0};
    if ((bos && begin.id < 0) || (eos && end.id < 0))
        return;
    tokenizer->post.count = 0;
    if (bos)
        QR_VEC_PUSH(&tokenizer->post, begin);
    QR_VEC_PUSH(&tokenizer->post, text);
    if (eos)
        QR_VEC_PUSH(&tokenizer->post, end);
}

/* A string, or a list of named templates of which "default" (else the first) is taken. */
static qr_status parse_template(qr_tokenizer *tokenizer, const qr_json *json, qr_error *err)
{
    qr_str source = qr_json_string(json);
    for (size_t i = 0; qr_json_is(json, QR_JSON_ARRAY) && i < qr_json_count(json); i++) {
        const qr_json *item = qr_json_at(json, i);
        bool chosen = qr_str_equals(qr_json_string(qr_json_get(item, "name")), "default");
        if (chosen || source.data == NULL)
            source = qr_json_string(qr_json_get(item, "template"));
        if (chosen)
            break;
    }
    return source.data != NULL ? qr_tokenizer_load_template(tokenizer, source, err) : QR_OK;
}

qr_status qr_tokenizer_parse_config(qr_tokenizer *tokenizer, const qr_json *json, qr_error *err)
{
    qr_status status = parse_added_decoder(tokenizer, qr_json_get(json, "added_tokens_decoder"), err);
    if (status == QR_OK)
        status = parse_specials(tokenizer, json, err);
    if (status == QR_OK)
        parse_llama_switches(tokenizer, json);
    if (status == QR_OK)
        status = parse_template(tokenizer, qr_json_get(json, "chat_template"), err);
    return status;
}

/* A template that does not compile leaves a tokenizer that works and an error for those who render. */
qr_status qr_tokenizer_load_template(qr_tokenizer *tokenizer, qr_str source, qr_error *err)
{
    qr_error problem;
    (void)err;
    qr_free(tokenizer->template_source);
    qr_jinja_free(tokenizer->template_compiled);
    tokenizer->template_compiled = NULL;
    tokenizer->template_source = qr_strndup(source.data, source.len);
    if (qr_jinja_compile(source, &tokenizer->template_compiled, &problem) != QR_OK) {
        char quoted[300];
        tokenizer->template_compiled = NULL;
        qr_log(QR_LOG_WARN, "chat_template_unusable", "file=%s reason=%s", tokenizer->name,
               qr_log_quote(problem.message, quoted, sizeof(quoted)));
    }
    return QR_OK;
}
