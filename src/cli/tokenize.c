/* quire tokenize MODEL TEXT...: ids and pieces; with --decode, the text of ids. `-` reads standard input. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "cli/cli.h"

#define STDIN_BYTES_MAX (64u << 20)

static qr_status read_text(const cli_options *options, qr_buf *text, qr_error *err)
{
    const cli_list *arguments = &options->arguments;
    if (arguments->count < 2)
        return qr_fail(err, QR_INVALID_ARGUMENT, "text is expected after MODEL (or - for standard input)");
    if (arguments->count == 2 && strcmp(arguments->items[1], "-") == 0) {
        char chunk[65536];
        for (size_t got; (got = fread(chunk, 1, sizeof(chunk), stdin)) > 0;) {
            if (text->len + got > STDIN_BYTES_MAX)
                return qr_fail(err, QR_LIMIT_EXCEEDED, "standard input: more than %u bytes", STDIN_BYTES_MAX);
            qr_buf_append(text, chunk, got);
        }
        return QR_OK;
    }
    for (size_t i = 1; i < arguments->count; i++) {
        if (i > 1)
            qr_buf_append_char(text, ' ');
        qr_buf_append_cstr(text, arguments->items[i]);
    }
    return QR_OK;
}

static qr_status parse_ids(const char *text, int32_t **ids, size_t *count, qr_error *err)
{
    size_t capacity = strlen(text) / 2 + 1;
    int32_t *out = qr_calloc(capacity, sizeof(*out));
    *count = 0;
    for (const char *at = text; *(at += strspn(at, " ,\t\r\n[]")) != '\0';) {
        char *end = NULL;
        errno = 0;
        long value = strtol(at, &end, 10);
        if (end == at || errno != 0 || value < 0 || value > INT32_MAX) {
            qr_free(out);
            return qr_fail(err, QR_INVALID_ARGUMENT, "a token id is expected, got '%.20s'", at);
        }
        out[(*count)++] = (int32_t)value;
        at = end;
    }
    *ids = out;
    return QR_OK;
}

static qr_status decode(const qr_tokenizer *tokenizer, const char *text, bool skip_special, qr_error *err)
{
    int32_t *ids = NULL;
    size_t count = 0, bytes = 0;
    char *decoded = NULL;
    qr_status status = parse_ids(text, &ids, &count, err);
    if (status == QR_OK)
        status = qr_tokenizer_decode(tokenizer, ids, count, skip_special, &decoded, &bytes, err);
    if (status == QR_OK) {
        fwrite(decoded, 1, bytes, stdout);
        putchar('\n');
    }
    qr_free(ids);
    qr_string_free(decoded);
    return status;
}

static void print_ids(const qr_tokenizer *tokenizer, const int32_t *ids, size_t count, bool json)
{
    for (size_t i = 0; i < count && json; i++)
        printf("%s%d", i == 0 ? "[" : ", ", ids[i]);
    if (json) {
        puts(count == 0 ? "[]" : "]");
        return;
    }
    for (size_t i = 0; i < count; i++) {
        bool special = false;
        const char *token = qr_tokenizer_token(tokenizer, ids[i], &special);
        printf("%8d  %s%s\n", ids[i], token != NULL ? token : "?", special ? "  (special)" : "");
    }
    printf("%zu tokens\n", count);
}

static qr_status encode(const qr_tokenizer *tokenizer, qr_str text, const cli_options *options, qr_error *err)
{
    qr_encode_options encode_options;
    qr_encode_options_init(&encode_options);
    encode_options.add_special_tokens = !options->no_special;
    int32_t *ids = NULL;
    size_t count = 0;
    qr_status status =
        qr_tokenizer_encode(tokenizer, text.data, text.len, &encode_options, &ids, &count, err);
    if (status != QR_OK)
        return status;
    print_ids(tokenizer, ids, count, options->json);
    qr_ids_free(ids);
    return QR_OK;
}

int cli_tokenize(cli_options *options)
{
    qr_error err = {0};
    qr_tokenizer *tokenizer = NULL;
    qr_buf text = {0};
    qr_status status = read_text(options, &text, &err);
    if (status == QR_OK)
        status = cli_tokenizer_open(options, &tokenizer, &err);
    if (status == QR_OK && options->decode)
        status = decode(tokenizer, text.data, options->no_special, &err);
    else if (status == QR_OK)
        status = encode(tokenizer, qr_str_make(text.data != NULL ? text.data : "", text.len), options, &err);
    qr_tokenizer_close(tokenizer);
    qr_buf_release(&text);
    return status == QR_OK ? 0 : cli_fail("tokenize", &err);
}
