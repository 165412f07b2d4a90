// links: qr_backend qr_quant qr_tensor
/* Times the matrix products of a layer of Llama-3.2-1B and SmolLM2-135M at several batch sizes, next to the machine's
 * limits: bench_kernels [--isa ISA] [--threads N] [--model 1b|smollm2] [--formats q8_0,..] [--rows 1,2,..]
 * [--repeats N] [--json FILE]. Weights are random and larger together than any cache, as a model's are. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/rng.h"

typedef struct shape {
    const char *name;
    int64_t hidden, q, kv, mlp;
} shape;

static const shape shapes[] = {{"1b", 2048, 2048, 512, 8192}, {"smollm2", 576, 576, 192, 1536}};

/* Weights of all copies of a layer: at least this, so that none is in a cache when its turn comes. */
#define WEIGHT_BYTES ((size_t)192 << 20)
enum { ROWS_MAX = 512, LAYERS_MAX = 256, LIST_MAX = 16 };

typedef struct layer {
    qr_weight q, k, v, o, gate, up, down;
} layer;

typedef struct options {
    qr_device_options device;
    const char *model, *json;
    char formats[LIST_MAX][16];
    int n_formats;
    int64_t rows[LIST_MAX];
    int n_rows, repeats;
} options;

typedef struct bench {
    const options *o;
    qr_device *device;
    const shape *shape;
    qr_format format;
    layer layers[LAYERS_MAX];
    int n_layers;
    float *x, *y[QR_LINEAR_MAX];
    void *scratch;
} bench;

enum { STAGE_QKV, STAGE_O, STAGE_GATE_UP, STAGE_DOWN, STAGE_COUNT };
static const char *const stage_names[] = {"qkv", "o", "gate_up_silu", "down"};

static void fail(const char *text)
{
    fprintf(stderr, "bench_kernels: %s\n", text);
    exit(1);
}

static qr_weight make_weight(const bench *b, int64_t rows, int64_t cols, uint64_t seed)
{
    qr_weight w = {.format = b->format, .rows = rows, .cols = cols, .name = "bench"};
    qr_dtype dtype = b->format == QR_FORMAT_bf16  ? QR_DTYPE_BF16
                     : b->format == QR_FORMAT_f16 ? QR_DTYPE_F16
                                                  : QR_DTYPE_F32;
    qr_prepare_options prepare = {.compute = dtype, .dummy_seed = seed};
    qr_error err;
    if (qr_weight_prepare(b->device, &w, &prepare, &err) != QR_OK)
        fail(err.message);
    return w;
}

static size_t layer_bytes(const layer *l)
{
    return l->q.packed_bytes + l->k.packed_bytes + l->v.packed_bytes + l->o.packed_bytes +
           l->gate.packed_bytes + l->up.packed_bytes + l->down.packed_bytes;
}

static void make_layers(bench *b)
{
    const shape *s = b->shape;
    size_t total = 0;
    for (b->n_layers = 0; b->n_layers < LAYERS_MAX && total < WEIGHT_BYTES; b->n_layers++) {
        layer *l = &b->layers[b->n_layers];
        uint64_t seed = (uint64_t)b->n_layers * 16 + 1;
        l->q = make_weight(b, s->q, s->hidden, seed);
        l->k = make_weight(b, s->kv, s->hidden, seed + 1);
        l->v = make_weight(b, s->kv, s->hidden, seed + 2);
        l->o = make_weight(b, s->hidden, s->q, seed + 3);
        l->gate = make_weight(b, s->mlp, s->hidden, seed + 4);
        l->up = make_weight(b, s->mlp, s->hidden, seed + 5);
        l->down = make_weight(b, s->hidden, s->mlp, seed + 6);
        total += layer_bytes(l);
    }
}

static void free_layers(bench *b)
{
    for (int i = 0; i < b->n_layers; i++) {
        layer *l = &b->layers[i];
        qr_weight *all[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
        for (size_t w = 0; w < QR_COUNT_OF(all); w++)
            qr_weight_release(b->device, all[w]);
    }
}

static qr_tensor tensor(float *data, int64_t rows, int64_t cols)
{
    return (qr_tensor){.data = data, .dtype = QR_DTYPE_F32, .rows = rows, .cols = cols, .row_stride = cols};
}

static void run_stage(bench *b, const layer *l, int stage, int64_t rows)
{
    const qr_backend *backend = b->device->backend;
    static const float *const no_bias[QR_LINEAR_MAX];
    const shape *s = b->shape;
    if (stage == STAGE_QKV) {
        const qr_weight *w[] = {&l->q, &l->k, &l->v};
        qr_tensor y[] = {tensor(b->y[0], rows, s->q), tensor(b->y[1], rows, s->kv),
                         tensor(b->y[2], rows, s->kv)};
        backend->linear(b->device, tensor(b->x, rows, s->hidden), w, no_bias, 3, y, b->scratch);
    } else if (stage == STAGE_GATE_UP) {
        backend->linear_swiglu(b->device, tensor(b->x, rows, s->hidden), &l->gate, &l->up,
                               tensor(b->y[0], rows, s->mlp), b->scratch);
    } else {
        const qr_weight *w = stage == STAGE_O ? &l->o : &l->down;
        qr_tensor y = tensor(b->y[0], rows, s->hidden);
        backend->linear(b->device, tensor(b->x, rows, w->cols), &w, no_bias, 1, &y, b->scratch);
    }
}

/* Best nanoseconds of one layer, by stage and, last, of all stages in turn. */
static void time_stages(bench *b, int64_t rows, double ns[STAGE_COUNT + 1])
{
    for (int i = 0; i <= STAGE_COUNT; i++)
        ns[i] = 1e30;
    for (int repeat = 0; repeat < b->o->repeats; repeat++) {
        double sum[STAGE_COUNT + 1] = {0};
        for (int i = 0; i < b->n_layers; i++)
            for (int stage = 0; stage < STAGE_COUNT; stage++) {
                uint64_t start = qr_clock_ns();
                run_stage(b, &b->layers[i], stage, rows);
                double took = (double)(qr_clock_ns() - start);
                sum[stage] += took;
                sum[STAGE_COUNT] += took;
            }
        for (int i = 0; i <= STAGE_COUNT; i++)
            ns[i] = QR_MIN(ns[i], sum[i] / b->n_layers);
    }
}

static const char *peak_name(qr_format format, const char *isa_text)
{
    bool avx512 = strstr(isa_text, "avx512") != NULL;
    if (format == QR_FORMAT_bf16 && strstr(isa_text, "+bf16") != NULL)
        return "vdpbf16ps_zmm";
    if (format == QR_FORMAT_f32 || format == QR_FORMAT_f16 || format == QR_FORMAT_bf16)
        return avx512 ? "fma_zmm" : "fma_ymm";
    return avx512 ? "vpdpbusd_zmm" : "maddubs_madd_add_ymm";
}

static double limit_of(const qr_json *limits, const char *group, const char *name, int threads)
{
    const qr_json *figure = qr_json_get(qr_json_get(limits, group), name);
    return qr_json_number(qr_json_get(figure, threads == 1 ? "one_thread" : "all_threads"), 0);
}

static void report(bench *b, int64_t rows, const double ns[STAGE_COUNT + 1], const qr_json *limits,
                   qr_json *results)
{
    const shape *s = b->shape;
    const layer *l = &b->layers[0];
    bool avx512 = strstr(qr_device_describe(b->device), "avx512") != NULL;
    int threads = b->o->device.threads;
    double read = limit_of(limits, "read", avx512 ? "load64_pages_2m" : "load32_pages_2m", threads);
    double wide = limit_of(limits, "read", "load32_pages_2m", threads);
    read = QR_MAX(read, wide);
    double peak = limit_of(limits, "peak", peak_name(b->format, qr_device_describe(b->device)), threads);
    double bytes[] = {(double)(l->q.packed_bytes + l->k.packed_bytes + l->v.packed_bytes),
                      (double)l->o.packed_bytes, (double)(l->gate.packed_bytes + l->up.packed_bytes),
                      (double)l->down.packed_bytes, 0};
    double ops[] = {(double)((s->q + 2 * s->kv) * s->hidden), (double)(s->q * s->hidden),
                    (double)(2 * s->mlp * s->hidden), (double)(s->mlp * s->hidden), 0};
    for (int i = 0; i < STAGE_COUNT; i++) {
        bytes[STAGE_COUNT] += bytes[i];
        ops[i] *= 2.0 * (double)rows;
        ops[STAGE_COUNT] += ops[i];
    }
    for (int i = 0; i <= STAGE_COUNT; i++) {
        double gbs = bytes[i] / ns[i], gops = ops[i] / ns[i];
        const char *stage = i < STAGE_COUNT ? stage_names[i] : "layer";
        printf("%-8s %-5s %4lld rows  %-13s %9.1f us  %6.1f GB/s %3.0f %%  %7.1f GOP/s %3.0f %%\n", s->name,
               qr_format_get(b->format)->name, (long long)rows, stage, ns[i] * 1e-3, gbs, 100 * gbs / read,
               gops, 100 * gops / peak);
        qr_json *row = qr_json_new_object();
        qr_json_set(row, "model", qr_json_new_string(qr_str_of(s->name)));
        qr_json_set(row, "format", qr_json_new_string(qr_str_of(qr_format_get(b->format)->name)));
        qr_json_set(row, "rows", qr_json_new_int(rows));
        qr_json_set(row, "stage", qr_json_new_string(qr_str_of(stage)));
        qr_json_set(row, "us", qr_json_new_real(ns[i] * 1e-3));
        qr_json_set(row, "read_share", qr_json_new_real(gbs / read));
        qr_json_set(row, "peak_share", qr_json_new_real(gops / peak));
        qr_json_push(results, row);
    }
}

static void run_format(bench *b, const qr_json *limits, qr_json *results)
{
    make_layers(b);
    for (int i = 0; i < b->o->n_rows; i++) {
        double ns[STAGE_COUNT + 1];
        time_stages(b, b->o->rows[i], ns);
        report(b, b->o->rows[i], ns, limits, results);
    }
    free_layers(b);
}

static qr_format format_named(const char *name)
{
    for (int i = 0; i < QR_FORMAT_COUNT; i++)
        if (strcasecmp(qr_format_get((qr_format)i)->name, name) == 0)
            return (qr_format)i;
    fail("unknown format");
    return QR_FORMAT_NONE;
}

static void take_buffers(bench *b, int64_t cols_max)
{
    b->x = qr_pages_map((size_t)(ROWS_MAX * cols_max) * 4, true);
    for (int i = 0; i < QR_LINEAR_MAX; i++)
        b->y[i] = qr_pages_map((size_t)(ROWS_MAX * cols_max) * 4, true);
    b->scratch = qr_pages_map(b->device->backend->linear_scratch_bytes(b->device, ROWS_MAX, cols_max), true);
    uint64_t state = 1;
    for (int64_t i = 0; i < ROWS_MAX * cols_max; i++)
        b->x[i] = (float)(int32_t)qr_rng_next(&state) * 0x1p-31f;
}

static void parse_formats(options *o, const char *text)
{
    char copy[256];
    snprintf(copy, sizeof copy, "%s", text);
    o->n_formats = 0;
    for (char *word = strtok(copy, ","); word != NULL && o->n_formats < LIST_MAX; word = strtok(NULL, ","))
        snprintf(o->formats[o->n_formats++], sizeof o->formats[0], "%s", word);
}

static void parse_rows(options *o, const char *text)
{
    o->n_rows = 0;
    for (char *end; *text != '\0' && o->n_rows < LIST_MAX; text = *end == ',' ? end + 1 : end) {
        o->rows[o->n_rows] = strtoll(text, &end, 10);
        if (end == text || o->rows[o->n_rows] < 1 || o->rows[o->n_rows] > ROWS_MAX)
            fail("--rows: numbers from 1 to 512");
        o->n_rows++;
    }
}

static options parse(int argc, char **argv)
{
    options o = {.device = {.device = "cpu", .isa = "auto", .threads = 2}, .model = "", .repeats = 5};
    parse_formats(&o, "bf16,q8_0,q4_0,q4_1,q4_k,q6_k");
    parse_rows(&o, "1,2,4,8,16,32,128,512");
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--isa") == 0)
            o.device.isa = argv[i + 1];
        else if (strcmp(argv[i], "--threads") == 0)
            o.device.threads = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--model") == 0)
            o.model = argv[i + 1];
        else if (strcmp(argv[i], "--formats") == 0)
            parse_formats(&o, argv[i + 1]);
        else if (strcmp(argv[i], "--rows") == 0)
            parse_rows(&o, argv[i + 1]);
        else if (strcmp(argv[i], "--repeats") == 0)
            o.repeats = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--json") == 0)
            o.json = argv[i + 1];
        else
            fail("unknown option");
    }
    return o;
}

static void write_json(const options *o, const bench *b, qr_json *results, const qr_json *limits)
{
    qr_json *all = qr_json_new_object();
    qr_buf text = {0};
    qr_error err;
    qr_json_set(all, "device", qr_json_new_string(qr_str_of(qr_device_describe(b->device))));
    qr_json_set(all, "repeats", qr_json_new_int(o->repeats));
    qr_json_set(all, "limits", qr_json_copy(limits));
    qr_json_set(all, "results", results);
    qr_json_write(all, 1, &text);
    if (o->json != NULL && qr_file_write(o->json, text.data, text.len, &err) != QR_OK)
        fail(err.message);
    qr_buf_release(&text);
    qr_json_free(all);
}

int main(int argc, char **argv)
{
    options o = parse(argc, argv);
    static bench b;
    qr_error err;
    char *text = NULL;
    qr_json *limits = NULL, *results = qr_json_new_array();
    if (qr_device_open(&o.device, &b.device, &err) != QR_OK ||
        qr_bench_limits("cpu", 0, false, &text, &err) != QR_OK ||
        qr_json_parse(qr_str_of(text), &qr_json_limits_file, &limits, &err) != QR_OK)
        fail(err.message);
    b.o = &o;
    take_buffers(&b, 8192);
    printf("%s\n", qr_device_describe(b.device));
    for (size_t s = 0; s < QR_COUNT_OF(shapes); s++)
        for (int f = 0; f < o.n_formats; f++) {
            b.shape = &shapes[s];
            b.format = format_named(o.formats[f]);
            bool fits = b.shape->hidden % qr_format_get(b.format)->block == 0;
            if (fits && (o.model[0] == '\0' || strcmp(o.model, b.shape->name) == 0))
                run_format(&b, limits, results);
        }
    write_json(&o, &b, results, limits);
    qr_json_free(limits);
    free(text);
    qr_device_close(b.device);
    return 0;
}
