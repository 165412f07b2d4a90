/* Statements of a template. Bodies nest at most NESTING_MAX deep. */
#include <string.h>

#include "base/mem.h"
#include "base/vec.h"
#include "text/jinja_tree.h"

enum { NESTING_MAX = 120 };

static qr_jbody parse_body(qr_jcompile *p, const char *const *until);

static qr_jstmt *stmt_new(qr_jcompile *p, qr_jstmt_type type, uint32_t pos)
{
    qr_jstmt *stmt = qr_jcompile_alloc(p, sizeof(*stmt));
    stmt->type = (uint8_t)type;
    stmt->pos = pos;
    stmt->depth = 1;
    return stmt;
}

static void adopt(qr_jstmt *stmt, uint16_t depth)
{
    if (depth >= stmt->depth)
        stmt->depth = (uint16_t)(depth + 1);
}

static void adopt_node(qr_jstmt *stmt, const qr_jnode *node)
{
    if (node != NULL)
        adopt(stmt, node->depth);
}

/* ---- One statement each; the keyword is already read ---- */

static qr_jstmt *parse_for(qr_jcompile *p, uint32_t pos)
{
    static const char *const ends[] = {"endfor", "else", NULL}, *const last[] = {"endfor", NULL};
    qr_jstmt *stmt = stmt_new(p, QR_JS_FOR, pos);
    size_t from = p->at;
    stmt->loop.target = qr_jparse_target(p, "in", false);
    if (!qr_jparse_skip_name(p, "in"))
        qr_jcompile_fail(p, qr_jparse_peek(p)->pos, "expected 'in'");
    stmt->loop.iter = qr_jparse_tuple(p, false, false, "recursive", false, false);
    stmt->loop.loop_slot = -1;
    if (qr_jparse_skip_name(p, "if")) {
        stmt->loop.test = qr_jparse_expression(p, true);
        size_t here = p->at;
        p->at = from; /* the test has names of its own: read the target once more for it */
        if (!p->failed)
            stmt->loop.test_target = qr_jparse_target(p, "in", false);
        p->at = p->failed ? p->at : here;
    }
    if (qr_jparse_skip_name(p, "recursive"))
        stmt->loop.func = qr_jcompile_alloc(p, sizeof(qr_jfunc));
    qr_jparse_expect(p, QR_JT_BLOCK_END);
    p->loops++;
    stmt->loop.body = parse_body(p, ends);
    p->loops--;
    if (qr_jparse_skip_name(p, "else")) {
        qr_jparse_expect(p, QR_JT_BLOCK_END);
        stmt->loop.has_else = true;
        stmt->loop.otherwise = parse_body(p, last);
    }
    qr_jparse_skip_name(p, "endfor");
    adopt_node(stmt, stmt->loop.target);
    adopt_node(stmt, stmt->loop.iter);
    adopt_node(stmt, stmt->loop.test);
    adopt(stmt, stmt->loop.body.depth);
    adopt(stmt, stmt->loop.otherwise.depth);
    return stmt;
}

static qr_jstmt *parse_if(qr_jcompile *p, uint32_t pos)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL}, *const last[] = {"endif", NULL};
    qr_jstmt *stmt = stmt_new(p, QR_JS_IF, pos);
    QR_VEC(qr_jbranch) branches = {0};
    do {
        qr_jbranch branch = {.test = qr_jparse_tuple(p, false, false, NULL, false, false)};
        qr_jparse_expect(p, QR_JT_BLOCK_END);
        branch.body = parse_body(p, ends);
        QR_VEC_PUSH(&branches, branch);
    } while (!p->failed && qr_jparse_skip_name(p, "elif"));
    if (qr_jparse_skip_name(p, "else")) {
        qr_jparse_expect(p, QR_JT_BLOCK_END);
        qr_jbranch branch = {.body = parse_body(p, last)};
        QR_VEC_PUSH(&branches, branch);
    }
    qr_jparse_skip_name(p, "endif");
    stmt->branch_count = (uint32_t)branches.count;
    stmt->branches = qr_jcompile_alloc(p, branches.count * sizeof(qr_jbranch));
    for (size_t i = 0; i < branches.count; i++) {
        stmt->branches[i] = branches.data[i];
        adopt_node(stmt, branches.data[i].test);
        adopt(stmt, branches.data[i].body.depth);
    }
    QR_VEC_RELEASE(&branches);
    return stmt;
}

static void parse_set_body(qr_jcompile *p, qr_jstmt *stmt, const char *end)
{
    const char *const ends[] = {end, NULL};
    qr_jparse_expect(p, QR_JT_BLOCK_END);
    stmt->set.body = parse_body(p, ends);
    qr_jparse_skip_name(p, end);
    adopt(stmt, stmt->set.body.depth);
}

static qr_jstmt *parse_set(qr_jcompile *p, uint32_t pos)
{
    qr_jstmt *stmt = stmt_new(p, QR_JS_SET, pos);
    stmt->set.target = qr_jparse_target(p, NULL, true);
    if (qr_jparse_skip(p, QR_JT_ASSIGN)) {
        stmt->set.value = qr_jparse_tuple(p, false, true, NULL, false, false);
    } else {
        stmt->type = QR_JS_SET_BLOCK;
        stmt->set.value = qr_jparse_filters(p, NULL, false);
        parse_set_body(p, stmt, "endset");
    }
    adopt_node(stmt, stmt->set.target);
    adopt_node(stmt, stmt->set.value);
    return stmt;
}

static qr_jstmt *parse_filter_block(qr_jcompile *p, uint32_t pos)
{
    qr_jstmt *stmt = stmt_new(p, QR_JS_FILTER_BLOCK, pos);
    stmt->set.value = qr_jparse_filters(p, NULL, true);
    parse_set_body(p, stmt, "endfilter");
    adopt_node(stmt, stmt->set.value);
    return stmt;
}

static qr_jstmt *parse_with(qr_jcompile *p, uint32_t pos)
{
    qr_jstmt *stmt = stmt_new(p, QR_JS_WITH, pos);
    QR_VEC(qr_jnode *) pairs = {0};
    while (qr_jparse_peek(p)->type != QR_JT_BLOCK_END && !p->failed) {
        if (pairs.count > 0)
            qr_jparse_expect(p, QR_JT_COMMA);
        /* one name or a parenthesised tuple: a bare comma parts two assignments */
        qr_jnode *target = qr_jparse_target(p, "=", false);
        QR_VEC_PUSH(&pairs, target);
        qr_jparse_expect(p, QR_JT_ASSIGN);
        QR_VEC_PUSH(&pairs, qr_jparse_expression(p, true));
    }
    stmt->set.with_count = (uint32_t)(pairs.count / 2);
    stmt->set.targets = qr_jcompile_alloc(p, (pairs.count / 2 + 1) * sizeof(qr_jnode *));
    stmt->set.values = qr_jcompile_alloc(p, (pairs.count / 2 + 1) * sizeof(qr_jnode *));
    for (size_t i = 0; i + 1 < pairs.count; i += 2) {
        stmt->set.targets[i / 2] = pairs.data[i];
        stmt->set.values[i / 2] = pairs.data[i + 1];
        adopt_node(stmt, pairs.data[i + 1]);
    }
    QR_VEC_RELEASE(&pairs);
    parse_set_body(p, stmt, "endwith");
    return stmt;
}

static void parse_signature(qr_jcompile *p, qr_jmacro_def *macro)
{
    QR_VEC(qr_jnode *) params = {0};
    QR_VEC(qr_jnode *) defaults = {0};
    qr_jparse_expect(p, QR_JT_LPAREN);
    while (qr_jparse_peek(p)->type != QR_JT_RPAREN && !p->failed) {
        if (params.count > 0)
            qr_jparse_expect(p, QR_JT_COMMA);
        const qr_jtoken *token = qr_jparse_expect(p, QR_JT_NAME);
        qr_jnode *param = qr_jnode_new(p, QR_JN_NAME, token->pos);
        param->name_id = qr_jcompile_intern(p, p->failed ? QR_STR("x") : token->text);
        param->name = qr_jcompile_name(p, param->name_id);
        param->store = true;
        for (size_t i = 0; i < params.count; i++)
            if (params.data[i]->name_id == param->name_id)
                qr_jcompile_fail(p, token->pos, "duplicate argument '%.60s' in function definition",
                                 param->name->data);
        if (qr_jparse_skip(p, QR_JT_ASSIGN))
            QR_VEC_PUSH(&defaults, qr_jparse_expression(p, true));
        else if (defaults.count > 0)
            qr_jcompile_fail(p, token->pos, "non-default argument follows default argument");
        QR_VEC_PUSH(&params, param);
    }
    qr_jparse_expect(p, QR_JT_RPAREN);
    macro->param_count = (uint32_t)params.count;
    macro->default_count = (uint32_t)defaults.count;
    macro->params = qr_jcompile_alloc(p, (params.count + 1) * sizeof(qr_jnode *));
    macro->defaults = qr_jcompile_alloc(p, (defaults.count + 1) * sizeof(qr_jnode *));
    for (size_t i = 0; i < params.count; i++)
        macro->params[i] = params.data[i];
    for (size_t i = 0; i < defaults.count; i++)
        macro->defaults[i] = defaults.data[i];
    QR_VEC_RELEASE(&params);
    QR_VEC_RELEASE(&defaults);
}

static void parse_macro_body(qr_jcompile *p, qr_jstmt *stmt, const char *end)
{
    qr_jmacro_def *macro = stmt->set.macro;
    const char *const ends[] = {end, NULL};
    int loops = p->loops;
    p->loops = 0;
    qr_jparse_expect(p, QR_JT_BLOCK_END);
    macro->body = parse_body(p, ends);
    qr_jparse_skip_name(p, end);
    p->loops = loops;
    adopt(stmt, macro->body.depth);
    for (uint32_t i = 0; i < macro->default_count; i++)
        adopt_node(stmt, macro->defaults[i]);
}

static qr_jstmt *parse_macro(qr_jcompile *p, uint32_t pos)
{
    qr_jstmt *stmt = stmt_new(p, QR_JS_MACRO, pos);
    stmt->set.macro = qr_jcompile_alloc(p, sizeof(qr_jmacro_def));
    const qr_jtoken *token = qr_jparse_expect(p, QR_JT_NAME);
    if (p->failed)
        return stmt;
    qr_jnode *name = qr_jnode_new(p, QR_JN_NAME, token->pos);
    name->name_id = qr_jcompile_intern(p, token->text);
    name->name = qr_jcompile_name(p, name->name_id);
    name->store = true;
    stmt->set.target = name;
    stmt->set.macro->name = name->name;
    parse_signature(p, stmt->set.macro);
    parse_macro_body(p, stmt, "endmacro");
    return stmt;
}

static qr_jstmt *parse_call_block(qr_jcompile *p, uint32_t pos)
{
    qr_jstmt *stmt = stmt_new(p, QR_JS_CALL_BLOCK, pos);
    stmt->set.macro = qr_jcompile_alloc(p, sizeof(qr_jmacro_def));
    if (qr_jparse_peek(p)->type == QR_JT_LPAREN)
        parse_signature(p, stmt->set.macro);
    stmt->set.value = qr_jparse_expression(p, true);
    if (stmt->set.value->type != QR_JN_CALL)
        qr_jcompile_fail(p, pos, "expected call");
    adopt_node(stmt, stmt->set.value);
    parse_macro_body(p, stmt, "endcall");
    return stmt;
}

/* `generation` (transformers marks the assistant's text with it) renders its body. */
static qr_jstmt *parse_scope(qr_jcompile *p, uint32_t pos, const char *end)
{
    qr_jstmt *stmt = stmt_new(p, QR_JS_SCOPE, pos);
    int loops = p->loops;
    p->loops = 0; /* the body is a function of its own in Jinja2: no break out of it */
    parse_set_body(p, stmt, end);
    p->loops = loops;
    return stmt;
}

static qr_jstmt *parse_jump(qr_jcompile *p, uint32_t pos, bool is_break)
{
    if (p->loops == 0)
        qr_jcompile_fail(p, pos, "'%s' outside loop", is_break ? "break" : "continue");
    return stmt_new(p, is_break ? QR_JS_BREAK : QR_JS_CONTINUE, pos);
}

static qr_jstmt *parse_print(qr_jcompile *p, uint32_t pos)
{
    qr_jstmt *first = NULL, **link = &first;
    do {
        qr_jstmt *stmt = stmt_new(p, QR_JS_OUTPUT, pos);
        stmt->output = qr_jparse_expression(p, true);
        adopt_node(stmt, stmt->output);
        *link = stmt;
        link = &stmt->next;
    } while (qr_jparse_skip(p, QR_JT_COMMA) && !p->failed);
    return first;
}

static void parse_autoescape(qr_jcompile *p, uint32_t pos)
{
    const qr_jnode *value = qr_jparse_expression(p, true);
    if (value->type != QR_JN_CONST || value->value.kind != QR_JV_BOOL || value->value.i != 0)
        qr_jcompile_fail(p, pos, "autoescape is not supported");
}

static qr_jstmt *parse_other(qr_jcompile *p, const qr_jtoken *token)
{
    static const char *const loaders[] = {"extends", "include", "import", "from", "trans", "do", "debug"};
    qr_str name = token->text;
    if (qr_str_equals(name, "autoescape")) {
        parse_autoescape(p, token->pos);
        return parse_scope(p, token->pos, "endautoescape");
    }
    if (qr_str_equals(name, "block")) {
        qr_jparse_expect(p, QR_JT_NAME);
        qr_jparse_skip_name(p, "scoped");
        qr_jstmt *stmt = parse_scope(p, token->pos, "endblock");
        qr_jparse_skip(p, QR_JT_NAME);
        return stmt;
    }
    for (size_t i = 0; i < QR_COUNT_OF(loaders); i++)
        if (qr_str_equals(name, loaders[i]))
            qr_jcompile_fail(p, token->pos, "'%s' is not supported: a chat template stands alone",
                             loaders[i]);
    qr_jcompile_fail(p, token->pos, "Encountered unknown tag '%.*s'.", (int)QR_MIN(name.len, 60), name.data);
    return NULL;
}

static qr_jstmt *parse_statement(qr_jcompile *p)
{
    const qr_jtoken *token = qr_jparse_expect(p, QR_JT_NAME);
    qr_str name = token->text;
    uint32_t pos = token->pos;
    if (p->failed)
        return NULL;
    if (qr_str_equals(name, "if"))
        return parse_if(p, pos);
    if (qr_str_equals(name, "for"))
        return parse_for(p, pos);
    if (qr_str_equals(name, "set"))
        return parse_set(p, pos);
    if (qr_str_equals(name, "macro"))
        return parse_macro(p, pos);
    if (qr_str_equals(name, "call"))
        return parse_call_block(p, pos);
    if (qr_str_equals(name, "filter"))
        return parse_filter_block(p, pos);
    if (qr_str_equals(name, "with"))
        return parse_with(p, pos);
    if (qr_str_equals(name, "print"))
        return parse_print(p, pos);
    if (qr_str_equals(name, "generation"))
        return parse_scope(p, pos, "endgeneration");
    if (qr_str_equals(name, "break") || qr_str_equals(name, "continue"))
        return parse_jump(p, pos, qr_str_equals(name, "break"));
    return parse_other(p, token);
}

/* ---- Bodies ---- */

static bool ends_here(const qr_jcompile *p, const char *const *until)
{
    for (; until != NULL && *until != NULL; until++)
        if (qr_jparse_is_name(p, *until))
            return true;
    return false;
}

static qr_jstmt *parse_output(qr_jcompile *p)
{
    qr_jstmt *stmt = stmt_new(p, QR_JS_OUTPUT, qr_jparse_peek(p)->pos);
    p->at++;
    stmt->output = qr_jparse_tuple(p, false, true, NULL, false, false);
    adopt_node(stmt, stmt->output);
    qr_jparse_expect(p, QR_JT_VARIABLE_END);
    return stmt;
}

static qr_jstmt *parse_data(qr_jcompile *p)
{
    const qr_jtoken *token = qr_jparse_peek(p);
    qr_jstmt *stmt = stmt_new(p, QR_JS_DATA, token->pos);
    stmt->text = token->text;
    p->at++;
    return stmt;
}

static void parse_items(qr_jcompile *p, const char *const *until, qr_jbody *body)
{
    qr_jstmt **link = &body->first;
    while (!p->failed) {
        const qr_jtoken *token = qr_jparse_peek(p);
        qr_jstmt *stmt = NULL;
        if (token->type == QR_JT_DATA) {
            stmt = parse_data(p);
        } else if (token->type == QR_JT_VARIABLE_BEGIN) {
            stmt = parse_output(p);
        } else if (token->type == QR_JT_BLOCK_BEGIN) {
            p->at++;
            if (ends_here(p, until))
                return;
            stmt = parse_statement(p);
            qr_jparse_expect(p, QR_JT_BLOCK_END);
        } else {
            if (until != NULL)
                qr_jcompile_fail(p, token->pos, "Unexpected end of template. Jinja was looking for '%s'.",
                                 until[0]);
            return;
        }
        for (*link = stmt; stmt != NULL; stmt = stmt->next) {
            link = &stmt->next;
            body->depth = QR_MAX(body->depth, stmt->depth);
        }
    }
}

/* Reads statements up to a tag whose name is in `until` (the name is not read), or to the end for NULL. */
static qr_jbody parse_body(qr_jcompile *p, const char *const *until)
{
    qr_jbody body = {0};
    if (++p->nesting > NESTING_MAX)
        qr_jcompile_fail(p, qr_jparse_peek(p)->pos, "nested deeper than %d", NESTING_MAX);
    else
        parse_items(p, until, &body);
    p->nesting--;
    return body;
}

qr_jbody qr_jparse_template(qr_jcompile *p)
{
    qr_jbody body = parse_body(p, NULL);
    return body;
}
