#include "engine/output.h"

#include <string.h>

#include "base/mem.h"

/* ---- Stop strings ---- */

qr_stop_match qr_stop_find(const qr_stop_strings *stops, const char *text, size_t count, size_t from)
{
    qr_stop_match best = {.index = -1};
    for (int32_t i = 0; i < stops->count; i++) {
        qr_str stop = stops->strings[i];
        size_t start = from + 1 > stop.len ? from + 1 - stop.len : 0;
        ptrdiff_t at = qr_str_find(qr_str_make(text, count), stop, start);
        if (at >= 0 && (best.index < 0 || (size_t)at < best.begin))
            best = (qr_stop_match){.index = i, .begin = (size_t)at, .end = (size_t)at + stop.len};
    }
    return best;
}

size_t qr_stop_held(const qr_stop_strings *stops, const char *text, size_t count)
{
    size_t held = 0;
    for (int32_t i = 0; i < stops->count; i++) {
        qr_str stop = stops->strings[i];
        for (size_t len = QR_MIN(stop.len - 1, count); len > held; len--)
            if (memcmp(text + count - len, stop.data, len) == 0)
                held = len;
    }
    return held;
}

bool qr_id_list_has(const qr_id_list *list, int32_t id)
{
    int32_t low = 0, high = list->count;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (list->ids[middle] < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < list->count && list->ids[low] == id;
}

/* ---- Accepting ---- */

static bool has_text(const qr_output *sample) { return sample->text_capacity > 0; }

static void text_push(qr_output *sample, int32_t id)
{
    if (has_text(sample))
        sample->text_count += qr_detokenizer_push(&sample->detokenizer, id, sample->text + sample->text_count,
                                                  sample->text_capacity - sample->text_count);
}

static void text_flush(qr_output *sample)
{
    if (has_text(sample))
        sample->text_count += qr_detokenizer_finish(&sample->detokenizer, sample->text + sample->text_count,
                                                    sample->text_capacity - sample->text_count);
}

static bool match_stop_string(qr_output *sample, size_t text_before)
{
    const qr_request *request = sample->request;
    if (request->stop.count == 0 || qr_output_count(sample) <= request->sampling.min_tokens)
        return false;
    qr_stop_match match = qr_stop_find(&request->stop, sample->text, sample->text_count, text_before);
    if (match.index < 0)
        return false;
    sample->text_count = request->sampling.include_stop_str_in_output ? match.end : match.begin;
    sample->stop_string = match.index;
    sample->finish = QR_FINISH_STOP;
    return true;
}

qr_finish qr_output_accept(qr_output *sample)
{
    const qr_request *request = sample->request;
    int32_t id = sample->seq.ids[sample->seq.committed - 1];
    size_t text_before = sample->text_count;
    /* Until min_tokens the sampler never yields one of them, unless output_prefix_ids brings it. */
    bool stop_id =
        qr_id_list_has(&request->stop_ids, id) && qr_output_count(sample) > request->sampling.min_tokens;
    if (!stop_id || request->sampling.include_stop_str_in_output)
        text_push(sample, id);
    if (stop_id) {
        sample->finish = QR_FINISH_STOP;
        sample->stop_token = id;
    } else if (match_stop_string(sample, text_before)) {
        return sample->finish;
    } else if (sample->seq.committed >= sample->seq.tokens_max) {
        sample->finish = QR_FINISH_LENGTH;
    }
    if (sample->finish != QR_FINISH_NONE)
        text_flush(sample);
    return sample->finish;
}

void qr_output_end(qr_output *sample, qr_finish finish, qr_status status)
{
    if (sample->finish != QR_FINISH_NONE)
        return;
    sample->finish = finish;
    sample->status = status;
    text_flush(sample);
}

qr_finish qr_output_replay(qr_output *sample, const int32_t *ids, int64_t count, int64_t text_bytes)
{
    qr_finish finish = QR_FINISH_NONE;
    /* With max_tokens 0 there is room for none of them. */
    for (int64_t i = 0;
         i < count && finish == QR_FINISH_NONE && sample->seq.committed < sample->seq.tokens_max; i++) {
        qr_sequence_append(&sample->seq, ids[i]);
        finish = qr_output_accept(sample);
    }
    sample->text_begin = text_bytes < 0 ? sample->text_count : QR_MIN((size_t)text_bytes, sample->text_count);
    atomic_store(&sample->public_text, sample->text_begin);
    atomic_store(&sample->public_tokens, sample->seq.committed);
    sample->seen_text = sample->text_begin;
    sample->seen_tokens = sample->seq.committed;
    return finish;
}

bool qr_output_publish(qr_output *sample)
{
    size_t text = sample->text_count;
    if (sample->finish == QR_FINISH_NONE && has_text(sample))
        text -= qr_stop_held(&sample->request->stop, sample->text, sample->text_count);
    size_t text_before = atomic_load_explicit(&sample->public_text, memory_order_relaxed);
    int64_t tokens_before = atomic_load_explicit(&sample->public_tokens, memory_order_relaxed);
    bool news =
        text > text_before || sample->seq.committed > tokens_before || sample->finish != QR_FINISH_NONE;
    atomic_store_explicit(&sample->public_tokens, sample->seq.committed, memory_order_release);
    if (text > text_before) /* a stop string may begin inside the text of output_prefix_ids */
        atomic_store_explicit(&sample->public_text, text, memory_order_release);
    atomic_store_explicit(&sample->public_finish, (int)sample->finish, memory_order_release);
    return news;
}
