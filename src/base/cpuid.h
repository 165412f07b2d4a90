/* What the processor can do and how many CPUs this process may use. Thread: any. */
#ifndef QR_BASE_CPUID_H
#define QR_BASE_CPUID_H

#include <stdbool.h>
#include <stdint.h>

typedef struct qr_cpu_features {
    bool avx2;   /* AVX2, FMA and F16C, with the OS saving ymm */
    bool avx512; /* F, BW, DQ, VL and CD, with the OS saving zmm */
    bool avx512_vnni;
    bool avx512_bf16;
    bool sha;
} qr_cpu_features;

const qr_cpu_features *qr_cpu_detect(void); /* read once */
/* CPUs in the affinity mask, at most what the cgroup's quota pays for (rounded up), at least 1. */
int qr_cpu_count(void);
const char *qr_cpu_model_name(void); /* "AMD EPYC ..." from /proc/cpuinfo, or "unknown" */
/* Physical memory that this process may still take: MemAvailable, within the cgroup's limit. */
uint64_t qr_memory_available(void);

#endif
