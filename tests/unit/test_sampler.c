// links: qr_sample qr_base
/* Sampling: the filters against a plain definition, the distribution against its probabilities, bounds. */
#include "support/cmocka.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "sample/sampler.h"

#define VOCAB 1003 /* no multiple of a vector or a block */

typedef struct fixture {
    qr_arena arena;
    qr_sampler_scratch *scratch;
    float logits[VOCAB];
    int32_t ids[64];
} fixture;

static int setup(void **state)
{
    fixture *f = qr_calloc(1, sizeof(*f));
    qr_arena_init(&f->arena, 4096);
    f->scratch = qr_sampler_scratch_new(VOCAB, 20);
    uint64_t random = 7;
    for (int i = 0; i < VOCAB; i++)
        f->logits[i] = (float)(qr_rng_next(&random) % 2000000) / 100000.0f - 10.0f;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    qr_sampler_scratch_free(f->scratch);
    qr_arena_release(&f->arena);
    qr_free(f);
    return 0;
}

static qr_sampler_params make(fixture *f, const qr_sampling_params *from, qr_id_list ends,
                              const qr_id_list *bad, int32_t bad_count)
{
    qr_sampler_params params;
    qr_error err = {0};
    qr_status status =
        qr_sampler_params_make(from, 42, VOCAB, ends, bad, bad_count, &f->arena, &params, &err);
    if (status != QR_OK)
        fail_msg("%s", err.message);
    return params;
}

static int32_t sample_at(fixture *f, const qr_sampler_params *params, int64_t prompt, int64_t count,
                         qr_logprob *out)
{
    qr_sampler_input input = {params, f->logits, f->ids, prompt, count, 0};
    return qr_sample(&input, f->scratch, out);
}

static int32_t plain_argmax(const float *row)
{
    int32_t best = 0;
    for (int32_t i = 1; i < VOCAB; i++)
        if (row[i] > row[best])
            best = i;
    return best;
}

static void greedy_takes_the_lowest_id_of_the_maxima(void **state)
{
    fixture *f = *state;
    qr_sampling_params from;
    qr_sampling_params_init(&from);
    from.temperature = 0;
    qr_sampler_params params = make(f, &from, (qr_id_list){0}, NULL, 0);
    assert_int_equal(sample_at(f, &params, 0, 0, NULL), plain_argmax(f->logits));
    f->logits[1002] = f->logits[77] = 99;
    assert_int_equal(sample_at(f, &params, 0, 0, NULL), 77);
    f->logits[3] = NAN;
    assert_int_equal(sample_at(f, &params, 0, 0, NULL), 77);
}

static void a_row_without_a_finite_entry_gives_no_token(void **state)
{
    fixture *f = *state;
    for (int i = 0; i < VOCAB; i++)
        f->logits[i] = i % 2 ? NAN : -INFINITY;
    qr_sampling_params from;
    qr_sampling_params_init(&from);
    for (int greedy = 0; greedy < 2; greedy++) {
        from.temperature = greedy ? 0 : 1;
        qr_sampler_params params = make(f, &from, (qr_id_list){0}, NULL, 0);
        assert_int_equal(sample_at(f, &params, 0, 0, NULL), -1);
    }
}

/* Draws at many positions and compares frequencies with the probabilities that `allowed` renormalises. */
static void check_distribution(fixture *f, const qr_sampling_params *from, const bool *allowed)
{
    enum { DRAWS = 20000 };
    qr_sampler_params params = make(f, from, (qr_id_list){0}, NULL, 0);
    double p[VOCAB], total = 0;
    for (int i = 0; i < VOCAB; i++)
        total += p[i] = allowed[i] ? exp((double)f->logits[i] / (double)from->temperature) : 0;
    int counts[VOCAB] = {0};
    for (int d = 0; d < DRAWS; d++) {
        params.seed = (uint64_t)d * 977;
        int32_t id = sample_at(f, &params, 0, d % 50, NULL);
        assert_in_range(id, 0, VOCAB - 1);
        assert_true(allowed[id]);
        counts[id]++;
    }
    for (int i = 0; i < VOCAB; i++) {
        double expected = p[i] / total * DRAWS;
        assert_true(fabs(counts[i] - expected) <= 6 * sqrt(expected + 1) + 1);
    }
}

static void plain_sampling_follows_the_softmax(void **state)
{
    fixture *f = *state;
    bool all[VOCAB];
    memset(all, 1, sizeof(all));
    qr_sampling_params from;
    qr_sampling_params_init(&from);
    from.temperature = 1.7f;
    check_distribution(f, &from, all);
}

/* The definition: sort by logit, keep k (ties stay), then the smallest head whose mass reaches top_p. */
static void plain_filter(const float *logits, float temperature, int32_t k, double top_p, double min_p,
                         bool *allowed)
{
    int32_t order[VOCAB];
    int32_t count = 0;
    float max = logits[plain_argmax(logits)];
    for (int32_t i = 0; i < VOCAB; i++) {
        if (exp((double)(logits[i] - max) / (double)temperature) < min_p)
            continue;
        int32_t at = count++;
        for (; at > 0 && logits[order[at - 1]] < logits[i]; at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
    if (k > 0 && k < count)
        count = k;
    double mass = 0, sum = 0;
    for (int32_t i = 0; i < count; i++)
        mass += exp((double)(logits[order[i]] - max) / (double)temperature);
    memset(allowed, 0, VOCAB);
    for (int32_t i = 0; i < count && sum < top_p * mass; i++) {
        sum += exp((double)(logits[order[i]] - max) / (double)temperature);
        allowed[order[i]] = true;
    }
}

static void filters_keep_what_their_definition_keeps(void **state)
{
    fixture *f = *state;
    const struct {
        int32_t k;
        float p, min_p, temperature;
    } cases[] = {
        {5, 1, 0, 1},          {0, 0.7f, 0, 1}, {0, 1, 0.1f, 1},  {40, 0.9f, 0, 2},
        {0, 0.999f, 0.01f, 3}, {1, 1, 0, 1},    {0, 0.01f, 0, 1},
    };
    for (size_t c = 0; c < QR_COUNT_OF(cases); c++) {
        bool allowed[VOCAB];
        qr_sampling_params from;
        qr_sampling_params_init(&from);
        from.top_k = cases[c].k;
        from.top_p = cases[c].p;
        from.min_p = cases[c].min_p;
        from.temperature = cases[c].temperature;
        plain_filter(f->logits, from.temperature, from.top_k, (double)from.top_p, (double)from.min_p,
                     allowed);
        check_distribution(f, &from, allowed);
    }
}

static void the_same_key_gives_the_same_token_and_other_keys_differ(void **state)
{
    fixture *f = *state;
    qr_sampling_params from;
    qr_sampling_params_init(&from);
    from.temperature = 5;
    qr_sampler_params params = make(f, &from, (qr_id_list){0}, NULL, 0);
    int same = 0;
    for (int i = 0; i < 60; i++) {
        qr_sampler_input input = {&params, f->logits, f->ids, 0, i, 0};
        int32_t first = qr_sample(&input, f->scratch, NULL);
        assert_int_equal(first, qr_sample(&input, f->scratch, NULL));
        input.sample = 1;
        same += first == qr_sample(&input, f->scratch, NULL);
    }
    assert_true(same < 30);
}

static void masks_bias_and_minimum_change_what_greedy_takes(void **state)
{
    fixture *f = *state;
    int32_t best = plain_argmax(f->logits);
    const int32_t allowed[] = {900, 12, 500};
    const qr_logit_bias bias[] = {{333, 100}};
    qr_sampling_params from;
    qr_sampling_params_init(&from);
    from.temperature = 0;
    from.allowed_token_ids = allowed;
    from.allowed_token_id_count = 3;
    qr_sampler_params params = make(f, &from, (qr_id_list){0}, NULL, 0);
    int32_t id = sample_at(f, &params, 0, 0, NULL);
    assert_true(id == 900 || id == 12 || id == 500);

    qr_sampling_params_init(&from);
    from.temperature = 0;
    from.logit_bias = bias;
    from.logit_bias_count = 1;
    params = make(f, &from, (qr_id_list){0}, NULL, 0);
    assert_int_equal(sample_at(f, &params, 0, 0, NULL), 333);

    qr_sampling_params_init(&from);
    from.temperature = 0;
    from.min_tokens = 2;
    params = make(f, &from, (qr_id_list){&best, 1}, NULL, 0);
    assert_int_not_equal(sample_at(f, &params, 3, 4, NULL), best);
    assert_int_equal(sample_at(f, &params, 3, 5, NULL), best);
}

static void bad_words_are_banned_only_where_they_would_be_completed(void **state)
{
    fixture *f = *state;
    int32_t best = plain_argmax(f->logits);
    const int32_t word[] = {8, 9, best};
    const qr_id_list bad = {word, 3};
    qr_sampling_params from;
    qr_sampling_params_init(&from);
    from.temperature = 0;
    qr_sampler_params params = make(f, &from, (qr_id_list){0}, &bad, 1);
    f->ids[0] = 8, f->ids[1] = 9;
    assert_int_equal(sample_at(f, &params, 1, 2, NULL), best); /* 8 is prompt */
    assert_int_not_equal(sample_at(f, &params, 0, 2, NULL), best);
    f->ids[1] = 10;
    assert_int_equal(sample_at(f, &params, 0, 2, NULL), best);
}

static void penalties_match_their_formula(void **state)
{
    fixture *f = *state;
    for (int i = 0; i < VOCAB; i++)
        f->logits[i] = -20;
    f->logits[1] = 4.0f, f->logits[2] = 3.9f, f->logits[3] = -1;
    f->ids[0] = 1, f->ids[1] = 2, f->ids[2] = 2;
    qr_sampling_params from;
    qr_sampling_params_init(&from);
    from.temperature = 0;
    from.repetition_penalty = 2; /* 1 -> 2.0, 2 -> 1.95: prompt counts */
    qr_sampler_params params = make(f, &from, (qr_id_list){0}, NULL, 0);
    assert_int_equal(sample_at(f, &params, 1, 3, NULL), 1);
    from.repetition_penalty = 1;
    from.frequency_penalty = -0.1f; /* 2 -> 4.1: output only */
    params = make(f, &from, (qr_id_list){0}, NULL, 0);
    assert_int_equal(sample_at(f, &params, 1, 3, NULL), 2);
    from.frequency_penalty = 0;
    from.presence_penalty = 1;
    params = make(f, &from, (qr_id_list){0}, NULL, 0);
    assert_int_equal(sample_at(f, &params, 0, 1, NULL), 2);
    f->ids[0] = VOCAB + 5; /* an id that has no column (padded vocabularies) is skipped */
    assert_int_equal(sample_at(f, &params, 0, 1, NULL), 1);
}

/* What ops.h says of an edit. */
static float edited(float x, const qr_logit_edit *edit)
{
    x = (x == x ? x : -INFINITY) + edit->bias;
    x = x > 0 ? x / edit->repetition : x * edit->repetition;
    return x - edit->frequency - edit->presence;
}

static void edits_make_the_row_that_is_drawn_from(void **state)
{
    fixture *f = *state;
    uint64_t random = 11;
    int different = 0;
    const int32_t word[] = {7, 9}, end_ids[] = {3, 40};
    const qr_id_list bad[] = {{word, 2}, {word + 1, 1}}, ends = {end_ids, 2};
    const qr_logit_bias bias[] = {{5, 4}, {40, -100}, {900, 7.25f}};
    for (int turn = 0; turn < 400; turn++) {
        uint64_t bits = qr_rng_next(&random);
        qr_sampling_params from, plain;
        qr_sampling_params_init(&from);
        from.temperature = bits & 1 ? 0 : 1.5f;
        from.top_k = bits & 2 ? 30 : 0;
        plain = from;
        from.repetition_penalty = bits & 4 ? 1.7f : 1;
        from.frequency_penalty = bits & 8 ? 0.9f : 0;
        from.presence_penalty = bits & 16 ? -1.3f : 0;
        from.logit_bias = bias;
        from.logit_bias_count = bits & 32 ? 3 : 0;
        from.min_tokens = bits & 64 ? 8 : 0;
        for (int i = 0; i < 64; i++)
            f->ids[i] = (int32_t)(qr_rng_next(&random) % (i % 3 == 0 ? VOCAB + 2 : 12));
        for (int i = 0; i < 12; i++) /* the ids that are spoken of matter */
            f->logits[i] = 9 + (float)(qr_rng_next(&random) % 100) / 50;
        f->logits[11] = NAN;
        qr_sampler_params params = make(f, &from, ends, bad, bits & 128 ? 2 : 0);
        qr_sampler_params without = make(f, &plain, (qr_id_list){0}, NULL, 0);
        int64_t prompt = (int64_t)(bits >> 8) % 30, count = prompt + (int64_t)(bits >> 16) % 30;
        qr_sampler_input input = {&params, f->logits, f->ids, prompt, count, 0};
        qr_logit_edit edits[200];
        int32_t made = qr_sampler_edits(&input, f->scratch, edits, (int32_t)QR_COUNT_OF(edits));
        assert_true(made >= 0);
        int32_t want = qr_sample(&input, f->scratch, NULL);
        float *row = qr_calloc(VOCAB, sizeof(float));
        memcpy(row, f->logits, sizeof(f->logits));
        for (int32_t i = 0; i < made; i++) {
            for (int32_t k = 0; k < i; k++)
                assert_true(edits[i].id != edits[k].id);
            row[edits[i].id] = edited(row[edits[i].id], &edits[i]);
        }
        qr_sampler_input after = {&without, row, f->ids, prompt, count, 0};
        assert_int_equal(qr_sample(&after, f->scratch, NULL), want);
        after.logits = f->logits;
        different += qr_sample(&after, f->scratch, NULL) != want;
        qr_free(row);
        if (made > 1) /* no room for all: the host draws, and nothing of it is left behind */
            assert_int_equal(qr_sampler_edits(&input, f->scratch, edits, made - 1), -1);
        assert_int_equal(qr_sampler_edits(&input, f->scratch, edits, made), made);
    }
    assert_true(different > 100);
}

static void logprobs_are_of_the_raw_row_and_ordered(void **state)
{
    fixture *f = *state;
    qr_sampling_params from;
    qr_sampling_params_init(&from);
    from.temperature = 0;
    from.logprobs = 7;
    const qr_logit_bias bias[] = {{333, 100}};
    from.logit_bias = bias;
    from.logit_bias_count = 1;
    qr_sampler_params params = make(f, &from, (qr_id_list){0}, NULL, 0);
    qr_logprob out[8];
    assert_int_equal(sample_at(f, &params, 0, 0, out), 333);
    double sum = 0;
    int greater = 0;
    for (int i = 0; i < VOCAB; i++) {
        sum += exp((double)f->logits[i]);
        greater += f->logits[i] > f->logits[333];
    }
    assert_int_equal(out[0].token, 333);
    assert_int_equal(out[0].rank, greater + 1);
    for (int i = 0; i < 8; i++)
        assert_true(fabs((double)out[i].logprob - ((double)f->logits[out[i].token] - log(sum))) < 1e-5);
    for (int i = 1; i < 8; i++) {
        assert_int_equal(out[i].rank, i);
        assert_true(i == 1 || out[i].logprob <= out[i - 1].logprob);
    }
    assert_int_equal(out[1].token, plain_argmax(f->logits));
}

static void wrong_numbers_are_refused_by_name(void **state)
{
    (void)state;
    qr_error err = {0};
    qr_sampling_params p;
#define REFUSES(field, value)                                                      \
    do {                                                                           \
        qr_sampling_params_init(&p);                                               \
        p.field = (value);                                                         \
        assert_int_equal(qr_sampling_params_check(&p, &err), QR_INVALID_ARGUMENT); \
        assert_non_null(strstr(err.message, #field));                              \
    } while (0)
    REFUSES(temperature, NAN);
    REFUSES(temperature, INFINITY);
    REFUSES(temperature, -0.5f);
    REFUSES(top_p, 0);
    REFUSES(top_p, NAN);
    REFUSES(top_p, 1.5f);
    REFUSES(min_p, -0.1f);
    REFUSES(top_k, -2);
    REFUSES(n, 0);
    REFUSES(n, 1000000000);
    REFUSES(max_tokens, -2);
    REFUSES(min_tokens, 17);
    REFUSES(repetition_penalty, 0);
    REFUSES(presence_penalty, 3);
    REFUSES(logprobs, -2);
#undef REFUSES
    qr_sampling_params_init(&p);
    assert_int_equal(qr_sampling_params_check(&p, &err), QR_OK);
    const char *stop[] = {""};
    p.stop = stop;
    p.stop_count = 1;
    assert_int_equal(qr_sampling_params_check(&p, &err), QR_INVALID_ARGUMENT);
}

static void ids_outside_the_vocabulary_are_refused(void **state)
{
    fixture *f = *state;
    const int32_t id = VOCAB;
    qr_sampling_params from;
    qr_sampling_params_init(&from);
    from.stop_token_ids = &id;
    from.stop_token_id_count = 1;
    qr_sampler_params params;
    qr_error err = {0};
    assert_int_equal(
        qr_sampler_params_make(&from, 1, VOCAB, (qr_id_list){0}, NULL, 0, &f->arena, &params, &err),
        QR_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "stop_token_ids"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(greedy_takes_the_lowest_id_of_the_maxima, setup, teardown),
        cmocka_unit_test_setup_teardown(a_row_without_a_finite_entry_gives_no_token, setup, teardown),
        cmocka_unit_test_setup_teardown(plain_sampling_follows_the_softmax, setup, teardown),
        cmocka_unit_test_setup_teardown(filters_keep_what_their_definition_keeps, setup, teardown),
        cmocka_unit_test_setup_teardown(the_same_key_gives_the_same_token_and_other_keys_differ, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(masks_bias_and_minimum_change_what_greedy_takes, setup, teardown),
        cmocka_unit_test_setup_teardown(bad_words_are_banned_only_where_they_would_be_completed, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(penalties_match_their_formula, setup, teardown),
        cmocka_unit_test_setup_teardown(edits_make_the_row_that_is_drawn_from, setup, teardown),
        cmocka_unit_test_setup_teardown(logprobs_are_of_the_raw_row_and_ordered, setup, teardown),
        cmocka_unit_test(wrong_numbers_are_refused_by_name),
        cmocka_unit_test_setup_teardown(ids_outside_the_vocabulary_are_refused, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
