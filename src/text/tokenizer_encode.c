/* Encoding: added tokens, normalizer, pre-tokenizer, model, post-processor, in the reference's order. */
#include "base/utf8.h"
#include "text/tokenizer_impl.h"

qr_encoder *qr_encoder_new(const qr_tokenizer *tokenizer)
{
    qr_encoder *encoder = qr_calloc(1, sizeof(*encoder));
    encoder->tokenizer = tokenizer;
    return encoder;
}

void qr_encoder_free(qr_encoder *encoder)
{
    if (encoder == NULL)
        return;
    qr_buf_release(&encoder->clean);
    qr_buf_release(&encoder->temporary);
    qr_buf_release(&encoder->text[0]);
    for (int i = 0; i < 2; i++) {
        qr_buf_release(&encoder->text[i + 1]);
        qr_buf_release(&encoder->norm[i]);
        qr_buf_release(&encoder->bert[i]);
        QR_VEC_RELEASE(&encoder->pieces[i]);
    }
    QR_VEC_RELEASE(&encoder->ranges);
    QR_VEC_RELEASE(&encoder->bpe.ids);
    QR_VEC_RELEASE(&encoder->bpe.next);
    QR_VEC_RELEASE(&encoder->bpe.previous);
    QR_VEC_RELEASE(&encoder->bpe.heap);
    QR_VEC_RELEASE(&encoder->bpe.merges);
    QR_VEC_RELEASE(&encoder->scores);
    QR_VEC_RELEASE(&encoder->nodes);
    QR_VEC_RELEASE(&encoder->starts);
    QR_VEC_RELEASE(&encoder->ids);
    QR_VEC_RELEASE(&encoder->second_ids);
    qr_word_cache_free(encoder);
    qr_match_data_free(encoder->match);
    qr_free(encoder);
}

/* ---- Pieces ---- */

/* One piece of normalized text that holds no added token. */
static qr_status encode_piece(qr_encoder *encoder, qr_str text, bool at_start, bool continues, qr_ids *ids,
                              qr_error *err)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    if (text.len == 0)
        return QR_OK;
    if (tokenizer->fast_scanner != QR_SCAN_NONE) {
        if (tokenizer->fast_prefix_space && !continues && text.data[0] != ' ') {
            qr_buf_clear(&encoder->text[1]);
            qr_buf_append_char(&encoder->text[1], ' ');
            qr_buf_append_str(&encoder->text[1], text);
            text = qr_buf_str(&encoder->text[1]);
        }
        return qr_encode_scanned(encoder, (const uint8_t *)text.data, text.len, ids, err);
    }
    if (tokenizer->pretokenizers.count == 0) {
        if (tokenizer->model == QR_MODEL_BPE && tokenizer->bpe.cut_at_mark)
            return qr_encode_marked(encoder, (const uint8_t *)text.data, text.len, ids, err);
        return qr_encode_word(encoder, (const uint8_t *)text.data, text.len, ids, err);
    }
    int which = 0, buffer = 1;
    qr_buf_clear(&encoder->text[1]);
    qr_buf_append_str(&encoder->text[1], text);
    qr_piece whole = {0, text.len, at_start, continues};
    encoder->pieces[0].count = 0;
    QR_VEC_PUSH(&encoder->pieces[0], whole);
    qr_status status = qr_pretokenize(encoder, &which, &buffer, err);
    const uint8_t *words = (const uint8_t *)encoder->text[buffer].data;
    const qr_pieces *pieces = &encoder->pieces[which];
    if (status != QR_OK)
        return status;
    if (tokenizer->model != QR_MODEL_BPE || !tokenizer->bpe.cut_at_mark)
        return qr_encode_pieces(encoder, words, encoder->text[buffer].len, pieces->data, pieces->count, ids,
                                err);
    for (size_t i = 0; i < pieces->count && status == QR_OK; i++)
        status = qr_encode_marked(encoder, words + pieces->data[i].begin,
                                  pieces->data[i].end - pieces->data[i].begin, ids, err);
    return status;
}

/* A piece between added tokens of the raw text: normalize, look for added tokens again, encode the rest. */
static qr_status encode_between(qr_encoder *encoder, qr_str text, bool at_start, bool continues,
                                bool parse_special, qr_ids *ids, qr_error *err)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    if (text.len == 0)
        return QR_OK;
    if (tokenizer->normalizers.count > 0) {
        qr_buf_clear(&encoder->text[0]);
        qr_status status = qr_normalize(tokenizer, encoder, text, continues, &encoder->text[0], err);
        if (status != QR_OK)
            return status;
        text = qr_buf_str(&encoder->text[0]);
    }
    size_t search = 0, floor = 0;
    qr_added_match match;
    while (
        qr_added_next(tokenizer, &tokenizer->normalized_set, text, parse_special, &search, floor, &match)) {
        if (match.begin > floor) {
            qr_str piece = qr_str_make(text.data + floor, match.begin - floor);
            qr_status status =
                encode_piece(encoder, piece, at_start && floor == 0, continues && floor == 0, ids, err);
            if (status != QR_OK)
                return status;
        }
        QR_VEC_PUSH(ids, match.id);
        floor = match.end;
    }
    if (floor >= text.len)
        return QR_OK;
    return encode_piece(encoder, qr_str_make(text.data + floor, text.len - floor), at_start && floor == 0,
                        continues && floor == 0, ids, err);
}

/* A stretch without the byte 0xFF. */
static qr_status encode_stretch(qr_encoder *encoder, qr_str text, bool continues, bool parse_special,
                                qr_ids *ids, qr_error *err)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    size_t search = 0, floor = 0;
    qr_added_match match;
    while (qr_added_next(tokenizer, &tokenizer->plain_set, text, parse_special, &search, floor, &match)) {
        if (match.begin > floor) {
            qr_str piece = qr_str_make(text.data + floor, match.begin - floor);
            qr_status status = encode_between(encoder, piece, !continues && floor == 0,
                                              continues && floor == 0, parse_special, ids, err);
            if (status != QR_OK)
                return status;
        }
        QR_VEC_PUSH(ids, match.id);
        floor = match.end;
    }
    if (floor >= text.len)
        return QR_OK;
    return encode_between(encoder, qr_str_make(text.data + floor, text.len - floor), !continues && floor == 0,
                          continues && floor == 0, parse_special, ids, err);
}

/* ---- The whole text ---- */

/* Copies text with U+FFFD for what is not UTF-8, the byte 0xFF kept. */
static void clean_text(qr_str text, qr_buf *out)
{
    qr_buf_clear(out);
    while (text.len > 0) {
        size_t valid = qr_utf8_validate(text.data, text.len);
        qr_buf_append(out, text.data, valid);
        text = qr_str_make(text.data + valid, text.len - valid);
        if (text.len == 0)
            break;
        size_t bad = 1;
        if ((uint8_t)text.data[0] == 0xFF) {
            qr_buf_append_char(out, (char)0xFF);
        } else {
            bad = qr_utf8_invalid_length(text.data, text.len);
            qr_buf_append(out, "\xEF\xBF\xBD", 3);
        }
        text = qr_str_make(text.data + bad, text.len - bad);
    }
}

static qr_status encode_sequence(qr_encoder *encoder, qr_str text, bool parse_special, qr_ids *ids,
                                 qr_error *err)
{
    qr_word_cache_open(encoder, text.len);
    QR_VEC_RESERVE(ids, ids->count + text.len / 3 + 16);
    if (text.len > 0 && qr_utf8_validate(text.data, text.len) == text.len)
        return encode_stretch(encoder, text, false, parse_special, ids, err);
    clean_text(text, &encoder->clean);
    text = qr_buf_str(&encoder->clean);
    qr_status status = QR_OK;
    bool continues = false;
    while (text.len > 0 && status == QR_OK) {
        const char *cut = memchr(text.data, 0xFF, text.len);
        size_t len = cut != NULL ? (size_t)(cut - text.data) : text.len;
        status = encode_stretch(encoder, qr_str_make(text.data, len), continues, parse_special, ids, err);
        len += cut != NULL;
        continues = continues || len > 1 || cut == NULL;
        text = qr_str_make(text.data + len, text.len - len);
    }
    return status;
}

static void truncate(const qr_truncation *truncation, size_t room, qr_ids *ids)
{
    if (!truncation->on || ids->count <= room)
        return;
    if (truncation->left)
        memmove(ids->data, ids->data + (ids->count - room), room * sizeof(*ids->data));
    ids->count = room;
}

static void pad(const qr_padding *padding, size_t begin, qr_ids *ids)
{
    size_t count = ids->count - begin, wanted = padding->fixed ? padding->length : count;
    if (!padding->on)
        return;
    if (padding->multiple > 0 && wanted % padding->multiple != 0)
        wanted += padding->multiple - wanted % padding->multiple;
    if (wanted <= count)
        return;
    QR_VEC_RESERVE(ids, begin + wanted);
    if (padding->left)
        memmove(ids->data + begin + (wanted - count), ids->data + begin, count * sizeof(*ids->data));
    for (size_t i = 0; i < wanted - count; i++)
        ids->data[begin + (padding->left ? i : count + i)] = padding->id;
    ids->count = begin + wanted;
}

/* What the template puts around one or two sequences. */
static void assemble(qr_encoder *encoder, const qr_template_items *items, bool pair, qr_ids *ids,
                     qr_ids *types)
{
    static const qr_template_item plain[] = {{QR_ITEM_TEXT, 0}, {QR_ITEM_SECOND, 1}};
    const qr_template_item *list = items->count > 0 ? items->data : plain;
    size_t count = items->count > 0 ? items->count : pair ? 2 : 1;
    for (size_t i = 0; i < count; i++) {
        const qr_ids *part = list[i].id == QR_ITEM_SECOND ? &encoder->second_ids : &encoder->ids;
        const int32_t *data = list[i].id >= 0 ? &list[i].id : part->data;
        size_t part_count = list[i].id >= 0 ? 1 : part->count;
        QR_VEC_RESERVE(ids, ids->count + part_count);
        if (part_count > 0)
            memcpy(ids->data + ids->count, data, part_count * sizeof(*data));
        ids->count += part_count;
        for (size_t k = 0; types != NULL && k < part_count; k++)
            QR_VEC_PUSH(types, list[i].type);
    }
}

/* Of two sequences the longer gives way first, as the reference's LongestFirst. */
static void truncate_pair(const qr_truncation *truncation, size_t room, qr_ids *first, qr_ids *second)
{
    if (!truncation->on || first->count + second->count <= room)
        return;
    bool swap = first->count > second->count;
    size_t less = swap ? second->count : first->count, more = less > room ? less : QR_MAX(less, room - less);
    if (less + more > room) {
        less = room / 2;
        more = less + room % 2;
    }
    truncate(truncation, swap ? more : less, first);
    truncate(truncation, swap ? less : more, second);
}

static size_t added_by(const qr_template_items *items)
{
    size_t added = 0;
    for (size_t i = 0; i < items->count; i++)
        added += items->data[i].id >= 0;
    return added;
}

static qr_encode_options chosen_options(const qr_encode_options *options)
{
    qr_encode_options chosen;
    qr_encode_options_init(&chosen);
    if (options != NULL)
        memcpy(&chosen, options, QR_MIN(options->size, sizeof(chosen)));
    return chosen;
}

static const qr_template_items no_items;

qr_status qr_encoder_encode(qr_encoder *encoder, qr_str text, const qr_encode_options *options, qr_ids *ids,
                            qr_error *err)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    qr_encode_options chosen = chosen_options(options);
    const qr_template_items *items = chosen.add_special_tokens ? &tokenizer->post : &no_items;
    bool direct = items->count == 0 && !chosen.truncate_and_pad;
    encoder->ids.count = 0;
    size_t before = ids->count;
    qr_status status =
        encode_sequence(encoder, text, chosen.parse_special, direct ? ids : &encoder->ids, err);
    if (status != QR_OK)
        ids->count = before;
    if (status != QR_OK || direct)
        return status;
    size_t added = added_by(items), most = tokenizer->truncation.length;
    if (chosen.truncate_and_pad)
        truncate(&tokenizer->truncation, most > added ? most - added : 0, &encoder->ids);
    assemble(encoder, items, false, ids, NULL);
    if (chosen.truncate_and_pad)
        pad(&tokenizer->padding, before, ids);
    return QR_OK;
}

qr_status qr_encoder_encode_pair(qr_encoder *encoder, qr_str text, qr_str second,
                                 const qr_encode_options *options, qr_ids *ids, qr_ids *types, qr_error *err)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    qr_encode_options chosen = chosen_options(options);
    const qr_template_items *items = chosen.add_special_tokens ? &tokenizer->post_pair : &no_items;
    encoder->ids.count = encoder->second_ids.count = 0;
    size_t before = ids->count, types_before = types != NULL ? types->count : 0;
    qr_status status = encode_sequence(encoder, text, chosen.parse_special, &encoder->ids, err);
    if (status == QR_OK)
        status = encode_sequence(encoder, second, chosen.parse_special, &encoder->second_ids, err);
    if (status != QR_OK)
        return status;
    size_t added = added_by(items), most = tokenizer->truncation.length;
    if (chosen.truncate_and_pad)
        truncate_pair(&tokenizer->truncation, most > added ? most - added : 0, &encoder->ids,
                      &encoder->second_ids);
    assemble(encoder, items, true, ids, types);
    if (chosen.truncate_and_pad) {
        pad(&tokenizer->padding, before, ids);
        while (types != NULL && types->count - types_before < ids->count - before)
            QR_VEC_PUSH(types, 0);
    }
    return QR_OK;
}
