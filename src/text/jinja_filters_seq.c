/* Filters over sequences and mappings. */
#include <string.h>

#include "base/mem.h"
#include "text/jinja_filters.h"

#define FILTER(name) \
    static qr_jv filter_##name(qr_jrun *run, qr_jv value, const qr_jv *args, const qr_jargs *raw)
#define UNUSED ((void)run, (void)value, (void)args, (void)raw)

static qr_jv generator(qr_jrun *run, const qr_jgen *from)
{
    qr_jgen *made = qr_jinja_alloc(run, sizeof(*made));
    if (made == NULL)
        return qr_jv_none();
    *made = *from;
    return (qr_jv){.kind = QR_JV_GENERATOR, .generator = made};
}

static qr_jv iterate(qr_jrun *run, qr_jv source)
{
    return generator(run, &(qr_jgen){.type = QR_JGEN_ITER, .source = source});
}

static qr_jv ignore_case(qr_jrun *run, qr_jv value)
{
    return value.kind == QR_JV_STRING ? qr_jv_case(run, qr_jv_slice(value), QR_JCASE_LOWER) : value;
}

FILTER(length)
{
    UNUSED;
    int64_t length = qr_jv_length(value);
    if (length < 0)
        return qr_jinja_raise(run, "object of type '%s' has no len()", qr_jv_type_name(value));
    return qr_jv_int(length);
}

FILTER(first)
{
    UNUSED;
    qr_jiter iter;
    qr_jv item;
    if (!qr_jiter_init(run, &iter, value))
        return qr_jv_none();
    return qr_jiter_next(run, &iter, &item) ? item : qr_jv_hint("No first item, sequence was empty.");
}

static bool reversible(qr_jrun *run, qr_jv value)
{
    if (qr_jv_length(value) >= 0)
        return true;
    qr_jinja_raise(run, "'%s' object is not reversible", qr_jv_type_name(value));
    return false;
}

FILTER(last)
{
    UNUSED;
    qr_jlist list;
    if (qr_jv_is_sequence(value) && value.len > 0)
        return qr_jv_list_at(value, value.len - 1);
    if (!reversible(run, value) || !qr_jv_to_list(run, value, &list))
        return qr_jv_none();
    return list.count > 0 ? list.items[list.count - 1] : qr_jv_hint("No last item, sequence was empty.");
}

FILTER(list)
{
    UNUSED;
    qr_jlist list;
    if (value.kind == QR_JV_LIST)
        return value; /* a copy of what nothing can change */
    return qr_jv_to_list(run, value, &list) ? qr_jlist_value(&list, QR_JV_LIST) : qr_jv_none();
}

FILTER(reverse)
{
    UNUSED;
    qr_jlist list;
    if (value.kind == QR_JV_STRING)
        return qr_jinja_slice(run, value, qr_jv_none(), qr_jv_none(), qr_jv_int(-1));
    if (!qr_jv_to_list(run, value, &list))
        return qr_jv_none();
    for (uint32_t i = 0; i < list.count / 2; i++) {
        qr_jv swap = list.items[i];
        list.items[i] = list.items[list.count - 1 - i];
        list.items[list.count - 1 - i] = swap;
    }
    qr_jv reversed = qr_jlist_value(&list, QR_JV_LIST);
    return value.kind == QR_JV_GENERATOR ? reversed : iterate(run, reversed);
}

FILTER(items)
{
    UNUSED;
    if (value.kind == QR_JV_UNDEFINED)
        return iterate(run, value);
    if (value.kind != QR_JV_DICT)
        return qr_jinja_raise(run, "Can only get item pairs from a mapping.");
    qr_jv *dict = qr_jinja_alloc(run, sizeof(*dict));
    if (dict == NULL)
        return qr_jv_none();
    *dict = value;
    return iterate(run, (qr_jv){.kind = QR_JV_VIEW, .aux = QR_JVIEW_ITEMS, .view = dict});
}

FILTER(join)
{
    UNUSED;
    qr_jiter iter;
    qr_jv item, separator = args[0].kind != QR_JV_MISSING ? qr_jv_to_str(run, args[0]) : QR_JV_TEXT("");
    if (!qr_jiter_init(run, &iter, value))
        return qr_jv_none();
    size_t mark = run->out->len;
    for (bool first = true; qr_jiter_next(run, &iter, &item); first = false) {
        if (!first)
            qr_jinja_write(run, qr_jv_slice(separator));
        if (qr_jinja_given(args[1]))
            item = qr_jinja_attribute_path(run, item, args[1], (qr_jv){0});
        qr_jinja_write_str(run, item);
    }
    return qr_jinja_take(run, mark);
}

/* ---- Sorting and its relatives ---- */

/* The sort key of an item: its attributes ("a,b" gives a list), lower case unless told otherwise. */
static qr_jv sort_key(qr_jrun *run, qr_jv item, qr_jv attribute, bool case_sensitive)
{
    qr_jlist keys = {0};
    if (!qr_jinja_given(attribute)) { /* a list of one, as there: equal items are never ordered */
        qr_jlist_push(run, &keys, case_sensitive ? item : ignore_case(run, item));
        return qr_jlist_value(&keys, QR_JV_LIST);
    }
    qr_str rest = attribute.kind == QR_JV_STRING ? qr_jv_slice(attribute) : QR_STR("");
    for (;;) {
        ptrdiff_t comma = qr_str_find(rest, QR_STR(","), 0);
        qr_str part = comma >= 0 ? qr_str_make(rest.data, (size_t)comma) : rest;
        qr_jv path = attribute.kind == QR_JV_STRING ? qr_jv_str(part) : attribute;
        qr_jv key = qr_jinja_attribute_path(run, item, path, (qr_jv){0});
        qr_jlist_push(run, &keys, case_sensitive ? key : ignore_case(run, key));
        if (comma < 0 || qr_jinja_failed(run))
            break;
        rest = qr_str_make(rest.data + comma + 1, rest.len - (size_t)comma - 1);
    }
    return qr_jlist_value(&keys, QR_JV_LIST);
}

FILTER(sort)
{
    UNUSED;
    qr_jlist list, keys = {0}, copy = {0};
    if (!qr_jv_to_list(run, value, &list))
        return qr_jv_none();
    for (uint32_t i = 0; i < list.count && !qr_jinja_failed(run); i++) {
        qr_jlist_push(run, &keys, sort_key(run, list.items[i], args[2], qr_jv_truth(args[1])));
        qr_jlist_push(run, &copy, list.items[i]);
    }
    if (qr_jinja_failed(run) || !qr_jinja_sort(run, keys.items, copy.items, copy.count, qr_jv_truth(args[0])))
        return qr_jv_none();
    return qr_jlist_value(&copy, QR_JV_LIST);
}

FILTER(dictsort)
{
    UNUSED;
    qr_jlist pairs, keys = {0};
    bool by_value = args[1].kind == QR_JV_STRING && qr_str_equals(qr_jv_slice(args[1]), "value");
    bool by_key = args[1].kind == QR_JV_MISSING ||
                  (args[1].kind == QR_JV_STRING && qr_str_equals(qr_jv_slice(args[1]), "key"));
    if (!by_value && !by_key)
        return qr_jinja_raise(run, "You can only sort by either \"key\" or \"value\"");
    if (value.kind == QR_JV_UNDEFINED)
        return qr_jinja_undefined_use(run, value);
    if (value.kind != QR_JV_DICT)
        return qr_jinja_raise(run, "'%s' object has no attribute 'items'", qr_jv_type_name(value));
    qr_jv view = {.kind = QR_JV_VIEW, .aux = QR_JVIEW_ITEMS, .view = &value};
    if (!qr_jv_to_list(run, view, &pairs))
        return qr_jv_none();
    for (uint32_t i = 0; i < pairs.count; i++) {
        qr_jv key = pairs.items[i].items[by_value];
        qr_jlist_push(run, &keys, qr_jv_truth(args[0]) ? key : ignore_case(run, key));
    }
    if (qr_jinja_failed(run) ||
        !qr_jinja_sort(run, keys.items, pairs.items, pairs.count, qr_jv_truth(args[2])))
        return qr_jv_none();
    return qr_jlist_value(&pairs, QR_JV_LIST);
}

static qr_jv extreme(qr_jrun *run, qr_jv value, const qr_jv *args, bool want_max)
{
    qr_jiter iter;
    qr_jv item, best = {0}, best_key = {0};
    if (!qr_jiter_init(run, &iter, value))
        return qr_jv_none();
    while (qr_jiter_next(run, &iter, &item)) {
        qr_jv key = qr_jinja_given(args[1]) ? qr_jinja_attribute_path(run, item, args[1], (qr_jv){0}) : item;
        int order = 0;
        if (!qr_jv_truth(args[0]))
            key = ignore_case(run, key);
        bool better = best.kind == QR_JV_MISSING;
        if (!better && qr_jv_compare(run, key, best_key, want_max ? ">" : "<", &order))
            better = want_max ? order > 0 : order < 0;
        best = better ? item : best;
        best_key = better ? key : best_key;
    }
    return best.kind != QR_JV_MISSING ? best : qr_jv_hint("No aggregated item, sequence was empty.");
}

FILTER(min) { return UNUSED, extreme(run, value, args, false); }
FILTER(max) { return UNUSED, extreme(run, value, args, true); }

FILTER(sum)
{
    UNUSED;
    qr_jiter iter;
    qr_jv item, total = args[1].kind != QR_JV_MISSING ? args[1] : qr_jv_int(0);
    if (!qr_jiter_init(run, &iter, value))
        return qr_jv_none();
    if (total.kind == QR_JV_STRING)
        return qr_jinja_raise(run, "sum() can't sum strings [use ''.join(seq) instead]");
    while (qr_jiter_next(run, &iter, &item)) {
        if (qr_jinja_given(args[0]))
            item = qr_jinja_attribute_path(run, item, args[0], (qr_jv){0});
        total = qr_jinja_binary(run, QR_JOP_ADD, total, item);
    }
    return total;
}

static qr_jv group_row(qr_jrun *run, qr_jv grouper, qr_jlist *members)
{
    qr_jv row = qr_jv_pair(run, grouper, qr_jlist_value(members, QR_JV_LIST));
    row.flag |= QR_JV_GROUP;
    return row;
}

FILTER(groupby)
{
    UNUSED;
    qr_jlist list, keys = {0}, groups = {0};
    bool sensitive = qr_jv_truth(args[2]);
    if (!qr_jv_to_list(run, value, &list))
        return qr_jv_none();
    for (uint32_t i = 0; i < list.count && !qr_jinja_failed(run); i++) {
        qr_jv key = qr_jinja_attribute_path(run, list.items[i], args[0], args[1]);
        qr_jlist_push(run, &keys, sensitive ? key : ignore_case(run, key));
    }
    if (qr_jinja_failed(run) || !qr_jinja_sort(run, keys.items, list.items, list.count, false))
        return qr_jv_none();
    for (uint32_t i = 0; i < list.count && !qr_jinja_failed(run);) {
        qr_jlist members = {0};
        uint32_t first = i;
        for (; i < list.count && (i == first || qr_jv_equal(run, keys.items[i], keys.items[first])); i++)
            qr_jlist_push(run, &members, list.items[i]);
        qr_jv grouper =
            sensitive ? keys.items[first] : qr_jinja_attribute_path(run, list.items[first], args[0], args[1]);
        qr_jlist_push(run, &groups, group_row(run, grouper, &members));
    }
    return qr_jlist_value(&groups, QR_JV_LIST);
}

FILTER(unique)
{
    UNUSED;
    return generator(run, &(qr_jgen){.type = QR_JGEN_UNIQUE,
                                     .source = value,
                                     .case_sensitive = qr_jv_truth(args[0]),
                                     .attribute = qr_jinja_given(args[1]) ? args[1] : (qr_jv){0},
                                     .seen = qr_jdict_new(run, 4)});
}

FILTER(batch)
{
    UNUSED;
    int64_t size = 0;
    if (!qr_jinja_want_int(run, args[0], &size))
        return qr_jv_none();
    return generator(run,
                     &(qr_jgen){.type = QR_JGEN_BATCH, .source = value, .batch = size, .fallback = args[1]});
}

FILTER(slice)
{
    UNUSED;
    qr_jlist list, rows = {0};
    int64_t slices = 0, at = 0;
    if (!qr_jinja_want_int(run, args[0], &slices) || !qr_jv_to_list(run, value, &list))
        return qr_jv_none();
    if (slices <= 0)
        return qr_jinja_raise(run, "integer division or modulo by zero");
    for (int64_t i = 0; i < slices && qr_jinja_charge(run, 1); i++) {
        bool longer = i < list.count % slices;
        int64_t count = list.count / slices + longer;
        qr_jlist row = {0};
        for (int64_t k = 0; k < count; k++)
            qr_jlist_push(run, &row, list.items[at++]);
        if (qr_jinja_given(args[1]) && !longer)
            qr_jlist_push(run, &row, args[1]);
        qr_jlist_push(run, &rows, qr_jlist_value(&row, QR_JV_LIST));
    }
    return iterate(run, qr_jlist_value(&rows, QR_JV_LIST));
}

/* ---- map, select and theirs ---- */

static qr_jargs rest_of(qr_jrun *run, const qr_jargs *raw, uint32_t skip)
{
    qr_jargs rest = {.count = raw->count - skip, .keyword_count = raw->keyword_count};
    qr_jv *values = qr_jinja_alloc(run, (rest.count + rest.keyword_count + 1) * sizeof(qr_jv));
    qr_str *names = qr_jinja_alloc(run, (rest.keyword_count + 1) * sizeof(qr_str));
    if (values == NULL || names == NULL)
        return (qr_jargs){0};
    if (rest.count > 0)
        memcpy(values, raw->positional + skip, rest.count * sizeof(qr_jv));
    if (rest.keyword_count > 0) {
        memcpy(values + rest.count, raw->keywords, rest.keyword_count * sizeof(qr_jv));
        memcpy(names, raw->names, rest.keyword_count * sizeof(qr_str));
    }
    rest.positional = values;
    rest.keywords = values + rest.count;
    rest.names = names;
    return rest;
}

static const qr_jfilter *named_row(qr_jrun *run, qr_jv name, const qr_jfilter *(*find)(qr_str),
                                   const char *what)
{
    qr_str text = name.kind == QR_JV_STRING ? qr_jv_slice(name) : QR_STR("?");
    const qr_jfilter *row = find(text);
    if (row == NULL)
        qr_jinja_raise(run, "No %s named '%.*s'.", what, (int)QR_MIN(text.len, (size_t)80), text.data);
    return row;
}

FILTER(map)
{
    UNUSED;
    qr_jgen g = {.type = QR_JGEN_MAP, .source = value};
    if (raw->count > 0) {
        g.row = named_row(run, raw->positional[0], qr_jinja_find_filter, "filter");
        g.args = rest_of(run, raw, 1);
        return generator(run, &g);
    }
    for (uint32_t i = 0; i < raw->keyword_count; i++) {
        if (qr_str_equals(raw->names[i], "attribute"))
            g.attribute = raw->keywords[i];
        else if (qr_str_equals(raw->names[i], "default"))
            g.fallback = raw->keywords[i];
        else
            return qr_jinja_raise(run, "Unexpected keyword argument '%.*s'",
                                  (int)QR_MIN(raw->names[i].len, (size_t)80), raw->names[i].data);
    }
    if (g.attribute.kind == QR_JV_MISSING)
        return qr_jinja_raise(run, "map requires a filter argument");
    return generator(run, &g);
}

static qr_jv select_by(qr_jrun *run, qr_jv value, const qr_jargs *raw, bool by_attribute, bool negate)
{
    qr_jgen g = {.type = QR_JGEN_SELECT, .source = value, .negate = negate};
    uint32_t skip = by_attribute;
    if (by_attribute && raw->count == 0)
        return qr_jinja_raise(run, "Missing parameter for attribute name");
    if (by_attribute)
        g.attribute = raw->positional[0];
    if (raw->count > skip) {
        g.row = named_row(run, raw->positional[skip], qr_jinja_find_test, "test");
        g.args = rest_of(run, raw, skip + 1);
    }
    return generator(run, &g);
}

FILTER(select) { return UNUSED, select_by(run, value, raw, false, false); }
FILTER(reject) { return UNUSED, select_by(run, value, raw, false, true); }
FILTER(selectattr) { return UNUSED, select_by(run, value, raw, true, false); }
FILTER(rejectattr) { return UNUSED, select_by(run, value, raw, true, true); }

const qr_jfilter qr_jinja_sequence_filters[] = {
    {"batch", filter_batch, "linecount fill_with", 1},
    {"count", filter_length, NULL, 0},
    {"dictsort", filter_dictsort, "case_sensitive by reverse", 0},
    {"first", filter_first, NULL, 0},
    {"groupby", filter_groupby, "attribute default case_sensitive", 1},
    {"items", filter_items, NULL, 0},
    {"join", filter_join, "d attribute", 0},
    {"last", filter_last, NULL, 0},
    {"length", filter_length, NULL, 0},
    {"list", filter_list, NULL, 0},
    {"map", filter_map, "*", 0},
    {"max", filter_max, "case_sensitive attribute", 0},
    {"min", filter_min, "case_sensitive attribute", 0},
    {"reject", filter_reject, "*", 0},
    {"rejectattr", filter_rejectattr, "*", 0},
    {"reverse", filter_reverse, NULL, 0},
    {"select", filter_select, "*", 0},
    {"selectattr", filter_selectattr, "*", 0},
    {"slice", filter_slice, "slices fill_with", 1},
    {"sort", filter_sort, "reverse case_sensitive attribute", 0},
    {"sum", filter_sum, "attribute start", 0},
    {"unique", filter_unique, "case_sensitive attribute", 0},
};
const size_t qr_jinja_sequence_filter_count = QR_COUNT_OF(qr_jinja_sequence_filters);
