/* Values: memory, facts, equality, order, dicts. Recursion over nested values is bounded by depth_max. */
#include "text/jinja_value.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "base/mem.h"
#include "text/jinja_run.h"

enum { BLOCK_BYTES = 8 << 10, INDEX_FROM = 8 };

/* ---- Memory ---- */

static char *take_block(qr_jrun *run, size_t bytes)
{
    size_t total = 0;
    if (!qr_size_add(run->memory, bytes, &total) || total > run->limits.memory_bytes_max) {
        qr_jinja_limit(run, "more than %zu bytes of values", run->limits.memory_bytes_max);
        return NULL;
    }
    run->memory = total;
    return qr_arena_alloc(&run->arena, bytes);
}

void *qr_jinja_alloc(qr_jrun *run, size_t bytes)
{
    bytes = QR_ROUND_UP(bytes, (size_t)16);
    if (bytes > BLOCK_BYTES / 4)
        return take_block(run, bytes);
    if (run->bump == NULL || (size_t)(run->bump_end - run->bump) < bytes) {
        char *block = take_block(run, BLOCK_BYTES);
        if (block == NULL)
            return NULL;
        run->bump = block;
        run->bump_end = block + BLOCK_BYTES;
    }
    void *memory = run->bump;
    run->bump += bytes;
    return memory;
}

char *qr_jinja_text(qr_jrun *run, size_t bytes)
{
    if (bytes > UINT32_MAX / 4) {
        qr_jinja_limit(run, "a string of %zu bytes", bytes);
        return NULL;
    }
    if (run->text == NULL || (size_t)(run->text_end - run->text) < bytes) {
        size_t block = QR_MAX(bytes * 2, (size_t)BLOCK_BYTES);
        run->text = take_block(run, block);
        run->text_end = run->text != NULL ? run->text + block : NULL;
        if (run->text == NULL)
            return NULL;
    }
    char *text = run->text;
    run->text += bytes;
    return text;
}

qr_jv qr_jv_copy_text(qr_jrun *run, qr_str text)
{
    char *copy = qr_jinja_text(run, text.len);
    if (copy == NULL)
        return QR_JV_TEXT("");
    if (text.len > 0)
        memcpy(copy, text.data, text.len);
    return qr_jv_str(qr_str_make(copy, text.len));
}

qr_jv qr_jv_printf(qr_jrun *run, const char *format, ...)
{
    char buffer[512];
    va_list args;
    va_start(args, format);
    int len = vsnprintf(buffer, sizeof(buffer), format, args);
    va_end(args);
    return qr_jv_copy_text(run, qr_str_make(buffer, QR_MIN((size_t)QR_MAX(len, 0), sizeof(buffer) - 1)));
}

void qr_jlist_push(qr_jrun *run, qr_jlist *list, qr_jv item)
{
    if (list->count == list->capacity) {
        uint32_t capacity = list->capacity * 2 + 4;
        qr_jv *items = qr_jinja_alloc(run, capacity * sizeof(qr_jv));
        if (items == NULL)
            return;
        if (list->count > 0)
            memcpy(items, list->items, list->count * sizeof(qr_jv));
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = item;
}

qr_jv qr_jlist_value(const qr_jlist *list, qr_jv_kind kind)
{
    return (qr_jv){.kind = (uint8_t)kind, .len = list->count, .items = list->items};
}

qr_jv qr_jv_pair(qr_jrun *run, qr_jv a, qr_jv b)
{
    qr_jv *items = qr_jinja_alloc(run, 2 * sizeof(qr_jv));
    if (items == NULL)
        return qr_jv_none();
    items[0] = a;
    items[1] = b;
    return (qr_jv){.kind = QR_JV_TUPLE, .len = 2, .items = items};
}

/* ---- Facts ---- */

qr_jv qr_jv_from_json(const qr_json *json)
{
    switch (qr_json_typeof(json)) {
    case QR_JSON_NULL: return qr_jv_none();
    case QR_JSON_BOOL: return qr_jv_bool(qr_json_bool(json, false));
    case QR_JSON_INT: return qr_jv_int(qr_json_int(json, 0));
    case QR_JSON_REAL: return qr_jv_float(qr_json_number(json, 0));
    case QR_JSON_STRING: return qr_jv_str(qr_json_string(json));
    case QR_JSON_ARRAY:
        return (qr_jv){
            .kind = QR_JV_LIST, .flag = QR_JV_JSON, .len = (uint32_t)qr_json_count(json), .json = json};
    case QR_JSON_OBJECT:
        return (qr_jv){
            .kind = QR_JV_DICT, .flag = QR_JV_JSON, .len = (uint32_t)qr_json_count(json), .json = json};
    }
    return qr_jv_none();
}

qr_jv qr_jv_hint(const char *text)
{
    return (qr_jv){.kind = QR_JV_UNDEFINED, .aux = QR_JV_HINT, .len = (uint32_t)strlen(text), .s = text};
}

static const char *const kind_names[QR_JV_KIND_COUNT] = {
    [QR_JV_UNDEFINED] = "Undefined", [QR_JV_NONE] = "NoneType",
    [QR_JV_BOOL] = "bool",           [QR_JV_INT] = "int",
    [QR_JV_FLOAT] = "float",         [QR_JV_STRING] = "str",
    [QR_JV_LIST] = "list",           [QR_JV_TUPLE] = "tuple",
    [QR_JV_DICT] = "dict",           [QR_JV_RANGE] = "range",
    [QR_JV_VIEW] = "dict_items",     [QR_JV_GENERATOR] = "generator",
    [QR_JV_NAMESPACE] = "Namespace", [QR_JV_MACRO] = "Macro",
    [QR_JV_FUNCTION] = "function",   [QR_JV_METHOD] = "builtin_function_or_method",
    [QR_JV_LOOP] = "LoopContext",    [QR_JV_CYCLER] = "Cycler",
    [QR_JV_JOINER] = "Joiner",
};

const char *qr_jv_type_name(qr_jv value)
{
    if (value.kind == QR_JV_STRING && (value.flag & QR_JV_SAFE))
        return "Markup";
    if (value.kind == QR_JV_VIEW)
        return value.aux == QR_JVIEW_KEYS     ? "dict_keys"
               : value.aux == QR_JVIEW_VALUES ? "dict_values"
                                              : "dict_items";
    return kind_names[value.kind] != NULL ? kind_names[value.kind] : "missing";
}

const char *qr_jv_kind_repr(qr_jv_kind kind)
{
    switch (kind) {
    case QR_JV_NONE: return "None";
    case QR_JV_BOOL: return "bool object";
    case QR_JV_INT: return "int object";
    case QR_JV_FLOAT: return "float object";
    case QR_JV_STRING: return "str object";
    case QR_JV_LIST: return "list object";
    case QR_JV_TUPLE: return "tuple object";
    case QR_JV_DICT: return "dict object";
    case QR_JV_RANGE: return "range object";
    case QR_JV_GENERATOR: return "generator object";
    case QR_JV_NAMESPACE: return "jinja2.utils.Namespace object";
    case QR_JV_MACRO: return "jinja2.runtime.Macro object";
    case QR_JV_LOOP: return "jinja2.runtime.LoopContext object";
    default: return "object";
    }
}

int64_t qr_jv_length(qr_jv value)
{
    switch (value.kind) {
    case QR_JV_UNDEFINED: return 0;
    case QR_JV_STRING: return (int64_t)qr_jtext_count(qr_jv_slice(value));
    case QR_JV_LIST:
    case QR_JV_TUPLE: return value.len;
    case QR_JV_DICT: return value.flag & QR_JV_JSON ? value.len : value.dict->count;
    case QR_JV_RANGE: return value.range->count;
    case QR_JV_VIEW: return qr_jv_length(*value.view);
    default: return -1;
    }
}

bool qr_jv_truth(qr_jv value)
{
    switch (value.kind) {
    case QR_JV_MISSING:
    case QR_JV_UNDEFINED:
    case QR_JV_NONE: return false;
    case QR_JV_BOOL:
    case QR_JV_INT: return value.i != 0;
    case QR_JV_FLOAT: return value.d != 0;
    case QR_JV_STRING: return value.len > 0;
    default: {
        int64_t length = qr_jv_length(value);
        return length != 0;
    }
    }
}

qr_jv qr_jv_list_at(qr_jv list, uint32_t index)
{
    return list.flag & QR_JV_JSON ? qr_jv_from_json(qr_json_at(list.json, index)) : list.items[index];
}

/* ---- Equality and order ---- */

static bool lists_equal(qr_jrun *run, qr_jv a, qr_jv b)
{
    if (a.kind != b.kind || a.len != b.len)
        return false;
    if ((a.flag & QR_JV_JSON) == (b.flag & QR_JV_JSON) && a.items == b.items)
        return true;
    bool equal = qr_jinja_enter(run, 1) && qr_jinja_charge(run, a.len);
    for (uint32_t i = 0; equal && i < a.len; i++)
        equal = qr_jv_equal(run, qr_jv_list_at(a, i), qr_jv_list_at(b, i));
    qr_jinja_leave(run, 1);
    return equal;
}

static bool dicts_equal(qr_jrun *run, qr_jv a, qr_jv b)
{
    if (qr_jv_length(a) != qr_jv_length(b))
        return false;
    qr_jiter iter;
    qr_jv key;
    bool equal = qr_jinja_enter(run, 1) && qr_jiter_init(run, &iter, a);
    while (equal && qr_jiter_next(run, &iter, &key)) {
        qr_jv other = qr_jv_dict_get(run, b, key);
        equal = other.kind != QR_JV_MISSING && qr_jv_equal(run, qr_jv_dict_get(run, a, key), other);
    }
    qr_jinja_leave(run, 1);
    return equal && !qr_jinja_failed(run);
}

static bool same_object(qr_jv a, qr_jv b) { return a.kind == b.kind && a.items == b.items; }

bool qr_jv_equal(qr_jrun *run, qr_jv a, qr_jv b)
{
    if (qr_jv_is_number(a) && qr_jv_is_number(b)) {
        if (a.kind != QR_JV_FLOAT && b.kind != QR_JV_FLOAT)
            return a.i == b.i;
        return qr_jv_to_double(a) == qr_jv_to_double(b);
    }
    switch (a.kind) {
    case QR_JV_STRING: return b.kind == QR_JV_STRING && qr_str_equal(qr_jv_slice(a), qr_jv_slice(b));
    case QR_JV_NONE:
    case QR_JV_UNDEFINED: return a.kind == b.kind;
    case QR_JV_LIST:
    case QR_JV_TUPLE: return lists_equal(run, a, b);
    case QR_JV_DICT: return b.kind == QR_JV_DICT && dicts_equal(run, a, b);
    case QR_JV_RANGE:
        return b.kind == QR_JV_RANGE && a.range->count == b.range->count &&
               (a.range->count == 0 || (a.range->start == b.range->start &&
                                        (a.range->count == 1 || a.range->step == b.range->step)));
    case QR_JV_FUNCTION: return b.kind == QR_JV_FUNCTION && a.aux == b.aux;
    default: return same_object(a, b);
    }
}

static int compare_text(qr_str a, qr_str b)
{
    size_t common = QR_MIN(a.len, b.len);
    int order = common > 0 ? memcmp(a.data, b.data, common) : 0; /* UTF-8 sorts like code points */
    return order != 0 ? order : (a.len > b.len) - (a.len < b.len);
}

static bool compare_lists(qr_jrun *run, qr_jv a, qr_jv b, const char *op, int *order)
{
    bool ok = qr_jinja_enter(run, 1);
    uint32_t common = QR_MIN(a.len, b.len), i = 0;
    *order = (a.len > b.len) - (a.len < b.len);
    for (; ok && i < common; i++) {
        qr_jv x = qr_jv_list_at(a, i), y = qr_jv_list_at(b, i);
        ok = qr_jinja_charge(run, 1);
        if (!qr_jv_equal(run, x, y)) {
            ok = ok && qr_jv_compare(run, x, y, op, order);
            break;
        }
    }
    qr_jinja_leave(run, 1);
    return ok;
}

bool qr_jv_compare(qr_jrun *run, qr_jv a, qr_jv b, const char *op, int *order)
{
    if (qr_jv_is_number(a) && qr_jv_is_number(b)) {
        double x = qr_jv_to_double(a), y = qr_jv_to_double(b);
        bool integers = a.kind != QR_JV_FLOAT && b.kind != QR_JV_FLOAT;
        *order = integers ? (a.i > b.i) - (a.i < b.i) : (x > y) - (x < y);
        return true;
    }
    if (a.kind == QR_JV_STRING && b.kind == QR_JV_STRING) {
        *order = compare_text(qr_jv_slice(a), qr_jv_slice(b));
        return true;
    }
    if (qr_jv_is_sequence(a) && a.kind == b.kind)
        return compare_lists(run, a, b, op, order);
    if (a.kind == QR_JV_UNDEFINED || b.kind == QR_JV_UNDEFINED)
        qr_jinja_undefined_use(run, a.kind == QR_JV_UNDEFINED ? a : b);
    else
        qr_jinja_raise(run, "'%s' not supported between instances of '%s' and '%s'", op, qr_jv_type_name(a),
                       qr_jv_type_name(b));
    return false;
}

static bool contains_item(qr_jrun *run, qr_jv container, qr_jv item)
{
    qr_jiter iter;
    qr_jv candidate;
    if (!qr_jiter_init(run, &iter, container))
        return false;
    while (qr_jiter_next(run, &iter, &candidate))
        if (qr_jv_equal(run, candidate, item))
            return true;
    return false;
}

bool qr_jv_contains(qr_jrun *run, qr_jv container, qr_jv item)
{
    switch (container.kind) {
    case QR_JV_STRING:
        if (item.kind == QR_JV_STRING)
            return qr_str_find(qr_jv_slice(container), qr_jv_slice(item), 0) >= 0;
        qr_jinja_raise(run, "'in <string>' requires string as left operand, not %s", qr_jv_type_name(item));
        return false;
    case QR_JV_DICT:
        return qr_jv_hashable(run, item) && qr_jv_dict_get(run, container, item).kind != QR_JV_MISSING;
    case QR_JV_LIST:
    case QR_JV_TUPLE:
    case QR_JV_RANGE:
    case QR_JV_GENERATOR:
    case QR_JV_VIEW:
    case QR_JV_UNDEFINED: return contains_item(run, container, item);
    default:
        qr_jinja_raise(run, "argument of type '%s' is not iterable", qr_jv_type_name(container));
        return false;
    }
}

/* ---- Dicts ---- */

bool qr_jv_hashable(qr_jrun *run, qr_jv value)
{
    if (value.kind == QR_JV_LIST || value.kind == QR_JV_DICT) {
        qr_jinja_raise(run, "unhashable type: '%s'", qr_jv_type_name(value));
        return false;
    }
    bool ok = qr_jinja_enter(run, 1);
    for (uint32_t i = 0; ok && value.kind == QR_JV_TUPLE && i < value.len; i++)
        ok = qr_jv_hashable(run, value.items[i]);
    qr_jinja_leave(run, 1);
    return ok;
}

static uint64_t hash_value(qr_jv value)
{
    switch (value.kind) {
    case QR_JV_STRING: return qr_hash64(value.s, value.len, 7);
    case QR_JV_BOOL:
    case QR_JV_INT: return qr_hash_mix((uint64_t)value.i);
    case QR_JV_FLOAT:
        if (fabs(value.d) < 9e18 && value.d == floor(value.d))
            return qr_hash_mix((uint64_t)(int64_t)value.d);
        return qr_hash_mix((uint64_t)value.i);
    case QR_JV_TUPLE: /* equal tuples have equal lengths; the items are compared */
        return qr_hash_mix(value.len + UINT64_C(0x7f00000000));
    default: return qr_hash_mix(value.kind);
    }
}

qr_jdict *qr_jdict_new(qr_jrun *run, uint32_t expected)
{
    qr_jdict *dict = qr_jinja_alloc(run, sizeof(*dict));
    if (dict == NULL)
        return NULL;
    *dict = (qr_jdict){.capacity = QR_MAX(expected, 4u)};
    dict->keys = qr_jinja_alloc(run, dict->capacity * sizeof(qr_jv));
    dict->values = qr_jinja_alloc(run, dict->capacity * sizeof(qr_jv));
    if (dict->keys == NULL || dict->values == NULL)
        dict->capacity = 0;
    return dict;
}

static uint32_t find_slot(qr_jrun *run, const qr_jdict *dict, qr_jv key, bool *found)
{
    uint32_t mask = dict->index_capacity - 1, slot = (uint32_t)hash_value(key) & mask;
    *found = false;
    while (dict->index[slot] != 0 && qr_jinja_charge(run, 1)) {
        if (qr_jv_equal(run, dict->keys[dict->index[slot] - 1], key)) {
            *found = true;
            break;
        }
        slot = (slot + 1) & mask;
    }
    return slot;
}

static int64_t find_key(qr_jrun *run, const qr_jdict *dict, qr_jv key)
{
    if (dict->index != NULL) {
        bool found = false;
        uint32_t slot = find_slot(run, dict, key, &found);
        return found ? (int64_t)dict->index[slot] - 1 : -1;
    }
    for (uint32_t i = 0; i < dict->count; i++)
        if (qr_jv_equal(run, dict->keys[i], key))
            return i;
    return -1;
}

static bool grow_dict(qr_jrun *run, qr_jdict *dict)
{
    uint32_t capacity = dict->capacity * 2 + 4;
    qr_jv *keys = qr_jinja_alloc(run, capacity * sizeof(qr_jv));
    qr_jv *values = qr_jinja_alloc(run, capacity * sizeof(qr_jv));
    uint32_t index_capacity = 16;
    while (index_capacity < capacity * 2)
        index_capacity *= 2;
    uint32_t *index = qr_jinja_alloc(run, index_capacity * sizeof(uint32_t));
    if (keys == NULL || values == NULL || index == NULL)
        return false;
    memcpy(keys, dict->keys, dict->count * sizeof(qr_jv));
    memcpy(values, dict->values, dict->count * sizeof(qr_jv));
    memset(index, 0, index_capacity * sizeof(uint32_t));
    *dict = (qr_jdict){keys, values, index, dict->count, capacity, index_capacity};
    for (uint32_t i = 0; i < dict->count; i++) {
        bool found = false;
        index[find_slot(run, dict, keys[i], &found)] = i + 1;
    }
    return true;
}

void qr_jdict_set(qr_jrun *run, qr_jdict *dict, qr_jv key, qr_jv value)
{
    if (dict == NULL || !qr_jv_hashable(run, key))
        return;
    int64_t at = find_key(run, dict, key);
    if (at >= 0) {
        dict->values[at] = value;
        return;
    }
    if (dict->count == dict->capacity && !grow_dict(run, dict))
        return;
    if (dict->index != NULL) {
        bool found = false;
        dict->index[find_slot(run, dict, key, &found)] = dict->count + 1;
    }
    dict->keys[dict->count] = key;
    dict->values[dict->count++] = value;
}

qr_jv qr_jdict_get(qr_jrun *run, const qr_jdict *dict, qr_jv key)
{
    int64_t at = find_key(run, dict, key);
    return at >= 0 ? dict->values[at] : (qr_jv){.kind = QR_JV_MISSING};
}

qr_jv qr_jv_dict_get(qr_jrun *run, qr_jv dict, qr_jv key)
{
    if (!(dict.flag & QR_JV_JSON))
        return qr_jdict_get(run, dict.dict, key);
    if (key.kind != QR_JV_STRING)
        return (qr_jv){.kind = QR_JV_MISSING};
    const qr_json *found = qr_json_find(dict.json, qr_jv_slice(key));
    return found != NULL ? qr_jv_from_json(found) : (qr_jv){.kind = QR_JV_MISSING};
}
