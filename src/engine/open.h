/* qr_model: an opened checkpoint: weights, config, a net on a device for each rank, tokenizer. Thread: immutable once
 * open. */
#ifndef QR_ENGINE_OPEN_H
#define QR_ENGINE_OPEN_H

#include "backend/team.h"
#include "engine/plan.h"
#include "loader/config.h"
#include "loader/weights.h"
#include "model/model.h"
#include "text/tokenizer.h"

#define QR_END_IDS_MAX 16

struct qr_model {
    qr_arena arena;
    qr_weights *weights;
    qr_model_config config;
    qr_team *team;
    qr_net *nets[QR_RANKS_MAX];
    qr_net_options net_options;
    qr_tokenizer *tokenizer; /* NULL: token ids only */
    char *generation_config;
    char fingerprint[160];
    int32_t end_ids[QR_END_IDS_MAX]; /* sorted: config, generation_config and tokenizer */
    int32_t end_id_count;
};

#endif
