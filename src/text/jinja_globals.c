/* Functions that every template sees: Jinja2's own, and raise_exception and strftime_now of transformers. */
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "text/jinja_run.h"

enum { RANGE_MAX = 100000, FORMAT_BYTES_MAX = 4096 };

typedef enum function_id {
    F_RANGE,
    F_DICT,
    F_LIPSUM,
    F_CYCLER,
    F_JOINER,
    F_NAMESPACE,
    F_RAISE,
    F_STRFTIME
} function_id;

static const struct {
    const char *name;
    function_id id;
} functions[] = {
    {"range", F_RANGE},           {"dict", F_DICT},
    {"lipsum", F_LIPSUM},         {"cycler", F_CYCLER},
    {"joiner", F_JOINER},         {"namespace", F_NAMESPACE},
    {"raise_exception", F_RAISE}, {"strftime_now", F_STRFTIME},
};

qr_jv qr_jinja_global(qr_str name)
{
    for (size_t i = 0; i < QR_COUNT_OF(functions); i++)
        if (qr_str_equals(name, functions[i].name))
            return (qr_jv){.kind = QR_JV_FUNCTION, .aux = (uint16_t)functions[i].id};
    return (qr_jv){0};
}

static uint64_t range_count(int64_t start, int64_t stop, int64_t step)
{
    uint64_t distance = step > 0 ? (uint64_t)stop - (uint64_t)start : (uint64_t)start - (uint64_t)stop;
    uint64_t stride = step > 0 ? (uint64_t)step : 0 - (uint64_t)step;
    if (step > 0 ? start >= stop : start <= stop)
        return 0;
    return (distance - 1) / stride + 1;
}

static qr_jv make_range(qr_jrun *run, const qr_jargs *args)
{
    int64_t bounds[3] = {0, 0, 1};
    if (args->keyword_count > 0 || args->count == 0 || args->count > 3)
        return qr_jinja_raise(run, "range expected 1 to 3 arguments, got %u", args->count);
    for (uint32_t i = 0; i < args->count; i++)
        if (!qr_jinja_want_int(run, args->positional[i], &bounds[args->count == 1 ? 1 : i]))
            return qr_jv_none();
    if (bounds[2] == 0)
        return qr_jinja_raise(run, "range() arg 3 must not be zero");
    uint64_t count = range_count(bounds[0], bounds[1], bounds[2]);
    if (count > RANGE_MAX)
        return qr_jinja_raise(run, "Range too big. The sandbox blocks ranges larger than MAX_RANGE (%d).",
                              RANGE_MAX);
    qr_jrange *range = qr_jinja_alloc(run, sizeof(*range));
    if (range == NULL)
        return qr_jv_none();
    *range = (qr_jrange){bounds[0], bounds[1], bounds[2], (uint32_t)count};
    return (qr_jv){.kind = QR_JV_RANGE, .range = range};
}

static void add_pair(qr_jrun *run, qr_jdict *dict, qr_jv item, uint32_t index)
{
    qr_jlist pair;
    int64_t length = qr_jv_length(item);
    if (length < 0)
        qr_jinja_raise(run, "cannot convert dictionary update sequence element #%u to a sequence", index);
    else if (length != 2)
        qr_jinja_raise(run, "dictionary update sequence element #%u has length %lld; 2 is required", index,
                       (long long)length);
    else if (qr_jv_to_list(run, item, &pair))
        qr_jdict_set(run, dict, pair.items[0], pair.items[1]);
}

/* dict(mapping or pairs, **more), which namespace() takes too. */
static qr_jdict *make_dict(qr_jrun *run, const qr_jargs *args)
{
    qr_jdict *dict = qr_jdict_new(run, args->keyword_count);
    qr_jiter iter;
    qr_jv item;
    if (args->count > 1)
        qr_jinja_raise(run, "dict expected at most 1 argument, got %u", args->count);
    if (args->count == 1 && !qr_jinja_failed(run) && qr_jiter_init(run, &iter, args->positional[0])) {
        bool mapping = args->positional[0].kind == QR_JV_DICT;
        for (uint32_t i = 0; qr_jiter_next(run, &iter, &item); i++) {
            if (mapping)
                qr_jdict_set(run, dict, item, qr_jv_dict_get(run, args->positional[0], item));
            else
                add_pair(run, dict, item, i);
        }
    }
    for (uint32_t i = 0; i < args->keyword_count; i++)
        qr_jdict_set(run, dict, qr_jv_str(args->names[i]), args->keywords[i]);
    return dict;
}

static qr_jv make_cycle(qr_jrun *run, qr_jv_kind kind, const qr_jv *items, uint32_t count)
{
    qr_jcycle *cycle = qr_jinja_alloc(run, sizeof(*cycle));
    qr_jv *kept = qr_jinja_alloc(run, count * sizeof(qr_jv));
    if (cycle == NULL || kept == NULL)
        return qr_jv_none();
    memcpy(kept, items, count * sizeof(qr_jv));
    *cycle = (qr_jcycle){kept, count, 0};
    return (qr_jv){.kind = (uint8_t)kind, .cycle = cycle};
}

static qr_jv make_cycler(qr_jrun *run, const qr_jargs *args)
{
    if (args->keyword_count > 0)
        return qr_jinja_raise(run, "cycler() takes no keyword arguments");
    if (args->count == 0)
        return qr_jinja_raise(run, "at least one item has to be provided");
    return make_cycle(run, QR_JV_CYCLER, args->positional, args->count);
}

static qr_jv make_joiner(qr_jrun *run, const qr_jargs *args)
{
    qr_jv separator;
    if (!qr_jinja_bind(run, "joiner", "sep", 0, args, &separator))
        return qr_jv_none();
    if (separator.kind == QR_JV_MISSING)
        separator = QR_JV_TEXT(", ");
    return make_cycle(run, QR_JV_JOINER, &separator, 1);
}

/* Python's strftime is the C library's, with %f, %z and %Z (both empty for a naive time) done first. */
static qr_jv strftime_now(qr_jrun *run, const qr_jargs *args)
{
    qr_jv format;
    char pattern[FORMAT_BYTES_MAX + 2], out[4 * FORMAT_BYTES_MAX];
    if (!qr_jinja_bind(run, "strftime_now", "format", 1, args, &format))
        return qr_jv_none();
    if (format.kind != QR_JV_STRING || format.len > FORMAT_BYTES_MAX / 8)
        return qr_jinja_raise(run, "strftime() argument 1 must be str of at most %d bytes",
                              FORMAT_BYTES_MAX / 8);
    size_t len = 0;
    for (uint32_t i = 0; i < format.len; i++) {
        char c = format.s[i], next = i + 1 < format.len ? format.s[i + 1] : '\0';
        if (c == '%' && next == 'f') {
            memcpy(pattern + len, "000000", 6);
            len += 6;
        } else if (c != '%' || (next != 'z' && next != 'Z')) {
            pattern[len++] = c;
            if (c == '%' && next != '\0')
                pattern[len++] = next;
        }
        i += c == '%' && next != '\0';
    }
    pattern[len++] = '.'; /* so that an empty result differs from one that does not fit */
    pattern[len] = '\0';
    time_t now = (time_t)run->now;
    struct tm fields;
    if (gmtime_r(&now, &fields) == NULL)
        return qr_jinja_raise(run, "strftime_now: the time is out of range");
    size_t bytes = strftime(out, sizeof(out), pattern, &fields);
    if (bytes == 0)
        return qr_jinja_raise(run, "strftime_now: the result is too long");
    return qr_jv_copy_text(run, qr_str_make(out, bytes - 1));
}

static qr_jv raise_exception(qr_jrun *run, const qr_jargs *args)
{
    qr_jv message;
    if (!qr_jinja_bind(run, "raise_exception", "message", 1, args, &message))
        return qr_jv_none();
    message = qr_jv_to_str(run, message);
    return qr_jinja_raise(run, "raise_exception: %.*s", (int)QR_MIN(message.len, 200u), message.s);
}

qr_jv qr_jinja_call_function(qr_jrun *run, int function, const qr_jargs *args)
{
    qr_jdict *dict = NULL;
    switch ((function_id)function) {
    case F_RANGE: return make_range(run, args);
    case F_DICT: dict = make_dict(run, args); return dict != NULL ? qr_jv_of_dict(dict) : qr_jv_none();
    case F_NAMESPACE:
        dict = make_dict(run, args);
        return dict != NULL ? (qr_jv){.kind = QR_JV_NAMESPACE, .dict = dict} : qr_jv_none();
    case F_CYCLER: return make_cycler(run, args);
    case F_JOINER: return make_joiner(run, args);
    case F_RAISE: return raise_exception(run, args);
    case F_STRFTIME: return strftime_now(run, args);
    case F_LIPSUM: break;
    }
    return qr_jinja_raise(run, "lipsum is not supported: it is random");
}
