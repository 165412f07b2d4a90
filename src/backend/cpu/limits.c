#include "backend/cpu/limits.h"

#include <ctype.h>
#include <string.h>
#include <sys/mman.h>

#include "backend/cpu/cpu.h"
#include "base/clock.h"
#include "base/cpuid.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"

/* Every figure is the best of a few short runs: on a shared machine the best is what the machine can do. */
enum { REPEATS = 5 };
#define RUN_NS      10e6
#define READ_BYTES  ((size_t)256 << 20) /* several times a large L3 */
#define CHUNK_BYTES ((size_t)1 << 20)

typedef struct limit_job {
    const cpu_limit_loop *loop;
    int64_t iterations;
    cpu_limit_read read;
    const uint8_t *data;
} limit_job;

static void loop_chunk(void *arg, int64_t chunk, int worker)
{
    const limit_job *job = arg;
    (void)chunk;
    (void)worker;
    job->loop->run(job->iterations);
}

static void read_chunk(void *arg, int64_t chunk, int worker)
{
    const limit_job *job = arg;
    (void)worker;
    job->read(job->data + (size_t)chunk * CHUNK_BYTES, CHUNK_BYTES);
}

static double best_seconds(cpu_pool *pool, int64_t chunks, cpu_task task, limit_job *job)
{
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < REPEATS; i++) {
        uint64_t start = qr_clock_ns();
        cpu_pool_run(pool, chunks, task, job);
        best = QR_MIN(best, qr_clock_ns() - start);
    }
    return (double)best * 1e-9;
}

/* Iterations that take about RUN_NS. */
static int64_t calibrate(const cpu_limit_loop *loop)
{
    uint64_t start = qr_clock_ns();
    int64_t iterations = 100000;
    loop->run(iterations);
    double ns = (double)(qr_clock_ns() - start + 1);
    return (int64_t)((double)iterations * RUN_NS / ns) + 1;
}

static void add_figure(qr_json *object, const char *name, const char *unit, double one, double all)
{
    qr_json *figure = qr_json_new_object();
    qr_json_set(figure, "unit", qr_json_new_string(qr_str_of(unit)));
    qr_json_set(figure, "one_thread", qr_json_new_real(one));
    qr_json_set(figure, "all_threads", qr_json_new_real(all));
    qr_json_set(object, name, figure);
}

static void add_loops(qr_json *peaks, const cpu_limit_loop *loops, cpu_pool *one, cpu_pool *all)
{
    int threads = cpu_pool_threads(all);
    for (; loops->name != NULL; loops++) {
        limit_job job = {.loop = loops, .iterations = calibrate(loops)};
        double ops = (double)job.iterations * loops->ops * 1e-9;
        add_figure(peaks, loops->name, loops->unit, ops / best_seconds(one, 1, loop_chunk, &job),
                   ops * threads / best_seconds(all, threads, loop_chunk, &job));
    }
}

static void add_read(qr_json *reads, const char *name, cpu_limit_read read, const uint8_t *data,
                     cpu_pool *one, cpu_pool *all)
{
    limit_job job = {.read = read, .data = data};
    int64_t chunks = (int64_t)(READ_BYTES / CHUNK_BYTES);
    double gigabytes = (double)READ_BYTES * 1e-9;
    add_figure(reads, name, "GB/s", gigabytes / best_seconds(one, chunks, read_chunk, &job),
               gigabytes / best_seconds(all, chunks, read_chunk, &job));
}

static qr_status add_reads(qr_json *reads, cpu_pool *one, cpu_pool *all, qr_error *err)
{
    const qr_cpu_features *has = qr_cpu_detect();
    for (int huge = 0; huge < 2; huge++) {
        uint8_t *data = qr_pages_map(READ_BYTES, huge);
        if (data == NULL)
            return qr_fail(err, QR_OUT_OF_MEMORY, "limits: the system refuses %zu bytes", READ_BYTES);
        if (!huge)
            (void)madvise(data, READ_BYTES, MADV_NOHUGEPAGE);
        memset(data, 1, READ_BYTES);
        if (has->avx2)
            add_read(reads, huge ? "load32_pages_2m" : "load32_pages_4k", cpu_limit_read_avx2, data, one,
                     all);
        if (has->avx512)
            add_read(reads, huge ? "load64_pages_2m" : "load64_pages_4k", cpu_limit_read_avx512, data, one,
                     all);
        qr_pages_unmap(data, READ_BYTES);
    }
    return QR_OK;
}

static qr_status measure(int threads, qr_json *out, qr_error *err)
{
    const qr_cpu_features *has = qr_cpu_detect();
    cpu_pool *one = cpu_pool_new(1), *all = cpu_pool_new(threads);
    qr_json *peaks = qr_json_new_object(), *reads = qr_json_new_object();
    if (has->avx2)
        add_loops(peaks, cpu_limit_loops_avx2, one, all);
    if (has->avx512 && has->avx512_vnni)
        add_loops(peaks, cpu_limit_loops_avx512, one, all);
    if (has->avx512_bf16)
        add_loops(peaks, cpu_limit_loops_bf16, one, all);
    qr_status status = add_reads(reads, one, all, err);
    qr_json_set(out, "cpu", qr_json_new_string(qr_str_of(qr_cpu_model_name())));
    qr_json_set(out, "threads", qr_json_new_int(threads));
    qr_json_set(out, "read", reads);
    qr_json_set(out, "peak", peaks);
    cpu_pool_free(one);
    cpu_pool_free(all);
    return status;
}

/* ---- Cache ---- */

static char *cache_path(int threads)
{
    char *dir = qr_cache_dir();
    qr_buf name = {0};
    qr_buf_printf(&name, "limits-%s-%d.json", qr_cpu_model_name(), threads);
    for (size_t i = 0; i < name.len; i++)
        if (!isalnum((unsigned char)name.data[i]) && name.data[i] != '.')
            name.data[i] = '-';
    char *path = dir == NULL ? NULL : qr_path_join(dir, name.data);
    qr_buf_release(&name);
    qr_free(dir);
    return path;
}

static bool read_cache(const char *path, char **json)
{
    qr_buf text = {0};
    if (path == NULL || qr_file_read(path, 64 << 10, &text, NULL) != QR_OK || text.len == 0) {
        qr_buf_release(&text);
        return false;
    }
    *json = qr_buf_detach(&text, NULL);
    return true;
}

/* A cache that cannot be written costs a few seconds the next time, nothing else. */
static void write_cache(const char *path, const qr_buf *text)
{
    char *dir = qr_cache_dir();
    if (path != NULL && dir != NULL && qr_dir_create(dir, NULL) == QR_OK)
        (void)qr_file_write(path, text->data, text->len, NULL);
    qr_free(dir);
}

qr_status cpu_limits(qr_device *device, bool refresh, char **json, qr_error *err)
{
    int threads = cpu_pool_threads(((cpu_device *)device)->pool);
    char *path = cache_path(threads);
    qr_status status = QR_OK;
    if (refresh || !read_cache(path, json)) {
        qr_json *figures = qr_json_new_object();
        status = measure(threads, figures, err);
        qr_buf text = {0};
        if (status == QR_OK) {
            qr_json_write(figures, 2, &text);
            write_cache(path, &text);
            *json = qr_buf_detach(&text, NULL);
        }
        qr_json_free(figures);
    }
    qr_free(path);
    return status;
}
