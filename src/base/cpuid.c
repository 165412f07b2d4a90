#include "base/cpuid.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cgroup.h"
#include "base/file.h"
#include "base/mem.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

enum { PROC_FILE_BYTES = 4 << 20 }; /* cpuinfo of a machine with 512 CPUs is 0.8 MB */

static qr_cpu_features features;
static char model_name[128] = "unknown";
static pthread_once_t detect_once = PTHREAD_ONCE_INIT;
static pthread_once_t name_once = PTHREAD_ONCE_INIT;

#if defined(__x86_64__)
/* The state that the operating system saves on a switch (XCR0): a CPU's AVX is no use without it. */
static uint64_t saved_state(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static void detect(void)
{
    unsigned a, b, c, d, a7, b7, c7, d7;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !__get_cpuid_count(7, 0, &a7, &b7, &c7, &d7))
        return;
    features.sha = (b7 >> 29 & 1) && (c >> 19 & 1) && (c >> 9 & 1); /* with SSE4.1 and SSSE3 */
    bool xsave = c >> 27 & 1;
    uint64_t state = xsave ? saved_state() : 0;
    bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xE6) == 0xE6;
    features.avx2 = ymm && (b7 >> 5 & 1) && (b7 >> 8 & 1) && (c >> 12 & 1) && (c >> 29 & 1);
    const unsigned f_dq_cd_bw_vl = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;
    features.avx512 = features.avx2 && zmm && (b7 & f_dq_cd_bw_vl) == f_dq_cd_bw_vl;
    features.avx512_vnni = features.avx512 && (c7 >> 11 & 1);
    if (features.avx512 && a7 >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d))
        features.avx512_bf16 = a >> 5 & 1;
}
#else
static void detect(void) {}
#endif

const qr_cpu_features *qr_cpu_detect(void)
{
    pthread_once(&detect_once, detect);
    return &features;
}

static int affinity_count(void)
{
    /* The kernel's mask may be wider than cpu_set_t's 1024 CPUs: grow until it fits. */
    for (int cpus = 1024; cpus <= 1 << 16; cpus *= 2) {
        cpu_set_t *set = CPU_ALLOC((size_t)cpus);
        if (set == NULL)
            break;
        size_t bytes = CPU_ALLOC_SIZE((size_t)cpus);
        bool ok = sched_getaffinity(0, bytes, set) == 0;
        int count = ok ? CPU_COUNT_S(bytes, set) : 0;
        CPU_FREE(set);
        if (ok)
            return count;
    }
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int)online : 1;
}

int qr_cpu_count(void)
{
    int count = affinity_count();
    double quota = qr_cgroup_cpus("/proc/self/cgroup", "/sys/fs/cgroup");
    if (quota > 0 && quota < count)
        count = (int)quota + (quota > (int)quota);
    return QR_MAX(count, 1);
}

/* "key   : value" of a /proc file: a pointer to the value inside text, or NULL. */
static const char *proc_field(const char *text, const char *key)
{
    const char *at = strstr(text, key);
    const char *colon = at != NULL ? strchr(at, ':') : NULL;
    return colon != NULL ? colon + 1 + strspn(colon + 1, " \t") : NULL;
}

static void read_model_name(void)
{
    qr_buf text = {0};
    if (qr_file_read("/proc/cpuinfo", PROC_FILE_BYTES, &text, NULL) == QR_OK && text.len > 0) {
        const char *name = proc_field(text.data, "model name");
        size_t len = name != NULL ? strcspn(name, "\n") : 0;
        len = QR_MIN(len, sizeof(model_name) - 1);
        if (len > 0) {
            memcpy(model_name, name, len);
            model_name[len] = '\0';
        }
    }
    qr_buf_release(&text);
}

const char *qr_cpu_model_name(void)
{
    pthread_once(&name_once, read_model_name);
    return model_name;
}

uint64_t qr_memory_available(void)
{
    uint64_t available = UINT64_MAX;
    qr_buf text = {0};
    if (qr_file_read("/proc/meminfo", PROC_FILE_BYTES, &text, NULL) == QR_OK && text.len > 0) {
        const char *value = proc_field(text.data, "MemAvailable");
        if (value != NULL)
            available = strtoull(value, NULL, 10) * 1024;
    }
    qr_buf_release(&text);
    if (available == UINT64_MAX) {
        long pages = sysconf(_SC_AVPHYS_PAGES), bytes = sysconf(_SC_PAGESIZE);
        available = pages > 0 && bytes > 0 ? (uint64_t)pages * (uint64_t)bytes : 0;
    }
    return QR_MIN(available, qr_cgroup_memory_left("/proc/self/cgroup", "/sys/fs/cgroup"));
}
