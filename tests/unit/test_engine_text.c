/* Text through the engine on stories260K (../shared): the recorded runs, stop strings at every place, streaming,
 * special tokens, bad words, both containers. Skipped with a word when the data is not there. */
#include "base/json.h"
#include "unit/engine_rig.h"

static char stories[512];
static qr_model *model;
static rig r;

static bool find_data(void)
{
    const char *shared = getenv("QR_SHARED_DIR");
    snprintf(stories, sizeof(stories), "%s/data/weights/stories260K", shared != NULL ? shared : "../shared");
    char path[600];
    snprintf(path, sizeof(path), "%s/expected.json", stories);
    return qr_file_exists(path);
}

static void open_all(const char *name)
{
    char path[600];
    snprintf(path, sizeof(path), "%s/%s", stories, name);
    model = rig_model(path, NULL, 2);
    qr_engine_options options = rig_options();
    rig_open(&r, model, &options);
}

static void close_all(void)
{
    rig_check_quiet(&r);
    rig_close(&r);
    qr_model_close(model);
}

static int setup(void **state)
{
    (void)state;
    open_all("hf");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    close_all();
    return 0;
}

static rig_job text_job(const char *text, int64_t max_tokens)
{
    rig_job job = rig_job_of(NULL, 0, max_tokens);
    job.options.text = text;
    job.options.text_bytes = strlen(text);
    return job;
}

static void check_generation(const qr_json *g)
{
    const qr_json *ids = qr_json_get(g, "greedy_ids");
    const char *prompt = qr_json_cstring(qr_json_get(g, "prompt"), "");
    rig_job job = text_job(prompt, (int64_t)qr_json_count(ids));
    rig_run(&r, &job, 1);
    const rig_output *out = &job.out[0];
    const qr_json *prompt_ids = qr_json_get(g, "prompt_ids");
    assert_int_equal(job.facts.prompt_count, qr_json_count(prompt_ids));
    for (size_t i = 0; i < out->count; i++)
        if (out->ids[i] != qr_json_int(qr_json_at(ids, i), -1))
            fail_msg("\"%s\": token %zu is %d, recorded is %lld", prompt, i, out->ids[i],
                     (long long)qr_json_int(qr_json_at(ids, i), -1));
    assert_int_equal(out->count, qr_json_count(ids));
    qr_str text = qr_json_string(qr_json_get(g, "greedy_text"));
    qr_str got = qr_str_make(out->text, out->text_bytes);
    /* The recorded text is the continuation as it follows the prompt; a leading space may be the record's choice. */
    if (!qr_str_ends(got, text) && !qr_str_ends(text, got))
        fail_msg("\"%s\": the text is \"%.*s\", recorded is \"%.*s\"", prompt, (int)got.len, got.data,
                 (int)text.len, text.data);
    rig_free(&job, 1);
}

static void recorded_runs_are_reproduced(void **state)
{
    (void)state;
    char path[600];
    snprintf(path, sizeof(path), "%s/expected.json", stories);
    qr_json *json;
    qr_error err = {0};
    RIG_OK(qr_json_read_file(path, &json, &err), err);
    const qr_json *list = qr_json_get(json, "generations");
    assert_true(qr_json_count(list) >= 8);
    for (size_t i = 0; i < qr_json_count(list); i++)
        check_generation(qr_json_at(list, i));
    qr_json_free(json);
}

static void both_containers_give_the_same(void **state)
{
    (void)state;
    rig_job hf = text_job("Once upon a time", 60), gguf = text_job("Once upon a time", 60);
    hf.options.sampling.logprobs = 3;
    gguf.options.sampling.logprobs = 3;
    rig_run(&r, &hf, 1);
    close_all();
    open_all("gguf/stories260K-f32.gguf");
    rig_run(&r, &gguf, 1);
    assert_int_equal(hf.out[0].count, gguf.out[0].count);
    assert_memory_equal(hf.out[0].ids, gguf.out[0].ids, hf.out[0].count * sizeof(int32_t));
    assert_int_equal(hf.out[0].text_bytes, gguf.out[0].text_bytes);
    assert_memory_equal(hf.out[0].text, gguf.out[0].text, hf.out[0].text_bytes);
    rig_free(&hf, 1);
    rig_free(&gguf, 1);
    close_all();
    open_all("hf");
}

/* Every substring of a part of the text, as a stop string: the text ends right before it (or behind it), whatever
 * token borders it crosses, and nothing of it was ever shown. rig_take_event checks that events add up. */
static void a_stop_string_ends_the_text_wherever_it_lies(void **state)
{
    (void)state;
    rig_job whole = text_job("Once upon a time", 40);
    rig_run(&r, &whole, 1);
    const rig_output *all = &whole.out[0];
    for (size_t begin = 10; begin < 40; begin++) {
        for (size_t length = 1; length < 12; length += 2) {
            char stop[16];
            memcpy(stop, all->text + begin, length);
            stop[length] = '\0';
            const char *stops[2] = {"never in it", stop};
            rig_job job = text_job("Once upon a time", 40);
            job.options.sampling.stop = stops;
            job.options.sampling.stop_count = 2;
            job.options.sampling.include_stop_str_in_output = length % 4 == 3;
            rig_run(&r, &job, 1);
            ptrdiff_t first = qr_str_find(qr_str_make(all->text, all->text_bytes), qr_str_of(stop), 0);
            size_t expected = (size_t)first + (length % 4 == 3 ? length : 0);
            if (job.out[0].text_bytes != expected || memcmp(job.out[0].text, all->text, expected) != 0)
                fail_msg("stop \"%s\": the text is \"%s\"", stop, job.out[0].text);
            assert_int_equal(job.out[0].finish, QR_FINISH_STOP);
            assert_int_equal(job.out[0].stop_string, 1);
            assert_int_equal(job.out[0].stop_token, -1);
            rig_free(&job, 1);
        }
    }
    rig_free(&whole, 1);
}

static void a_stop_string_waits_for_min_tokens(void **state)
{
    (void)state;
    const char *stops[1] = {"a"};
    rig_job job = text_job("Once upon a time", 60);
    job.options.sampling.stop = stops;
    job.options.sampling.stop_count = 1;
    job.options.sampling.min_tokens = 25;
    rig_run(&r, &job, 1);
    assert_true(job.out[0].count > 25 && job.out[0].count < 60);
    assert_int_equal(job.out[0].finish, QR_FINISH_STOP);
    assert_non_null(strchr(job.out[0].text, 'a')); /* earlier ones stay */
    rig_free(&job, 1);
}

static void streamed_text_equals_decoding_the_ids(void **state)
{
    (void)state;
    qr_error err = {0};
    for (uint64_t seed = 1; seed <= 40; seed++) {
        rig_job job = text_job("The sun is 42 ☀ é", 50);
        job.options.sampling.temperature = 2; /* wild: bytes that make no characters */
        job.options.sampling.has_seed = true;
        job.options.sampling.seed = seed;
        job.options.sampling.ignore_eos = true;
        rig_run(&r, &job, 1);
        int32_t ids[128];
        size_t n = job.facts.prompt_count;
        char *prompt_text, *text;
        size_t prompt_bytes, bytes;
        int32_t *prompt_ids;
        size_t prompt_count;
        const qr_tokenizer *tokenizer = qr_model_tokenizer(model);
        RIG_OK(qr_tokenizer_encode(tokenizer, job.options.text, job.options.text_bytes, NULL, &prompt_ids,
                                   &prompt_count, &err),
               err);
        assert_int_equal(prompt_count, n);
        memcpy(ids, prompt_ids, n * sizeof(int32_t));
        memcpy(ids + n, job.out[0].ids, job.out[0].count * sizeof(int32_t));
        RIG_OK(qr_tokenizer_decode(tokenizer, ids, n, true, &prompt_text, &prompt_bytes, &err), err);
        RIG_OK(qr_tokenizer_decode(tokenizer, ids, n + job.out[0].count, true, &text, &bytes, &err), err);
        if (bytes != prompt_bytes + job.out[0].text_bytes ||
            memcmp(text + prompt_bytes, job.out[0].text, job.out[0].text_bytes) != 0)
            fail_msg("seed %llu: \"%s\" is not what follows in \"%s\"", (unsigned long long)seed,
                     job.out[0].text, text);
        qr_ids_free(prompt_ids);
        qr_string_free(prompt_text);
        qr_string_free(text);
        rig_free(&job, 1);
    }
}

static void without_detokenize_there_are_only_ids(void **state)
{
    (void)state;
    rig_job job = text_job("Once", 10), with = text_job("Once", 10);
    job.options.sampling.detokenize = false;
    rig_run(&r, &job, 1);
    rig_run(&r, &with, 1);
    assert_int_equal(job.out[0].text_bytes, 0);
    assert_int_equal(job.out[0].count, 10);
    assert_memory_equal(job.out[0].ids, with.out[0].ids, 10 * sizeof(int32_t));
    rig_free(&job, 1);
    rig_free(&with, 1);
}

/* Marks that an output parser looks for stay, the other special tokens go; what ends the answer is no text. */
static void special_tokens_are_skipped_but_for_those_kept(void **state)
{
    static const int32_t unknown[] = {0};
    static const char *const texts[] = {"", "<unk><unk><unk>", "<unk><unk><unk>"};
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        rig_job job = text_job("Once", 3);
        job.options.sampling.allowed_token_ids = unknown;
        job.options.sampling.allowed_token_id_count = 1;
        job.options.sampling.skip_special_tokens = kind != 2;
        job.options.kept_special_ids = kind == 1 ? unknown : NULL;
        job.options.kept_special_count = kind == 1;
        rig_run(&r, &job, 1);
        assert_int_equal(job.out[0].count, 3);
        assert_int_equal(job.out[0].text_bytes, strlen(texts[kind]));
        assert_memory_equal(job.out[0].text, texts[kind], strlen(texts[kind]));
        rig_free(&job, 1);
    }
}

static void bad_words_are_not_generated(void **state)
{
    (void)state;
    rig_job plain = text_job("Once upon a time", 60), banned = text_job("Once upon a time", 60);
    const char *words[] = {"Lily", "little"};
    banned.options.sampling.bad_words = words;
    banned.options.sampling.bad_word_count = 2;
    rig_run(&r, &plain, 1);
    rig_run(&r, &banned, 1);
    assert_non_null(strstr(plain.out[0].text, "Lily"));
    assert_null(strstr(banned.out[0].text, "Lily"));
    rig_free(&plain, 1);
    rig_free(&banned, 1);
}

static void a_resumed_text_continues_across_a_stop_string(void **state)
{
    (void)state;
    const char *stops[1] = {"Lily. She"};
    rig_job whole = text_job("Once upon a time", 60);
    whole.options.sampling.stop = stops;
    whole.options.sampling.stop_count = 1;
    rig_run(&r, &whole, 1);
    assert_int_equal(whole.out[0].finish, QR_FINISH_STOP);
    for (size_t cut = 1; cut < whole.out[0].count; cut++) {
        rig_job rest = text_job("Once upon a time", 60);
        rest.options.sampling.stop = stops;
        rest.options.sampling.stop_count = 1;
        rest.options.output_prefix_ids = whole.out[0].ids;
        rest.options.output_prefix_count = cut;
        rig_run(&r, &rest, 1);
        assert_int_equal(rest.out[0].finish, QR_FINISH_STOP);
        assert_int_equal(rest.out[0].stop_string, 0);
        assert_int_equal(rest.out[0].count, whole.out[0].count - cut);
        assert_true(qr_str_ends(qr_str_make(whole.out[0].text, whole.out[0].text_bytes),
                                qr_str_make(rest.out[0].text, rest.out[0].text_bytes)));
        rig_free(&rest, 1);
    }
    rig_free(&whole, 1);
}

static void a_prompt_that_is_too_long_is_refused_by_its_length(void **state)
{
    (void)state;
    size_t bytes = 4 << 20;
    char *text = malloc(bytes);
    memset(text, 'a', bytes);
    rig_job job = text_job("", 4);
    job.options.text = text;
    job.options.text_bytes = bytes;
    rig_run(&r, &job, 1);
    assert_int_equal(job.out[0].finish, QR_FINISH_ERROR);
    assert_non_null(strstr(job.out[0].message, "maximum length"));
    rig_free(&job, 1);
    free(text);
}

static void many_texts_at_once_give_what_each_gives_alone(void **state)
{
    (void)state;
    enum { MANY = 40 };
    static rig_job jobs[MANY];
    static const char *const prompts[] = {"Once upon a time", "Zoo", "Lily and Ben", "One day, a cat", ""};
    rig_job alone[5];
    for (int i = 0; i < 5; i++) {
        alone[i] = text_job(prompts[i], 30);
        rig_run(&r, &alone[i], 1);
    }
    for (int i = 0; i < MANY; i++)
        jobs[i] = text_job(prompts[i % 5], 30);
    rig_run(&r, jobs, MANY);
    for (int i = 0; i < MANY; i++)
        rig_same(prompts[i % 5], &alone[i % 5].out[0], &jobs[i].out[0]);
    rig_free(jobs, MANY);
    rig_free(alone, 5);
}

int main(void)
{
    if (!find_data()) {
        print_message("skipped: no stories260K in QR_SHARED_DIR or ../shared\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(recorded_runs_are_reproduced),
        cmocka_unit_test(a_stop_string_ends_the_text_wherever_it_lies),
        cmocka_unit_test(a_stop_string_waits_for_min_tokens),
        cmocka_unit_test(streamed_text_equals_decoding_the_ids),
        cmocka_unit_test(without_detokenize_there_are_only_ids),
        cmocka_unit_test(special_tokens_are_skipped_but_for_those_kept),
        cmocka_unit_test(bad_words_are_not_generated),
        cmocka_unit_test(a_resumed_text_continues_across_a_stop_string),
        cmocka_unit_test(a_prompt_that_is_too_long_is_refused_by_its_length),
        cmocka_unit_test(many_texts_at_once_give_what_each_gives_alone),
        cmocka_unit_test(both_containers_give_the_same),
    };
    return RIG_RUN_BOTH_WAYS(tests, setup, teardown);
}
