/* Which variable a name means. The rules are those of Jinja2's symbol analysis: a scope's names are collected
 * before its body runs; a name that is only read is looked up in the variables once on entry; a name that is
 * assigned starts as the outer variable of that name, or as undefined; branches of `if` share one scope.
 * Recursion follows the tree, whose height the parser has bounded. */
#include <string.h>

#include "base/mem.h"
#include "base/vec.h"
#include "text/jinja_run.h"

typedef struct entry {
    uint32_t name, slot, source;
    uint16_t hops;
    uint8_t action;
    bool stored, used;
} entry;

typedef struct function { /* what owns slots while it is compiled */
    struct function *outer;
    uint32_t slot_count;
} function;

typedef struct scope {
    struct scope *parent;
    function *function;
    QR_VEC(entry) entries;
    QR_VEC(uint32_t) stores; /* names in the order in which they were first stored */
} scope;

typedef struct binder {
    qr_jcompile *compile;
    bool soft; /* inside `if`: an unknown filter is an error only when it runs */
} binder;

static void bind_node(binder *b, scope *s, qr_jnode *node);
static void bind_body(binder *b, scope *s, const qr_jbody *body, bool toplevel);
static void visit_body(scope *s, const qr_jbody *body);

/* ---- Entries ---- */

static entry *own_entry(scope *s, uint32_t name)
{
    for (size_t i = 0; i < s->entries.count; i++)
        if (s->entries.data[i].name == name)
            return &s->entries.data[i];
    return NULL;
}

static entry *find_entry(scope *s, uint32_t name, uint16_t *hops)
{
    function *from = s != NULL ? s->function : NULL;
    *hops = 0;
    for (; s != NULL; s = s->parent) {
        for (; from != s->function; from = from->outer)
            ++*hops;
        entry *found = own_entry(s, name);
        if (found != NULL)
            return found;
    }
    return NULL;
}

static entry *define(scope *s, uint32_t name, qr_jload action)
{
    entry fresh = {
        .name = name, .slot = s->function->slot_count++, .action = (uint8_t)action, .source = name};
    QR_VEC_PUSH(&s->entries, fresh);
    return &s->entries.data[s->entries.count - 1];
}

/* Makes `e` start as the outer variable of its name, if there is one; else as `otherwise`. */
static void load_outer(scope *s, entry *e, qr_jload otherwise)
{
    uint16_t hops = 0;
    entry *outer = s->parent != NULL ? find_entry(s->parent, e->name, &hops) : NULL;
    e->action = (uint8_t)(outer != NULL ? QR_JLOAD_ALIAS : otherwise);
    e->source = outer != NULL ? outer->slot : e->name;
    e->hops = (uint16_t)(hops + (outer != NULL && s->parent->function != s->function));
    if (outer != NULL)
        outer->used = true;
}

static void note_store(scope *s, entry *e)
{
    if (e->stored)
        return;
    e->stored = true;
    QR_VEC_PUSH(&s->stores, e->name);
}

static void store_name(scope *s, uint32_t name)
{
    entry *e = own_entry(s, name);
    if (e == NULL) {
        e = define(s, name, QR_JLOAD_UNDEFINED);
        load_outer(s, e, QR_JLOAD_UNDEFINED);
    }
    note_store(s, e);
}

static entry *parameter(scope *s, uint32_t name)
{
    entry *e = own_entry(s, name);
    if (e == NULL)
        e = define(s, name, QR_JLOAD_PARAMETER);
    e->action = QR_JLOAD_PARAMETER;
    note_store(s, e);
    return e;
}

static void load_name(scope *s, uint32_t name)
{
    uint16_t hops = 0;
    if (find_entry(s, name, &hops) == NULL)
        define(s, name, QR_JLOAD_RESOLVE);
}

/* ---- Collecting the names of one scope: stops at what opens a scope of its own ---- */

static void visit_node(scope *s, const qr_jnode *node, bool as_parameter);

static void visit_call(scope *s, const qr_jcall *call)
{
    for (uint32_t i = 0; i < call->count; i++)
        visit_node(s, call->positional[i], false);
    for (uint32_t i = 0; i < call->keyword_count; i++)
        visit_node(s, call->keywords[i], false);
    visit_node(s, call->star, false);
    visit_node(s, call->star_star, false);
}

static void visit_node(scope *s, const qr_jnode *node, bool as_parameter)
{
    if (node == NULL)
        return;
    switch ((qr_jnode_type)node->type) {
    case QR_JN_CONST: return;
    case QR_JN_NAME:
        if (as_parameter)
            parameter(s, node->name_id);
        else if (node->store)
            store_name(s, node->name_id);
        else
            load_name(s, node->name_id);
        return;
    case QR_JN_TUPLE:
    case QR_JN_LIST:
    case QR_JN_DICT:
    case QR_JN_CONCAT:
    case QR_JN_ARITH:
    case QR_JN_AND:
    case QR_JN_OR:
    case QR_JN_COMPARE:
        for (uint32_t i = 0; i < node->count; i++)
            visit_node(s, node->items[i], as_parameter);
        return;
    case QR_JN_COND: /* as the reference's tree has it: test first */
        visit_node(s, node->b, false);
        visit_node(s, node->a, false);
        visit_node(s, node->c, false);
        return;
    case QR_JN_NOT:
    case QR_JN_NEG:
    case QR_JN_POS:
    case QR_JN_ITEM:
    case QR_JN_SLICE:
        visit_node(s, node->a, false);
        visit_node(s, node->b, false);
        visit_node(s, node->c, false);
        return;
    case QR_JN_ATTR: visit_node(s, node->object, false); return;
    case QR_JN_CALL:
    case QR_JN_FILTER:
    case QR_JN_TEST:
        visit_node(s, node->callee, false);
        visit_call(s, node->call);
        return;
    case QR_JN_NSREF: visit_node(s, node->space, false); return;
    }
}

static void visit_if(scope *s, const qr_jstmt *stmt)
{
    visit_node(s, stmt->branches[0].test, false);
    size_t from = s->stores.count;
    for (uint32_t i = 0; i < stmt->branch_count; i++) {
        if (i > 0)
            visit_node(s, stmt->branches[i].test, false);
        visit_body(s, &stmt->branches[i].body);
    }
    for (size_t i = from; i < s->stores.count; i++) /* perhaps assigned: read through otherwise */
        load_outer(s, own_entry(s, s->stores.data[i]), QR_JLOAD_RESOLVE);
}

static void visit_stmt(scope *s, const qr_jstmt *stmt)
{
    switch ((qr_jstmt_type)stmt->type) {
    case QR_JS_OUTPUT: visit_node(s, stmt->output, false); return;
    case QR_JS_IF: visit_if(s, stmt); return;
    case QR_JS_FOR: visit_node(s, stmt->loop.iter, false); return;
    case QR_JS_SET:
        visit_node(s, stmt->set.value, false);
        visit_node(s, stmt->set.target, false);
        return;
    case QR_JS_SET_BLOCK:
    case QR_JS_MACRO: visit_node(s, stmt->set.target, false); return;
    case QR_JS_CALL_BLOCK:
    case QR_JS_FILTER_BLOCK: visit_node(s, stmt->set.value, false); return;
    case QR_JS_WITH:
        for (uint32_t i = 0; i < stmt->set.with_count; i++)
            visit_node(s, stmt->set.values[i], false);
        return;
    case QR_JS_DATA:
    case QR_JS_SCOPE:
    case QR_JS_BREAK:
    case QR_JS_CONTINUE: return;
    }
}

static void visit_body(scope *s, const qr_jbody *body)
{
    for (const qr_jstmt *stmt = body->first; stmt != NULL; stmt = stmt->next)
        visit_stmt(s, stmt);
}

/* ---- Binding: names get their slots, scopes their load lists ---- */

static void scope_open(scope *s, scope *parent, function *owner)
{
    *s = (scope){.parent = parent, .function = owner};
}

static void scope_close(binder *b, scope *s, qr_jscope *out)
{
    qr_jload_op *ops = qr_jcompile_alloc(b->compile, (s->entries.count + 1) * sizeof(*ops));
    uint32_t count = 0;
    for (size_t i = 0; i < s->entries.count; i++) {
        const entry *e = &s->entries.data[i];
        if (e->action != QR_JLOAD_PARAMETER)
            ops[count++] = (qr_jload_op){e->action, e->hops, e->slot, e->source};
    }
    *out = (qr_jscope){ops, count};
    QR_VEC_RELEASE(&s->entries);
    QR_VEC_RELEASE(&s->stores);
}

static void bind_name(binder *b, scope *s, qr_jnode *node)
{
    uint16_t hops = 0;
    entry *e = find_entry(s, node->name_id, &hops);
    if (e == NULL) {
        qr_jcompile_fail(b->compile, node->pos, "name '%.60s' has no scope", node->name->data);
        return;
    }
    e->used = true;
    node->hops = hops;
    node->slot = e->slot;
}

static void bind_call(binder *b, scope *s, const qr_jcall *call)
{
    for (uint32_t i = 0; i < call->count; i++)
        bind_node(b, s, call->positional[i]);
    for (uint32_t i = 0; i < call->keyword_count; i++)
        bind_node(b, s, call->keywords[i]);
    bind_node(b, s, call->star);
    bind_node(b, s, call->star_star);
}

static void bind_row(binder *b, const qr_jnode *node)
{
    if (node->row == NULL && !b->soft)
        qr_jcompile_fail(b->compile, node->pos, "No %s named '%.80s'.",
                         node->type == QR_JN_FILTER ? "filter" : "test", node->row_name->data);
}

static void bind_node(binder *b, scope *s, qr_jnode *node)
{
    if (node == NULL || b->compile->failed)
        return;
    bool soft = b->soft;
    switch ((qr_jnode_type)node->type) {
    case QR_JN_CONST: return;
    case QR_JN_NAME: bind_name(b, s, node); return;
    case QR_JN_TUPLE:
    case QR_JN_LIST:
    case QR_JN_DICT:
    case QR_JN_CONCAT:
    case QR_JN_ARITH:
    case QR_JN_AND:
    case QR_JN_OR:
    case QR_JN_COMPARE:
        for (uint32_t i = 0; i < node->count; i++)
            bind_node(b, s, node->items[i]);
        return;
    case QR_JN_COND:
        b->soft = true;
        /* fall through */
    case QR_JN_NOT:
    case QR_JN_NEG:
    case QR_JN_POS:
    case QR_JN_ITEM:
    case QR_JN_SLICE:
        bind_node(b, s, node->a);
        bind_node(b, s, node->b);
        bind_node(b, s, node->c);
        b->soft = soft;
        return;
    case QR_JN_ATTR: bind_node(b, s, node->object); return;
    case QR_JN_FILTER:
    case QR_JN_TEST:
        bind_row(b, node);
        /* fall through */
    case QR_JN_CALL:
        bind_node(b, s, node->callee);
        bind_call(b, s, node->call);
        return;
    case QR_JN_NSREF: bind_node(b, s, node->space); return;
    }
}

static bool names_loop(const qr_jnode *target)
{
    if (target->type == QR_JN_NAME)
        return qr_str_equals(*target->name, "loop");
    for (uint32_t i = 0; target->type == QR_JN_TUPLE && i < target->count; i++)
        if (names_loop(target->items[i]))
            return true;
    return false;
}

static void bind_loop_test(binder *b, scope *outer, function *f, qr_jstmt *stmt)
{
    scope s;
    scope_open(&s, outer, f);
    visit_node(&s, stmt->loop.test_target, true);
    visit_node(&s, stmt->loop.test, false);
    bind_node(b, &s, stmt->loop.test_target);
    bind_node(b, &s, stmt->loop.test);
    scope_close(b, &s, &stmt->loop.test_scope);
}

static void bind_loop_body(binder *b, scope *outer, function *f, qr_jstmt *stmt)
{
    scope s;
    scope_open(&s, outer, f);
    uint32_t loop = qr_jcompile_intern(b->compile, QR_STR("loop"));
    parameter(&s, loop);
    visit_node(&s, stmt->loop.target, true);
    visit_body(&s, &stmt->loop.body);
    bind_node(b, &s, stmt->loop.target);
    bind_body(b, &s, &stmt->loop.body, false);
    const entry *e = own_entry(&s, loop);
    stmt->loop.loop_slot = e->used || stmt->loop.func != NULL ? (int32_t)e->slot : -1;
    scope_close(b, &s, &stmt->loop.scope);
}

static void bind_for(binder *b, scope *outer, qr_jstmt *stmt)
{
    function own = {.outer = outer->function};
    function *f = stmt->loop.func != NULL ? &own : outer->function;
    if (names_loop(stmt->loop.target))
        qr_jcompile_fail(b->compile, stmt->pos, "Can't assign to special loop variable in for-loop target");
    bind_node(b, outer, stmt->loop.iter);
    bool soft = b->soft;
    b->soft = false;
    if (stmt->loop.test != NULL)
        bind_loop_test(b, outer, f, stmt);
    bind_loop_body(b, outer, f, stmt);
    scope s;
    scope_open(&s, outer, f);
    visit_body(&s, &stmt->loop.otherwise);
    bind_body(b, &s, &stmt->loop.otherwise, false);
    scope_close(b, &s, &stmt->loop.else_scope);
    b->soft = soft;
    if (stmt->loop.func != NULL)
        stmt->loop.func->slot_count = own.slot_count;
}

/* A parameter named like a special one of a macro is an ordinary parameter. */
static int32_t special_slot(binder *b, scope *s, const qr_jmacro_def *macro, const char *name)
{
    uint32_t id = qr_jcompile_intern(b->compile, qr_str_of(name));
    for (uint32_t i = 0; i < macro->param_count; i++)
        if (macro->params[i]->name_id == id)
            return -1;
    return (int32_t)parameter(s, id)->slot;
}

static void bind_explicit_caller(binder *b, qr_jmacro_def *macro)
{
    uint32_t first_default = macro->param_count - macro->default_count;
    for (uint32_t i = 0; i < macro->param_count; i++) {
        if (!qr_str_equals(*macro->params[i]->name, "caller"))
            continue;
        macro->explicit_caller = true;
        if (i < first_default)
            qr_jcompile_fail(b->compile, macro->params[i]->pos,
                             "When defining macros or call blocks the special "
                             "\"caller\" argument must be omitted or be given a default.");
    }
}

static int32_t used_slot(scope *s, binder *b, const char *name, int32_t slot)
{
    const entry *e = slot >= 0 ? own_entry(s, qr_jcompile_intern(b->compile, qr_str_of(name))) : NULL;
    return e != NULL && e->used ? slot : -1;
}

static void bind_macro(binder *b, scope *outer, qr_jmacro_def *macro)
{
    function own = {.outer = outer->function};
    scope s;
    scope_open(&s, outer, &own);
    bool soft = b->soft;
    b->soft = false;
    for (uint32_t i = 0; i < macro->param_count; i++)
        visit_node(&s, macro->params[i], true);
    macro->caller_slot = special_slot(b, &s, macro, "caller");
    macro->kwargs_slot = special_slot(b, &s, macro, "kwargs");
    macro->varargs_slot = special_slot(b, &s, macro, "varargs");
    for (uint32_t i = 0; i < macro->default_count; i++)
        visit_node(&s, macro->defaults[i], false);
    visit_body(&s, &macro->body);
    for (uint32_t i = 0; i < macro->param_count; i++)
        bind_node(b, &s, macro->params[i]);
    for (uint32_t i = 0; i < macro->default_count; i++)
        bind_node(b, &s, macro->defaults[i]);
    bind_body(b, &s, &macro->body, false);
    bind_explicit_caller(b, macro);
    macro->caller_slot = used_slot(&s, b, "caller", macro->caller_slot);
    macro->kwargs_slot = used_slot(&s, b, "kwargs", macro->kwargs_slot);
    macro->varargs_slot = used_slot(&s, b, "varargs", macro->varargs_slot);
    scope_close(b, &s, &macro->scope);
    macro->func.slot_count = own.slot_count;
    b->soft = soft;
}

/* Bodies of set, filter, with and generation blocks: a scope, in the same function. */
static void bind_block(binder *b, scope *outer, qr_jstmt *stmt)
{
    scope s;
    scope_open(&s, outer, outer->function);
    bool soft = b->soft;
    b->soft = false;
    for (uint32_t i = 0; i < stmt->set.with_count; i++) {
        bind_node(b, outer, stmt->set.values[i]);
        visit_node(&s, stmt->set.targets[i], true);
    }
    visit_body(&s, &stmt->set.body);
    visit_node(&s, stmt->set.value, false);
    bind_node(b, &s, stmt->set.value);
    for (uint32_t i = 0; i < stmt->set.with_count; i++)
        bind_node(b, &s, stmt->set.targets[i]);
    bind_body(b, &s, &stmt->set.body, false);
    scope_close(b, &s, &stmt->set.scope);
    b->soft = soft;
}

static void bind_if(binder *b, scope *s, qr_jstmt *stmt, bool toplevel)
{
    bool soft = b->soft;
    b->soft = true;
    for (uint32_t i = 0; i < stmt->branch_count; i++) {
        bind_node(b, s, stmt->branches[i].test);
        bind_body(b, s, &stmt->branches[i].body, toplevel);
    }
    b->soft = soft;
}

static void bind_stmt(binder *b, scope *s, qr_jstmt *stmt, bool toplevel)
{
    stmt->toplevel = toplevel;
    switch ((qr_jstmt_type)stmt->type) {
    case QR_JS_OUTPUT: bind_node(b, s, stmt->output); return;
    case QR_JS_IF: bind_if(b, s, stmt, toplevel); return;
    case QR_JS_FOR: bind_for(b, s, stmt); return;
    case QR_JS_SET:
        bind_node(b, s, stmt->set.value);
        bind_node(b, s, stmt->set.target);
        return;
    case QR_JS_SET_BLOCK:
        bind_node(b, s, stmt->set.target);
        bind_block(b, s, stmt);
        return;
    case QR_JS_FILTER_BLOCK:
    case QR_JS_SCOPE:
    case QR_JS_WITH: bind_block(b, s, stmt); return;
    case QR_JS_MACRO:
        bind_node(b, s, stmt->set.target);
        bind_macro(b, s, stmt->set.macro);
        return;
    case QR_JS_CALL_BLOCK:
        bind_node(b, s, stmt->set.value);
        bind_macro(b, s, stmt->set.macro);
        return;
    case QR_JS_DATA:
    case QR_JS_BREAK:
    case QR_JS_CONTINUE: return;
    }
}

static void bind_body(binder *b, scope *s, const qr_jbody *body, bool toplevel)
{
    for (qr_jstmt *stmt = body->first; stmt != NULL && !b->compile->failed; stmt = stmt->next)
        bind_stmt(b, s, stmt, toplevel);
}

void qr_jscope_bind(qr_jcompile *compile, qr_jbody body)
{
    binder b = {.compile = compile};
    function root = {0};
    scope s;
    scope_open(&s, NULL, &root);
    visit_body(&s, &body);
    bind_body(&b, &s, &body, true);
    scope_close(&b, &s, &compile->jinja->scope);
    compile->jinja->root.slot_count = root.slot_count;
}
