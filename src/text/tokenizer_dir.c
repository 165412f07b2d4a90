/* A folder of a checkpoint: tokenizer.json or another form of the vocabulary, and the configuration beside it. */
#include "base/file.h"
#include "text/tokenizer_impl.h"

enum { FILE_BYTES_MAX = 512 << 20 };

/* Appends a file of the folder when it is there. */
static qr_status read_beside(const char *dir, const char *name, qr_buf *out, qr_error *err)
{
    char *path = qr_path_join(dir, name);
    qr_status status = qr_file_exists(path) ? qr_file_read(path, 64 << 20, out, err) : QR_OK;
    qr_free(path);
    return status;
}

/* The template beside the configuration: chat_template.jinja wins over chat_template.json. */
static qr_status load_template_files(qr_tokenizer *tokenizer, const char *dir, qr_error *err)
{
    qr_buf text = {0};
    qr_json *json = NULL;
    qr_status status = read_beside(dir, "chat_template.jinja", &text, err);
    if (status == QR_OK && text.len > 0) {
        status = qr_tokenizer_load_template(tokenizer, qr_buf_str(&text), err);
    } else if (status == QR_OK) {
        status = read_beside(dir, "chat_template.json", &text, err);
        if (status == QR_OK && text.len > 0)
            status = qr_json_parse(qr_buf_str(&text), &qr_json_limits_file, &json, err);
        qr_str source =
            json != NULL ? qr_json_string(qr_json_get(json, "chat_template")) : qr_str_make(NULL, 0);
        if (status == QR_OK && source.data != NULL && tokenizer->template_source == NULL)
            status = qr_tokenizer_load_template(tokenizer, source, err);
    }
    qr_json_free(json);
    qr_buf_release(&text);
    return status;
}

static qr_status load_beside(qr_tokenizer *tokenizer, const char *dir, qr_error *err)
{
    static const char *const files[] = {"special_tokens_map.json", "tokenizer_config.json"};
    qr_status status = QR_OK;
    for (size_t i = 0; i < QR_COUNT_OF(files) && status == QR_OK; i++) {
        qr_buf text = {0};
        status = read_beside(dir, files[i], &text, err);
        if (status == QR_OK && text.len > 0)
            status = qr_tokenizer_load_config(tokenizer, qr_buf_str(&text), files[i], err);
        qr_buf_release(&text);
    }
    return status == QR_OK ? load_template_files(tokenizer, dir, err) : status;
}

/* What else than tokenizer.json a folder may hold. */
static const char *const other_files[] = {"tokenizer.model", "tiktoken.model", "vocab.tiktoken"};

/* A rank file is text from its first line on; a protobuf begins with the tag of a piece. */
static qr_status load_model_file(qr_tokenizer *tokenizer, qr_str bytes, qr_error *err)
{
    bool text = bytes.len > 0 && (uint8_t)bytes.data[0] >= ' ';
    if (text)
        return qr_tokenizer_load_tiktoken(tokenizer, bytes, qr_str_make(NULL, 0), err);
    return qr_tokenizer_load_sentencepiece(tokenizer, bytes, err);
}

/* The path of the file to load (qr_free): tokenizer.json when there is none, for its error. */
static char *find_file(const char *dir, bool *json)
{
    char *first = qr_path_join(dir, "tokenizer.json");
    *json = true;
    for (size_t i = 0; i < QR_COUNT_OF(other_files) && !qr_file_exists(first); i++) {
        char *path = qr_path_join(dir, other_files[i]);
        if (qr_file_exists(path)) {
            qr_free(first);
            *json = false;
            return path;
        }
        qr_free(path);
    }
    return first;
}

qr_status qr_text_tokenizer_from_model(qr_str bytes, const char *name, qr_tokenizer **out, qr_error *err)
{
    qr_tokenizer *tokenizer = qr_tokenizer_make(name);
    qr_status status = load_model_file(tokenizer, bytes, err);
    if (status == QR_OK)
        status = qr_tokenizer_finish(tokenizer, err);
    if (status == QR_OK)
        *out = tokenizer;
    else
        qr_tokenizer_destroy(tokenizer);
    return status;
}

qr_status qr_text_tokenizer_from_dir(const char *dir, qr_tokenizer **out, qr_error *err)
{
    bool json;
    char *path = find_file(dir, &json);
    qr_file_map map;
    qr_status status = qr_file_map_open(path, &map, err);
    if (status != QR_OK) {
        qr_free(path);
        return status;
    }
    qr_tokenizer *tokenizer = qr_tokenizer_make(path);
    qr_str bytes = qr_str_make((const char *)map.data, map.bytes);
    if (map.bytes > FILE_BYTES_MAX)
        status =
            qr_fail(err, QR_LIMIT_EXCEEDED, "%s: %zu bytes, more than %d", path, map.bytes, FILE_BYTES_MAX);
    else
        status =
            json ? qr_tokenizer_load_json(tokenizer, bytes, err) : load_model_file(tokenizer, bytes, err);
    qr_file_map_close(&map);
    qr_free(path);
    if (status == QR_OK)
        status = load_beside(tokenizer, dir, err);
    if (status == QR_OK)
        status = qr_tokenizer_finish(tokenizer, err);
    if (status == QR_OK)
        *out = tokenizer;
    else
        qr_tokenizer_destroy(tokenizer);
    return status;
}
