/* Expressions, with the precedence and the quirks of Jinja2's parser. Recursion is bounded by NESTING_MAX, and
 * the height of the tree by DEPTH_MAX; chains of operators are flat nodes. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/vec.h"
#include "text/jinja_run.h"

enum { NESTING_MAX = 200, DEPTH_MAX = 400 };

typedef QR_VEC(qr_jnode *) node_list;
typedef QR_VEC(uint8_t) op_list;

static qr_jnode *parse_unary(qr_jcompile *p, bool with_filter);
static qr_jnode *parse_or(qr_jcompile *p);

qr_jnode *qr_jnode_new(qr_jcompile *p, qr_jnode_type type, uint32_t pos)
{
    qr_jnode *node = qr_jcompile_alloc(p, sizeof(*node));
    node->type = (uint8_t)type;
    node->pos = pos;
    node->depth = 1;
    return node;
}

void qr_jnode_adopt(qr_jnode *parent, const qr_jnode *child)
{
    if (child != NULL && child->depth >= parent->depth)
        parent->depth = (uint16_t)(child->depth + 1);
}

static qr_jnode *const_node(qr_jcompile *p, uint32_t pos, qr_jv value)
{
    qr_jnode *node = qr_jnode_new(p, QR_JN_CONST, pos);
    node->value = value;
    return node;
}

static bool too_deep(qr_jcompile *p, const qr_jnode *node)
{
    if (node->depth > DEPTH_MAX)
        qr_jcompile_fail(p, node->pos, "expression nested deeper than %d", DEPTH_MAX);
    return p->failed;
}

/* ---- Tokens ---- */

const qr_jtoken *qr_jparse_peek(const qr_jcompile *p) { return &p->tokens.data[p->at]; }

static const qr_jtoken *next(qr_jcompile *p)
{
    const qr_jtoken *token = qr_jparse_peek(p);
    if (token->type != QR_JT_EOF)
        p->at++;
    return token;
}

static qr_jtok type_of(const qr_jcompile *p) { return (qr_jtok)qr_jparse_peek(p)->type; }
static uint32_t pos_of(const qr_jcompile *p) { return qr_jparse_peek(p)->pos; }

bool qr_jparse_is_name(const qr_jcompile *p, const char *name)
{
    const qr_jtoken *token = qr_jparse_peek(p);
    return token->type == QR_JT_NAME && qr_str_equals(token->text, name);
}

bool qr_jparse_skip_name(qr_jcompile *p, const char *name)
{
    if (!qr_jparse_is_name(p, name))
        return false;
    p->at++;
    return true;
}

bool qr_jparse_skip(qr_jcompile *p, qr_jtok type)
{
    if (type_of(p) != type)
        return false;
    next(p);
    return true;
}

static const char *type_words(qr_jtok type)
{
    static const char *const words[] = {
        [QR_JT_DATA] = "template data / text",
        [QR_JT_VARIABLE_BEGIN] = "begin of print statement",
        [QR_JT_VARIABLE_END] = "end of print statement",
        [QR_JT_BLOCK_BEGIN] = "begin of statement block",
        [QR_JT_BLOCK_END] = "end of statement block",
        [QR_JT_NAME] = "name",
        [QR_JT_STRING] = "string",
        [QR_JT_INTEGER] = "integer",
        [QR_JT_FLOAT] = "float",
        [QR_JT_EOF] = "end of template",
        [QR_JT_LPAREN] = "(",
        [QR_JT_RPAREN] = ")",
        [QR_JT_LBRACKET] = "[",
        [QR_JT_RBRACKET] = "]",
        [QR_JT_LBRACE] = "{",
        [QR_JT_RBRACE] = "}",
        [QR_JT_ASSIGN] = "=",
        [QR_JT_COLON] = ":",
        [QR_JT_COMMA] = ",",
        [QR_JT_DOT] = ".",
    };
    return type < QR_COUNT_OF(words) && words[type] != NULL ? words[type] : "operator";
}

const char *qr_jtoken_describe(const qr_jtoken *token, char buffer[64])
{
    qr_str text = token->type == QR_JT_NAME || token->type >= QR_JT_ADD ? token->text : QR_STR("");
    if (text.len == 0)
        return type_words((qr_jtok)token->type);
    snprintf(buffer, 64, "%.*s", (int)qr_jtext_offset(text, 15), text.data);
    return buffer;
}

const qr_jtoken *qr_jparse_expect(qr_jcompile *p, qr_jtok type)
{
    const qr_jtoken *token = qr_jparse_peek(p);
    char buffer[64];
    if (token->type == type)
        return next(p);
    if (token->type == QR_JT_EOF)
        qr_jcompile_fail(p, token->pos, "unexpected end of template, expected '%s'", type_words(type));
    else
        qr_jcompile_fail(p, token->pos, "expected token '%s', got '%s'", type_words(type),
                         qr_jtoken_describe(token, buffer));
    return token;
}

static qr_jnode *unexpected(qr_jcompile *p, const qr_jtoken *token)
{
    char buffer[64];
    qr_jcompile_fail(p, token->pos, "unexpected '%s'", qr_jtoken_describe(token, buffer));
    return const_node(p, token->pos, qr_jv_none());
}

/* ---- Lists of nodes ---- */

static qr_jnode **keep_nodes(qr_jcompile *p, node_list *list, uint32_t *count)
{
    qr_jnode **nodes = qr_jcompile_alloc(p, (list->count + 1) * sizeof(qr_jnode *));
    if (list->count > 0)
        memcpy(nodes, list->data, list->count * sizeof(qr_jnode *));
    *count = (uint32_t)list->count;
    QR_VEC_RELEASE(list);
    return nodes;
}

static qr_jnode *list_node(qr_jcompile *p, qr_jnode_type type, uint32_t pos, node_list *list)
{
    qr_jnode *node = qr_jnode_new(p, type, pos);
    for (size_t i = 0; i < list->count; i++)
        qr_jnode_adopt(node, list->data[i]);
    node->items = keep_nodes(p, list, &node->count);
    too_deep(p, node);
    return node;
}

static qr_jnode *chain_node(qr_jcompile *p, qr_jnode_type type, uint32_t pos, node_list *list, op_list *ops)
{
    uint8_t *kept = qr_jcompile_alloc(p, ops->count + 1);
    if (ops->count > 0)
        memcpy(kept, ops->data, ops->count);
    QR_VEC_RELEASE(ops);
    qr_jnode *node = list_node(p, type, pos, list);
    node->ops = kept;
    return node;
}

/* ---- Primaries ---- */

static qr_jnode *parse_integer(qr_jcompile *p, const qr_jtoken *token)
{
    char digits[96];
    size_t len = 0;
    for (size_t i = 0; i < token->text.len && len < sizeof(digits) - 1; i++)
        if (token->text.data[i] != '_')
            digits[len++] = token->text.data[i];
    digits[len] = '\0';
    char kind = len > 1 && digits[0] == '0' ? (char)(digits[1] | 32) : '\0';
    int radix = kind == 'b' ? 2 : kind == 'o' ? 8 : kind == 'x' ? 16 : 10;
    errno = 0;
    long long value = strtoll(digits + (radix != 10 ? 2 : 0), NULL, radix);
    if (errno != 0 || len == sizeof(digits) - 1)
        qr_jcompile_fail(p, token->pos, "integers beyond 64 bits are not supported: %.40s", digits);
    return const_node(p, token->pos, qr_jv_int(value));
}

static qr_jnode *parse_float(qr_jcompile *p, const qr_jtoken *token)
{
    char digits[400];
    size_t len = 0;
    for (size_t i = 0; i < token->text.len && len < sizeof(digits) - 1; i++)
        if (token->text.data[i] != '_')
            digits[len++] = token->text.data[i];
    digits[len] = '\0';
    if (len == sizeof(digits) - 1)
        qr_jcompile_fail(p, token->pos, "float literal of more than %zu digits", len);
    return const_node(p, token->pos, qr_jv_float(strtod(digits, NULL)));
}

static qr_jnode *parse_strings(qr_jcompile *p)
{
    const qr_jtoken *first = next(p);
    size_t len = first->text.len;
    size_t from = p->at;
    while (type_of(p) == QR_JT_STRING)
        len += next(p)->text.len;
    if (p->at == from)
        return const_node(p, first->pos, qr_jv_str(first->text));
    char *text = qr_jcompile_alloc(p, len + 1), *end = text;
    for (const qr_jtoken *token = first; token < &p->tokens.data[p->at]; token++) {
        memcpy(end, token->text.data, token->text.len);
        end += token->text.len;
    }
    return const_node(p, first->pos, qr_jv_str(qr_str_make(text, len)));
}

static qr_jnode *parse_list(qr_jcompile *p)
{
    uint32_t pos = next(p)->pos;
    node_list items = {0};
    while (type_of(p) != QR_JT_RBRACKET && !p->failed) {
        if (items.count > 0)
            qr_jparse_expect(p, QR_JT_COMMA);
        if (type_of(p) == QR_JT_RBRACKET)
            break;
        QR_VEC_PUSH(&items, qr_jparse_expression(p, true));
    }
    qr_jparse_expect(p, QR_JT_RBRACKET);
    return list_node(p, QR_JN_LIST, pos, &items);
}

static qr_jnode *parse_dict(qr_jcompile *p)
{
    uint32_t pos = next(p)->pos;
    node_list items = {0};
    while (type_of(p) != QR_JT_RBRACE && !p->failed) {
        if (items.count > 0)
            qr_jparse_expect(p, QR_JT_COMMA);
        if (type_of(p) == QR_JT_RBRACE)
            break;
        QR_VEC_PUSH(&items, qr_jparse_expression(p, true));
        qr_jparse_expect(p, QR_JT_COLON);
        QR_VEC_PUSH(&items, qr_jparse_expression(p, true));
    }
    qr_jparse_expect(p, QR_JT_RBRACE);
    return list_node(p, QR_JN_DICT, pos, &items);
}

static qr_jnode *name_node(qr_jcompile *p, uint32_t pos, qr_str name, bool store)
{
    qr_jnode *node = qr_jnode_new(p, QR_JN_NAME, pos);
    node->name_id = qr_jcompile_intern(p, name);
    node->name = qr_jcompile_name(p, node->name_id);
    node->store = store;
    return node;
}

static qr_jnode *parse_name(qr_jcompile *p, bool with_namespace)
{
    const qr_jtoken *token = next(p);
    qr_str name = token->text;
    if (qr_str_equals(name, "true") || qr_str_equals(name, "True"))
        return const_node(p, token->pos, qr_jv_bool(true));
    if (qr_str_equals(name, "false") || qr_str_equals(name, "False"))
        return const_node(p, token->pos, qr_jv_bool(false));
    if (qr_str_equals(name, "none") || qr_str_equals(name, "None"))
        return const_node(p, token->pos, qr_jv_none());
    qr_jnode *node = name_node(p, token->pos, name, false);
    if (!with_namespace || !qr_jparse_skip(p, QR_JT_DOT))
        return node;
    qr_jnode *reference = qr_jnode_new(p, QR_JN_NSREF, token->pos);
    reference->space = node;
    reference->key = qr_jcompile_name(p, qr_jcompile_intern(p, qr_jparse_expect(p, QR_JT_NAME)->text));
    return reference;
}

static qr_jnode *parse_primary(qr_jcompile *p, bool with_namespace)
{
    const qr_jtoken *token = qr_jparse_peek(p);
    switch (token->type) {
    case QR_JT_NAME: return parse_name(p, with_namespace);
    case QR_JT_STRING: return parse_strings(p);
    case QR_JT_INTEGER: return parse_integer(p, next(p));
    case QR_JT_FLOAT: return parse_float(p, next(p));
    case QR_JT_LPAREN: {
        next(p);
        qr_jnode *node = qr_jparse_tuple(p, false, true, NULL, true, false);
        qr_jparse_expect(p, QR_JT_RPAREN);
        return node;
    }
    case QR_JT_LBRACKET: return parse_list(p);
    case QR_JT_LBRACE: return parse_dict(p);
    default: return unexpected(p, token);
    }
}

/* ---- Postfix: attributes, subscripts, calls, filters, tests ---- */

static bool call_order(qr_jcompile *p, uint32_t pos, bool ok)
{
    if (!ok)
        qr_jcompile_fail(p, pos, "invalid syntax for function call expression");
    return ok;
}

typedef struct call_lists {
    node_list positional, keywords;
    QR_VEC(qr_str) names;
} call_lists;

static void parse_argument(qr_jcompile *p, qr_jcall *call, call_lists *lists)
{
    uint32_t pos = pos_of(p);
    if (qr_jparse_skip(p, QR_JT_MUL)) {
        if (call_order(p, pos, call->star == NULL && call->star_star == NULL))
            call->star = qr_jparse_expression(p, true);
    } else if (qr_jparse_skip(p, QR_JT_POW)) {
        if (call_order(p, pos, call->star_star == NULL))
            call->star_star = qr_jparse_expression(p, true);
    } else if (type_of(p) == QR_JT_NAME && p->tokens.data[p->at + 1].type == QR_JT_ASSIGN) {
        call_order(p, pos, call->star_star == NULL);
        qr_str name = *qr_jcompile_name(p, qr_jcompile_intern(p, next(p)->text));
        for (size_t i = 0; i < lists->names.count; i++)
            if (lists->names.data[i].data == name.data)
                qr_jcompile_fail(p, pos, "keyword argument repeated: %.*s", (int)QR_MIN(name.len, 60),
                                 name.data);
        next(p);
        QR_VEC_PUSH(&lists->names, name);
        QR_VEC_PUSH(&lists->keywords, qr_jparse_expression(p, true));
    } else {
        call_order(p, pos, call->star == NULL && call->star_star == NULL && lists->keywords.count == 0);
        QR_VEC_PUSH(&lists->positional, qr_jparse_expression(p, true));
    }
}

static qr_jcall *finish_call(qr_jcompile *p, qr_jcall *call, call_lists *lists)
{
    uint32_t name_count = (uint32_t)lists->names.count;
    call->names = qr_jcompile_alloc(p, (name_count + 1) * sizeof(qr_str));
    if (name_count > 0)
        memcpy(call->names, lists->names.data, name_count * sizeof(qr_str));
    QR_VEC_RELEASE(&lists->names);
    call->positional = keep_nodes(p, &lists->positional, &call->count);
    call->keywords = keep_nodes(p, &lists->keywords, &call->keyword_count);
    return call;
}

static qr_jcall *parse_arguments(qr_jcompile *p)
{
    qr_jcall *call = qr_jcompile_alloc(p, sizeof(*call));
    call_lists lists = {0};
    qr_jparse_expect(p, QR_JT_LPAREN);
    for (bool first = true; type_of(p) != QR_JT_RPAREN && !p->failed; first = false) {
        if (!first)
            qr_jparse_expect(p, QR_JT_COMMA);
        if (type_of(p) == QR_JT_RPAREN)
            break;
        parse_argument(p, call, &lists);
    }
    qr_jparse_expect(p, QR_JT_RPAREN);
    return finish_call(p, call, &lists);
}

static qr_jnode *call_node(qr_jcompile *p, qr_jnode_type type, uint32_t pos, qr_jnode *callee,
                           const qr_jcall *call)
{
    qr_jnode *node = qr_jnode_new(p, type, pos);
    node->callee = callee;
    node->call = call;
    qr_jnode_adopt(node, callee);
    for (uint32_t i = 0; i < call->count; i++)
        qr_jnode_adopt(node, call->positional[i]);
    for (uint32_t i = 0; i < call->keyword_count; i++)
        qr_jnode_adopt(node, call->keywords[i]);
    qr_jnode_adopt(node, call->star);
    qr_jnode_adopt(node, call->star_star);
    too_deep(p, node);
    return node;
}

static qr_jnode *item_node(qr_jcompile *p, uint32_t pos, qr_jnode *object, qr_jnode *key)
{
    qr_jnode *node = qr_jnode_new(p, QR_JN_ITEM, pos);
    node->a = object;
    node->b = key;
    qr_jnode_adopt(node, object);
    qr_jnode_adopt(node, key);
    too_deep(p, node);
    return node;
}

static qr_jnode *attr_node(qr_jcompile *p, uint32_t pos, qr_jnode *object, qr_str name)
{
    qr_jnode *node = qr_jnode_new(p, QR_JN_ATTR, pos);
    qr_str kept = *qr_jcompile_name(p, qr_jcompile_intern(p, name));
    node->object = object;
    node->attr = kept.data;
    node->attr_len = (uint32_t)kept.len;
    node->method = qr_jinja_method_id(kept);
    qr_jnode_adopt(node, object);
    too_deep(p, node);
    return node;
}

/* One subscript: an expression or start:stop:step. */
static qr_jnode *parse_subscribed(qr_jcompile *p)
{
    uint32_t pos = pos_of(p);
    qr_jnode *parts[3] = {NULL, NULL, NULL};
    if (type_of(p) != QR_JT_COLON) {
        parts[0] = qr_jparse_expression(p, true);
        if (type_of(p) != QR_JT_COLON)
            return parts[0];
    }
    for (int i = 1; i < 3 && qr_jparse_skip(p, QR_JT_COLON); i++)
        if (type_of(p) != QR_JT_COLON && type_of(p) != QR_JT_RBRACKET && type_of(p) != QR_JT_COMMA)
            parts[i] = qr_jparse_expression(p, true);
    qr_jnode *node = qr_jnode_new(p, QR_JN_SLICE, pos);
    node->a = parts[0];
    node->b = parts[1];
    node->c = parts[2];
    for (int i = 0; i < 3; i++)
        qr_jnode_adopt(node, parts[i]);
    return node;
}

static qr_jnode *parse_subscript(qr_jcompile *p, qr_jnode *object)
{
    const qr_jtoken *token = next(p);
    if (token->type == QR_JT_DOT) {
        const qr_jtoken *name = next(p);
        if (name->type == QR_JT_NAME)
            return attr_node(p, token->pos, object, name->text);
        if (name->type == QR_JT_INTEGER)
            return item_node(p, token->pos, object, parse_integer(p, name));
        qr_jcompile_fail(p, name->pos, "expected name or number");
        return object;
    }
    node_list keys = {0};
    while (type_of(p) != QR_JT_RBRACKET && !p->failed) {
        if (keys.count > 0)
            qr_jparse_expect(p, QR_JT_COMMA);
        QR_VEC_PUSH(&keys, parse_subscribed(p));
    }
    qr_jparse_expect(p, QR_JT_RBRACKET);
    if (keys.count == 1) {
        qr_jnode *key = keys.data[0];
        QR_VEC_RELEASE(&keys);
        return item_node(p, token->pos, object, key);
    }
    return item_node(p, token->pos, object, list_node(p, QR_JN_TUPLE, token->pos, &keys));
}

static qr_jnode *parse_call(qr_jcompile *p, qr_jnode *callee)
{
    uint32_t pos = pos_of(p);
    return call_node(p, QR_JN_CALL, pos, callee, parse_arguments(p));
}

static qr_jnode *parse_postfix(qr_jcompile *p, qr_jnode *node)
{
    while (!p->failed) {
        if (type_of(p) == QR_JT_DOT || type_of(p) == QR_JT_LBRACKET)
            node = parse_subscript(p, node);
        else if (type_of(p) == QR_JT_LPAREN)
            node = parse_call(p, node);
        else
            break;
    }
    return node;
}

/* A dotted name; no filter or test has a dot in its name, so the first part serves for messages. */
static const qr_jtoken *parse_dotted(qr_jcompile *p)
{
    const qr_jtoken *name = qr_jparse_expect(p, QR_JT_NAME);
    while (qr_jparse_skip(p, QR_JT_DOT)) {
        qr_jparse_expect(p, QR_JT_NAME);
        qr_jcompile_fail(p, name->pos, "No filter or test named '%.*s.*'", (int)QR_MIN(name->text.len, 60),
                         name->text.data);
    }
    return name;
}

/* row NULL: unknown. Whether that is an error now or when run depends on where it stands: jinja_scope.c. */
static qr_jnode *row_node(qr_jcompile *p, qr_jnode_type type, const qr_jtoken *name, qr_jnode *value,
                          const qr_jcall *call, const qr_jfilter *row)
{
    qr_jnode *node = call_node(p, type, name->pos, value, call);
    node->row = row;
    node->row_name = qr_jcompile_name(p, qr_jcompile_intern(p, name->text));
    return node;
}

qr_jnode *qr_jparse_filters(qr_jcompile *p, qr_jnode *value, bool inline_start)
{
    static const qr_jcall no_arguments = {0};
    while ((inline_start || type_of(p) == QR_JT_PIPE) && !p->failed) {
        if (!inline_start)
            next(p);
        inline_start = false;
        const qr_jtoken *name = parse_dotted(p);
        const qr_jfilter *row = qr_jinja_find_filter(name->text);
        const qr_jcall *call = type_of(p) == QR_JT_LPAREN ? parse_arguments(p) : &no_arguments;
        value = row_node(p, QR_JN_FILTER, name, value, call, row);
    }
    return value;
}

static bool starts_test_argument(const qr_jcompile *p)
{
    switch (type_of(p)) {
    case QR_JT_NAME:
        return !qr_jparse_is_name(p, "else") && !qr_jparse_is_name(p, "or") && !qr_jparse_is_name(p, "and");
    case QR_JT_STRING:
    case QR_JT_INTEGER:
    case QR_JT_FLOAT:
    case QR_JT_LBRACKET:
    case QR_JT_LBRACE: return true;
    default: return false;
    }
}

static qr_jcall *single_argument(qr_jcompile *p)
{
    qr_jcall *call = qr_jcompile_alloc(p, sizeof(*call));
    if (qr_jparse_is_name(p, "is"))
        qr_jcompile_fail(p, pos_of(p), "You cannot chain multiple tests with is");
    call->positional = qr_jcompile_alloc(p, sizeof(qr_jnode *));
    call->positional[0] = parse_postfix(p, parse_primary(p, false));
    call->count = 1;
    return call;
}

static qr_jnode *unary_node(qr_jcompile *p, qr_jnode_type type, uint32_t pos, qr_jnode *operand)
{
    qr_jnode *node = qr_jnode_new(p, type, pos);
    node->a = operand;
    qr_jnode_adopt(node, operand);
    too_deep(p, node);
    return node;
}

static qr_jnode *parse_test(qr_jcompile *p, qr_jnode *value)
{
    static const qr_jcall no_arguments = {0};
    bool negated = qr_jparse_skip_name(p, "not");
    const qr_jtoken *name = parse_dotted(p);
    const qr_jfilter *row = qr_jinja_find_test(name->text);
    const qr_jcall *call = &no_arguments;
    if (type_of(p) == QR_JT_LPAREN)
        call = parse_arguments(p);
    else if (starts_test_argument(p))
        call = single_argument(p);
    qr_jnode *node = row_node(p, QR_JN_TEST, name, value, call, row);
    return negated ? unary_node(p, QR_JN_NOT, name->pos, node) : node;
}

static qr_jnode *parse_filter_expression(qr_jcompile *p, qr_jnode *node)
{
    while (!p->failed) {
        if (type_of(p) == QR_JT_PIPE)
            node = qr_jparse_filters(p, node, false);
        else if (qr_jparse_skip_name(p, "is"))
            node = parse_test(p, node);
        else if (type_of(p) == QR_JT_LPAREN)
            node = parse_call(p, node);
        else
            break;
    }
    return node;
}

static bool deeper(qr_jcompile *p)
{
    if (++p->nesting > NESTING_MAX)
        qr_jcompile_fail(p, pos_of(p), "nested deeper than %d", NESTING_MAX);
    return !p->failed;
}

static qr_jnode *parse_unary(qr_jcompile *p, bool with_filter)
{
    qr_jnode *node = NULL;
    const qr_jtoken *token = qr_jparse_peek(p);
    if (!deeper(p)) {
        p->nesting--;
        return const_node(p, token->pos, qr_jv_none());
    }
    if (token->type == QR_JT_SUB || token->type == QR_JT_ADD) {
        next(p);
        node = unary_node(p, token->type == QR_JT_SUB ? QR_JN_NEG : QR_JN_POS, token->pos,
                          parse_unary(p, false));
    } else {
        node = parse_primary(p, false);
    }
    node = parse_postfix(p, node);
    if (with_filter)
        node = parse_filter_expression(p, node);
    p->nesting--;
    return node;
}

/* ---- Operators: chains of one precedence are one node ---- */

typedef struct precedence {
    uint8_t tokens[5], ops[5];
    int count;
} precedence;

static bool level_op(const qr_jcompile *p, const precedence *level, uint8_t *op)
{
    for (int i = 0; i < level->count; i++) {
        if (type_of(p) == level->tokens[i]) {
            *op = level->ops[i];
            return true;
        }
    }
    return false;
}

static qr_jnode *parse_chain(qr_jcompile *p, qr_jnode *(*operand)(qr_jcompile *), const precedence *level)
{
    uint32_t pos = pos_of(p);
    qr_jnode *first = operand(p);
    uint8_t op = 0;
    if (!level_op(p, level, &op))
        return first;
    node_list items = {0};
    op_list ops = {0};
    QR_VEC_PUSH(&items, first);
    while (level_op(p, level, &op) && !p->failed) {
        next(p);
        QR_VEC_PUSH(&ops, op);
        QR_VEC_PUSH(&items, operand(p));
    }
    return chain_node(p, QR_JN_ARITH, pos, &items, &ops);
}

static qr_jnode *parse_operand(qr_jcompile *p) { return parse_unary(p, true); }

static qr_jnode *parse_pow(qr_jcompile *p)
{
    static const precedence powers = {{QR_JT_POW}, {QR_JOP_POW}, 1};
    return parse_chain(p, parse_operand, &powers);
}

static qr_jnode *parse_math2(qr_jcompile *p)
{
    static const precedence products = {{QR_JT_MUL, QR_JT_DIV, QR_JT_FLOORDIV, QR_JT_MOD},
                                        {QR_JOP_MUL, QR_JOP_DIV, QR_JOP_FLOORDIV, QR_JOP_MOD},
                                        4};
    return parse_chain(p, parse_pow, &products);
}

static qr_jnode *parse_joined(qr_jcompile *p, qr_jnode *(*operand)(qr_jcompile *), qr_jtok token,
                              const char *word, qr_jnode_type type)
{
    uint32_t pos = pos_of(p);
    qr_jnode *first = operand(p);
    node_list items = {0};
    while (!p->failed && (word != NULL ? qr_jparse_skip_name(p, word) : qr_jparse_skip(p, token))) {
        if (items.count == 0)
            QR_VEC_PUSH(&items, first);
        QR_VEC_PUSH(&items, operand(p));
    }
    return items.count == 0 ? first : list_node(p, type, pos, &items);
}

static qr_jnode *parse_concat(qr_jcompile *p)
{
    return parse_joined(p, parse_math2, QR_JT_TILDE, NULL, QR_JN_CONCAT);
}

static qr_jnode *parse_math1(qr_jcompile *p)
{
    static const precedence sums = {{QR_JT_ADD, QR_JT_SUB}, {QR_JOP_ADD, QR_JOP_SUB}, 2};
    return parse_chain(p, parse_concat, &sums);
}

static bool compare_op(qr_jcompile *p, uint8_t *op)
{
    static const precedence compares = {{QR_JT_EQ, QR_JT_NE, QR_JT_LT, QR_JT_LE, QR_JT_GT},
                                        {QR_JOP_EQ, QR_JOP_NE, QR_JOP_LT, QR_JOP_LE, QR_JOP_GT},
                                        5};
    if (level_op(p, &compares, op) || type_of(p) == QR_JT_GE) {
        if (type_of(p) == QR_JT_GE)
            *op = QR_JOP_GE;
        next(p);
        return true;
    }
    if (qr_jparse_skip_name(p, "in")) {
        *op = QR_JOP_IN;
        return true;
    }
    const qr_jtoken *after = &p->tokens.data[p->at + (type_of(p) != QR_JT_EOF)];
    if (qr_jparse_is_name(p, "not") && after->type == QR_JT_NAME && qr_str_equals(after->text, "in")) {
        p->at += 2;
        *op = QR_JOP_NOT_IN;
        return true;
    }
    return false;
}

static qr_jnode *parse_compare(qr_jcompile *p)
{
    uint32_t pos = pos_of(p);
    qr_jnode *first = parse_math1(p);
    node_list items = {0};
    op_list ops = {0};
    uint8_t op = 0;
    while (!p->failed && compare_op(p, &op)) {
        if (items.count == 0)
            QR_VEC_PUSH(&items, first);
        QR_VEC_PUSH(&ops, op);
        QR_VEC_PUSH(&items, parse_math1(p));
    }
    if (items.count == 0)
        return first;
    return chain_node(p, QR_JN_COMPARE, pos, &items, &ops);
}

static qr_jnode *parse_not(qr_jcompile *p)
{
    uint32_t pos = pos_of(p);
    int count = 0;
    while (qr_jparse_skip_name(p, "not"))
        count++;
    qr_jnode *node = parse_compare(p);
    if (count > 0)
        node = unary_node(p, QR_JN_NOT, pos, node);
    return count > 0 && count % 2 == 0 ? unary_node(p, QR_JN_NOT, pos, node) : node;
}

static qr_jnode *parse_and(qr_jcompile *p) { return parse_joined(p, parse_not, QR_JT_EOF, "and", QR_JN_AND); }
static qr_jnode *parse_or(qr_jcompile *p) { return parse_joined(p, parse_and, QR_JT_EOF, "or", QR_JN_OR); }

static qr_jnode *parse_condition(qr_jcompile *p)
{
    uint32_t pos = pos_of(p);
    qr_jnode *value = parse_or(p);
    while (!p->failed && qr_jparse_skip_name(p, "if")) {
        qr_jnode *node = qr_jnode_new(p, QR_JN_COND, pos);
        node->a = value;
        node->b = parse_or(p);
        node->c = qr_jparse_skip_name(p, "else") ? qr_jparse_expression(p, true) : NULL;
        qr_jnode_adopt(node, node->a);
        qr_jnode_adopt(node, node->b);
        qr_jnode_adopt(node, node->c);
        too_deep(p, node);
        value = node;
        pos = pos_of(p);
    }
    return value;
}

qr_jnode *qr_jparse_expression(qr_jcompile *p, bool with_condition)
{
    qr_jnode *node = NULL;
    if (deeper(p))
        node = with_condition ? parse_condition(p) : parse_or(p);
    else
        node = const_node(p, pos_of(p), qr_jv_none());
    p->nesting--;
    return node;
}

/* ---- Tuples and targets ---- */

static bool tuple_ends(const qr_jcompile *p, const char *until)
{
    qr_jtok type = type_of(p);
    return type == QR_JT_VARIABLE_END || type == QR_JT_BLOCK_END || type == QR_JT_RPAREN ||
           (until != NULL && qr_jparse_is_name(p, until));
}

qr_jnode *qr_jparse_tuple(qr_jcompile *p, bool simple, bool with_condition, const char *until,
                          bool parenthesised, bool with_namespace)
{
    uint32_t pos = pos_of(p);
    node_list items = {0};
    bool is_tuple = false;
    while (!p->failed) {
        if (items.count > 0)
            qr_jparse_expect(p, QR_JT_COMMA);
        if (tuple_ends(p, until))
            break;
        QR_VEC_PUSH(&items,
                    simple ? parse_primary(p, with_namespace) : qr_jparse_expression(p, with_condition));
        if (type_of(p) != QR_JT_COMMA)
            break;
        is_tuple = true;
    }
    if (!is_tuple && items.count == 1) {
        qr_jnode *only = items.data[0];
        QR_VEC_RELEASE(&items);
        return only;
    }
    if (!is_tuple && !parenthesised) {
        char buffer[64];
        qr_jcompile_fail(p, pos, "Expected an expression, got '%s'",
                         qr_jtoken_describe(qr_jparse_peek(p), buffer));
    }
    return list_node(p, QR_JN_TUPLE, pos, &items);
}

/* Marks names as assigned; fails on what cannot be. Depth is bounded by the parser. */
static void make_target(qr_jcompile *p, qr_jnode *node)
{
    static const char *const words[] = {"const", "name", "tuple", "list", "dict", "concat", "add"};
    switch (node->type) {
    case QR_JN_NAME: node->store = true; return;
    case QR_JN_NSREF: return;
    case QR_JN_TUPLE:
        for (uint32_t i = 0; i < node->count; i++)
            make_target(p, node->items[i]);
        return;
    default:
        qr_jcompile_fail(p, node->pos, "can't assign to '%s'",
                         node->type < 7 ? words[node->type] : "expression");
    }
}

qr_jnode *qr_jparse_target(qr_jcompile *p, const char *until, bool with_namespace)
{
    qr_jnode *target = qr_jparse_tuple(p, true, true, until, false, with_namespace);
    if (!p->failed)
        make_target(p, target);
    return target;
}
