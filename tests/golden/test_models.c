// links: qr_model qr_backend qr_loader qr_quant qr_tensor qr_base
/* Every checkpoint of tests/golden/models against transformers' float32 logits and greedy run (README.md there), on
 * each instruction set that this machine has, by one rank and by several. */
#include <math.h>
#include <stdio.h>

#include "base/cpuid.h"
#include "base/file.h"
#include "base/mem.h"
#include "support/cmocka.h"
#include "support/net_run.h"

#define MODELS QR_TESTS_DIR "/golden/models"

typedef struct golden_case {
    char name[64], path[512];
    int32_t prompt_count, greedy_count, vocab;
    qr_file_map map;
    const int32_t *ids;  /* prompt, then greedy */
    const float *logits; /* [prompt_count + greedy_count - 1][vocab] */
    int32_t rows;
} golden_case;

typedef struct golden_list {
    golden_case cases[96];
    size_t count;
} golden_list;

static void read_case(golden_case *c)
{
    char path[600];
    qr_error err = {0};
    snprintf(path, sizeof(path), MODELS "/expected/%s.bin", c->name);
    if (qr_file_map_open(path, &c->map, &err) != QR_OK)
        fail_msg("%s", err.message);
    c->rows = c->prompt_count + c->greedy_count - 1;
    size_t ids = (size_t)(c->prompt_count + c->greedy_count), logits = (size_t)c->rows * (size_t)c->vocab;
    assert_int_equal(c->map.bytes, (ids + logits) * 4);
    c->ids = (const int32_t *)(const void *)c->map.data;
    c->logits = (const float *)(const void *)(c->map.data + ids * 4);
}

static void read_manifest(golden_list *list)
{
    FILE *file = fopen(MODELS "/manifest.txt", "r");
    assert_non_null(file);
    char line[600], path[400];
    while (fgets(line, sizeof(line), file) != NULL) {
        golden_case *c = &list->cases[list->count];
        if (line[0] == '#' || sscanf(line, "%63s %399s %d %d %d", c->name, path, &c->prompt_count,
                                     &c->greedy_count, &c->vocab) != 5)
            continue;
        snprintf(c->path, sizeof(c->path), MODELS "/%s", path);
        read_case(c);
        list->count++;
        assert_true(list->count < QR_COUNT_OF(list->cases));
    }
    fclose(file);
    assert_true(list->count > 0);
}

static void release_list(golden_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        qr_file_map_close(&list->cases[i].map);
}

static const char *const all_isas[] = {"generic", "avx2", "avx512"};

static bool machine_has(const char *isa)
{
    const qr_cpu_features *cpu = qr_cpu_detect();
    return strcmp(isa, "avx512") == 0 ? cpu->avx512 : strcmp(isa, "avx2") == 0 ? cpu->avx2 : true;
}

/* By how many ranks: each on the widest and on the generic kernels, which differ in how they hold a share. */
static const int team_sizes[] = {1, 2, 3, 4};

static size_t team_size_count(const char *isa)
{
    return strcmp(isa, "avx2") == 0 && qr_cpu_detect()->avx512 ? 1 : QR_COUNT_OF(team_sizes);
}

/* false: so many ranks cannot share it, in words that say why. */
static bool open_run(net_run *run, const net_run_options *options, const char *name)
{
    qr_error err = {0};
    qr_status status = net_run_open(run, options, &err);
    if (status == QR_OK)
        return true;
    if (options->ranks == 1 || status != QR_UNSUPPORTED ||
        strstr(err.message, "tensor parallelism: ") == NULL)
        fail_msg("%s: %s", name, err.message);
    print_message("%s: refused: %s\n", name, err.message);
    return false;
}

static bool open_case(net_run *run, const golden_case *c, const char *isa, int threads, int ranks)
{
    net_run_options options = {.path = c->path,
                               .isa = isa,
                               .threads = threads,
                               .ranks = ranks,
                               .dtype = QR_DTYPE_F32,
                               .kv_dtype = QR_DTYPE_F32,
                               .context_max = c->rows + 8,
                               .seqs_max = 2,
                               .block_size = 16,
                               .rows_max = c->rows};
    if (!open_run(run, &options, c->name))
        return false;
    assert_int_equal(qr_net_vocab(run->net), c->vocab);
    return true;
}

static double difference(const float *a, const float *b, size_t count)
{
    double worst = 0, top = 0;
    for (size_t i = 0; i < count; i++) {
        if (!(fabs((double)a[i] - (double)b[i]) <= worst))
            worst = fabs((double)a[i] - (double)b[i]);
        top = fmax(top, fabs((double)b[i]));
    }
    return worst / top;
}

/* The reference rounds nothing but to float32; block formats run with 8-bit activations except on generic. */
static bool is_exact(const net_run *run, const char *isa)
{
    if (strcmp(isa, "generic") == 0)
        return true;
    for (size_t i = 0; i < qr_net_tensor_count(run->net); i++) {
        const qr_weights_entry *entry = qr_net_tensor_at(run->net, i).entry;
        if (qr_format_get(entry->format)->block != 1)
            return false;
    }
    return true;
}

static int check_case(const golden_case *c, const char *isa, int ranks, int *served)
{
    net_run run;
    if (!open_case(&run, c, isa, 1, ranks))
        return 0;
    (*served)++;
    const float *logits = net_run_step(&run, &(net_run_rows){0, 0, c->rows, c->ids}, 1, true);
    double worst = difference(logits, c->logits, (size_t)c->rows * (size_t)c->vocab);
    bool exact = is_exact(&run, isa);
    int wrong_tokens = 0;
    for (int32_t k = 0; k < c->greedy_count; k++)
        if (net_run_argmax(logits + (c->prompt_count - 1 + k) * c->vocab, c->vocab) !=
            c->ids[c->prompt_count + k])
            wrong_tokens++;
    double bound = exact ? 1e-4 : 5e-2;
    bool ok = worst <= bound && (!exact || wrong_tokens == 0);
    print_message("%-26s %-8s x%d max|diff|/max|ref| %.2e, greedy tokens off %d/%d%s%s\n", c->name, isa,
                  ranks, worst, wrong_tokens, c->greedy_count, exact ? "" : " (8-bit activations)",
                  ok ? "" : "  <-- FAILED");
    net_run_close(&run);
    return ok ? 0 : 1;
}

static void every_checkpoint_gives_the_reference_logits_and_greedy_tokens(void **state)
{
    golden_list *list = *state;
    int failed = 0;
    for (size_t isa = 0; isa < QR_COUNT_OF(all_isas); isa++) {
        if (!machine_has(all_isas[isa])) {
            print_message("%s: not on this machine\n", all_isas[isa]);
            continue;
        }
        for (size_t size = 0; size < team_size_count(all_isas[isa]); size++) {
            int served = 0;
            for (size_t i = 0; i < list->count; i++)
                failed += check_case(&list->cases[i], all_isas[isa], team_sizes[size], &served);
            print_message("%s: %d ranks serve %d of %zu\n", all_isas[isa], team_sizes[size], served,
                          list->count);
            assert_true(served >= 2); /* few of these small models have whole heads and blocks for all */
        }
    }
    assert_int_equal(failed, 0);
}

/* Chunks of changing sizes, then single tokens, next to another sequence that is a row longer. */
static int check_chunks(const golden_case *c, const char *isa, int ranks)
{
    net_run run;
    if (!open_case(&run, c, isa, 2, ranks))
        return 0;
    size_t floats = (size_t)c->rows * (size_t)c->vocab;
    float *whole = qr_calloc(floats, sizeof(float));
    memcpy(whole, net_run_step(&run, &(net_run_rows){0, 0, c->rows, c->ids}, 1, true),
           floats * sizeof(float));
    static const int32_t sizes[] = {7, 1, 16, 3, 9, 1, 1};
    int wrong = 0;
    for (int32_t start = 0, i = 0, count; start < c->rows; start += count, i++) {
        count = QR_MIN(sizes[i % (int32_t)QR_COUNT_OF(sizes)], c->rows - start);
        int32_t other = QR_MIN(count, 2), both = count + other <= c->rows ? 2 : 1;
        net_run_rows rows[2] = {{0, start, count, c->ids + start}, {1, start, other, c->ids + start}};
        const float *logits = net_run_step(&run, rows, both, true);
        for (int32_t row = 0; row < count; row++)
            wrong += memcmp(logits + row * c->vocab, whole + (start + row) * c->vocab,
                            (size_t)c->vocab * sizeof(float)) != 0;
    }
    if (wrong > 0)
        print_message("%s on %s, %d ranks: %d of %d rows differ between whole and chunked\n", c->name, isa,
                      ranks, wrong, c->rows);
    qr_free(whole);
    net_run_close(&run);
    return wrong;
}

static void chunked_prefill_and_decode_are_bit_equal_to_whole_prefill(void **state)
{
    golden_list *list = *state;
    int failed = 0;
    for (size_t isa = 0; isa < QR_COUNT_OF(all_isas); isa++)
        for (size_t i = 0; i < list->count && machine_has(all_isas[isa]); i++)
            for (size_t size = 0; size < team_size_count(all_isas[isa]); size++)
                failed += check_chunks(&list->cases[i], all_isas[isa], team_sizes[size]);
    assert_int_equal(failed, 0);
}

/* Sixty-four sequences of different texts and lengths, prefilled in one step and decoded in the next. */
enum { CROWD = 64, CROWD_CONTEXT = 32 };

static void crowd_texts(const golden_case *c, int32_t ids[CROWD][CROWD_CONTEXT])
{
    for (int32_t seq = 0; seq < CROWD; seq++)
        for (int32_t i = 0; i < CROWD_CONTEXT; i++)
            ids[seq][i] = c->ids[(seq * 7 + i * (1 + seq % 3)) % (c->prompt_count + c->greedy_count)];
}

static int check_crowd(const golden_case *c, const char *isa, int ranks)
{
    static int32_t ids[CROWD][CROWD_CONTEXT];
    net_run run;
    net_run_options options = {.path = c->path,
                               .isa = isa,
                               .threads = 2,
                               .ranks = ranks,
                               .dtype = -1,
                               .kv_dtype = -1,
                               .context_max = CROWD_CONTEXT,
                               .seqs_max = CROWD,
                               .block_size = 16,
                               .rows_max = CROWD * (CROWD_CONTEXT - 1)};
    if (!open_run(&run, &options, c->name))
        return 0;
    crowd_texts(c, ids);
    net_run_rows prefill[CROWD], decode[CROWD];
    for (int32_t seq = 0; seq < CROWD; seq++) {
        int32_t length = 1 + seq * 5 % (CROWD_CONTEXT - 1);
        prefill[seq] = (net_run_rows){seq, 0, length, ids[seq]};
        decode[seq] = (net_run_rows){seq, length, 1, ids[seq] + length};
    }
    net_run_step(&run, prefill, CROWD, false);
    size_t bytes = (size_t)c->vocab * sizeof(float);
    float *crowd = qr_calloc(CROWD, bytes);
    memcpy(crowd, net_run_step(&run, decode, CROWD, false), CROWD * bytes);
    int wrong = 0;
    for (int32_t seq = 0; seq < CROWD; seq++) {
        net_run_step(&run, &prefill[seq], 1, false);
        wrong += memcmp(net_run_step(&run, &decode[seq], 1, false), crowd + seq * c->vocab, bytes) != 0;
    }
    if (wrong > 0)
        print_message("%s on %s, %d ranks: %d of %d sequences differ alone\n", c->name, isa, ranks, wrong,
                      CROWD);
    qr_free(crowd);
    net_run_close(&run);
    return wrong;
}

static void a_sequence_has_the_same_bits_alone_and_among_sixty_four(void **state)
{
    golden_list *list = *state;
    int failed = 0;
    for (size_t isa = 0; isa < QR_COUNT_OF(all_isas); isa++)
        for (size_t i = 0; i < list->count && machine_has(all_isas[isa]); i++)
            for (size_t size = 0; size < team_size_count(all_isas[isa]); size++)
                failed += check_crowd(&list->cases[i], all_isas[isa], team_sizes[size]);
    assert_int_equal(failed, 0);
}

static int set_up(void **state)
{
    golden_list *list = qr_calloc(1, sizeof(*list));
    read_manifest(list);
    *state = list;
    return 0;
}

static int tear_down(void **state)
{
    release_list(*state);
    qr_free(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_checkpoint_gives_the_reference_logits_and_greedy_tokens),
        cmocka_unit_test(chunked_prefill_and_decode_are_bit_equal_to_whole_prefill),
        cmocka_unit_test(a_sequence_has_the_same_bits_alone_and_among_sixty_four),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
