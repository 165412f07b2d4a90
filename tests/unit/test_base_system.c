// links: qr_base
/* base/file, log, queue, clock, cpuid, cgroup: what touches the machine. */
#include "support/cmocka.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cgroup.h"
#include "base/clock.h"
#include "base/cpuid.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/queue.h"

/* ---- Files in a folder of their own ---------------------------------------------------------------- */

static char folder[64];

static int make_folder(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/quire-test-XXXXXX");
    return mkdtemp(folder) != NULL ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    return system(command);
}

/* A path inside the folder; the buffer is reused by the next call but three. */
static const char *in_folder(const char *name)
{
    static char paths[4][256];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof(paths[0]), "%s/%s", folder, name);
    return path;
}

static void put(const char *name, const char *text)
{
    assert_int_equal(qr_file_write(in_folder(name), text, strlen(text), NULL), QR_OK);
}

static void a_file_is_written_whole_and_read_back(void **state)
{
    (void)state;
    qr_error err;
    qr_buf buf = {0};
    put("a.txt", "first");
    put("a.txt", "second, longer");
    qr_buf_append_cstr(&buf, "> ");
    assert_int_equal(qr_file_read(in_folder("a.txt"), 100, &buf, &err), QR_OK);
    assert_string_equal(buf.data, "> second, longer");
    assert_int_equal(qr_file_read(in_folder("a.txt"), 5, &buf, &err), QR_LIMIT_EXCEEDED);
    assert_non_null(strstr(err.message, "a.txt: 14 bytes, more than the limit of 5"));
    assert_string_equal(buf.data, "> second, longer"); /* a failure leaves the buffer alone */
    qr_buf_clear(&buf);
    assert_int_equal(qr_file_read("/proc/self/status", 100000, &buf, &err), QR_OK); /* its stated size is 0 */
    assert_non_null(strstr(buf.data, "Name:"));
    assert_int_equal(qr_file_read("/proc/self/status", 10, &buf, &err), QR_LIMIT_EXCEEDED);
    qr_buf_release(&buf);
}

static void a_missing_or_wrong_file_is_told_apart(void **state)
{
    (void)state;
    qr_error err;
    qr_buf buf = {0};
    qr_file_map map;
    assert_int_equal(qr_file_read(in_folder("none"), 10, &buf, &err), QR_NOT_FOUND);
    assert_non_null(strstr(err.message, "none: cannot open: No such file"));
    assert_int_equal(qr_file_map_open(in_folder("none"), &map, &err), QR_NOT_FOUND);
    assert_int_equal(qr_file_map_open(folder, &map, &err), QR_IO_ERROR);
    assert_non_null(strstr(err.message, "is a folder"));
    assert_int_equal(qr_file_read("/dev/null", 10, &buf, &err), QR_IO_ERROR);
    assert_int_equal(mkfifo(in_folder("fifo"), 0600), 0);
    assert_int_equal(qr_file_read(in_folder("fifo"), 10, &buf, &err), QR_IO_ERROR); /* and does not hang */
    assert_int_equal(qr_file_write(in_folder("none/x"), "x", 1, &err), QR_NOT_FOUND);
    assert_int_equal(qr_file_write(folder, "x", 1, &err), QR_IO_ERROR);
    qr_buf_release(&buf);
}

static void a_mapping_shows_the_files_bytes(void **state)
{
    (void)state;
    qr_file_map map;
    put("m.bin", "mapped bytes");
    assert_int_equal(qr_file_map_open(in_folder("m.bin"), &map, NULL), QR_OK);
    assert_int_equal(map.bytes, 12);
    assert_memory_equal(map.data, "mapped bytes", 12);
    assert_true(map.inode != 0);
    qr_file_map_close(&map);
    put("empty", "");
    assert_int_equal(qr_file_map_open(in_folder("empty"), &map, NULL), QR_OK);
    assert_null(map.data);
    qr_file_map_close(&map);
    qr_file_map_close(&map);
}

static void paths_and_folders(void **state)
{
    (void)state;
    qr_error err;
    static const char *const joins[][3] = {
        {"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"/", "b", "/b"}, {"", "b", "b"}, {"a//", "b", "a/b"}};
    for (size_t i = 0; i < QR_COUNT_OF(joins); i++) {
        char *path = qr_path_join(joins[i][0], joins[i][1]);
        assert_string_equal(path, joins[i][2]);
        qr_free(path);
    }
    assert_string_equal(qr_path_basename("/a/b.c"), "b.c");
    assert_string_equal(qr_path_basename("b.c"), "b.c");
    assert_int_equal(qr_dir_create(in_folder("x/y/z/"), &err), QR_OK);
    assert_int_equal(qr_dir_create(in_folder("x/y/z"), &err), QR_OK);
    assert_true(qr_file_is_dir(in_folder("x/y/z")));
    put("file", "");
    assert_int_equal(qr_dir_create(in_folder("file"), &err), QR_IO_ERROR);
    assert_int_not_equal(qr_dir_create(in_folder("file/sub"), &err), QR_OK);
    assert_true(qr_file_exists(in_folder("file")));
    assert_false(qr_file_is_dir(in_folder("file")));
}

static void the_cache_folder_follows_the_environment(void **state)
{
    (void)state;
    setenv("XDG_CACHE_HOME", "/somewhere", 1);
    char *path = qr_cache_dir();
    assert_string_equal(path, "/somewhere/quire");
    qr_free(path);
    setenv("XDG_CACHE_HOME", "relative", 1); /* to be ignored */
    setenv("HOME", "/home/me", 1);
    path = qr_cache_dir();
    assert_string_equal(path, "/home/me/.cache/quire");
    qr_free(path);
    setenv("QR_TEST_EMPTY", "", 1);
    assert_null(qr_env("QR_TEST_EMPTY"));
}

/* ---- Log ------------------------------------------------------------------------------------------- */

static char last_line[5000];
static int line_count;

static void keep_line(void *user, qr_log_level level, const char *line)
{
    (void)level;
    assert_ptr_equal(user, &line_count);
    snprintf(last_line, sizeof(last_line), "%s", line);
    line_count++;
}

static void the_log_is_silent_until_told_and_writes_logfmt(void **state)
{
    (void)state;
    line_count = 0;
    qr_log(QR_LOG_ERROR, "nobody", "x=1");
    qr_log_set(QR_LOG_INFO, keep_line, &line_count);
    qr_log(QR_LOG_DEBUG, "low", "x=1");
    assert_int_equal(line_count, 0);
    char quoted[64];
    qr_log(QR_LOG_WARN, "request", "id=%d text=%s", 7,
           qr_log_quote("two words\nand \"more\"", quoted, sizeof(quoted)));
    assert_int_equal(line_count, 1);
    assert_memory_equal(last_line, "ts=20", 5);
    assert_non_null(strstr(last_line, "Z level=warn event=request id=7 text=\"two words and \\\"more\\\"\""));
    qr_log(QR_LOG_INFO, "bare", "%s", "");
    assert_string_equal(last_line + strlen(last_line) - 10, "event=bare");
    qr_log_set(QR_LOG_OFF, NULL, NULL);
    qr_log(QR_LOG_ERROR, "nobody", "x=1");
    assert_int_equal(line_count, 2);
}

static void log_values_are_quoted_when_needed_and_cut_to_fit(void **state)
{
    (void)state;
    char out[8];
    assert_string_equal(qr_log_quote("plain", out, sizeof(out)), "plain");
    assert_string_equal(qr_log_quote("", out, sizeof(out)), "\"\"");
    assert_string_equal(qr_log_quote("a b", out, sizeof(out)), "\"a b\"");
    const char *cut = qr_log_quote("much too long", out, sizeof(out));
    assert_true(strlen(cut) < sizeof(out) && cut[0] == '"' && cut[strlen(cut) - 1] == '"');
    assert_string_equal(qr_log_quote("abc", out, 2), "");
}

/* ---- Queue ----------------------------------------------------------------------------------------- */

static void a_queue_is_bounded_ordered_and_closes(void **state)
{
    (void)state;
    int items[4];
    qr_queue queue;
    qr_queue_init(&queue, 3);
    assert_null(qr_queue_pop(&queue, 0));
    for (int i = 0; i < 3; i++)
        assert_true(qr_queue_push(&queue, &items[i]));
    assert_false(qr_queue_push(&queue, &items[3]));
    assert_ptr_equal(qr_queue_pop(&queue, 0), &items[0]);
    assert_true(qr_queue_push(&queue, &items[3]));
    qr_queue_close(&queue);
    assert_false(qr_queue_push(&queue, &items[0]));
    assert_int_equal(qr_queue_count(&queue), 3);
    for (int i = 1; i < 4; i++)
        assert_ptr_equal(qr_queue_pop(&queue, UINT64_MAX), &items[i]);
    assert_null(qr_queue_pop(&queue, UINT64_MAX)); /* closed and empty: no wait */
    qr_queue_release(&queue);
}

static void a_pop_waits_no_longer_than_told(void **state)
{
    (void)state;
    qr_queue queue;
    qr_queue_init(&queue, 1);
    uint64_t start = qr_clock_ns();
    assert_null(qr_queue_pop(&queue, 20 * 1000 * 1000));
    uint64_t waited = qr_clock_ns() - start;
    assert_true(waited >= 20 * 1000 * 1000);
    qr_queue_release(&queue);
}

enum { THREADS = 3, EACH = 3000 };
static atomic_long popped_sum;

static void *produce(void *argument)
{
    for (uintptr_t i = 1; i <= EACH; i++)
        while (!qr_queue_push(argument, (void *)i))
            sched_yield();
    return NULL;
}

static void *consume(void *argument)
{
    for (void *item; (item = qr_queue_pop(argument, UINT64_MAX)) != NULL;)
        atomic_fetch_add(&popped_sum, (long)(uintptr_t)item);
    return NULL;
}

static void many_threads_lose_and_double_nothing(void **state)
{
    (void)state;
    qr_queue queue;
    pthread_t producers[THREADS], consumers[THREADS];
    qr_queue_init(&queue, 8);
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&consumers[i], NULL, consume, &queue), 0);
        assert_int_equal(pthread_create(&producers[i], NULL, produce, &queue), 0);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(producers[i], NULL);
    qr_queue_close(&queue);
    for (int i = 0; i < THREADS; i++)
        pthread_join(consumers[i], NULL);
    assert_int_equal(atomic_load(&popped_sum), (long)THREADS * EACH * (EACH + 1) / 2);
    qr_queue_release(&queue);
}

/* ---- The machine ----------------------------------------------------------------------------------- */

static void the_machine_is_described(void **state)
{
    (void)state;
    const qr_cpu_features *cpu = qr_cpu_detect();
    assert_true(!cpu->avx512 || cpu->avx2);
    assert_true(!cpu->avx512_bf16 || cpu->avx512);
#if defined(__x86_64__)
    assert_int_equal(cpu->avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
    assert_int_equal(cpu->avx512_vnni, cpu->avx512 && __builtin_cpu_supports("avx512vnni"));
#endif
    assert_in_range(qr_cpu_count(), 1, sysconf(_SC_NPROCESSORS_CONF));
    assert_true(strlen(qr_cpu_model_name()) > 0);
    uint64_t memory = qr_memory_available();
    assert_true(memory > (uint64_t)1 << 20 && memory < (uint64_t)1 << 50);
    assert_true(qr_clock_unix_s() > 1700000000);
}

static void a_version_2_group_limits_cpus_and_memory_at_any_level(void **state)
{
    (void)state;
    qr_dir_create(in_folder("v2/pod/box"), NULL);
    put("v2.self", "0::/pod/box\n");
    assert_true(qr_cgroup_cpus(in_folder("v2.self"), in_folder("v2")) == 0);
    assert_true(qr_cgroup_memory_left(in_folder("v2.self"), in_folder("v2")) == UINT64_MAX);
    put("v2/pod/cpu.max", "150000 100000\n");
    put("v2/pod/box/cpu.max", "max 100000\n");
    put("v2/pod/memory.max", "1000000\n");
    put("v2/pod/memory.current", "700000\n");
    put("v2/pod/memory.stat", "anon 5\ninactive_file 200000\nactive_file 9\n");
    put("v2/pod/box/memory.max", "max\n");
    assert_true(qr_cgroup_cpus(in_folder("v2.self"), in_folder("v2")) == 1.5);
    assert_int_equal(qr_cgroup_memory_left(in_folder("v2.self"), in_folder("v2")), 500000);
    put("v2.self", "0::/not/visible/here\n"); /* a container sees only its own mount */
    put("v2/cpu.max", "50000 100000\n");
    assert_true(qr_cgroup_cpus(in_folder("v2.self"), in_folder("v2")) == 0.5);
    put("v2.self", "0::/../../outside\n");
    assert_true(qr_cgroup_cpus(in_folder("v2.self"), in_folder("v2")) == 0);
}

static void a_version_1_group_limits_cpus_and_memory(void **state)
{
    (void)state;
    qr_dir_create(in_folder("v1/cpu/box"), NULL);
    qr_dir_create(in_folder("v1/memory/box"), NULL);
    put("v1.self", "9:name=systemd:/\n4:memory:/box\n3:cpuset:/\n2:cpu,cpuacct:/box\n0::/\nnonsense\n");
    put("v1/cpu/cpu.cfs_quota_us", "-1\n");
    put("v1/cpu/box/cpu.cfs_quota_us", "250000\n");
    put("v1/cpu/box/cpu.cfs_period_us", "100000\n");
    put("v1/memory/memory.limit_in_bytes", "9223372036854771712\n"); /* no limit */
    put("v1/memory/memory.usage_in_bytes", "1\n");
    put("v1/memory/box/memory.limit_in_bytes", "1000\n");
    put("v1/memory/box/memory.usage_in_bytes", "2000\n");
    assert_true(qr_cgroup_cpus(in_folder("v1.self"), in_folder("v1")) == 2.5);
    assert_int_equal(qr_cgroup_memory_left(in_folder("v1.self"), in_folder("v1")),
                     0); /* used up: not negative */
    assert_true(qr_cgroup_cpus(in_folder("missing"), in_folder("v1")) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_is_written_whole_and_read_back),
        cmocka_unit_test(a_missing_or_wrong_file_is_told_apart),
        cmocka_unit_test(a_mapping_shows_the_files_bytes),
        cmocka_unit_test(paths_and_folders),
        cmocka_unit_test(the_cache_folder_follows_the_environment),
        cmocka_unit_test(the_log_is_silent_until_told_and_writes_logfmt),
        cmocka_unit_test(log_values_are_quoted_when_needed_and_cut_to_fit),
        cmocka_unit_test(a_queue_is_bounded_ordered_and_closes),
        cmocka_unit_test(a_pop_waits_no_longer_than_told),
        cmocka_unit_test(many_threads_lose_and_double_nothing),
        cmocka_unit_test(the_machine_is_described),
        cmocka_unit_test(a_version_2_group_limits_cpus_and_memory_at_any_level),
        cmocka_unit_test(a_version_1_group_limits_cpus_and_memory),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
