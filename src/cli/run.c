/* quire run MODEL ["prompt"]: one answer, or a conversation with history when no prompt is given. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/mem.h"
#include "cli/cli.h"

#define INTERRUPT_POLL_MS 50

static volatile sig_atomic_t answering; /* Ctrl-C then stops the answer, otherwise the program */
static volatile sig_atomic_t interrupted;

static void interrupt(int signal)
{
    (void)signal;
    if (!answering)
        _exit(130);
    interrupted = 1;
}

typedef struct conversation {
    cli_options *options;
    qr_engine *engine;
    qr_poller *poller;
    qr_json *messages; /* NULL: raw completion */
} conversation;

static void add_message(qr_json *messages, const char *role, qr_str content)
{
    qr_json *message = qr_json_new_object();
    qr_json_set(message, "role", qr_json_new_string(qr_str_of(role)));
    qr_json_set(message, "content", qr_json_new_string(content));
    qr_json_push(messages, message);
}

static void start_messages(conversation *c)
{
    qr_json_free(c->messages);
    c->messages = qr_json_new_array();
    if (c->options->system_prompt != NULL)
        add_message(c->messages, "system", qr_str_of(c->options->system_prompt));
}

/* Prints what comes and keeps it; returns the first error. */
static qr_status follow(conversation *c, const qr_request_options *request, qr_buf *answer, qr_error *err)
{
    qr_request *submitted = NULL;
    qr_status status = qr_request_submit(c->engine, c->poller, request, &submitted, err);
    if (status != QR_OK)
        return status;
    interrupted = 0;
    answering = 1;
    for (bool ended = false; !ended;) {
        qr_event events[8];
        size_t count = qr_poller_poll(c->poller, events, QR_COUNT_OF(events), INTERRUPT_POLL_MS);
        if (interrupted)
            qr_request_cancel(submitted);
        for (size_t i = 0; i < count; i++) {
            fwrite(events[i].text, 1, events[i].text_bytes, stdout);
            qr_buf_append(answer, events[i].text, events[i].text_bytes);
            if (events[i].finish == QR_FINISH_ERROR)
                status = qr_fail(err, events[i].status, "%s", events[i].message);
            ended = ended || events[i].finish != QR_FINISH_NONE;
        }
        fflush(stdout);
    }
    answering = 0;
    qr_request_release(submitted);
    return status;
}

static qr_status answer(conversation *c, qr_str prompt, qr_error *err)
{
    qr_request_options request;
    qr_request_options_init(&request);
    request.sampling = c->options->sampling;
    qr_buf chat = {0}, text = {0};
    if (c->messages == NULL) {
        request.text = prompt.data;
        request.text_bytes = prompt.len;
    } else {
        add_message(c->messages, "user", prompt);
        qr_buf_append_cstr(&chat, "{\"messages\":");
        qr_json_write(c->messages, 0, &chat);
        qr_buf_append_cstr(&chat, "}");
        request.chat_json = chat.data;
        request.chat_json_bytes = chat.len;
    }
    qr_status status = follow(c, &request, &text, err);
    if (text.len == 0 || text.data[text.len - 1] != '\n')
        putchar('\n');
    if (status == QR_OK && c->messages != NULL)
        add_message(c->messages, "assistant", qr_buf_str(&text));
    qr_buf_release(&chat);
    qr_buf_release(&text);
    return status;
}

static int converse(conversation *c)
{
    bool terminal = isatty(STDIN_FILENO);
    if (terminal)
        fputs("Type a message; /clear forgets the conversation, /exit or Ctrl-D ends, Ctrl-C stops an "
              "answer.\n",
              stderr);
    char *line = NULL;
    size_t capacity = 0;
    int code = 0;
    for (;;) {
        if (terminal)
            fputs("> ", stderr);
        ssize_t len = getline(&line, &capacity, stdin);
        if (len < 0)
            break;
        while (len > 0 && (line[len - 1] == '\n' || line[len - 1] == '\r'))
            len--;
        qr_str text = qr_str_make(line, (size_t)len);
        if (len == 0)
            continue;
        if (qr_str_equals(text, "/exit") || qr_str_equals(text, "/quit"))
            break;
        if (qr_str_equals(text, "/clear")) {
            start_messages(c);
            continue;
        }
        qr_error err = {0};
        if (answer(c, text, &err) != QR_OK)
            code = cli_fail("run", &err);
    }
    free(line);
    return code;
}

int cli_run(cli_options *options)
{
    qr_error err = {0};
    if (options->arguments.count < 1 || options->arguments.count > 2) {
        qr_fail(&err, QR_INVALID_ARGUMENT, "MODEL and at most one prompt are expected; see quire run --help");
        return cli_fail("run", &err);
    }
    conversation c = {.options = options};
    qr_model *model = NULL;
    options->engine.max_num_seqs = options->engine.max_num_seqs > 0 ? options->engine.max_num_seqs : 1;
    qr_status status = cli_model_open(options, &model, &err);
    if (status == QR_OK && qr_model_tokenizer(model) == NULL)
        status = qr_fail(&err, QR_UNSUPPORTED, "this model has no tokenizer: use the server with token ids");
    if (status == QR_OK)
        status = qr_engine_open(model, &options->engine, &c.engine, &err);
    if (status == QR_OK)
        status = qr_poller_open(c.engine, &c.poller, &err);
    int code = 0;
    if (status == QR_OK) {
        signal(SIGINT, interrupt);
        if (!options->raw && qr_tokenizer_chat_template(qr_model_tokenizer(model)) != NULL)
            start_messages(&c);
        if (options->arguments.count == 2)
            status = answer(&c, qr_str_of(options->arguments.items[1]), &err);
        else
            code = converse(&c);
    }
    qr_json_free(c.messages);
    if (c.poller != NULL)
        qr_poller_close(c.poller);
    qr_engine_close(c.engine);
    qr_model_close(model);
    return status == QR_OK ? code : cli_fail("run", &err);
}
