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

static void open_model(net_run *run, const char *isa, int32_t rows)
{
    char *path = model_path();
    if (path == NULL)
        skip();
    qr_error err = {0};
    net_run_options options = {.path = path,
                               .isa = isa,
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

/* Greedy ids must be the reference's, whose choice leads by 0.08 at least. */
static void the_chat_answer_is_the_reference_s(void **state)
{
    (void)state;
    qr_file_map map;
    map_reference("chat.bin", &map);
    const int32_t *head = (const int32_t *)(const void *)map.data;
    int32_t prompt = head[0], greedy = head[1], top = head[2], vocab = head[3];
    const int32_t *ids = head + 4, *top_ids = ids + prompt + greedy + vocab;
    const float *want = (const float *)(const void *)(ids + prompt + greedy);
    const float *top_values = (const float *)(const void *)(top_ids + greedy * top);
    net_run run;
    open_model(&run, "auto", prompt);
    assert_int_equal(qr_net_vocab(run.net), vocab);
    const float *logits = net_run_step(&run, &(net_run_rows){0, 0, prompt, ids}, 1, false);
    double worst = 0, largest = 0;
    for (int32_t i = 0; i < vocab; i++) {
        worst = fmax(worst, fabs((double)logits[i] - (double)want[i]));
        largest = fmax(largest, fabs((double)want[i]));
    }
    print_message("logits after the prompt: max|diff|/max|ref| %.2e\n", worst / largest);
    assert_true(worst / largest < 0.03);
    double kl = divergence(want, logits, vocab);
    print_message("KL of the next token's distribution: %.2e nats\n", kl);
    assert_true(kl >= -1e-9 && kl < 1e-2);
    double worst_top = 0;
    int right = 0;
    for (int32_t k = 0; k < greedy; k++) {
        for (int32_t j = 0; j < top; j++)
            worst_top =
                fmax(worst_top, fabs((double)logits[top_ids[k * top + j]] - (double)top_values[k * top + j]));
        right += net_run_argmax(logits, vocab) == ids[prompt + k];
        logits = net_run_step(&run, &(net_run_rows){0, prompt + k, 1, ids + prompt + k}, 1, false);
    }
    print_message("greedy %d of %d; top logits differ by at most %.3f of %.1f\n", right, greedy, worst_top,
                  largest);
    assert_int_equal(right, greedy);
    net_run_close(&run);
    qr_file_map_close(&map);
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
        cmocka_unit_test(perplexity_is_within_half_a_percent_of_the_dequantised_model_s),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
