/* What the control group lets this process use: version 2 and version 1 hierarchies, every level from the
 * process' own group up to the root. Private to cpuid.c and its test. Thread: any. */
#ifndef QR_BASE_CGROUP_H
#define QR_BASE_CGROUP_H

#include <stdint.h>

/* membership: "/proc/self/cgroup"; mount: "/sys/fs/cgroup" (parameters, so that tests can bring their own).
 * In CPUs, 0.5 for half of one; 0 when there is no limit. */
double qr_cgroup_cpus(const char *membership, const char *mount);
/* Bytes that may still be taken (page cache that can be dropped counts as free); UINT64_MAX: no limit. */
uint64_t qr_cgroup_memory_left(const char *membership, const char *mount);

#endif
