/* Methods of Python's str, dict, list and tuple that the sandbox lets a template call. */
#include <string.h>

#include "base/mem.h"
#include "text/jinja_run.h"

/* Which types have a method, and which of them the immutable sandbox refuses. */
enum { S = 1, D = 2, L = 4, T = 8, O = 16, C = 32, R = 64, F = 128, UNSAFE_D = 256, UNSAFE_L = 512 };

/* clang-format off */
#define METHODS(X)                                                                                                 \
    X(CAPITALIZE, "capitalize", S) X(CASEFOLD, "casefold", S) X(CENTER, "center", S) X(COUNT, "count", S | L | T | R) \
    X(ENCODE, "encode", S) X(ENDSWITH, "endswith", S) X(EXPANDTABS, "expandtabs", S) X(FIND, "find", S)             \
    X(FORMAT, "format", S) X(FORMAT_MAP, "format_map", S) X(INDEX, "index", S | L | T | R)                          \
    X(ISALNUM, "isalnum", S) X(ISALPHA, "isalpha", S) X(ISASCII, "isascii", S) X(ISDECIMAL, "isdecimal", S)         \
    X(ISDIGIT, "isdigit", S) X(ISIDENTIFIER, "isidentifier", S) X(ISLOWER, "islower", S)                            \
    X(ISNUMERIC, "isnumeric", S) X(ISPRINTABLE, "isprintable", S) X(ISSPACE, "isspace", S)                          \
    X(ISTITLE, "istitle", S) X(ISUPPER, "isupper", S) X(JOIN, "join", S) X(LJUST, "ljust", S) X(LOWER, "lower", S)  \
    X(LSTRIP, "lstrip", S) X(PARTITION, "partition", S) X(REMOVEPREFIX, "removeprefix", S)                          \
    X(REMOVESUFFIX, "removesuffix", S) X(REPLACE, "replace", S) X(RFIND, "rfind", S) X(RINDEX, "rindex", S)         \
    X(RJUST, "rjust", S) X(RPARTITION, "rpartition", S) X(RSPLIT, "rsplit", S) X(RSTRIP, "rstrip", S)               \
    X(SPLIT, "split", S) X(SPLITLINES, "splitlines", S) X(STARTSWITH, "startswith", S) X(STRIP, "strip", S)         \
    X(SWAPCASE, "swapcase", S) X(TITLE, "title", S) X(TRANSLATE, "translate", S) X(UPPER, "upper", S)               \
    X(ZFILL, "zfill", S) X(COPY, "copy", D | L) X(FROMKEYS, "fromkeys", D) X(GET, "get", D) X(ITEMS, "items", D)    \
    X(KEYS, "keys", D) X(VALUES, "values", D) X(CLEAR, "clear", UNSAFE_D | UNSAFE_L)                                \
    X(POP, "pop", UNSAFE_D | UNSAFE_L) X(POPITEM, "popitem", UNSAFE_D) X(SETDEFAULT, "setdefault", UNSAFE_D)        \
    X(UPDATE, "update", UNSAFE_D) X(APPEND, "append", UNSAFE_L) X(EXTEND, "extend", UNSAFE_L)                       \
    X(INSERT, "insert", UNSAFE_L) X(REMOVE, "remove", UNSAFE_L) X(REVERSE, "reverse", UNSAFE_L)                     \
    X(SORT, "sort", UNSAFE_L) X(CYCLE, "cycle", O) X(CHANGED, "changed", O) X(NEXT, "next", C) X(RESET, "reset", C) \
    X(IS_INTEGER, "is_integer", F)
/* clang-format on */

typedef enum method_id {
#define X(id, name, types) M_##id,
    METHODS(X)
#undef X
        METHOD_COUNT
} method_id;

static const struct {
    const char *name;
    int types;
} methods[] = {
#define X(id, name, types) {name, types},
    METHODS(X)
#undef X
};

int qr_jinja_method_id(qr_str name)
{
    for (int i = 0; i < METHOD_COUNT; i++) {
        const char *candidate = methods[i].name;
        if (name.len > 2 && candidate[0] == name.data[0] && candidate[1] == name.data[1] &&
            qr_str_equals(name, candidate))
            return i;
    }
    return -1;
}

qr_str qr_jinja_method_name(int id) { return qr_str_of(methods[id].name); }

qr_jaccess qr_jinja_method_access(qr_jv object, int id)
{
    static const int types[QR_JV_KIND_COUNT] = {
        [QR_JV_STRING] = S, [QR_JV_DICT] = D | UNSAFE_D, [QR_JV_LIST] = L | UNSAFE_L, [QR_JV_TUPLE] = T,
        [QR_JV_LOOP] = O,   [QR_JV_CYCLER] = C,          [QR_JV_RANGE] = R,           [QR_JV_FLOAT] = F,
    };
    int match = methods[id].types & types[object.kind];
    if (match == 0)
        return QR_JACCESS_NONE;
    return match & (UNSAFE_D | UNSAFE_L) ? QR_JACCESS_UNSAFE : QR_JACCESS_METHOD;
}

/* ---- Dicts and sequences ---- */

static qr_jv dict_view(qr_jrun *run, qr_jv dict, qr_jview view)
{
    qr_jv *kept = qr_jinja_alloc(run, sizeof(*kept));
    if (kept == NULL)
        return qr_jv_none();
    *kept = dict;
    return (qr_jv){.kind = QR_JV_VIEW, .aux = (uint16_t)view, .view = kept};
}

static qr_jv dict_get(qr_jrun *run, qr_jv self, const qr_jargs *args)
{
    if (args->keyword_count > 0 || args->count < 1 || args->count > 2)
        return qr_jinja_raise(run,
                              args->keyword_count > 0 ? "dict.get() takes no keyword arguments"
                                                      : "get expected 1 or 2 arguments, got %u",
                              args->count);
    if (!qr_jv_hashable(run, args->positional[0]))
        return qr_jv_none();
    qr_jv value = qr_jv_dict_get(run, self, args->positional[0]);
    if (value.kind != QR_JV_MISSING)
        return value;
    return args->count == 2 ? args->positional[1] : qr_jv_none();
}

static qr_jv dict_method(qr_jrun *run, qr_jv self, int id, const qr_jargs *args)
{
    if (id == M_GET)
        return dict_get(run, self, args);
    if (id == M_FROMKEYS)
        return qr_jinja_raise(run, "dict.fromkeys is not supported");
    if (!qr_jinja_bind(run, methods[id].name, NULL, 0, args, NULL))
        return qr_jv_none();
    switch (id) {
    case M_ITEMS: return dict_view(run, self, QR_JVIEW_ITEMS);
    case M_KEYS: return dict_view(run, self, QR_JVIEW_KEYS);
    case M_VALUES: return dict_view(run, self, QR_JVIEW_VALUES);
    default: return self; /* copy: nothing can change it */
    }
}

static qr_jv sequence_method(qr_jrun *run, qr_jv self, int id, const qr_jargs *args)
{
    qr_jv wanted, item;
    qr_jiter iter;
    int64_t count = 0, index = 0;
    if (id == M_COPY)
        return self;
    if (!qr_jinja_bind(run, methods[id].name, "value", 1, args, &wanted) || !qr_jiter_init(run, &iter, self))
        return qr_jv_none();
    for (; qr_jiter_next(run, &iter, &item); index++) {
        if (!qr_jv_equal(run, item, wanted))
            continue;
        if (id == M_INDEX)
            return qr_jv_int(index);
        count++;
    }
    return id == M_COUNT ? qr_jv_int(count)
                         : qr_jinja_raise(run, "the value is not in the %s", qr_jv_type_name(self));
}

static qr_jv loop_method(qr_jrun *run, qr_jv self, int id, const qr_jargs *args)
{
    qr_jloop *loop = self.loop;
    if (id == M_CYCLE) {
        if (args->count == 0)
            return qr_jinja_raise(run, "no items for cycling given");
        return args->positional[(uint64_t)loop->index0 % args->count];
    }
    qr_jlist now = {0};
    for (uint32_t i = 0; i < args->count; i++)
        qr_jlist_push(run, &now, args->positional[i]);
    qr_jv tuple = qr_jlist_value(&now, QR_JV_TUPLE);
    bool changed = loop->changed.kind == QR_JV_MISSING || !qr_jv_equal(run, loop->changed, tuple);
    loop->changed = tuple;
    return qr_jv_bool(changed);
}

static qr_jv cycler_method(qr_jv self, int id)
{
    qr_jcycle *cycle = self.cycle;
    qr_jv current = cycle->items[cycle->position];
    cycle->position = id == M_RESET ? 0 : (cycle->position + 1) % cycle->count;
    return id == M_RESET ? qr_jv_none() : current;
}

/* ---- Strings: pieces ---- */

static qr_jv piece(qr_jv self, qr_str text)
{
    return qr_jv_with_flag(qr_jv_str(text), self.flag & QR_JV_SAFE);
}

static bool want_text(qr_jrun *run, const char *what, qr_jv value, qr_str *out)
{
    if (value.kind != QR_JV_STRING) {
        qr_jinja_raise(run, "%s: must be str, not %s", what, qr_jv_type_name(value));
        return false;
    }
    *out = qr_jv_slice(value);
    return true;
}

static bool in_set(uint32_t c, qr_str set)
{
    for (size_t i = 0; i < set.len;) {
        uint32_t member = 0;
        i += qr_jtext_decode(set.data + i, set.len - i, &member);
        if (member == c)
            return true;
    }
    return false;
}

qr_jv qr_jv_strip(qr_jrun *run, qr_jv self, qr_jv chars, bool left, bool right)
{
    qr_str text = qr_jv_slice(self), set;
    if (chars.kind == QR_JV_MISSING || chars.kind == QR_JV_NONE)
        return piece(self, qr_jtext_trim(text, left, right));
    if (!want_text(run, "strip", chars, &set) || !qr_jinja_charge(run, text.len + set.len))
        return qr_jv_none();
    uint32_t c = 0;
    while (left && text.len > 0) {
        size_t bytes = qr_jtext_decode(text.data, text.len, &c);
        if (!in_set(c, set))
            break;
        text = qr_str_make(text.data + bytes, text.len - bytes);
    }
    while (right && text.len > 0) {
        size_t at = text.len - 1;
        while (at > 0 && text.len - at < 4 && ((unsigned char)text.data[at] & 0xc0) == 0x80)
            at--;
        qr_jtext_decode(text.data + at, text.len - at, &c);
        if (!in_set(c, set))
            break;
        text.len = at;
    }
    return piece(self, text);
}

/* Runs of white space part words. limit < 0: none. */
static void split_spaces(qr_jrun *run, qr_jv self, int64_t limit, qr_jlist *parts)
{
    qr_str rest = qr_jtext_trim(qr_jv_slice(self), true, false);
    while (rest.len > 0 && qr_jinja_charge(run, 1)) {
        size_t end = 0;
        uint32_t c = 0;
        if (limit >= 0 && parts->count == (uint64_t)limit) {
            qr_jlist_push(run, parts, piece(self, rest));
            return;
        }
        while (end < rest.len) {
            size_t bytes = qr_jtext_decode(rest.data + end, rest.len - end, &c);
            if (qr_jtext_is_space(c))
                break;
            end += bytes;
        }
        qr_jlist_push(run, parts, piece(self, qr_str_make(rest.data, end)));
        rest = qr_jtext_trim(qr_str_make(rest.data + end, rest.len - end), true, false);
    }
}

static void split_text(qr_jrun *run, qr_jv self, qr_str separator, int64_t limit, qr_jlist *parts)
{
    qr_str rest = qr_jv_slice(self);
    while ((limit < 0 || parts->count < (uint64_t)limit) && qr_jinja_charge(run, 1)) {
        ptrdiff_t at = qr_str_find(rest, separator, 0);
        if (at < 0)
            break;
        qr_jlist_push(run, parts, piece(self, qr_str_make(rest.data, (size_t)at)));
        rest = qr_str_make(rest.data + at + separator.len, rest.len - (size_t)at - separator.len);
    }
    qr_jlist_push(run, parts, piece(self, rest));
}

static ptrdiff_t find_last(qr_str text, qr_str needle)
{
    for (size_t at = text.len >= needle.len ? text.len - needle.len + 1 : 0; at-- > 0;)
        if (memcmp(text.data + at, needle.data, needle.len) == 0)
            return (ptrdiff_t)at;
    return -1;
}

static void reverse_items(qr_jlist *list)
{
    for (uint32_t i = 0; i < list->count / 2; i++) {
        qr_jv swap = list->items[i];
        list->items[i] = list->items[list->count - 1 - i];
        list->items[list->count - 1 - i] = swap;
    }
}

static void rsplit_text(qr_jrun *run, qr_jv self, qr_str separator, int64_t limit, qr_jlist *parts)
{
    qr_str rest = qr_jv_slice(self);
    while ((limit < 0 || parts->count < (uint64_t)limit) && qr_jinja_charge(run, 1)) {
        ptrdiff_t at = find_last(rest, separator);
        if (at < 0)
            break;
        size_t from = (size_t)at + separator.len;
        qr_jlist_push(run, parts, piece(self, qr_str_make(rest.data + from, rest.len - from)));
        rest.len = (size_t)at;
    }
    qr_jlist_push(run, parts, piece(self, rest));
    reverse_items(parts);
}

static void rsplit_spaces(qr_jrun *run, qr_jv self, int64_t limit, qr_jlist *parts)
{
    qr_jlist all = {0};
    split_spaces(run, self, -1, &all);
    uint32_t whole = limit < 0 || (uint64_t)limit >= all.count ? 0 : all.count - (uint32_t)limit;
    if (whole > 0) { /* the first words stay together, as they stand */
        qr_str last = qr_jv_slice(all.items[whole - 1]);
        qr_jlist_push(run, parts, piece(self, qr_str_make(self.s, (size_t)(last.data + last.len - self.s))));
    }
    for (uint32_t i = whole; i < all.count; i++)
        qr_jlist_push(run, parts, all.items[i]);
}

static qr_jv method_split(qr_jrun *run, qr_jv self, bool from_right, const qr_jargs *args)
{
    qr_jv bound[2];
    qr_str separator;
    int64_t limit = -1;
    qr_jlist parts = {0};
    if (!qr_jinja_bind(run, "split", "sep maxsplit", 0, args, bound) ||
        (bound[1].kind != QR_JV_MISSING && !qr_jinja_want_int(run, bound[1], &limit)))
        return qr_jv_none();
    if (bound[0].kind == QR_JV_MISSING || bound[0].kind == QR_JV_NONE) {
        (from_right ? rsplit_spaces : split_spaces)(run, self, limit, &parts);
    } else {
        if (!want_text(run, "split", bound[0], &separator))
            return qr_jv_none();
        if (separator.len == 0)
            return qr_jinja_raise(run, "empty separator");
        (from_right ? rsplit_text : split_text)(run, self, separator, limit, &parts);
    }
    return qr_jlist_value(&parts, QR_JV_LIST);
}

static size_t line_end_bytes(qr_str text, size_t at, size_t bytes, uint32_t c)
{
    bool ends = (c >= 10 && c <= 13) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
    if (!ends)
        return 0;
    return c == '\r' && at + 1 < text.len && text.data[at + 1] == '\n' ? 2 : bytes;
}

void qr_jv_splitlines(qr_jrun *run, qr_str text, bool keep_ends, qr_jlist *lines)
{
    size_t begin = 0;
    for (size_t i = 0; i < text.len && qr_jinja_charge(run, 1);) {
        uint32_t c = 0;
        size_t bytes = qr_jtext_decode(text.data + i, text.len - i, &c);
        size_t end = line_end_bytes(text, i, bytes, c);
        if (end > 0) {
            size_t stop = keep_ends ? i + end : i;
            qr_jlist_push(run, lines, qr_jv_str(qr_str_make(text.data + begin, stop - begin)));
            begin = i + end;
        }
        i += end > 0 ? end : bytes;
    }
    if (begin < text.len)
        qr_jlist_push(run, lines, qr_jv_str(qr_str_make(text.data + begin, text.len - begin)));
}

static qr_jv method_splitlines(qr_jrun *run, qr_jv self, const qr_jargs *args)
{
    qr_jv keep;
    qr_jlist lines = {0};
    if (!qr_jinja_bind(run, "splitlines", "keepends", 0, args, &keep))
        return qr_jv_none();
    qr_jv_splitlines(run, qr_jv_slice(self), qr_jv_truth(keep), &lines);
    for (uint32_t i = 0; i < lines.count; i++)
        lines.items[i].flag = self.flag;
    return qr_jlist_value(&lines, QR_JV_LIST);
}

static qr_jv method_partition(qr_jrun *run, qr_jv self, bool last, const qr_jargs *args)
{
    qr_jv bound;
    qr_str separator, text = qr_jv_slice(self);
    if (!qr_jinja_bind(run, "partition", "sep", 1, args, &bound) ||
        !want_text(run, "partition", bound, &separator))
        return qr_jv_none();
    if (separator.len == 0)
        return qr_jinja_raise(run, "empty separator");
    ptrdiff_t at = last ? find_last(text, separator) : qr_str_find(text, separator, 0);
    qr_jlist parts = {0};
    if (at < 0) {
        for (int i = 0; i < 3; i++)
            qr_jlist_push(run, &parts, i == (last ? 2 : 0) ? self : piece(self, QR_STR("")));
    } else {
        size_t after = (size_t)at + separator.len;
        qr_jlist_push(run, &parts, piece(self, qr_str_make(text.data, (size_t)at)));
        qr_jlist_push(run, &parts, piece(self, separator));
        qr_jlist_push(run, &parts, piece(self, qr_str_make(text.data + after, text.len - after)));
    }
    return qr_jlist_value(&parts, QR_JV_TUPLE);
}

/* ---- Strings: searching ---- */

/* text[start:end] in code points; *base: bytes cut off in front. false: start lies past the end. */
static bool cut(qr_jrun *run, qr_str *text, qr_jv start, qr_jv end, size_t *base, bool *ok)
{
    int64_t length = 0, from = 0, to = INT64_MAX;
    *base = 0;
    *ok = true;
    bool has_start = start.kind != QR_JV_MISSING && start.kind != QR_JV_NONE;
    bool has_end = end.kind != QR_JV_MISSING && end.kind != QR_JV_NONE;
    if (!has_start && !has_end)
        return true;
    length = (int64_t)qr_jtext_count(*text);
    if ((has_start && !qr_jinja_want_int(run, start, &from)) ||
        (has_end && !qr_jinja_want_int(run, end, &to))) {
        *ok = false;
        return false;
    }
    from = from < 0 ? QR_MAX(from + length, (int64_t)0) : from;
    to = to < 0 ? QR_MAX(to + length, (int64_t)0) : QR_MIN(to, length);
    if (from > to)
        return false;
    *base = qr_jtext_offset(*text, (size_t)from);
    size_t stop = qr_jtext_offset(*text, (size_t)to);
    *text = qr_str_make(text->data + *base, stop - *base);
    return true;
}

static qr_jv method_find(qr_jrun *run, qr_jv self, int id, const qr_jargs *args)
{
    qr_jv bound[3];
    qr_str needle, text = qr_jv_slice(self);
    size_t base = 0;
    bool ok = true;
    if (!qr_jinja_bind(run, methods[id].name, "sub start end", 1, args, bound) ||
        !want_text(run, methods[id].name, bound[0], &needle))
        return qr_jv_none();
    ptrdiff_t at = -1;
    if (cut(run, &text, bound[1], bound[2], &base, &ok))
        at = id == M_RFIND || id == M_RINDEX ? find_last(text, needle) : qr_str_find(text, needle, 0);
    if (!ok)
        return qr_jv_none();
    if (at < 0)
        return id == M_FIND || id == M_RFIND ? qr_jv_int(-1) : qr_jinja_raise(run, "substring not found");
    return qr_jv_int((int64_t)qr_jtext_count(qr_str_make(self.s, base + (size_t)at)));
}

static qr_jv method_count(qr_jrun *run, qr_jv self, const qr_jargs *args)
{
    qr_jv bound[3];
    qr_str needle, text = qr_jv_slice(self);
    size_t base = 0;
    bool ok = true;
    if (!qr_jinja_bind(run, "count", "sub start end", 1, args, bound) ||
        !want_text(run, "count", bound[0], &needle))
        return qr_jv_none();
    if (!cut(run, &text, bound[1], bound[2], &base, &ok))
        return ok ? qr_jv_int(0) : qr_jv_none();
    if (needle.len == 0)
        return qr_jv_int((int64_t)qr_jtext_count(text) + 1);
    int64_t count = 0;
    for (ptrdiff_t at = 0; (at = qr_str_find(text, needle, (size_t)at)) >= 0; at += (ptrdiff_t)needle.len)
        count++;
    return qr_jv_int(count);
}

static qr_jv method_affix(qr_jrun *run, qr_jv self, bool prefix, const qr_jargs *args)
{
    qr_jv bound[3];
    qr_str text = qr_jv_slice(self), affix;
    size_t base = 0;
    bool ok = true;
    const char *what = prefix ? "startswith" : "endswith";
    if (!qr_jinja_bind(run, what, "affix start end", 1, args, bound))
        return qr_jv_none();
    bool inside = cut(run, &text, bound[1], bound[2], &base, &ok);
    if (bound[0].kind != QR_JV_STRING && bound[0].kind != QR_JV_TUPLE)
        return qr_jinja_raise(run, "%s first arg must be str or a tuple of str, not %s", what,
                              qr_jv_type_name(bound[0]));
    uint32_t count = bound[0].kind == QR_JV_TUPLE ? bound[0].len : 1;
    for (uint32_t i = 0; i < count && ok; i++) {
        if (!want_text(run, what, bound[0].kind == QR_JV_TUPLE ? bound[0].items[i] : bound[0], &affix))
            return qr_jv_none();
        if (inside && (prefix ? qr_str_starts(text, affix) : qr_str_ends(text, affix)))
            return qr_jv_bool(true);
    }
    return qr_jv_bool(false);
}

static qr_jv method_remove(qr_jrun *run, qr_jv self, bool prefix, const qr_jargs *args)
{
    qr_jv bound;
    qr_str text = qr_jv_slice(self), affix;
    if (!qr_jinja_bind(run, "removeprefix", "affix", 1, args, &bound) ||
        !want_text(run, "removeprefix", bound, &affix))
        return qr_jv_none();
    if (prefix ? !qr_str_starts(text, affix) : !qr_str_ends(text, affix))
        return self;
    return piece(self, qr_str_make(text.data + (prefix ? affix.len : 0), text.len - affix.len));
}

qr_jv qr_jv_replace(qr_jrun *run, qr_str text, qr_str old, qr_str fresh, int64_t limit)
{
    size_t mark = run->out->len, from = 0;
    if (limit == 0 || (old.len > 0 && qr_str_find(text, old, 0) < 0))
        return qr_jv_str(text);
    for (int64_t done = 0; limit < 0 || done < limit; done++) {
        if (!qr_jinja_charge(run, 1))
            break;
        if (old.len == 0) { /* before every character, and at the end */
            qr_jinja_write(run, fresh);
            if (from >= text.len)
                break;
            size_t bytes = qr_jtext_offset(qr_str_make(text.data + from, text.len - from), 1);
            qr_jinja_write(run, qr_str_make(text.data + from, bytes));
            from += bytes;
            continue;
        }
        ptrdiff_t at = qr_str_find(text, old, from);
        if (at < 0)
            break;
        qr_jinja_write(run, qr_str_make(text.data + from, (size_t)at - from));
        qr_jinja_write(run, fresh);
        from = (size_t)at + old.len;
    }
    qr_jinja_write(run, qr_str_make(text.data + from, text.len - from));
    return qr_jinja_take(run, mark);
}

static qr_jv method_replace(qr_jrun *run, qr_jv self, const qr_jargs *args)
{
    qr_jv bound[3];
    qr_str old, fresh;
    int64_t limit = -1;
    if (!qr_jinja_bind(run, "replace", "old new count", 2, args, bound) ||
        !want_text(run, "replace", bound[0], &old))
        return qr_jv_none();
    if (self.flag & QR_JV_SAFE) /* Markup escapes the new text, whatever it is */
        bound[1] = qr_jv_escape(run, bound[1]);
    if (!want_text(run, "replace", bound[1], &fresh) ||
        (bound[2].kind != QR_JV_MISSING && !qr_jinja_want_int(run, bound[2], &limit)))
        return qr_jv_none();
    return qr_jv_with_flag(qr_jv_replace(run, qr_jv_slice(self), old, fresh, limit), self.flag);
}

/* ---- Strings: making ---- */

static qr_jv method_join(qr_jrun *run, qr_jv self, const qr_jargs *args)
{
    qr_jv source, item;
    qr_jiter iter;
    if (!qr_jinja_bind(run, "join", "iterable", 1, args, &source) || !qr_jiter_init(run, &iter, source))
        return qr_jv_none();
    size_t mark = run->out->len;
    for (uint32_t i = 0; qr_jiter_next(run, &iter, &item); i++) {
        if (item.kind != QR_JV_STRING && !(self.flag & QR_JV_SAFE))
            return qr_jinja_raise(run, "sequence item %u: expected str instance, %s found", i,
                                  qr_jv_type_name(item));
        if (i > 0)
            qr_jinja_write(run, qr_jv_slice(self));
        if (self.flag & QR_JV_SAFE)
            item = qr_jv_escape(run, item);
        qr_jinja_write(run, qr_jv_slice(item));
    }
    return qr_jv_with_flag(qr_jinja_take(run, mark), self.flag);
}

static void write_fill(qr_jrun *run, qr_str fill, int64_t count)
{
    for (int64_t i = 0; i < count && qr_jinja_charge(run, 1); i++)
        qr_jinja_write(run, fill);
}

qr_jv qr_jv_center(qr_jrun *run, qr_jv self, int64_t width, qr_str fill, int where)
{
    int64_t length = (int64_t)qr_jtext_count(qr_jv_slice(self)), margin = width - length;
    if (margin <= 0)
        return self;
    int64_t left = where < 0 ? 0 : where > 0 ? margin : margin / 2 + (margin & width & 1);
    size_t mark = run->out->len;
    write_fill(run, fill, left);
    qr_jinja_write(run, qr_jv_slice(self));
    write_fill(run, fill, margin - left);
    return qr_jv_with_flag(qr_jinja_take(run, mark), self.flag);
}

static qr_jv method_justify(qr_jrun *run, qr_jv self, int id, const qr_jargs *args)
{
    qr_jv bound[2];
    int64_t width = 0;
    qr_str fill = QR_STR(" ");
    if (!qr_jinja_bind(run, methods[id].name, "width fillchar", 1, args, bound) ||
        !qr_jinja_want_int(run, bound[0], &width) ||
        (bound[1].kind != QR_JV_MISSING && !want_text(run, methods[id].name, bound[1], &fill)))
        return qr_jv_none();
    if (qr_jtext_count(fill) != 1)
        return qr_jinja_raise(run, "The fill character must be exactly one character long");
    return qr_jv_center(run, self, width, fill, id == M_CENTER ? 0 : id == M_LJUST ? -1 : 1);
}

static qr_jv method_zfill(qr_jrun *run, qr_jv self, const qr_jargs *args)
{
    qr_jv bound;
    int64_t width = 0;
    if (!qr_jinja_bind(run, "zfill", "width", 1, args, &bound) || !qr_jinja_want_int(run, bound, &width))
        return qr_jv_none();
    int64_t missing = width - (int64_t)qr_jtext_count(qr_jv_slice(self));
    if (missing <= 0)
        return self;
    bool sign = self.len > 0 && (self.s[0] == '-' || self.s[0] == '+');
    size_t mark = run->out->len;
    qr_jinja_write(run, qr_str_make(self.s, sign));
    write_fill(run, QR_STR("0"), missing);
    qr_jinja_write(run, qr_str_make(self.s + sign, self.len - sign));
    return qr_jinja_take(run, mark);
}

static qr_jv method_expandtabs(qr_jrun *run, qr_jv self, const qr_jargs *args)
{
    qr_jv bound;
    int64_t size = 8, column = 0;
    if (!qr_jinja_bind(run, "expandtabs", "tabsize", 0, args, &bound) ||
        (bound.kind != QR_JV_MISSING && !qr_jinja_want_int(run, bound, &size)))
        return qr_jv_none();
    size_t mark = run->out->len;
    for (uint32_t i = 0; i < self.len && qr_jinja_charge(run, 1);) {
        size_t bytes = qr_jtext_offset(qr_str_make(self.s + i, self.len - i), 1);
        char c = self.s[i];
        if (c == '\t') {
            int64_t spaces = size > 0 ? size - column % size : 0;
            write_fill(run, QR_STR(" "), spaces);
            column += spaces;
        } else {
            qr_jinja_write(run, qr_str_make(self.s + i, bytes));
            column = c == '\n' || c == '\r' ? 0 : column + 1;
        }
        i += (uint32_t)bytes;
    }
    return qr_jv_with_flag(qr_jinja_take(run, mark), self.flag);
}

static qr_jv method_format(qr_jrun *run, qr_jv self, int id, const qr_jargs *args)
{
    if (id == M_FORMAT)
        return qr_jinja_format(run, self, args);
    qr_jv map, key;
    qr_jiter iter;
    if (!qr_jinja_bind(run, "format_map", "mapping", 1, args, &map))
        return qr_jv_none();
    if (map.kind != QR_JV_DICT)
        return qr_jinja_raise(run, "format_map: must be a mapping, not %s", qr_jv_type_name(map));
    int64_t count = qr_jv_length(map);
    qr_str *names = qr_jinja_alloc(run, ((size_t)count + 1) * sizeof(qr_str));
    qr_jv *values = qr_jinja_alloc(run, ((size_t)count + 1) * sizeof(qr_jv));
    qr_jargs spread = {.names = names, .keywords = values};
    if (names == NULL || values == NULL || !qr_jiter_init(run, &iter, map))
        return qr_jv_none();
    while (qr_jiter_next(run, &iter, &key)) {
        if (key.kind != QR_JV_STRING)
            continue;
        names[spread.keyword_count] = qr_jv_slice(key);
        values[spread.keyword_count++] = qr_jv_dict_get(run, map, key);
    }
    return qr_jinja_format(run, self, &spread);
}

/* ---- Dispatch ---- */

static qr_jv case_method(qr_jrun *run, qr_jv self, qr_jcase mode, const qr_jargs *args)
{
    if (!qr_jinja_bind(run, "method", NULL, 0, args, NULL))
        return qr_jv_none();
    return qr_jv_with_flag(qr_jv_case(run, qr_jv_slice(self), mode), self.flag);
}

static qr_jv is_method(qr_jrun *run, qr_jv self, qr_jclass class, const qr_jargs *args)
{
    if (!qr_jinja_bind(run, "method", NULL, 0, args, NULL))
        return qr_jv_none();
    return qr_jv_bool(qr_jtext_is(qr_jv_slice(self), class));
}

static qr_jv strip_method(qr_jrun *run, qr_jv self, int id, const qr_jargs *args)
{
    qr_jv chars;
    if (!qr_jinja_bind(run, methods[id].name, "chars", 0, args, &chars))
        return qr_jv_none();
    return qr_jv_strip(run, self, chars, id != M_RSTRIP, id != M_LSTRIP);
}

qr_jv qr_jinja_string_method(qr_jrun *run, qr_jv self, int id, const qr_jargs *args)
{
    switch (id) {
    case M_STRIP:
    case M_LSTRIP:
    case M_RSTRIP: return strip_method(run, self, id, args);
    case M_SPLIT:
    case M_RSPLIT: return method_split(run, self, id == M_RSPLIT, args);
    case M_STARTSWITH:
    case M_ENDSWITH: return method_affix(run, self, id == M_STARTSWITH, args);
    case M_REPLACE: return method_replace(run, self, args);
    case M_FIND:
    case M_RFIND:
    case M_INDEX:
    case M_RINDEX: return method_find(run, self, id, args);
    case M_COUNT: return method_count(run, self, args);
    case M_JOIN: return method_join(run, self, args);
    case M_FORMAT:
    case M_FORMAT_MAP: return method_format(run, self, id, args);
    case M_SPLITLINES: return method_splitlines(run, self, args);
    case M_PARTITION:
    case M_RPARTITION: return method_partition(run, self, id == M_RPARTITION, args);
    case M_REMOVEPREFIX:
    case M_REMOVESUFFIX: return method_remove(run, self, id == M_REMOVEPREFIX, args);
    case M_CENTER:
    case M_LJUST:
    case M_RJUST: return method_justify(run, self, id, args);
    case M_ZFILL: return method_zfill(run, self, args);
    case M_EXPANDTABS: return method_expandtabs(run, self, args);
    case M_UPPER: return case_method(run, self, QR_JCASE_UPPER, args);
    case M_LOWER: return case_method(run, self, QR_JCASE_LOWER, args);
    case M_TITLE: return case_method(run, self, QR_JCASE_TITLE, args);
    case M_CAPITALIZE: return case_method(run, self, QR_JCASE_CAPITALIZE, args);
    case M_SWAPCASE: return case_method(run, self, QR_JCASE_SWAP, args);
    case M_CASEFOLD: return case_method(run, self, QR_JCASE_FOLD, args);
    case M_ISALNUM: return is_method(run, self, QR_JCLASS_ALNUM, args);
    case M_ISALPHA: return is_method(run, self, QR_JCLASS_ALPHA, args);
    case M_ISASCII: return is_method(run, self, QR_JCLASS_ASCII, args);
    case M_ISDECIMAL: return is_method(run, self, QR_JCLASS_DECIMAL, args);
    case M_ISDIGIT: return is_method(run, self, QR_JCLASS_DIGIT, args);
    case M_ISIDENTIFIER: return is_method(run, self, QR_JCLASS_IDENTIFIER, args);
    case M_ISLOWER: return is_method(run, self, QR_JCLASS_LOWER, args);
    case M_ISNUMERIC: return is_method(run, self, QR_JCLASS_NUMERIC, args);
    case M_ISPRINTABLE: return is_method(run, self, QR_JCLASS_PRINTABLE, args);
    case M_ISSPACE: return is_method(run, self, QR_JCLASS_SPACE, args);
    case M_ISTITLE: return is_method(run, self, QR_JCLASS_TITLE, args);
    case M_ISUPPER: return is_method(run, self, QR_JCLASS_UPPER, args);
    default: return qr_jinja_raise(run, "str.%s is not supported", methods[id].name);
    }
}

static bool takes_keywords(int id)
{
    return id == M_FORMAT || id == M_SPLIT || id == M_RSPLIT || id == M_SPLITLINES || id == M_EXPANDTABS;
}

qr_jv qr_jinja_call_method(qr_jrun *run, qr_jv self, int id, const qr_jargs *args)
{
    if (args->keyword_count > 0 && !takes_keywords(id))
        return qr_jinja_raise(run, "%s.%s() takes no keyword arguments", qr_jv_type_name(self),
                              methods[id].name);
    switch (self.kind) {
    case QR_JV_STRING: return qr_jinja_string_method(run, self, id, args);
    case QR_JV_DICT: return dict_method(run, self, id, args);
    case QR_JV_LOOP: return loop_method(run, self, id, args);
    case QR_JV_CYCLER: return cycler_method(self, id);
    case QR_JV_FLOAT: return qr_jv_bool(self.d == (double)(int64_t)self.d);
    default: return sequence_method(run, self, id, args);
    }
}
