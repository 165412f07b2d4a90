/* Request bodies of /v1/completions and /v1/chat/completions: one table says of each field its name, where it may
 * stand, its type, its bounds and where it goes. A field that is known and not served is refused by name; an
 * unknown one is ignored with a warning in the log. null means absent. Thread: I/O. */
#ifndef QR_SERVER_OPENAI_COMMON_H
#define QR_SERVER_OPENAI_COMMON_H

#include "base/arena.h"
#include "base/json.h"
#include "quire.h"
#include "server/api_error.h"

typedef enum qr_api_kind { QR_API_CHAT = 1, QR_API_COMPLETION = 2 } qr_api_kind;

/* The first two never force a call. */
typedef enum qr_tool_choice {
    QR_TOOL_CHOICE_AUTO,
    QR_TOOL_CHOICE_NONE,
    QR_TOOL_CHOICE_REQUIRED,
    QR_TOOL_CHOICE_NAMED
} qr_tool_choice;

/* What a body is checked against. */
typedef struct qr_api_limits {
    int32_t vocab_size;
    int32_t n_max, prompts_max, stop_max;
    int32_t sequences_max; /* prompts x n */
} qr_api_limits;

/* A stream that goes on here after it was lost elsewhere (resume.h). */
typedef struct qr_api_resume {
    bool given;
    int64_t created;     /* as its chunks said */
    int64_t text_bytes;  /* of the output's text, seen by the client */
    bool opened, closed; /* the chunks that begin and end the choice were seen */
} qr_api_resume;

typedef struct qr_api_prompt {
    const char *text; /* or NULL */
    size_t text_bytes;
    const int32_t *ids; /* or NULL */
    size_t id_count;
} qr_api_prompt;

/* A parsed request. Borrows from the JSON body and its own arena, both released together. */
typedef struct qr_api_params {
    qr_api_kind kind;
    qr_json *body; /* owned */
    qr_arena arena;
    qr_str model; /* data NULL: absent */
    qr_sampling_params sampling;
    int64_t max_completion_tokens; /* -1: absent */
    bool max_tokens_given;         /* by the request, not by defaults */
    int32_t best_of;               /* 0: absent */
    bool stream, include_usage, continuous_usage, stream_options_given;
    bool chat_logprobs;
    int32_t top_logprobs; /* -1: absent */
    bool echo, add_generation_prompt, continue_final_message;
    bool add_special_tokens;
    bool return_token_ids, return_tokens_as_token_ids, return_prompt_text;
    qr_tool_choice tool_choice;
    qr_str tool_choice_name; /* of NAMED */
    bool parallel_tool_calls, include_reasoning;
    int32_t priority;
    qr_str cache_salt, request_id, reasoning_effort;
    int64_t truncate_prompt_tokens;
    const qr_json *messages, *tools, *documents, *template_kwargs, *prompt;
    const int32_t *output_prefix_ids;
    size_t output_prefix_count;
    qr_api_resume resume;
    qr_api_prompt *prompts; /* completions: one each; chat: none */
    size_t prompt_count;    /* chat: 1 */
    char unknown[128];      /* names of ignored fields, for the log */
} qr_api_params;

/* Reads the "resume" object (resume.c). */
bool qr_api_resume_read(const qr_json *value, qr_api_resume *out, qr_api_error *error);
/* What output_prefix_ids and resume ask of the rest of the request. */
bool qr_api_resume_settle(const qr_api_params *params, qr_api_error *error);

/* Defaults of a kind, then the checkpoint's generation_config over them (NULL: none). */
void qr_api_params_init(qr_api_params *params, qr_api_kind kind, const qr_json *generation_config);
void qr_api_params_release(qr_api_params *params);
/* Reads body into params; false with *error filled. */
bool qr_api_params_parse(qr_api_params *params, qr_str body, const qr_api_limits *limits,
                         qr_api_error *error);

/* The JSON that qr_template_render takes, for a chat request. default_kwargs: JSON object or NULL; the request's
 * chat_template_kwargs win. answer_prefix: what the answer has to begin with, or empty. */
void qr_api_chat_json(const qr_api_params *params, const qr_json *default_kwargs, bool allow_special,
                      qr_str answer_prefix, qr_buf *out);
/* The functions' names, borrowed, in a list for the caller to qr_free; returns how many. */
size_t qr_api_tool_names(const qr_api_params *params, const char *const **out);
/* false with *error when kwargs name what a request must not set. */
bool qr_api_check_kwargs(const qr_json *kwargs, qr_api_error *error);

/* The fields as docs/http-api.md lists them: appends one Markdown row; false past the last. */
bool qr_api_field_row(size_t index, qr_buf *out);

#endif
