/* Option files: a JSON object, or the flat part of YAML that vLLM's --config files use: `name: value`, lists as
 * `- value` lines, # comments, quotes. Nothing of the text is freed: options point into it. */
#include <ctype.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "cli/cli.h"

#define SETTINGS_FILE_BYTES_MAX (1 << 20)

static qr_status set_json_value(const char *path, const char *name, const qr_json *value, cli_set_fn set,
                                void *user, qr_error *err)
{
    if (qr_json_is(value, QR_JSON_NULL))
        return QR_OK;
    qr_buf text = {0};
    if (qr_json_is(value, QR_JSON_STRING))
        qr_buf_append_str(&text, qr_json_string(value));
    else
        qr_json_write(value, 0, &text);
    qr_status status = set(user, name, qr_buf_detach(&text, NULL), err);
    if (status != QR_OK)
        qr_error_prefix(err, "%s", path);
    return status;
}

static qr_status read_json(const char *path, qr_str text, cli_set_fn set, void *user, qr_error *err)
{
    qr_json *root = NULL;
    qr_status status = qr_json_parse(text, &qr_json_limits_file, &root, err);
    if (status != QR_OK) {
        qr_error_prefix(err, "%s", path);
        return status;
    }
    for (void *it = qr_json_iter(root); it != NULL && status == QR_OK; it = qr_json_iter_next(root, it)) {
        qr_str key = qr_json_iter_key(it);
        char *name = qr_strndup(key.data, key.len);
        const qr_json *value = qr_json_iter_value(it);
        if (!qr_json_is(value, QR_JSON_ARRAY))
            status = set_json_value(path, name, value, set, user, err);
        for (size_t i = 0; qr_json_is(value, QR_JSON_ARRAY) && i < qr_json_count(value) && status == QR_OK;
             i++)
            status = set_json_value(path, name, qr_json_at(value, i), set, user, err);
        qr_free(name);
    }
    qr_json_free(root);
    return status;
}

/* Cuts white space, a comment outside quotes, and one pair of quotes; in place. */
static char *clean(char *text)
{
    while (isspace((unsigned char)*text))
        text++;
    char quote = *text == '"' || *text == '\'' ? *text : '\0';
    if (quote != '\0') {
        char *end = strchr(text + 1, quote);
        if (end != NULL) {
            *end = '\0';
            return text + 1;
        }
    }
    for (char *at = text; *at != '\0'; at++)
        if (*at == '#' && (at == text || isspace((unsigned char)at[-1])))
            *at = '\0';
    size_t len = strlen(text);
    while (len > 0 && isspace((unsigned char)text[len - 1]))
        text[--len] = '\0';
    return text;
}

static qr_status read_lines(const char *path, char *text, cli_set_fn set, void *user, qr_error *err)
{
    char *list_name = NULL;
    int line_number = 0;
    for (char *line = text; line != NULL;) {
        char *next = strchr(line, '\n');
        if (next != NULL)
            *next++ = '\0';
        line_number++;
        char *item = line + strspn(line, " \t");
        char *colon = strchr(item, ':');
        qr_status status = QR_OK;
        if (*item == '\0' || *item == '\r' || *item == '#' || strcmp(item, "---") == 0) {
            /* nothing on this line */
        } else if (item[0] == '-' && item[1] == ' ' && list_name != NULL) {
            status = set(user, list_name, clean(item + 2), err);
        } else if (colon != NULL && item == line) {
            *colon = '\0';
            char *value = clean(colon + 1);
            list_name = *value == '\0' ? clean(item) : NULL;
            if (list_name == NULL)
                status = set(user, clean(item), value, err);
        } else {
            status = qr_fail(err, QR_INVALID_ARGUMENT, "`name: value` is expected, got '%.60s'", item);
        }
        if (status != QR_OK) {
            qr_error_prefix(err, "%s: line %d", path, line_number);
            return status;
        }
        line = next;
    }
    return QR_OK;
}

qr_status cli_settings_file_read(const char *path, cli_set_fn set, void *user, qr_error *err)
{
    qr_buf text = {0};
    qr_status status = qr_file_read(path, SETTINGS_FILE_BYTES_MAX, &text, err);
    if (status != QR_OK || text.len == 0) {
        qr_buf_release(&text);
        return status;
    }
    size_t start = strspn(text.data, " \t\r\n");
    if (text.data[start] == '{') {
        status = read_json(path, qr_buf_str(&text), set, user, err); /* copies its values */
        qr_buf_release(&text);
        return status;
    }
    return read_lines(path, text.data, set, user, err);
}
