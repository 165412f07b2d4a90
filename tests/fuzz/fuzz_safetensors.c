// links: qr_loader
/* Any bytes as a safetensors file: refused with a message, or every tensor's data is readable. */
#include "base/assert.h"
#include "loader/container.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qr_error err = {0};
    qr_weights *weights = qr_weights_new("fuzz", QR_CONTAINER_SAFETENSORS);
    qr_status status = qr_safetensors_parse(weights, "fuzz", data, size, &err);
    QR_ASSERT((status == QR_OK) == (err.message[0] == 0));
    if (status == QR_OK) {
        unsigned sum = 0;
        for (size_t i = 0; i < qr_weights_count(weights); i++) {
            const qr_weights_entry *entry = qr_weights_at(weights, i);
            QR_ASSERT(qr_weights_find(weights, entry->name) == entry);
            for (size_t k = 0; k < entry->bytes; k++)
                sum += entry->data[k];
        }
        QR_ASSERT(sum != 1 || size > 0); /* keeps the reads */
    }
    qr_weights_close(weights);
    return 0;
}
