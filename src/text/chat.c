#include "text/chat.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/vec.h"

#define MARK '\xff'

/* ---- The marker ------------------------------------------------------------------------------------ */

/* Spellings of the special tokens, sorted, for a walk byte by byte. */
typedef struct marker {
    QR_VEC(qr_str) spellings;
    uint8_t first[32]; /* which bytes begin one */
} marker;

static void add_spelling(void *user, qr_str spelling, int32_t id)
{
    (void)id;
    marker *m = user;
    if (spelling.len < 2) /* nothing can be put inside; one byte is no token that a template writes */
        return;
    QR_VEC_PUSH(&m->spellings, spelling);
    unsigned char c = (unsigned char)spelling.data[0];
    m->first[c / 8] |= (uint8_t)(1u << (c % 8));
}

static int by_bytes(const void *a, const void *b)
{
    const qr_str *x = a, *y = b;
    int order = memcmp(x->data, y->data, QR_MIN(x->len, y->len));
    return order != 0 ? order : (x->len > y->len) - (x->len < y->len);
}

static void marker_init(marker *m, const qr_tokenizer *tokenizer)
{
    *m = (marker){0};
    qr_tokenizer_each_special(tokenizer, add_spelling, m);
    if (m->spellings.count > 0)
        qsort(m->spellings.data, m->spellings.count, sizeof(qr_str), by_bytes);
}

static void marker_release(marker *m) { QR_VEC_RELEASE(&m->spellings); }

/* The first spelling at or after `low` whose byte at `depth` is >= c; all in [low, high) share what is before. */
static size_t lower_bound(const marker *m, size_t low, size_t high, size_t depth, unsigned c)
{
    while (low < high) {
        size_t middle = (low + high) / 2;
        const qr_str *s = &m->spellings.data[middle];
        if (s->len <= depth || (unsigned char)s->data[depth] < c)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Whether a spelling begins at text[at]. */
static bool begins_special(const marker *m, qr_str text, size_t at)
{
    size_t low = 0, high = m->spellings.count;
    for (size_t depth = 0; low < high; depth++) {
        if (m->spellings.data[low].len == depth)
            return true;
        if (at + depth >= text.len)
            return false;
        unsigned c = (unsigned char)text.data[at + depth];
        low = lower_bound(m, low, high, depth, c);
        high = lower_bound(m, low, high, depth, c + 1);
    }
    return false;
}

static ptrdiff_t next_special(const marker *m, qr_str text, size_t from)
{
    for (size_t i = from; i < text.len; i++) {
        unsigned char c = (unsigned char)text.data[i];
        if ((m->first[c / 8] >> (c % 8) & 1) && begins_special(m, text, i))
            return (ptrdiff_t)i;
    }
    return -1;
}

/* Appends text[from, to) with the mark after the first byte of each spelling that begins there; a spelling may
 * reach beyond `to`. */
static void mark_range(const marker *m, qr_str text, size_t from, size_t to, qr_buf *out)
{
    size_t done = from;
    for (ptrdiff_t at; (at = next_special(m, text, done)) >= 0 && (size_t)at < to;) {
        qr_buf_append(out, text.data + done, (size_t)at + 1 - done);
        qr_buf_append_char(out, MARK);
        done = (size_t)at + 1;
    }
    qr_buf_append(out, text.data + done, to - done);
}

static qr_json *marked_string(const marker *m, qr_str text)
{
    if (m == NULL || next_special(m, text, 0) < 0)
        return qr_json_new_string(text);
    qr_buf out = {0};
    mark_range(m, text, 0, text.len, &out);
    qr_json *string = qr_json_new_raw_string(qr_buf_str(&out));
    qr_buf_release(&out);
    return string;
}

/* A deep copy with every string marked, names of members too. Depth is bounded by the JSON parser. m NULL:
 * nothing is marked. */
static qr_json *chat_mark_untrusted(const marker *m, const qr_json *json)
{
    if (m == NULL)
        return qr_json_copy(json);
    if (qr_json_is(json, QR_JSON_STRING))
        return marked_string(m, qr_json_string(json));
    if (qr_json_is(json, QR_JSON_ARRAY)) {
        qr_json *array = qr_json_new_array();
        for (size_t i = 0; i < qr_json_count(json); i++)
            qr_json_push(array, chat_mark_untrusted(m, qr_json_at(json, i)));
        return array;
    }
    if (!qr_json_is(json, QR_JSON_OBJECT))
        return qr_json_copy(json);
    qr_json *object = qr_json_new_object();
    qr_buf key = {0};
    for (void *it = qr_json_iter(json); it != NULL; it = qr_json_iter_next(json, it)) {
        qr_str name = qr_json_iter_key(it);
        qr_buf_clear(&key);
        mark_range(m, name, 0, name.len, &key);
        qr_json_set(object, key.data, chat_mark_untrusted(m, qr_json_iter_value(it)));
    }
    qr_buf_release(&key);
    return object;
}

/* ---- Messages -------------------------------------------------------------------------------------- */

typedef struct chat {
    const qr_tokenizer *tokenizer;
    const qr_jinja *jinja;
    const marker *marker; /* NULL: not asked for */
    qr_error *err;
    size_t index; /* of the message at hand */
} chat;

static qr_status bad_message(const chat *c, qr_status status, const char *what, qr_str got)
{
    return qr_fail(c->err, status, "chat: messages[%zu]: %s%s%.*s", c->index, what, got.len > 0 ? ": " : "",
                   (int)QR_MIN(got.len, (size_t)80), got.data != NULL ? got.data : "");
}

/* The text of a part, or an error for what is not text. */
static qr_status part_text(const chat *c, const qr_json *part, qr_str *text)
{
    if (qr_json_is(part, QR_JSON_STRING)) {
        *text = qr_json_string(part);
        return QR_OK;
    }
    if (!qr_json_is(part, QR_JSON_OBJECT))
        return bad_message(c, QR_INVALID_ARGUMENT, "content: a part must be an object or a string",
                           QR_STR(""));
    qr_str type = qr_json_string(qr_json_get(part, "type"));
    const char *key = qr_str_equals(type, "refusal")    ? "refusal"
                      : qr_str_equals(type, "thinking") ? "thinking"
                                                        : "text";
    bool is_text = type.data == NULL || qr_str_equals(type, key) || qr_str_equals(type, "input_text") ||
                   qr_str_equals(type, "output_text");
    if (!is_text)
        return bad_message(c, QR_UNSUPPORTED, "content: only text parts are supported, got type", type);
    const qr_json *value = qr_json_get(part, key);
    if (!qr_json_is(value, QR_JSON_STRING))
        return bad_message(c, QR_INVALID_ARGUMENT, "content: a text part without text", QR_STR(""));
    *text = qr_json_string(value);
    return QR_OK;
}

/* A part with its text replaced; the rest of it is kept. */
static qr_json *rebuild_part(const chat *c, const marker *m, const qr_json *part, qr_str text)
{
    (void)c;
    if (qr_json_is(part, QR_JSON_STRING)) {
        qr_json *made = qr_json_new_object();
        qr_json_set(made, "type", qr_json_new_string(QR_STR("text")));
        qr_json_set(made, "text", qr_json_new_raw_string(text));
        return made;
    }
    qr_json *copy = chat_mark_untrusted(m, part);
    qr_str type = qr_json_string(qr_json_get(part, "type"));
    const char *key = qr_str_equals(type, "refusal")    ? "refusal"
                      : qr_str_equals(type, "thinking") ? "thinking"
                                                        : "text";
    qr_json_set(copy, key, qr_json_new_raw_string(text));
    if (qr_str_equals(type, "input_text") || qr_str_equals(type, "output_text"))
        qr_json_set(copy, "type", qr_json_new_string(QR_STR("text")));
    return copy;
}

typedef struct span {
    size_t from, to;
} span;

/* A template may set parts side by side, so a spelling that two of them make together is marked too. */
static qr_json *build_parts(const chat *c, const marker *m, const qr_json *parts, qr_str all,
                            const span *spans, bool as_list)
{
    qr_buf text = {0};
    qr_json *list = as_list ? qr_json_new_array() : NULL, *made = list;
    for (size_t i = 0; i < qr_json_count(parts); i++) {
        if (as_list)
            qr_buf_clear(&text);
        else if (i > 0)
            qr_buf_append_char(&text, '\n');
        if (m != NULL)
            mark_range(m, all, spans[i].from, spans[i].to, &text);
        else
            qr_buf_append(&text, all.data + spans[i].from, spans[i].to - spans[i].from);
        if (as_list)
            qr_json_push(list, rebuild_part(c, m, qr_json_at(parts, i), qr_buf_str(&text)));
    }
    if (!as_list)
        made = qr_json_new_raw_string(qr_buf_str(&text));
    qr_buf_release(&text);
    return made;
}

static qr_status copy_parts(const chat *c, const marker *m, const qr_json *parts, qr_json **out)
{
    size_t count = qr_json_count(parts);
    span *spans = qr_calloc(count + 1, sizeof(span));
    qr_buf all = {0};
    qr_status status = QR_OK;
    qr_buf_append_cstr(&all, "");
    for (size_t i = 0; i < count && status == QR_OK; i++) {
        qr_str text = QR_STR("");
        status = part_text(c, qr_json_at(parts, i), &text);
        spans[i] = (span){all.len, all.len + text.len};
        qr_buf_append_str(&all, text);
    }
    if (status == QR_OK)
        *out = build_parts(c, m, parts, qr_buf_str(&all), spans, qr_jinja_takes_parts(c->jinja, NULL));
    qr_buf_release(&all);
    qr_free(spans);
    return status;
}

/* Arguments come as JSON text over the API; templates want the object. */
static qr_status copy_arguments(const chat *c, const qr_json *arguments, qr_json **out)
{
    qr_str text = qr_json_string(arguments);
    if (!qr_json_is(arguments, QR_JSON_STRING) && arguments != NULL && !qr_json_is(arguments, QR_JSON_NULL)) {
        *out = qr_json_copy(arguments);
        return QR_OK;
    }
    if (text.len == 0) {
        *out = qr_json_new_object();
        return QR_OK;
    }
    qr_error inner = {0};
    qr_status status = qr_json_parse(text, &qr_json_limits_request, out, &inner);
    if (status != QR_OK)
        return bad_message(c, QR_INVALID_ARGUMENT, "tool_calls: arguments are not JSON",
                           qr_str_of(inner.message));
    return QR_OK;
}

static qr_status copy_tool_calls(const chat *c, const qr_json *calls, qr_json **out)
{
    *out = qr_json_new_array();
    for (size_t i = 0; i < qr_json_count(calls); i++) {
        const qr_json *call = qr_json_at(calls, i), *function = qr_json_get(call, "function");
        qr_json *copy = qr_json_copy(call), *arguments = NULL;
        qr_json_push(*out, copy);
        if (!qr_json_is(function, QR_JSON_OBJECT))
            continue;
        qr_status status = copy_arguments(c, qr_json_get(function, "arguments"), &arguments);
        if (status != QR_OK)
            return status;
        qr_json *fresh = qr_json_copy(function);
        qr_json_set(fresh, "arguments", arguments);
        qr_json_set(copy, "function", fresh);
    }
    return QR_OK;
}

/* A template that only walks over parts gets a string as one part. */
static qr_json *wrap_string(const chat *c, const marker *m, const qr_json *content)
{
    bool only_parts = false;
    qr_jinja_takes_parts(c->jinja, &only_parts);
    qr_json *text = chat_mark_untrusted(m, content);
    if (!only_parts)
        return text;
    qr_json *list = qr_json_new_array(), *part = qr_json_new_object();
    qr_json_set(part, "type", qr_json_new_string(QR_STR("text")));
    qr_json_set(part, "text", text);
    qr_json_push(list, part);
    return list;
}

static qr_status copy_member(const chat *c, const marker *m, bool assistant, qr_str key, const qr_json *value,
                             qr_json **out)
{
    if (qr_str_equals(key, "content") && qr_json_is(value, QR_JSON_ARRAY))
        return copy_parts(c, m, value, out);
    if (qr_str_equals(key, "content") && !qr_json_is(value, QR_JSON_STRING) &&
        !qr_json_is(value, QR_JSON_NULL))
        return bad_message(c, QR_INVALID_ARGUMENT, "content must be a string, a list of parts or null",
                           QR_STR(""));
    if (assistant && qr_str_equals(key, "tool_calls") && qr_json_is(value, QR_JSON_ARRAY))
        return copy_tool_calls(c, value, out);
    if (qr_str_equals(key, "content") && qr_json_is(value, QR_JSON_STRING))
        *out = wrap_string(c, m, value);
    else
        *out = chat_mark_untrusted(m, value);
    return QR_OK;
}

static qr_status copy_message(const chat *c, const qr_json *message, qr_json *copy)
{
    if (!qr_json_is(message, QR_JSON_OBJECT))
        return bad_message(c, QR_INVALID_ARGUMENT, "must be an object", QR_STR(""));
    qr_str role = qr_json_string(qr_json_get(message, "role"));
    if (role.len == 0)
        return bad_message(c, QR_INVALID_ARGUMENT, "role must be a string", QR_STR(""));
    bool assistant = qr_str_equals(role, "assistant");
    const marker *m = assistant ? NULL : c->marker; /* what the model said before stays as it was */
    for (void *it = qr_json_iter(message); it != NULL; it = qr_json_iter_next(message, it)) {
        qr_json *value = NULL;
        qr_status status = copy_member(c, m, assistant, qr_json_iter_key(it), qr_json_iter_value(it), &value);
        if (status != QR_OK) {
            qr_json_free(value);
            return status;
        }
        qr_json_set(copy, qr_json_iter_key(it).data, value);
    }
    return QR_OK;
}

static qr_status copy_messages(chat *c, const qr_json *messages, qr_json *list)
{
    if (!qr_json_is(messages, QR_JSON_ARRAY) || qr_json_count(messages) == 0)
        return qr_fail(c->err, QR_INVALID_ARGUMENT, "chat: messages: must be a list that is not empty");
    for (c->index = 0; c->index < qr_json_count(messages); c->index++) {
        qr_json *copy = qr_json_new_object();
        qr_json_push(list, copy);
        qr_status status = copy_message(c, qr_json_at(messages, c->index), copy);
        if (status != QR_OK)
            return status;
    }
    return QR_OK;
}

/* ---- Variables of the template --------------------------------------------------------------------- */

static void set_specials(const qr_tokenizer *tokenizer, qr_json *variables)
{
    static const char *const names[QR_SPECIAL_COUNT] = {
        [QR_SPECIAL_BOS] = "bos_token",   [QR_SPECIAL_EOS] = "eos_token", [QR_SPECIAL_UNK] = "unk_token",
        [QR_SPECIAL_PAD] = "pad_token",   [QR_SPECIAL_SEP] = "sep_token", [QR_SPECIAL_CLS] = "cls_token",
        [QR_SPECIAL_MASK] = "mask_token",
    };
    for (int i = 0; i < QR_SPECIAL_COUNT; i++) {
        qr_str text = qr_tokenizer_special(tokenizer, (qr_special_name)i);
        if (text.len > 0)
            qr_json_set(variables, names[i], qr_json_new_string(text));
    }
}

static qr_status set_list(const chat *c, const qr_json *request, const char *key, qr_json *variables)
{
    const qr_json *value = qr_json_get(request, key);
    if (value != NULL && !qr_json_is(value, QR_JSON_ARRAY) && !qr_json_is(value, QR_JSON_NULL))
        return qr_fail(c->err, QR_INVALID_ARGUMENT, "chat: %s: must be a list", key);
    bool none = value == NULL || qr_json_is(value, QR_JSON_NULL);
    qr_json_set(variables, key, none ? qr_json_new_null() : chat_mark_untrusted(c->marker, value));
    return QR_OK;
}

static qr_status get_flag(const chat *c, const qr_json *request, const char *key, bool *flag)
{
    const qr_json *value = qr_json_get(request, key);
    if (value == NULL || qr_json_is(value, QR_JSON_NULL))
        return QR_OK;
    if (!qr_json_is(value, QR_JSON_BOOL))
        return qr_fail(c->err, QR_INVALID_ARGUMENT, "chat: %s: must be true or false", key);
    *flag = qr_json_bool(value, *flag);
    return QR_OK;
}

static qr_status set_extra(const chat *c, const qr_json *request, qr_json *variables)
{
    const qr_json *extra = qr_json_get(request, "chat_template_kwargs");
    if (extra == NULL || qr_json_is(extra, QR_JSON_NULL))
        return QR_OK;
    if (!qr_json_is(extra, QR_JSON_OBJECT))
        return qr_fail(c->err, QR_INVALID_ARGUMENT, "chat: chat_template_kwargs: must be an object");
    for (void *it = qr_json_iter(extra); it != NULL; it = qr_json_iter_next(extra, it)) {
        static const char *const taken[] = {"messages", "tools", "documents", "add_generation_prompt"};
        qr_str key = qr_json_iter_key(it);
        for (size_t i = 0; i < QR_COUNT_OF(taken); i++)
            if (qr_str_equals(key, taken[i]))
                return qr_fail(c->err, QR_INVALID_ARGUMENT,
                               "chat: chat_template_kwargs: %s has a field of its own", taken[i]);
        qr_json_set(variables, key.data, qr_json_copy(qr_json_iter_value(it)));
    }
    return QR_OK;
}

/* ---- continue_final_message ------------------------------------------------------------------------ */

static bool is_ascii_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static qr_str strip(qr_str text)
{
    while (text.len > 0 && is_ascii_space(text.data[0]))
        text = qr_str_make(text.data + 1, text.len - 1);
    while (text.len > 0 && is_ascii_space(text.data[text.len - 1]))
        text.len--;
    return text;
}

static qr_str final_text(const qr_json *messages)
{
    const qr_json *content = qr_json_get(qr_json_at(messages, qr_json_count(messages) - 1), "content");
    for (size_t i = qr_json_count(content); qr_json_is(content, QR_JSON_ARRAY) && i-- > 0;) {
        const qr_json *text = qr_json_get(qr_json_at(content, i), "text");
        if (qr_json_is(text, QR_JSON_STRING))
            return qr_json_string(text);
    }
    return qr_json_string(content);
}

static ptrdiff_t find_last(qr_str text, qr_str needle)
{
    for (size_t at = text.len >= needle.len ? text.len - needle.len + 1 : 0; at-- > 0;)
        if (memcmp(text.data + at, needle.data, needle.len) == 0)
            return (ptrdiff_t)at;
    return -1;
}

/* Cuts the prompt after the last message's text, with as much white space as the template left there. */
static qr_status cut_after_final(const chat *c, const qr_json *messages, size_t start, qr_buf *out)
{
    qr_str final = final_text(messages), core = strip(final);
    qr_str prompt = qr_str_make(out->data + start, out->len - start);
    ptrdiff_t at = core.len > 0 ? find_last(prompt, core) : -1;
    if (at < 0)
        return qr_fail(c->err, QR_INVALID_ARGUMENT,
                       "chat: continue_final_message: the final message's text is not in "
                       "the rendered prompt");
    qr_str tail = qr_str_make(core.data, (size_t)(final.data + final.len - core.data));
    qr_str rest = qr_str_make(prompt.data + at, prompt.len - (size_t)at);
    out->len = start + (size_t)at + (qr_str_starts(rest, tail) ? tail.len : core.len);
    out->data[out->len] = '\0';
    return QR_OK;
}

/* ---- Rendering ------------------------------------------------------------------------------------- */

static qr_status render(chat *c, const qr_json *request, qr_json *variables, int64_t now, qr_buf *out)
{
    bool add_prompt = true, go_on = false;
    size_t start = out->len;
    qr_json *messages = qr_json_new_array();
    qr_json_set(variables, "messages", messages);
    qr_status status = copy_messages(c, qr_json_get(request, "messages"), messages);
    if (status == QR_OK)
        status = set_list(c, request, "tools", variables);
    if (status == QR_OK)
        status = set_list(c, request, "documents", variables);
    if (status == QR_OK)
        status = get_flag(c, request, "continue_final_message", &go_on);
    add_prompt = !go_on;
    if (status == QR_OK)
        status = get_flag(c, request, "add_generation_prompt", &add_prompt);
    if (status == QR_OK && go_on && add_prompt)
        status = qr_fail(c->err, QR_INVALID_ARGUMENT,
                         "chat: continue_final_message and add_generation_prompt exclude "
                         "each other");
    qr_json_set(variables, "add_generation_prompt", qr_json_new_bool(add_prompt));
    set_specials(c->tokenizer, variables);
    if (status == QR_OK)
        status = set_extra(c, request, variables);
    if (status == QR_OK)
        status = qr_jinja_render(c->jinja, variables, now, NULL, out, c->err);
    if (status == QR_OK && go_on)
        status = cut_after_final(c, messages, start, out);
    qr_str prefix = qr_json_string(qr_json_get(request, "answer_prefix"));
    if (status == QR_OK && prefix.len > 0 &&
        qr_output_parser_prompt_opens(out->data + start, out->len - start))
        qr_buf_append_cstr(out,
                           qr_str_ends(qr_buf_str(out), QR_STR("[THINK]")) ? "[/THINK]" : "\n</think>\n\n");
    if (status == QR_OK)
        qr_buf_append_str(out, prefix);
    if (status != QR_OK)
        out->len = start;
    return status;
}

qr_status qr_chat_render(const qr_tokenizer *tokenizer, const qr_json *request, int64_t now_unix_s,
                         qr_buf *out, qr_error *err)
{
    chat c = {.tokenizer = tokenizer, .jinja = qr_tokenizer_template(tokenizer), .err = err};
    marker m = {0};
    bool allow_special = false;
    if (!qr_json_is(request, QR_JSON_OBJECT))
        return qr_fail(err, QR_INVALID_ARGUMENT, "chat: the request must be an object");
    if (c.jinja == NULL)
        return qr_fail(err, QR_UNSUPPORTED,
                       "chat: this checkpoint has no chat template that compiles: give one");
    qr_status status = get_flag(&c, request, "allow_special_in_content", &allow_special);
    if (status != QR_OK)
        return status;
    if (!allow_special) {
        marker_init(&m, tokenizer);
        c.marker = &m;
    }
    qr_json *variables = qr_json_new_object();
    status = render(&c, request, variables, now_unix_s, out);
    qr_json_free(variables);
    marker_release(&m);
    return status;
}

qr_status qr_template_render(const qr_tokenizer *tokenizer, const char *request_json, size_t bytes,
                             char **text, size_t *text_bytes, qr_error *err)
{
    qr_json *request = NULL;
    qr_buf out = {0};
    qr_status status =
        qr_json_parse(qr_str_make(request_json, bytes), &qr_json_limits_request, &request, err);
    if (status != QR_OK)
        return status;
    status = qr_chat_render(tokenizer, request, qr_clock_unix_s(), &out, err);
    qr_json_free(request);
    if (status != QR_OK) {
        qr_buf_release(&out);
        return status;
    }
    size_t len = 0;
    *text = qr_buf_detach(&out, &len);
    if (text_bytes != NULL)
        *text_bytes = len;
    return QR_OK;
}
