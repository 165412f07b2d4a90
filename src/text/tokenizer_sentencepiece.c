/* tokenizer.model of SentencePiece: the protobuf ModelProto read field by field (no more of the format than is
 * needed), then handed on as a vocabulary. */
#include "text/tokenizer_impl.h"

typedef struct wire {
    const uint8_t *at, *end;
    bool failed;
} wire;

typedef struct wire_field {
    uint32_t number, type; /* 0: varint, 1: 64 bits, 2: bytes, 5: 32 bits */
    uint64_t value;
    qr_str bytes;
} wire_field;

static uint64_t read_varint(wire *w)
{
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        if (w->at == w->end)
            break;
        uint8_t byte = *w->at++;
        value |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80)
            return value;
    }
    w->failed = true;
    return 0;
}

static uint64_t read_fixed(wire *w, size_t bytes)
{
    uint64_t value = 0;
    if ((size_t)(w->end - w->at) < bytes) {
        w->failed = true;
        return 0;
    }
    for (size_t i = 0; i < bytes; i++)
        value |= (uint64_t)w->at[i] << 8 * i;
    w->at += bytes;
    return value;
}

/* The next field, or false at the end or on damage. */
static bool next_field(wire *w, wire_field *field)
{
    if (w->failed || w->at == w->end)
        return false;
    uint64_t key = read_varint(w);
    *field = (wire_field){.number = (uint32_t)(key >> 3), .type = key & 7};
    switch (field->type) {
    case 0: field->value = read_varint(w); break;
    case 1: field->value = read_fixed(w, 8); break;
    case 5: field->value = read_fixed(w, 4); break;
    case 2: {
        uint64_t len = read_varint(w);
        if (w->failed || len > (uint64_t)(w->end - w->at)) {
            w->failed = true;
            return false;
        }
        field->bytes = qr_str_make((const char *)w->at, (size_t)len);
        w->at += len;
        break;
    }
    default: w->failed = true; break;
    }
    return !w->failed;
}

static wire wire_of(qr_str bytes)
{
    return (wire){(const uint8_t *)bytes.data, (const uint8_t *)bytes.data + bytes.len, false};
}

typedef struct model_proto {
    QR_VEC(qr_str) pieces;
    QR_VEC(float) scores;
    QR_VEC(int32_t) types;
    uint64_t kind; /* 1: unigram, 2: BPE */
    qr_vocab vocab;
} model_proto;

static bool read_piece(model_proto *model, qr_str bytes)
{
    wire w = wire_of(bytes);
    wire_field field;
    qr_str text = {"", 0};
    float score = 0;
    int32_t type = QR_VOCAB_NORMAL;
    while (next_field(&w, &field)) {
        if (field.number == 1 && field.type == 2)
            text = field.bytes;
        else if (field.number == 2 && field.type == 5)
            memcpy(&score, &(uint32_t){(uint32_t)field.value}, sizeof(score));
        else if (field.number == 3 && field.type == 0)
            type = (int32_t)QR_MIN(field.value, 100u);
    }
    QR_VEC_PUSH(&model->pieces, text);
    QR_VEC_PUSH(&model->scores, score);
    QR_VEC_PUSH(&model->types, type);
    return !w.failed;
}

static int32_t id_of(uint64_t value)
{
    int64_t id = (int64_t)value;
    return id >= 0 && id < QR_BPE_ID_MAX ? (int32_t)id : -1;
}

static bool read_trainer(model_proto *model, qr_str bytes)
{
    wire w = wire_of(bytes);
    wire_field field;
    while (next_field(&w, &field)) {
        if (field.type != 0)
            continue;
        switch (field.number) {
        case 3: model->kind = field.value; break;
        case 40: model->vocab.unk = id_of(field.value); break;
        case 41: model->vocab.bos = id_of(field.value); break;
        case 42: model->vocab.eos = id_of(field.value); break;
        case 43: model->vocab.pad = id_of(field.value); break;
        default: break;
        }
    }
    return !w.failed;
}

static bool read_normalizer(model_proto *model, qr_str bytes)
{
    wire w = wire_of(bytes);
    wire_field field;
    while (next_field(&w, &field)) {
        if (field.number == 2 && field.type == 2)
            model->vocab.precompiled_charsmap = field.bytes;
        else if (field.number == 3 && field.type == 0)
            model->vocab.add_space_prefix = field.value != 0;
        else if (field.number == 4 && field.type == 0)
            model->vocab.remove_extra_whitespaces = field.value != 0;
    }
    return !w.failed;
}

static bool read_model(model_proto *model, qr_str bytes)
{
    wire w = wire_of(bytes);
    wire_field field;
    bool good = true;
    while (good && next_field(&w, &field)) {
        if (field.type != 2)
            continue;
        if (field.number == 1)
            good = model->pieces.count < QR_BPE_ID_MAX && read_piece(model, field.bytes);
        else if (field.number == 2)
            good = read_trainer(model, field.bytes);
        else if (field.number == 3)
            good = read_normalizer(model, field.bytes);
    }
    return good && !w.failed && model->pieces.count > 0;
}

static void clip_ids(qr_vocab *vocab)
{
    int32_t *ids[] = {&vocab->bos, &vocab->eos, &vocab->unk, &vocab->pad};
    for (size_t i = 0; i < QR_COUNT_OF(ids); i++)
        if (*ids[i] >= vocab->token_count)
            *ids[i] = -1;
}

qr_status qr_tokenizer_load_sentencepiece(qr_tokenizer *tokenizer, qr_str bytes, qr_error *err)
{
    model_proto model = {.kind = 1,
                         .vocab = {.bos = 1,
                                   .eos = 2,
                                   .pad = -1,
                                   .eot = -1,
                                   .add_bos = -1,
                                   .add_eos = -1,
                                   .add_space_prefix = 1,
                                   .remove_extra_whitespaces = 1}};
    qr_status status;
    if (!read_model(&model, bytes)) {
        status = qr_fail(err, QR_BAD_FILE,
                         "%s: not a SentencePiece model, or a damaged one (%zu bytes, %zu pieces read)",
                         tokenizer->name, bytes.len, model.pieces.count);
    } else if (model.kind != 1 && model.kind != 2) {
        status = qr_fail(err, QR_UNSUPPORTED,
                         "%s: SentencePiece model of type %llu (unigram 1 and BPE 2 are supported)",
                         tokenizer->name, (unsigned long long)model.kind);
    } else {
        model.vocab.model = model.kind == 2 ? QR_STR("llama") : QR_STR("t5");
        model.vocab.tokens = model.pieces.data;
        model.vocab.scores = model.scores.data;
        model.vocab.types = model.types.data;
        model.vocab.token_count = (int32_t)model.pieces.count;
        clip_ids(&model.vocab);
        status = qr_tokenizer_load_vocab(tokenizer, &model.vocab, true, err);
    }
    QR_VEC_RELEASE(&model.pieces);
    QR_VEC_RELEASE(&model.scores);
    QR_VEC_RELEASE(&model.types);
    return status;
}
