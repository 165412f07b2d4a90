/* Whether a template walks over the parts of a message's content, so that content may stay a list: it has a loop
 * over x.content, x['content'], or a variable or macro parameter that holds it. */
#include "base/mem.h"
#include "text/jinja_run.h"

typedef struct inspector {
    const qr_jinja *jinja;
    bool *holds; /* by name id: a variable that holds content */
    bool found;
} inspector;

static bool is_content(const inspector *in, const qr_jnode *node)
{
    if (node == NULL)
        return false;
    switch ((qr_jnode_type)node->type) {
    case QR_JN_NAME: return in->holds[node->name_id];
    case QR_JN_ATTR: return qr_str_equals(qr_str_make(node->attr, node->attr_len), "content");
    case QR_JN_ITEM:
        if (node->b->type == QR_JN_SLICE)
            return is_content(in, node->a);
        return node->b->type == QR_JN_CONST && node->b->value.kind == QR_JV_STRING &&
               qr_str_equals(qr_jv_slice(node->b->value), "content");
    case QR_JN_FILTER: return is_content(in, node->callee);
    case QR_JN_COND: return is_content(in, node->a) || is_content(in, node->c);
    case QR_JN_OR:
    case QR_JN_AND:
        for (uint32_t i = 0; i < node->count; i++)
            if (is_content(in, node->items[i]))
                return true;
        return false;
    default: return false;
    }
}

static void inspect_body(inspector *in, const qr_jbody *body);

static void inspect_macro(inspector *in, const qr_jmacro_def *macro)
{
    for (uint32_t i = 0; i < macro->param_count; i++)
        if (qr_str_equals(*macro->params[i]->name, "content"))
            in->holds[macro->params[i]->name_id] = true;
    inspect_body(in, &macro->body);
}

static void inspect_stmt(inspector *in, const qr_jstmt *stmt)
{
    switch ((qr_jstmt_type)stmt->type) {
    case QR_JS_IF:
        for (uint32_t i = 0; i < stmt->branch_count; i++)
            inspect_body(in, &stmt->branches[i].body);
        return;
    case QR_JS_FOR:
        in->found = in->found || is_content(in, stmt->loop.iter);
        inspect_body(in, &stmt->loop.body);
        inspect_body(in, &stmt->loop.otherwise);
        return;
    case QR_JS_SET:
        if (stmt->set.target->type == QR_JN_NAME && is_content(in, stmt->set.value))
            in->holds[stmt->set.target->name_id] = true;
        return;
    case QR_JS_MACRO:
    case QR_JS_CALL_BLOCK: inspect_macro(in, stmt->set.macro); return;
    case QR_JS_SET_BLOCK:
    case QR_JS_FILTER_BLOCK:
    case QR_JS_SCOPE:
    case QR_JS_WITH: inspect_body(in, &stmt->set.body); return;
    case QR_JS_DATA:
    case QR_JS_OUTPUT:
    case QR_JS_BREAK:
    case QR_JS_CONTINUE: return;
    }
}

static void inspect_body(inspector *in, const qr_jbody *body)
{
    for (const qr_jstmt *stmt = body->first; stmt != NULL; stmt = stmt->next)
        inspect_stmt(in, stmt);
}

static bool asks_for_type(qr_str source)
{
    static const char *const tests[] = {"is string",   "is not string",   "is iterable", "is not iterable",
                                        "is sequence", "is not sequence", "is mapping",  "is not mapping"};
    for (size_t i = 0; i < QR_COUNT_OF(tests); i++)
        if (qr_str_find(source, qr_str_of(tests[i]), 0) >= 0)
            return true;
    return false;
}

void qr_jinja_inspect(qr_jinja *jinja)
{
    inspector in = {.jinja = jinja, .holds = qr_calloc(jinja->name_count + 1, sizeof(bool))};
    inspect_body(&in, &jinja->body);
    jinja->takes_parts = in.found;
    jinja->only_parts = in.found && !asks_for_type(jinja->source);
    qr_free(in.holds);
}

bool qr_jinja_takes_parts(const qr_jinja *jinja, bool *only)
{
    if (only != NULL)
        *only = jinja->only_parts;
    return jinja->takes_parts;
}
