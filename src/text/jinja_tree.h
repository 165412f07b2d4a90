/* The compiled template: a tree in one arena. Names are resolved to slots when compiling, by the rules of
 * Jinja2's symbol analysis (jinja_scope.c), so that scoping quirks come out the same.
 * Thread: immutable once compiled. */
#ifndef QR_TEXT_JINJA_TREE_H
#define QR_TEXT_JINJA_TREE_H

#include "text/jinja_value.h"

typedef struct qr_jnode qr_jnode;
typedef struct qr_jstmt qr_jstmt;

typedef enum qr_jnode_type {
    QR_JN_CONST,
    QR_JN_NAME,
    QR_JN_TUPLE,
    QR_JN_LIST,
    QR_JN_DICT,
    QR_JN_CONCAT,
    QR_JN_ARITH,
    QR_JN_AND,
    QR_JN_OR,
    QR_JN_NOT,
    QR_JN_NEG,
    QR_JN_POS,
    QR_JN_COMPARE,
    QR_JN_COND,
    QR_JN_ATTR,
    QR_JN_ITEM,
    QR_JN_SLICE,
    QR_JN_CALL,
    QR_JN_FILTER,
    QR_JN_TEST,
    QR_JN_NSREF
} qr_jnode_type;

typedef enum qr_jop {
    QR_JOP_ADD,
    QR_JOP_SUB,
    QR_JOP_MUL,
    QR_JOP_DIV,
    QR_JOP_FLOORDIV,
    QR_JOP_MOD,
    QR_JOP_POW,
    QR_JOP_EQ,
    QR_JOP_NE,
    QR_JOP_LT,
    QR_JOP_LE,
    QR_JOP_GT,
    QR_JOP_GE,
    QR_JOP_IN,
    QR_JOP_NOT_IN
} qr_jop;

/* Arguments in the source. */
typedef struct qr_jcall {
    qr_jnode **positional;
    uint32_t count;
    qr_str *names; /* interned */
    qr_jnode **keywords;
    uint32_t keyword_count;
    qr_jnode *star, *star_star; /* *args, **kwargs or NULL */
} qr_jcall;

typedef struct qr_jfilter qr_jfilter; /* a row of the table of filters (or of tests) */

struct qr_jnode {
    uint8_t type;
    uint8_t store;  /* NAME: an assignment target */
    uint16_t depth; /* height of the tree below, for the check before recursion */
    uint32_t pos;   /* byte offset in the source */
    union {
        qr_jv value; /* CONST */
        struct {     /* NAME, NSREF (attr in `key`) */
            qr_str *name;
            uint32_t name_id, slot;
            uint16_t hops; /* functions outwards */
        };
        struct { /* NOT, NEG, POS: a; COND: a if b else c; ITEM: a[b]; SLICE: a:b:c */
            qr_jnode *a, *b, *c;
        };
        struct
        { /* TUPLE, LIST, CONCAT, AND, OR; DICT: key, value, ...; ARITH, COMPARE: ops[i] before items[i + 1] */
            qr_jnode **items;
            const uint8_t *ops;
            uint32_t count;
        };
        struct { /* ATTR */
            qr_jnode *object;
            const char *attr;
            uint32_t attr_len;
            int32_t method; /* id of a method with that name, or -1 */
        };
        struct { /* CALL; FILTER and TEST with their row (NULL: unknown, an error when run) */
            qr_jnode *callee;
            const qr_jcall *call;
            const qr_jfilter *row;
            qr_str *row_name;
        };
        struct { /* NSREF: ns.attr = ... */
            qr_jnode *space;
            qr_str *key;
        };
    };
};

typedef enum qr_jload { QR_JLOAD_PARAMETER, QR_JLOAD_RESOLVE, QR_JLOAD_ALIAS, QR_JLOAD_UNDEFINED } qr_jload;

typedef struct qr_jload_op { /* what entering a scope does to one slot */
    uint8_t action;
    uint16_t hops; /* ALIAS: where it comes from */
    uint32_t slot;
    uint32_t source; /* ALIAS: slot; RESOLVE: name id */
} qr_jload_op;

typedef struct qr_jscope {
    const qr_jload_op *loads; /* PARAMETER rows left out */
    uint32_t count;
} qr_jscope;

typedef struct qr_jbody {
    qr_jstmt *first;
    uint16_t depth;
} qr_jbody;

/* A macro, the body of a call block, or the body of a recursive loop: what has slots of its own. */
typedef struct qr_jfunc {
    uint32_t slot_count;
} qr_jfunc;

typedef struct qr_jmacro_def {
    qr_str *name;        /* NULL for the body of a call block */
    qr_jnode **params;   /* NAME, store */
    qr_jnode **defaults; /* of the last default_count parameters */
    uint32_t param_count, default_count;
    int32_t caller_slot, kwargs_slot, varargs_slot; /* -1: not used */
    bool explicit_caller;
    qr_jscope scope;
    qr_jfunc func;
    qr_jbody body;
} qr_jmacro_def;

typedef struct qr_jbranch {
    qr_jnode *test; /* NULL: else */
    qr_jbody body;
} qr_jbranch;

typedef enum qr_jstmt_type {
    QR_JS_DATA,
    QR_JS_OUTPUT,
    QR_JS_IF,
    QR_JS_FOR,
    QR_JS_SET,
    QR_JS_SET_BLOCK,
    QR_JS_MACRO,
    QR_JS_CALL_BLOCK,
    QR_JS_FILTER_BLOCK,
    QR_JS_SCOPE,
    QR_JS_WITH,
    QR_JS_BREAK,
    QR_JS_CONTINUE
} qr_jstmt_type;

struct qr_jstmt {
    uint8_t type;
    bool toplevel; /* assignments are seen by every scope that resolves the name */
    uint16_t depth;
    uint32_t pos;
    qr_jstmt *next;
    union {
        qr_str text;      /* DATA */
        qr_jnode *output; /* OUTPUT */
        struct {          /* IF */
            qr_jbranch *branches;
            uint32_t branch_count;
        };
        struct { /* FOR */
            qr_jnode *target, *iter, *test, *test_target;
            qr_jscope scope, test_scope, else_scope;
            qr_jfunc *func;    /* of a recursive loop, else NULL */
            int32_t loop_slot; /* -1: `loop` is not used */
            bool has_else;
            qr_jbody body, otherwise;
        } loop;
        struct { /* SET, SET_BLOCK, FILTER_BLOCK, SCOPE, WITH, CALL_BLOCK, MACRO */
            qr_jnode *target;
            qr_jnode *
                value; /* SET; the filter of SET_BLOCK and FILTER_BLOCK (its callee is NULL); CALL_BLOCK: the call */
            qr_jnode **targets, **values; /* WITH */
            uint32_t with_count;
            qr_jscope scope;
            qr_jbody body;
            qr_jmacro_def *macro; /* MACRO (stored to target), CALL_BLOCK */
        } set;
    };
};

struct qr_jinja {
    qr_arena arena;
    qr_str source; /* newlines normalised */
    qr_str *names; /* interned, NUL-terminated, by name id */
    uint32_t name_count;
    bool takes_parts, only_parts; /* qr_jinja_takes_parts */
    qr_jfunc root;
    qr_jscope scope;
    qr_jbody body;
};

typedef struct qr_jsyntax {
    bool trim_blocks, lstrip_blocks, keep_trailing_newline;
} qr_jsyntax;

/* ---- Compiling ---- */
typedef enum qr_jtok {
    QR_JT_DATA,
    QR_JT_VARIABLE_BEGIN,
    QR_JT_VARIABLE_END,
    QR_JT_BLOCK_BEGIN,
    QR_JT_BLOCK_END,
    QR_JT_NAME,
    QR_JT_STRING,
    QR_JT_INTEGER,
    QR_JT_FLOAT,
    QR_JT_EOF,
    QR_JT_ADD,
    QR_JT_SUB,
    QR_JT_MUL,
    QR_JT_DIV,
    QR_JT_FLOORDIV,
    QR_JT_MOD,
    QR_JT_POW,
    QR_JT_TILDE,
    QR_JT_LBRACKET,
    QR_JT_RBRACKET,
    QR_JT_LPAREN,
    QR_JT_RPAREN,
    QR_JT_LBRACE,
    QR_JT_RBRACE,
    QR_JT_EQ,
    QR_JT_NE,
    QR_JT_GT,
    QR_JT_GE,
    QR_JT_LT,
    QR_JT_LE,
    QR_JT_ASSIGN,
    QR_JT_DOT,
    QR_JT_COLON,
    QR_JT_PIPE,
    QR_JT_COMMA,
    QR_JT_SEMICOLON
} qr_jtok;

typedef struct qr_jtoken {
    uint8_t type;
    uint32_t pos;
    qr_str text; /* DATA, NAME, raw number; STRING: unescaped */
} qr_jtoken;

typedef struct qr_jtokens {
    qr_jtoken *data;
    size_t count, capacity;
} qr_jtokens;

/* Names of the whole template, interned. */
typedef struct qr_jcompile {
    qr_jinja *jinja;
    qr_jsyntax syntax;
    qr_error *err;
    bool failed;
    qr_jtokens tokens;
    size_t at;
    struct qr_jname_table *names;
    int nesting;           /* of the parser */
    int loops;             /* around the current statement, in this function: for break and continue */
    char *bump, *bump_end; /* small pieces of the arena */
} qr_jcompile;

/* Fails with line and column of pos; the first failure is kept. */
void qr_jcompile_fail(qr_jcompile *compile, uint32_t pos, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void *qr_jcompile_alloc(qr_jcompile *compile, size_t bytes); /* zeroed, 8-byte aligned */
/* Line and column (in code points, from 1) of a byte offset. */
void qr_jinja_locate(const qr_jinja *jinja, uint32_t pos, unsigned *line, unsigned *column);
bool qr_jinja_lex(qr_jcompile *compile);
qr_jbody qr_jparse_template(qr_jcompile *compile);
void qr_jinja_inspect(qr_jinja *jinja); /* fills takes_parts */
void qr_jscope_bind(qr_jcompile *compile, qr_jbody body);
uint32_t qr_jcompile_intern(qr_jcompile *compile, qr_str name); /* name id */
qr_str *qr_jcompile_name(qr_jcompile *compile, uint32_t id);    /* stable pointer */

/* jinja_parse_expr.c */
qr_jnode *qr_jnode_new(qr_jcompile *compile, qr_jnode_type type, uint32_t pos);
void qr_jnode_adopt(qr_jnode *parent, const qr_jnode *child);
qr_jnode *qr_jparse_expression(qr_jcompile *compile, bool with_condition);
/* until: a name that ends the tuple, or NULL; simple: targets. */
qr_jnode *qr_jparse_tuple(qr_jcompile *compile, bool simple, bool with_condition, const char *until,
                          bool parenthesised, bool with_namespace);
qr_jnode *qr_jparse_filters(qr_jcompile *compile, qr_jnode *value, bool inline_start);
qr_jnode *qr_jparse_target(qr_jcompile *compile, const char *until, bool with_namespace);
const qr_jtoken *qr_jparse_peek(const qr_jcompile *compile);
bool qr_jparse_is_name(const qr_jcompile *compile, const char *name);
bool qr_jparse_skip_name(qr_jcompile *compile, const char *name);
bool qr_jparse_skip(qr_jcompile *compile, qr_jtok type);
const qr_jtoken *qr_jparse_expect(qr_jcompile *compile, qr_jtok type);
const char *qr_jtoken_describe(const qr_jtoken *token, char buffer[64]);

/* qr_jinja_compile with other syntax options: for tests over other engines' cases. */
qr_status qr_jinja_compile_with(qr_str source, const qr_jsyntax *syntax, qr_jinja **out, qr_error *err);

#endif
