#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/assert.h"

static _Thread_local uint64_t alloc_count;

uint64_t qr_alloc_count(void) { return alloc_count; }

static void *check(void *memory, size_t bytes)
{
    alloc_count++;
    if (memory == NULL) {
        fprintf(stderr, "out of memory: the system refused %zu bytes\n", bytes);
        abort();
    }
    return memory;
}

void *qr_alloc(size_t bytes) { return check(malloc(bytes > 0 ? bytes : 1), bytes); }

void *qr_calloc(size_t count, size_t item_bytes)
{
    size_t bytes = 0;
    QR_ASSERT(qr_size_mul(count, item_bytes, &bytes));
    return check(calloc(1, bytes > 0 ? bytes : 1), bytes);
}

void *qr_realloc(void *old, size_t bytes) { return check(realloc(old, bytes > 0 ? bytes : 1), bytes); }

char *qr_strdup(const char *text) { return qr_strndup(text, strlen(text)); }

char *qr_strndup(const char *text, size_t len)
{
    size_t bytes = 0;
    QR_ASSERT(qr_size_add(len, 1, &bytes));
    char *copy = qr_alloc(bytes);
    if (len > 0)
        memcpy(copy, text, len);
    copy[len] = '\0';
    return copy;
}

void qr_free(void *memory) { free(memory); }

#define HUGE_PAGE_BYTES ((size_t)2 << 20)

static size_t pages_round(size_t bytes) { return QR_ROUND_UP(bytes, (size_t)4096); }

/* Huge pages need an address that is a multiple of their size: map more and give the ends back. */
static void *map_aligned(size_t bytes)
{
    size_t padded = 0;
    if (!qr_size_add(bytes, HUGE_PAGE_BYTES, &padded))
        return MAP_FAILED;
    char *raw = mmap(NULL, padded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED)
        return MAP_FAILED;
    size_t lead = (HUGE_PAGE_BYTES - (uintptr_t)raw % HUGE_PAGE_BYTES) % HUGE_PAGE_BYTES;
    if (lead > 0)
        munmap(raw, lead);
    if (padded - lead - bytes > 0)
        munmap(raw + lead + bytes, padded - lead - bytes);
    return raw + lead;
}

void *qr_pages_map(size_t bytes, bool huge)
{
    if (bytes == 0 || bytes > SIZE_MAX - 2 * HUGE_PAGE_BYTES)
        return NULL;
    bytes = pages_round(bytes);
    huge = huge && bytes >= HUGE_PAGE_BYTES;
    void *pages = huge ? map_aligned(bytes)
                       : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED)
        return NULL;
    if (huge)
        (void)madvise(pages, bytes, MADV_HUGEPAGE); /* a wish: without it the pages are small */
    return pages;
}

void *qr_pages_zeroed(size_t bytes) { return check(qr_pages_map(bytes, true), bytes); }

void qr_pages_unmap(void *pages, size_t bytes)
{
    if (pages != NULL)
        QR_ASSERT(munmap(pages, pages_round(bytes)) == 0);
}
