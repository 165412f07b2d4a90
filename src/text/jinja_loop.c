/* For loops and the `loop` variable. A loop's filter runs as items are asked for, so it sees what the body did. */
#include <string.h>

#include "base/mem.h"
#include "text/jinja_run.h"

void qr_jloop_init(qr_jrun *run, qr_jloop *loop, const qr_jstmt *stmt, qr_jv source, int depth0)
{
    *loop = (qr_jloop){
        .stmt = stmt, .frame = run->frame, .source = source, .index0 = -1, .length = -1, .depth0 = depth0};
    if (!qr_jiter_init(run, &loop->iter, source)) {
        loop->done = true;
        return;
    }
    if (stmt->loop.test != NULL)
        qr_jinja_enter_scope(run, &stmt->loop.test_scope);
    else
        loop->length = qr_jv_length(source);
}

static bool passes(qr_jrun *run, const qr_jloop *loop, qr_jv item)
{
    const qr_jstmt *stmt = loop->stmt;
    if (stmt->loop.test == NULL || loop->tested)
        return true;
    qr_jframe *frame = run->frame;
    uint32_t levels = stmt->loop.test->depth + 1u; /* `loop.last` may come here from deep inside the body */
    run->frame = loop->frame;
    bool ok = qr_jinja_enter(run, levels);
    if (ok) {
        qr_jinja_assign(run, stmt->loop.test_target, item, false);
        ok = qr_jv_truth(qr_jinja_eval(run, stmt->loop.test));
    }
    qr_jinja_leave(run, levels);
    run->frame = frame;
    return ok;
}

static bool fetch(qr_jrun *run, qr_jloop *loop, qr_jv *item)
{
    while (!loop->done && qr_jiter_next(run, &loop->iter, item))
        if (passes(run, loop, *item))
            return !qr_jinja_failed(run);
    loop->done = true;
    return false;
}

static bool peek(qr_jrun *run, qr_jloop *loop)
{
    if (!loop->next_known) {
        if (!fetch(run, loop, &loop->next))
            loop->next = (qr_jv){0};
        loop->next_known = true;
    }
    return loop->next.kind != QR_JV_MISSING;
}

bool qr_jloop_next(qr_jrun *run, qr_jloop *loop)
{
    qr_jv item = {0};
    if (loop->next_known) {
        item = loop->next;
        loop->next_known = false;
        if (item.kind == QR_JV_MISSING)
            return false;
    } else if (!fetch(run, loop, &item)) {
        return false;
    }
    loop->previous = loop->current;
    loop->current = item;
    loop->index0++;
    return true;
}

/* len() of something without one: the rest is read ahead into a list. */
static int64_t length_of(qr_jrun *run, qr_jloop *loop)
{
    if (loop->length >= 0)
        return loop->length;
    qr_jlist rest = {0};
    qr_jv item;
    if (peek(run, loop))
        qr_jlist_push(run, &rest, loop->next);
    while (fetch(run, loop, &item))
        qr_jlist_push(run, &rest, item);
    loop->length = loop->index0 + 1 + rest.count;
    qr_jlist tail = rest.count > 0 ? (qr_jlist){rest.items + 1, rest.count - 1, rest.count - 1} : rest;
    loop->iter = (qr_jiter){.source = qr_jlist_value(&tail, QR_JV_LIST)};
    loop->tested = true;
    loop->done = qr_jinja_failed(run);
    return loop->length;
}

static bool neighbour(qr_jrun *run, qr_jloop *loop, qr_str name, qr_jv *value)
{
    if (qr_str_equals(name, "previtem")) {
        *value =
            loop->previous.kind != QR_JV_MISSING ? loop->previous : qr_jv_hint("there is no previous item");
        return true;
    }
    if (qr_str_equals(name, "nextitem")) {
        *value = peek(run, loop) ? loop->next : qr_jv_hint("there is no next item");
        return true;
    }
    return false;
}

/* Items come back out of the test's or the body's filter: the filtered sequence is not tested twice. */
bool qr_jloop_attribute(qr_jrun *run, qr_jloop *loop, qr_str name, qr_jv *value)
{
    if (qr_str_equals(name, "first"))
        *value = qr_jv_bool(loop->index0 == 0);
    else if (qr_str_equals(name, "last"))
        *value = qr_jv_bool(!peek(run, loop));
    else if (qr_str_equals(name, "index0"))
        *value = qr_jv_int(loop->index0);
    else if (qr_str_equals(name, "index"))
        *value = qr_jv_int(loop->index0 + 1);
    else if (qr_str_equals(name, "length"))
        *value = qr_jv_int(length_of(run, loop));
    else if (qr_str_equals(name, "revindex"))
        *value = qr_jv_int(length_of(run, loop) - loop->index0);
    else if (qr_str_equals(name, "revindex0"))
        *value = qr_jv_int(length_of(run, loop) - loop->index0 - 1);
    else if (qr_str_equals(name, "depth"))
        *value = qr_jv_int(loop->depth0 + 1);
    else if (qr_str_equals(name, "depth0"))
        *value = qr_jv_int(loop->depth0);
    else
        return neighbour(run, loop, name, value);
    return true;
}

static qr_jflow run_body(qr_jrun *run, const qr_jstmt *stmt, qr_jloop *loop)
{
    bool finished_one = false;
    qr_jflow flow = QR_JFLOW_NEXT;
    while (flow != QR_JFLOW_BREAK && qr_jloop_next(run, loop)) {
        qr_jinja_assign(run, stmt->loop.target, loop->current, false);
        if (stmt->loop.loop_slot >= 0)
            run->frame->slots[stmt->loop.loop_slot] = (qr_jv){.kind = QR_JV_LOOP, .loop = loop};
        qr_jinja_enter_scope(run, &stmt->loop.scope);
        flow = qr_jinja_exec(run, &stmt->loop.body);
        finished_one = finished_one || flow == QR_JFLOW_NEXT;
        run->pos = qr_jinja_failed(run) ? run->pos : stmt->pos;
    }
    if (qr_jinja_failed(run))
        return QR_JFLOW_BREAK;
    if (finished_one ||
        !stmt->loop.has_else) /* as Jinja2: only a body that ran to its end keeps `else` away */
        return QR_JFLOW_NEXT;
    qr_jinja_enter_scope(run, &stmt->loop.else_scope);
    return qr_jinja_exec(run, &stmt->loop.otherwise);
}

qr_jflow qr_jloop_run(qr_jrun *run, const qr_jstmt *stmt, qr_jv source, int depth0)
{
    qr_jloop local, *loop = &local; /* `loop` can outlive the loop only where it is named */
    if (stmt->loop.loop_slot >= 0)
        loop = qr_jinja_alloc(run, sizeof(*loop));
    if (loop == NULL)
        return QR_JFLOW_BREAK;
    qr_jframe *outer = run->frame;
    if (stmt->loop.func != NULL) {
        size_t bytes = sizeof(qr_jframe) + stmt->loop.func->slot_count * sizeof(qr_jv);
        qr_jframe *frame = qr_jinja_alloc(run, bytes);
        if (frame == NULL)
            return QR_JFLOW_BREAK;
        memset(frame, 0, bytes);
        frame->outer = outer;
        run->frame = frame;
    }
    qr_jloop_init(run, loop, stmt, source, depth0);
    qr_jflow flow = run_body(run, stmt, loop);
    run->frame = outer;
    return flow;
}

qr_jv qr_jloop_call(qr_jrun *run, qr_jloop *loop, const qr_jargs *args)
{
    if (loop->stmt->loop.func == NULL)
        return qr_jinja_raise(run, "The loop must have the 'recursive' marker to be called recursively.");
    qr_jv source;
    if (!qr_jinja_bind(run, "loop", "iterable", 1, args, &source))
        return qr_jv_none();
    size_t mark = run->out->len;
    qr_jframe *frame = run->frame;
    uint32_t levels = loop->stmt->depth + 3u;
    run->frame = loop->frame->outer;
    if (qr_jinja_enter(run, levels))
        qr_jloop_run(run, loop->stmt, source, loop->depth0 + 1);
    qr_jinja_leave(run, levels);
    run->frame = frame;
    return qr_jinja_take(run, mark);
}
