// links: qr_loader
/* Any bytes as a model's configuration, config.json or GGUF metadata: what is accepted is within its bounds. */
#include "base/assert.h"
#include "loader/config_read.h"
#include "loader/container.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const qr_model_config *c)
{
    QR_ASSERT(c->n_layers >= 1 && c->n_layers <= QR_CONFIG_LAYERS_MAX);
    QR_ASSERT(c->n_kv_heads >= 1 && c->n_heads % c->n_kv_heads == 0);
    QR_ASSERT(c->head_dim >= 2 && c->head_dim % 2 == 0);
    QR_ASSERT(c->hidden >= 1 && c->intermediate >= 1 && c->vocab >= 1 && c->context >= 1);
    QR_ASSERT(c->rope.theta > 1 && c->norm_eps > 0);
    QR_ASSERT(c->eos_count >= 0 && c->eos_count <= QR_EOS_MAX && c->bos < c->vocab);
    QR_ASSERT(c->activation[0] != 0 && c->architecture[0] != 0);
    if (c->layer_sliding != NULL)
        for (int i = 0; i < c->n_layers; i++)
            QR_ASSERT(c->layer_sliding[i] <= 1);
}

static qr_status read_json(const uint8_t *data, size_t size, qr_arena *arena, qr_model_config *config,
                           qr_error *err)
{
    qr_json *json;
    qr_status status = qr_json_parse(qr_str_make((const char *)data, size), &qr_json_limits_file, &json, err);
    if (status != QR_OK)
        return status;
    status = qr_hf_config_read(json, "fuzz", arena, config, err);
    qr_json_free(json);
    return status;
}

static qr_status read_gguf(const uint8_t *data, size_t size, qr_arena *arena, qr_model_config *config,
                           qr_error *err)
{
    qr_gguf *gguf;
    qr_status status = qr_gguf_parse("fuzz", data, size, &gguf, err);
    if (status != QR_OK)
        return status;
    qr_weights *weights = qr_weights_new("fuzz", QR_CONTAINER_GGUF);
    status = qr_gguf_add_tensors(weights, gguf, "fuzz", err);
    if (status == QR_OK)
        status = qr_gguf_config_read(weights, gguf, "fuzz", arena, config, err);
    qr_weights_close(weights);
    qr_gguf_close(gguf);
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qr_error err = {0};
    qr_arena arena;
    qr_arena_init(&arena, 4096);
    qr_model_config config = {
        .rope = {.kind = QR_ROPE_DEFAULT, .theta = 10000}, .rotary_fraction = 1, .norm_eps = 1e-6f};
    bool is_gguf = size >= 4 && memcmp(data, "GGUF", 4) == 0;
    qr_status status =
        is_gguf ? read_gguf(data, size, &arena, &config, &err) : read_json(data, size, &arena, &config, &err);
    if (status == QR_OK)
        status = qr_config_check(&config, "fuzz", &err);
    if (status == QR_OK)
        check(&config);
    else
        QR_ASSERT(err.message[0] != 0);
    qr_arena_release(&arena);
    return 0;
}
