#include "server/answer.h"

#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "base/mem.h"
#include "base/rng.h"

/* Enough for the mark that ends a prompt. */
#define PROMPT_TAIL_TOKENS 16

/* ---- Styles ---------------------------------------------------------------------------------------- */

qr_status qr_answer_styles(qr_server *server, qr_error *err)
{
    const char *template = server->tokenizer != NULL ? qr_tokenizer_chat_template(server->tokenizer) : NULL;
    const char *reasoning = server->options.reasoning_parser, *tools = server->options.tool_call_parser;
    qr_output_parser_detect(template, &server->reasoning_style, &server->tool_style);
    if (strcmp(reasoning, "auto") != 0)
        server->reasoning_style = reasoning;
    if (strcmp(tools, "auto") != 0)
        server->tool_style = tools;
    qr_output_parser *parser = NULL;
    qr_output_parser_options options;
    qr_output_parser_options_init(&options);
    options.reasoning = server->reasoning_style;
    options.tools = server->tool_style;
    qr_status status = qr_output_parser_new(&options, &parser, err);
    qr_output_parser_free(parser);
    return status;
}

/* ---- The call -------------------------------------------------------------------------------------- */

static const char *choice_name(qr_tool_choice choice)
{
    static const char *const names[] = {"auto", "none", "required", "named"};
    return names[choice];
}

static void choose_styles(const qr_server *server, const qr_api_params *params, struct qr_answers *answers)
{
    bool calls = params->tools != NULL && params->tool_choice != QR_TOOL_CHOICE_NONE;
    qr_output_parser_options *options = &answers->options;
    qr_output_parser_options_init(options);
    options->reasoning = server->reasoning_style;
    options->tools = calls ? server->tool_style : "none";
    options->tool_choice = choice_name(calls ? params->tool_choice : QR_TOOL_CHOICE_NONE);
    options->tool_name = params->tool_choice_name.data;
    options->chat_template = server->tokenizer != NULL ? qr_tokenizer_chat_template(server->tokenizer) : NULL;
    if (!calls)
        return;
    options->tool_name_count = qr_api_tool_names(params, &answers->tool_names);
    options->tool_names = answers->tool_names;
    qr_json_write(params->tools, 0, &answers->tools_json);
    options->tools_json = answers->tools_json.data;
    options->tools_json_bytes = answers->tools_json.len;
}

/* Marks that are special tokens would not be in the text. */
static void keep_marks(const qr_tokenizer *tokenizer, const qr_output_parser *parser,
                       struct qr_answers *answers)
{
    for (size_t i = 0; answers->kept_count < QR_COUNT_OF(answers->kept_ids); i++) {
        const char *mark = qr_output_parser_mark(parser, i);
        if (mark == NULL || tokenizer == NULL)
            return;
        bool special = false;
        int32_t id = qr_tokenizer_find(tokenizer, mark, strlen(mark));
        if (id >= 0 && qr_tokenizer_token(tokenizer, id, &special) != NULL && special)
            answers->kept_ids[answers->kept_count++] = id;
    }
}

static bool plan(const qr_server *server, const qr_api_params *params, struct qr_answers *answers,
                 qr_api_error *error)
{
    qr_output_parser *parser = NULL;
    qr_error err = {0};
    choose_styles(server, params, answers);
    qr_status status = qr_output_parser_new(&answers->options, &parser, &err);
    if (status != QR_OK)
        return qr_api_fail_status(error, status, err.message);
    qr_buf_append_cstr(&answers->opening, qr_output_parser_opening(parser));
    keep_marks(server->tokenizer, parser, answers);
    qr_output_parser_free(parser);
    if (params->tool_choice < QR_TOOL_CHOICE_REQUIRED || answers->opening.len > 0)
        return true;
    return qr_api_fail(
        error, 400, "not_served", "tool_choice",
        "tool_choice: \"%s\" needs a way to call tools that this model's template does not show: "
        "start the server with --tool-call-parser",
        choice_name(params->tool_choice));
}

static void answers_free(struct qr_answers *answers)
{
    if (answers == NULL)
        return;
    qr_free((void *)answers->tool_names);
    qr_buf_release(&answers->tools_json);
    qr_buf_release(&answers->opening);
    qr_free(answers);
}

bool qr_answers_begin(qr_call *call, qr_api_error *error)
{
    if (call->params.kind != QR_API_CHAT)
        return true;
    struct qr_answers *answers = call->answers = qr_calloc(1, sizeof(*answers));
    bool fine = plan(call->server, &call->params, answers, error);
    if (strcmp(answers->options.tools, "none") == 0 && strcmp(answers->options.reasoning, "none") == 0) {
        answers_free(answers);
        call->answers = NULL;
    }
    return fine;
}

bool qr_answers_opening(const qr_server *server, const qr_api_params *params, qr_buf *out,
                        qr_api_error *error)
{
    struct qr_answers *answers = qr_calloc(1, sizeof(*answers));
    bool fine = plan(server, params, answers, error);
    qr_buf_append_str(out, qr_buf_str(&answers->opening));
    answers_free(answers);
    return fine;
}

static void answer_free(struct qr_answer *answer)
{
    if (answer == NULL)
        return;
    qr_output_parser_free(answer->parser);
    qr_buf_release(&answer->reasoning);
    qr_buf_release(&answer->content);
    for (size_t i = 0; i < answer->calls.count; i++) {
        qr_buf_release(&answer->calls.data[i].name);
        qr_buf_release(&answer->calls.data[i].arguments);
    }
    QR_VEC_RELEASE(&answer->calls);
    qr_free(answer);
}

void qr_answers_release(qr_call *call)
{
    for (size_t i = 0; call->choices != NULL && i < call->choice_count; i++) {
        answer_free(call->choices[i].answer);
        call->choices[i].answer = NULL;
    }
    answers_free(call->answers);
    call->answers = NULL;
}

/* ---- One choice ------------------------------------------------------------------------------------ */

/* Of replies that must not differ from run to run (created_unix_s): from what names the call. */
static uint64_t id_bits(const qr_call *call, const qr_choice *choice, size_t at)
{
    if (call->server->options.created_unix_s == 0)
        return qr_rng_system();
    return qr_hash_mix(qr_hash64(call->id, strlen(call->id), at) ^
                       qr_hash_mix(choice->index << 20 ^ choice->answer->calls.count));
}

/* Mistral's templates take nothing but nine letters and digits back. */
static void make_id(const qr_call *call, const qr_choice *choice, char *id, size_t room)
{
    static const char digits[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    bool mistral = strcmp(call->answers->options.tools, "mistral") == 0;
    size_t at = mistral ? 0 : (size_t)snprintf(id, room, "call_"), len = at + (mistral ? 9 : 20);
    for (uint64_t bits = id_bits(call, choice, at); at < len; bits /= 62) {
        if (bits < 62) /* ten digits come of 64 bits */
            bits = id_bits(call, choice, at);
        id[at++] = digits[bits % 62];
    }
    id[at] = '\0';
}

static bool prompt_opens_reasoning(const qr_call *call, const qr_choice *choice)
{
    char *text = NULL;
    size_t bytes = 0;
    qr_request_facts facts = qr_choice_facts(choice);
    size_t count = QR_MIN(facts.prompt_count, (size_t)PROMPT_TAIL_TOKENS);
    if (call->server->tokenizer == NULL ||
        qr_tokenizer_decode(call->server->tokenizer, facts.prompt_ids + facts.prompt_count - count, count,
                            false, &text, &bytes, NULL) != QR_OK)
        return false;
    bool opens = qr_output_parser_prompt_opens(text, bytes);
    qr_string_free(text);
    return opens;
}

/* Hands the pieces on; a new call's id is made here. */
static void hand_on(qr_call *call, qr_choice *choice, const qr_output_delta *pieces, size_t count,
                    qr_answer_sink sink, void *user)
{
    struct qr_answer *answer = choice->answer;
    for (size_t i = 0; i < count; i++) {
        const qr_output_delta *piece = &pieces[i];
        bool is_tool = piece->tool_index >= 0;
        if (piece->kind == QR_OUTPUT_REASONING && !call->params.include_reasoning)
            continue;
        if (is_tool && piece->tool_index > 0 && !call->params.parallel_tool_calls)
            continue;
        if (piece->kind == QR_OUTPUT_TOOL_BEGIN) {
            qr_answer_call fresh = {0};
            make_id(call, choice, fresh.id, sizeof(fresh.id));
            QR_VEC_PUSH(&answer->calls, fresh);
        }
        sink(call, choice, piece, is_tool ? &answer->calls.data[piece->tool_index] : NULL, user);
    }
}

static qr_status push(qr_call *call, qr_choice *choice, const char *text, size_t bytes, qr_answer_sink sink,
                      void *user, qr_error *err)
{
    const qr_output_delta *pieces = NULL;
    size_t count = 0;
    qr_status status = qr_output_parser_push(choice->answer->parser, text, bytes, &pieces, &count, err);
    if (status == QR_OK)
        hand_on(call, choice, pieces, count, sink, user);
    return status;
}

/* Made at the first event, which is when the prompt's tokens are known. */
static qr_status open_answer(qr_call *call, qr_choice *choice, qr_answer_sink sink, void *user, qr_error *err)
{
    qr_output_parser_options options = call->answers->options;
    const qr_buf *opening = &call->answers->opening;
    choice->answer = qr_calloc(1, sizeof(*choice->answer));
    options.reasoning_open = opening->len == 0 && prompt_opens_reasoning(call, choice);
    qr_status status = qr_output_parser_new(&options, &choice->answer->parser, err);
    if (status == QR_OK && opening->len > 0)
        status = push(call, choice, opening->data, opening->len, sink, user, err);
    return status;
}

bool qr_answer_take(qr_call *call, qr_choice *choice, const qr_event *event, qr_answer_sink sink, void *user,
                    qr_api_error *error)
{
    qr_error err = {0};
    qr_status status = QR_OK;
    if (choice->answer == NULL)
        status = open_answer(call, choice, sink, user, &err);
    if (status == QR_OK && event->text_bytes > 0)
        status = push(call, choice, event->text, event->text_bytes, sink, user, &err);
    if (status == QR_OK && event->finish != QR_FINISH_NONE) {
        const qr_output_delta *pieces = NULL;
        size_t count = 0;
        status = qr_output_parser_finish(choice->answer->parser, &pieces, &count, &err);
        if (status == QR_OK)
            hand_on(call, choice, pieces, count, sink, user);
    }
    return status == QR_OK || qr_api_fail(error, 500, "answer_too_long", NULL, "%s", err.message);
}

void qr_answer_keep(qr_call *call, qr_choice *choice, const qr_output_delta *piece,
                    const qr_answer_call *tool, void *user)
{
    struct qr_answer *answer = choice->answer;
    qr_buf *to = piece->kind == QR_OUTPUT_REASONING ? &answer->reasoning : &answer->content;
    qr_answer_call *kept = tool != NULL ? &answer->calls.data[piece->tool_index] : NULL;
    (void)call;
    (void)user;
    if (kept != NULL)
        to = piece->kind == QR_OUTPUT_TOOL_BEGIN ? &kept->name : &kept->arguments;
    qr_buf_append(to, piece->text, piece->bytes);
}

const char *qr_answer_finish(const qr_call *call, const qr_choice *choice)
{
    bool called = choice->answer != NULL && choice->answer->calls.count > 0;
    /* As OpenAI's: the client that named the function is told "stop". */
    if (called && choice->finish == QR_FINISH_STOP && call->params.tool_choice != QR_TOOL_CHOICE_NAMED)
        return "tool_calls";
    return qr_finish_name(choice->finish);
}
