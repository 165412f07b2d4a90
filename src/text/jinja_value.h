/* Values of the template engine: 16 bytes, passed by value, immutable but for namespaces. Strings are slices
 * (of the template, of the caller's JSON, or of the render's pool); lists and dicts are either native arrays in
 * the pool or borrowed JSON, told apart by QR_JV_JSON. Thread: one render.
 */
#ifndef QR_TEXT_JINJA_VALUE_H
#define QR_TEXT_JINJA_VALUE_H

#include "base/arena.h"
#include "base/json.h"
#include "base/status.h"
#include "base/str.h"
#include "text/jinja.h"

typedef enum qr_jv_kind {
    QR_JV_MISSING, /* an unset slot or argument; never seen by a template */
    QR_JV_UNDEFINED,
    QR_JV_NONE,
    QR_JV_BOOL,
    QR_JV_INT,
    QR_JV_FLOAT,
    QR_JV_STRING,
    QR_JV_LIST,
    QR_JV_TUPLE,
    QR_JV_DICT,
    QR_JV_RANGE,
    QR_JV_VIEW, /* dict.keys(), .values(), .items() */
    QR_JV_GENERATOR,
    QR_JV_NAMESPACE,
    QR_JV_MACRO,
    QR_JV_FUNCTION, /* a global such as range */
    QR_JV_METHOD,   /* bound to its object */
    QR_JV_LOOP,
    QR_JV_CYCLER,
    QR_JV_JOINER,
    QR_JV_KIND_COUNT
} qr_jv_kind;

enum {                  /* flags */
       QR_JV_JSON = 1,  /* LIST, DICT: `json` instead of items or dict */
       QR_JV_SAFE = 2,  /* STRING: markupsafe's Markup */
       QR_JV_GROUP = 4, /* TUPLE: a row of groupby, with .grouper and .list */
};

typedef enum qr_jv_cause {                     /* aux of UNDEFINED: which message a use of it gives */
                           QR_JV_NO_NAME,      /* s: the variable's name */
                           QR_JV_NO_ATTRIBUTE, /* s: the attribute; flag: kind of the object */
                           QR_JV_NO_ELEMENT,   /* s: repr of the key; flag: kind of the object */
                           QR_JV_HINT,         /* s: the whole message */
                           QR_JV_UNSAFE,       /* s: the attribute; flag: kind of the object */
} qr_jv_cause;

typedef enum qr_jview { QR_JVIEW_KEYS, QR_JVIEW_VALUES, QR_JVIEW_ITEMS } qr_jview;

struct qr_jv;
typedef struct qr_jdict { /* insertion order; `index` (open addressing, entry + 1) once it has grown */
    struct qr_jv *keys, *values;
    uint32_t *index;
    uint32_t count, capacity, index_capacity;
} qr_jdict;

typedef struct qr_jrange {
    int64_t start, stop, step;
    uint32_t count;
} qr_jrange;

typedef struct qr_jv {
    uint8_t kind;
    uint8_t flag;
    uint16_t aux;
    uint32_t len; /* STRING: bytes; LIST, TUPLE: items */
    union {
        int64_t i; /* INT, BOOL */
        double d;
        const char *s;
        const struct qr_jv *items;
        const qr_json *json;
        qr_jdict *dict; /* DICT, NAMESPACE */
        qr_jrange *range;
        struct qr_jv *view; /* the dict; aux: qr_jview */
        struct qr_jgen *generator;
        struct qr_jmacro *macro;
        struct qr_jmethod *method;
        struct qr_jloop *loop;
        struct qr_jcycle *cycle; /* CYCLER, JOINER */
    };
} qr_jv;

typedef struct qr_jmethod {
    qr_jv self;
    int id; /* qr_jinja_method_id */
} qr_jmethod;

typedef struct qr_jcycle {
    const qr_jv *items; /* JOINER: one item, the separator */
    uint32_t count, position;
} qr_jcycle;

/* Arguments of a call: positional, then keywords. */
typedef struct qr_jargs {
    const qr_jv *positional;
    uint32_t count;
    const qr_str *names;
    const qr_jv *keywords;
    uint32_t keyword_count;
} qr_jargs;

typedef struct qr_jrun qr_jrun;

/* What walks any iterable. */
typedef struct qr_jiter {
    qr_jv source;
    uint32_t index;
    void *json; /* position in a JSON object */
} qr_jiter;

/* ---- jinja_value.c: constructors, memory, facts ---- */
static inline qr_jv qr_jv_none(void) { return (qr_jv){.kind = QR_JV_NONE}; }
static inline qr_jv qr_jv_bool(bool value) { return (qr_jv){.kind = QR_JV_BOOL, .i = value}; }
static inline qr_jv qr_jv_int(int64_t value) { return (qr_jv){.kind = QR_JV_INT, .i = value}; }
static inline qr_jv qr_jv_float(double value) { return (qr_jv){.kind = QR_JV_FLOAT, .d = value}; }
static inline qr_jv qr_jv_str(qr_str text)
{
    return (qr_jv){.kind = QR_JV_STRING, .len = (uint32_t)text.len, .s = text.data};
}
#define QR_JV_TEXT(literal) qr_jv_str(QR_STR(literal))
static inline qr_str qr_jv_slice(qr_jv value) { return qr_str_make(value.s, value.len); }
static inline qr_jv qr_jv_with_flag(qr_jv value, uint8_t flag)
{
    value.flag = flag;
    return value;
}
static inline bool qr_jv_is_number(qr_jv v) { return v.kind >= QR_JV_BOOL && v.kind <= QR_JV_FLOAT; }
static inline bool qr_jv_is_integral(qr_jv v) { return v.kind == QR_JV_BOOL || v.kind == QR_JV_INT; }
static inline bool qr_jv_is_sequence(qr_jv v) { return v.kind == QR_JV_LIST || v.kind == QR_JV_TUPLE; }
static inline double qr_jv_to_double(qr_jv v) { return v.kind == QR_JV_FLOAT ? v.d : (double)v.i; }

qr_jv qr_jv_from_json(const qr_json *json);
qr_jv qr_jv_hint(const char *text);           /* an Undefined with its whole message; text is constant */
const char *qr_jv_type_name(qr_jv value);     /* type(value).__name__ */
const char *qr_jv_kind_repr(qr_jv_kind kind); /* "dict object", "None": as messages name an object */
bool qr_jv_truth(qr_jv value);
int64_t qr_jv_length(qr_jv value);               /* len(value), or -1 when it has none */
qr_jv qr_jv_list_at(qr_jv list, uint32_t index); /* LIST or TUPLE; index in range */
bool qr_jv_equal(qr_jrun *run, qr_jv a, qr_jv b);
/* Sets *order to <0, 0, >0; false (and raises) when Python cannot order them. op: "<" and so on. */
bool qr_jv_compare(qr_jrun *run, qr_jv a, qr_jv b, const char *op, int *order);
bool qr_jv_contains(qr_jrun *run, qr_jv container, qr_jv item); /* `item in container` */
bool qr_jv_hashable(qr_jrun *run, qr_jv value);                 /* raises when not */

qr_jdict *qr_jdict_new(qr_jrun *run, uint32_t expected);
void qr_jdict_set(qr_jrun *run, qr_jdict *dict, qr_jv key, qr_jv value);
qr_jv qr_jdict_get(qr_jrun *run, const qr_jdict *dict, qr_jv key); /* MISSING when absent */
static inline qr_jv qr_jv_of_dict(qr_jdict *dict) { return (qr_jv){.kind = QR_JV_DICT, .dict = dict}; }
qr_jv qr_jv_dict_get(qr_jrun *run, qr_jv dict, qr_jv key); /* either representation; MISSING when absent */

void *qr_jinja_alloc(qr_jrun *run, size_t bytes); /* 16-byte aligned; NULL (and raises) past the limit */
char *qr_jinja_text(qr_jrun *run, size_t bytes);  /* unaligned */
qr_jv qr_jv_copy_text(qr_jrun *run, qr_str text);
qr_jv qr_jv_printf(qr_jrun *run, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A growing native list. */
typedef struct qr_jlist {
    qr_jv *items;
    uint32_t count, capacity;
} qr_jlist;
void qr_jlist_push(qr_jrun *run, qr_jlist *list, qr_jv item);
qr_jv qr_jlist_value(const qr_jlist *list, qr_jv_kind kind);
qr_jv qr_jv_pair(qr_jrun *run, qr_jv a, qr_jv b); /* a tuple of two */

/* ---- jinja_iter.c ---- */
bool qr_jiter_init(qr_jrun *run, qr_jiter *iter, qr_jv source); /* raises when not iterable */
bool qr_jiter_next(qr_jrun *run, qr_jiter *iter, qr_jv *item);  /* false at the end or on failure */
bool qr_jv_to_list(qr_jrun *run, qr_jv source, qr_jlist *list); /* list(source) */

/* ---- jinja_repr.c: text of values, appended to a buffer of the run ---- */
void qr_jinja_write_str(qr_jrun *run, qr_jv value);  /* str(value), into the output */
void qr_jinja_write_repr(qr_jrun *run, qr_jv value); /* repr(value), into the output */
qr_jv qr_jv_to_str(qr_jrun *run, qr_jv value);       /* str(value) */
qr_jv qr_jv_to_repr(qr_jrun *run, qr_jv value);
qr_jv qr_jv_soft_str(qr_jrun *run, qr_jv value); /* keeps Markup */
void qr_jinja_write_float(qr_jrun *run, double value);
void qr_jinja_write_escaped(qr_jrun *run, qr_str text); /* & < > ' " for HTML */
qr_jv qr_jv_escape(qr_jrun *run, qr_jv value);          /* markupsafe.escape */

/* ---- jinja_unicode.c: code points as Python's str sees them; a byte that is no UTF-8 counts as one ---- */
size_t qr_jtext_decode(const char *text, size_t len, uint32_t *codepoint); /* >= 1 */
size_t qr_jtext_count(qr_str text);                                        /* code points */
size_t qr_jtext_offset(qr_str text, size_t codepoints); /* bytes of the first `codepoints`, at most len */
bool qr_jtext_is_space(uint32_t codepoint);
bool qr_jtext_is_word(uint32_t codepoint); /* \w */
qr_str qr_jtext_trim(qr_str text, bool left, bool right);
typedef enum qr_jcase {
    QR_JCASE_UPPER,
    QR_JCASE_LOWER,
    QR_JCASE_TITLE,
    QR_JCASE_SWAP,
    QR_JCASE_CAPITALIZE,
    QR_JCASE_FOLD
} qr_jcase;
void qr_jinja_write_case(qr_jrun *run, qr_str text, qr_jcase mode);
qr_jv qr_jv_case(qr_jrun *run, qr_str text, qr_jcase mode);
typedef enum qr_jclass {
    QR_JCLASS_ALPHA,
    QR_JCLASS_DIGIT,
    QR_JCLASS_DECIMAL,
    QR_JCLASS_NUMERIC,
    QR_JCLASS_ALNUM,
    QR_JCLASS_SPACE,
    QR_JCLASS_UPPER,
    QR_JCLASS_LOWER,
    QR_JCLASS_TITLE,
    QR_JCLASS_PRINTABLE,
    QR_JCLASS_ASCII,
    QR_JCLASS_IDENTIFIER
} qr_jclass;
bool qr_jtext_is(qr_str text, qr_jclass class);
bool qr_jtext_printable(uint32_t codepoint);

#endif
