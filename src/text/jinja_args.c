/* Binding of arguments to parameters, for filters, tests, methods and functions. */
#include <string.h>

#include "text/jinja_run.h"

/* Index of name in the space-separated list, or -1; *count: how many there are. */
static int parameter_index(const char *params, qr_str name, int *count)
{
    int index = -1;
    *count = 0;
    for (const char *at = params; *at != '\0'; ++*count) {
        size_t len = strcspn(at, " ");
        if (len == name.len && memcmp(at, name.data, len) == 0)
            index = *count;
        at += len + (at[len] == ' ');
    }
    return index;
}

bool qr_jinja_bind(qr_jrun *run, const char *what, const char *params, int required, const qr_jargs *args,
                   qr_jv *out)
{
    int count = 0;
    if (params == NULL)
        params = "";
    parameter_index(params, QR_STR("-"), &count);
    if (args->count > (uint32_t)count) {
        qr_jinja_raise(run, "%s takes at most %d arguments (%u given)", what, count, args->count);
        return false;
    }
    for (int i = 0; i < count; i++)
        out[i] = (qr_jv){0};
    for (uint32_t i = 0; i < args->count; i++)
        out[i] = args->positional[i];
    for (uint32_t i = 0; i < args->keyword_count; i++) {
        int unused = 0, index = parameter_index(params, args->names[i], &unused);
        if (index < 0 || out[index].kind != QR_JV_MISSING) {
            qr_jinja_raise(run,
                           index < 0 ? "%s got an unexpected keyword argument '%.*s'"
                                     : "%s got multiple values for argument '%.*s'",
                           what, (int)(args->names[i].len < 60 ? args->names[i].len : 60),
                           args->names[i].data);
            return false;
        }
        out[index] = args->keywords[i];
    }
    for (int i = 0; i < required; i++) {
        if (out[i].kind == QR_JV_MISSING) {
            qr_jinja_raise(run, "%s needs %d arguments", what, required);
            return false;
        }
    }
    return true;
}

bool qr_jinja_want_int(qr_jrun *run, qr_jv value, int64_t *out)
{
    if (qr_jv_is_integral(value)) {
        *out = value.i;
        return true;
    }
    if (value.kind == QR_JV_UNDEFINED)
        qr_jinja_undefined_use(run, value);
    else
        qr_jinja_raise(run, "'%s' object cannot be interpreted as an integer", qr_jv_type_name(value));
    return false;
}

qr_jv qr_jinja_apply(qr_jrun *run, const qr_jfilter *filter, qr_jv value, const qr_jargs *args)
{
    qr_jv bound[QR_JPARAMS_MAX];
    if (filter->params != NULL && filter->params[0] == '*')
        return filter->fn(run, value, NULL, args);
    if (!qr_jinja_bind(run, filter->name, filter->params, filter->required, args, bound))
        return qr_jv_none();
    return filter->fn(run, value, bound, args);
}
