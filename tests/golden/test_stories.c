// links: qr_model qr_backend qr_loader qr_quant qr_tensor qr_base
/* stories260K's recorded greedy runs and log-probabilities (../shared/data/weights/stories260K/expected.json), from
 * both containers and on every instruction set; its BF16 folder within a bound. Skips without ../shared. */
#include <math.h>
#include <stdio.h>

#include "base/cpuid.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "support/cmocka.h"
#include "support/net_run.h"

enum { IDS_MAX = 512 };

static const char *folder(void)
{
    static char path[512];
    const char *shared = qr_env("QR_SHARED_DIR");
    snprintf(path, sizeof(path), "%s/data/weights/stories260K", shared != NULL ? shared : "../shared");
    if (!qr_file_is_dir(path)) {
        print_message("skipped: %s is not there\n", path);
        skip();
    }
    return path;
}

static qr_json *read_expected(void)
{
    char path[600];
    qr_json *json = NULL;
    qr_error err = {0};
    snprintf(path, sizeof(path), "%s/expected.json", folder());
    if (qr_json_read_file(path, &json, &err) != QR_OK)
        fail_msg("%s", err.message);
    return json;
}

static void open_model(net_run *run, const char *name, const char *isa, int dtype)
{
    char path[600];
    qr_error err = {0};
    snprintf(path, sizeof(path), "%s/%s", folder(), name);
    net_run_options options = {.path = path,
                               .isa = isa,
                               .threads = 2,
                               .dtype = dtype,
                               .kv_dtype = dtype,
                               .context_max = IDS_MAX,
                               .seqs_max = 1,
                               .block_size = 16,
                               .rows_max = 256};
    if (net_run_open(run, &options, &err) != QR_OK)
        fail_msg("%s", err.message);
}

static int32_t read_ids(const qr_json *list, int32_t *ids, int32_t at)
{
    for (size_t i = 0; i < qr_json_count(list); i++) {
        assert_true(at < IDS_MAX);
        ids[at++] = (int32_t)qr_json_int(qr_json_at(list, i), -1);
    }
    return at;
}

/* Prefills the prompt, then follows the argmax; counts ids that differ from the recorded ones. */
static int greedy_differences(net_run *run, const qr_json *generation)
{
    int32_t ids[IDS_MAX], vocab = qr_net_vocab(run->net);
    int32_t prompt = read_ids(qr_json_get(generation, "prompt_ids"), ids, 0);
    int32_t end = read_ids(qr_json_get(generation, "greedy_ids"), ids, prompt);
    assert_true(prompt > 0 && end > prompt);
    int wrong = 0;
    const float *logits = net_run_step(run, &(net_run_rows){0, 0, prompt, ids}, 1, false);
    for (int32_t i = prompt; i < end; i++) {
        int32_t id = net_run_argmax(logits, vocab);
        wrong += id != ids[i];
        logits = net_run_step(run, &(net_run_rows){0, i, 1, &id}, 1, false);
    }
    return wrong;
}

static double logprob(const float *logits, int32_t vocab, int32_t id)
{
    double sum = 0;
    for (int32_t i = 0; i < vocab; i++)
        sum += exp((double)logits[i]);
    return (double)logits[id] - log(sum);
}

/* Largest difference of the recorded text's log-probabilities. */
static double forced_difference(net_run *run, const qr_json *forced)
{
    int32_t ids[IDS_MAX], vocab = qr_net_vocab(run->net);
    int32_t count = read_ids(qr_json_get(forced, "ids"), ids, 0);
    const qr_json *want = qr_json_get(forced, "token_logprobs");
    assert_int_equal(qr_json_count(want), count - 1);
    const float *logits = net_run_step(run, &(net_run_rows){0, 0, count, ids}, 1, true);
    double worst = 0;
    for (int32_t i = 1; i < count; i++) {
        double got = logprob(logits + (i - 1) * vocab, vocab, ids[i]);
        worst = fmax(worst, fabs(got - qr_json_number(qr_json_at(want, (size_t)i - 1), NAN)));
        assert_false(isnan(got));
    }
    return worst;
}

static bool machine_has(const char *isa)
{
    const qr_cpu_features *cpu = qr_cpu_detect();
    return strcmp(isa, "avx512") == 0 ? cpu->avx512 && cpu->avx512_vnni
           : strcmp(isa, "avx2") == 0 ? cpu->avx2
                                      : true;
}

static void both_containers_reproduce_the_recorded_runs(void **state)
{
    (void)state;
    static const char *const isas[] = {"generic", "avx2", "avx512"};
    static const char *const names[] = {"hf", "gguf/stories260K-f32.gguf"};
    qr_json *json = read_expected();
    const qr_json *generations = qr_json_get(json, "generations");
    assert_true(qr_json_count(generations) > 0);
    for (size_t i = 0; i < QR_COUNT_OF(isas); i++)
        for (size_t n = 0; n < QR_COUNT_OF(names) && machine_has(isas[i]); n++) {
            net_run run;
            open_model(&run, names[n], isas[i], QR_DTYPE_F32);
            int wrong = 0;
            for (size_t g = 0; g < qr_json_count(generations); g++)
                wrong += greedy_differences(&run, qr_json_at(generations, g));
            double worst = forced_difference(&run, qr_json_get(json, "teacher_forced"));
            print_message("%-26s %-8s ids that differ %d; log-probabilities differ by at most %.2e\n",
                          names[n], isas[i], wrong, worst);
            assert_int_equal(wrong, 0);
            assert_true(worst < 2e-5); /* the file records six decimals */
            net_run_close(&run);
        }
    qr_json_free(json);
}

/* BF16 keeps 8 bits: a log-probability may move by some percent of a nat. */
static void the_bf16_folder_stays_within_its_bound(void **state)
{
    (void)state;
    qr_json *json = read_expected();
    net_run run;
    open_model(&run, "hf-bf16", "auto", -1);
    assert_int_equal(qr_net_kv_dtype(run.net, &(qr_net_options){.dtype = -1}), QR_DTYPE_BF16);
    double worst = forced_difference(&run, qr_json_get(json, "teacher_forced"));
    print_message("hf-bf16: log-probabilities differ by at most %.3f\n", worst);
    assert_true(worst < 0.25);
    net_run_close(&run);
    qr_json_free(json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_containers_reproduce_the_recorded_runs),
        cmocka_unit_test(the_bf16_folder_stays_within_its_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
