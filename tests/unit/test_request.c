/* Requests as memory: what is copied, how the output is laid out, what it is estimated at. */
#include "base/mem.h"
#include "engine/request.h"
#include "support/cmocka.h"

static qr_request *make(qr_request_options *o)
{
    qr_error err = {0};
    qr_request *request = NULL;
    if (qr_request_new(o, &request, &err) != QR_OK)
        fail_msg("%s", err.message);
    return request;
}

static void a_request_keeps_copies_of_what_it_was_given(void **state)
{
    (void)state;
    int32_t ids[3] = {4, 5, 6}, stop_ids[1] = {9};
    char stop[] = "END", salt[] = "tenant";
    const char *stops[1] = {stop};
    qr_request_options o;
    qr_request_options_init(&o);
    o.token_ids = ids;
    o.token_count = 3;
    o.cache_salt = salt;
    o.sampling.stop = stops;
    o.sampling.stop_count = 1;
    o.sampling.stop_token_ids = stop_ids;
    o.sampling.stop_token_id_count = 1;
    qr_request *request = make(&o);
    memset(ids, 0, sizeof(ids));
    memset(stop, 0, sizeof(stop));
    memset(salt, 0, sizeof(salt));
    stop_ids[0] = 0;
    assert_int_equal(request->prompt.data[2], 6);
    assert_string_equal(request->sampling.stop[0], "END");
    assert_true(qr_str_equals(request->stop.strings[0], "END"));
    assert_true(qr_str_equals(request->salt, "tenant"));
    assert_int_equal(request->sampling.stop_token_ids[0], 9);
    qr_request_free(request);
}

/* A program built when the struct ended earlier gets the defaults of what came later. */
static void an_older_struct_takes_defaults(void **state)
{
    (void)state;
    int32_t ids[1] = {1};
    qr_request_options o;
    qr_request_options_init(&o);
    o.token_ids = ids;
    o.token_count = 1;
    o.truncate_prompt_tokens = -2; /* wrong, and beyond what the struct says it has */
    o.size = offsetof(qr_request_options, truncate_prompt_tokens);
    qr_request *request = make(&o);
    assert_int_equal(request->truncate, 0);
    qr_request_free(request);
}

static void check_region(const qr_request *r, const void *memory, size_t bytes)
{
    const char *begin = memory, *base = r->pages;
    assert_true(begin >= base && begin + bytes <= base + r->pages_bytes);
}

static void output_memory_holds_all_a_request_can_emit(void **state)
{
    (void)state;
    int32_t ids[5] = {1, 2, 3, 4, 5};
    qr_error err = {0};
    qr_request_options o;
    qr_request_options_init(&o);
    o.token_ids = ids;
    o.token_count = 5;
    o.sampling.n = 3;
    o.sampling.logprobs = 2;
    o.sampling.prompt_logprobs = 1;
    qr_request *r = make(&o);
    r->prompt_count = 5;
    const qr_output_shape shape = {
        .tokens_max = 25, .token_bytes_max = 10, .block_size = 4, .n_groups = 2, .keys = true};
    if (qr_request_reserve(r, &shape, &err) != QR_OK)
        fail_msg("%s", err.message);
    for (int i = 0; i < 3; i++) {
        qr_output *out = &r->samples[i];
        check_region(r, out->seq.ids, 25 * sizeof(int32_t));
        check_region(r, out->seq.keys, 7 * sizeof(qr_prefix_key));
        check_region(r, out->seq.table.blocks[1], 7 * sizeof(int32_t));
        check_region(r, out->logprobs, 20 * 3 * sizeof(qr_logprob));
        check_region(r, out->text, out->text_capacity);
        assert_true(out->text_capacity >= 20 * 10);
        assert_memory_equal(out->seq.ids, ids, sizeof(ids));
        assert_int_equal(out->seq.committed, 5);
        /* Nothing overlaps: each is filled with its own byte and keeps it. */
        memset(out->text, 'a' + i, out->text_capacity);
        memset(out->logprobs, i, 20 * 3 * sizeof(qr_logprob));
        memset(out->seq.keys, 10 + i, 7 * sizeof(qr_prefix_key));
    }
    for (int i = 0; i < 3; i++) {
        const qr_output *out = &r->samples[i];
        for (size_t k = 0; k < out->text_capacity; k++)
            assert_int_equal(out->text[k], 'a' + i);
        assert_int_equal(((const char *)out->logprobs)[20 * 3 * sizeof(qr_logprob) - 1], i);
        assert_int_equal(out->seq.keys[6].bytes[31], 10 + i);
        assert_memory_equal(out->seq.ids, ids, sizeof(ids));
    }
    check_region(r, r->prompt_logprobs, 5 * 2 * sizeof(qr_logprob));
    assert_int_equal(r->prompt_logprobs[0].token, -1);
    qr_request_free(r);
}

static void estimates_grow_with_what_is_asked_for(void **state)
{
    (void)state;
    int32_t ids[1] = {1};
    qr_request_options o;
    qr_request_options_init(&o);
    o.token_ids = ids;
    o.token_count = 1;
    o.sampling.max_tokens = 100;
    qr_request *a = make(&o);
    o.sampling.logprobs = 5;
    qr_request *b = make(&o);
    o.sampling.n = 4;
    qr_request *c = make(&o);
    o.sampling.max_tokens = -1;
    qr_request *d = make(&o);
    uint64_t least = qr_request_estimate_bytes(a, 1000);
    assert_true(least >= 100 * sizeof(int32_t));
    assert_true(qr_request_estimate_bytes(b, 1000) >= least + 100 * 6 * sizeof(qr_logprob));
    assert_true(qr_request_estimate_bytes(c, 1000) >= 4 * 100 * 6 * sizeof(qr_logprob));
    assert_true(qr_request_estimate_bytes(d, 1000) >= 4 * 1000 * 6 * sizeof(qr_logprob));
    qr_request_free(a);
    qr_request_free(b);
    qr_request_free(c);
    qr_request_free(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_keeps_copies_of_what_it_was_given),
        cmocka_unit_test(an_older_struct_takes_defaults),
        cmocka_unit_test(output_memory_holds_all_a_request_can_emit),
        cmocka_unit_test(estimates_grow_with_what_is_asked_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
