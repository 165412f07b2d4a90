/* Statements and macros. */
#include <string.h>

#include "base/mem.h"
#include "text/jinja_run.h"

/* ---- Names ---- */

qr_jv qr_jinja_resolve(qr_jrun *run, uint32_t name_id)
{
    qr_jv *cached = &run->globals[name_id];
    if (cached->kind != QR_JV_MISSING || cached->flag != 0)
        return *cached;
    qr_str name = run->jinja->names[name_id];
    const qr_json *found = qr_json_get(run->variables, name.data);
    *cached = found != NULL ? qr_jv_from_json(found) : qr_jinja_global(name);
    if (cached->kind == QR_JV_MISSING)
        cached->flag = 1; /* looked for, and not there */
    return *cached;
}

static qr_jv *slot_of(qr_jrun *run, uint16_t hops, uint32_t slot)
{
    qr_jframe *frame = run->frame;
    for (; hops > 0; hops--)
        frame = frame->outer;
    return &frame->slots[slot];
}

void qr_jinja_enter_scope(qr_jrun *run, const qr_jscope *scope)
{
    for (uint32_t i = 0; i < scope->count; i++) {
        const qr_jload_op *load = &scope->loads[i];
        qr_jv value = {0};
        if (load->action == QR_JLOAD_RESOLVE)
            value = qr_jinja_resolve(run, load->source);
        else if (load->action == QR_JLOAD_ALIAS)
            value = *slot_of(run, load->hops, load->source);
        run->frame->slots[load->slot] = value;
    }
}

static void assign_tuple(qr_jrun *run, const qr_jnode *target, qr_jv value, bool toplevel)
{
    qr_jlist items;
    run->pos = target->pos;
    int64_t length = qr_jv_length(value);
    if (length < 0 && value.kind != QR_JV_GENERATOR) {
        qr_jinja_raise(run, "cannot unpack non-iterable %s object", qr_jv_type_name(value));
        return;
    }
    if (length > (int64_t)target->count) {
        qr_jinja_raise(run, "too many values to unpack (expected %u)", target->count);
        return;
    }
    if (!qr_jv_to_list(run, value, &items))
        return;
    if (items.count != target->count) {
        qr_jinja_raise(run,
                       items.count < target->count ? "not enough values to unpack (expected %u, got %u)"
                                                   : "too many values to unpack (expected %u)",
                       target->count, items.count);
        return;
    }
    for (uint32_t i = 0; i < items.count; i++)
        qr_jinja_assign(run, target->items[i], items.items[i], toplevel);
}

void qr_jinja_assign(qr_jrun *run, const qr_jnode *target, qr_jv value, bool toplevel)
{
    if (qr_jinja_failed(run))
        return;
    if (target->type == QR_JN_NAME) {
        *slot_of(run, target->hops, target->slot) = value;
        if (toplevel)
            run->globals[target->name_id] = value;
    } else if (target->type == QR_JN_TUPLE) {
        assign_tuple(run, target, value, toplevel);
    } else {
        qr_jv space = qr_jinja_eval(run, target->space);
        run->pos = target->pos;
        if (space.kind != QR_JV_NAMESPACE)
            qr_jinja_raise(run, "cannot assign attribute on non-namespace object");
        else
            qr_jdict_set(run, space.dict, qr_jv_str(*target->key), value);
    }
}

/* ---- Macros ---- */

static qr_jv make_macro(qr_jrun *run, const qr_jmacro_def *def)
{
    qr_jmacro *macro = qr_jinja_alloc(run, sizeof(*macro));
    if (macro == NULL)
        return qr_jv_none();
    *macro = (qr_jmacro){def, run->frame};
    return (qr_jv){.kind = QR_JV_MACRO, .macro = macro};
}

static int64_t find_keyword(const qr_jargs *args, qr_str name)
{
    for (uint32_t i = 0; i < args->keyword_count; i++)
        if (qr_str_equal(args->names[i], name))
            return i;
    return -1;
}

static int64_t parameter_index(const qr_jmacro_def *def, qr_str name)
{
    for (uint32_t i = 0; i < def->param_count; i++)
        if (qr_str_equal(*def->params[i]->name, name))
            return i;
    return -1;
}

static const char *macro_name(const qr_jmacro_def *def)
{
    return def->name != NULL ? def->name->data : "None";
}

static void bind_parameters(const qr_jmacro_def *def, const qr_jargs *args, qr_jframe *frame)
{
    for (uint32_t i = 0; i < def->param_count; i++) {
        int64_t keyword = i >= args->count ? find_keyword(args, *def->params[i]->name) : -1;
        qr_jv *slot = &frame->slots[def->params[i]->slot];
        if (i < args->count)
            *slot = args->positional[i];
        else if (keyword >= 0)
            *slot = args->keywords[keyword];
    }
}

/* Keywords that no parameter took: kwargs, the caller, or an error. */
static void bind_rest(qr_jrun *run, const qr_jmacro_def *def, const qr_jargs *args, qr_jframe *frame)
{
    qr_jdict *rest = def->kwargs_slot >= 0 ? qr_jdict_new(run, args->keyword_count) : NULL;
    qr_jv caller = qr_jv_hint("No caller defined");
    for (uint32_t i = 0; i < args->keyword_count; i++) {
        int64_t index = parameter_index(def, args->names[i]);
        if (index >= (int64_t)args->count)
            continue;
        bool is_caller = qr_str_equals(args->names[i], "caller");
        if (is_caller && def->caller_slot >= 0 && index < 0)
            caller = args->keywords[i];
        else if (rest != NULL)
            qr_jdict_set(run, rest, qr_jv_str(args->names[i]), args->keywords[i]);
        else if (is_caller)
            qr_jinja_raise(
                run,
                "macro '%.80s' was invoked with two values for the special caller argument. This is "
                "most likely a bug.",
                macro_name(def));
        else
            qr_jinja_raise(run, "macro '%.80s' takes no keyword argument '%.*s'", macro_name(def),
                           (int)QR_MIN(args->names[i].len, (size_t)60), args->names[i].data);
    }
    if (def->caller_slot >= 0)
        frame->slots[def->caller_slot] = caller;
    if (rest != NULL)
        frame->slots[def->kwargs_slot] = qr_jv_of_dict(rest);
}

static void bind_extra(qr_jrun *run, const qr_jmacro_def *def, const qr_jargs *args, qr_jframe *frame)
{
    uint32_t extra = args->count > def->param_count ? args->count - def->param_count : 0;
    if (def->varargs_slot >= 0) {
        qr_jlist list = {0};
        for (uint32_t i = 0; i < extra; i++)
            qr_jlist_push(run, &list, args->positional[def->param_count + i]);
        frame->slots[def->varargs_slot] = qr_jlist_value(&list, QR_JV_TUPLE);
    } else if (extra > 0) {
        qr_jinja_raise(run, "macro '%.80s' takes not more than %u argument(s)", macro_name(def),
                       def->param_count);
    }
}

/* Defaults are evaluated in the macro's own scope, at the call. */
static void fill_defaults(qr_jrun *run, const qr_jmacro_def *def)
{
    uint32_t first = def->param_count - def->default_count;
    for (uint32_t i = 0; i < def->param_count; i++) {
        qr_jv *slot = &run->frame->slots[def->params[i]->slot];
        if (slot->kind != QR_JV_MISSING)
            continue;
        if (i >= first) {
            qr_jv value = qr_jinja_eval(run, def->defaults[i - first]);
            run->frame->slots[def->params[i]->slot] = value;
        } else {
            qr_jv hint = qr_jv_printf(run, "parameter '%.200s' was not provided", def->params[i]->name->data);
            *slot = (qr_jv){.kind = QR_JV_UNDEFINED, .aux = QR_JV_HINT, .len = hint.len, .s = hint.s};
        }
    }
}

static uint16_t macro_depth(const qr_jmacro_def *def)
{
    uint16_t depth = def->body.depth;
    for (uint32_t i = 0; i < def->default_count; i++)
        depth = QR_MAX(depth, def->defaults[i]->depth);
    return (uint16_t)(depth + 3);
}

qr_jv qr_jinja_call_macro(qr_jrun *run, const qr_jmacro *macro, const qr_jargs *args)
{
    const qr_jmacro_def *def = macro->def;
    size_t bytes = sizeof(qr_jframe) + def->func.slot_count * sizeof(qr_jv);
    qr_jframe *frame = qr_jinja_alloc(run, bytes), *outer = run->frame;
    if (frame == NULL)
        return qr_jv_none();
    memset(frame, 0, bytes);
    frame->outer = macro->outer;
    bind_parameters(def, args, frame);
    bind_rest(run, def, args, frame);
    bind_extra(run, def, args, frame);
    size_t mark = run->out->len;
    uint32_t pos = run->pos;
    uint16_t depth = macro_depth(def);
    run->frame = frame;
    if (qr_jinja_enter(run, depth)) {
        qr_jinja_enter_scope(run, &def->scope);
        fill_defaults(run, def);
        qr_jinja_exec(run, &def->body);
    }
    qr_jinja_leave(run, depth);
    run->frame = outer;
    if (!qr_jinja_failed(run))
        run->pos = pos;
    return qr_jinja_take(run, mark);
}

/* ---- Statements ---- */

static qr_jflow exec_if(qr_jrun *run, const qr_jstmt *stmt)
{
    for (uint32_t i = 0; i < stmt->branch_count; i++) {
        const qr_jbranch *branch = &stmt->branches[i];
        if (branch->test == NULL || qr_jv_truth(qr_jinja_eval(run, branch->test)))
            return qr_jinja_failed(run) ? QR_JFLOW_BREAK : qr_jinja_exec(run, &branch->body);
    }
    return QR_JFLOW_NEXT;
}

static qr_jflow exec_for(qr_jrun *run, const qr_jstmt *stmt)
{
    qr_jv source = qr_jinja_eval(run, stmt->loop.iter);
    run->pos = stmt->loop.iter->pos;
    return qr_jinja_failed(run) ? QR_JFLOW_BREAK : qr_jloop_run(run, stmt, source, 0);
}

static qr_jflow exec_block(qr_jrun *run, const qr_jstmt *stmt)
{
    size_t mark = run->out->len;
    qr_jv values[8], *with = stmt->set.with_count > QR_COUNT_OF(values)
                                 ? qr_jinja_alloc(run, stmt->set.with_count * sizeof(qr_jv))
                                 : values;
    if (with == NULL)
        return QR_JFLOW_BREAK;
    for (uint32_t i = 0; i < stmt->set.with_count; i++)
        with[i] = qr_jinja_eval(run, stmt->set.values[i]);
    for (uint32_t i = 0; i < stmt->set.with_count; i++)
        qr_jinja_assign(run, stmt->set.targets[i], with[i], false);
    qr_jinja_enter_scope(run, &stmt->set.scope);
    qr_jflow flow = qr_jinja_exec(run, &stmt->set.body);
    if (stmt->type == QR_JS_SCOPE || stmt->type == QR_JS_WITH || qr_jinja_failed(run))
        return flow;
    if (flow != QR_JFLOW_NEXT) { /* a jump out of the block: what it had so far is lost */
        run->out->len = mark;
        return flow;
    }
    qr_jv value = qr_jinja_take(run, mark);
    if (stmt->set.value != NULL)
        value = qr_jinja_apply_filters(run, stmt->set.value, value);
    if (stmt->type == QR_JS_FILTER_BLOCK)
        qr_jinja_write_str(run, value);
    else
        qr_jinja_assign(run, stmt->set.target, value, stmt->toplevel);
    return QR_JFLOW_NEXT;
}

static void exec_call_block(qr_jrun *run, const qr_jstmt *stmt)
{
    qr_jv caller = make_macro(run, stmt->set.macro);
    qr_jv value = qr_jinja_eval_call(run, stmt->set.value, &caller);
    if (!qr_jinja_failed(run))
        qr_jinja_write_str(run, value);
}

static qr_jflow exec_stmt(qr_jrun *run, const qr_jstmt *stmt)
{
    switch ((qr_jstmt_type)stmt->type) {
    case QR_JS_DATA: qr_jinja_write(run, stmt->text); return QR_JFLOW_NEXT;
    case QR_JS_OUTPUT: qr_jinja_output(run, stmt->output); return QR_JFLOW_NEXT;
    case QR_JS_IF: return exec_if(run, stmt);
    case QR_JS_FOR: return exec_for(run, stmt);
    case QR_JS_SET:
        qr_jinja_assign(run, stmt->set.target, qr_jinja_eval(run, stmt->set.value), stmt->toplevel);
        return QR_JFLOW_NEXT;
    case QR_JS_MACRO:
        qr_jinja_assign(run, stmt->set.target, make_macro(run, stmt->set.macro), stmt->toplevel);
        return QR_JFLOW_NEXT;
    case QR_JS_CALL_BLOCK: exec_call_block(run, stmt); return QR_JFLOW_NEXT;
    case QR_JS_SET_BLOCK:
    case QR_JS_FILTER_BLOCK:
    case QR_JS_SCOPE:
    case QR_JS_WITH: return exec_block(run, stmt);
    case QR_JS_BREAK: return QR_JFLOW_BREAK;
    case QR_JS_CONTINUE: return QR_JFLOW_CONTINUE;
    }
    return QR_JFLOW_NEXT;
}

/* BREAK also means that something failed: everything up to the root returns. */
qr_jflow qr_jinja_exec(qr_jrun *run, const qr_jbody *body)
{
    for (const qr_jstmt *stmt = body->first; stmt != NULL; stmt = stmt->next) {
        if (--run->fuel < 0 && !qr_jinja_refuel(run))
            return QR_JFLOW_BREAK;
        qr_jflow flow = exec_stmt(run, stmt);
        if (flow != QR_JFLOW_NEXT)
            return flow;
    }
    return QR_JFLOW_NEXT;
}
