#include "model/arch.h"

#include <string.h>

#include "base/mem.h"

#define QR_ARCH_ROW(name) extern const qr_arch qr_arch_##name;
#include "model/arch_list.inc"
#undef QR_ARCH_ROW

static const qr_arch *const architectures[] = {
#define QR_ARCH_ROW(name) &qr_arch_##name,
#include "model/arch_list.inc"
#undef QR_ARCH_ROW
};

const qr_arch *qr_arch_at(size_t index)
{
    return index < QR_COUNT_OF(architectures) ? architectures[index] : NULL;
}

const qr_arch *qr_arch_find(const char *architecture)
{
    for (size_t i = 0; i < QR_COUNT_OF(architectures); i++) {
        const qr_arch *arch = architectures[i];
        if (strcmp(architecture, arch->hf_class) == 0)
            return arch;
        if (arch->gguf_name != NULL && strcmp(architecture, arch->gguf_name) == 0)
            return arch;
    }
    return NULL;
}
