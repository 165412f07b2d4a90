/* Shared by the two files of filters. Thread: one render. */
#ifndef QR_TEXT_JINJA_FILTERS_H
#define QR_TEXT_JINJA_FILTERS_H

#include "text/jinja_run.h"

extern const qr_jfilter qr_jinja_sequence_filters[];
extern const size_t qr_jinja_sequence_filter_count;

static inline bool qr_jinja_given(qr_jv value)
{
    return value.kind != QR_JV_MISSING && value.kind != QR_JV_NONE;
}

#endif
