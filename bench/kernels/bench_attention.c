// links: qr_backend qr_quant qr_tensor
/* Times paged attention by itself: bench_attention [--isa ISA] [--threads N] [--dtype float16] [--scrambled].
 * For Llama-3.2-1B's heads, SmolLM2's and a plain 32 of 128: one row at long and short contexts, a batch, a prefill of
 * 512. Best of 15. One thread is timed by its CPU time, several by the clock. Layers are many enough to leave the
 * caches; blocks ascend, or are scattered with --scrambled. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend/backend.h"
#include "backend/cpu/kv.h"
#include "base/clock.h"
#include "base/mem.h"

typedef struct heads {
    const char *name;
    int32_t n_heads, n_kv, dim;
} heads;
static const heads all_heads[] = {{"1b", 32, 8, 64}, {"smollm2", 9, 3, 64}, {"mha128", 32, 32, 128}};

typedef struct load {
    int32_t seqs, context, rows, layers;
} load;
static const load loads[] = {{1, 128, 1, 16}, {1, 512, 1, 16},  {1, 8192, 1, 8},
                             {16, 512, 1, 8}, {1, 512, 512, 1}, {1, 4096, 512, 1}};

typedef struct options {
    qr_device_options device;
    qr_dtype dtype;
    bool scrambled;
} options;

static void fail(const char *text)
{
    fprintf(stderr, "bench_attention: %s\n", text);
    exit(1);
}

static uint64_t now_ns(int threads)
{
    struct timespec t;
    clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

static qr_kv *open_kv(qr_device *device, const heads *h, const load *l, qr_dtype dtype, int32_t n_blocks)
{
    qr_kv_spec specs[16];
    for (int32_t i = 0; i < l->layers; i++)
        specs[i] = (qr_kv_spec){.n_kv_heads = h->n_kv, .head_dim = h->dim};
    qr_kv *kv = NULL;
    qr_error err;
    if (qr_kv_open(device, specs, l->layers, n_blocks, 16, dtype, &kv, &err) != QR_OK)
        fail(err.message);
    cpu_pages *pages = (cpu_pages *)kv; /* small positive numbers in any of the types */
    for (size_t i = 0; i < pages->memory_bytes / 2; i++)
        ((uint16_t *)(void *)pages->memory)[i] = (uint16_t)(0x3800 + i % 256);
    return kv;
}

/* A permutation of [0, n): i -> i, or a step of nearly two thirds that is prime to n. */
static int32_t block_id(int32_t i, int32_t n, bool scrambled)
{
    int64_t step = n * 2 / 3 + 1;
    for (int64_t a = step, b = n; scrambled && a != 1;) {
        int64_t rest = b % a;
        b = a;
        a = rest;
        if (a == 0) {
            a = ++step;
            b = n;
        }
    }
    return scrambled ? (int32_t)(i * step % n) : i;
}

static double time_layers(const options *o, qr_device *device, const heads *h, const load *l)
{
    int32_t stride = (l->context + 15) / 16, n_blocks = stride * l->seqs, total = l->rows * l->seqs;
    qr_kv *kv = open_kv(device, h, l, o->dtype, n_blocks);
    int32_t *memory = qr_calloc((size_t)(2 * total + 2 * l->seqs + 1 + n_blocks), sizeof(int32_t));
    int32_t *positions = memory, *seq_of = positions + total, *context = seq_of + total,
            *starts = context + l->seqs;
    int32_t *table = starts + l->seqs + 1;
    for (int32_t row = 0; row < total; row++) {
        positions[row] = l->context - l->rows + row % l->rows;
        seq_of[row] = row / l->rows;
    }
    for (int32_t seq = 0; seq < l->seqs; seq++) {
        context[seq] = l->context;
        starts[seq + 1] = (seq + 1) * l->rows;
    }
    for (int32_t i = 0; i < n_blocks; i++)
        table[i] = block_id(i, n_blocks, o->scrambled);
    qr_batch batch = {.n_tokens = total,
                      .n_seqs = l->seqs,
                      .positions = positions,
                      .seq_of_row = seq_of,
                      .seq_start = starts,
                      .context_len = context,
                      .block_table = {table, table},
                      .table_stride = stride,
                      .block_size = 16};
    size_t cols = (size_t)h->n_heads * (size_t)h->dim;
    float *q = qr_calloc((size_t)total * cols, sizeof(float)),
          *y = qr_calloc((size_t)total * cols, sizeof(float));
    for (size_t i = 0; i < (size_t)total * cols; i++)
        q[i] = (float)(i % 13) / 13 - 0.5f;
    qr_tensor qt = {.data = q, .rows = total, .cols = (int64_t)cols, .row_stride = (int64_t)cols}, yt = qt;
    yt.data = y;
    size_t bytes = device->backend->attention_scratch_bytes(device, h->n_heads, h->dim, &batch);
    void *scratch = qr_pages_map(bytes, false);
    double best = 1e30;
    for (int repeat = 0; repeat < 15; repeat++) {
        uint64_t start = now_ns(o->device.threads);
        for (int32_t i = 0; i < l->layers; i++)
            device->backend->attention(device, kv, i, &batch, qt, h->n_heads, 0.125f, yt, scratch);
        best = QR_MIN(best, (double)(now_ns(o->device.threads) - start) / l->layers);
    }
    qr_pages_unmap(scratch, bytes);
    qr_free(q);
    qr_free(y);
    qr_free(memory);
    qr_kv_close(kv);
    return best;
}

static void run(const options *o, qr_device *device, const heads *h, const load *l)
{
    double ns = time_layers(o, device, h, l);
    double pairs = (double)l->seqs * l->rows * (l->context - (l->rows - 1) / 2.0);
    double bytes = 2.0 * l->seqs * l->context * h->n_kv * h->dim * (double)qr_dtype_bytes(o->dtype);
    printf("%-8s %2d x %4d rows  context %5d  %10.1f us a layer  %6.1f GFLOP/s  %6.1f GB/s of KV\n", h->name,
           l->seqs, l->rows, l->context, ns * 1e-3, 4 * pairs * h->n_heads * h->dim / ns, bytes / ns);
}

int main(int argc, char **argv)
{
    options o = {.device = {.device = "cpu", .isa = "auto", .threads = 1}, .dtype = QR_DTYPE_F16};
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--scrambled") == 0) {
            o.scrambled = true;
            continue;
        }
        if (strcmp(argv[i], "--isa") == 0)
            o.device.isa = value;
        else if (strcmp(argv[i], "--threads") == 0)
            o.device.threads = (int)strtol(value, NULL, 10);
        else if (strcmp(argv[i], "--dtype") == 0 && qr_dtype_parse(value) >= 0)
            o.dtype = (qr_dtype)qr_dtype_parse(value);
        else
            fail("usage: [--isa ISA] [--threads N] [--dtype float32|float16|bfloat16] [--scrambled]");
        i++;
    }
    qr_device *device = NULL;
    qr_error err;
    if (qr_device_open(&o.device, &device, &err) != QR_OK)
        fail(err.message);
    printf("%s, KV %s, blocks %s\n", qr_device_describe(device), qr_dtype_name(o.dtype),
           o.scrambled ? "scrambled" : "ascending");
    for (size_t h = 0; h < QR_COUNT_OF(all_heads); h++)
        for (size_t l = 0; l < QR_COUNT_OF(loads); l++)
            run(&o, device, &all_heads[h], &loads[l]);
    qr_device_close(device);
    return 0;
}
