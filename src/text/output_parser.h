/* Output parsers: machines that take one byte at a time, so that how the text was cut cannot matter. The splitter of
 * reasoning (output_parser.c) feeds the machine of one style; all write through the sink functions below.
 * Thread: one owner. */
#ifndef QR_TEXT_OUTPUT_PARSER_H
#define QR_TEXT_OUTPUT_PARSER_H

#include "base/json.h"
#include "base/str.h"
#include "base/vec.h"
#include "quire.h"

typedef enum qr_tool_style {
    QR_TOOLS_NONE,
    QR_TOOLS_HERMES,
    QR_TOOLS_LLAMA3,
    QR_TOOLS_PYTHONIC,
    QR_TOOLS_MISTRAL,
    QR_TOOLS_HARMONY,
    QR_TOOLS_XML,
    QR_TOOLS_LIST, /* constrained "required": a JSON list */
    QR_TOOLS_NAMED /* constrained "named": the arguments alone */
} qr_tool_style;

enum { QR_OUTPUT_MARKS_MAX = 8, QR_OUTPUT_MARK_BYTES_MAX = 24 };

/* Finds marks in a stream: bytes that may begin one are held back. */
typedef struct qr_mark_finder {
    const char *const *marks;
    int count;
    char held[QR_OUTPUT_MARK_BYTES_MAX];
    int held_bytes;
} qr_mark_finder;

/* Checks JSON text byte by byte, one value. */
typedef enum qr_json_step {
    QR_JSON_STEP_MORE,
    QR_JSON_STEP_END,
    QR_JSON_STEP_END_BEFORE,
    QR_JSON_STEP_BAD
} qr_json_step;
typedef struct qr_json_checker {
    uint8_t state;
    uint8_t digits;  /* of \uXXXX left */
    uint8_t literal; /* position in true, false, null */
    char word;       /* its first letter */
    bool key;        /* the string at hand is a key */
    uint32_t depth;
    uint64_t stack; /* a bit a level: 1 object, 0 array */
} qr_json_checker;

void qr_json_checker_init(qr_json_checker *checker);
qr_json_step qr_json_checker_step(qr_json_checker *checker, char c);
bool qr_json_checker_in_string(const qr_json_checker *checker);

/* One call written as a JSON object. */
typedef struct qr_call_object {
    uint8_t state;
    uint8_t key; /* which member is at hand */
    bool saw_name, saw_arguments, first_key_ok;
    qr_json_checker value;
    qr_buf raw_key;
    qr_buf name;      /* raw, then unescaped */
    qr_buf arguments; /* held until the name is known; a string until it ends */
    bool arguments_are_string;
} qr_call_object;

/* One call written in Python. */
typedef struct qr_call_python {
    uint8_t state;
    uint32_t depth;
    char stack[64];
    char quote;
    uint8_t digits;
    uint32_t codepoint;
    bool first;
    qr_buf word; /* an identifier or number at hand */
} qr_call_python;

/* One call of tagged parameters. */
typedef struct qr_call_xml {
    uint8_t kind;
    bool some, first, held_newline; /* some: a parameter was given out; first: the value's first byte comes */
    qr_mark_finder marks;
    qr_buf name, word, value; /* the function's; a name at hand; a value that is no string, until it ends */
    qr_json *tools;           /* the request's, for the types of parameters; or NULL */
} qr_call_xml;

typedef enum qr_call_result { QR_CALL_MORE, QR_CALL_END, QR_CALL_BAD } qr_call_result;

struct qr_output_parser {
    /* options */
    qr_tool_style style;
    bool think, keep_calls; /* keep_calls: tool_choice is not "none" */
    char *tool_name;
    qr_buf opening; /* what an answer that has to call begins with */
    char **tool_names;
    size_t tool_name_count, memory_max;

    /* the splitter of reasoning */
    uint8_t think_state;
    qr_mark_finder think_marks;
    qr_buf newlines; /* held next to a mark */

    /* the machine of the style */
    uint8_t state;
    qr_mark_finder marks;
    qr_buf raw;                       /* of a call that has not begun: content if it does not */
    qr_buf space;                     /* white space that a call would swallow */
    qr_buf header;                    /* harmony */
    bool in_call, after_call, strict; /* in_call: BEGIN was given; strict: the name must be a known one */
    uint8_t body;                     /* harmony: what the message is */
    qr_call_object object;
    qr_call_python python;
    qr_call_xml xml;

    /* the sink */
    int32_t tool_count;
    bool failed;
    qr_buf text;
    QR_VEC(qr_output_delta) deltas; /* text as offsets until handed out */
};

/* ---- The sink (output_parser.c) ---- */
void qr_output_emit(qr_output_parser *p, qr_output_kind kind, const char *text, size_t bytes);
static inline void qr_output_byte(qr_output_parser *p, qr_output_kind kind, char c)
{
    qr_output_emit(p, kind, &c, 1);
}
void qr_output_begin_call(qr_output_parser *p, qr_str name);
void qr_output_end_call(qr_output_parser *p);
bool qr_output_knows_tool(const qr_output_parser *p, qr_str name);
/* Content in a text that may hold calls: white space waits for what follows it. */
void qr_output_content(qr_output_parser *p, char c);
/* Which mark ends at this byte, or -1; bytes that belong to none go to `release` in order. */
int qr_mark_finder_feed(qr_mark_finder *finder, char c, void (*release)(qr_output_parser *, char),
                        qr_output_parser *p);
void qr_mark_finder_flush(qr_mark_finder *finder, void (*release)(qr_output_parser *, char),
                          qr_output_parser *p);

/* A byte of arguments as JSON has to have it, given out or appended to out: models write raw newlines into strings. */
void qr_output_put_argument(qr_output_parser *p, qr_buf *out, bool in_string, char c);

/* ---- Machines ---- */
void qr_call_object_reset(qr_call_object *object);
void qr_call_object_release(qr_call_object *object);
/* Feeds the call's object; gives BEGIN, ARGUMENTS and END itself. require: it is a call only when it has arguments
 * (or only a known name). */
qr_call_result qr_call_object_feed(qr_output_parser *p, char c);
void qr_call_python_reset(qr_call_python *python);
qr_call_result qr_call_python_feed(qr_output_parser *p, char c);
void qr_tools_json_feed(qr_output_parser *p, char c); /* hermes, llama3, mistral, lists */
void qr_tools_json_finish(qr_output_parser *p);
void qr_tools_python_feed(qr_output_parser *p, char c);
void qr_tools_python_finish(qr_output_parser *p);
void qr_tools_harmony_feed(qr_output_parser *p, char c);
void qr_tools_harmony_finish(qr_output_parser *p);
void qr_tools_xml_feed(qr_output_parser *p, char c);
void qr_tools_xml_finish(qr_output_parser *p);
void qr_tools_init(qr_output_parser *p);
/* The marks of a style; *count may be 0. */
const char *const *qr_tools_marks(qr_tool_style style, int *count);

static inline bool qr_output_is_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

#endif
