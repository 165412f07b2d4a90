// links: qr_model qr_backend qr_loader qr_quant qr_tensor qr_base
/* The default model against transformers on the dequantised weights (tests/golden/smollm2/README.md): the greedy answer
 * to a chat prompt, its logits, and the perplexity of a WikiText-2 excerpt. Skips when the file is not in the cache. */
#include <math.h>
#include <stdio.h>

#include "base/cpuid.h"
#include "base/file.h"
#include "base/mem.h"
#include "support/cmocka.h"
#include "support/net_run.h"

#define FOLDER QR_TESTS_DIR "/golden/smollm2"

static char *model_path(void)
{
    char *cache = qr_cache_dir(), *folder = qr_path_join(cache, "models");
    char *path = qr_path_join(folder, "SmolLM2-135M-Instruct.Q4_1.gguf");
    qr_free(cache);
    qr_free(folder);
    if (!qr_file_exists(path)) {
        print_message("skipped: %s is not there (./dev serve fetches it)\n", path);
        qr_free(path);
        return NULL;
    }
    return path;
}

static void map_reference(const char *name, qr_file_map *map)
{
    char path[512];
    qr_error err = {0};
    snprintf(path, sizeof(path), FOLDER "/%s", name);
    if (qr_file_map_open(path, map, &err) != QR_OK)
        fail_msg("%s", err.message);
}

static void open_ranks(net_run *run, const char *isa, int32_t rows, int ranks)
{
    char *path = model_path();
    if (path == NULL)
        skip();
    qr_error err = {0};
    net_run_options options = {.path = path,
                               .isa = isa,
                               .ranks = ranks,
                               .dtype = -1,
                               .kv_dtype = -1,
                               .context_max = 1024,
                               .seqs_max = 1,
                               .block_size = 16,
                               .rows_max = rows};
    qr_status status = net_run_open(run, &options, &err);
    qr_free(path);
    if (status != QR_OK)
        fail_msg("%s", err.message);
}

static void open_model(net_run *run, const char *isa, int32_t rows) { open_ranks(run, isa, rows, 1); }

static double logprob(const float *logits, int32_t vocab, int32_t id)
{
    double top = -INFINITY, sum = 0;
    for (int32_t i = 0; i < vocab; i++)
        top = fmax(top, (double)logits[i]);
    for (int32_t i = 0; i < vocab; i++)
        sum += exp((double)logits[i] - top);
    return (double)logits[id] - top - log(sum);
}

/* KL(reference || ours) in nats. */
static double divergence(const float *reference, const float *ours, int32_t vocab)
{
    double shift_r = logprob(reference, vocab, 0) - (double)reference[0];
    double shift_o = logprob(ours, vocab, 0) - (double)ours[0];
    double sum = 0;
    for (int32_t i = 0; i < vocab; i++) {
        double r = (double)reference[i] + shift_r;
        sum += exp(r) * (r - ((double)ours[i] + shift_o));
    }
    return sum;
}

/* Sums over ranks come in another order than within one. With F32 activations that is all; where activations are rounded
 * to 8 bits a last bit turns one by a step, layer after layer, until two runs differ by as much as either does from the
 * unrounded model. As shares of the largest logit: */
#define RANKS_BOUND_F32  5e-4
#define RANKS_BOUND_8BIT 0.08

/* Greedy ids must be the reference's, whose choice leads by 0.08 at least. */
static void check_chat_answer(int ranks)
{
    qr_file_map map;
    map_reference("chat.bin", &map);
    const int32_t *head = (const int32_t *)(const void *)map.data;
    int32_t prompt = head[0], greedy = head[1], top = head[2], vocab = head[3];
    const int32_t *ids = head + 4, *top_ids = ids + prompt + greedy + vocab;
    const float *want = (const float *)(const void *)(ids + prompt + greedy);
    const float *top_values = (const float *)(const void *)(top_ids + greedy * top);
    net_run run;
    open_ranks(&run, "auto", prompt, ranks);
    assert_int_equal(qr_net_vocab(run.net), vocab);
    const float *logits = net_run_step(&run, &(net_run_rows){0, 0, prompt, ids}, 1, false);
    double worst = 0, largest = 0;
    for (int32_t i = 0; i < vocab; i++) {
        worst = fmax(worst, fabs((double)logits[i] - (double)want[i]));
        largest = fmax(largest, fabs((double)want[i]));
    }
    print_message("logits after the prompt: max|diff|/max|ref| %.2e\n", worst / largest);
    assert_true(worst / largest < (ranks == 1 ? 0.03 : 0.06));
    double kl = divergence(want, logits, vocab);
    print_message("KL of the next token's distribution: %.2e nats\n", kl);
    assert_true(kl >= -1e-9 && kl < 1e-2);
    double worst_top = 0;
    int right = 0, closed = 0;
    for (int32_t k = 0; k < greedy; k++) {
        for (int32_t j = 0; j < top; j++)
            worst_top =
                fmax(worst_top, fabs((double)logits[top_ids[k * top + j]] - (double)top_values[k * top + j]));
        /* Several ranks may choose otherwise where their noise is larger than the lead. */
        double lead = (double)top_values[k * top] - (double)top_values[k * top + 1];
        bool open = ranks > 1 && lead < RANKS_BOUND_8BIT * largest;
        right += open || net_run_argmax(logits, vocab) == ids[prompt + k];
        closed += !open;
        logits = net_run_step(&run, &(net_run_rows){0, prompt + k, 1, ids + prompt + k}, 1, false);
    }
    print_message("greedy %d of %d, %d of them clear; top logits differ by at most %.3f of %.1f\n", right,
                  greedy, closed, worst_top, largest);
    assert_int_equal(right, greedy);
    assert_true(closed > greedy / 4);
    net_run_close(&run);
    qr_file_map_close(&map);
}

static void the_chat_answer_is_the_reference_s(void **state)
{
    (void)state;
    check_chat_answer(1);
}

static void three_ranks_give_the_reference_s_chat_answer_too(void **state)
{
    (void)state;
    check_chat_answer(3);
}

static void margins(const float *logits, int32_t vocab, int32_t *best, double *lead)
{
    *best = net_run_argmax(logits, vocab);
    double second = -INFINITY;
    for (int32_t i = 0; i < vocab; i++)
        if (i != *best)
            second = fmax(second, (double)logits[i]);
    *lead = (double)logits[*best] - second;
}

static void compare_ranks(const char *isa, int32_t length, double bound)
{
    qr_file_map map;
    map_reference("wikitext.bin", &map);
    const int32_t *head = (const int32_t *)(const void *)map.data;
    assert_true(length <= head[1]);
    net_run one, three;
    open_ranks(&one, isa, length, 1);
    open_ranks(&three, isa, length, 3);
    int32_t vocab = qr_net_vocab(one.net);
    const float *a = net_run_step(&one, &(net_run_rows){0, 0, length, head + 2}, 1, true);
    const float *b = net_run_step(&three, &(net_run_rows){0, 0, length, head + 2}, 1, true);
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < (int64_t)length * vocab; i++) {
        worst = fmax(worst, fabs((double)a[i] - (double)b[i]));
        largest = fmax(largest, fabs((double)a[i]));
    }
    int clear = 0;
    for (int32_t row = 0; row < length; row++) {
        int32_t best_a, best_b;
        double lead_a, lead_b;
        margins(a + (int64_t)row * vocab, vocab, &best_a, &lead_a);
        margins(b + (int64_t)row * vocab, vocab, &best_b, &lead_b);
        if (lead_a <= bound * largest)
            continue;
        clear++;
        assert_int_equal(best_a, best_b);
    }
    print_message("%s, 3 ranks against 1: max|diff|/max %.2e; %d of %d choices are clear\n", isa,
                  worst / largest, clear, length);
    assert_true(worst / largest < bound);
    assert_true(clear > 0);
    net_run_close(&one);
    net_run_close(&three);
    qr_file_map_close(&map);
}

static void three_ranks_choose_as_one_does_where_the_choice_is_clear(void **state)
{
    (void)state;
    compare_ranks("generic", 16, RANKS_BOUND_F32);
    compare_ranks("auto", 256, RANKS_BOUND_8BIT);
}

static void two_ranks_are_refused_with_the_numbers(void **state)
{
    (void)state;
    char *path = model_path();
    if (path == NULL)
        skip();
    net_run run;
    qr_error err = {0};
    net_run_options options = {.path = path,
                               .ranks = 2,
                               .dtype = -1,
                               .kv_dtype = -1,
                               .context_max = 64,
                               .seqs_max = 1,
                               .block_size = 16,
                               .rows_max = 8};
    assert_int_equal(net_run_open(&run, &options, &err), QR_UNSUPPORTED);
    qr_free(path);
    assert_string_equal(err.message, "tensor parallelism: 2 ranks cannot share 9 query heads");
}

static void perplexity_is_within_half_a_percent_of_the_dequantised_model_s(void **state)
{
    (void)state;
    qr_file_map map;
    map_reference("wikitext.bin", &map);
    const int32_t *head = (const int32_t *)(const void *)map.data;
    int32_t windows = head[0], length = head[1];
    const int32_t *ids = head + 2;
    const float *want = (const float *)(const void *)(ids + windows * length);
    net_run run;
    open_model(&run, "auto", length);
    int32_t vocab = qr_net_vocab(run.net);
    double ours = 0, reference = 0;
    int64_t scored = 0;
    for (int32_t w = 0; w < windows; w++) {
        const float *logits = net_run_step(&run, &(net_run_rows){0, 0, length, ids + w * length}, 1, true);
        for (int32_t i = 1; i < length; i++, scored++) {
            ours -= logprob(logits + (int64_t)(i - 1) * vocab, vocab, ids[w * length + i]);
            reference -= (double)want[w * length + i];
        }
    }
    double ratio = exp((ours - reference) / (double)scored);
    print_message("perplexity %.4f, of the dequantised model %.4f: ratio %.5f\n", exp(ours / (double)scored),
                  exp(reference / (double)scored), ratio);
    assert_true(ratio < 1.005 && ratio > 0.995);
    net_run_close(&run);
    qr_file_map_close(&map);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_chat_answer_is_the_reference_s),
        cmocka_unit_test(three_ranks_give_the_reference_s_chat_answer_too),
        cmocka_unit_test(three_ranks_choose_as_one_does_where_the_choice_is_clear),
        cmocka_unit_test(two_ranks_are_refused_with_the_numbers),
        cmocka_unit_test(perplexity_is_within_half_a_percent_of_the_dequantised_model_s),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
