/* Expressions. Recursion follows the tree, whose height is known and checked before a body is entered. */
#include <string.h>

#include "base/mem.h"
#include "text/jinja_run.h"

enum { LOCAL_ARGS = 6 };

/* ---- Names, literals ---- */

static qr_jv eval_name(const qr_jrun *run, const qr_jnode *node)
{
    const qr_jframe *frame = run->frame;
    for (uint16_t hops = node->hops; hops > 0; hops--)
        frame = frame->outer;
    qr_jv value = frame->slots[node->slot];
    if (value.kind == QR_JV_MISSING)
        return (qr_jv){.kind = QR_JV_UNDEFINED,
                       .aux = QR_JV_NO_NAME,
                       .len = (uint32_t)node->name->len,
                       .s = node->name->data};
    return value;
}

static qr_jv eval_list(qr_jrun *run, const qr_jnode *node, qr_jv_kind kind)
{
    qr_jv *items = qr_jinja_alloc(run, (node->count + 1) * sizeof(qr_jv));
    if (items == NULL)
        return qr_jv_none();
    for (uint32_t i = 0; i < node->count; i++)
        items[i] = qr_jinja_eval(run, node->items[i]);
    return (qr_jv){.kind = (uint8_t)kind, .len = node->count, .items = items};
}

static qr_jv eval_dict(qr_jrun *run, const qr_jnode *node)
{
    qr_jdict *dict = qr_jdict_new(run, node->count / 2);
    for (uint32_t i = 0; i + 1 < node->count && !qr_jinja_failed(run); i += 2) {
        qr_jv key = qr_jinja_eval(run, node->items[i]);
        qr_jv value = qr_jinja_eval(run, node->items[i + 1]);
        run->pos = node->pos;
        qr_jdict_set(run, dict, key, value);
    }
    return dict != NULL ? qr_jv_of_dict(dict) : qr_jv_none();
}

/* ---- Operators ---- */

static qr_jv eval_concat(qr_jrun *run, const qr_jnode *node)
{
    size_t mark = run->out->len;
    for (uint32_t i = 0; i < node->count; i++)
        qr_jinja_output(run, node->items[i]);
    return qr_jinja_take(run, mark);
}

static qr_jv eval_arith(qr_jrun *run, const qr_jnode *node, qr_jv value, uint32_t from)
{
    for (uint32_t i = from; i < node->count && !qr_jinja_failed(run); i++) {
        qr_jv right = qr_jinja_eval(run, node->items[i]);
        run->pos = node->items[i]->pos;
        value = qr_jinja_binary(run, (qr_jop)node->ops[i - 1], value, right);
    }
    return value;
}

static qr_jv eval_compare(qr_jrun *run, const qr_jnode *node)
{
    qr_jv left = qr_jinja_eval(run, node->items[0]);
    bool holds = true;
    for (uint32_t i = 1; i < node->count && holds && !qr_jinja_failed(run); i++) {
        qr_jv right = qr_jinja_eval(run, node->items[i]);
        run->pos = node->items[i]->pos;
        holds = qr_jv_compare_op(run, (qr_jop)node->ops[i - 1], left, right);
        left = right;
    }
    return qr_jv_bool(holds);
}

static qr_jv eval_logic(qr_jrun *run, const qr_jnode *node, bool stop_at)
{
    qr_jv value = qr_jinja_eval(run, node->items[0]);
    for (uint32_t i = 1; i < node->count && qr_jv_truth(value) != stop_at && !qr_jinja_failed(run); i++)
        value = qr_jinja_eval(run, node->items[i]);
    return value;
}

static qr_jv eval_sign(qr_jrun *run, const qr_jnode *node)
{
    qr_jv value = qr_jinja_eval(run, node->a);
    bool negative = node->type == QR_JN_NEG;
    run->pos = node->pos;
    if (value.kind == QR_JV_FLOAT)
        return qr_jv_float(negative ? -value.d : value.d);
    if (qr_jv_is_integral(value)) {
        if (negative && value.i == INT64_MIN)
            return qr_jinja_raise(run, "integers beyond 64 bits are not supported");
        return qr_jv_int(negative ? -value.i : value.i);
    }
    if (value.kind == QR_JV_UNDEFINED)
        return qr_jinja_undefined_use(run, value);
    return qr_jinja_raise(run, "bad operand type for unary %c: '%s'", negative ? '-' : '+',
                          qr_jv_type_name(value));
}

static qr_jv eval_item(qr_jrun *run, const qr_jnode *node)
{
    qr_jv object = qr_jinja_eval(run, node->a);
    if (node->b->type == QR_JN_SLICE) {
        const qr_jnode *slice = node->b;
        qr_jv start = slice->a != NULL ? qr_jinja_eval(run, slice->a) : qr_jv_none();
        qr_jv stop = slice->b != NULL ? qr_jinja_eval(run, slice->b) : qr_jv_none();
        qr_jv step = slice->c != NULL ? qr_jinja_eval(run, slice->c) : qr_jv_none();
        run->pos = node->pos;
        return qr_jinja_slice(run, object, start, stop, step);
    }
    qr_jv key = qr_jinja_eval(run, node->b);
    run->pos = node->pos;
    return qr_jinja_failed(run) ? qr_jv_none() : qr_jinja_getitem(run, object, key);
}

static qr_jv eval_attr(qr_jrun *run, const qr_jnode *node)
{
    qr_jv object = qr_jinja_eval(run, node->object);
    run->pos = node->pos;
    return qr_jinja_getattr(run, object, qr_str_make(node->attr, node->attr_len), node->method);
}

/* ---- Calls ---- */

typedef struct keyword_lists {
    qr_str *names;
    qr_jv *values;
    uint32_t count, capacity;
} keyword_lists;

static void push_keyword(qr_jrun *run, keyword_lists *lists, qr_str name, qr_jv value)
{
    if (lists->count == lists->capacity) {
        uint32_t capacity = lists->capacity * 2 + 8;
        qr_str *names = qr_jinja_alloc(run, capacity * sizeof(qr_str));
        qr_jv *values = qr_jinja_alloc(run, capacity * sizeof(qr_jv));
        if (names == NULL || values == NULL)
            return;
        if (lists->count > 0) {
            memcpy(names, lists->names, lists->count * sizeof(qr_str));
            memcpy(values, lists->values, lists->count * sizeof(qr_jv));
        }
        *lists = (keyword_lists){names, values, lists->count, capacity};
    }
    lists->names[lists->count] = name;
    lists->values[lists->count++] = value;
}

static void spread_keywords(qr_jrun *run, const qr_jnode *node, keyword_lists *lists)
{
    qr_jv dict = qr_jinja_eval(run, node), key;
    qr_jiter iter;
    run->pos = node->pos;
    if (dict.kind != QR_JV_DICT) {
        qr_jinja_raise(run, "argument after ** must be a mapping, not %s", qr_jv_type_name(dict));
        return;
    }
    qr_jiter_init(run, &iter, dict);
    while (qr_jiter_next(run, &iter, &key)) {
        if (key.kind != QR_JV_STRING) {
            qr_jinja_raise(run, "keywords must be strings");
            return;
        }
        for (uint32_t i = 0; i < lists->count; i++)
            if (qr_str_equal(lists->names[i], qr_jv_slice(key)))
                qr_jinja_raise(run, "got multiple values for keyword argument '%.*s'",
                               (int)QR_MIN(key.len, 80u), key.s);
        push_keyword(run, lists, qr_jv_slice(key), qr_jv_dict_get(run, dict, key));
    }
}

/* The general case: *args, **kwargs, many arguments, or a caller. */
static qr_jargs eval_many(qr_jrun *run, const qr_jcall *call, const qr_jv *caller)
{
    qr_jlist positional = {0};
    keyword_lists keywords = {0};
    for (uint32_t i = 0; i < call->count; i++)
        qr_jlist_push(run, &positional, qr_jinja_eval(run, call->positional[i]));
    if (call->star != NULL) {
        qr_jv more = qr_jinja_eval(run, call->star), item;
        qr_jiter iter;
        if (qr_jiter_init(run, &iter, more))
            while (qr_jiter_next(run, &iter, &item))
                qr_jlist_push(run, &positional, item);
    }
    for (uint32_t i = 0; i < call->keyword_count; i++)
        push_keyword(run, &keywords, call->names[i], qr_jinja_eval(run, call->keywords[i]));
    if (caller != NULL)
        push_keyword(run, &keywords, QR_STR("caller"), *caller);
    if (call->star_star != NULL)
        spread_keywords(run, call->star_star, &keywords);
    return (qr_jargs){positional.items, positional.count, keywords.names, keywords.values, keywords.count};
}

static qr_jargs eval_args(qr_jrun *run, const qr_jcall *call, qr_jv local[LOCAL_ARGS], const qr_jv *caller)
{
    if (call->star != NULL || call->star_star != NULL || caller != NULL ||
        call->count + call->keyword_count > LOCAL_ARGS)
        return eval_many(run, call, caller);
    for (uint32_t i = 0; i < call->count; i++)
        local[i] = qr_jinja_eval(run, call->positional[i]);
    for (uint32_t i = 0; i < call->keyword_count; i++)
        local[call->count + i] = qr_jinja_eval(run, call->keywords[i]);
    return (qr_jargs){local, call->count, call->names, local + call->count, call->keyword_count};
}

qr_jv qr_jinja_call(qr_jrun *run, qr_jv callee, const qr_jargs *args)
{
    if (qr_jinja_failed(run))
        return qr_jv_none();
    switch (callee.kind) {
    case QR_JV_MACRO: return qr_jinja_call_macro(run, callee.macro, args);
    case QR_JV_FUNCTION: return qr_jinja_call_function(run, callee.aux, args);
    case QR_JV_METHOD: return qr_jinja_call_method(run, callee.method->self, callee.method->id, args);
    case QR_JV_LOOP: return qr_jloop_call(run, callee.loop, args);
    case QR_JV_JOINER: return callee.cycle->position++ == 0 ? QR_JV_TEXT("") : callee.cycle->items[0];
    case QR_JV_UNDEFINED: return qr_jinja_undefined_use(run, callee);
    default: return qr_jinja_raise(run, "'%s' object is not callable", qr_jv_type_name(callee));
    }
}

static qr_jv eval_call(qr_jrun *run, const qr_jnode *node, const qr_jv *caller)
{
    qr_jv local[LOCAL_ARGS];
    const qr_jnode *callee = node->callee;
    qr_jv target;
    bool direct = false; /* a method called on the spot needs no object of its own */
    if (callee->type == QR_JN_ATTR && callee->method >= 0) {
        target = qr_jinja_eval(run, callee->object);
        run->pos = callee->pos;
        direct = qr_jinja_method_access(target, callee->method) == QR_JACCESS_METHOD;
        if (!direct)
            target =
                qr_jinja_getattr(run, target, qr_str_make(callee->attr, callee->attr_len), callee->method);
    } else {
        target = qr_jinja_eval(run, callee);
    }
    if (qr_jinja_failed(run))
        return qr_jv_none();
    qr_jargs args = eval_args(run, node->call, local, caller);
    run->pos = node->pos;
    if (qr_jinja_failed(run))
        return qr_jv_none();
    return direct ? qr_jinja_call_method(run, target, callee->method, &args)
                  : qr_jinja_call(run, target, &args);
}

qr_jv qr_jinja_eval_call(qr_jrun *run, const qr_jnode *node, const qr_jv *caller)
{
    return eval_call(run, node, caller);
}

static qr_jv apply_row(qr_jrun *run, const qr_jnode *node, qr_jv value)
{
    qr_jv local[LOCAL_ARGS];
    if (node->row == NULL) {
        run->pos = node->pos;
        return qr_jinja_raise(run, "No %s named '%.80s' found.",
                              node->type == QR_JN_FILTER ? "filter" : "test", node->row_name->data);
    }
    qr_jargs args = eval_args(run, node->call, local, NULL);
    run->pos = node->pos;
    return qr_jinja_failed(run) ? qr_jv_none() : qr_jinja_apply(run, node->row, value, &args);
}

qr_jv qr_jinja_apply_filters(qr_jrun *run, const qr_jnode *node, qr_jv value)
{
    if (node->callee != NULL)
        value = qr_jinja_apply_filters(run, node->callee, value);
    return apply_row(run, node, value);
}

static qr_jv eval_condition(qr_jrun *run, const qr_jnode *node)
{
    if (qr_jv_truth(qr_jinja_eval(run, node->b)))
        return qr_jinja_eval(run, node->a);
    if (node->c != NULL)
        return qr_jinja_eval(run, node->c);
    return qr_jv_hint("the inline if-expression evaluated to false and no else section was defined.");
}

qr_jv qr_jinja_eval(qr_jrun *run, const qr_jnode *node)
{
    if (--run->fuel < 0 && !qr_jinja_refuel(run))
        return qr_jv_none();
    switch ((qr_jnode_type)node->type) {
    case QR_JN_CONST: return node->value;
    case QR_JN_NAME: return eval_name(run, node);
    case QR_JN_ATTR: return eval_attr(run, node);
    case QR_JN_ITEM: return eval_item(run, node);
    case QR_JN_CALL: return eval_call(run, node, NULL);
    case QR_JN_FILTER:
    case QR_JN_TEST: return apply_row(run, node, qr_jinja_eval(run, node->callee));
    case QR_JN_COMPARE: return eval_compare(run, node);
    case QR_JN_AND: return eval_logic(run, node, false);
    case QR_JN_OR: return eval_logic(run, node, true);
    case QR_JN_NOT: return qr_jv_bool(!qr_jv_truth(qr_jinja_eval(run, node->a)));
    case QR_JN_ARITH: return eval_arith(run, node, qr_jinja_eval(run, node->items[0]), 1);
    case QR_JN_CONCAT: return eval_concat(run, node);
    case QR_JN_COND: return eval_condition(run, node);
    case QR_JN_LIST: return eval_list(run, node, QR_JV_LIST);
    case QR_JN_TUPLE: return eval_list(run, node, QR_JV_TUPLE);
    case QR_JN_DICT: return eval_dict(run, node);
    case QR_JN_NEG:
    case QR_JN_POS: return eval_sign(run, node);
    case QR_JN_SLICE:
    case QR_JN_NSREF: break;
    }
    run->pos = node->pos;
    return qr_jinja_raise(run, "a slice stands alone");
}

/* ---- Output: strings are written as they are evaluated, not built first ---- */

static bool is_plain(qr_jv value) { return value.kind == QR_JV_STRING && !(value.flag & QR_JV_SAFE); }

static void output_sum(qr_jrun *run, const qr_jnode *node)
{
    qr_jv value = qr_jinja_eval(run, node->items[0]);
    if (!is_plain(value)) {
        qr_jinja_write_str(run, eval_arith(run, node, value, 1));
        return;
    }
    size_t mark = run->out->len;
    qr_jinja_write(run, qr_jv_slice(value));
    for (uint32_t i = 1; i < node->count && !qr_jinja_failed(run); i++) {
        value = qr_jinja_eval(run, node->items[i]);
        if (node->ops[i - 1] == QR_JOP_ADD && is_plain(value)) {
            qr_jinja_write(run, qr_jv_slice(value));
            continue;
        }
        run->pos = node->items[i]->pos;
        value = qr_jinja_binary(run, (qr_jop)node->ops[i - 1], qr_jinja_take(run, mark), value);
        qr_jinja_write_str(run, eval_arith(run, node, value, i + 1));
        return;
    }
}

void qr_jinja_output(qr_jrun *run, const qr_jnode *node)
{
    switch ((qr_jnode_type)node->type) {
    case QR_JN_ARITH:
        if (node->ops[0] == QR_JOP_ADD && qr_jinja_charge(run, 1)) {
            output_sum(run, node);
            return;
        }
        break;
    case QR_JN_CONCAT:
        for (uint32_t i = 0; i < node->count && qr_jinja_charge(run, 1); i++)
            qr_jinja_output(run, node->items[i]);
        return;
    case QR_JN_COND:
        if (qr_jv_truth(qr_jinja_eval(run, node->b)))
            qr_jinja_output(run, node->a);
        else if (node->c != NULL)
            qr_jinja_output(run, node->c);
        return;
    default: break;
    }
    qr_jv value = qr_jinja_eval(run, node);
    if (!qr_jinja_failed(run))
        qr_jinja_write_str(run, value);
}
