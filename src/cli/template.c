/* quire template MODEL [FILE]: the prompt that the chat template makes of a request (JSON with "messages", or a bare
 * list of messages), from FILE or standard input. */
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"
#include "cli/cli.h"

static qr_status read_request(const cli_options *options, qr_buf *text, qr_error *err)
{
    const char *path = options->arguments.count > 1 ? options->arguments.items[1] : "-";
    if (strcmp(path, "-") != 0)
        return qr_file_read(path, 64u << 20, text, err);
    char chunk[65536];
    for (size_t got; (got = fread(chunk, 1, sizeof(chunk), stdin)) > 0 && text->len < (64u << 20);)
        qr_buf_append(text, chunk, got);
    return QR_OK;
}

int cli_template(cli_options *options)
{
    qr_error err = {0};
    qr_tokenizer *tokenizer = NULL;
    qr_buf request = {0}, wrapped = {0};
    char *prompt = NULL;
    size_t bytes = 0;
    qr_status status = cli_tokenizer_open(options, &tokenizer, &err);
    if (status == QR_OK)
        status = read_request(options, &request, &err);
    if (status == QR_OK) {
        size_t start = request.data != NULL ? strspn(request.data, " \t\r\n") : 0;
        bool list = request.data != NULL && request.data[start] == '[';
        qr_buf_append_cstr(&wrapped, list ? "{\"messages\":" : "");
        qr_buf_append_str(&wrapped, qr_buf_str(&request));
        qr_buf_append_cstr(&wrapped, list ? "}" : "");
        status = qr_template_render(tokenizer, wrapped.data, wrapped.len, &prompt, &bytes, &err);
    }
    /* The marker inside message text that spells a special token (qr_template_render) is for the encoder only. */
    for (size_t i = 0; status == QR_OK && i < bytes; i++)
        if ((unsigned char)prompt[i] != 0xFF)
            putchar(prompt[i]);
    qr_string_free(prompt);
    qr_buf_release(&request);
    qr_buf_release(&wrapped);
    qr_tokenizer_close(tokenizer);
    return status == QR_OK ? 0 : cli_fail("template", &err);
}
