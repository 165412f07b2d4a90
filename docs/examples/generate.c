/* A complete program on quire.h: loads a checkpoint, sends one prompt, prints the text as it comes.
 *
 *     generate MODEL [PROMPT [MAX_TOKENS]]        MODEL: a Hugging Face folder or a .gguf file
 *
 * Build it against libquire: cc generate.c -lquire
 */
#include <quire.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int fail(const char *what, const qr_error *err)
{
    fprintf(stderr, "generate: %s: %s\n", what, err->message);
    return 1;
}

/* Prints what comes until the request has ended. */
static int follow(qr_poller *poller)
{
    for (;;) {
        qr_event events[16];
        size_t count = qr_poller_poll(poller, events, 16, -1);
        for (size_t i = 0; i < count; i++) {
            fwrite(events[i].text, 1, events[i].text_bytes, stdout);
            fflush(stdout);
            if (events[i].finish == QR_FINISH_ERROR) {
                fprintf(stderr, "generate: %s\n", events[i].message);
                return 1;
            }
            if (events[i].finish != QR_FINISH_NONE)
                return 0;
        }
    }
}

static int generate(qr_engine *engine, const char *prompt, long max_tokens)
{
    qr_error err = {0};
    qr_poller *poller;
    if (qr_poller_open(engine, &poller, &err) != QR_OK)
        return fail("poller", &err);

    qr_request_options options;
    qr_request_options_init(&options);
    options.text = prompt;
    options.text_bytes = strlen(prompt);
    options.sampling.temperature = 0;
    options.sampling.max_tokens = max_tokens;
    qr_request *request;
    int result = 1;
    if (qr_request_submit(engine, poller, &options, &request, &err) != QR_OK) {
        fail("submit", &err);
    } else {
        result = follow(poller);
        qr_request_facts facts = qr_request_describe(request);
        qr_sample_view sample = qr_request_sample(request, 0);
        fprintf(stderr, "\n%zu prompt tokens, %zu generated, first after %.1f ms, finish: %s\n",
                facts.prompt_count, sample.token_count,
                (double)(facts.first_token_ns - facts.queued_ns) * 1e-6, qr_finish_name(sample.finish));
        qr_request_release(request);
    }
    qr_poller_close(poller);
    return result;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: generate MODEL [PROMPT [MAX_TOKENS]]\n");
        return 2;
    }
    qr_error err = {0};
    qr_model_options model_options;
    qr_model_options_init(&model_options);
    model_options.path = argv[1];
    qr_model *model;
    if (qr_model_open(&model_options, &model, &err) != QR_OK)
        return fail("model", &err);

    qr_engine *engine;
    int result = 1;
    if (qr_engine_open(model, NULL, &engine, &err) != QR_OK) {
        fail("engine", &err);
    } else {
        result = generate(engine, argc > 2 ? argv[2] : "Once upon a time", argc > 3 ? atol(argv[3]) : 64);
        qr_engine_close(engine);
    }
    qr_model_close(model);
    return result;
}
