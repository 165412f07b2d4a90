/* Compiling and rendering: the entry points of jinja.h. */
#include "text/jinja.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/map.h"
#include "base/mem.h"
#include "base/vec.h"
#include "text/jinja_run.h"

enum {
    SOURCE_BYTES_MAX = 1 << 20,
    NAMES_MAX = 2048,
    ARENA_CHUNK = 32 << 10,
    PIECE_BYTES = 8 << 10,
    FUEL = 1024
};

const qr_jinja_limits qr_jinja_limits_default = {
    .steps_max = 20000000,
    .depth_max = 1000,
    .output_bytes_max = 64u << 20,
    .memory_bytes_max = 256u << 20,
    .time_ns_max = UINT64_C(5000000000),
};

struct qr_jname_table {
    qr_str_map ids;
    QR_VEC(qr_str *) list;
};

/* ---- Compiling ---- */

void *qr_jcompile_alloc(qr_jcompile *compile, size_t bytes)
{
    bytes = QR_ROUND_UP(bytes, (size_t)8);
    if (bytes > PIECE_BYTES / 4)
        return qr_arena_calloc(&compile->jinja->arena, 1, bytes);
    if (compile->bump == NULL || (size_t)(compile->bump_end - compile->bump) < bytes) {
        compile->bump = qr_arena_calloc(&compile->jinja->arena, 1, PIECE_BYTES);
        compile->bump_end = compile->bump + PIECE_BYTES;
    }
    void *memory = compile->bump;
    compile->bump += bytes;
    return memory;
}

void qr_jinja_locate(const qr_jinja *jinja, uint32_t pos, unsigned *line, unsigned *column)
{
    qr_str before = qr_str_make(jinja->source.data, QR_MIN(pos, jinja->source.len));
    size_t start = 0;
    *line = 1;
    for (size_t i = 0; i < before.len; i++) {
        if (before.data[i] == '\n') {
            ++*line;
            start = i + 1;
        }
    }
    *column = (unsigned)qr_jtext_count(qr_str_make(before.data + start, before.len - start)) + 1;
}

void qr_jcompile_fail(qr_jcompile *compile, uint32_t pos, const char *format, ...)
{
    if (compile->failed)
        return;
    compile->failed = true;
    char message[240];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof(message), format, args);
    va_end(args);
    unsigned line = 0, column = 0;
    qr_jinja_locate(compile->jinja, pos, &line, &column);
    qr_fail(compile->err, QR_INVALID_ARGUMENT, "template: line %u, column %u: %s", line, column, message);
}

uint32_t qr_jcompile_intern(qr_jcompile *compile, qr_str name)
{
    struct qr_jname_table *table = compile->names;
    uint32_t id = 0;
    if (qr_str_map_get(&table->ids, name, &id))
        return id;
    if (table->list.count >= NAMES_MAX)
        qr_jcompile_fail(compile, qr_jparse_peek(compile)->pos, "more than %d names", NAMES_MAX);
    char *text = qr_jcompile_alloc(compile, name.len + 1);
    memcpy(text, name.data, name.len);
    qr_str *kept = qr_jcompile_alloc(compile, sizeof(*kept));
    *kept = qr_str_make(text, name.len);
    id = (uint32_t)table->list.count;
    QR_VEC_PUSH(&table->list, kept);
    qr_str_map_add(&table->ids, *kept, id);
    return id;
}

qr_str *qr_jcompile_name(qr_jcompile *compile, uint32_t id) { return compile->names->list.data[id]; }

/* Jinja2 sees \n only, and drops one at the end. */
static qr_str normalise(qr_jinja *jinja, qr_str source, bool keep_trailing_newline)
{
    char *text = qr_arena_alloc(&jinja->arena, source.len + 1), *out = text;
    for (size_t i = 0; i < source.len; i++) {
        if (source.data[i] == '\r') {
            *out++ = '\n';
            i += i + 1 < source.len && source.data[i + 1] == '\n';
        } else {
            *out++ = source.data[i];
        }
    }
    if (!keep_trailing_newline && out > text && out[-1] == '\n')
        out--;
    *out = '\0';
    return qr_str_make(text, (size_t)(out - text));
}

static void keep_names(qr_jcompile *compile)
{
    qr_jinja *jinja = compile->jinja;
    jinja->name_count = (uint32_t)compile->names->list.count;
    jinja->names = qr_jcompile_alloc(compile, (jinja->name_count + 1) * sizeof(qr_str));
    for (uint32_t i = 0; i < jinja->name_count; i++)
        jinja->names[i] = *compile->names->list.data[i];
}

static void compile_all(qr_jcompile *compile)
{
    qr_jinja *jinja = compile->jinja;
    if (qr_jinja_lex(compile))
        jinja->body = qr_jparse_template(compile);
    if (!compile->failed)
        qr_jscope_bind(compile, jinja->body);
    if (compile->failed)
        return;
    keep_names(compile);
    qr_jinja_inspect(jinja);
}

qr_status qr_jinja_compile_with(qr_str source, const qr_jsyntax *syntax, qr_jinja **out, qr_error *err)
{
    if (source.len > SOURCE_BYTES_MAX)
        return qr_fail(err, QR_LIMIT_EXCEEDED, "template: %zu bytes, more than %d", source.len,
                       SOURCE_BYTES_MAX);
    qr_jinja *jinja = qr_calloc(1, sizeof(*jinja));
    qr_arena_init(&jinja->arena, ARENA_CHUNK);
    jinja->source = normalise(jinja, source, syntax->keep_trailing_newline);
    struct qr_jname_table table = {0};
    qr_str_map_init(&table.ids, 64);
    qr_jcompile compile = {.jinja = jinja, .syntax = *syntax, .err = err, .names = &table};
    compile_all(&compile);
    qr_free(compile.tokens.data);
    qr_str_map_release(&table.ids);
    QR_VEC_RELEASE(&table.list);
    if (compile.failed) {
        qr_jinja_free(jinja);
        return QR_INVALID_ARGUMENT;
    }
    *out = jinja;
    return QR_OK;
}

qr_status qr_jinja_compile(qr_str source, qr_jinja **out, qr_error *err)
{
    static const qr_jsyntax syntax = {.trim_blocks = true, .lstrip_blocks = true};
    return qr_jinja_compile_with(source, &syntax, out, err);
}

void qr_jinja_free(qr_jinja *jinja)
{
    if (jinja == NULL)
        return;
    qr_arena_release(&jinja->arena);
    qr_free(jinja);
}

/* ---- Rendering ---- */

static void fail_run(qr_jrun *run, qr_status status, const char *format, va_list args)
{
    if (run->status != QR_OK)
        return;
    char message[240];
    vsnprintf(message, sizeof(message), format, args);
    unsigned line = 0, column = 0;
    qr_jinja_locate(run->jinja, run->pos, &line, &column);
    run->status = qr_fail(run->err, status, "template: line %u, column %u: %s", line, column, message);
    run->fuel = 0;
}

qr_jv qr_jinja_raise(qr_jrun *run, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fail_run(run, QR_INVALID_ARGUMENT, format, args);
    va_end(args);
    return qr_jv_none();
}

qr_jv qr_jinja_limit(qr_jrun *run, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fail_run(run, QR_LIMIT_EXCEEDED, format, args);
    va_end(args);
    return qr_jv_none();
}

bool qr_jinja_refuel(qr_jrun *run)
{
    if (qr_jinja_failed(run)) {
        run->fuel = 0;
        return false;
    }
    run->steps += FUEL;
    run->fuel = FUEL;
    if (run->steps > run->limits.steps_max)
        qr_jinja_limit(run, "more than %llu steps", (unsigned long long)run->limits.steps_max);
    else if (qr_clock_ns() > run->deadline_ns)
        qr_jinja_limit(run, "takes longer than %.3g s", (double)run->limits.time_ns_max * 1e-9);
    return !qr_jinja_failed(run);
}

bool qr_jinja_enter(qr_jrun *run, uint32_t levels)
{
    run->depth += levels;
    if (run->depth > run->limits.depth_max)
        qr_jinja_limit(run, "nested deeper than %u", run->limits.depth_max);
    return !qr_jinja_failed(run);
}

void qr_jinja_write(qr_jrun *run, qr_str text)
{
    if (run->out->len - run->out_start + text.len > run->limits.output_bytes_max) {
        qr_jinja_limit(run, "more than %zu bytes of output", run->limits.output_bytes_max);
        return;
    }
    qr_buf_append(run->out, text.data, text.len);
}

qr_jv qr_jinja_take(qr_jrun *run, size_t mark)
{
    qr_jv value = qr_jv_copy_text(run, qr_str_make(run->out->data + mark, run->out->len - mark));
    run->out->len = mark;
    return value;
}

static void render_root(qr_jrun *run)
{
    const qr_jinja *jinja = run->jinja;
    run->globals = qr_jinja_alloc(run, (jinja->name_count + 1) * sizeof(qr_jv));
    run->frame = qr_jinja_alloc(run, sizeof(qr_jframe) + jinja->root.slot_count * sizeof(qr_jv));
    if (qr_jinja_failed(run) || !qr_jinja_enter(run, jinja->body.depth))
        return;
    memset(run->globals, 0, (jinja->name_count + 1) * sizeof(qr_jv));
    memset(run->frame, 0, sizeof(qr_jframe) + jinja->root.slot_count * sizeof(qr_jv));
    qr_jinja_enter_scope(run, &jinja->scope);
    qr_jinja_exec(run, &jinja->body);
}

qr_status qr_jinja_render(const qr_jinja *jinja, const qr_json *variables, int64_t now_unix_s,
                          const qr_jinja_limits *limits, qr_buf *out, qr_error *err)
{
    qr_jrun run = {.jinja = jinja,
                   .variables = variables,
                   .out = out,
                   .out_start = out->len,
                   .err = err,
                   .now = now_unix_s,
                   .limits = limits != NULL ? *limits : qr_jinja_limits_default};
    run.fuel = FUEL;
    run.deadline_ns = qr_clock_ns() + run.limits.time_ns_max;
    qr_arena_init(&run.arena, ARENA_CHUNK);
    qr_buf_reserve(out, 4096);
    render_root(&run);
    qr_arena_release(&run.arena);
    if (run.status != QR_OK)
        out->len = run.out_start;
    out->data[out->len] = '\0';
    return run.status;
}
