/* A generation call: one HTTP request, its prompts, the engine's requests and the reply, whole or streamed.
 *
 *      begin --submit--> QUEUED --first event--> STREAMING or WAITING --last sample ends--> ended --after the poll--> freed
 *         |                |                          |
 *         +--> error reply +------- client gone ------+--> cancelled: the engine's requests are released
 *
 * An ended call is freed only when the poll's batch of events has been seen through, since later events of the batch
 * may name it, and when the worker has let go of it: a long body is read there before the submission, a long reply is
 * written there after the last event. Thread: I/O, but for that. */
#ifndef QR_SERVER_CALL_H
#define QR_SERVER_CALL_H

#include "server/state.h"

typedef struct qr_call qr_call;

/* One prompt of the call; what events carry as `user`. */
typedef struct qr_call_prompt {
    qr_owner owner; /* QR_OWNER_CALL */
    qr_call *call;
    qr_request *request;
    size_t index;
    bool seen; /* an event came: its facts are valid */
} qr_call_prompt;

/* One sample of one prompt: a choice of the reply, prompt-major. */
typedef struct qr_choice {
    size_t index;
    qr_call_prompt *prompt;
    int32_t sample;
    bool opened;              /* its first chunk is out */
    size_t tokens;            /* seen so far, output_prefix_ids included */
    size_t text_bytes;        /* likewise; marks (resume.h) */
    size_t marked;            /* tokens that stand in marks */
    size_t text_offset;       /* characters before the next token, for completions' logprobs */
    struct qr_answer *answer; /* answer.h; NULL: the text is passed on as it is */
    qr_finish finish;
    int32_t stop_token, stop_string;
} qr_choice;

/* What differs between chat and completions. All append to `out`. */
typedef struct qr_call_format {
    const char *id_prefix;
    const char *whole_object, *chunk_object;
    /* The first chunk of a choice: role, echo. */
    void (*open)(qr_call *call, qr_choice *choice, qr_buf *out);
    /* One event of one choice: new text and tokens. */
    void (*chunk)(qr_call *call, qr_choice *choice, const qr_event *event, qr_buf *out);
    /* The same for a call with answers: false when the text cannot be split. */
    bool (*pieces)(qr_call *call, qr_choice *choice, const qr_event *event, qr_buf *out, qr_api_error *error);
    void (*close)(qr_call *call, qr_choice *choice, qr_buf *out);
    /* The array elements of an unstreamed reply. */
    void (*choice)(qr_call *call, qr_choice *choice, qr_buf *out);
    /* Members of the unstreamed reply after usage, each with a leading comma. */
    void (*extras)(qr_call *call, qr_buf *out);
} qr_call_format;

struct qr_call {
    qr_owner owner; /* QR_OWNER_CALL */
    qr_list node;   /* server->calls or server->ended */
    qr_list dirty;  /* server->dirty, or alone */
    qr_server *server;
    qr_http_conn *conn; /* NULL: the client left */
    const qr_call_format *format;
    qr_api_params params;
    char id[QR_HTTP_ID_MAX + 16];
    int64_t created;
    qr_str model; /* as the reply names it */
    qr_call_prompt *prompts;
    size_t prompt_count;
    qr_choice *choices;
    size_t choice_count, choices_left;
    qr_buf chat_json;
    struct qr_answers *answers; /* answer.h; NULL: no text of the call is split */
    qr_job job;
    bool at_worker;
    qr_buf body;  /* what the worker parses */
    qr_buf reply; /* what it has written */
    qr_api_error error;
    bool parsed;
    bool marks;  /* the stream carries marks: resume.h */
    bool opened; /* the reply's head has been sent */
    bool ended;
    qr_buf head;  /* every chunk up to its choices: `data: {"id":...,"choices":[` */
    qr_buf piece; /* bytes for the next write */
};

/* Parses, checks, submits. Replies with the error, or owns the connection from here. */
void qr_call_begin(qr_server *server, qr_http_conn *conn, const qr_call_format *format, qr_api_kind kind);

/* The facts of the choice's request: prompt ids, cached count, seed. */
qr_request_facts qr_choice_facts(const qr_choice *choice);
qr_sample_view qr_choice_view(const qr_choice *choice);
/* "finish_reason" value: JSON string or null. */
void qr_call_append_finish(qr_buf *out, qr_finish finish);
/* The stop string, or the stop id the request listed, or null. */
void qr_call_append_stop_reason(const qr_call *call, const qr_choice *choice, qr_buf *out);
bool qr_call_has_stop_reason(const qr_call *call, const qr_choice *choice);
void qr_call_append_ids(qr_buf *out, const int32_t *ids, size_t count);
/* The prompt's text: as given, or decoded. */
void qr_call_append_prompt_text(const qr_call *call, const qr_call_prompt *prompt, qr_buf *out);

#endif
