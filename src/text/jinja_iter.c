/* Walking values; generators that filters make are evaluated as they are walked, as in Python. */
#include "base/mem.h"
#include "text/jinja_run.h"

bool qr_jiter_init(qr_jrun *run, qr_jiter *iter, qr_jv source)
{
    *iter = (qr_jiter){.source = source};
    switch (source.kind) {
    case QR_JV_UNDEFINED:
    case QR_JV_STRING:
    case QR_JV_LIST:
    case QR_JV_TUPLE:
    case QR_JV_RANGE:
    case QR_JV_GENERATOR: return !qr_jinja_failed(run);
    case QR_JV_VIEW:
        source = *source.view;
        /* fall through */
    case QR_JV_DICT:
        if (source.flag & QR_JV_JSON)
            iter->json = qr_json_iter(source.json);
        return !qr_jinja_failed(run);
    default: qr_jinja_raise(run, "'%s' object is not iterable", qr_jv_type_name(source)); return false;
    }
}

static bool next_character(qr_jiter *iter, qr_jv *item)
{
    if (iter->index >= iter->source.len)
        return false;
    uint32_t codepoint = 0;
    const char *at = iter->source.s + iter->index;
    size_t bytes = qr_jtext_decode(at, iter->source.len - iter->index, &codepoint);
    *item = qr_jv_str(qr_str_make(at, bytes)); /* the characters of Markup are plain */
    iter->index += (uint32_t)bytes;
    return true;
}

static bool next_entry(qr_jrun *run, qr_jiter *iter, qr_jv dict, qr_jview view, qr_jv *item)
{
    qr_jv key = qr_jv_none(), value = qr_jv_none();
    if (dict.flag & QR_JV_JSON) {
        if (iter->json == NULL)
            return false;
        key = qr_jv_str(qr_json_iter_key(iter->json));
        if (view != QR_JVIEW_KEYS)
            value = qr_jv_from_json(qr_json_iter_value(iter->json));
        iter->json = qr_json_iter_next(dict.json, iter->json);
    } else {
        if (iter->index >= dict.dict->count)
            return false;
        key = dict.dict->keys[iter->index];
        value = dict.dict->values[iter->index++];
    }
    *item = view == QR_JVIEW_KEYS ? key : view == QR_JVIEW_VALUES ? value : qr_jv_pair(run, key, value);
    return true;
}

bool qr_jiter_next(qr_jrun *run, qr_jiter *iter, qr_jv *item)
{
    if (!qr_jinja_charge(run, 1))
        return false;
    switch (iter->source.kind) {
    case QR_JV_LIST:
    case QR_JV_TUPLE:
        if (iter->index >= iter->source.len)
            return false;
        *item = qr_jv_list_at(iter->source, iter->index++);
        return true;
    case QR_JV_STRING: return next_character(iter, item);
    case QR_JV_RANGE:
        if (iter->index >= iter->source.range->count)
            return false;
        *item = qr_jv_int(iter->source.range->start + iter->source.range->step * (int64_t)iter->index++);
        return true;
    case QR_JV_DICT: return next_entry(run, iter, iter->source, QR_JVIEW_KEYS, item);
    case QR_JV_VIEW: return next_entry(run, iter, *iter->source.view, (qr_jview)iter->source.aux, item);
    case QR_JV_GENERATOR: return qr_jgen_next(run, iter->source.generator, item);
    default: return false;
    }
}

bool qr_jv_to_list(qr_jrun *run, qr_jv source, qr_jlist *list)
{
    qr_jiter iter;
    qr_jv item;
    int64_t length = qr_jv_length(source);
    *list = (qr_jlist){0};
    if (!qr_jiter_init(run, &iter, source))
        return false;
    if (length > 0 && source.kind != QR_JV_UNDEFINED) {
        list->items = qr_jinja_alloc(run, (size_t)length * sizeof(qr_jv));
        list->capacity = list->items != NULL ? (uint32_t)length : 0;
    }
    while (qr_jiter_next(run, &iter, &item))
        qr_jlist_push(run, list, item);
    return !qr_jinja_failed(run);
}

/* ---- Generators ---- */

static bool all_digits(qr_str text)
{
    for (size_t i = 0; i < text.len; i++)
        if (text.data[i] < '0' || text.data[i] > '9')
            return false;
    return text.len > 0 && text.len < 10;
}

static qr_jv path_part(qr_str part)
{
    if (!all_digits(part))
        return qr_jv_str(part);
    int64_t value = 0;
    for (size_t i = 0; i < part.len; i++)
        value = value * 10 + (part.data[i] - '0');
    return qr_jv_int(value);
}

qr_jv qr_jinja_attribute_path(qr_jrun *run, qr_jv item, qr_jv path, qr_jv fallback)
{
    if (path.kind != QR_JV_STRING) {
        item = qr_jinja_getitem(run, item, path);
        bool use = item.kind == QR_JV_UNDEFINED && fallback.kind > QR_JV_NONE;
        return use ? fallback : item;
    }
    qr_str rest = qr_jv_slice(path);
    for (;;) {
        ptrdiff_t dot = qr_str_find(rest, QR_STR("."), 0);
        qr_str part = dot >= 0 ? qr_str_make(rest.data, (size_t)dot) : rest;
        item = qr_jinja_getitem(run, item, path_part(part));
        if (item.kind == QR_JV_UNDEFINED && fallback.kind > QR_JV_NONE)
            item = fallback;
        if (dot < 0 || qr_jinja_failed(run))
            return item;
        rest = qr_str_make(rest.data + dot + 1, rest.len - (size_t)dot - 1);
    }
}

static qr_jv gen_key(qr_jrun *run, const qr_jgen *g, qr_jv item)
{
    if (g->attribute.kind != QR_JV_MISSING)
        item = qr_jinja_attribute_path(run, item, g->attribute, g->fallback);
    return item;
}

static bool next_selected(qr_jrun *run, qr_jgen *g, qr_jv *item)
{
    while (qr_jiter_next(run, &g->iter, item)) {
        qr_jv key = gen_key(run, g, *item);
        bool chosen = qr_jv_truth(g->row != NULL ? qr_jinja_apply(run, g->row, key, &g->args) : key);
        if (qr_jinja_failed(run))
            return false;
        if (chosen != g->negate)
            return true;
    }
    return false;
}

static bool next_unique(qr_jrun *run, qr_jgen *g, qr_jv *item)
{
    while (qr_jiter_next(run, &g->iter, item)) {
        qr_jv key = gen_key(run, g, *item);
        if (!g->case_sensitive && key.kind == QR_JV_STRING)
            key = qr_jv_case(run, qr_jv_slice(key), QR_JCASE_LOWER);
        if (g->seen == NULL || !qr_jv_hashable(run, key))
            return false;
        if (qr_jdict_get(run, g->seen, key).kind == QR_JV_MISSING) {
            qr_jdict_set(run, g->seen, key, qr_jv_none());
            return !qr_jinja_failed(run);
        }
    }
    return false;
}

static bool next_batch(qr_jrun *run, qr_jgen *g, qr_jv *item)
{
    qr_jlist batch = {0};
    qr_jv next = g->held;
    g->held = (qr_jv){0};
    bool more = next.kind != QR_JV_MISSING || qr_jiter_next(run, &g->iter, &next);
    while (more) {
        if (batch.count > 0 && batch.count == g->batch) {
            g->held = next;
            break;
        }
        qr_jlist_push(run, &batch, next);
        more = qr_jiter_next(run, &g->iter, &next);
    }
    if (batch.count == 0 || qr_jinja_failed(run))
        return false;
    while (g->fallback.kind > QR_JV_NONE && batch.count < g->batch && qr_jinja_charge(run, 1))
        qr_jlist_push(run, &batch, g->fallback);
    *item = qr_jlist_value(&batch, QR_JV_LIST);
    return true;
}

static bool next_mapped(qr_jrun *run, qr_jgen *g, qr_jv *item)
{
    if (!qr_jiter_next(run, &g->iter, item))
        return false;
    *item = g->row != NULL ? qr_jinja_apply(run, g->row, *item, &g->args) : gen_key(run, g, *item);
    return !qr_jinja_failed(run);
}

/* The source is looked at when the first item is asked for: errors come then. */
static bool start(qr_jrun *run, qr_jgen *g)
{
    g->started = true;
    bool skips_false = g->type == QR_JGEN_MAP || g->type == QR_JGEN_SELECT;
    if (skips_false && !qr_jv_truth(g->source))
        return false;
    return qr_jiter_init(run, &g->iter, g->source);
}

bool qr_jgen_next(qr_jrun *run, qr_jgen *g, qr_jv *item)
{
    bool more = !g->done && qr_jinja_enter(run, 2);
    if (g->done)
        return false;
    more = more && (g->started || start(run, g));
    if (more) {
        switch (g->type) {
        case QR_JGEN_MAP: more = next_mapped(run, g, item); break;
        case QR_JGEN_SELECT: more = next_selected(run, g, item); break;
        case QR_JGEN_UNIQUE: more = next_unique(run, g, item); break;
        case QR_JGEN_BATCH: more = next_batch(run, g, item); break;
        case QR_JGEN_ITER: more = qr_jiter_next(run, &g->iter, item); break;
        }
    }
    qr_jinja_leave(run, 2);
    g->done = !more;
    return more;
}
