/* The compression function of SHA-256, generic and with the x86 SHA extensions: private to hash.c and its
 * test. Thread: any. */
#ifndef QR_BASE_SHA256_BLOCKS_H
#define QR_BASE_SHA256_BLOCKS_H

#include <stddef.h>
#include <stdint.h>

extern const uint32_t qr_sha256_k[64];

/* Folds `count` blocks of 64 bytes into state. */
void qr_sha256_blocks_generic(uint32_t state[8], const uint8_t *data, size_t count);
/* Only where qr_cpu_detect()->sha. */
void qr_sha256_blocks_x86(uint32_t state[8], const uint8_t *data, size_t count);

#endif
