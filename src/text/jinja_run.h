/* One render: its memory, limits, frames, and the functions that evaluate. Failure is sticky: the first one is
 * kept, everything after returns quickly with a harmless value. Thread: one render. */
#ifndef QR_TEXT_JINJA_RUN_H
#define QR_TEXT_JINJA_RUN_H

#include "text/jinja_tree.h"

typedef struct qr_jframe { /* slots of one call of a function; closures keep it */
    struct qr_jframe *outer;
    qr_jv slots[];
} qr_jframe;

typedef struct qr_jmacro {
    const qr_jmacro_def *def;
    qr_jframe *outer;
} qr_jmacro;

typedef struct qr_jloop {
    qr_jiter iter;
    const qr_jstmt *stmt;
    qr_jframe *frame;
    qr_jv source;
    qr_jv previous, current, next; /* MISSING: none */
    qr_jv changed;                 /* the last arguments of loop.changed */
    int64_t index0, length;        /* length -1: not known yet */
    int depth0;
    bool next_known; /* `next` was read ahead */
    bool tested;     /* all items were read ahead: they passed the loop's filter */
    bool done;
} qr_jloop;

struct qr_jrun {
    const qr_jinja *jinja;
    const qr_json *variables;
    qr_buf *out;
    size_t out_start;
    qr_error *err;
    qr_status status;
    uint32_t pos; /* of what is being evaluated */
    int32_t fuel; /* steps until the next look at the limits */
    uint64_t steps;
    uint64_t deadline_ns;
    qr_jinja_limits limits;
    uint32_t depth;
    qr_jframe *frame;
    qr_jv *globals; /* by name id: toplevel assignments, then cached look-ups */
    qr_arena arena;
    char *bump, *bump_end; /* objects */
    char *text, *text_end; /* strings; the one that ends at `text` can grow in place */
    size_t memory;
    int64_t now;
};

/* Raises (QR_INVALID_ARGUMENT with line and column) unless something failed before; returns None. */
qr_jv qr_jinja_raise(qr_jrun *run, const char *format, ...) __attribute__((format(printf, 2, 3)));
qr_jv qr_jinja_limit(qr_jrun *run, const char *format, ...) __attribute__((format(printf, 2, 3)));
static inline bool qr_jinja_failed(const qr_jrun *run) { return run->status != QR_OK; }
bool qr_jinja_refuel(qr_jrun *run); /* false: stop */
/* Counts work of `steps` nodes; false: stop. */
static inline bool qr_jinja_charge(qr_jrun *run, size_t steps)
{
    if (run->fuel > 0 && steps < (size_t)run->fuel) {
        run->fuel -= (int32_t)steps;
        return true;
    }
    run->steps += steps;
    return qr_jinja_refuel(run);
}
/* One more level of a recursion over values; false (and raises) when too deep. Pair with qr_jinja_leave. */
bool qr_jinja_enter(qr_jrun *run, uint32_t levels);
static inline void qr_jinja_leave(qr_jrun *run, uint32_t levels) { run->depth -= levels; }

void qr_jinja_write(qr_jrun *run, qr_str text);
static inline void qr_jinja_write_char(qr_jrun *run, char c) { qr_jinja_write(run, (qr_str){&c, 1}); }
void qr_jinja_write_codepoint(qr_jrun *run, uint32_t codepoint);
/* What was written since `mark` (run->out->len then) becomes a string and leaves the output. */
qr_jv qr_jinja_take(qr_jrun *run, size_t mark);

/* ---- jinja_eval.c, jinja_ops.c ---- */
qr_jv qr_jinja_eval(qr_jrun *run, const qr_jnode *node);
qr_jv qr_jinja_undefined_use(qr_jrun *run, qr_jv undefined); /* raises its message */
qr_jv qr_jinja_binary(qr_jrun *run, qr_jop op, qr_jv left, qr_jv right);
qr_jv qr_jinja_getattr(qr_jrun *run, qr_jv object, qr_str name, int method); /* object.name */
qr_jv qr_jinja_getitem(qr_jrun *run, qr_jv object, qr_jv key);               /* object[key] */
/* getattr without the fall-back to items: MISSING when there is none. */
qr_jv qr_jinja_attribute_only(qr_jrun *run, qr_jv object, qr_str name);
qr_jv qr_jinja_slice(qr_jrun *run, qr_jv object, qr_jv start, qr_jv stop, qr_jv step);
qr_jv qr_jinja_call(qr_jrun *run, qr_jv callee, const qr_jargs *args);
qr_jv qr_jinja_eval_call(qr_jrun *run, const qr_jnode *node, const qr_jv *caller); /* a CALL with a caller */
qr_jv qr_jinja_apply_filters(qr_jrun *run, const qr_jnode *node,
                             qr_jv value); /* a FILTER whose innermost callee is NULL */
bool qr_jv_compare_op(qr_jrun *run, qr_jop op, qr_jv left, qr_jv right);
void qr_jinja_output(qr_jrun *run, const qr_jnode *node); /* str(node) to the output */

/* ---- jinja_exec.c ---- */
typedef enum qr_jflow { QR_JFLOW_NEXT, QR_JFLOW_BREAK, QR_JFLOW_CONTINUE } qr_jflow;
qr_jflow qr_jinja_exec(qr_jrun *run, const qr_jbody *body);
qr_jv qr_jinja_call_macro(qr_jrun *run, const qr_jmacro *macro, const qr_jargs *args);
qr_jv qr_jinja_resolve(qr_jrun *run, uint32_t name_id);

/* ---- jinja_loop.c ---- */
void qr_jloop_init(qr_jrun *run, qr_jloop *loop, const qr_jstmt *stmt, qr_jv source, int depth0);
bool qr_jloop_next(qr_jrun *run, qr_jloop *loop);
bool qr_jloop_attribute(qr_jrun *run, qr_jloop *loop, qr_str name, qr_jv *value);
qr_jv qr_jloop_call(qr_jrun *run, qr_jloop *loop, const qr_jargs *args); /* a recursive loop */
qr_jflow qr_jloop_run(qr_jrun *run, const qr_jstmt *stmt, qr_jv source, int depth0);
void qr_jinja_assign(qr_jrun *run, const qr_jnode *target, qr_jv value, bool toplevel);
void qr_jinja_enter_scope(qr_jrun *run, const qr_jscope *scope);

/* ---- Filters, tests, functions, methods ---- */
typedef qr_jv (*qr_jfilter_fn)(qr_jrun *run, qr_jv value, const qr_jv *args, const qr_jargs *raw);
struct qr_jfilter {
    const char *name;
    qr_jfilter_fn fn;
    const char *params; /* names, space separated, in order; "*": takes `raw` as it is; NULL: none */
    int required;
};
enum { QR_JPARAMS_MAX = 8 };
const qr_jfilter *qr_jinja_find_filter(qr_str name);
const qr_jfilter *qr_jinja_find_test(qr_str name);
qr_jv qr_jinja_apply(qr_jrun *run, const qr_jfilter *filter, qr_jv value, const qr_jargs *args);
/* Puts arguments in the order of `params`; MISSING where not given. Raises on too many, unknown, missing. */
bool qr_jinja_bind(qr_jrun *run, const char *what, const char *params, int required, const qr_jargs *args,
                   qr_jv *out);
bool qr_jinja_want_int(qr_jrun *run, qr_jv value, int64_t *out); /* operator.index; raises */

int qr_jinja_method_id(qr_str name); /* -1: no type has a method of that name */
qr_str qr_jinja_method_name(int id);
typedef enum qr_jaccess { QR_JACCESS_NONE, QR_JACCESS_METHOD, QR_JACCESS_UNSAFE } qr_jaccess;
qr_jaccess qr_jinja_method_access(qr_jv object, int id);
qr_jv qr_jinja_call_method(qr_jrun *run, qr_jv self, int id, const qr_jargs *args);
qr_jv qr_jinja_string_method(qr_jrun *run, qr_jv self, int id, const qr_jargs *args);

/* Replaces old by new, at most `count` times (-1: all). */
qr_jv qr_jv_replace(qr_jrun *run, qr_str text, qr_str old, qr_str new_text, int64_t count);
void qr_jv_splitlines(qr_jrun *run, qr_str text, bool keep_ends, qr_jlist *lines);
qr_jv qr_jv_strip(qr_jrun *run, qr_jv text, qr_jv chars, bool left, bool right);
qr_jv qr_jv_center(qr_jrun *run, qr_jv text, int64_t width, qr_str fill,
                   int where); /* -1 left, 0 centre, 1 right */

qr_jv qr_jinja_global(qr_str name); /* MISSING when there is none */
qr_jv qr_jinja_call_function(qr_jrun *run, int function, const qr_jargs *args);

/* jinja_format.c: `format % values`, str.format, format(value, spec) */
qr_jv qr_jinja_percent(qr_jrun *run, qr_jv format, qr_jv values, const qr_jargs *keywords);
qr_jv qr_jinja_format(qr_jrun *run, qr_jv format, const qr_jargs *args);
/* jinja_json.c */
typedef struct qr_jdump {
    bool ensure_ascii, sort_keys, pretty;
    qr_str indent, item_separator, key_separator;
} qr_jdump;
void qr_jinja_write_json(qr_jrun *run, qr_jv value, const qr_jdump *options);
/* jinja_sort.c: stable; keys and items are reordered alike. */
bool qr_jinja_sort(qr_jrun *run, qr_jv *keys, qr_jv *items, uint32_t count, bool reverse);

/* Generators (jinja_iter.c): made by filters, walked once. */
typedef enum qr_jgen_type {
    QR_JGEN_MAP,
    QR_JGEN_SELECT,
    QR_JGEN_UNIQUE,
    QR_JGEN_BATCH,
    QR_JGEN_ITER
} qr_jgen_type;
typedef struct qr_jgen {
    qr_jgen_type type;
    bool done, started, negate;
    qr_jiter iter;
    qr_jv source;
    const qr_jfilter *row; /* filter or test; NULL: truth */
    qr_jargs args;
    qr_jv attribute, fallback; /* MISSING: none; MAP, SELECT, UNIQUE */
    bool case_sensitive;
    qr_jdict *seen; /* UNIQUE */
    int64_t batch;  /* BATCH: its size */
    qr_jv held;     /* BATCH: read ahead */
} qr_jgen;
bool qr_jgen_next(qr_jrun *run, qr_jgen *generator, qr_jv *item);
/* item.a.b.0 as the attribute argument of filters spells it; `fallback` for undefined unless MISSING. */
qr_jv qr_jinja_attribute_path(qr_jrun *run, qr_jv item, qr_jv path, qr_jv fallback);

#endif
