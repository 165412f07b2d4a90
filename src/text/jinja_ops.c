/* Operators, attributes, subscripts and slices, with Python's meaning. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "text/jinja_run.h"

/* ---- Undefined ---- */

qr_jv qr_jinja_undefined_use(qr_jrun *run, qr_jv u)
{
    int len = (int)QR_MIN(u.len, 120u);
    switch ((qr_jv_cause)u.aux) {
    case QR_JV_NO_NAME: return qr_jinja_raise(run, "'%.*s' is undefined", len, u.s);
    case QR_JV_NO_ATTRIBUTE:
        return qr_jinja_raise(run, "'%s' has no attribute '%.*s'", qr_jv_kind_repr((qr_jv_kind)u.flag), len,
                              u.s);
    case QR_JV_NO_ELEMENT:
        return qr_jinja_raise(run, "%s has no element %.*s", qr_jv_kind_repr((qr_jv_kind)u.flag), len, u.s);
    case QR_JV_UNSAFE:
        return qr_jinja_raise(run, "access to attribute '%.*s' of '%s' object is unsafe.", len, u.s,
                              qr_jv_type_name((qr_jv){.kind = u.flag}));
    case QR_JV_HINT: break;
    }
    return qr_jinja_raise(run, "%.*s", len, u.s);
}

static qr_jv undefined_of(qr_jv_cause cause, qr_jv object, qr_str name)
{
    return (qr_jv){.kind = QR_JV_UNDEFINED,
                   .aux = (uint16_t)cause,
                   .flag = object.kind,
                   .len = (uint32_t)name.len,
                   .s = name.data};
}

/* ---- Arithmetic ---- */

static const char *const op_text[] = {"+",  "-",  "*", "/",  "//", "%", "** or pow()",
                                      "==", "!=", "<", "<=", ">",  ">="};

static qr_jv unsupported(qr_jrun *run, qr_jop op, qr_jv left, qr_jv right)
{
    return qr_jinja_raise(run, "unsupported operand type(s) for %s: '%s' and '%s'", op_text[op],
                          qr_jv_type_name(left), qr_jv_type_name(right));
}

static qr_jv overflow(qr_jrun *run)
{
    return qr_jinja_raise(run, "integers beyond 64 bits are not supported");
}

static double float_floor_mod(double x, double y, double *floor_quotient)
{
    double mod = fmod(x, y), quotient = (x - mod) / y;
    if (mod != 0 && (y < 0) != (mod < 0)) {
        mod += y;
        quotient -= 1;
    } else if (mod == 0) {
        mod = copysign(0.0, y);
    }
    double rounded = quotient != 0 ? floor(quotient) : copysign(0.0, x / y);
    if (quotient != 0 && quotient - rounded > 0.5)
        rounded += 1;
    *floor_quotient = rounded;
    return mod;
}

static qr_jv float_arith(qr_jrun *run, qr_jop op, double x, double y)
{
    double quotient = 0, mod = 0;
    switch (op) {
    case QR_JOP_ADD: return qr_jv_float(x + y);
    case QR_JOP_SUB: return qr_jv_float(x - y);
    case QR_JOP_MUL: return qr_jv_float(x * y);
    case QR_JOP_POW:
        if (x == 0 && y < 0)
            return qr_jinja_raise(run, "0.0 cannot be raised to a negative power");
        if (x < 0 && y != floor(y) && isfinite(y))
            return qr_jinja_raise(run, "complex numbers are not supported");
        quotient = pow(x, y);
        if (isinf(quotient) && isfinite(x) && isfinite(y))
            return qr_jinja_raise(run, "(34, 'Numerical result out of range')");
        return qr_jv_float(quotient);
    default:
        if (y == 0)
            return qr_jinja_raise(run, op == QR_JOP_DIV   ? "float division by zero"
                                       : op == QR_JOP_MOD ? "float modulo"
                                                          : "float floor division by zero");
        if (op == QR_JOP_DIV)
            return qr_jv_float(x / y);
        mod = float_floor_mod(x, y, &quotient);
        return qr_jv_float(op == QR_JOP_MOD ? mod : quotient);
    }
}

static qr_jv int_pow(qr_jrun *run, int64_t base, int64_t exponent)
{
    if (exponent < 0)
        return float_arith(run, QR_JOP_POW, (double)base, (double)exponent);
    int64_t result = 1;
    while (exponent > 0) {
        if ((exponent & 1) && __builtin_mul_overflow(result, base, &result))
            return overflow(run);
        exponent >>= 1;
        if (exponent > 0 && __builtin_mul_overflow(base, base, &base))
            return overflow(run);
    }
    return qr_jv_int(result);
}

static qr_jv int_divide(qr_jrun *run, qr_jop op, int64_t x, int64_t y)
{
    if (y == 0)
        return qr_jinja_raise(run,
                              op == QR_JOP_DIV ? "division by zero" : "integer division or modulo by zero");
    if (op == QR_JOP_DIV)
        return qr_jv_float((double)((long double)x / (long double)y));
    if (y == -1)
        return op == QR_JOP_MOD ? qr_jv_int(0) : x == INT64_MIN ? overflow(run) : qr_jv_int(-x);
    int64_t quotient = x / y, mod = x % y;
    if (mod != 0 && (mod < 0) != (y < 0)) {
        mod += y;
        quotient--;
    }
    return qr_jv_int(op == QR_JOP_MOD ? mod : quotient);
}

static qr_jv int_arith(qr_jrun *run, qr_jop op, int64_t x, int64_t y)
{
    int64_t result = 0;
    bool bad = false;
    switch (op) {
    case QR_JOP_ADD: bad = __builtin_add_overflow(x, y, &result); break;
    case QR_JOP_SUB: bad = __builtin_sub_overflow(x, y, &result); break;
    case QR_JOP_MUL: bad = __builtin_mul_overflow(x, y, &result); break;
    case QR_JOP_POW: return int_pow(run, x, y);
    default: return int_divide(run, op, x, y);
    }
    return bad ? overflow(run) : qr_jv_int(result);
}

/* Appends in place when left is the last string made: a loop that builds a string stays linear. */
static qr_jv concat(qr_jrun *run, qr_jv left, qr_jv right)
{
    if (right.len == 0)
        return left;
    bool last = left.s + left.len == run->text && left.len > 0;
    if (last && (size_t)(run->text_end - run->text) >= right.len) {
        memcpy(run->text, right.s, right.len);
        run->text += right.len;
        left.len += right.len;
        return left;
    }
    char *text = qr_jinja_text(run, (size_t)left.len + right.len);
    if (text == NULL)
        return qr_jv_none();
    if (left.len > 0)
        memcpy(text, left.s, left.len);
    memcpy(text + left.len, right.s, right.len);
    return qr_jv_str(qr_str_make(text, (size_t)left.len + right.len));
}

static qr_jv add_strings(qr_jrun *run, qr_jv left, qr_jv right)
{
    uint8_t safe = (left.flag | right.flag) & QR_JV_SAFE;
    if (safe) {
        left = qr_jv_escape(run, left);
        right = qr_jv_escape(run, right);
    }
    return qr_jv_with_flag(concat(run, left, right), safe);
}

static qr_jv join_lists(qr_jrun *run, qr_jv left, qr_jv right)
{
    uint32_t count = left.len + right.len;
    if (!qr_jinja_charge(run, count))
        return qr_jv_none();
    qr_jv *items = qr_jinja_alloc(run, ((size_t)count + 1) * sizeof(qr_jv));
    if (items == NULL)
        return qr_jv_none();
    for (uint32_t i = 0; i < left.len; i++)
        items[i] = qr_jv_list_at(left, i);
    for (uint32_t i = 0; i < right.len; i++)
        items[left.len + i] = qr_jv_list_at(right, i);
    return (qr_jv){.kind = left.kind, .len = count, .items = items};
}

static qr_jv add_other(qr_jrun *run, qr_jv left, qr_jv right)
{
    if (qr_jv_is_sequence(left) && left.kind == right.kind)
        return join_lists(run, left, right);
    if (left.kind == QR_JV_STRING || qr_jv_is_sequence(left))
        return qr_jinja_raise(run, "can only concatenate %s (not \"%s\") to %s", qr_jv_type_name(left),
                              qr_jv_type_name(right), qr_jv_type_name(left));
    return unsupported(run, QR_JOP_ADD, left, right);
}

static qr_jv repeat_text(qr_jrun *run, qr_jv text, int64_t times)
{
    size_t bytes = 0;
    if (times <= 0 || text.len == 0)
        return qr_jv_with_flag(QR_JV_TEXT(""), text.flag);
    if (!qr_size_mul(text.len, (size_t)times, &bytes))
        return qr_jinja_limit(run, "a string repeated %lld times", (long long)times);
    char *out = qr_jinja_text(run, bytes);
    for (size_t at = 0; out != NULL && at < bytes; at += text.len)
        memcpy(out + at, text.s, text.len);
    return qr_jv_with_flag(qr_jv_str(qr_str_make(out, out != NULL ? bytes : 0)), text.flag);
}

static qr_jv repeat_list(qr_jrun *run, qr_jv list, int64_t times)
{
    size_t count = 0, bytes = 0;
    if (times <= 0)
        times = 0;
    if (!qr_size_mul(list.len, (size_t)times, &count) || !qr_size_mul(count + 1, sizeof(qr_jv), &bytes) ||
        count > UINT32_MAX / 32)
        return qr_jinja_limit(run, "a list repeated %lld times", (long long)times);
    qr_jv *items = qr_jinja_alloc(run, bytes);
    if (items == NULL || !qr_jinja_charge(run, count))
        return qr_jv_none();
    for (size_t i = 0; i < count; i++)
        items[i] = qr_jv_list_at(list, (uint32_t)(i % list.len));
    return (qr_jv){.kind = list.kind, .len = (uint32_t)count, .items = items};
}

static qr_jv multiply_other(qr_jrun *run, qr_jv left, qr_jv right)
{
    qr_jv sequence = left.kind >= QR_JV_STRING ? left : right,
          times = left.kind >= QR_JV_STRING ? right : left;
    bool repeats = sequence.kind == QR_JV_STRING || qr_jv_is_sequence(sequence);
    if (repeats && !qr_jv_is_integral(times))
        return qr_jinja_raise(run, "can't multiply sequence by non-int of type '%s'", qr_jv_type_name(times));
    if (!repeats)
        return unsupported(run, QR_JOP_MUL, left, right);
    return sequence.kind == QR_JV_STRING ? repeat_text(run, sequence, times.i)
                                         : repeat_list(run, sequence, times.i);
}

qr_jv qr_jinja_binary(qr_jrun *run, qr_jop op, qr_jv left, qr_jv right)
{
    if (op == QR_JOP_ADD && left.kind == QR_JV_STRING && right.kind == QR_JV_STRING)
        return add_strings(run, left, right);
    if (qr_jv_is_number(left) && qr_jv_is_number(right)) {
        if (left.kind == QR_JV_FLOAT || right.kind == QR_JV_FLOAT)
            return float_arith(run, op, qr_jv_to_double(left), qr_jv_to_double(right));
        return int_arith(run, op, left.i, right.i);
    }
    if (op == QR_JOP_MOD && left.kind == QR_JV_STRING)
        return qr_jinja_percent(run, left, right, NULL);
    if (left.kind == QR_JV_UNDEFINED || right.kind == QR_JV_UNDEFINED)
        return qr_jinja_undefined_use(run, left.kind == QR_JV_UNDEFINED ? left : right);
    if (op == QR_JOP_ADD)
        return add_other(run, left, right);
    if (op == QR_JOP_MUL)
        return multiply_other(run, left, right);
    return unsupported(run, op, left, right);
}

bool qr_jv_compare_op(qr_jrun *run, qr_jop op, qr_jv left, qr_jv right)
{
    int order = 0;
    switch (op) {
    case QR_JOP_EQ: return qr_jv_equal(run, left, right);
    case QR_JOP_NE: return !qr_jv_equal(run, left, right);
    case QR_JOP_IN: return qr_jv_contains(run, right, left);
    case QR_JOP_NOT_IN: return !qr_jv_contains(run, right, left);
    default: break;
    }
    if (!qr_jv_compare(run, left, right, op_text[op], &order))
        return false;
    bool unordered =
        (left.kind == QR_JV_FLOAT && isnan(left.d)) || (right.kind == QR_JV_FLOAT && isnan(right.d));
    if (unordered)
        return false;
    return op == QR_JOP_LT   ? order < 0
           : op == QR_JOP_LE ? order <= 0
           : op == QR_JOP_GT ? order > 0
                             : order >= 0;
}

/* ---- Attributes ---- */

static qr_jv bound_method(qr_jrun *run, qr_jv self, int id)
{
    qr_jmethod *method = qr_jinja_alloc(run, sizeof(*method));
    if (method == NULL)
        return qr_jv_none();
    *method = (qr_jmethod){self, id};
    return (qr_jv){.kind = QR_JV_METHOD, .method = method};
}

static bool macro_attribute(qr_jrun *run, qr_jv object, qr_str name, qr_jv *value)
{
    const qr_jmacro_def *def = object.macro->def;
    if (qr_str_equals(name, "name")) {
        *value = def->name != NULL ? qr_jv_str(*def->name) : qr_jv_none();
    } else if (qr_str_equals(name, "arguments")) {
        qr_jlist list = {0};
        for (uint32_t i = 0; i < def->param_count; i++)
            qr_jlist_push(run, &list, qr_jv_str(*def->params[i]->name));
        *value = qr_jlist_value(&list, QR_JV_TUPLE);
    } else if (qr_str_equals(name, "catch_kwargs") || qr_str_equals(name, "catch_varargs")) {
        *value =
            qr_jv_bool((qr_str_equals(name, "catch_kwargs") ? def->kwargs_slot : def->varargs_slot) >= 0);
    } else if (qr_str_equals(name, "caller")) {
        *value = qr_jv_bool(def->caller_slot >= 0 || def->explicit_caller);
    } else {
        return false;
    }
    return true;
}

static bool number_attribute(qr_jv object, qr_str name, qr_jv *value)
{
    bool is_float = object.kind == QR_JV_FLOAT;
    if (qr_str_equals(name, "real") || (!is_float && qr_str_equals(name, "numerator")))
        *value = is_float ? object : qr_jv_int(object.i);
    else if (qr_str_equals(name, "imag"))
        *value = is_float ? qr_jv_float(0) : qr_jv_int(0);
    else if (!is_float && qr_str_equals(name, "denominator"))
        *value = qr_jv_int(1);
    else
        return false;
    return true;
}

static bool range_attribute(qr_jv object, qr_str name, qr_jv *value)
{
    const qr_jrange *range = object.range;
    if (qr_str_equals(name, "start"))
        *value = qr_jv_int(range->start);
    else if (qr_str_equals(name, "stop"))
        *value = qr_jv_int(range->stop);
    else if (qr_str_equals(name, "step"))
        *value = qr_jv_int(range->step);
    else
        return false;
    return true;
}

/* What getattr(object, name) finds beside methods. */
static bool plain_attribute(qr_jrun *run, qr_jv object, qr_str name, qr_jv *value)
{
    switch (object.kind) {
    case QR_JV_NAMESPACE:
        *value = qr_jdict_get(run, object.dict, qr_jv_str(name));
        return value->kind != QR_JV_MISSING;
    case QR_JV_LOOP: return qr_jloop_attribute(run, object.loop, name, value);
    case QR_JV_MACRO: return macro_attribute(run, object, name, value);
    case QR_JV_BOOL:
    case QR_JV_INT:
    case QR_JV_FLOAT: return number_attribute(object, name, value);
    case QR_JV_RANGE: return range_attribute(object, name, value);
    case QR_JV_TUPLE: /* what groupby makes */
        if (!(object.flag & QR_JV_GROUP))
            return false;
        *value = object.items[qr_str_equals(name, "list")];
        return qr_str_equals(name, "list") || qr_str_equals(name, "grouper");
    case QR_JV_CYCLER:
        *value = object.cycle->items[object.cycle->position];
        return qr_str_equals(name, "current");
    default: return false;
    }
}

static bool is_dunder(qr_str name)
{
    return name.len > 4 && qr_str_starts(name, QR_STR("__")) && qr_str_ends(name, QR_STR("__"));
}

/* getattr as the sandbox allows it. */
static bool find_attribute(qr_jrun *run, qr_jv object, qr_str name, int method, qr_jv *value)
{
    qr_jaccess access = method >= 0 ? qr_jinja_method_access(object, method) : QR_JACCESS_NONE;
    bool found = access == QR_JACCESS_NONE && plain_attribute(run, object, name, value);
    if (access == QR_JACCESS_METHOD)
        *value = bound_method(run, object, method);
    else if (access == QR_JACCESS_UNSAFE || (found && name.len > 0 && name.data[0] == '_'))
        *value = undefined_of(QR_JV_UNSAFE, object, name);
    return found || access != QR_JACCESS_NONE;
}

qr_jv qr_jinja_attribute_only(qr_jrun *run, qr_jv object, qr_str name)
{
    qr_jv value = {0};
    if (object.kind == QR_JV_UNDEFINED)
        return qr_jinja_undefined_use(run, object);
    bool found = find_attribute(run, object, name, qr_jinja_method_id(name), &value);
    return found ? value : (qr_jv){0};
}

qr_jv qr_jinja_getattr(qr_jrun *run, qr_jv object, qr_str name, int method)
{
    qr_jv value = {0};
    if (object.kind == QR_JV_UNDEFINED)
        return is_dunder(name) ? undefined_of(QR_JV_UNSAFE, object, name)
                               : qr_jinja_undefined_use(run, object);
    if (find_attribute(run, object, name, method, &value))
        return value;
    if (object.kind == QR_JV_DICT) {
        value = qr_jv_dict_get(run, object, qr_jv_str(name));
        if (value.kind != QR_JV_MISSING)
            return value;
    }
    return undefined_of(is_dunder(name) ? QR_JV_UNSAFE : QR_JV_NO_ATTRIBUTE, object, name);
}

/* ---- Subscripts ---- */

static bool item_at(qr_jv object, int64_t index, qr_jv *value)
{
    if (object.kind == QR_JV_STRING) {
        qr_str text = qr_jv_slice(object);
        int64_t count = index < 0 ? (int64_t)qr_jtext_count(text) : 0;
        index += index < 0 ? count : 0;
        size_t at = index >= 0 ? qr_jtext_offset(text, (size_t)index) : text.len;
        if (at >= text.len)
            return false;
        size_t bytes = qr_jtext_offset(qr_str_make(text.data + at, text.len - at), 1);
        *value = qr_jv_with_flag(qr_jv_str(qr_str_make(text.data + at, bytes)), object.flag);
        return true;
    }
    int64_t count = qr_jv_length(object);
    index += index < 0 ? count : 0;
    if (index < 0 || index >= count)
        return false;
    *value = object.kind == QR_JV_RANGE ? qr_jv_int(object.range->start + object.range->step * index)
                                        : qr_jv_list_at(object, (uint32_t)index);
    return true;
}

static bool find_item(qr_jrun *run, qr_jv object, qr_jv key, qr_jv *value)
{
    switch (object.kind) {
    case QR_JV_DICT:
        if (key.kind == QR_JV_LIST || key.kind == QR_JV_DICT)
            return false;
        *value = qr_jv_dict_get(run, object, key);
        return value->kind != QR_JV_MISSING;
    case QR_JV_STRING:
    case QR_JV_LIST:
    case QR_JV_TUPLE:
    case QR_JV_RANGE: return qr_jv_is_integral(key) && item_at(object, key.i, value);
    default: return false;
    }
}

qr_jv qr_jinja_getitem(qr_jrun *run, qr_jv object, qr_jv key)
{
    qr_jv value = {0};
    if (object.kind == QR_JV_UNDEFINED)
        return qr_jinja_undefined_use(run, object);
    if (find_item(run, object, key, &value))
        return value;
    if (key.kind != QR_JV_STRING) {
        qr_jv repr = qr_jv_to_repr(run, key);
        return undefined_of(QR_JV_NO_ELEMENT, object, qr_jv_slice(repr));
    }
    qr_str name = qr_jv_slice(key);
    if (find_attribute(run, object, name, qr_jinja_method_id(name), &value))
        return value;
    return undefined_of(is_dunder(name) ? QR_JV_UNSAFE : QR_JV_NO_ATTRIBUTE, object, name);
}

/* ---- Slices ---- */

static bool slice_bound(qr_jrun *run, qr_jv bound, int64_t fallback, int64_t length, int64_t low,
                        int64_t high, int64_t *out)
{
    *out = fallback;
    if (bound.kind == QR_JV_NONE)
        return true;
    if (!qr_jv_is_integral(bound)) {
        qr_jinja_raise(run, "slice indices must be integers or None or have an __index__ method");
        return false;
    }
    int64_t at = bound.i < 0 ? bound.i + length : bound.i;
    *out = at < low ? low : at > high ? high : at;
    return true;
}

static qr_jv slice_text(qr_jrun *run, qr_jv object, int64_t start, int64_t count, int64_t step)
{
    qr_str text = qr_jv_slice(object);
    if (count == 0)
        return qr_jv_with_flag(QR_JV_TEXT(""), object.flag);
    if (step == 1) {
        size_t from = qr_jtext_offset(text, (size_t)start);
        size_t bytes = qr_jtext_offset(qr_str_make(text.data + from, text.len - from), (size_t)count);
        return qr_jv_with_flag(qr_jv_str(qr_str_make(text.data + from, bytes)), object.flag);
    }
    size_t total = qr_jtext_count(text), at = 0;
    uint32_t *offsets = qr_jinja_alloc(run, (total + 1) * sizeof(uint32_t));
    if (offsets == NULL || !qr_jinja_charge(run, total))
        return qr_jv_none();
    for (size_t i = 0; i < total; i++) {
        offsets[i] = (uint32_t)at;
        at += qr_jtext_offset(qr_str_make(text.data + at, text.len - at), 1);
    }
    offsets[total] = (uint32_t)at;
    size_t mark = run->out->len;
    for (int64_t i = 0; i < count; i++) {
        int64_t index = start + i * step;
        qr_jinja_write(run, qr_str_make(text.data + offsets[index], offsets[index + 1] - offsets[index]));
    }
    return qr_jv_with_flag(qr_jinja_take(run, mark), object.flag);
}

static qr_jv slice_list(qr_jrun *run, qr_jv object, int64_t start, int64_t count, int64_t step)
{
    if (step == 1 && !(object.flag & QR_JV_JSON))
        return (qr_jv){
            .kind = object.kind, .len = (uint32_t)count, .items = object.items + (count > 0 ? start : 0)};
    qr_jv *items = qr_jinja_alloc(run, ((size_t)count + 1) * sizeof(qr_jv));
    if (items == NULL || !qr_jinja_charge(run, (size_t)count))
        return qr_jv_none();
    for (int64_t i = 0; i < count; i++)
        items[i] = qr_jv_list_at(object, (uint32_t)(start + i * step));
    return (qr_jv){.kind = object.kind, .len = (uint32_t)count, .items = items};
}

static qr_jv slice_range(qr_jrun *run, qr_jv object, int64_t start, int64_t stop, int64_t count, int64_t step)
{
    qr_jrange *range = qr_jinja_alloc(run, sizeof(*range));
    if (range == NULL)
        return qr_jv_none();
    const qr_jrange *from = object.range;
    *range = (qr_jrange){from->start + from->step * start, from->start + from->step * stop, from->step * step,
                         (uint32_t)count};
    return (qr_jv){.kind = QR_JV_RANGE, .range = range};
}

qr_jv qr_jinja_slice(qr_jrun *run, qr_jv object, qr_jv first, qr_jv last, qr_jv stride)
{
    int64_t length = qr_jv_length(object), step = 1, start = 0, stop = 0;
    if (object.kind == QR_JV_UNDEFINED)
        return qr_jinja_undefined_use(run, object);
    if (object.kind != QR_JV_STRING && !qr_jv_is_sequence(object) && object.kind != QR_JV_RANGE)
        return qr_jinja_raise(
            run, object.kind == QR_JV_DICT ? "unhashable type: 'slice'" : "'%s' object is not subscriptable",
            qr_jv_type_name(object));
    if (stride.kind != QR_JV_NONE) {
        if (!qr_jv_is_integral(stride))
            return qr_jinja_raise(run, "slice indices must be integers or None or have an __index__ method");
        step = stride.i;
        if (step == 0)
            return qr_jinja_raise(run, "slice step cannot be zero");
        if (step < -length - 1 || step > length + 1) /* the same items, without overflow below */
            step = step < 0 ? -length - 1 : length + 1;
    }
    int64_t low = step < 0 ? -1 : 0, high = step < 0 ? length - 1 : length;
    if (!slice_bound(run, first, step < 0 ? high : 0, length, low, high, &start) ||
        !slice_bound(run, last, step < 0 ? -1 : length, length, low, high, &stop))
        return qr_jv_none();
    int64_t span = step < 0 ? start - stop : stop - start, magnitude = step < 0 ? -step : step;
    int64_t count = span > 0 ? (span + magnitude - 1) / magnitude : 0;
    if (object.kind == QR_JV_STRING)
        return slice_text(run, object, start, count, step);
    return object.kind == QR_JV_RANGE ? slice_range(run, object, start, stop, count, step)
                                      : slice_list(run, object, start, count, step);
}
